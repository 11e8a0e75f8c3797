//! Layers that models share, each once. Field path = checkpoint key.

mod activation;
mod attention;
mod conv;
mod downsample;
mod embedding;
mod encoder_layer;
mod gated_mlp;
mod kv_cache;
mod linear;
mod low_rank;
mod matrix;
mod norm;
mod padding_mask;
mod resnet_block;
mod rotary_embedding;
mod timestep_embedding;
mod transformer_2d;
mod upsample;

pub use activation::Activation;
pub use attention::{Attention, AttentionConfig, AttentionNames, attend};
pub use conv::Conv2d;
pub use downsample::Downsample;
pub use embedding::Embedding;
pub use encoder_layer::{EncoderLayer, EncoderLayerConfig, HiddenAct};
pub use gated_mlp::GatedMlp;
pub use kv_cache::{KeptAs, KvCache};
pub use linear::Linear;
pub use low_rank::LowRank;
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use padding_mask::padding_mask;
pub use resnet_block::{ResnetBlock, ResnetBlockConfig, TimeEmbeddingNorm};
pub use rotary_embedding::{MAX_POSITIONS, RopeConfig, RopeScaling, RotaryEmbedding};
pub use timestep_embedding::{TimestepEmbedding, Timesteps};
pub use transformer_2d::{BasicTransformerBlock, FeedForward, Transformer2d, Transformer2dConfig};
pub use upsample::Upsample;
