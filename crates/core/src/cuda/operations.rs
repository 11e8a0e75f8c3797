//! The operations, each with its gradient. Shapes have been checked by [`crate::ops`].

use super::launch::{Number, Threads, Written, counted, launch, plain, takes};
use crate::custom_gradient::{with_gradient, with_gradient_of};
use crate::ops::{AttentionSpec, Conv2dSpec};
use crate::rng::Philox;
use crate::{D, DType, Result, Tensor};

/// Parts that sums down columns are made of, at most.
const PARTS: usize = 64;

/// Gradients that a backward pass computes.
type Gradients = candle_core::Result<Vec<Option<Tensor>>>;

/// Activations, by the numbers that the kernel knows them by.
#[derive(Clone, Copy)]
pub(crate) enum Activation {
    Silu = 0,
    Gelu = 1,
    QuickGelu = 2,
}

pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let (n, kind) = (x.elem_count(), activation as usize);
    let mut y = Written::new(n, x)?;
    launch("activate", Threads::Elements(n), &[&plain(x)?], &mut [&mut y], &[n.into(), kind.into()])?;
    with_gradient_of(&[x], y.storage(), x.shape(), move |inputs, dy| -> Gradients {
        let (x, dy) = (inputs[0].detach().contiguous()?, dy.contiguous()?);
        let mut dx = Written::new(n, &x)?;
        let numbers = [n.into(), kind.into()];
        launch("activate_backward", Threads::Elements(n), &[&x, &dy], &mut [&mut dx], &numbers)?;
        Ok(vec![Some(dx.tensor(x.shape()))])
    })
}

pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let half = x.dim(D::Minus1)? / 2;
    if let Some(last) = dims.last_mut() {
        *last = half;
    }
    let n = x.elem_count() / 2;
    let mut y = Written::new(n, x)?;
    launch("geglu", Threads::Elements(n), &[&plain(x)?], &mut [&mut y], &[n.into(), half.into()])?;
    with_gradient_of(&[x], y.storage(), dims, move |inputs, dy| -> Gradients {
        let (x, dy) = (inputs[0].detach().contiguous()?, dy.contiguous()?);
        let mut dx = Written::new(2 * n, &x)?;
        launch("geglu_backward", Threads::Elements(n), &[&x, &dy], &mut [&mut dx], &[n.into(), half.into()])?;
        Ok(vec![Some(dx.tensor(x.shape()))])
    })
}

/// `x` with the share `rate` of its values dropped and the others `kept` times as large; which are dropped is what
/// [`crate::dropout`] draws from `generator` on a CPU.
pub(crate) fn dropout(x: &Tensor, rate: f64, kept: f32, generator: &mut Philox) -> Result<Tensor> {
    let n = x.elem_count();
    // Of a draw, 24 bits count.
    let dropped = (rate * f64::from(1 << 24)).ceil() as usize;
    let [key, stream] = generator.key_and_stream();
    let halves = [key, stream, generator.skip(n)].map(|number| [number as u32, (number >> 32) as u32].map(Number::Int));
    let numbers = [&[n.into(), dropped.into(), Number::Float(kept)], halves.as_flattened()].concat();
    let mut y = Written::new(n, x)?;
    launch("dropout", Threads::Elements(n.div_ceil(4)), &[&plain(x)?], &mut [&mut y], &numbers)?;
    with_gradient_of(&[x], y.storage(), x.shape(), move |inputs, dy| -> Gradients {
        let mut dx = Written::new(n, dy)?;
        launch("dropout", Threads::Elements(n.div_ceil(4)), &[&dy.contiguous()?], &mut [&mut dx], &numbers)?;
        Ok(vec![Some(dx.tensor(inputs[0].shape()))])
    })
}

/// Sums down the columns of `x`, seen as `(rows, columns)`: `(columns)`.
fn sum_columns(x: &Tensor, columns: usize) -> candle_core::Result<Tensor> {
    let rows = x.elem_count() / columns;
    let part = rows.div_ceil(PARTS).max(8);
    let parts = rows.div_ceil(part);
    let sum = |x: &Tensor, rows: usize, part: usize, parts: usize| -> candle_core::Result<Tensor> {
        let mut sums = Written::new(parts * columns, x)?;
        let threads = Threads::Tiles(columns.div_ceil(32), parts);
        launch("sum_columns", threads, &[x], &mut [&mut sums], &[rows.into(), columns.into(), part.into()])?;
        Ok(sums.tensor((parts, columns)))
    };
    let sums = sum(x, rows, part, parts)?;
    if parts == 1 { sums.reshape(columns) } else { sum(&sums, parts, parts, 1)?.reshape(columns) }
}

