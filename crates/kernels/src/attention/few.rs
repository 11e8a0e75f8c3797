//! The forward pass for few queries: a task has some keys of one key head and goes over them once for all queries that read
//! it, with the features in the lanes. What the tasks find is joined in the order of the keys (Dao et al. 2023,
//! Flash-Decoding).

use super::tile::squeeze;
use super::{ByteView, HalfView, Problem, RowStatistics, View};
use crate::eight_bits;
use crate::exp::exp;
use crate::half;
use crate::scratch::Scratch;
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Keys of a task.
const KEYS: usize = 256;
/// Keys whose scores are found at once; the keys and values of a block stay in the first two caches.
const BLOCK: usize = 64;
/// Products below which starting threads costs more than it saves.
const WORTH_THREADS: usize = 1 << 17;

/// Whether so few queries read a key head that blocks of `lanes` queries would be mostly empty.
pub(super) fn suits(problem: &Problem<'_>, lanes: usize) -> bool {
    problem.group() * problem.t * 3 <= lanes
}

/// Keys or values.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// As numbers of 32 bits.
    Floats(View<'a>),
    /// In 16 bits each.
    Halves(HalfView<'a>),
    /// In rows of bytes as [`crate::eight_bits`] writes them.
    Bytes(ByteView<'a>),
}

impl Rows<'_> {
    /// The rows from `first` on to before `end`, in `scratch` where they had to be converted: where they begin, and how far
    /// apart they are.
    fn block(
        &self,
        batch: usize,
        head: usize,
        first: usize,
        end: usize,
        features: usize,
        scratch: &mut [f32],
    ) -> (*const f32, usize) {
        match self {
            Self::Floats(view) => {
                (view.data.get(view.offset(batch, head, first)..).unwrap_or_default().as_ptr(), view.strides[2])
            }
            Self::Halves(view) => {
                for (row, to) in (first..end).zip(scratch.chunks_exact_mut(features.max(1))) {
                    let start = view.offset(batch, head, row);
                    half::to_f32(&view.data[start..start + features], to);
                }
                (scratch.as_ptr(), features)
            }
            Self::Bytes(view) => {
                for (row, to) in (first..end).zip(scratch.chunks_exact_mut(features.max(1))) {
                    let start = view.offset(batch, head, row);
                    eight_bits::to_f32(&view.data[start..start + eight_bits::row_bytes(features)], features, to);
                }
                (scratch.as_ptr(), features)
            }
        }
    }

    /// Room for a block of converted rows, where they are converted.
    fn scratch(&self, features: usize) -> Scratch {
        match self {
            Self::Floats(_) => Scratch::new(0),
            Self::Halves(_) | Self::Bytes(_) => Scratch::new(BLOCK * features),
        }
    }

    /// Panics unless all of `(batch, heads, rows, features)` lies in the data.
    pub(super) fn check(&self, batch: usize, heads: usize, rows: usize, features: usize) {
        match self {
            Self::Floats(view) => view.check(batch, heads, rows, features),
            Self::Halves(view) => view.check(batch, heads, rows, features),
            Self::Bytes(view) => view.check(batch, heads, rows, eight_bits::row_bytes(features)),
        }
    }
}

/// [`super::forward`] for few queries.
pub(super) fn forward(
    problem: &Problem<'_>,
    q: View<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    out: &mut [f32],
    statistics: &mut RowStatistics,
) {
    let Problem { batch, heads, kv_heads, t, s, head_dim, value_dim, .. } = *problem;
    let rows = problem.group() * t;
    if rows * batch == 0 {
        return;
    }
    // Per row: the maximum, the sum of exponentials, and the sum of values weighted with them.
    let row_len = 2 + value_dim;
    let pieces = s.div_ceil(KEYS).max(1);
    let mut partial = vec![0.0; batch * kv_heads * pieces * rows * row_len];
    let work = |task: usize, found: &mut [f32]| {
        let (pair, piece) = (task / pieces, task % pieces);
        let (batch, kv_head) = (pair / kv_heads, pair % kv_heads);
        let (first, end) = (piece * KEYS, ((piece + 1) * KEYS).min(s));
        dispatch(Few { problem, batch, kv_head, first, end, q, k, v, found });
    };
    if batch * heads * t * s * (head_dim + value_dim) < WORTH_THREADS {
        partial.chunks_mut(rows * row_len).enumerate().for_each(|(task, found)| work(task, found));
    } else {
        threads::run_chunks(&mut partial, rows * row_len, work);
    }
    for (pair, found) in partial.chunks_exact(pieces * rows * row_len).enumerate() {
        for row in 0..rows {
            let (head, time) = (pair % kv_heads * problem.group() + row / t, row % t);
            let parts = || found.chunks_exact(row_len).skip(row).step_by(rows);
            let max = parts().fold(f32::MIN, |max, part| max.max(part[0]));
            let sum: f32 = parts().map(|part| part[1] * (part[0] - max).exp()).sum();
            let inverse_sum = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            let to = ((pair / kv_heads * t + time) * heads + head) * value_dim;
            let to = &mut out[to..to + value_dim];
            to.fill(0.0);
            for part in parts() {
                let factor = (part[0] - max).exp() * inverse_sum;
                to.iter_mut().zip(&part[2..]).for_each(|(to, x)| *to += x * factor);
            }
            let index = (pair / kv_heads * heads + head) * t + time;
            statistics.max[index] = max;
            statistics.inverse_sum[index] = inverse_sum;
        }
    }
}

struct Few<'a> {
    problem: &'a Problem<'a>,
    batch: usize,
    kv_head: usize,
    /// The first key of the task, and the one after its last.
    first: usize,
    end: usize,
    q: View<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    /// `(rows, 2 + value_dim)`.
    found: &'a mut [f32],
}

