//! What training with low-rank adapters adds to a linear layer.

use crate::{Result, Tensor, ops};

/// `s B A` of Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, section 4.1: two small factors beside a weight that stays.
///
/// They are applied one after the other and never multiplied out: the gradient then needs no matrix of the weight's size.
/// A finished adapter is merged into the weight instead, see [`crate::weights::Merged`].
#[derive(Clone, Debug)]
pub struct LowRank {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl LowRank {
    /// `down (rank, in_features)` is the paper's A, `up (out_features, rank)` its B, `scale` its `alpha / r`.
    pub fn new(down: Tensor, up: Tensor, scale: f64) -> Self {
        Self { down, up, scale }
    }

    /// `x (..., in_features)`: `(..., out_features)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let narrow = (ops::linear(x, &self.down, None)? * self.scale)?; // (..., rank)
        ops::linear(&narrow, &self.up, None)
    }
}