/// Sums of the rows of `x`, seen as `(rows, n)`: `(rows)`.
fn sum_rows(x: &Tensor, n: usize) -> candle_core::Result<Tensor> {
    let rows = x.elem_count() / n;
    let mut sums = Written::new(rows, x)?;
    launch("sum_each_row", Threads::sums(rows, n), &[x], &mut [&mut sums], &[n.into()])?;
    Ok(sums.tensor(rows))
}

/// `x (..., in_features)`, `weight (out_features, in_features)`, `bias (out_features)`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let rows = x.elem_count() / in_features;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = out_features;
    }
    let product = plain(x)?.reshape((rows, in_features))?.matmul(&plain(weight)?.t()?)?;
    let n = rows * out_features;
    let mut y = Written::new(n, x)?;
    let numbers = [n.into(), out_features.into()];
    launch("add_to_rows", Threads::Elements(n), &[&product, &plain(bias)?], &mut [&mut y], &numbers)?;
    with_gradient_of(&[x, weight, bias], y.storage(), shape, move |inputs, dy| -> Gradients {
        let [x, weight, bias] = [inputs[0], inputs[1], inputs[2]];
        let dy = dy.contiguous()?.reshape((rows, out_features))?;
        let dx = x.track_op().then(|| dy.matmul(&weight.detach().contiguous()?)?.reshape(x.shape()));
        let dw = weight.track_op().then(|| dy.t()?.matmul(&x.detach().contiguous()?.reshape((rows, in_features))?));
        let db = bias.track_op().then(|| sum_columns(&dy, out_features));
        Ok(vec![dx.transpose()?, dw.transpose()?, db.transpose()?])
    })
}

/// `x (batch, channels, ...)` plus `bias (batch, channels)`.
pub(crate) fn add_channels(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let n = x.elem_count();
    let plane = n / bias.elem_count();
    let mut y = Written::new(n, x)?;
    let inputs = [&plain(x)?, &plain(bias)?];
    launch("add_to_planes", Threads::Elements(n), &inputs, &mut [&mut y], &[n.into(), plane.into()])?;
    with_gradient_of(&[x, bias], y.storage(), x.shape(), move |inputs, dy| -> Gradients {
        let dy = dy.contiguous()?;
        let d_bias = sum_rows(&dy, plane)?.reshape(inputs[1].shape())?;
        Ok(vec![Some(dy), Some(d_bias)])
    })
}

pub(crate) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (n, batch, channels) = (x.elem_count(), x.dim(0)?, x.dim(1)?);
    let plane = n / (batch * channels);
    let blocks = batch * groups;
    // A warp for each channel keeps all busy in the backward pass too.
    let threads = Threads::Blocks(blocks, (channels / groups * 32).clamp(64, 256) as u32);
    let (mut y, mut statistics) = (Written::new(n, x)?, Written::new(2 * blocks, x)?);
    let inputs = [&plain(x)?, &plain(weight)?, &plain(bias)?];
    let numbers = [channels.into(), plane.into(), groups.into(), eps.into(), silu.into()];
    launch("group_norm", threads, &inputs, &mut [&mut y, &mut statistics], &numbers)?;
    let statistics = statistics.tensor(2 * blocks);
    with_gradient_of(&[x, weight, bias], y.storage(), x.shape(), move |inputs, dy| -> Gradients {
        let [x, weight, bias] = [0, 1, 2].map(|i| inputs[i].detach().contiguous());
        let (x, weight, bias, dy) = (x?, weight?, bias?, dy.contiguous()?);
        let new = |n: usize| Written::new(n, &x);
        let (mut dx, mut d_weight, mut d_bias) = (new(n)?, new(batch * channels)?, new(batch * channels)?);
        let numbers: [Number; 4] = [channels.into(), plane.into(), groups.into(), silu.into()];
        let outputs = &mut [&mut dx, &mut d_weight, &mut d_bias];
        launch("group_norm_backward", threads, &[&x, &weight, &bias, &statistics, &dy], outputs, &numbers)?;
        let sum = |parts: Written| sum_columns(&parts.tensor((batch, channels)), channels);
        Ok(vec![Some(dx.tensor(x.shape())), Some(sum(d_weight)?), Some(sum(d_bias)?)])
    })
}

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (n, features) = (x.elem_count(), x.dim(D::Minus1)?);
    let rows = n / features;
    let (mut y, mut statistics) = (Written::new(n, x)?, Written::new(2 * rows, x)?);
    let inputs = [&plain(x)?, &plain(weight)?, &plain(bias)?];
    let numbers = [rows.into(), features.into(), eps.into()];
    launch("layer_norm", Threads::Warps(rows), &inputs, &mut [&mut y, &mut statistics], &numbers)?;
    let statistics = statistics.tensor(2 * rows);
    with_gradient_of(&[x, weight, bias], y.storage(), x.shape(), move |inputs, dy| -> Gradients {
        let (x, weight) = (inputs[0].detach().contiguous()?, inputs[1].detach().contiguous()?);
        let dy = dy.contiguous()?;
        let (mut dx, mut dy_hat) = (Written::new(n, &x)?, Written::new(n, &x)?);
        let outputs = &mut [&mut dx, &mut dy_hat];
        let numbers = [rows.into(), features.into()];
        launch("layer_norm_backward", Threads::Warps(rows), &[&x, &weight, &statistics, &dy], outputs, &numbers)?;
        let d_weight = sum_columns(&dy_hat.tensor(x.shape()), features)?;
        Ok(vec![Some(dx.tensor(x.shape())), Some(d_weight), Some(sum_columns(&dy, features)?)])
    })
}

