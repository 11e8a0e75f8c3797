//! Layers that models share, each once. Field path = checkpoint key.

mod attention;
mod conv;
mod embedding;
mod linear;
mod norm;

pub use attention::{Attention, AttentionConfig};
pub use conv::Conv2d;
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
