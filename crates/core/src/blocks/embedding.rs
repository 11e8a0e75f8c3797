//! The table of embeddings.

use crate::weights::{Init, Params};
use crate::{D, Result, Tensor, ops};

/// A row per id.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
    /// The rows from a number on, where they are trained apart from the others.
    rows: Option<(usize, Tensor)>,
}

impl Embedding {
    /// `weight (vocabulary, features)`; what [`Params::rows`] has at this path takes the place of its last rows.
    pub fn new(params: &Params, vocabulary: usize, features: usize) -> Result<Self> {
        let weight = params.get("weight", (vocabulary, features), Init::Normal { std: 0.02 })?;
        Ok(Self { weight, rows: params.rows(vocabulary, features)? })
    }

    /// `ids (...)` of type u32: `(..., features)`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let stored = ops::embedding(ids, &self.weight)?; // (..., features)
        let Some((first, rows)) = &self.rows else { return Ok(stored) };
        let first = *first as u32;
        let own = ids.maximum(first)?; // (...), those of the rows
        let is_own = ids.ge(first)?.unsqueeze(D::Minus1)?.broadcast_as(stored.shape())?;
        let trained = ops::embedding(&own.broadcast_sub(&Tensor::new(first, ids.device())?)?, rows)?;
        Ok(is_own.where_cond(&trained, &stored)?)
    }

    /// `(vocabulary, features)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
