//! Products with a few rows of activations: each block of weights is unpacked into registers, multiplied and forgotten. What
//! bounds them is the time to read the weights.

use super::activations::Activations;
use super::blocks::Blocks;
use super::vectors::{Vectors, Work};
use crate::gemm::Output;
use std::marker::PhantomData;
use std::ops::Range;

/// Sub-blocks whose scales are made before they are multiplied.
const DEPTH: usize = 64;

/// Bytes that memory hands over at once.
const LINE: usize = 64;

/// `out (m, n) = x (m, k) w^T` for some rows of `w`.
pub(super) struct Few<'a, B> {
    /// Rows `(n, k)` of blocks.
    pub w: &'a [u8],
    pub k: usize,
    /// In tiles of one row.
    pub x: &'a Activations,
    pub out: Output,
    /// Rows of `w` to multiply; nobody else writes these columns of `out`.
    pub rows: Range<usize>,
    pub blocks: PhantomData<B>,
}

impl<B: Blocks> Work for Few<'_, B> {
    #[inline(always)]
    fn run<V: Vectors>(self, v: V) {
        const ROWS: usize = 64; // of weights, which stay near for the other rows of activations
        let m = self.x.tiles();
        for first in self.rows.clone().step_by(ROWS) {
            let rows = first..self.rows.end.min(first + ROWS);
            let mut row = 0;
            while row < m {
                // SAFETY: the rows lie within `w`, which has whole blocks, and `out`; the token is for this processor.
                unsafe {
                    row += match m - row {
                        4.. => self.some::<V, 4>(v, row, rows.clone()),
                        2.. => self.some::<V, 2>(v, row, rows.clone()),
                        _ => self.some::<V, 1>(v, row, rows.clone()),
                    };
                }
            }
        }
    }
}

impl<B: Blocks> Few<'_, B> {
    /// Multiplies `M` rows of activations from `first` on.
    ///
    /// # Safety
    /// The rows of weights lie within `w`, which has whole blocks; `out` may be written in their columns.
    #[inline(always)]
    unsafe fn some<V: Vectors, const M: usize>(&self, v: V, first: usize, rows: Range<usize>) -> usize {
        let subs = self.k / 32;
        let row_bytes = subs / B::SUBS * B::BYTES;
        assert!(rows.end * row_bytes <= self.w.len() && rows.end <= self.out.columns && first + M <= self.out.rows);
        let x: [_; M] = std::array::from_fn(|i| {
            let (codes, scales, sums) = self.x.tile(first + i);
            (codes.as_ptr().cast::<u8>(), scales.as_ptr().cast::<f32>(), sums.as_ptr().cast::<f32>())
        });
        let zero = v.splat(0.0);
        // Sums to add to in turn, because one would wait for itself; as many as registers allow.
        let turns = if M == 1 { 4 } else { 2 };
        // Both scales multiplied, for eight rows of weights and some depth. They take so long to be ready that they are made
        // well before the products that wait for them; and from memory, a float is spread to all lanes for nothing.
        let mut scales = [[[0f32; 2 * DEPTH]; 8]; M];
        // Of what is left after whole eights of a row's sub-blocks, for eight rows at a time.
        let mut last_scales = [[[0f32; 8]; 7]; M];
        let whole = subs / 8 * 8;
        // While eight rows are multiplied the next are fetched: their scales, which are looked at first, would wait for memory.
        let ahead = 8 * row_bytes;
        for eight in rows.clone().step_by(8) {
            let eight = eight..rows.end.min(eight + 8);
            let start = |row: usize, sub: usize| self.w[row * row_bytes + sub / B::SUBS * B::BYTES..].as_ptr();
            let mut all = [[zero; 8]; M];
            let mut rest = [zero; M];
            // SAFETY: each row of `w` and of the activations has `subs` sub-blocks; the token is for this processor.
            unsafe {
                for sub in whole..subs {
                    let [scale, offset] = B::scales(v, start(eight.start, sub), row_bytes, eight.len());
                    for i in 0..M {
                        let both = v.mul(scale[0], v.splat(*x[i].1.add(sub)));
                        v.store(last_scales[i][sub - whole].as_mut_ptr(), both);
                        rest[i] = v.fma(offset[0], v.splat(*x[i].2.add(sub)), rest[i]);
                    }
                }
                for from in (0..subs).step_by(DEPTH) {
                    let depth = from..whole.min(from + DEPTH);
                    for (lane, row) in eight.clone().enumerate() {
                        let mut p = start(row, from);
                        let mut offsets = [zero; M];
                        for sub in depth.clone().step_by(8) {
                            let [scale, offset] = B::scales(v, p, B::BYTES, 8);
                            for i in 0..M {
                                for group in 0..B::GROUPS {
                                    let at = sub * B::GROUPS + 8 * group;
                                    let both = v.mul(scale[group], v.floats(x[i].1.add(at)));
                                    v.store(scales[i][lane].as_mut_ptr().add(at - from * B::GROUPS), both);
                                    offsets[i] = v.fma(offset[group], v.floats(x[i].2.add(at)), offsets[i]);
                                }
                            }
                            p = p.add(8 / B::SUBS * B::BYTES);
                        }
                        for i in 0..M {
                            all[i][lane] = v.add(all[i][lane], offsets[i]);
                        }
                    }
                    let last = if from + DEPTH >= subs { whole..subs } else { 0..0 };
                    for (lane, row) in eight.clone().enumerate() {
                        let mut p = start(row, from);
                        let mut sums = [[zero; 4]; M];
                        for sub in depth.clone().step_by(8) {
                            for line in (0..8 / B::SUBS * B::BYTES).step_by(LINE) {
                                v.prefetch(p.wrapping_add(ahead + line));
                            }
                            let at = (sub - from) * B::GROUPS;
                            for j in 0..8 {
                                let codes = B::codes(v, p, j);
                                for i in 0..M {
                                    let dot = v.dot(codes, v.load(x[i].0.add((sub + j) * 32)), B::SMALL);
                                    let both = scales[i][lane].as_ptr().add(at + j * B::GROUPS);
                                    let both = if B::GROUPS == 1 { v.splat(*both) } else { v.two(both) };
                                    sums[i][j % turns] = v.fma(dot, both, sums[i][j % turns]);
                                }
                            }
                            p = p.add(8 / B::SUBS * B::BYTES);
                        }
                        for sub in last.clone() {
                            let codes = B::codes(v, p, sub - whole);
                            for i in 0..M {
                                let dot = v.dot(codes, v.load(x[i].0.add(sub * 32)), B::SMALL);
                                let both = v.splat(last_scales[i][sub - whole][lane]);
                                sums[i][0] = v.fma(dot, both, sums[i][0]);
                            }
                        }
                        for i in 0..M {
                            let [a, b, c, d] = sums[i];
                            all[i][lane] = v.add(all[i][lane], v.add(v.add(a, c), v.add(b, d)));
                        }
                    }
                }
            }
            for (i, (all, rest)) in all.iter().zip(rest).enumerate() {
                let mut sums = [0f32; 8];
                // SAFETY: the outputs lie in rows and columns that there are, and only this task writes there.
                unsafe {
                    v.store(sums.as_mut_ptr(), v.add(v.sums(*all), rest));
                    let to = self.out.data.add((first + i) * self.out.stride + eight.start);
                    std::ptr::copy_nonoverlapping(sums.as_ptr(), to, eight.len());
                }
            }
        }
        M
    }
}
