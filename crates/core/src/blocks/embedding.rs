//! The table of embeddings.

use crate::weights::{Init, Params};
use crate::{Result, Tensor, ops};

/// A row per id.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// `weight (vocabulary, features)`.
    pub fn new(params: &Params, vocabulary: usize, features: usize) -> Result<Self> {
        Ok(Self { weight: params.get("weight", (vocabulary, features), Init::Normal { std: 0.02 })? })
    }

    /// `ids (...)` of type u32: `(..., features)`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        ops::embedding(ids, &self.weight)
    }

    /// `(vocabulary, features)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
