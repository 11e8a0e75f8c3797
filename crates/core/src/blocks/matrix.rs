//! The matrix of a linear layer or an embedding, as floats or in the blocks that its file has.

use crate::weights::{Init, Params, Quantized};
use crate::{Result, Tensor, ops};
use std::sync::OnceLock;

/// A matrix `(rows, columns)` of weights.
#[derive(Clone, Debug)]
pub(super) enum Matrix {
    /// Floats, with a gradient where they are trained.
    Floats(Tensor),
    /// Blocks, read where they lie.
    Blocks {
        /// The blocks.
        blocks: Quantized,
        /// Their numbers, once somebody has asked for them.
        floats: OnceLock<Tensor>,
    },
}

impl Matrix {
    /// The parameter `name (rows, columns)`: blocks where [`Params::quantized`] has them.
    pub fn new(params: &Params, name: &str, rows: usize, columns: usize, init: Init) -> Result<Self> {
        Ok(match params.quantized(name, rows, columns)? {
            Some(blocks) => Self::Blocks { blocks, floats: OnceLock::new() },
            None => Self::Floats(params.get(name, (rows, columns), init)?),
        })
    }

    /// `x (..., columns)` times the transpose, plus `bias (rows)`: `(..., rows)`.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Floats(weight) => ops::linear(x, weight, bias),
            Self::Blocks { blocks, .. } => ops::quantized_linear(x, blocks, bias),
        }
    }

    /// The rows `ids (...)`: `(..., columns)`.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Floats(weight) => ops::embedding(ids, weight),
            Self::Blocks { blocks, .. } => ops::quantized_embedding(ids, blocks),
        }
    }

    /// `(rows, columns)` as floats. Of blocks, floats are made at the first call and kept.
    pub fn floats(&self) -> &Tensor {
        match self {
            Self::Floats(weight) => weight,
            Self::Blocks { blocks, floats } => {
                floats.get_or_init(|| blocks.dequantize().expect("a matrix has as many numbers as its shape says"))
            }
        }
    }
}
