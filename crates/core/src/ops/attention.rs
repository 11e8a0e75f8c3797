//! Scaled dot-product attention (Vaswani et al. 2017, equation 1), computed block by block without the score matrix in
//! memory (Dao et al. 2022, FlashAttention).

use crate::{Result, Tensor};

/// What attention does beside `softmax(q k^T * scale) v`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpec<'a> {
    /// Factor on the scores; the paper's is `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Whether query `i` of `t` sees only the keys up to `i + s - t` of `s`.
    pub causal: bool,
    /// Added to the scaled scores (negative infinity hides a key); broadcastable to `(batch, heads, t, s)`.
    /// No gradient flows into it.
    pub mask: Option<&'a Tensor>,
}

impl AttentionSpec<'_> {
    /// Full attention with the paper's scale for heads of `head_dim`.
    pub fn new(head_dim: usize) -> Self {
        Self { scale: 1.0 / (head_dim as f64).sqrt(), causal: false, mask: None }
    }
}

/// `q (batch, heads, t, head_dim)`, `k (batch, kv_heads, s, head_dim)`, `v (batch, kv_heads, s, value_dim)`:
/// `(batch, heads, t, value_dim)`. `kv_heads` divides `heads`: query head `h` reads key head `h / (heads / kv_heads)`.
/// Rows that see no key are zero.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec<'_>) -> Result<Tensor> {
    plain::attention(q, k, v, spec)
}

/// The probabilities that [`attention`] weights the values with, `(batch, heads, t, s)`: for probes.
pub fn attention_probabilities(q: &Tensor, k: &Tensor, spec: AttentionSpec<'_>) -> Result<Tensor> {
    plain::attention_probabilities(q, k, spec)
}

/// Plain twins.
pub mod plain {
    use super::AttentionSpec;
    use crate::{D, Error, Result, Tensor};

    fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
        let (batch, kv_heads, s, dim) = x.dims4()?;
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::request(format!("attention: {heads} heads do not divide into {kv_heads} key heads")));
        }
        let group = heads / kv_heads;
        Ok(x.unsqueeze(2)?
            .broadcast_as((batch, kv_heads, group, s, dim))?
            .contiguous()?
            .reshape((batch, heads, s, dim))?)
    }

    /// Plain twin of [`super::attention_probabilities`].
    pub fn attention_probabilities(q: &Tensor, k: &Tensor, spec: AttentionSpec<'_>) -> Result<Tensor> {
        let (batch, heads, t, _) = q.dims4()?;
        let k = repeat_heads(k, heads)?;
        let s = k.dim(2)?;
        let mut scores = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * spec.scale)?; // (batch, heads, t, s)
        if let Some(mask) = spec.mask {
            scores = scores.broadcast_add(&mask.detach())?;
        }
        if spec.causal {
            let hidden: Vec<f32> =
                (0..t).flat_map(|i| (0..s).map(move |j| if j + t > i + s { f32::NEG_INFINITY } else { 0.0 })).collect();
            let hidden = Tensor::from_vec(hidden, (1, 1, t, s), q.device())?.to_dtype(q.dtype())?;
            scores = scores.broadcast_add(&hidden)?;
        }
        // A row without any visible key has maximum -inf; its exponentials must be 0, not NaN.
        let max = scores.max_keepdim(D::Minus1)?.detach().maximum(f32::MIN as f64)?;
        let exp = scores.broadcast_sub(&max)?.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?;
        let sum = (&sum + sum.detach().eq(0f64)?.to_dtype(sum.dtype())?)?;
        let probabilities = exp.broadcast_div(&sum)?;
        debug_assert_eq!(probabilities.dims(), [batch, heads, t, s]);
        Ok(probabilities)
    }

    /// Plain twin of [`super::attention`].
    pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec<'_>) -> Result<Tensor> {
        let probabilities = attention_probabilities(q, k, spec)?;
        let v = repeat_heads(v, q.dim(1)?)?;
        Ok(probabilities.matmul(&v)?)
    }
}
