//! The forward pass.

use super::tile::{Left, VECTORS, multiply, pack, scores, squeeze, unpack, width};
use super::{Problem, RowStatistics, Rows, View, block_size, few};
use crate::disjoint::Disjoint;
use crate::exp::exp;
use crate::scratch::Scratch;
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Keys in a block: their scores against a block of queries fit into the first cache.
const KEYS: usize = 96;

/// `softmax(q k^T * scale + mask) v`, with what else [`Problem`] says.
///
/// `q (batch, heads, t, head_dim)`, `k (batch, kv_heads, s, head_dim)`, `v (batch, kv_heads, s, value_dim)` are read by
/// strides; `out (batch, t, heads, value_dim)` is contiguous. Rows that see no key are 0.
///
/// # Panics
/// A view or `out` does not have the sizes of `problem`.
pub fn forward(problem: &Problem<'_>, q: View<'_>, k: View<'_>, v: View<'_>, out: &mut [f32]) -> RowStatistics {
    problem.check(&q, &k, &v);
    assert_eq!(out.len(), problem.batch * problem.t * problem.heads * problem.value_dim);
    let rows = problem.batch * problem.heads * problem.t;
    let mut statistics = RowStatistics { max: vec![0.0; rows], inverse_sum: vec![0.0; rows] };
    let lanes = dispatch(Lanes);
    if few::suits(problem, lanes) {
        few::forward(problem, q, Rows::Floats(k), Rows::Floats(v), out, &mut statistics);
        return statistics;
    }
    // The query heads that share a key head are handled together, as if they were one longer sequence.
    let blocks = (problem.group() * problem.t).div_ceil(lanes);
    let (out, max) = (Disjoint::new(out), Disjoint::new(&mut statistics.max));
    let inverse_sum = Disjoint::new(&mut statistics.inverse_sum);
    threads::run(problem.batch * problem.kv_heads * blocks, |task| {
        let (pair, block) = (task / blocks, task % blocks);
        let (batch, kv_head) = (pair / problem.kv_heads, pair % problem.kv_heads);
        let first = block * lanes;
        let count = (problem.group() * problem.t - first).min(lanes);
        let block = QueryBlock { problem, batch, kv_head, first, count };
        dispatch(Forward { block, q, k, v, out: &out, max: &max, inverse_sum: &inverse_sum });
    });
    statistics
}

/// Whether [`forward_few`] does this: few queries read a key head, as when a text is written token by token.
pub fn suits_few(problem: &Problem<'_>) -> bool {
    few::suits(problem, dispatch(Lanes))
}

/// [`forward`] with keys and values as a cache keeps them.
///
/// # Panics
/// A view or `out` does not have the sizes of `problem`, or [`suits_few`] is false.
pub fn forward_few(problem: &Problem<'_>, q: View<'_>, k: Rows<'_>, v: Rows<'_>, out: &mut [f32]) {
    let Problem { batch, heads, kv_heads, t, s, head_dim, value_dim, .. } = *problem;
    assert!(suits_few(problem), "{} queries per key head are too many", problem.group() * t);
    k.check(batch, kv_heads, s, head_dim);
    v.check(batch, kv_heads, s, value_dim);
    problem.check_queries(&q);
    assert_eq!(out.len(), batch * t * heads * value_dim);
    let rows = batch * heads * t;
    let mut statistics = RowStatistics { max: vec![0.0; rows], inverse_sum: vec![0.0; rows] };
    few::forward(problem, q, k, v, out, &mut statistics);
}

/// Asks how many rows a block has.
pub(super) struct Lanes;

impl Kernel for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        width::<S>()
    }
}

/// The keys that the queries of a block see.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// The first key that any of them sees.
    pub first: usize,
    /// The first key that all of them see.
    pub all_from: usize,
    /// The number of keys, from the first of all, that all of them see but for the window.
    pub all_to: usize,
    /// One past the last key that any of them sees.
    pub end: usize,
}

