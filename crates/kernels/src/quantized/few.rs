//! Products with a few rows of activations: each block of weights is unpacked into registers, multiplied and forgotten. What
//! bounds them is the time to read the weights.

use super::activations::Activations;
use super::blocks::Blocks;
use super::vectors::{Vectors, Work};
use crate::gemm::Output;
use std::marker::PhantomData;
use std::ops::Range;

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
        for eight in rows.clone().step_by(8) {
            let mut all = [[zero; 8]; M];
            let eight = eight..rows.end.min(eight + 8);
            for (lane, row) in eight.clone().enumerate() {
                // SAFETY: each row of `w` and of the activations has `subs` sub-blocks, and these have scales and sums for a
                // multiple of eight; the others are the caller's promises.
                unsafe {
                    let mut p = self.w.as_ptr().add(row * row_bytes);
                    let mut sums = [[zero; 4]; M];
                    for sub in (0..subs).step_by(8) {
                        let count = 8.min(subs - sub);
                        let [scales, offsets] = B::scales(v, p, count);
                        let mut both = [[0f32; 16]; M];
                        for i in 0..M {
                            for group in 0..B::GROUPS {
                                let at = sub * B::GROUPS + 8 * group;
                                let scale = v.mul(scales[group], v.floats(x[i].1.add(at)));
                                v.store(both[i].as_mut_ptr().add(8 * group), scale);
                                sums[i][group] = v.fma(offsets[group], v.floats(x[i].2.add(at)), sums[i][group]);
                            }
                        }
                        // Through memory, from where a lane is spread for nothing; shuffles would be the bottleneck.
                        let both = std::hint::black_box(&both);
                        for j in 0..8 {
                            if j == count {
                                break;
                            }
                            let codes = B::codes(v, p, j);
                            for i in 0..M {
                                let dot = v.dot(codes, v.load(x[i].0.add((sub + j) * 32)), B::SMALL);
                                let scale = both[i].as_ptr().add(j * B::GROUPS);
                                let scale = if B::GROUPS == 1 { v.splat(*scale) } else { v.two(scale) };
                                sums[i][j % turns] = v.fma(dot, scale, sums[i][j % turns]);
                            }
                        }
                        p = p.add(8 / B::SUBS * B::BYTES);
                    }
                    for i in 0..M {
                        let [a, b, c, d] = sums[i];
                        all[i][lane] = v.add(v.add(a, c), v.add(b, d));
                    }
                }
            }
            for (i, all) in all.iter().enumerate() {
                let mut sums = [0f32; 8];
                // SAFETY: the outputs lie in rows and columns that there are, and only this task writes there.
                unsafe {
                    v.store(sums.as_mut_ptr(), v.sums(*all));
                    let to = self.out.data.add((first + i) * self.out.stride + eight.start);
                    std::ptr::copy_nonoverlapping(sums.as_ptr(), to, eight.len());
                }
            }
        }
        M
    }
}
