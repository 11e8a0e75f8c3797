//! Rotary position embedding (Su et al. 2021).

use crate::{Result, Tensor};

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element `i` with `i + dim / 2` (GPT-NeoX, Llama in transformers' layout).
    Halves,
    /// Element `2 i` with `2 i + 1` (GPT-J, the paper).
    Interleaved,
}

/// Rotates `x (batch, heads, time, dim)` by the angles whose cosines and sines are `cos`, `sin (time, dim / 2)`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
    plain::rope(x, cos, sin, layout)
}

/// Plain twins.
pub mod plain {
    use super::RopeLayout;
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::rope`].
    pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
        let (batch, heads, time, dim) = x.dims4()?;
        let half = dim / 2;
        let (a, b) = match layout {
            RopeLayout::Halves => (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?),
            RopeLayout::Interleaved => {
                let pairs = x.reshape((batch, heads, time, half, 2))?;
                (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?)
            }
        };
        let rotated_a = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let rotated_b = (a.broadcast_mul(sin)? + b.broadcast_mul(cos)?)?;
        Ok(match layout {
            RopeLayout::Halves => Tensor::cat(&[rotated_a, rotated_b], D::Minus1)?,
            RopeLayout::Interleaved => Tensor::stack(&[rotated_a, rotated_b], 4)?.reshape((batch, heads, time, dim))?,
        })
    }
}
