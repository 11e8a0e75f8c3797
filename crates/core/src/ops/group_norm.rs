//! GroupNorm (Wu & He 2018), alone and fused with the SiLU that follows it in every residual block.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::group_norm::{self as kernel, GroupStatistics};
use std::sync::OnceLock;

/// GroupNorm of `x (batch, channels, ...)` in `groups` groups of channels, with `weight (channels)`, `bias (channels)`.
///
/// # Errors
/// The channels do not divide into the groups, or `weight` or `bias` does not fit.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x, weight, bias]) {
        check(x, weight, bias, groups)?;
        return cuda::group_norm(x, weight, bias, groups, eps, false);
    }
    if !on_cpu_in_f32(&[x, weight, bias]) {
        return plain::group_norm(x, weight, bias, groups, eps);
    }
    fused(x, weight, bias, groups, eps, false)
}

/// `silu(group_norm(x))` in one pass.
///
/// # Errors
/// As for [`group_norm`].
pub fn group_norm_silu(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x, weight, bias]) {
        check(x, weight, bias, groups)?;
        return cuda::group_norm(x, weight, bias, groups, eps, true);
    }
    if !on_cpu_in_f32(&[x, weight, bias]) {
        return plain::group_norm_silu(x, weight, bias, groups, eps);
    }
    fused(x, weight, bias, groups, eps, true)
}

fn check(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize) -> Result<()> {
    let channels = x.dim(1)?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(Error::request(format!("group_norm: {channels} channels do not divide into {groups} groups")));
    }
    for (name, parameter) in [("weight", weight), ("bias", bias)] {
        if parameter.dims() != [channels] {
            let shape = parameter.shape();
            return Err(Error::request(format!(
                "group_norm: {name} has shape {shape:?} but x has {channels} channels"
            )));
        }
    }
    Ok(())
}

fn fused(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, silu: bool) -> Result<Tensor> {
    check(x, weight, bias, groups)?;
    let operation = GroupNorm { groups, eps: eps as f32, silu, statistics: OnceLock::new() };
    Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, operation)?)
}

struct GroupNorm {
    groups: usize,
    eps: f32,
    silu: bool,
    /// Set by the forward pass, for the backward pass.
    statistics: OnceLock<GroupStatistics>,
}

impl GroupNorm {
    fn sizes(&self, dims: &[usize]) -> kernel::GroupNorm {
        kernel::GroupNorm {
            batch: dims[0],
            channels: dims[1],
            plane: dims[2..].iter().product(),
            groups: self.groups,
            eps: self.eps,
            silu: self.silu,
        }
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, sizes) = (contiguous(x, x_layout)?, self.sizes(x_layout.dims()));
        let (weight, bias) = (contiguous(weight, weight_layout)?, contiguous(bias, bias_layout)?);
        let mut out = zeros(x.len());
        let statistics = kernel::forward(sizes, x, weight, bias, &mut out);
        let _ = self.statistics.set(statistics); // A repeated forward pass would find the same.
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let statistics = self.statistics.get().ok_or_else(|| {
            candle_core::Error::Msg("group_norm: the backward pass ran before the forward pass".into()).bt()
        })?;
        let (sizes, channels) = (self.sizes(x.dims()), weight.elem_count());
        let (mut dx, mut d_weight, mut d_bias) = (zeros(x.elem_count()), zeros(channels), zeros(channels));
        with_slice(x, |x| {
            with_slice(weight, |weight| {
                with_slice(bias, |bias| {
                    with_slice(dy, |dy| {
                        kernel::backward(sizes, x, weight, bias, statistics, dy, &mut dx, &mut d_weight, &mut d_bias);
                        Ok(())
                    })
                })
            })
        })?;
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(d_weight, channels, device)?),
            Some(Tensor::from_vec(d_bias, channels, device)?),
        ))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::group_norm`].
    pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
        let dims = x.dims().to_vec();
        let (batch, channels) = (x.dim(0)?, x.dim(1)?);
        super::check(x, weight, bias, groups)?;
        let grouped = x.reshape((batch, groups, x.elem_count() / (batch * groups).max(1)))?;
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
