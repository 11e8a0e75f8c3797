//! The fully connected layer.

use super::LowRank;
use super::matrix::Matrix;
use crate::weights::{Init, Params};
use crate::{Result, Tensor, ops};

/// `y = x weight^T + bias`. A weight that is quantised in its file stays so, see [`Params::quantized`].
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

impl Linear {
    /// `weight (out_features, in_features)` and, where `bias`, `bias (out_features)`; what [`Params::low_rank`] has at this
    /// path works beside them.
    pub fn new(params: &Params, in_features: usize, out_features: usize, bias: bool) -> Result<Self> {
        let init = Init::Uniform { bound: 1.0 / (in_features.max(1) as f64).sqrt() };
        let weight = Matrix::new(params, "weight", out_features, in_features, init)?;
        let bias = if bias { Some(params.get("bias", out_features, init)?) } else { None };
        Ok(Self { weight, bias, low_rank: params.low_rank(in_features, out_features)? })
    }

    /// `x (..., in_features)`: `(..., out_features)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.linear(x, self.bias.as_ref())?;
        match &self.low_rank {
            None => Ok(y),
            Some(low_rank) => ops::add(&y, &low_rank.forward(x)?),
        }
    }

    /// `(out_features, in_features)`. Of a quantised weight, floats are made at the first call and kept from then on.
    pub fn weight(&self) -> &Tensor {
        self.weight.floats()
    }
}
