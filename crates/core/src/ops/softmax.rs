//! Softmax.

use crate::{Result, Tensor};

/// Softmax over the last dimension. Shape unchanged.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    plain::softmax(x)
}

/// Plain twins.
pub mod plain {
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::softmax`].
    pub fn softmax(x: &Tensor) -> Result<Tensor> {
        let max = x.max_keepdim(D::Minus1)?.detach();
        let exp = x.broadcast_sub(&max)?.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?;
        Ok(exp.broadcast_div(&sum)?)
    }
}
