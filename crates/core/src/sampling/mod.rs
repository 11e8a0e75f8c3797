//! How noise becomes a sample. A sampler takes a function, never a model.

use crate::{Result, Tensor};

/// A denoiser in the variance-exploding convention of Karras et al. 2022: for `x = x0 + sigma * noise` it predicts `x0`.
pub trait Denoise {
    /// `x (batch, ...)` at noise level `sigma`: the predicted `x0`, of the same shape.
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor>;
}
