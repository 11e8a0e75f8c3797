//! What a training step does to parameters: AdamW, their moving average, and the norm of gradients.

use crate::disjoint::Disjoint;
use crate::moments::{load, store};
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Elements that one task handles; also the length of the parts that a sum is made of.
const CHUNK: usize = 1 << 14;

/// Numbers of one step of AdamW (Loshchilov & Hutter 2019, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step, schedule included.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean of squared gradients, after its correction.
    pub eps: f64,
    /// Decoupled weight decay: a step first multiplies the parameters by `1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// Number of this step; the first is 1.
    pub step: u64,
    /// Factor on every gradient: what clipping and the mean over accumulated batches make of it.
    pub grad_scale: f64,
}

impl AdamW {
    /// The factors of the formulas, for kernels elsewhere: `(keep, scale, beta1, beta2, new1, new2, eps, rate, root)`, with which
    /// `g = scale gradient`, `m = beta1 m + new1 g`, `v = beta2 v + new2 g^2`, `p = keep p + rate m / (sqrt(v) root + eps)`.
    ///
    /// # Panics
    /// The step is 0.
    pub fn factors(&self) -> [f32; 9] {
        let Factors { keep, grad_scale, beta1, beta2, new1, new2, eps, rate, root } = Factors::new(self);
        [keep, grad_scale, beta1, beta2, new1, new2, eps, rate, root]
    }
}

/// [`AdamW`] as factors of its formulas.
#[derive(Clone, Copy)]
struct Factors {
    keep: f32,
    grad_scale: f32,
    beta1: f32,
    beta2: f32,
    /// `1 - beta1` and `1 - beta2`, subtracted in f64.
    new1: f32,
    new2: f32,
    eps: f32,
    /// `-lr / (1 - beta1^step)`.
    rate: f32,
    /// `1 / sqrt(1 - beta2^step)`.
    root: f32,
}

impl Factors {
    fn new(h: &AdamW) -> Self {
        assert!(h.step > 0, "adamw: the first step is 1");
        // Beyond an i32 the powers are 0 for every decay that is not 1 itself.
        let step = i32::try_from(h.step).unwrap_or(i32::MAX);
        Self {
            keep: (1.0 - h.lr * h.weight_decay) as f32,
            grad_scale: h.grad_scale as f32,
            beta1: h.beta1 as f32,
            beta2: h.beta2 as f32,
            new1: (1.0 - h.beta1) as f32,
            new2: (1.0 - h.beta2) as f32,
            eps: h.eps as f32,
            rate: (-h.lr / (1.0 - h.beta1.powi(step))) as f32,
            root: (1.0 / (1.0 - h.beta2.powi(step)).sqrt()) as f32,
        }
    }
}

/// One step of AdamW: updates the parameters and the means `m` of gradients and `v` of squared gradients.
///
/// # Panics
/// The lengths differ, or the step is 0.
pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], hyper: AdamW) {
    let n = param.len();
    assert!(grad.len() == n && m.len() == n && v.len() == n, "adamw: lengths differ");
    let factors = Factors::new(&hyper);
    let (m, v) = (Disjoint::new(m), Disjoint::new(v));
    threads::run_chunks(param, CHUNK, |i, param| {
        let (first, count) = (i * CHUNK, param.len());
        // SAFETY: each chunk is in one task.
        let (m, v) = unsafe { (m.part(first, count), v.part(first, count)) };
        dispatch(Step { param, grad: &grad[first..][..count], m, v, factors });
    });
}

struct Step<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    factors: Factors,
}