impl Kernel for Few<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, batch, kv_head, first, end, q, k, v, found } = self;
        let Problem { head_dim, value_dim, scale, soft_cap, mask, t, .. } = *problem;
        for found in found.chunks_exact_mut(2 + value_dim) {
            found[0] = f32::MIN;
        }
        let mut scores = [0.0f32; BLOCK];
        let (mut key_scratch, mut value_scratch) = (k.scratch(head_dim), v.scratch(value_dim));
        for block in (first..end).step_by(BLOCK) {
            let block_end = (block + BLOCK).min(end);
            if block_end <= problem.hidden(0) || block >= problem.visible(t - 1) {
                continue; // No query sees any of these.
            }
            let (keys, key_stride) = k.block(batch, kv_head, block, block_end, head_dim, &mut key_scratch);
            let (values, value_stride) = v.block(batch, kv_head, block, block_end, value_dim, &mut value_scratch);
            for (row, found) in found.chunks_exact_mut(2 + value_dim).enumerate() {
                let (head, time) = (kv_head * problem.group() + row / t, row % t);
                let from = problem.hidden(time).max(block);
                let to = problem.visible(time).min(block_end);
                if from >= to {
                    continue;
                }
                let count = to - from;
                let query = q.row(batch, head, time, head_dim);
                // SAFETY: `check` has seen that the views hold all rows; the scores have room for a block.
                unsafe {
                    let keys = keys.add((from - block) * key_stride);
                    dots(s, query, keys, key_stride, scale, &mut scores[..count]);
                    if let Some(cap) = soft_cap {
                        squeeze(s, cap, scores.as_mut_ptr(), BLOCK);
                    }
                }
                scores[count..].fill(f32::NEG_INFINITY);
                if mask.is_some() {
                    for (j, score) in scores[..count].iter_mut().enumerate() {
                        *score += problem.bias(batch, head, time, from + j);
                    }
                }
                let max = scores[..count].iter().fold(found[0], |max, score| max.max(*score));
                let mut sum = s.splat(0.0);
                let least = s.splat(max);
                for at in (0..BLOCK).step_by(S::LANES) {
                    // SAFETY: a block is a multiple of all lanes.
                    unsafe {
                        let to = scores.as_mut_ptr().add(at);
                        let p = exp(s, s.sub(s.load(to), least));
                        sum = s.add(sum, p);
                        s.store(to, p);
                    }
                }
                let factor = (found[0] - max).exp();
                found[0] = max;
                found[1] = found[1] * factor + s.sum(sum);
                // SAFETY: as above.
                unsafe {
                    let values = values.add((from - block) * value_stride);
                    weigh(s, &scores[..count], values, value_stride, factor, &mut found[2..]);
                }
            }
        }
    }
}

