//! Integration tests of the core, against recorded references.

mod blocks;
mod checkpoint;
mod ops;
mod safetensors;
mod torch_rng;
