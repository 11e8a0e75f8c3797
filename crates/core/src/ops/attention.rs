//! Scaled dot-product attention (Vaswani et al. 2017, equation 1), computed block by block without the score matrix in
//! memory (Dao et al. 2022, FlashAttention).

use super::eight_bits::{from_eight_bits, row_features};
use super::slices::{from_first, on_cpu_in_f32, with_storage};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{DType, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape};
use conjure_kernels::attention::{self as kernel, Gradients, Mask, Problem, RowStatistics, Rows, Strided, View};
use conjure_kernels::fresh::zeros;
use half::slice::HalfFloatSliceExt;
use std::sync::OnceLock;

/// What attention does beside `softmax(q k^T * scale) v`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpec<'a> {
    /// Factor on the scores; the paper's is `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Whether query `i` of `t` sees only the keys up to `i + s - t` of `s`.
    pub causal: bool,
    /// How many of the keys up to `i + s - t` query `i` sees, from the last back: a sliding window (Beltagy et al. 2020).
    pub window: Option<usize>,
    /// `c` in `c tanh(score / c)`, by which Gemma 2 squeezes the scaled scores.
    pub soft_cap: Option<f64>,
    /// Added to the scaled and squeezed scores (negative infinity hides a key); broadcastable to `(batch, heads, t, s)`.
    /// No gradient flows into it.
    pub mask: Option<&'a Tensor>,
}

impl AttentionSpec<'_> {
    /// Full attention with the paper's scale for heads of `head_dim`.
    pub fn new(head_dim: usize) -> Self {
        Self { scale: 1.0 / (head_dim as f64).sqrt(), causal: false, window: None, soft_cap: None, mask: None }
    }
}

/// `q (batch, heads, t, head_dim)`, `k (batch, kv_heads, s, head_dim)`, `v (batch, kv_heads, s, value_dim)`:
/// `(batch, heads, t, value_dim)`. `kv_heads` divides `heads`: query head `h` reads key head `h / (heads / kv_heads)`.
/// Rows that see no key are zero.
///
/// Transposed views of `(batch, time, heads, dim)` are read as they lie, and on a CPU in f32 the result is such a view: to
/// merge the heads, `transpose(1, 2)` and `reshape` copy nothing.
///
/// Keys and values may be as a cache keeps them, f16 where the queries are not or rows of [`super::to_eight_bits`]; no gradient
/// flows into them then. Few queries, as in writing token by token, read them as they lie.
///
/// # Errors
/// The shapes do not fit each other.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec<'_>) -> Result<Tensor> {
    let sizes = Sizes::new(q, k, v, &spec)?;
    if is_kept(k, q) || is_kept(v, q) {
        let operation = Attention::new(sizes, spec, None);
        let reads_kept = k.dtype() == v.dtype()
            && spec.mask.is_none()
            && on_cpu_in_f32(&[q])
            && !q.track_op()
            && operation.with_problem(|problem| Ok(kernel::suits_few(problem)))?;
        if !reads_kept {
            return attention(q, &widened(k, q)?, &widened(v, q)?, spec);
        }
        let (q, k, v) = (with_contiguous_rows(q)?, with_contiguous_rows(k)?, with_contiguous_rows(v)?);
        let y = q.apply_op3_no_bwd(&k, &v, &operation)?; // (batch, t, heads, value_dim)
        return Ok(y.transpose(1, 2)?);
    }
    #[cfg(feature = "cuda")]
    if cuda::attends(q, k, v, &spec) {
        return cuda::attention(q, k, v, spec);
    }
    let masked_and_squeezed = spec.mask.is_some() && spec.soft_cap.is_some();
    if masked_and_squeezed || !on_cpu_in_f32(&[q, k, v]) || spec.mask.is_some_and(|mask| !on_cpu_in_f32(&[mask])) {
        return plain::attention(q, k, v, spec);
    }
    let mask = match spec.mask {
        Some(mask) => Some(mask.detach().broadcast_as((sizes.batch, sizes.heads, sizes.t, sizes.s))?),
        None => None,
    };
    let operation = Attention::new(sizes, spec, mask);
    let (q, k, v) = (with_contiguous_rows(q)?, with_contiguous_rows(k)?, with_contiguous_rows(v)?);
    let y = q.apply_op3(&k, &v, operation)?; // (batch, t, heads, value_dim)
    Ok(y.transpose(1, 2)?)
}

