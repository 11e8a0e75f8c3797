//! LayerNorm and RMSNorm over rows.

use crate::disjoint::Disjoint;
use crate::moments::{load, mean_and_variance, store};
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Elements that one task handles, in whole rows.
const CHUNK: usize = 1 << 14;

/// The most parts that a sum over rows is split into.
const PARTS: usize = 32;

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// `(x - mean) / sqrt(variance + eps)`.
    Layer,
    /// `x / sqrt(mean of squares + eps)`.
    Rms,
}

/// `out = norm(x) * weight + bias` in each row of `weight.len()` elements.
///
/// # Panics
/// The lengths do not fit.
pub fn forward(norm: Norm, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    let n = weight.len();
    assert!(x.len() == out.len() && bias.is_none_or(|bias| bias.len() == n));
    if out.is_empty() {
        return;
    }
    assert_eq!(out.len() % n, 0);
    let rows = (CHUNK / n).max(1);
    threads::run_chunks(out, rows * n, |task, piece| {
        let x = &x[task * rows * n..][..piece.len()];
        dispatch(Forward { norm, x, weight, bias, eps, out: piece });
    });
}

/// Gradients of [`forward`]: `dx` like `x`, `d_weight` and `d_bias` summed over rows.
///
/// # Panics
/// The lengths do not fit.
#[allow(clippy::too_many_arguments)] // The operands of the formula.
pub fn backward(
    norm: Norm,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let n = weight.len();
    assert!(x.len() == dx.len() && dy.len() == dx.len() && d_weight.len() == n && d_bias.len() == n);
    d_weight.fill(0.0);
    d_bias.fill(0.0);
    if dx.is_empty() {
        return;
    }
    assert_eq!(dx.len() % n, 0);
    let rows = dx.len() / n;
    // The parts depend on the shape alone, so that the sums do not depend on the number of threads.
    let rows_per_part = rows.div_ceil(PARTS).max((CHUNK / n).max(1));
    let parts = rows.div_ceil(rows_per_part);
    let mut partial = vec![0.0; parts * 2 * n];
    let (dx, sums) = (Disjoint::new(dx), Disjoint::new(&mut partial));
    threads::run(parts, |part| {
        let first = part * rows_per_part * n;
        let count = (rows_per_part * n).min(x.len() - first);
        // SAFETY: each part has its own rows and its own sums.
        let (dx, sums) = unsafe { (dx.part(first, count), sums.part(part * 2 * n, 2 * n)) };
        let (d_weight, d_bias) = sums.split_at_mut(n);
        let (x, dy) = (&x[first..][..count], &dy[first..][..count]);
        dispatch(Backward { norm, x, weight, eps, dy, dx, d_weight, d_bias });
    });
    for part in partial.chunks_exact(2 * n) {
        for (total, x) in d_weight.iter_mut().chain(d_bias.iter_mut()).zip(part) {
            *total += x;
        }
    }
}

/// The number that is subtracted from a row and the factor that follows.
#[inline(always)]
fn centre_and_factor<S: Simd>(s: S, norm: Norm, x: &[f32], eps: f32) -> (f32, f32) {
    let (mean, variance) = mean_and_variance(s, x);
    let eps = f64::from(eps);
    match norm {
        Norm::Layer => (mean as f32, (1.0 / (variance + eps).sqrt()) as f32),
        // The mean of squares is the variance plus the mean squared, and both are sums of what is not negative.
        Norm::Rms => (0.0, (1.0 / (variance + mean * mean + eps).sqrt()) as f32),
    }
}

struct Forward<'a> {
    norm: Norm,
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.weight.len();
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            let (centre, factor) = centre_and_factor(s, self.norm, x, self.eps);
            let (centre, factor) = (s.splat(centre), s.splat(factor));
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                // SAFETY: all rows have `n` elements, and `i + count <= n`.
                unsafe {
                    let normalised = s.mul(s.sub(load(s, x.as_ptr().add(i), count), centre), factor);
                    let mut y = s.mul(normalised, load(s, self.weight.as_ptr().add(i), count));
                    if let Some(bias) = self.bias {
                        y = s.add(y, load(s, bias.as_ptr().add(i), count));
                    }
                    store(s, out.as_mut_ptr().add(i), count, y);
                }
            }
        }
    }
}

struct Backward<'a> {
    norm: Norm,
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    d_weight: &'a mut [f32],
    d_bias: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.weight.len();
        let (weight, d_weight, d_bias) = (self.weight.as_ptr(), self.d_weight.as_mut_ptr(), self.d_bias.as_mut_ptr());
        for ((x, dy), dx) in self.x.chunks_exact(n).zip(self.dy.chunks_exact(n)).zip(self.dx.chunks_exact_mut(n)) {
            let (centre, factor) = centre_and_factor(s, self.norm, x, self.eps);
            let (centre, factor) = (s.splat(centre), s.splat(factor));
            let (x, dy, dx) = (x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr());
            // With g = dy * weight and y the normalised row: dx = factor * (g - mean(g) - y * mean(g * y)), where
            // mean(g) comes from the subtraction of the mean and is absent without it.
            let (mut sum_g, mut sum_gy) = (s.splat(0.0), s.splat(0.0));
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                // SAFETY: all rows have `n` elements, and `i + count <= n`.
                unsafe {
                    let dy = load(s, dy.add(i), count);
                    let y = s.mul(s.sub(load(s, x.add(i), count), centre), factor);
                    let g = s.mul(dy, load(s, weight.add(i), count));
                    sum_g = s.add(sum_g, g);
                    sum_gy = s.fma(g, y, sum_gy);
                    store(s, d_weight.add(i), count, s.fma(dy, y, load(s, d_weight.add(i), count)));
                    store(s, d_bias.add(i), count, s.add(dy, load(s, d_bias.add(i), count)));
                }
            }
            let mean_g = match self.norm {
                Norm::Layer => s.splat(s.sum(sum_g) / n as f32),
                Norm::Rms => s.splat(0.0),
            };
            let mean_gy = s.splat(s.sum(sum_gy) / n as f32);
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                // SAFETY: as above.
                unsafe {
                    let y = s.mul(s.sub(load(s, x.add(i), count), centre), factor);
                    let g = s.mul(load(s, dy.add(i), count), load(s, weight.add(i), count));
                    let difference = s.sub(s.sub(g, mean_g), s.mul(y, mean_gy));
                    store(s, dx.add(i), count, s.mul(difference, factor));
                }
            }
        }
    }
}
