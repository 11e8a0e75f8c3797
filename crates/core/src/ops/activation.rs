//! Activation functions. Shapes are unchanged, but for gated ones.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{D, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use conjure_kernels::activation::{self as kernel, Activation};
use conjure_kernels::fresh::zeros;

/// `x * sigmoid(x)` (SiLU, also Swish).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x]) {
        return cuda::activate(x, cuda::Activation::Silu);
    }
    if on_cpu_in_f32(&[x]) { apply(x, Activation::Silu) } else { plain::silu(x) }
}

/// Exact GELU, `x * Phi(x)` (Hendrycks & Gimpel 2016).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x]) {
        return cuda::activate(x, cuda::Activation::Gelu);
    }
    if on_cpu_in_f32(&[x]) { apply(x, Activation::Gelu) } else { plain::gelu(x) }
}

/// GELU's tanh approximation, as GPT-2 uses it.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if on_cpu_in_f32(&[x]) { apply(x, Activation::GeluTanh) } else { plain::gelu_tanh(x) }
}

/// `x * sigmoid(1.702 x)`, as CLIP ViT-L/14 uses it.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x]) {
        return cuda::activate(x, cuda::Activation::QuickGelu);
    }
    if on_cpu_in_f32(&[x]) { apply(x, Activation::QuickGelu) } else { plain::quick_gelu(x) }
}

/// Leaky ReLU (Maas et al. 2013) with the slope that ESRGAN and PatchGAN have on the left: `max(x, 0.2 x)`.
pub fn leaky_relu(x: &Tensor) -> Result<Tensor> {
    if on_cpu_in_f32(&[x]) { apply(x, Activation::LeakyRelu) } else { plain::leaky_relu(x) }
}

/// GEGLU (Shazeer 2020): `x (..., 2 n)` is split into value and gate; `value * gelu(gate)`: `(..., n)`.
///
/// # Errors
/// The last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let features = x.dim(D::Minus1)?;
    if !features.is_multiple_of(2) {
        return Err(Error::request(format!("geglu: {features} features cannot be halved into values and gates")));
    }
    #[cfg(feature = "cuda")]
    if cuda::takes(&[x]) {
        return cuda::geglu(x);
    }
    if !on_cpu_in_f32(&[x]) {
        return plain::geglu(x);
    }
    Ok(x.contiguous()?.apply_op1(Geglu { n: features / 2 })?)
}

fn apply(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(Pointwise(activation))?)
}

struct Pointwise(Activation);

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        Ok((CpuStorage::F32(kernel::forward(self.0, x)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dx = with_slice(x, |x| with_slice(dy, |dy| Ok(kernel::backward(self.0, x, dy))))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct Geglu {
    n: usize,
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let mut out = zeros(x.len() / 2);
        kernel::geglu(x, self.n, &mut out);
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.n;
        }
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut dx = zeros(x.elem_count());
        with_slice(x, |x| {
            with_slice(dy, |dy| {
                kernel::geglu_backward(x, self.n, dy, &mut dx);
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::silu`].
    pub fn silu(x: &Tensor) -> Result<Tensor> {
        Ok((x / (x.neg()?.exp()? + 1.0)?)?)
    }

    /// Plain twin of [`super::gelu`].
    pub fn gelu(x: &Tensor) -> Result<Tensor> {
        Ok(x.gelu_erf()?)
    }

    /// Plain twin of [`super::gelu_tanh`].
    pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
        let inner = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
        Ok(((inner.tanh()? + 1.0)? * x)?.affine(0.5, 0.0)?)
    }

    /// Plain twin of [`super::quick_gelu`].
    pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
        Ok((x / ((x * -1.702)?.exp()? + 1.0)?)?)
    }

    /// Plain twin of [`super::leaky_relu`].
    pub fn leaky_relu(x: &Tensor) -> Result<Tensor> {
        Ok(x.maximum(&(x * 0.2)?)?)
    }

    /// Plain twin of [`super::geglu`].
    pub fn geglu(x: &Tensor) -> Result<Tensor> {
        let parts = x.chunk(2, D::Minus1)?;
        Ok((&parts[0] * gelu(&parts[1].contiguous()?)?)?)
    }
}
