//! GroupNorm (Wu & He 2018), alone and fused with the SiLU that follows it in every residual block.

use crate::{Result, Tensor};

/// GroupNorm of `x (batch, channels, ...)` in `groups` groups of channels, with `weight (channels)`, `bias (channels)`.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    plain::group_norm(x, weight, bias, groups, eps)
}

/// `silu(group_norm(x))` in one pass.
pub fn group_norm_silu(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    plain::group_norm_silu(x, weight, bias, groups, eps)
}

/// Plain twins.
pub mod plain {
    use crate::{D, Error, Result, Tensor};

    /// Plain twin of [`super::group_norm`].
    pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
        let dims = x.dims().to_vec();
        let (batch, channels) = (x.dim(0)?, x.dim(1)?);
        if groups == 0 || channels % groups != 0 {
            return Err(Error::request(format!("group_norm: {channels} channels do not divide into {groups} groups")));
        }
        let grouped = x.reshape((batch, groups, x.elem_count() / (batch * groups)))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normalised = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((batch, channels, ()))?;
        let y = normalised
            .broadcast_mul(&weight.reshape((1, channels, 1))?)?
            .broadcast_add(&bias.reshape((1, channels, 1))?)?;
        Ok(y.reshape(dims)?)
    }

    /// Plain twin of [`super::group_norm_silu`].
    pub fn group_norm_silu(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
        crate::ops::plain::silu(&group_norm(x, weight, bias, groups, eps)?)
    }
}
