//! Softmax.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{D, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::softmax as kernel;

/// Softmax over the last dimension. Shape unchanged.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x]) {
        return cuda::softmax(x);
    }
    if !on_cpu_in_f32(&[x]) {
        return plain::softmax(x);
    }
    Ok(x.contiguous()?.apply_op1(Softmax { n: x.dim(D::Minus1)? })?)
}

struct Softmax {
    n: usize,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let mut out = zeros(x.len());
        kernel::forward(x, self.n, &mut out);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut dx = zeros(x.elem_count());
        with_slice(y, |y| {
            with_slice(dy, |dy| {
                kernel::backward(y, dy, self.n, &mut dx);
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::softmax`].
    pub fn softmax(x: &Tensor) -> Result<Tensor> {
        let max = x.max_keepdim(D::Minus1)?.detach();
        let exp = x.broadcast_sub(&max)?.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?;
        Ok(exp.broadcast_div(&sum)?)
    }
}
