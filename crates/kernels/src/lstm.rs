//! One step of a long short-term memory: from what input and state add up to, to the next state.

use crate::disjoint::Disjoint;
use crate::exp::sigmoid;
use crate::moments::{load, store};
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Elements of the state that one task handles, in whole rows.
const CHUNK: usize = 1 << 12;

/// `out`, rows of `h` and `c` with `hidden` elements each, from `state` of the same layout and `raw`, rows of the gates i, f, g
/// and o before their activations:
///
/// ```text
/// c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
/// ```
///
/// Rows that are not `present` keep their state.
///
/// # Panics
/// The lengths do not fit.
pub fn step(raw: &[f32], state: &[f32], hidden: usize, present: Option<&[bool]>, out: &mut [f32]) {
    let rows = checked(raw, state, hidden, present);
    assert_eq!(out.len(), state.len());
    let out = Disjoint::new(out);
    each_part(rows, hidden, |first, rows| {
        for row in first..first + rows {
            // SAFETY: each row is in one part.
            let out = unsafe { out.part(row * 2 * hidden, 2 * hidden) };
            let (raw, state) = (&raw[row * 4 * hidden..][..4 * hidden], &state[row * 2 * hidden..][..2 * hidden]);
            if present.is_none_or(|present| present[row]) {
                dispatch(Forward { raw, c: &state[hidden..], out });
            } else {
                out.copy_from_slice(state);
            }
        }
    });
}

/// Gradients of [`step`] by `raw` and `state`, from `d_out`.
///
/// # Panics
/// The lengths do not fit.
pub fn step_backward(
    raw: &[f32],
    state: &[f32],
    hidden: usize,
    present: Option<&[bool]>,
    d_out: &[f32],
    d_raw: &mut [f32],
    d_state: &mut [f32],
) {
    let rows = checked(raw, state, hidden, present);
    assert!(d_out.len() == state.len() && d_raw.len() == raw.len() && d_state.len() == state.len());
    let (d_raw, d_state) = (Disjoint::new(d_raw), Disjoint::new(d_state));
    each_part(rows, hidden, |first, rows| {
        for row in first..first + rows {
            // SAFETY: each row is in one part.
            let (d_raw, d_state) =
                unsafe { (d_raw.part(row * 4 * hidden, 4 * hidden), d_state.part(row * 2 * hidden, 2 * hidden)) };
            let d_out = &d_out[row * 2 * hidden..][..2 * hidden];
            if present.is_none_or(|present| present[row]) {
                let (raw, state) = (&raw[row * 4 * hidden..][..4 * hidden], &state[row * 2 * hidden..][..2 * hidden]);
                let (d_h, d_c) = d_state.split_at_mut(hidden);
                // The state before counts in `raw` only.
                d_h.fill(0.0);
                dispatch(Backward { raw, c: &state[hidden..], d_out, d_raw, d_c });
            } else {
                d_raw.fill(0.0);
                d_state.copy_from_slice(d_out);
            }
        }
    });
}

fn checked(raw: &[f32], state: &[f32], hidden: usize, present: Option<&[bool]>) -> usize {
    let rows = if hidden == 0 { 0 } else { state.len() / (2 * hidden) };
    assert!(state.len() == rows * 2 * hidden && raw.len() == rows * 4 * hidden);
    assert!(present.is_none_or(|present| present.len() == rows));
    rows
}

/// Calls `work` with the first row and the number of rows of each part.
fn each_part(rows: usize, hidden: usize, work: impl Fn(usize, usize) + Sync + Send) {
    let at_once = (CHUNK / hidden.max(1)).max(1);
    threads::run(rows.div_ceil(at_once), |part| {
        let first = part * at_once;
        work(first, at_once.min(rows - first));
    });
}

/// `tanh x = 2 sigmoid(2 x) - 1`, with an absolute error below 3e-7.
#[inline(always)]
fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let two = s.splat(2.0);
    s.fma(two, sigmoid(s, s.mul(two, x)), s.splat(-1.0))
}

/// The gates i, f, g and o after their activations; `raw` is where those of a row begin, `n` elements each.
///
/// # Safety
/// `raw` is readable for `3 n + count` floats, `count <= LANES`.
#[inline(always)]
unsafe fn gates<S: Simd>(s: S, raw: *const f32, n: usize, count: usize) -> (S::V, S::V, S::V, S::V) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        (
            sigmoid(s, load(s, raw, count)),
            sigmoid(s, load(s, raw.add(n), count)),
            tanh(s, load(s, raw.add(2 * n), count)),
            sigmoid(s, load(s, raw.add(3 * n), count)),
        )
    }
}

