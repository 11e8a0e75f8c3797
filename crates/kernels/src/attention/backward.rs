//! The backward pass: probabilities are computed again from the saved row statistics.

use super::forward::{Lanes, QueryBlock};
use super::tile::{Left, VECTORS, multiply, pack, scores, squeeze, squeeze_slope, unpack, width};
use super::{Problem, RowStatistics, View, block_size};
use crate::disjoint::Disjoint;
use crate::exp::exp;
use crate::scratch::Scratch;
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Rows in a block of the walk.
const ROWS: usize = 64;

/// The gradients that [`backward`] fills, each contiguous: `q (batch, t, heads, head_dim)`,
/// `k (batch, s, kv_heads, head_dim)`, `v (batch, s, kv_heads, value_dim)`.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// For the queries.
    pub q: &'a mut [f32],
    /// For the keys.
    pub k: &'a mut [f32],
    /// For the values.
    pub v: &'a mut [f32],
}

/// Gradients of [`super::forward`]: `out` is its result and `statistics` what it returned, `d_out` the gradient of the
/// result, both `(batch, heads, t, value_dim)` by strides.
///
/// Queries' gradients are computed by tasks over queries, and those of keys and values by tasks over keys: the scores
/// are computed twice, and nothing is added across tasks.
///
/// # Panics
/// A view or a gradient does not have the sizes of `problem`.
#[allow(clippy::too_many_arguments)] // The operands of the formula.
pub fn backward(
    problem: &Problem<'_>,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    out: View<'_>,
    statistics: &RowStatistics,
    d_out: View<'_>,
    gradients: Gradients<'_>,
) {
    let Problem { batch, heads, kv_heads, t, s, head_dim, value_dim, .. } = *problem;
    problem.check(&q, &k, &v);
    out.check(batch, heads, t, value_dim);
    d_out.check(batch, heads, t, value_dim);
    let rows = batch * heads * t;
    assert!(statistics.max.len() == rows && statistics.inverse_sum.len() == rows);
    assert_eq!(gradients.q.len(), rows * head_dim);
    assert_eq!(gradients.k.len(), batch * kv_heads * s * head_dim);
    assert_eq!(gradients.v.len(), batch * kv_heads * s * value_dim);

    // sum(d_out * out) of each row: what softmax's gradient subtracts.
    let mut delta = vec![0.0; rows];
    threads::run_chunks(&mut delta, 256, |chunk, piece| {
        for (i, delta) in piece.iter_mut().enumerate() {
            let row = chunk * 256 + i;
            let (batch, head, time) = (row / t / heads, row / t % heads, row % t);
            let (y, dy) = (out.row(batch, head, time, value_dim), d_out.row(batch, head, time, value_dim));
            *delta = dot(y, dy);
        }
    });

    let shared = Shared { problem, q, k, v, d_out, statistics, delta: &delta };
    let lanes = dispatch(Lanes);
    let query_blocks = (problem.group() * t).div_ceil(lanes);
    let dq = Disjoint::new(gradients.q);
    threads::run(batch * kv_heads * query_blocks, |task| {
        let (pair, block) = (task / query_blocks, task % query_blocks);
        let first = block * lanes;
        let count = (problem.group() * t - first).min(lanes);
        let block = QueryBlock { problem, batch: pair / kv_heads, kv_head: pair % kv_heads, first, count };
        dispatch(QueryGradient { shared, block, dq: &dq });
    });

    let key_blocks = s.div_ceil(lanes);
    let (dk, dv) = (Disjoint::new(gradients.k), Disjoint::new(gradients.v));
    threads::run(batch * kv_heads * key_blocks, |task| {
        let (pair, block) = (task / key_blocks, task % key_blocks);
        let first = block * lanes;
        let (batch, kv_head) = (pair / kv_heads, pair % kv_heads);
        dispatch(KeyGradient { shared, batch, kv_head, first, count: (s - first).min(lanes), dk: &dk, dv: &dv });
    });
}

/// The sum of products, in sixteen running sums that the compiler keeps in registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a_whole, b_whole) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a_whole.remainder().iter().zip(b_whole.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_whole.zip(b_whole) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[derive(Clone, Copy)]
struct Shared<'a> {
    problem: &'a Problem<'a>,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    d_out: View<'a>,
    statistics: &'a RowStatistics,
    /// `(batch, heads, t)`.
    delta: &'a [f32],
}

