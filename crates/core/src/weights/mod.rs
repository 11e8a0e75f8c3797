//! Where a model's parameters come from, and whether they fit.

mod params;
mod source;

pub use params::{Init, ParameterSpec, Params};
pub use source::{MemorySource, TensorInfo, TensorSource};
