//! Activation functions. Shapes are unchanged, but for gated ones.

use crate::{Result, Tensor};

/// `x * sigmoid(x)` (SiLU, also Swish).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    plain::silu(x)
}

/// Exact GELU, `x * Phi(x)` (Hendrycks & Gimpel 2016).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    plain::gelu(x)
}

/// GELU's tanh approximation, as GPT-2 uses it.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    plain::gelu_tanh(x)
}

/// `x * sigmoid(1.702 x)`, as CLIP ViT-L/14 uses it.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    plain::quick_gelu(x)
}

/// GEGLU (Shazeer 2020): `x (..., 2 n)` is split into value and gate; `value * gelu(gate)`: `(..., n)`.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    plain::geglu(x)
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

    /// Plain twin of [`super::geglu`].
    pub fn geglu(x: &Tensor) -> Result<Tensor> {
        let parts = x.chunk(2, D::Minus1)?;
        Ok((&parts[0] * gelu(&parts[1].contiguous()?)?)?)
    }
}
