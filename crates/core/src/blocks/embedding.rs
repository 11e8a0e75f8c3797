//! The table of embeddings.

use super::matrix::Matrix;
use crate::weights::{Init, Params};
use crate::{D, Result, Tensor, ops};

/// A row per id. A table that is quantised in its file stays so, see [`Params::quantized`].
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Matrix,
    /// The rows from a number on, where they are trained apart from the others.
    rows: Option<(usize, Tensor)>,
}

impl Embedding {
    /// `weight (vocabulary, features)`; what [`Params::rows`] has at this path takes the place of its last rows.
    pub fn new(params: &Params, vocabulary: usize, features: usize) -> Result<Self> {
        let weight = Matrix::new(params, "weight", vocabulary, features, Init::Normal { std: 0.02 })?;
        Ok(Self { weight, rows: params.rows(vocabulary, features)? })
    }

    /// `ids (...)` of type u32: `(..., features)`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let stored = self.weight.embedding(ids)?; // (..., features)
        let Some((first, rows)) = &self.rows else { return Ok(stored) };
        let first = *first as u32;
        let own = ids.maximum(first)?; // (...), those of the rows
        let is_own = ids.ge(first)?.unsqueeze(D::Minus1)?.broadcast_as(stored.shape())?;
        let trained = ops::embedding(&own.broadcast_sub(&Tensor::new(first, ids.device())?)?, rows)?;
        Ok(is_own.where_cond(&trained, &stored)?)
    }

    /// `x (..., features)` times the table transposed, for a table that also makes the logits: `(..., vocabulary)`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let stored = self.weight.linear(x, None)?; // (..., vocabulary)
        let Some((first, rows)) = &self.rows else { return Ok(stored) };
        let trained = ops::linear(x, rows, None)?; // (..., vocabulary - first)
        Ok(Tensor::cat(&[&stored.narrow(D::Minus1, 0, *first)?, &trained], D::Minus1)?)
    }

    /// `(vocabulary, features)`. Of a quantised table, floats are made at the first call and kept from then on.
    pub fn weight(&self) -> &Tensor {
        self.weight.floats()
    }
}
