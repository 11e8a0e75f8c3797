//! Normalisation layers.

use crate::weights::{Init, Params};
use crate::{Result, Tensor, ops};

/// LayerNorm over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `weight (features)`, `bias (features)`.
    pub fn new(params: &Params, features: usize, eps: f64) -> Result<Self> {
        let weight = params.get("weight", features, Init::Constant(1.0))?;
        let bias = params.get("bias", features, Init::Constant(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    /// `weight (features)` alone; the bias is 0 and no parameter.
    pub fn without_bias(params: &Params, features: usize, eps: f64) -> Result<Self> {
        let weight = params.get("weight", features, Init::Constant(1.0))?;
        let bias = weight.detach().zeros_like()?;
        Ok(Self { weight, bias, eps })
    }

    /// `x (..., features)`, shape unchanged.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// GroupNorm over groups of channels.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// `weight (channels)`, `bias (channels)`.
    pub fn new(params: &Params, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        let weight = params.get("weight", channels, Init::Constant(1.0))?;
        let bias = params.get("bias", channels, Init::Constant(0.0))?;
        Ok(Self { weight, bias, groups, eps })
    }

    /// `x (batch, channels, ...)`, shape unchanged.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::group_norm(x, &self.weight, &self.bias, self.groups, self.eps)
    }

    /// `silu(self.forward(x))` in one pass.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        ops::group_norm_silu(x, &self.weight, &self.bias, self.groups, self.eps)
    }
}

/// RMSNorm over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    /// `1 + weight`, where the weight is stored without the 1.
    offset: Option<Tensor>,
    eps: f64,
}

impl RmsNorm {
    /// `weight (features)`.
    pub fn new(params: &Params, features: usize, eps: f64) -> Result<Self> {
        let weight = params.get("weight", features, Init::Constant(1.0))?;
        Ok(Self { weight, offset: None, eps })
    }

    /// `weight (features)`, to which 1 is added: Gemma's norm.
    pub fn with_offset(params: &Params, features: usize, eps: f64) -> Result<Self> {
        let weight = params.get("weight", features, Init::Constant(0.0))?;
        let offset = Some((&weight + 1.0)?);
        Ok(Self { weight, offset, eps })
    }

    /// `x (..., features)`, shape unchanged.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.offset {
            None => ops::rms_norm(x, &self.weight, self.eps),
            // A weight that is trained changes after the layer is built.
            Some(_) if self.weight.is_variable() => ops::rms_norm(x, &(&self.weight + 1.0)?, self.eps),
            Some(offset) => ops::rms_norm(x, offset, self.eps),
        }
    }
}