/// Products of `query` with the rows at `keys`, times `scale`.
///
/// # Safety
/// As many rows as there are scores can be read, each as long as `query`.
#[inline(always)]
unsafe fn dots<S: Simd>(s: S, query: &[f32], keys: *const f32, stride: usize, scale: f32, scores: &mut [f32]) {
    let mut j = 0;
    // SAFETY: rows below the number of scores.
    unsafe {
        while j + 8 <= scores.len() {
            dots_of::<S, 8>(s, query, keys.add(j * stride), stride, scale, &mut scores[j..]);
            j += 8;
        }
        while j < scores.len() {
            dots_of::<S, 1>(s, query, keys.add(j * stride), stride, scale, &mut scores[j..]);
            j += 1;
        }
    }
}

#[allow(clippy::needless_range_loop)] // Counted loops over constant bounds are what the compiler unrolls into registers.
/// [`dots`] for `R` rows.
///
/// # Safety
/// As for [`dots`].
#[inline(always)]
unsafe fn dots_of<S: Simd, const R: usize>(
    s: S,
    query: &[f32],
    keys: *const f32,
    stride: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let mut sums = [s.splat(0.0); R];
    let whole = query.len() / S::LANES * S::LANES;
    // SAFETY: features below the length of the query, of rows that the caller vouches for.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let x = s.load(query.as_ptr().add(i));
            for r in 0..R {
                sums[r] = s.fma(x, s.load(keys.add(r * stride + i)), sums[r]);
            }
        }
        let rest = query.len() - whole;
        if rest > 0 {
            let x = s.load_first(query.as_ptr().add(whole), rest);
            for r in 0..R {
                sums[r] = s.fma(x, s.load_first(keys.add(r * stride + whole), rest), sums[r]);
            }
        }
    }
    for r in 0..R {
        scores[r] = s.sum(sums[r]) * scale;
    }
}

/// `to = to * factor + sum of weights[j] * row j at values`.
///
/// # Safety
/// As many rows as there are weights can be read, each as long as `to`.
#[inline(always)]
unsafe fn weigh<S: Simd>(s: S, weights: &[f32], values: *const f32, stride: usize, factor: f32, to: &mut [f32]) {
    /// Vectors in registers.
    const R: usize = 4;
    let mut i = 0;
    // SAFETY: features below the length of `to`, of rows that the caller vouches for.
    unsafe {
        while i + R * S::LANES <= to.len() {
            let out = to.as_mut_ptr().add(i);
            let mut sums = [s.splat(0.0); R];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul(s.load(out.add(r * S::LANES)), s.splat(factor));
            }
            for (j, weight) in weights.iter().enumerate() {
                let weight = s.splat(*weight);
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = s.fma(weight, s.load(values.add(j * stride + i + r * S::LANES)), *sum);
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                s.store(out.add(r * S::LANES), *sum);
            }
            i += R * S::LANES;
        }
        while i < to.len() {
            let count = (to.len() - i).min(S::LANES);
            let out = to.as_mut_ptr().add(i);
            let whole = count == S::LANES;
            let mut sum = s.mul(if whole { s.load(out) } else { s.load_first(out, count) }, s.splat(factor));
            for (j, weight) in weights.iter().enumerate() {
                let row = values.add(j * stride + i);
                let x = if whole { s.load(row) } else { s.load_first(row, count) };
                sum = s.fma(s.splat(*weight), x, sum);
            }
            if whole {
                s.store(out, sum)
            } else {
                s.store_first(out, count, sum)
            }
            i += count;
        }
    }
}