/// `softmax(scale x)` over the last axis, which holds `n`; with `causal`, row `i` of each `queries` sees up to `i + n - queries`.
fn scaled_softmax(x: &Tensor, scale: f64, queries: usize, causal: bool) -> candle_core::Result<Written> {
    let n = x.dim(D::Minus1)?;
    let rows = x.elem_count() / n;
    let mut y = Written::new(x.elem_count(), x)?;
    let numbers = [rows.into(), n.into(), scale.into(), queries.into(), causal.into()];
    launch("scaled_softmax", Threads::Warps(rows), &[x], &mut [&mut y], &numbers)?;
    Ok(y)
}

/// The gradient by `x` of [`scaled_softmax`], which gave `y`.
fn scaled_softmax_backward(y: &Tensor, dy: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    let n = y.dim(D::Minus1)?;
    let rows = y.elem_count() / n;
    let mut dx = Written::new(y.elem_count(), y)?;
    let numbers = [rows.into(), n.into(), scale.into()];
    launch("scaled_softmax_backward", Threads::Warps(rows), &[y, dy], &mut [&mut dx], &numbers)?;
    Ok(dx.tensor(y.shape()))
}

pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    let y = scaled_softmax(&plain(x)?, 1.0, 1, false)?.tensor(x.shape());
    let kept = y.clone();
    with_gradient(&[x], y, move |_, dy| -> Gradients {
        Ok(vec![Some(scaled_softmax_backward(&kept, &dy.contiguous()?, 1.0)?)])
    })
}

/// Whether [`attention`] takes these: as many heads of keys as of queries, and nothing in the way of them but time.
pub(crate) fn attends(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec<'_>) -> bool {
    let scores = q.elem_count() / q.dims()[3].max(1) * k.dims()[2];
    takes(&[q, k, v])
        && q.dims()[1] == k.dims()[1]
        && (spec.mask.is_none() && spec.soft_cap.is_none() && spec.window.is_none())
        && spec.scale > 0.0
        && (!spec.causal || q.dims()[2] <= k.dims()[2])
        && counted(scores)
}

/// `q (batch, heads, t, head_dim)`, `k` and `v (batch, heads, s, ...)`. The probabilities are kept for the backward pass.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: AttentionSpec<'_>) -> Result<Tensor> {
    let (batch, heads, t, _) = q.dims4()?;
    let (scale, causal, value_dim) = (spec.scale, spec.causal, v.dim(3)?);
    let scores = plain(q)?.matmul(&plain(k)?.t()?)?; // (batch, heads, t, s)
    let probabilities = scaled_softmax(&scores, scale, t, causal)?.tensor(scores.shape());
    let y = probabilities.matmul(&plain(v)?)?; // (batch, heads, t, value_dim)
    // The heads of a time side by side: what reads the result joins them.
    let y = swap_axes(&y, None, [batch, heads, t, value_dim])?;
    let y = with_gradient_of(&[q, k, v], y.storage(), (batch, t, heads, value_dim), move |inputs, dy| -> Gradients {
        let [q, k, v] = [0, 1, 2].map(|i| inputs[i].detach().contiguous());
        let (q, k, v) = (q?, k?, v?);
        let dy = swap_axes(&dy.contiguous()?, None, [batch, t, heads, value_dim])?;
        let dy = dy.tensor((batch, heads, t, value_dim));
        let dv = probabilities.t()?.matmul(&dy)?;
        let d_scores = scaled_softmax_backward(&probabilities, &dy.matmul(&v.t()?)?, scale)?;
        Ok(vec![Some(d_scores.matmul(&k)?), Some(d_scores.t()?.matmul(&q)?), Some(dv)])
    })?;
    Ok(y.transpose(1, 2)?)
}