/// Whether `x` is as a cache keeps rows, for the queries `q`.
fn is_kept(x: &Tensor, q: &Tensor) -> bool {
    x.dtype() == DType::U8 || x.dtype() == DType::F16 && q.dtype() != DType::F16
}

/// Keys or values `x` of [`attention`] in the type of the queries `q`, where a cache keeps them otherwise.
///
/// # Errors
/// Bytes that are no rows of numbers.
pub fn widened(x: &Tensor, q: &Tensor) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::U8 => from_eight_bits(x)?.to_dtype(q.dtype())?,
        _ if is_kept(x, q) => x.detach().to_dtype(q.dtype())?,
        _ => x.clone(),
    })
}

/// The probabilities that [`attention`] weights the values with, `(batch, heads, t, s)`: for probes.
pub fn attention_probabilities(q: &Tensor, k: &Tensor, spec: AttentionSpec<'_>) -> Result<Tensor> {
    plain::attention_probabilities(q, k, spec)
}

/// The same tensor, copied only where the features of a row do not lie side by side.
fn with_contiguous_rows(x: &Tensor) -> Result<Tensor> {
    if x.stride()[3] == 1 || x.dims()[3] == 1 { Ok(x.clone()) } else { Ok(x.contiguous()?) }
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    t: usize,
    s: usize,
    head_dim: usize,
    value_dim: usize,
}

impl Sizes {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec<'_>) -> Result<Self> {
        let (batch, heads, t, head_dim) = q.dims4()?;
        let features = |x: &Tensor| if x.dtype() == DType::U8 { row_features(x) } else { Ok(x.dim(3)?) };
        let (_, kv_heads, s, _) = k.dims4()?;
        let value_dim = features(v)?;
        if k.dims()[..3] != [batch, kv_heads, s]
            || features(k)? != head_dim
            || v.dims4()?.0 != batch
            || v.dims()[1..3] != [kv_heads, s]
        {
            let (q, k, v) = (q.shape(), k.shape(), v.shape());
            return Err(Error::request(format!("attention: queries {q:?}, keys {k:?} and values {v:?} do not fit")));
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::request(format!("attention: {heads} heads do not divide into {kv_heads} key heads")));
        }
        if let Some(mask) = spec.mask {
            let full = Shape::from((batch, heads, t, s));
            if mask.shape().broadcast_shape_binary_op(&full, "attention").ok().as_ref() != Some(&full) {
                let shape = mask.shape();
                return Err(Error::request(format!("attention: a mask of {shape:?} does not broadcast to {full:?}")));
            }
        }
        Ok(Self { batch, heads, kv_heads, t, s, head_dim, value_dim })
    }
}

struct Attention {
    sizes: Sizes,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    soft_cap: Option<f32>,
    /// Broadcast to `(batch, heads, t, s)` by strides, without a copy.
    mask: Option<Tensor>,
    /// Set by the forward pass, for the backward pass.
    statistics: OnceLock<RowStatistics>,
}

impl Attention {
    /// `mask` is the spec's, broadcast.
    fn new(sizes: Sizes, spec: AttentionSpec<'_>, mask: Option<Tensor>) -> Self {
        Self {
            sizes,
            scale: spec.scale as f32,
            causal: spec.causal,
            window: spec.window,
            soft_cap: spec.soft_cap.map(|cap| cap as f32),
            mask,
            statistics: OnceLock::new(),
        }
    }

    /// Calls `work` with the kernel's description of this attention.
    fn with_problem<T>(&self, work: impl FnOnce(&Problem<'_>) -> candle_core::Result<T>) -> candle_core::Result<T> {
        let Sizes { batch, heads, kv_heads, t, s, head_dim, value_dim } = self.sizes;
        let problem = Problem {
            batch,
            heads,
            kv_heads,
            t,
            s,
            head_dim,
            value_dim,
            scale: self.scale,
            causal: self.causal,
            window: self.window,
            soft_cap: self.soft_cap,
            mask: None,
        };
        match &self.mask {
            None => work(&problem),
            Some(mask) => with_storage(mask, |storage, layout| {
                let strides = layout.stride();
                let strides = [strides[0], strides[1], strides[2], strides[3]];
                work(&Problem { mask: Some(Mask { data: from_first(storage, layout)?, strides }), ..problem })
            }),
        }
    }
}

fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<View<'a>> {
    let strides = layout.stride();
    Ok(View { data: from_first(storage, layout)?, strides: [strides[0], strides[1], strides[2]] })
}

