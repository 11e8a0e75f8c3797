//! Sums over contiguous floats, accurate whatever the length: short chunks in f32, their sums in f64, always in the
//! same order.

use crate::simd::Simd;

/// Elements summed in f32 before the sum goes into an f64. A chunk stays in the first cache between two looks at it.
const CHUNK: usize = 4096;

/// Mean and variance (the mean of squared differences, not divided by `n - 1`) of `x`; NaN for no elements.
///
/// Chan et al. 1979: mean and squared differences of each chunk, then merged, so that one pass over memory suffices and
/// nothing cancels.
#[inline(always)]
pub(crate) fn mean_and_variance<S: Simd>(s: S, x: &[f32]) -> (f64, f64) {
    if x.len() <= CHUNK {
        let (mean, squares) = chunk_mean_and_squares(s, x);
        return (mean, squares / x.len() as f64);
    }
    let (mut count, mut mean, mut squares) = (0.0f64, 0.0f64, 0.0f64);
    for chunk in x.chunks(CHUNK) {
        let n = chunk.len() as f64;
        let (chunk_mean, chunk_squares) = chunk_mean_and_squares(s, chunk);
        let difference = chunk_mean - mean;
        let total = count + n;
        mean += difference * n / total;
        squares += chunk_squares + difference * difference * count * n / total;
        count = total;
    }
    (mean, squares / count)
}

/// Mean and sum of squared differences to it, of a chunk.
#[inline(always)]
fn chunk_mean_and_squares<S: Simd>(s: S, x: &[f32]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = sum(s, x) / n;
    // Differences to the rounded mean; what the rounding adds is taken off again.
    let centre = mean as f32;
    let rounding = mean - f64::from(centre);
    (mean, squared_differences(s, x, centre) - n * rounding * rounding)
}

/// The sum of `x`.
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, x: &[f32]) -> f64 {
    let mut total = 0.0;
    for chunk in x.chunks(CHUNK) {
        let (n, p) = (chunk.len(), chunk.as_ptr());
        let mut sums = [s.splat(0.0); 4];
        let mut i = 0;
        // SAFETY: no access goes beyond the chunk's `n` elements.
        unsafe {
            while i + 4 * S::LANES <= n {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = s.add(*sum, s.load(p.add(i + j * S::LANES)));
                }
                i += 4 * S::LANES;
            }
            while i < n {
                let count = (n - i).min(S::LANES);
                sums[0] = s.add(sums[0], load(s, p.add(i), count));
                i += count;
            }
        }
        total += f64::from(s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))));
    }
    total
}

/// The sum of `(x - centre)^2` over a chunk.
#[inline(always)]
fn squared_differences<S: Simd>(s: S, x: &[f32], centre: f32) -> f64 {
    let (n, p, centre_vector) = (x.len(), x.as_ptr(), s.splat(centre));
    let mut sums = [s.splat(0.0); 4];
    let mut i = 0;
    // SAFETY: no access goes beyond the `n` elements.
    unsafe {
        while i + 4 * S::LANES <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                let d = s.sub(s.load(p.add(i + j * S::LANES)), centre_vector);
                *sum = s.fma(d, d, *sum);
            }
            i += 4 * S::LANES;
        }
        while i + S::LANES <= n {
            let d = s.sub(s.load(p.add(i)), centre_vector);
            sums[0] = s.fma(d, d, sums[0]);
            i += S::LANES;
        }
        let mut total = f64::from(s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))));
        while i < n {
            let d = f64::from(*p.add(i) - centre);
            total += d * d;
            i += 1;
        }
        total
    }
}

/// Reads `count <= LANES` floats.
///
/// # Safety
/// `p` is readable for `count` floats.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(s: S, p: *const f32, count: usize) -> S::V {
    // SAFETY: the caller vouches for the pointer.
    unsafe { if count == S::LANES { s.load(p) } else { s.load_first(p, count) } }
}

/// Writes `count <= LANES` floats.
///
/// # Safety
/// `p` is writable for `count` floats.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(s: S, p: *mut f32, count: usize, x: S::V) {
    // SAFETY: the caller vouches for the pointer.
    unsafe { if count == S::LANES { s.store(p, x) } else { s.store_first(p, count, x) } }
}