/// `x (outer, a, b, inner)`, contiguous: `(outer, b, a, inner)`, plus `bias (a)`.
fn swap_axes(x: &Tensor, bias: Option<&Tensor>, [_, a, b, inner]: [usize; 4]) -> candle_core::Result<Written> {
    let n = x.elem_count();
    let mut y = Written::new(n, x)?;
    let numbers = [n.into(), a.into(), b.into(), inner.into(), bias.is_some().into()];
    launch("swap_axes", Threads::Elements(n), &[x, bias.unwrap_or(x)], &mut [&mut y], &numbers)?;
    Ok(y)
}

/// Whether [`conv2d`] takes these: one group, and patches that 31 bits count.
pub(crate) fn convolves(x: &Tensor, weight: &Tensor, spec: Conv2dSpec) -> bool {
    let patches = Patches::new(x, weight, spec);
    takes(&[x, weight]) && spec.groups == 1 && counted(patches.rows() * patches.columns())
}

/// The patches of a convolution: how many, and where they lie.
#[derive(Clone, Copy)]
struct Patches {
    input: [usize; 4],
    kernel: [usize; 2],
    output: [usize; 2],
    spec: Conv2dSpec,
}

impl Patches {
    fn new(x: &Tensor, weight: &Tensor, spec: Conv2dSpec) -> Self {
        let (x, weight) = (x.dims(), weight.dims());
        let Conv2dSpec { stride, padding: [top, bottom, left, right], dilation, .. } = spec;
        let size = |axis: usize, padding: usize| {
            (x[2 + axis] + padding - dilation[axis] * (weight[2 + axis] - 1) - 1) / stride[axis] + 1
        };
        Self {
            input: [x[0], x[1], x[2], x[3]],
            kernel: [weight[2], weight[3]],
            output: [size(0, top + bottom), size(1, left + right)],
            spec,
        }
    }

    /// Numbers in a patch.
    fn rows(&self) -> usize {
        self.input[1] * self.kernel[0] * self.kernel[1]
    }

    fn plane(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Patches in all samples.
    fn columns(&self) -> usize {
        self.input[0] * self.plane()
    }

    fn numbers(&self) -> Vec<Number> {
        let Conv2dSpec { stride, padding: [top, _, left, _], dilation, .. } = self.spec;
        let ends = [stride[0], stride[1], top, left, dilation[0], dilation[1]];
        self.input.iter().chain(&self.kernel).chain(&self.output).chain(&ends).map(|&n| n.into()).collect()
    }

    /// `(rows, columns)`.
    fn gather(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let n = self.rows() * self.columns();
        let mut columns = Written::new(n, x)?;
        launch("im2col", Threads::Elements(n), &[x], &mut [&mut columns], &self.numbers())?;
        Ok(columns.tensor((self.rows(), self.columns())))
    }

    /// The input whose patches sum to `columns (rows, columns)`.
    fn scatter(&self, columns: &Tensor) -> candle_core::Result<Tensor> {
        let n = self.input.iter().product();
        let mut x = Written::new(n, columns)?;
        launch("col2im", Threads::Elements(n), &[columns], &mut [&mut x], &self.numbers())?;
        Ok(x.tensor(&self.input[..]))
    }
}

/// One product with the matrix of all patches ("High Performance Convolutional Neural Networks for Document Processing",
/// Chellapilla et al. 2006), which is made again in the backward pass rather than kept.
pub(crate) fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
    let patches = Patches::new(x, weight, spec);
    let [batch, ..] = patches.input;
    let (out_channels, plane) = (weight.dim(0)?, patches.plane());
    let matrix = plain(weight)?.reshape((out_channels, patches.rows()))?;
    let product = matrix.matmul(&patches.gather(&plain(x)?)?)?; // (out_channels, batch * plane)
    let own_bias = bias.map(plain).transpose()?;
    let y = swap_axes(&product, own_bias.as_ref(), [1, out_channels, batch, plane])?;
    let shape = (batch, out_channels, patches.output[0], patches.output[1]);
    let backward = move |inputs: &[&Tensor], dy: &Tensor| -> Gradients {
        let (x, weight) = (inputs[0], inputs[1]);
        let dy = swap_axes(&dy.contiguous()?, None, [1, batch, out_channels, plane])?;
        let dy = dy.tensor((out_channels, batch * plane));
        let dx = x.track_op().then(|| {
            let matrix = weight.detach().contiguous()?.reshape((out_channels, patches.rows()))?;
            patches.scatter(&matrix.t()?.matmul(&dy)?)
        });
        let dw = weight
            .track_op()
            .then(|| dy.matmul(&patches.gather(&x.detach().contiguous()?)?.t()?)?.reshape(weight.shape()));
        let mut gradients = vec![dx.transpose()?, dw.transpose()?];
        if let Some(bias) = inputs.get(2) {
            gradients.push(bias.track_op().then(|| sum_rows(&dy, batch * plane)).transpose()?);
        }
        Ok(gradients)
    };
    match bias {
        Some(bias) => with_gradient_of(&[x, weight, bias], y.storage(), shape, backward),
        None => with_gradient_of(&[x, weight], y.storage(), shape, backward),
    }
}