impl Kernel for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.param.len();
        assert!(self.grad.len() == n && self.m.len() == n && self.v.len() == n);
        let f = self.factors;
        let (keep, scale, eps) = (s.splat(f.keep), s.splat(f.grad_scale), s.splat(f.eps));
        let (beta1, new1, beta2, new2) = (s.splat(f.beta1), s.splat(f.new1), s.splat(f.beta2), s.splat(f.new2));
        let (rate, root) = (s.splat(f.rate), s.splat(f.root));
        let (param, grad, m, v) =
            (self.param.as_mut_ptr(), self.grad.as_ptr(), self.m.as_mut_ptr(), self.v.as_mut_ptr());
        for i in (0..n).step_by(S::LANES) {
            let count = (n - i).min(S::LANES);
            // SAFETY: all slices have `n` elements, and `i + count <= n`.
            unsafe {
                let g = s.mul(load(s, grad.add(i), count), scale);
                let mean = s.fma(beta1, load(s, m.add(i), count), s.mul(new1, g));
                let square = s.fma(beta2, load(s, v.add(i), count), s.mul(new2, s.mul(g, g)));
                let change = s.div(s.mul(rate, mean), s.fma(s.sqrt(square), root, eps));
                store(s, m.add(i), count, mean);
                store(s, v.add(i), count, square);
                store(s, param.add(i), count, s.fma(load(s, param.add(i), count), keep, change));
            }
        }
    }
}

/// One step of a moving average: `average = decay * average + (1 - decay) * value`.
///
/// # Panics
/// The lengths differ.
pub fn ema(average: &mut [f32], value: &[f32], decay: f32) {
    assert_eq!(average.len(), value.len(), "ema: lengths differ");
    threads::run_chunks(average, CHUNK, |i, average| {
        dispatch(Average { value: &value[i * CHUNK..][..average.len()], average, decay });
    });
}

struct Average<'a> {
    average: &'a mut [f32],
    value: &'a [f32],
    decay: f32,
}

impl Kernel for Average<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.average.len();
        assert_eq!(self.value.len(), n);
        let new = s.splat(1.0 - self.decay);
        let (average, value) = (self.average.as_mut_ptr(), self.value.as_ptr());
        for i in (0..n).step_by(S::LANES) {
            let count = (n - i).min(S::LANES);
            // SAFETY: both slices have `n` elements, and `i + count <= n`.
            unsafe {
                // In this form a value that the average has reached leaves it as it is, whatever the decay.
                let old = load(s, average.add(i), count);
                let difference = s.sub(load(s, value.add(i), count), old);
                store(s, average.add(i), count, s.fma(difference, new, old));
            }
        }
    }
}

/// The sum of `x^2`: for the norm of gradients. Infinite or NaN where an element is; squares above 3e38 are infinite.
///
/// Parts of a fixed length are summed in f32 and added in f64 in order, so the result does not depend on the threads.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let mut parts = vec![0f64; x.len().div_ceil(CHUNK)];
    // At least a few parts to a task: a sum alone takes a microsecond.
    const PARTS: usize = 4;
    threads::run_chunks(&mut parts, PARTS, |task, parts| {
        for (i, part) in parts.iter_mut().enumerate() {
            let first = (task * PARTS + i) * CHUNK;
            *part = dispatch(Squares(&x[first..x.len().min(first + CHUNK)]));
        }
    });
    parts.iter().sum()
}

struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (n, p) = (self.0.len(), self.0.as_ptr());
        let mut sums = [s.splat(0.0); 4];
        let mut i = 0;
        // SAFETY: no access goes beyond the `n` elements.
        unsafe {
            while i + 4 * S::LANES <= n {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let x = s.load(p.add(i + j * S::LANES));
                    *sum = s.fma(x, x, *sum);
                }
                i += 4 * S::LANES;
            }
            while i < n {
                let count = (n - i).min(S::LANES);
                let x = load(s, p.add(i), count);
                sums[0] = s.fma(x, x, sums[0]);
                i += count;
            }
        }
        sums.iter().map(|sum| f64::from(s.sum(*sum))).sum()
    }
}

/// Plain twins: the formulas, one element at a time, in f64 between reading and writing.
pub mod plain {
    use super::AdamW;

