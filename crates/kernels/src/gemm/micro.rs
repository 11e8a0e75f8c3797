//! Micro-kernels: a tile of the output, kept in registers, from one packed panel of each factor.

use crate::isa::{Isa, has_bf16};
use crate::precision::Precision;

/// What packed panels hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Floats.
    F32,
    /// Floats that were rounded to bf16.
    Rounded,
    /// Two consecutive steps of depth in each word, as bf16, the first in the lower half; 0 after an odd number of steps.
    Pairs,
}

/// A micro-kernel. `run` overwrites the tile at `c`:
/// `c[i * ldc + j] = base + sum over p of a[p * rows + i] * b[p * columns + j]` for `i < used_rows`, `j < used_columns`.
/// The sum runs over `p` in order, each element on its own, so its bits do not depend on where in a tile it lies.
#[derive(Clone, Copy)]
pub(crate) struct Micro {
    /// The instruction set that it needs.
    pub isa: Isa,
    /// What it reads.
    pub format: Format,
    /// Rows of a full tile: the width of a packed panel of the left factor.
    pub rows: usize,
    /// Columns of a full tile: the width of a packed panel of the right factor.
    pub columns: usize,
    run: unsafe fn(Tile),
}

/// What the sums of a tile are added to.
#[derive(Clone, Copy)]
pub(crate) enum Base {
    /// Nothing.
    Zero,
    /// One value for each of the tile's used rows.
    Rows(*const f32),
    /// One value for each of the tile's used columns.
    Columns(*const f32),
    /// What is in the output.
    Output,
}

/// Floats in the largest tile of any micro-kernel.
pub(crate) const MAX_TILE: usize = 12 * 32;

/// The arguments of one call of a micro-kernel.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub depth: usize,
    pub a: *const f32,
    pub b: *const f32,
    pub c: *mut f32,
    pub ldc: usize,
    pub used_rows: usize,
    pub used_columns: usize,
    pub base: Base,
}

