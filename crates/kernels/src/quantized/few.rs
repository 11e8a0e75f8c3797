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
        for row in rows {
            // SAFETY: each row of `w` and of the activations has `subs` sub-blocks; the others are the caller's promises.
            unsafe {
                let mut p = self.w.as_ptr().add(row * row_bytes);
                let mut sums = [[zero; 2]; M]; // two, because one would wait for itself
                let mut sub = 0;
                while sub + 8 <= subs {
                    let [scales, offsets] = B::scales(v, p);
                    let mut both = [[0f32; 16]; M];
                    for i in 0..M {
                        for group in 0..B::GROUPS {
                            let at = sub * B::GROUPS + 8 * group;
                            let scale = v.mul(scales[group], v.floats(x[i].1.add(at)));
                            v.store(both[i].as_mut_ptr().add(8 * group), scale);
                            sums[i][group] = v.fma(offsets[group], v.floats(x[i].2.add(at)), sums[i][group]);
                        }
                    }
                    for j in 0..8 {
                        let codes = B::codes(v, p, j);
                        for i in 0..M {
                            let dot = v.dot(codes, v.load(x[i].0.add((sub + j) * 32)), B::SMALL);
                            let scale = both[i].as_ptr().add(j * B::GROUPS);
                            let scale = if B::GROUPS == 1 { v.splat(*scale) } else { v.two(scale) };
                            sums[i][j % 2] = v.fma(dot, scale, sums[i][j % 2]);
                        }
                    }
                    sub += 8;
                    p = p.add(8 / B::SUBS * B::BYTES);
                }
                let mut rest = [0f32; M];
                while sub < subs {
                    let [scale, offset] = B::scale(v, p);
                    let codes = B::codes(v, p, 0);
                    for i in 0..M {
                        let dot = v.dot(codes, v.load(x[i].0.add(sub * 32)), B::SMALL);
                        sums[i][0] = v.fma(dot, v.splat(scale * *x[i].1.add(sub)), sums[i][0]);
                        rest[i] += offset * *x[i].2.add(sub);
                    }
                    sub += 1;
                    p = p.add(B::BYTES);
                }
                for i in 0..M {
                    let sum = v.sum(v.add(sums[i][0], sums[i][1])) + rest[i];
                    self.out.data.add((first + i) * self.out.stride + row).write(sum);
                }
            }
        }
        M
    }
}