/// The queries in the lanes of a task: `count` rows from `first` on of the heads that read `kv_head`, one head's
/// queries after the other's.
#[derive(Clone, Copy)]
pub(super) struct QueryBlock<'a> {
    pub problem: &'a Problem<'a>,
    pub batch: usize,
    pub kv_head: usize,
    pub first: usize,
    pub count: usize,
}

impl QueryBlock<'_> {
    /// Head and time of a lane.
    pub fn row(&self, lane: usize) -> (usize, usize) {
        let (first_head, t) = (self.kv_head * self.problem.group(), self.problem.t);
        let row = self.first + lane;
        // With one head in the group, as in most models, no division.
        if row < t { (first_head, row) } else { (first_head + row / t, row % t) }
    }

    /// Where a lane's row is in `(batch, heads, t)`.
    pub fn index(&self, lane: usize) -> usize {
        let (head, time) = self.row(lane);
        (self.batch * self.problem.heads + head) * self.problem.t + time
    }

    /// The keys that the lanes see under the causal rule and the window.
    pub fn seen(&self) -> Seen {
        let all = self.problem.s;
        if !self.problem.causal && self.problem.window.is_none() {
            return Seen { first: 0, all_from: 0, all_to: all, end: all };
        }
        let none = Seen { first: all, all_from: 0, all_to: all, end: 0 };
        (0..self.count).fold(none, |seen, lane| {
            let time = self.row(lane).1;
            let (hidden, visible) = (self.problem.hidden(time), self.problem.visible(time));
            Seen {
                first: seen.first.min(hidden),
                all_from: seen.all_from.max(hidden),
                all_to: seen.all_to.min(visible),
                end: seen.end.max(visible),
            }
        })
    }

    /// Puts `view`'s rows of `features` into the lanes of `packed (features, width)`, times `scale`.
    pub fn pack(&self, view: &View<'_>, features: usize, scale: f32, width: usize, packed: &mut [f32]) {
        let start = |lane| {
            let (head, time) = self.row(lane);
            view.offset(self.batch, head, time)
        };
        pack(view.data, start, self.count, features, scale, width, packed);
    }

    /// The way back: the lanes of `packed (features, width)` into rows of `to (batch, t, heads, features)`, each times
    /// its factor.
    ///
    /// # Safety
    /// No other task has these rows of `to`.
    pub unsafe fn unpack(&self, packed: &[f32], features: usize, factors: &[f32], width: usize, to: &Disjoint<'_>) {
        let Problem { t, heads, .. } = *self.problem;
        unpack(packed, self.count, features, width, |lane| {
            let (head, time) = self.row(lane);
            let first = ((self.batch * t + time) * heads + head) * features;
            // SAFETY: the caller vouches for this block's rows.
            (unsafe { to.part(first, features) }, factors[lane])
        });
    }

    /// Adds mask and causal rule to the scores `(keys, width)` of the keys from `first_key` on.
    pub fn add_bias(&self, first_key: usize, keys: usize, width: usize, scores: &mut [f32]) {
        for lane in 0..self.count {
            let (head, time) = self.row(lane);
            if self.problem.mask.is_none() {
                // Only what the causal rule and the window hide changes.
                let to = self.problem.visible(time).saturating_sub(first_key);
                let from = self.problem.hidden(time).saturating_sub(first_key);
                for score in scores[lane..].iter_mut().step_by(width).take(keys.min(from)) {
                    *score = f32::NEG_INFINITY;
                }
                for score in scores[lane..].iter_mut().step_by(width).take(keys).skip(to) {
                    *score = f32::NEG_INFINITY;
                }
                continue;
            }
            for (j, score) in scores[lane..].iter_mut().step_by(width).take(keys).enumerate() {
                *score += self.problem.bias(self.batch, head, time, first_key + j);
            }
        }
    }
}

