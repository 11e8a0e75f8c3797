//! The vocabulary of Conjure, on candle tensors; it knows no model.
//!
//! | module | question it answers |
//! |---|---|
//! | [`ops`] | which differentiable operations are there, fast on a CPU and plain everywhere? |
//! | [`blocks`] | which layers do models share? |
//! | [`optim`] | how do parameters follow their gradients? |
//! | [`dropout`] | what is left out in training? |
//! | [`recompute`] | how is memory saved in training? |
//! | [`sampling`] | how does noise become a sample? |
//! | [`weights`] | where do a model's parameters come from, and do they fit? |
//! | [`rng`] | where does every random number come from? |
//! | [`probe`] | how is a running model observed? |
//! | [`config`] | which sizes in a config are refused? |
//! | [`device`] | where are tensors computed? |
//! | [`error`] | what went wrong, and what can the user do? |

pub mod blocks;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod custom_gradient;
pub mod device;
pub mod dropout;
pub mod error;
pub mod ops;
pub mod optim;
pub mod probe;
pub mod recompute;
pub mod rng;
pub mod sampling;
pub mod weights;

pub use candle_core::{D, DType, Device, IndexOp, Shape, Tensor, Var};
pub use conjure_kernels::precision;
pub use conjure_kernels::threads::{Shares, inside};
pub use device::DeviceName;
pub use error::{Error, Result};
