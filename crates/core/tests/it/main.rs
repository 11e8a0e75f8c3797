//! Integration tests of the core, against recorded references.

mod safetensors;
mod torch_rng;
