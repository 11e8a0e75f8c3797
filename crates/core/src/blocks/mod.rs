//! Layers that models share, each once. Field path = checkpoint key.

mod attention;
mod conv;
mod downsample;
mod embedding;
mod encoder_layer;
mod linear;
mod low_rank;
mod norm;
mod resnet_block;
mod timestep_embedding;
mod transformer_2d;
mod upsample;

pub use attention::{Attention, AttentionConfig, AttentionNames, attend};
pub use conv::Conv2d;
pub use downsample::Downsample;
pub use embedding::Embedding;
pub use encoder_layer::{EncoderLayer, EncoderLayerConfig, HiddenAct};
pub use linear::Linear;
pub use low_rank::LowRank;
pub use norm::{GroupNorm, LayerNorm};
pub use resnet_block::{ResnetBlock, ResnetBlockConfig, TimeEmbeddingNorm};
pub use timestep_embedding::{TimestepEmbedding, Timesteps};
pub use transformer_2d::{BasicTransformerBlock, FeedForward, Transformer2d, Transformer2dConfig};
pub use upsample::Upsample;
