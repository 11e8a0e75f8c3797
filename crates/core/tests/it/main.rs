//! Integration tests of the core, against recorded references.

mod torch_rng;