/// Keys or values as a cache keeps them.
fn rows<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Rows<'a>> {
    let strides = [layout.stride()[0], layout.stride()[1], layout.stride()[2]];
    let first = layout.start_offset();
    match storage {
        CpuStorage::F16(data) => {
            Ok(Rows::Halves(Strided { data: data[first.min(data.len())..].reinterpret_cast(), strides }))
        }
        CpuStorage::U8(data) => Ok(Rows::Bytes(Strided { data: &data[first.min(data.len())..], strides })),
        _ => Ok(Rows::Floats(view(storage, layout)?)),
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Sizes { batch, heads, t, value_dim, .. } = self.sizes;
        let mut out = zeros(batch * t * heads * value_dim);
        let shape = Shape::from((batch, t, heads, value_dim));
        if !matches!(k, CpuStorage::F32(_)) {
            let (q, k, v) = (view(q, q_layout)?, rows(k, k_layout)?, rows(v, v_layout)?);
            self.with_problem(|problem| {
                kernel::forward_few(problem, q, k, v, &mut out);
                Ok(())
            })?;
            return Ok((CpuStorage::F32(out), shape));
        }
        let (q, k, v) = (view(q, q_layout)?, view(k, k_layout)?, view(v, v_layout)?);
        let statistics = self.with_problem(|problem| Ok(kernel::forward(problem, q, k, v, &mut out)))?;
        let _ = self.statistics.set(statistics); // A repeated forward pass would find the same.
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let statistics = self.statistics.get().ok_or_else(|| {
            candle_core::Error::Msg("attention: the backward pass ran before the forward pass".into()).bt()
        })?;
        let Sizes { batch, heads, kv_heads, t, s, head_dim, value_dim } = self.sizes;
        let mut dq = zeros(batch * t * heads * head_dim);
        let mut dk = zeros(batch * s * kv_heads * head_dim);
        let mut dv = zeros(batch * s * kv_heads * value_dim);
        let gradients = Gradients { q: &mut dq, k: &mut dk, v: &mut dv };
        let (y, dy) = (y.transpose(1, 2)?, dy.contiguous()?.transpose(1, 2)?);
        with_storage(q, |q, q_layout| {
            with_storage(k, |k, k_layout| {
                with_storage(v, |v, v_layout| {
                    with_storage(&y, |y, y_layout| {
                        with_storage(&dy, |dy, dy_layout| {
                            let (q, k, v) = (view(q, q_layout)?, view(k, k_layout)?, view(v, v_layout)?);
                            let (y, dy) = (view(y, y_layout)?, view(dy, dy_layout)?);
                            self.with_problem(|problem| {
                                kernel::backward(problem, q, k, v, y, statistics, dy, gradients);
                                Ok(())
                            })
                        })
                    })
                })
            })
        })?;
        let device = q.device();
        Ok((
            Some(Tensor::from_vec(dq, (batch, t, heads, head_dim), device)?.transpose(1, 2)?),
            Some(Tensor::from_vec(dk, (batch, s, kv_heads, head_dim), device)?.transpose(1, 2)?),
            Some(Tensor::from_vec(dv, (batch, s, kv_heads, value_dim), device)?.transpose(1, 2)?),
        ))
    }
}

/// Plain twins.
pub mod plain {
    use super::AttentionSpec;
    use crate::{D, Error, Result, Tensor};

    fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
        let (batch, kv_heads, s, dim) = x.dims4()?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
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
        if let Some(cap) = spec.soft_cap {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        if let Some(mask) = spec.mask {
            scores = scores.broadcast_add(&mask.detach())?;
        }
        if spec.causal || spec.window.is_some() {
            let is_hidden = |i: usize, j: usize| {
                let later = spec.causal && j + t > i + s;
                let behind = spec.window.is_some_and(|window| (j + t).saturating_add(window) <= i + s);
                later || behind
            };
            let hidden: Vec<f32> = (0..t)
                .flat_map(|i| (0..s).map(move |j| if is_hidden(i, j) { f32::NEG_INFINITY } else { 0.0 }))
                .collect();
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
