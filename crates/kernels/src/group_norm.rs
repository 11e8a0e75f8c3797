//! GroupNorm, alone and followed by SiLU in the same pass.

use crate::activation::ScaledSwish;
use crate::disjoint::Disjoint;
use crate::elementwise::{Map1, Map2};
use crate::moments::{load, mean_and_variance, store};
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Sizes of a group normalisation of `(batch, channels, plane)`.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Independent samples.
    pub batch: usize,
    /// Channels; a multiple of `groups`.
    pub channels: usize,
    /// Elements of a channel.
    pub plane: usize,
    /// Groups of channels, each normalised together.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNorm {
    fn check(&self, x: &[f32], weight: &[f32]) {
        assert!(
            self.groups > 0 && self.channels.is_multiple_of(self.groups),
            "{} channels, {} groups",
            self.channels,
            self.groups
        );
        assert_eq!(x.len(), self.batch * self.channels * self.plane);
        assert_eq!(weight.len(), self.channels);
    }
}

/// Mean and inverse standard deviation of each group, `(batch, groups)`: what the backward pass needs.
#[derive(Clone, Debug, Default)]
pub struct GroupStatistics(Vec<(f32, f32)>);

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias`, with mean and variance of each group of channels, and
/// `weight` and `bias` of each channel; then SiLU where asked.
///
/// # Panics
/// The lengths do not fit.
pub fn forward(norm: GroupNorm, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) -> GroupStatistics {
    norm.check(x, weight);
    assert!(bias.len() == norm.channels && out.len() == x.len());
    let mut statistics = vec![(0.0, 0.0); norm.batch * norm.groups];
    let size = norm.channels / norm.groups * norm.plane;
    if size == 0 {
        return GroupStatistics(statistics);
    }
    let out = Disjoint::new(out);
    threads::run_chunks(&mut statistics, 1, |group, statistics| {
        // SAFETY: each group is in one task.
        let out = unsafe { out.part(group * size, size) };
        let first = group % norm.groups * (norm.channels / norm.groups);
        statistics[0] = dispatch(Forward {
            norm,
            x: &x[group * size..][..size],
            weight: &weight[first..],
            bias: &bias[first..],
            out,
        });
    });
    GroupStatistics(statistics)
}

struct Forward<'a> {
    norm: GroupNorm,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = (f32, f32);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let (mean, variance) = mean_and_variance(s, self.x);
        let factor = 1.0 / (variance + f64::from(self.norm.eps)).sqrt();
        let (mean, factor) = (mean as f32, factor as f32);
        let n = self.norm.plane;
        for (c, (x, out)) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)).enumerate() {
            let (centre, bias) = (s.splat(mean), s.splat(self.bias[c]));
            let scale = s.splat(factor * self.weight[c]);
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                // SAFETY: both planes have `n` elements, and `i + count <= n`.
                unsafe {
                    let mut y = s.fma(s.sub(load(s, x.as_ptr().add(i), count), centre), scale, bias);
                    if self.norm.silu {
                        y = Map1::apply(ScaledSwish(1.0), s, y);
                    }
                    store(s, out.as_mut_ptr().add(i), count, y);
                }
            }
        }
        (mean, factor)
    }
}

/// Gradients of [`forward`], from what it returned: `dx` like `x`, `d_weight` and `d_bias (channels)`.
///
/// # Panics
/// The lengths do not fit.
#[allow(clippy::too_many_arguments)] // The operands of the formula.
pub fn backward(
    norm: GroupNorm,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    statistics: &GroupStatistics,
    dy: &[f32],
    dx: &mut [f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    norm.check(x, weight);
    assert!(bias.len() == norm.channels && dy.len() == x.len() && dx.len() == x.len());
    assert!(d_weight.len() == norm.channels && d_bias.len() == norm.channels);
    assert_eq!(statistics.0.len(), norm.batch * norm.groups);
    d_weight.fill(0.0);
    d_bias.fill(0.0);
    let per_group = norm.channels / norm.groups;
    let size = per_group * norm.plane;
    if size == 0 {
        return;
    }
    // Of each plane: the sums of dy * y and of dy, where y is normalised and dy is the gradient before SiLU.
    let mut sums = vec![0.0; norm.batch * norm.channels * 2];
    let (dx, plane_sums) = (Disjoint::new(dx), Disjoint::new(&mut sums));
    threads::run(norm.batch * norm.groups, |group| {
        let first = group % norm.groups * per_group;
        // SAFETY: each group is in one task.
        let (dx, sums) =
            unsafe { (dx.part(group * size, size), plane_sums.part(group * per_group * 2, per_group * 2)) };
        dispatch(Backward {
            norm,
            x: &x[group * size..][..size],
            weight: &weight[first..][..per_group],
            bias: &bias[first..][..per_group],
            statistics: statistics.0[group],
            dy: &dy[group * size..][..size],
            dx,
            sums,
        });
    });
    for sample in sums.chunks_exact(norm.channels * 2) {
        for ((d_weight, d_bias), sums) in d_weight.iter_mut().zip(d_bias.iter_mut()).zip(sample.chunks_exact(2)) {
            *d_weight += sums[0];
            *d_bias += sums[1];
        }
    }
}

struct Backward<'a> {
    norm: GroupNorm,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    statistics: (f32, f32),
    dy: &'a [f32],
    dx: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.norm.plane;
        let (mean, factor) = self.statistics;
        let (mean_v, factor_v) = (s.splat(mean), s.splat(factor));
        let (mut group_gy, mut group_g) = (0.0f64, 0.0f64);
        for (c, (x, dy)) in self.x.chunks_exact(n).zip(self.dy.chunks_exact(n)).enumerate() {
            let (weight, bias) = (s.splat(self.weight[c]), s.splat(self.bias[c]));
            let (mut plane_gy, mut plane_g) = (0.0f64, 0.0f64);
            for (x, dy) in x.chunks(4096).zip(dy.chunks(4096)) {
                let (mut sum_gy, mut sum_g) = (s.splat(0.0), s.splat(0.0));
                for i in (0..x.len()).step_by(S::LANES) {
                    let count = (x.len() - i).min(S::LANES);
                    // SAFETY: both slices have the same length, and `i + count` is at most that.
                    unsafe {
                        let y = s.mul(s.sub(load(s, x.as_ptr().add(i), count), mean_v), factor_v);
                        let mut g = load(s, dy.as_ptr().add(i), count);
                        if self.norm.silu {
                            g = Map2::apply(ScaledSwish(1.0), s, s.fma(y, weight, bias), g);
                        }
                        sum_gy = s.fma(g, y, sum_gy);
                        sum_g = s.add(sum_g, g);
                    }
                }
                plane_gy += f64::from(s.sum(sum_gy));
                plane_g += f64::from(s.sum(sum_g));
            }
            self.sums[2 * c] = plane_gy as f32;
            self.sums[2 * c + 1] = plane_g as f32;
            group_gy += f64::from(self.weight[c]) * plane_gy;
            group_g += f64::from(self.weight[c]) * plane_g;
        }
        let size = self.x.len() as f64;
        let (mean_gy, mean_g) = (s.splat((group_gy / size) as f32), s.splat((group_g / size) as f32));
        for (c, ((x, dy), dx)) in
            self.x.chunks_exact(n).zip(self.dy.chunks_exact(n)).zip(self.dx.chunks_exact_mut(n)).enumerate()
        {
            let (weight, bias) = (s.splat(self.weight[c]), s.splat(self.bias[c]));
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                // SAFETY: all planes have `n` elements, and `i + count <= n`.
                unsafe {
                    let y = s.mul(s.sub(load(s, x.as_ptr().add(i), count), mean_v), factor_v);
                    let mut g = load(s, dy.as_ptr().add(i), count);
                    if self.norm.silu {
                        g = Map2::apply(ScaledSwish(1.0), s, s.fma(y, weight, bias), g);
                    }
                    let difference = s.sub(s.sub(s.mul(g, weight), mean_g), s.mul(y, mean_gy));
                    store(s, dx.as_mut_ptr().add(i), count, s.mul(difference, factor_v));
                }
            }
        }
    }
}