    /// Plain twin of [`super::adamw`].
    ///
    /// # Panics
    /// The lengths differ.
    pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], h: AdamW) {
        let n = param.len();
        assert!(grad.len() == n && m.len() == n && v.len() == n, "adamw: lengths differ");
        let step = h.step as f64;
        for i in 0..n {
            let g = f64::from(grad[i]) * h.grad_scale;
            let mean = h.beta1 * f64::from(m[i]) + (1.0 - h.beta1) * g;
            let square = h.beta2 * f64::from(v[i]) + (1.0 - h.beta2) * g * g;
            let corrected_mean = mean / (1.0 - h.beta1.powf(step));
            let corrected_square = square / (1.0 - h.beta2.powf(step));
            let change = h.lr * (corrected_mean / (corrected_square.sqrt() + h.eps));
            param[i] = (f64::from(param[i]) * (1.0 - h.lr * h.weight_decay) - change) as f32;
            m[i] = mean as f32;
            v[i] = square as f32;
        }
    }

    /// Plain twin of [`super::ema`].
    pub fn ema(average: &mut [f32], value: &[f32], decay: f32) {
        for (average, value) in average.iter_mut().zip(value) {
            *average = (f64::from(decay) * f64::from(*average) + (1.0 - f64::from(decay)) * f64::from(*value)) as f32;
        }
    }

    /// Plain twin of [`super::sum_of_squares`].
    pub fn sum_of_squares(x: &[f32]) -> f64 {
        x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` values between -1 and 1 without a pattern.
    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn hyper(step: u64) -> AdamW {
        AdamW { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.5 }
    }

    #[test]
    fn adamw_follows_its_plain_twin_over_steps() {
        for n in [1, 15, 16, 1000, CHUNK + 7, 3 * CHUNK] {
            let mut fast = (values(n, 1), vec![0.0; n], vec![0.0; n]);
            let mut plain = fast.clone();
            for step in 1..=5 {
                let grad = values(n, 10 + step);
                adamw(&mut fast.0, &grad, &mut fast.1, &mut fast.2, hyper(step));
                plain::adamw(&mut plain.0, &grad, &mut plain.1, &mut plain.2, hyper(step));
            }
            // Five steps move a parameter by at most 0.05; each step rounds to 6e-8.
            for (pair, tolerance) in
                [((&fast.0, &plain.0), 5e-7), ((&fast.1, &plain.1), 2e-7), ((&fast.2, &plain.2), 2e-7)]
            {
                for (a, b) in pair.0.iter().zip(pair.1) {
                    assert!((a - b).abs() <= tolerance, "{n} elements: {a} beside {b}");
                }
            }
        }
    }

    #[test]
    fn the_first_step_of_adamw_is_the_learning_rate_against_the_gradient() {
        // m / (1 - beta1) = g and v / (1 - beta2) = g^2: the change is lr * sign(g).
        let (mut p, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        let hyper = AdamW { weight_decay: 0.0, ..hyper(1) };
        adamw(&mut p, &[3.0, -0.2], &mut m, &mut v, hyper);
        assert!((p[0] - 0.99).abs() < 1e-6 && (p[1] - 1.01).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn ema_follows_its_plain_twin_and_rests_at_its_value() {
        let n = CHUNK + 9;
        let (mut fast, value) = (values(n, 2), values(n, 3));
        let mut plain = fast.clone();
        for decay in [0.0, 0.5, 0.9999, 1.0] {
            ema(&mut fast, &value, decay);
            plain::ema(&mut plain, &value, decay);
            for (a, b) in fast.iter().zip(&plain) {
                assert!((a - b).abs() <= 3e-7, "{a} beside {b}");
            }
        }
        let mut average = value.clone();
        ema(&mut average, &value, 0.9997);
        assert_eq!(average, value);
    }

    #[test]
    fn sum_of_squares_is_accurate_and_does_not_hide_what_is_not_finite() {
        for n in [0, 1, 31, 5 * CHUNK + 100] {
            let x = values(n, 4);
            let (fast, plain) = (sum_of_squares(&x), plain::sum_of_squares(&x));
            assert!((fast - plain).abs() <= 1e-6 * plain, "{n}: {fast} beside {plain}");
        }
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan());
        assert_eq!(sum_of_squares(&[1.0, f32::NEG_INFINITY]), f64::INFINITY);
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let n = 9 * CHUNK + 3;
        let run = |threads: usize| {
            threads::set_count(threads).unwrap();
            let (mut p, mut m, mut v) = (values(n, 1), values(n, 2), vec![0.5; n]);
            adamw(&mut p, &values(n, 3), &mut m, &mut v, hyper(3));
            let mut average = values(n, 5);
            ema(&mut average, &p, 0.99);
            (p, m, v, average, sum_of_squares(&values(n, 6)).to_bits())
        };
        let results = (run(1), run(3));
        threads::set_count(0).unwrap();
        assert!(results.0 == results.1);
    }
}