struct Forward<'a> {
    raw: &'a [f32],
    c: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.c.len();
        assert!(self.raw.len() == 4 * n && self.out.len() == 2 * n);
        for at in (0..n).step_by(S::LANES) {
            let count = (n - at).min(S::LANES);
            // SAFETY: gates and states have `n` elements each, and `at + count <= n`.
            unsafe {
                let (i, f, g, o) = gates(s, self.raw.as_ptr().add(at), n, count);
                let c = s.fma(f, load(s, self.c.as_ptr().add(at), count), s.mul(i, g));
                let out = self.out.as_mut_ptr().add(at);
                store(s, out, count, s.mul(o, tanh(s, c)));
                store(s, out.add(n), count, c);
            }
        }
    }
}

struct Backward<'a> {
    raw: &'a [f32],
    c: &'a [f32],
    d_out: &'a [f32],
    d_raw: &'a mut [f32],
    d_c: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.c.len();
        assert!(self.raw.len() == 4 * n && self.d_out.len() == 2 * n);
        assert!(self.d_raw.len() == 4 * n && self.d_c.len() == n);
        let one = s.splat(1.0);
        for at in (0..n).step_by(S::LANES) {
            let count = (n - at).min(S::LANES);
            // SAFETY: gates and states have `n` elements each, and `at + count <= n`.
            unsafe {
                let d_out = self.d_out.as_ptr().add(at);
                let before = load(s, self.c.as_ptr().add(at), count);
                let (i, f, g, o) = gates(s, self.raw.as_ptr().add(at), n, count);
                let t = tanh(s, s.fma(f, before, s.mul(i, g)));
                let d_h = load(s, d_out, count);
                // (tanh x)' = 1 - tanh^2 x, (sigmoid x)' = sigmoid x (1 - sigmoid x).
                let d_c = s.fma(s.mul(d_h, o), s.sub(one, s.mul(t, t)), load(s, d_out.add(n), count));
                let d_raw = self.d_raw.as_mut_ptr().add(at);
                store(s, d_raw, count, s.mul(s.mul(d_c, g), s.mul(i, s.sub(one, i))));
                store(s, d_raw.add(n), count, s.mul(s.mul(d_c, before), s.mul(f, s.sub(one, f))));
                store(s, d_raw.add(2 * n), count, s.mul(s.mul(d_c, i), s.sub(one, s.mul(g, g))));
                store(s, d_raw.add(3 * n), count, s.mul(s.mul(d_h, t), s.mul(o, s.sub(one, o))));
                store(s, self.d_c.as_mut_ptr().add(at), count, s.mul(d_c, f));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The equations in f64 on sizes around a vector's width.
    #[test]
    fn a_step_follows_the_equations() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for hidden in [1, 5, 16, 37] {
            let rows = 3;
            let value = |n: usize| ((n * 7919 % 1000) as f32 / 100.0 - 5.0) * 1.3;
            let raw: Vec<f32> = (0..rows * 4 * hidden).map(value).collect();
            let state: Vec<f32> = (0..rows * 2 * hidden).map(|n| value(n + 31)).collect();
            let mut out = vec![f32::NAN; state.len()];
            step(&raw, &state, hidden, Some(&[true, false, true]), &mut out);
            for row in 0..rows {
                for n in 0..hidden {
                    let gate = |k: usize| f64::from(raw[row * 4 * hidden + k * hidden + n]);
                    let (h, c) = (row * 2 * hidden + n, row * 2 * hidden + hidden + n);
                    let next = sigmoid(gate(1)) * f64::from(state[c]) + sigmoid(gate(0)) * gate(2).tanh();
                    let wanted = if row == 1 {
                        [f64::from(state[h]), f64::from(state[c])]
                    } else {
                        [sigmoid(gate(3)) * next.tanh(), next]
                    };
                    for (got, wanted) in [out[h], out[c]].into_iter().zip(wanted) {
                        assert!((f64::from(got) - wanted).abs() < 2e-6, "{got} {wanted}");
                    }
                }
            }
        }
    }
}
