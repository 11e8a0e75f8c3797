//! The exponential and what is made of it: sigmoid and the normal distribution.

use crate::simd::Simd;
use std::f32::consts::LOG2_E;

/// `e^x` with a relative error below 2e-7, for `-87 < x < 88`; 0 or less than 2e-38 below; infinite above 88.8
/// at the latest; NaN stays NaN.
///
/// `e^x = 2^n e^r` with `|r| <= ln 2 / 2`, and a polynomial for `e^r` (the coefficients are those of Moshier's Cephes).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // ln 2 in two parts: the first has few bits, so that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // The constants come first, because min and max return their second operand for NaN.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_LOW), s.fma(n, s.splat(-LN2_HIGH), x));
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    s.scale_by_power(p, n)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// The standard normal distribution at `x`: the probability of a smaller value, and the density.
///
/// `erfc(z) = t P(t) e^(-z^2)` with `t = 1 / (1 + z / 2)` for `z >= 0`; the polynomial `P` was fitted to
/// `e^(z^2) erfc(z) / t` over `z` from 0 to 14 with the least largest relative error, which is 4.4e-8.
#[inline(always)]
pub(crate) fn normal<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const P: [f32; 9] = [
        -0.059_385_44,
        0.286_119_58,
        -0.490_398_47,
        0.281_725_56,
        -0.029_144_099,
        0.203_751_01,
        0.242_835_42,
        0.282_412_08,
        0.282_084_35,
    ];
    let one = s.splat(1.0);
    let z = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(one, s.fma(z, s.splat(0.5), one));
    let mut p = s.splat(P[0]);
    for c in &P[1..] {
        p = s.fma(p, t, s.splat(*c));
    }
    let e = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    let upper_tail = s.mul(s.mul(s.splat(0.5), s.mul(t, p)), e);
    let below = s.select_positive(x, s.sub(one, upper_tail), upper_tail);
    const DENSITY_AT_0: f32 = 0.398_942_3;
    (below, s.mul(e, s.splat(DENSITY_AT_0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elementwise::{Map1, mapped1};

    #[derive(Clone, Copy)]
    struct Exp;

    impl Map1 for Exp {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
            exp(s, x)
        }
    }

    #[derive(Clone, Copy)]
    struct Below;

    impl Map1 for Below {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
            normal(s, x).0
        }
    }

    #[test]
    fn exp_is_accurate_over_its_whole_range() {
        let x: Vec<f32> = (-87_000..88_000).map(|i| i as f32 * 1e-3).collect();
        let y = mapped1(Exp, &x);
        for (x, y) in x.iter().zip(&y) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(*y) - exact).abs() <= 2e-7 * exact, "exp({x}) = {exact}, not {y}");
        }
    }

    #[test]
    fn exp_meets_its_limits() {
        let x = [f32::NEG_INFINITY, -200.0, 0.0, 200.0, f32::INFINITY, f32::NAN];
        let y = mapped1(Exp, &x);
        assert_eq!(y[..5], [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        assert!(y[5].is_nan());
    }

    #[test]
    fn the_normal_distribution_has_its_tabulated_values() {
        let x = [-5.0, -3.0, -1.0, 0.0, 1.0, 2.0];
        let table = [2.866_515_7e-7, 1.349_898_03e-3, 0.158_655_254, 0.5, 0.841_344_746, 0.977_249_868];
        let y = mapped1(Below, &x);
        for (y, exact) in y.iter().zip(table) {
            assert!((f64::from(*y) - exact).abs() <= 2e-6 * exact, "{exact}, not {y}");
        }
    }
}