/// Elements at most of the matrix that says which row of a table a position reads: 512 MiB in f32.
const CHOICES: usize = 1 << 27;

/// Whether [`embedding`] takes these.
pub(crate) fn looks_up(ids: &Tensor, table: &Tensor) -> bool {
    takes(&[table]) && ids.device().is_cuda() && ids.dtype() == DType::U32 && ids.elem_count() > 0
}

/// Rows of `table (vocabulary, features)`. The table's gradient is a product with the matrix that has a one where a position
/// (row) reads a row of the table (column), in as many parts of the table as keep that matrix small: the tensor library would
/// add position after position in one thread for each feature.
pub(crate) fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (vocabulary, features) = table.dims2()?;
    let shape = [ids.dims(), &[features]].concat();
    let ids = ids.flatten_all()?;
    let rows = plain(table)?.index_select(&ids, 0)?;
    let rows = with_gradient(&[table], rows, move |_, dy| -> Gradients {
        let (dy, count) = (dy.contiguous()?, ids.elem_count());
        let part = (CHOICES / count).clamp(1, vocabulary);
        let mut parts = Vec::with_capacity(vocabulary.div_ceil(part));
        for first in (0..vocabulary).step_by(part) {
            let last = vocabulary.min(first + part);
            let candidates = Tensor::arange(first as u32, last as u32, ids.device())?;
            let choices = ids.reshape((count, 1))?.broadcast_eq(&candidates.reshape((1, last - first))?)?;
            parts.push(choices.to_dtype(DType::F32)?.t()?.matmul(&dy)?);
        }
        Ok(vec![Some(Tensor::cat(&parts, 0)?)])
    })?;
    Ok(rows.reshape(shape)?)
}

/// The sum of squares of each tensor's elements: one number each.
pub(crate) fn sum_of_squares(x: &Tensor) -> Result<Tensor> {
    let mut sum = Written::new(1, x)?;
    let n = x.elem_count();
    launch("sum_of_squares", Threads::sums(1, n), &[&plain(x)?], &mut [&mut sum], &[n.into()])?;
    Ok(sum.tensor(()))
}

/// A step of AdamW in place, for contiguous tensors, with the factors `(keep, scale, beta1, beta2, new1, new2, eps, rate, root)` of
/// the CPU's kernel.
pub(crate) fn adamw(p: &Tensor, gradient: &Tensor, m: &Tensor, v: &Tensor, factors: [f32; 9]) -> Result<()> {
    let n = p.elem_count();
    let numbers: Vec<Number> = std::iter::once(n.into()).chain(factors.map(Number::Float)).collect();
    Ok(launch("adamw", Threads::Elements(n), &[p, &plain(gradient)?, m, v], &mut [], &numbers)?)
}

/// A step of a moving average in place, for contiguous tensors.
pub(crate) fn ema(average: &Tensor, parameter: &Tensor, decay: f64) -> Result<()> {
    let n = average.elem_count();
    Ok(launch("ema", Threads::Elements(n), &[average, parameter], &mut [], &[n.into(), decay.into()])?)
}