struct Forward<'a> {
    block: QueryBlock<'a>,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    out: &'a Disjoint<'a>,
    max: &'a Disjoint<'a>,
    inverse_sum: &'a Disjoint<'a>,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block, q, k, v, .. } = self;
        let Problem { head_dim, value_dim, scale, mask, soft_cap, .. } = *block.problem;
        let width = width::<S>();
        let keys = block_size(block.problem.s, KEYS);
        let mut packed_q = Scratch::new(head_dim * width);
        let mut probabilities = Scratch::new(keys * width);
        let mut values = Scratch::new(value_dim * width);
        block.pack(&q, head_dim, scale, width, &mut packed_q);

        let seen = block.seen();
        // The maximum starts at the least finite number, so that hidden scores, minus infinity, become 0 and never NaN.
        let mut max = [s.splat(f32::MIN); VECTORS];
        let mut sum = [s.splat(0.0); VECTORS];
        for first in (seen.first..seen.end).step_by(keys) {
            let count = (seen.end - first).min(keys);
            let key = k.offset(block.batch, block.kv_head, first);
            let value = v.offset(block.batch, block.kv_head, first);
            // SAFETY: `check` has seen that the views hold all rows; the scratch has `width` columns and as many rows
            // as there are keys and features.
            unsafe {
                let p = probabilities.as_mut_ptr();
                scores(s, k.data.as_ptr().add(key), k.strides[2], count, head_dim, packed_q.as_ptr(), p);
                if let Some(cap) = soft_cap {
                    squeeze(s, cap, p, count * width);
                }
                if mask.is_some() || first < seen.all_from || first + count > seen.all_to {
                    block.add_bias(first, count, width, &mut probabilities);
                }
                let factor = softmax_block(s, probabilities.as_mut_ptr(), count, &mut max, &mut sum);
                let left = Left { data: v.data.as_ptr().add(value), row_stride: 1, column_stride: v.strides[2] };
                multiply(s, left, value_dim, count, probabilities.as_ptr(), Some(factor), values.as_mut_ptr());
            }
        }

        let mut lanes = [[0.0f32; 64]; 2];
        for i in 0..VECTORS {
            // SAFETY: `width` is at most 48.
            unsafe {
                s.store(lanes[0].as_mut_ptr().add(i * S::LANES), max[i]);
                s.store(lanes[1].as_mut_ptr().add(i * S::LANES), sum[i]);
            }
        }
        let [max, inverse_sum] = &mut lanes;
        for lane in 0..block.count {
            let sum = inverse_sum[lane];
            inverse_sum[lane] = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            // SAFETY: no other task has this row.
            unsafe {
                self.max.part(block.index(lane), 1)[0] = max[lane];
                self.inverse_sum.part(block.index(lane), 1)[0] = inverse_sum[lane];
            }
        }
        // SAFETY: no other task has these rows.
        unsafe { block.unpack(&values, value_dim, inverse_sum, width, self.out) };
    }
}

#[allow(clippy::needless_range_loop)] // Counted loops over constant bounds are what the compiler unrolls into registers.
/// Turns the scores `(count, width)` into exponentials relative to the new running maximum, adds them to the running
/// sum, and returns the factor by which everything summed before shrinks.
///
/// # Safety
/// `scores` holds `count` rows.
#[inline(always)]
unsafe fn softmax_block<S: Simd>(
    s: S,
    scores: *mut f32,
    count: usize,
    max: &mut [S::V; VECTORS],
    sum: &mut [S::V; VECTORS],
) -> [S::V; VECTORS] {
    let before = *max;
    let mut factor = before;
    // SAFETY: rows below `count`, which the caller vouches for.
    unsafe {
        for j in 0..count {
            for i in 0..VECTORS {
                max[i] = s.max(max[i], s.load(scores.add((j * VECTORS + i) * S::LANES)));
            }
        }
        for i in 0..VECTORS {
            factor[i] = exp(s, s.sub(before[i], max[i]));
            sum[i] = s.mul(sum[i], factor[i]);
        }
        for j in 0..count {
            for i in 0..VECTORS {
                let p = scores.add((j * VECTORS + i) * S::LANES);
                let e = exp(s, s.sub(s.load(p), max[i]));
                sum[i] = s.add(sum[i], e);
                s.store(p, e);
            }
        }
    }
    factor
}
