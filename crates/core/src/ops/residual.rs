//! Sums: the residual connection and what is added to channels. The tensor library adds on one thread.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape};
use conjure_kernels::elementwise as kernel;
use conjure_kernels::fresh::zeros;

/// `a + b` of equal shapes: the residual connection (He et al. 2016).
///
/// # Errors
/// The shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() || !on_cpu_in_f32(&[a, b]) {
        return plain::add(a, b);
    }
    Ok(a.contiguous()?.apply_op2(&b.contiguous()?, Add)?)
}

/// `x (batch, channels, ...)` plus `bias (batch, channels)` at every place of its channel.
///
/// # Errors
/// The shapes do not fit.
pub fn add_channels(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    if bias.dims() != [batch, channels] {
        let (x, bias) = (x.shape(), bias.shape());
        return Err(Error::request(format!("add_channels: a bias of {bias:?} does not fit {x:?}")));
    }
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x, bias]) {
        return cuda::add_channels(x, bias);
    }
    if !on_cpu_in_f32(&[x, bias]) {
        return plain::add_channels(x, bias);
    }
    Ok(x.contiguous()?.apply_op2(&bias.contiguous()?, AddChannels)?)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "residual-add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (a, b) = (contiguous(a, a_layout)?, contiguous(b, b_layout)?);
        Ok((CpuStorage::F32(kernel::add(a, b)), a_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.clone()), Some(dy.clone())))
    }
}

struct AddChannels;

impl CustomOp2 for AddChannels {
    fn name(&self) -> &'static str {
        "add-channels"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, bias) = (contiguous(x, x_layout)?, contiguous(bias, bias_layout)?);
        let mut out = zeros(x.len());
        kernel::add_to_planes(x, bias, x_layout.dims()[2..].iter().product(), &mut out);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut d_bias = zeros(bias.elem_count());
        with_slice(dy, |dy| {
            kernel::sum_planes(dy, x.dims()[2..].iter().product(), &mut d_bias);
            Ok(())
        })?;
        Ok((Some(dy.clone()), Some(Tensor::from_vec(d_bias, bias.shape(), bias.device())?)))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{Result, Tensor};

    /// Plain twin of [`super::add`].
    pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    /// Plain twin of [`super::add_channels`].
    pub fn add_channels(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let mut shape = bias.dims().to_vec();
        shape.resize(x.dims().len(), 1);
        Ok(x.broadcast_add(&bias.reshape(shape)?)?)
    }
}
