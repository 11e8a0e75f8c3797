//! Normalisation over the last dimension.

use crate::{Result, Tensor};

/// LayerNorm (Ba et al. 2016) over the last dimension of `x (..., features)`, with `weight (features)` and
/// `bias (features)`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    plain::layer_norm(x, weight, bias, eps)
}

/// RMSNorm (Zhang & Sennrich 2019) over the last dimension of `x (..., features)`, with `weight (features)`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    plain::rms_norm(x, weight, eps)
}

/// Plain twins.
pub mod plain {
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::layer_norm`].
    pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normalised = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
        Ok(normalised.broadcast_mul(weight)?.broadcast_add(bias)?)
    }

    /// Plain twin of [`super::rms_norm`].
    pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        Ok(x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)?)
    }
}
