//! Matrix products.

use crate::{Result, Tensor};

/// Batched product of `a (..., m, k)` and `b (..., k, n)`: `(..., m, n)`. Leading dimensions must be equal.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    plain::matmul(a, b)
}

/// `x (..., in_features)` times `weight (out_features, in_features)` transposed, plus `bias (out_features)`:
/// `(..., out_features)`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    plain::linear(x, weight, bias)
}

/// Plain twins.
pub mod plain {
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::matmul`].
    pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.contiguous()?.matmul(&b.contiguous()?)?)
    }

    /// Plain twin of [`super::linear`].
    pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let mut out_shape = x.dims().to_vec();
        let in_features = x.dim(D::Minus1)?;
        let out_features = weight.dim(0)?;
        *out_shape.last_mut().expect("dim(-1) succeeded, so there is a last dimension") = out_features;
        let rows = x.elem_count() / in_features.max(1);
        let y = x.reshape((rows, in_features))?.matmul(&weight.t()?)?; // (rows, out_features)
        let y = match bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape(out_shape)?)
    }
}
