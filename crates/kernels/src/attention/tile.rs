//! The small matrix products of attention, in registers.

use crate::exp::sigmoid;
use crate::gemm::pack::transpose;
use crate::isa::isa;
use crate::simd::Simd;

/// Vectors side by side in a tile.
pub(super) const VECTORS: usize = 3;

/// Floats in a row of a tile.
#[inline(always)]
pub(super) const fn width<S: Simd>() -> usize {
    VECTORS * S::LANES
}

/// The most lanes of a block of any instruction set.
pub(super) const MAX_WIDTH: usize = 48;

/// Puts rows of `features` floats into columns of `packed (features, width)`, times `scale`; `start(lane)` is where the row
/// of a column begins in `data`, for `lane < count`. The other columns become zero.
pub(super) fn pack(
    data: &[f32],
    start: impl Fn(usize) -> usize,
    count: usize,
    features: usize,
    scale: f32,
    width: usize,
    packed: &mut [f32],
) {
    let mut starts = [0; MAX_WIDTH];
    for (lane, to) in starts[..count].iter_mut().enumerate() {
        *to = start(lane);
    }
    transpose(isa(), data, &starts[..count], features, width, packed);
    if scale != 1.0 {
        for x in packed {
            *x *= scale;
        }
    }
}

/// The way back: columns of `packed (features, width)` into rows, each times its own factor; `row(lane)` is the row and
/// the factor of a column, for `lane < count`.
pub(super) fn unpack<'a>(
    packed: &[f32],
    count: usize,
    features: usize,
    width: usize,
    mut row: impl FnMut(usize) -> (&'a mut [f32], f32),
) {
    /// Features that are turned around at once.
    const AT_ONCE: usize = 16;
    let mut turned = [0.0; AT_ONCE * MAX_WIDTH];
    for first in (0..features).step_by(AT_ONCE) {
        let some = AT_ONCE.min(features - first);
        let mut starts = [0; AT_ONCE];
        for (i, start) in starts[..some].iter_mut().enumerate() {
            *start = (first + i) * width;
        }
        transpose(isa(), packed, &starts[..some], count, AT_ONCE, &mut turned);
        for (lane, turned) in turned.chunks_exact(AT_ONCE).take(count).enumerate() {
            let (row, factor) = row(lane);
            for (to, x) in row[first..first + some].iter_mut().zip(turned) {
                *to = x * factor;
            }
        }
    }
}

/// A left factor read where it lies: element `(row, column)` is at `data + row * row_stride + column * column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub data: *const f32,
    pub row_stride: usize,
    pub column_stride: usize,
}

/// `out (rows, width) = out * factor + left (rows, depth) * right (depth, width)`; without a factor, `out` is
/// overwritten.
///
/// # Safety
/// All elements that the sizes speak of can be accessed.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    left: Left,
    rows: usize,
    depth: usize,
    right: *const f32,
    factor: Option<[S::V; VECTORS]>,
    out: *mut f32,
) {
    let mut row = 0;
    // SAFETY: each tile covers rows below `rows`; the caller vouches for these.
    unsafe {
        if S::TILE_ROWS == 8 {
            while row + 8 <= rows {
                tile::<S, 8>(s, left, row, depth, right, factor, out);
                row += 8;
            }
        }
        while row + 4 <= rows {
            tile::<S, 4>(s, left, row, depth, right, factor, out);
            row += 4;
        }
        while row < rows {
            tile::<S, 1>(s, left, row, depth, right, factor, out);
            row += 1;
        }
    }
}

#[allow(clippy::needless_range_loop)] // Counted loops over constant bounds are what the compiler unrolls into registers.
/// `R` rows of [`multiply`], from `row` on.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    s: S,
    left: Left,
    row: usize,
    depth: usize,
    right: *const f32,
    factor: Option<[S::V; VECTORS]>,
    out: *mut f32,
) {
    // SAFETY: rows `row..row + R`, columns below `depth` and `width` of operands that the caller vouches for.
    unsafe {
        let out = out.add(row * width::<S>());
        let mut sums = [[s.splat(0.0); VECTORS]; R];
        if let Some(factor) = factor {
            for r in 0..R {
                for v in 0..VECTORS {
                    sums[r][v] = s.mul(s.load(out.add(r * width::<S>() + v * S::LANES)), factor[v]);
                }
            }
        }
        let mut a = left.data.add(row * left.row_stride);
        let mut b = right;
        for _ in 0..depth {
            let b_vectors: [S::V; VECTORS] = [s.load(b), s.load(b.add(S::LANES)), s.load(b.add(2 * S::LANES))];
            for r in 0..R {
                let x = s.splat(*a.add(r * left.row_stride));
                for v in 0..VECTORS {
                    sums[r][v] = s.fma(x, b_vectors[v], sums[r][v]);
                }
            }
            a = a.wrapping_add(left.column_stride);
            b = b.add(width::<S>());
        }
        for r in 0..R {
            for v in 0..VECTORS {
                s.store(out.add(r * width::<S>() + v * S::LANES), sums[r][v]);
            }
        }
    }
}

/// Scores: `out (rows, width) = left (rows, depth) * right (depth, width)`, with long rows in pieces whose part of
/// `right` stays in the first cache.
///
/// # Safety
/// As for [`multiply`]; the rows of `left` are contiguous (its column stride is not read).
#[inline(always)]
pub(super) unsafe fn scores<S: Simd>(
    s: S,
    data: *const f32,
    row_stride: usize,
    rows: usize,
    depth: usize,
    right: *const f32,
    out: *mut f32,
) {
    const PIECE: usize = 128;
    let mut first = 0;
    while first < depth || first == 0 {
        let factor = if first == 0 { None } else { Some([s.splat(1.0); VECTORS]) };
        let count = (depth - first).min(PIECE);
        // SAFETY: columns `first..first + count` of what the caller vouches for.
        unsafe {
            let left = Left { data: data.add(first), row_stride, column_stride: 1 };
            multiply(s, left, rows, count, right.add(first * width::<S>()), factor, out);
        }
        first += PIECE;
    }
}

/// Squeezes `len` scores, a multiple of the lanes, to `cap * tanh(score / cap)`.
///
/// # Safety
/// `scores` holds as many.
#[inline(always)]
pub(super) unsafe fn squeeze<S: Simd>(s: S, cap: f32, scores: *mut f32, len: usize) {
    let (to_sigmoid, cap2, cap) = (s.splat(2.0 / cap), s.splat(2.0 * cap), s.splat(cap));
    for at in (0..len).step_by(S::LANES) {
        // SAFETY: the caller vouches for `len` numbers.
        unsafe {
            let to = scores.add(at);
            // tanh(x) = 2 sigmoid(2 x) - 1
            let y = sigmoid(s, s.mul(s.load(to), to_sigmoid));
            s.store(to, s.sub(s.mul(y, cap2), cap));
        }
    }
}

/// The derivative of [`squeeze`] where it gave `y`; 0 where the score is hidden.
#[inline(always)]
pub(super) fn squeeze_slope<S: Simd>(s: S, cap: f32, y: S::V) -> S::V {
    let share = s.mul(s.max(s.splat(-cap), y), s.splat(1.0 / cap));
    s.sub(s.splat(1.0), s.mul(share, share))
}
