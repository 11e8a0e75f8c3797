//! Normalisation over the last dimension.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{D, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::norm::{self as kernel, Norm};

/// LayerNorm (Ba et al. 2016) over the last dimension of `x (..., features)`, with `weight (features)` and
/// `bias (features)`.
///
/// # Errors
/// `weight` or `bias` does not have as many elements as `x` has features.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, &[("weight", weight), ("bias", bias)], "layer_norm")?;
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x, weight, bias]) {
        return cuda::layer_norm(x, weight, bias, eps);
    }
    if !on_cpu_in_f32(&[x, weight, bias]) {
        return plain::layer_norm(x, weight, bias, eps);
    }
    Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps: eps as f32 })?)
}

/// RMSNorm (Zhang & Sennrich 2019) over the last dimension of `x (..., features)`, with `weight (features)`.
///
/// # Errors
/// `weight` does not have as many elements as `x` has features.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, &[("weight", weight)], "rms_norm")?;
    if !on_cpu_in_f32(&[x, weight]) {
        return plain::rms_norm(x, weight, eps);
    }
    Ok(x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 })?)
}

fn check(x: &Tensor, parameters: &[(&str, &Tensor)], operation: &str) -> Result<()> {
    let features = x.dim(D::Minus1)?;
    for (name, parameter) in parameters {
        if parameter.dims() != [features] {
            let shape = parameter.shape();
            return Err(Error::request(format!(
                "{operation}: {name} has shape {shape:?} but x has {features} features"
            )));
        }
    }
    Ok(())
}

/// Gradients for input, weight and bias.
fn backward(
    norm: Norm,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
    let features = weight.elem_count();
    let (mut dx, mut d_weight, mut d_bias) = (zeros(x.elem_count()), zeros(features), zeros(features));
    with_slice(x, |x| {
        with_slice(weight, |weight| {
            with_slice(dy, |dy| {
                kernel::backward(norm, x, weight, eps, dy, &mut dx, &mut d_weight, &mut d_bias);
                Ok(())
            })
        })
    })?;
    let device = x.device();
    Ok((
        Tensor::from_vec(dx, x.shape(), device)?,
        Tensor::from_vec(d_weight, features, device)?,
        Tensor::from_vec(d_bias, features, device)?,
    ))
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
        let mut out = zeros(x.len());
        kernel::forward(Norm::Layer, x, weight, Some(contiguous(bias, bias_layout)?), self.eps, &mut out);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, d_weight, d_bias) = backward(Norm::Layer, x, weight, self.eps, dy)?;
        Ok((Some(dx), Some(d_weight), Some(d_bias)))
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
        let mut out = zeros(x.len());
        kernel::forward(Norm::Rms, x, weight, None, self.eps, &mut out);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, d_weight, _) = backward(Norm::Rms, x, weight, self.eps, dy)?;
        Ok((Some(dx), Some(d_weight)))
    }
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
