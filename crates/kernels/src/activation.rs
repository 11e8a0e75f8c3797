//! Activation functions and their gradients.

use crate::elementwise::{Map1, Map2, mapped1, mapped2};
use crate::exp::{normal, sigmoid};
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, `Phi` the standard normal distribution; its error is below 1e-6.
    Gelu,
    /// GELU with `tanh(sqrt(2 / pi) (x + 0.044715 x^3))` in place of the error function.
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `x` where it is positive, `0.2 x` elsewhere.
    LeakyRelu,
}

/// `activation(x)`.
pub fn forward(activation: Activation, x: &[f32]) -> Vec<f32> {
    match activation {
        Activation::Silu => mapped1(ScaledSwish(1.0), x),
        Activation::QuickGelu => mapped1(ScaledSwish(1.702), x),
        Activation::Gelu => mapped1(Gelu, x),
        Activation::GeluTanh => mapped1(GeluTanh, x),
        Activation::LeakyRelu => mapped1(LeakyRelu, x),
    }
}

/// `dy activation'(x)`.
///
/// # Panics
/// The lengths differ.
pub fn backward(activation: Activation, x: &[f32], dy: &[f32]) -> Vec<f32> {
    match activation {
        Activation::Silu => mapped2(ScaledSwish(1.0), x, dy),
        Activation::QuickGelu => mapped2(ScaledSwish(1.702), x, dy),
        Activation::Gelu => mapped2(Gelu, x, dy),
        Activation::GeluTanh => mapped2(GeluTanh, x, dy),
        Activation::LeakyRelu => mapped2(LeakyRelu, x, dy),
    }
}

/// `x sigmoid(a x)`.
#[derive(Clone, Copy)]
pub(crate) struct ScaledSwish(pub(crate) f32);

impl Map1 for ScaledSwish {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.mul(x, sigmoid(s, s.mul(x, s.splat(self.0))))
    }
}

impl Map2 for ScaledSwish {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, dy: S::V) -> S::V {
        let one = s.splat(1.0);
        let ax = s.mul(x, s.splat(self.0));
        let g = sigmoid(s, ax);
        // (x g)' = g + a x g (1 - g)
        s.mul(dy, s.mul(g, s.fma(ax, s.sub(one, g), one)))
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Map1 for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.mul(x, normal(s, x).0)
    }
}

impl Map2 for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, dy: S::V) -> S::V {
        let (below, density) = normal(s, x);
        s.mul(dy, s.fma(x, density, below))
    }
}

/// `(1 + tanh u) / 2 = sigmoid(2 u)`, which loses no digits near 0.
#[derive(Clone, Copy)]
struct GeluTanh;

/// `2 sqrt(2 / pi)`.
const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

impl Map1 for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let factor = s.fma(s.mul(x, x), s.splat(CUBIC * TWICE_SQRT_2_OVER_PI), s.splat(TWICE_SQRT_2_OVER_PI));
        s.mul(x, sigmoid(s, s.mul(x, factor)))
    }
}

impl Map2 for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, dy: S::V) -> S::V {
        let (one, square) = (s.splat(1.0), s.mul(x, x));
        let scale = s.splat(TWICE_SQRT_2_OVER_PI);
        let u = s.mul(x, s.fma(square, s.splat(CUBIC * TWICE_SQRT_2_OVER_PI), scale));
        let slope = s.fma(square, s.splat(3.0 * CUBIC * TWICE_SQRT_2_OVER_PI), scale);
        let g = sigmoid(s, u);
        // (x g(u))' = g + x g (1 - g) u'
        s.mul(dy, s.mul(g, s.fma(s.mul(x, slope), s.sub(one, g), one)))
    }
}

/// ReLU with a slope of 0.2 on the left.
#[derive(Clone, Copy)]
struct LeakyRelu;

const LEAK: f32 = 0.2;

impl Map1 for LeakyRelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.max(x, s.mul(x, s.splat(LEAK)))
    }
}

impl Map2 for LeakyRelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V, dy: S::V) -> S::V {
        s.select_positive(x, dy, s.mul(dy, s.splat(LEAK)))
    }
}

