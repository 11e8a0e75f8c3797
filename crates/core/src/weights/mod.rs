//! Where a model's parameters come from, and whether they fit.

mod additions;
mod bytes;
mod checkpoint;
mod describe;
mod extended;
mod fit;
pub mod gguf;
mod lora;
mod open;
mod params;
mod pickle;
mod quantized;
mod safetensors;
mod save;
mod seal;
mod sharded;
mod source;
mod stored;
mod view;

pub use additions::LowRankConfig;
pub use checkpoint::Checkpoint;
pub use conjure_kernels::quantized::Format;
pub use describe::{Description, describe, scan_finite};
pub use extended::Extended;
pub use fit::{Fit, Misshapen, check};
pub use lora::{Lora, LoraLayout, LoraTarget, Merged};
pub use open::{locate, open};
pub use params::{Init, ParameterSpec, Params};
pub use quantized::Quantized;
pub use safetensors::Safetensors;
pub use save::save;
pub use seal::save_sealed;
pub use sharded::Sharded;
pub use source::{MemorySource, TensorInfo, TensorSource};
pub use view::{Renamed, Transform, View};
