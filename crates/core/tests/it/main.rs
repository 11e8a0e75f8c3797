//! Integration tests of the core, against recorded references.

mod ops;
mod safetensors;
mod torch_rng;
