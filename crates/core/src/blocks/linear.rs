//! The fully connected layer.

use crate::weights::{Init, Params};
use crate::{Result, Tensor, ops};

/// `y = x weight^T + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight (out_features, in_features)` and, where `bias`, `bias (out_features)`.
    pub fn new(params: &Params, in_features: usize, out_features: usize, bias: bool) -> Result<Self> {
        let init = Init::Uniform { bound: 1.0 / (in_features.max(1) as f64).sqrt() };
        let weight = params.get("weight", (out_features, in_features), init)?;
        let bias = if bias { Some(params.get("bias", out_features, init)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// `x (..., in_features)`: `(..., out_features)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }

    /// `(out_features, in_features)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
