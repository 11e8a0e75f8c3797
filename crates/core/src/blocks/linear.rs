//! The fully connected layer.

use super::LowRank;
use crate::weights::{Init, Params};
use crate::{Result, Tensor, ops};

/// `y = x weight^T + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

impl Linear {
    /// `weight (out_features, in_features)` and, where `bias`, `bias (out_features)`; what [`Params::low_rank`] has at this
    /// path works beside them.
    pub fn new(params: &Params, in_features: usize, out_features: usize, bias: bool) -> Result<Self> {
        let init = Init::Uniform { bound: 1.0 / (in_features.max(1) as f64).sqrt() };
        let weight = params.get("weight", (out_features, in_features), init)?;
        let bias = if bias { Some(params.get("bias", out_features, init)?) } else { None };
        Ok(Self { weight, bias, low_rank: params.low_rank(in_features, out_features)? })
    }

    /// `x (..., in_features)`: `(..., out_features)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = ops::linear(x, &self.weight, self.bias.as_ref())?;
        match &self.low_rank {
            None => Ok(y),
            Some(low_rank) => ops::add(&y, &low_rank.forward(x)?),
        }
    }

    /// `(out_features, in_features)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