struct QueryGradient<'a> {
    shared: Shared<'a>,
    block: QueryBlock<'a>,
    dq: &'a Disjoint<'a>,
}

impl Kernel for QueryGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block, shared: Shared { problem, q, k, v, d_out, statistics, delta }, .. } = self;
        let Problem { head_dim, value_dim, scale, mask, soft_cap, .. } = *problem;
        let width = width::<S>();
        let keys = block_size(problem.s, ROWS);
        let mut packed_q = Scratch::new(head_dim * width);
        let mut packed_d_out = Scratch::new(value_dim * width);
        let mut probabilities = Scratch::new(keys * width);
        let mut d_scores = Scratch::new(keys * width);
        let mut gradient = Scratch::new(head_dim * width);
        block.pack(&q, head_dim, scale, width, &mut packed_q);
        block.pack(&d_out, value_dim, 1.0, width, &mut packed_d_out);
        let mut rows = Scratch::new(3 * width); // maximum, inverse sum and delta of each lane
        for lane in 0..block.count {
            let index = block.index(lane);
            rows[lane] = statistics.max[index];
            rows[width + lane] = statistics.inverse_sum[index];
            rows[2 * width + lane] = delta[index];
        }

        let seen = block.seen();
        for first in (seen.first..seen.end).step_by(keys) {
            let count = (seen.end - first).min(keys);
            let key = k.offset(block.batch, block.kv_head, first);
            let value = v.offset(block.batch, block.kv_head, first);
            // SAFETY: `check` has seen that the views hold all rows; the scratch has `width` columns and as many rows
            // as there are keys and features.
            unsafe {
                let (key, value) = (k.data.as_ptr().add(key), v.data.as_ptr().add(value));
                scores(s, key, k.strides[2], count, head_dim, packed_q.as_ptr(), probabilities.as_mut_ptr());
                if let Some(cap) = soft_cap {
                    squeeze(s, cap, probabilities.as_mut_ptr(), count * width);
                }
                if mask.is_some() || first < seen.all_from || first + count > seen.all_to {
                    block.add_bias(first, count, width, &mut probabilities);
                }
                scores(s, value, v.strides[2], count, value_dim, packed_d_out.as_ptr(), d_scores.as_mut_ptr());
                for i in 0..VECTORS {
                    let lane = rows.as_ptr().add(i * S::LANES);
                    let (max, inverse_sum, delta) =
                        (s.load(lane), s.load(lane.add(width)), s.load(lane.add(2 * width)));
                    for j in 0..count {
                        let at = j * width + i * S::LANES;
                        let score = s.load(probabilities.as_ptr().add(at));
                        let mut p = s.mul(exp(s, s.sub(score, max)), inverse_sum);
                        if let Some(cap) = soft_cap {
                            p = s.mul(p, squeeze_slope(s, cap, score));
                        }
                        let to = d_scores.as_mut_ptr().add(at);
                        s.store(to, s.mul(p, s.sub(s.load(to), delta)));
                    }
                }
                let left = Left { data: key, row_stride: 1, column_stride: k.strides[2] };
                let keep = Some([s.splat(1.0); VECTORS]);
                multiply(s, left, head_dim, count, d_scores.as_ptr(), keep, gradient.as_mut_ptr());
            }
        }
        let factors = [scale; 64];
        // SAFETY: no other task has these queries.
        unsafe { block.unpack(&gradient, head_dim, &factors, width, self.dq) };
    }
}

struct KeyGradient<'a> {
    shared: Shared<'a>,
    batch: usize,
    kv_head: usize,
    /// The first key in the lanes.
    first: usize,
    /// Keys in the lanes.
    count: usize,
    dk: &'a Disjoint<'a>,
    dv: &'a Disjoint<'a>,
}

impl KeyGradient<'_> {
    /// Puts rows of `features` into the lanes of `packed (features, width)`, times `scale`.
    fn pack(&self, view: &View<'_>, features: usize, scale: f32, width: usize, packed: &mut [f32]) {
        let start = |lane| view.offset(self.batch, self.kv_head, self.first + lane);
        pack(view.data, start, self.count, features, scale, width, packed);
    }

    /// Takes the lanes of `gradient (features, width)`, times `scale`, into rows of `to (batch, s, kv_heads, features)`.
    fn unpack(&self, gradient: &[f32], features: usize, scale: f32, width: usize, to: &Disjoint<'_>) {
        let Problem { s, kv_heads, .. } = *self.shared.problem;
        unpack(gradient, self.count, features, width, |lane| {
            let row = (self.batch * s + self.first + lane) * kv_heads + self.kv_head;
            // SAFETY: no other task has this key.
            (unsafe { to.part(row * features, features) }, scale)
        });
    }
}

