//! Integration tests of the core, against recorded references.

mod attend;
mod blocks;
mod checkpoint;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
#[path = "../../../../fuzz/bodies/weights.rs"]
mod fuzz_bodies;
mod gguf;
mod logit_filters;
mod lstm;
mod ops;
mod products;
mod recompute;
mod resize;
mod safetensors;
mod sampling;
mod torch_rng;
