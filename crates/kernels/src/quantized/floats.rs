//! Products with weights that are floats: in f32, without rounding the other factor.

use super::dequantize::here;
use super::format::Format;
use super::vectors::{Vectors, Work};
use crate::gemm::Output;
use crate::gemm::pack::{Pack, Panels, transpose};
use crate::isa::Isa;
use std::ops::Range;

/// `out (m, n) = x (m, k) w^T` for some rows of `w` and few of `x`: weights are widened in registers.
pub(super) struct Few<'a> {
    pub format: Format,
    /// `(n, k)` numbers.
    pub w: &'a [u8],
    pub k: usize,
    pub x: &'a [f32],
    pub out: Output,
    /// Rows of `w` to multiply; nobody else writes these columns of `out`.
    pub rows: Range<usize>,
}

impl Work for Few<'_> {
    #[inline(always)]
    fn run<V: Vectors>(self, v: V) {
        const ROWS: usize = 16; // of weights, which stay near for the other rows of activations
        for first in self.rows.clone().step_by(ROWS) {
            let rows = first..self.rows.end.min(first + ROWS);
            let mut row = 0;
            while row < self.out.rows {
                row += match self.out.rows - row {
                    4.. => self.some::<V, 4>(v, row, rows.clone()),
                    2.. => self.some::<V, 2>(v, row, rows.clone()),
                    _ => self.some::<V, 1>(v, row, rows.clone()),
                };
            }
        }
    }
}

impl Few<'_> {
    #[inline(always)]
    fn some<V: Vectors, const M: usize>(&self, v: V, first: usize, rows: Range<usize>) -> usize {
        match self.format {
            Format::F16 => self.each::<V, M, 16>(v, first, rows),
            Format::BF16 => self.each::<V, M, 17>(v, first, rows),
            _ => self.each::<V, M, 32>(v, first, rows),
        }
    }

    /// Multiplies `M` rows of activations; `KIND` is 16 for f16, 17 for bf16 and 32 for f32.
    #[inline(always)]
    fn each<V: Vectors, const M: usize, const KIND: u32>(&self, v: V, first: usize, rows: Range<usize>) -> usize {
        let (k, bytes) = (self.k, if KIND == 32 { 4 } else { 2 });
        assert!(rows.end * k * bytes <= self.w.len() && rows.end <= self.out.columns);
        let x: [&[f32]; M] = std::array::from_fn(|i| &self.x[(first + i) * k..][..k]);
        for row in rows {
            let w = &self.w[row * k * bytes..][..k * bytes];
            let mut sums = [[v.splat(0.0); 2]; M]; // two, because one would wait for itself
            let mut rest = [0f32; M];
            // SAFETY: eight numbers at a time while there are so many; row and column of the output are asserted, and only
            // this task writes there.
            unsafe {
                for at in (0..k / 8 * 8).step_by(8) {
                    let p = w.as_ptr().add(at * bytes);
                    let w = match KIND {
                        16 => v.half_floats(p),
                        17 => v.upper_halves(p),
                        _ => v.floats(p.cast()),
                    };
                    for i in 0..M {
                        let sum = &mut sums[i][at / 8 % 2];
                        *sum = v.fma(w, v.floats(x[i].as_ptr().add(at)), *sum);
                    }
                }
                for at in k / 8 * 8..k {
                    let mut one = [0f32];
                    here(self.format, &w[at * bytes..][..bytes], &mut one);
                    for i in 0..M {
                        rest[i] += one[0] * x[i][at];
                    }
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

/// The rows of a matrix of floats as a factor of [`crate::gemm`], which takes over from a few rows of `x` on.
pub(super) struct Rows<'a> {
    pub format: Format,
    /// Rows of `k` numbers.
    pub w: &'a [u8],
    pub k: usize,
}

impl Pack for Rows<'_> {
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, scratch: &mut Vec<f32>) {
        let (width, steps, bytes) = (panels.width, depth.len(), self.format.bytes());
        if scratch.len() < width * steps {
            scratch.resize(width * steps, 0.0);
        }
        panels.fill_each(|index, panel| {
            let first = lines.start + index * width;
            let starts: Vec<usize> = (0..width.min(lines.end - first)).map(|lane| lane * steps).collect();
            for (line, row) in scratch.chunks_exact_mut(steps.max(1)).enumerate().take(starts.len()) {
                let from = ((first + line) * self.k + depth.start) * bytes;
                here(self.format, &self.w[from..][..steps * bytes], row);
            }
            transpose(isa, scratch, &starts, steps, width, panel);
        });
    }
}