impl Kernel for KeyGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shared { problem, q, k, v, d_out, statistics, delta } = self.shared;
        let Problem { head_dim, value_dim, scale, mask, soft_cap, heads, t, .. } = *problem;
        let width = width::<S>();
        let queries = block_size(t, ROWS);
        let mut packed_k = Scratch::new(head_dim * width);
        let mut packed_v = Scratch::new(value_dim * width);
        let mut probabilities = Scratch::new(queries * width);
        let mut d_scores = Scratch::new(queries * width);
        let mut dk = Scratch::new(head_dim * width);
        let mut dv = Scratch::new(value_dim * width);
        self.pack(&k, head_dim, scale, width, &mut packed_k);
        self.pack(&v, value_dim, 1.0, width, &mut packed_v);

        for head in self.kv_head * problem.group()..(self.kv_head + 1) * problem.group() {
            for first in (0..t).step_by(queries) {
                let count = (t - first).min(queries);
                if problem.visible(first + count - 1) <= self.first || problem.hidden(first) >= self.first + self.count {
                    continue;
                }
                let query = q.offset(self.batch, head, first);
                let d_row = d_out.offset(self.batch, head, first);
                let row = (self.batch * heads + head) * t + first;
                // SAFETY: as in the queries' gradient.
                unsafe {
                    let (query, d_row) = (q.data.as_ptr().add(query), d_out.data.as_ptr().add(d_row));
                    let (p, ds) = (probabilities.as_mut_ptr(), d_scores.as_mut_ptr());
                    scores(s, query, q.strides[2], count, head_dim, packed_k.as_ptr(), p);
                    if let Some(cap) = soft_cap {
                        squeeze(s, cap, p, count * width);
                    }
                    let some_hidden = problem.hidden(first + count - 1) > self.first;
                    if mask.is_some() || some_hidden || problem.visible(first) < self.first + self.count {
                        for (i, scores) in probabilities.chunks_exact_mut(width).take(count).enumerate() {
                            if mask.is_none() {
                                // Only what the causal rule and the window hide changes.
                                let to = problem.visible(first + i).saturating_sub(self.first).min(self.count);
                                let from = problem.hidden(first + i).saturating_sub(self.first).min(self.count);
                                scores[..from].fill(f32::NEG_INFINITY);
                                scores[to..self.count].fill(f32::NEG_INFINITY);
                                continue;
                            }
                            for (j, score) in scores[..self.count].iter_mut().enumerate() {
                                *score += problem.bias(self.batch, head, first + i, self.first + j);
                            }
                        }
                    }
                    scores(s, d_row, d_out.strides[2], count, value_dim, packed_v.as_ptr(), ds);
                    for i in 0..count {
                        let max = s.splat(statistics.max[row + i]);
                        let inverse_sum = s.splat(statistics.inverse_sum[row + i]);
                        let delta = s.splat(delta[row + i]);
                        for at in (i * width..(i + 1) * width).step_by(S::LANES) {
                            let (p, ds) = (probabilities.as_mut_ptr().add(at), d_scores.as_mut_ptr().add(at));
                            let score = s.load(p);
                            let probability = s.mul(exp(s, s.sub(score, max)), inverse_sum);
                            s.store(p, probability);
                            let mut d_score = s.mul(probability, s.sub(s.load(ds), delta));
                            if let Some(cap) = soft_cap {
                                d_score = s.mul(d_score, squeeze_slope(s, cap, score));
                            }
                            s.store(ds, d_score);
                        }
                    }
                    let keep = Some([s.splat(1.0); VECTORS]);
                    let left = Left { data: d_row, row_stride: 1, column_stride: d_out.strides[2] };
                    multiply(s, left, value_dim, count, probabilities.as_ptr(), keep, dv.as_mut_ptr());
                    let left = Left { data: query, row_stride: 1, column_stride: q.strides[2] };
                    multiply(s, left, head_dim, count, d_scores.as_ptr(), keep, dk.as_mut_ptr());
                }
            }
        }
        self.unpack(&dk, head_dim, scale, width, self.dk);
        self.unpack(&dv, value_dim, 1.0, width, self.dv);
    }
}