/// Rows that one task handles.
fn rows_per_task(features: usize) -> usize {
    (16_384 / features.max(1)).max(1)
}

/// GEGLU: each row of `x` is `n` values and `n` gates; `out` gets `value * gelu(gate)` in rows of `n`.
///
/// # Panics
/// The lengths do not fit.
pub fn geglu(x: &[f32], n: usize, out: &mut [f32]) {
    assert_eq!(x.len(), 2 * out.len());
    if n == 0 {
        return;
    }
    assert_eq!(out.len() % n, 0);
    let rows = rows_per_task(n);
    threads::run_chunks(out, rows * n, |task, piece| {
        for (row, out) in piece.chunks_exact_mut(n).enumerate() {
            let (value, gate) = x[(task * rows + row) * 2 * n..][..2 * n].split_at(n);
            dispatch(GegluRow { value, gate, out });
        }
    });
}

struct GegluRow<'a> {
    value: &'a [f32],
    gate: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for GegluRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.out.len();
        assert!(self.value.len() == n && self.gate.len() == n);
        let (value, gate, out) = (self.value.as_ptr(), self.gate.as_ptr(), self.out.as_mut_ptr());
        let mut i = 0;
        // SAFETY: all slices have `n` elements, and no access goes beyond `n`.
        unsafe {
            while i + S::LANES <= n {
                s.store(out.add(i), s.mul(s.load(value.add(i)), Map1::apply(Gelu, s, s.load(gate.add(i)))));
                i += S::LANES;
            }
            if i < n {
                let (v, g) = (s.load_first(value.add(i), n - i), s.load_first(gate.add(i), n - i));
                s.store_first(out.add(i), n - i, s.mul(v, Map1::apply(Gelu, s, g)));
            }
        }
    }
}

/// Gradient of [`geglu`]: `dx` in rows of `n` values and `n` gates, from `dy` in rows of `n`.
///
/// # Panics
/// The lengths do not fit.
pub fn geglu_backward(x: &[f32], n: usize, dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == 2 * dy.len() && dx.len() == x.len());
    if n == 0 {
        return;
    }
    assert_eq!(dy.len() % n, 0);
    let rows = rows_per_task(2 * n);
    threads::run_chunks(dx, rows * 2 * n, |task, piece| {
        for (row, dx) in piece.chunks_exact_mut(2 * n).enumerate() {
            let row = task * rows + row;
            let (value, gate) = x[row * 2 * n..][..2 * n].split_at(n);
            let (d_value, d_gate) = dx.split_at_mut(n);
            dispatch(GegluRowBackward { value, gate, dy: &dy[row * n..][..n], d_value, d_gate });
        }
    });
}

struct GegluRowBackward<'a> {
    value: &'a [f32],
    gate: &'a [f32],
    dy: &'a [f32],
    d_value: &'a mut [f32],
    d_gate: &'a mut [f32],
}

impl Kernel for GegluRowBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.dy.len();
        assert!(self.value.len() == n && self.gate.len() == n && self.d_value.len() == n && self.d_gate.len() == n);
        let mut i = 0;
        while i < n {
            let count = (n - i).min(S::LANES);
            // SAFETY: all slices have `n` elements, and `i + count <= n`.
            unsafe {
                let full = count == S::LANES;
                let (v, g, dy) = (self.value.as_ptr().add(i), self.gate.as_ptr().add(i), self.dy.as_ptr().add(i));
                let (v, g, dy) = if full {
                    (s.load(v), s.load(g), s.load(dy))
                } else {
                    (s.load_first(v, count), s.load_first(g, count), s.load_first(dy, count))
                };
                let d_value = s.mul(dy, Map1::apply(Gelu, s, g));
                let d_gate = Map2::apply(Gelu, s, g, s.mul(dy, v));
                let (to_value, to_gate) = (self.d_value.as_mut_ptr().add(i), self.d_gate.as_mut_ptr().add(i));
                if full {
                    s.store(to_value, d_value);
                    s.store(to_gate, d_gate);
                } else {
                    s.store_first(to_value, count, d_value);
                    s.store_first(to_gate, count, d_gate);
                }
            }
            i += count;
        }
    }
}