impl Micro {
    /// The micro-kernel for `isa`, or for the best instruction set below it that this build has.
    pub fn new(isa: Isa, precision: Precision) -> Self {
        let format = match precision {
            Precision::F32 => Format::F32,
            Precision::Bf16 if isa == Isa::Avx512 && has_bf16() => Format::Pairs,
            Precision::Bf16 => Format::Rounded,
        };
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if format == Format::Pairs => {
                Self { isa, format, rows: x86::ROWS_512, columns: 32, run: x86::avx512_bf16 }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self { isa, format, rows: x86::ROWS_512, columns: 32, run: x86::avx512 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self { isa, format, rows: x86::ROWS_256, columns: 16, run: x86::avx2 },
            _ => Self { isa: Isa::Portable, format, rows: PORTABLE_ROWS, columns: PORTABLE_COLUMNS, run: portable },
        }
    }

    /// Words that each line of a panel takes for `steps` of depth: the `depth` of [`Tile`].
    pub fn words(&self, steps: usize) -> usize {
        if self.format == Format::Pairs { steps.div_ceil(2) } else { steps }
    }

    /// Computes one tile.
    ///
    /// # Safety
    /// The processor has `self.isa` (and bf16 for pairs of them); `tile.a` and `tile.b` are panels of `depth` steps of `self.rows` and
    /// `self.columns` floats; `tile.c` may be read and written at `used_rows` rows of `used_columns` floats, `ldc` apart;
    /// the base points to as many floats as it needs;
    /// `1 <= used_rows <= self.rows` and `1 <= used_columns <= self.columns`.
    #[inline]
    pub unsafe fn run(&self, tile: Tile) {
        // SAFETY: the caller promises what every kernel asks for.
        unsafe { (self.run)(tile) }
    }
}

const PORTABLE_ROWS: usize = 4;
const PORTABLE_COLUMNS: usize = 8;

/// # Safety
/// See [`Micro::run`].
unsafe fn portable(t: Tile) {
    let mut sum = [[0f32; PORTABLE_COLUMNS]; PORTABLE_ROWS];
    // SAFETY: the panels hold `depth` steps of `PORTABLE_ROWS` and `PORTABLE_COLUMNS` floats.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(t.a, t.depth * PORTABLE_ROWS),
            std::slice::from_raw_parts(t.b, t.depth * PORTABLE_COLUMNS),
        )
    };
    for (a, b) in a.chunks_exact(PORTABLE_ROWS).zip(b.chunks_exact(PORTABLE_COLUMNS)) {
        for i in 0..PORTABLE_ROWS {
            for j in 0..PORTABLE_COLUMNS {
                sum[i][j] += a[i] * b[j];
            }
        }
    }
    for (i, row) in sum.iter().enumerate().take(t.used_rows) {
        for (j, s) in row.iter().enumerate().take(t.used_columns) {
            // SAFETY: `i < used_rows` and `j < used_columns`, for which there are an output and a base.
            unsafe {
                let c = t.c.add(i * t.ldc + j);
                c.write(match t.base {
                    Base::Zero => *s,
                    Base::Rows(base) => *base.add(i) + s,
                    Base::Columns(base) => *base.add(j) + s,
                    Base::Output => *c + s,
                });
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Base, Tile};
    use std::arch::x86_64::*;

    /// 12 x 32: 24 accumulators, two registers for the right factor, one for the broadcast left factor.
    pub const ROWS_512: usize = 12;
    /// 6 x 16: 12 accumulators, two registers for the right factor, one for the broadcast left factor.
    pub const ROWS_256: usize = 6;

    /// # Safety
    /// See [`super::Micro::run`].
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(t: Tile) {
        // SAFETY: passed on from the caller.
        unsafe { any_rows_512::<false>(t) }
    }

    /// # Safety
    /// See [`super::Micro::run`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn avx512_bf16(t: Tile) {
        // SAFETY: passed on from the caller.
        unsafe { any_rows_512::<true>(t) }
    }

    /// # Safety
    /// See [`super::Micro::run`].
    #[inline(always)]
    unsafe fn any_rows_512<const PAIRS: bool>(t: Tile) {
        // SAFETY: passed on from the caller; each arm computes exactly `used_rows` rows.
        unsafe {
            match t.used_rows {
                1 => rows_512::<1, PAIRS>(t),
                2 => rows_512::<2, PAIRS>(t),
                3 => rows_512::<3, PAIRS>(t),
                4 => rows_512::<4, PAIRS>(t),
                5 => rows_512::<5, PAIRS>(t),
                6 => rows_512::<6, PAIRS>(t),
                7 => rows_512::<7, PAIRS>(t),
                8 => rows_512::<8, PAIRS>(t),
                9 => rows_512::<9, PAIRS>(t),
                10 => rows_512::<10, PAIRS>(t),
                11 => rows_512::<11, PAIRS>(t),
                _ => rows_512::<12, PAIRS>(t),
            }
        }
    }

    /// `c + a b` of floats, or of pairs of bf16: `c + a0 b0 + a1 b1`.
    ///
    /// # Safety
    /// The processor has AVX-512 F, and AVX512-BF16 for pairs.
    #[inline(always)]
    unsafe fn add_product<const PAIRS: bool>(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller's promise; the types of vectors are all 64 bytes without invalid values.
        unsafe {
            if PAIRS {
                _mm512_dpbf16_ps(
                    c,
                    std::mem::transmute::<__m512, __m512bh>(a),
                    std::mem::transmute::<__m512, __m512bh>(b),
                )
            } else {
                _mm512_fmadd_ps(a, b, c)
            }
        }
    }

    /// # Safety
    /// See [`super::Micro::run`]; `used_rows == R`.
    #[inline(always)]
    unsafe fn rows_512<const R: usize, const PAIRS: bool>(t: Tile) {
        // SAFETY: the panels hold `depth` steps; the masks cover exactly the tile's `used_columns`.
        unsafe {
            let mut sum = [[_mm512_setzero_ps(); 2]; R];
            let (mut a, mut b) = (t.a, t.b);
            // The tile's cache lines arrive while its sums are made.
            for i in 0..R {
                let row = t.c.wrapping_add(i * t.ldc);
                for last in [0, t.used_columns.min(16) - 1, t.used_columns - 1] {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(last).cast());
                }
            }
            for _ in 0..t.depth {
                let b0 = _mm512_loadu_ps(b);
                let b1 = _mm512_loadu_ps(b.add(16));
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(i));
                    sum[0] = add_product::<PAIRS>(x, b0, sum[0]);
                    sum[1] = add_product::<PAIRS>(x, b1, sum[1]);
                }
                a = a.add(ROWS_512);
                b = b.add(32);
            }
            let mask = u32::MAX >> (32 - t.used_columns as u32);
            let masks = [mask as u16, (mask >> 16) as u16];
            for (i, sum) in sum.iter().enumerate() {
                let row = t.c.add(i * t.ldc);
                for (half, sum) in sum.iter().enumerate() {
                    // A wrapping pointer, because the second half of a narrow tile may lie outside the output.
                    let c = row.wrapping_add(16 * half);
                    let value = match t.base {
                        Base::Zero => *sum,
                        Base::Rows(base) => _mm512_add_ps(_mm512_set1_ps(*base.add(i)), *sum),
                        Base::Columns(base) => {
                            _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], base.wrapping_add(16 * half)), *sum)
                        }
                        Base::Output => _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], c), *sum),
                    };
                    _mm512_mask_storeu_ps(c, masks[half], value);
                }
            }
        }
    }

    /// # Safety
    /// See [`super::Micro::run`].
    pub unsafe fn avx2(t: Tile) {
        // SAFETY: passed on from the caller; each arm computes exactly `used_rows` rows.
        unsafe {
            match t.used_rows {
                1 => rows_256::<1>(t),
                2 => rows_256::<2>(t),
                3 => rows_256::<3>(t),
                4 => rows_256::<4>(t),
                5 => rows_256::<5>(t),
                _ => rows_256::<6>(t),
            }
        }
    }

    /// # Safety
    /// See [`super::Micro::run`]; `used_rows == R`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn rows_256<const R: usize>(t: Tile) {
        let mut sum = [[_mm256_setzero_ps(); 2]; R];
        let (mut a, mut b) = (t.a, t.b);
        // SAFETY: the panels hold `depth` steps; the tile is written directly only if it has all 16 columns.
        unsafe {
            for _ in 0..t.depth {
                let b0 = _mm256_loadu_ps(b);
                let b1 = _mm256_loadu_ps(b.add(8));
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*a.add(i));
                    sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                    sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
                }
                a = a.add(ROWS_256);
                b = b.add(16);
            }
            for (i, sum) in sum.iter().enumerate() {
                let c = t.c.add(i * t.ldc);
                let mut row = [0f32; 16];
                match t.base {
                    Base::Zero => {}
                    Base::Rows(base) => row = [*base.add(i); 16],
                    Base::Columns(base) => std::ptr::copy_nonoverlapping(base, row.as_mut_ptr(), t.used_columns),
                    Base::Output => std::ptr::copy_nonoverlapping(c, row.as_mut_ptr(), t.used_columns),
                }
                for (half, sum) in sum.iter().enumerate() {
                    let at = row.as_mut_ptr().add(8 * half);
                    let value =
                        if matches!(t.base, Base::Zero) { *sum } else { _mm256_add_ps(_mm256_loadu_ps(at), *sum) };
                    _mm256_storeu_ps(at, value);
                }
                std::ptr::copy_nonoverlapping(row.as_ptr(), c, t.used_columns);
            }
        }
    }
}
