//! Work in progress: the config.
mod config;
pub use config::{BlockKind, DecoderConfig, LayerConfig, ModelType, NormKind, Positions};
