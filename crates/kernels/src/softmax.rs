//! Softmax over rows.

use crate::exp::exp;
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads;

/// Elements that one task handles, in whole rows.
const CHUNK: usize = 1 << 14;

/// `out` = the softmax of each row of `n` elements of `x`. A row of negative infinities gives NaN, as it does by definition.
///
/// # Panics
/// The lengths do not fit.
pub fn forward(x: &[f32], n: usize, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    if out.is_empty() {
        return;
    }
    assert_eq!(out.len() % n, 0);
    let rows = (CHUNK / n).max(1);
    threads::run_chunks(out, rows * n, |task, piece| {
        dispatch(Forward { x: &x[task * rows * n..][..piece.len()], n, out: piece });
    });
}

/// `dx = y (dy - sum(dy y))` in each row, `y` the result of [`forward`].
///
/// # Panics
/// The lengths do not fit.
pub fn backward(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32]) {
    assert!(y.len() == dx.len() && dy.len() == dx.len());
    if dx.is_empty() {
        return;
    }
    assert_eq!(dx.len() % n, 0);
    let rows = (CHUNK / n).max(1);
    threads::run_chunks(dx, rows * n, |task, piece| {
        let first = task * rows * n;
        dispatch(Backward { y: &y[first..][..piece.len()], dy: &dy[first..][..piece.len()], n, dx: piece });
    });
}

struct Forward<'a> {
    x: &'a [f32],
    n: usize,
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.n;
        let whole = n - n % S::LANES;
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            let mut largest = f32::NEG_INFINITY;
            for x in &x[whole..] {
                largest = largest.max(*x);
            }
            let (x, out) = (x.as_ptr(), out.as_mut_ptr());
            // SAFETY: both rows have `n` elements, and no access goes beyond `n`.
            unsafe {
                let mut m = s.splat(largest);
                for i in (0..whole).step_by(S::LANES) {
                    m = s.max(m, s.load(x.add(i)));
                }
                let m = s.splat(s.largest(m));
                let mut total = s.splat(0.0);
                for i in (0..whole).step_by(S::LANES) {
                    let e = exp(s, s.sub(s.load(x.add(i)), m));
                    total = s.add(total, e);
                    s.store(out.add(i), e);
                }
                let mut total = s.sum(total);
                if whole < n {
                    let count = n - whole;
                    s.store_first(out.add(whole), count, exp(s, s.sub(s.load_first(x.add(whole), count), m)));
                    for i in whole..n {
                        total += *out.add(i);
                    }
                }
                let factor = s.splat(1.0 / total);
                for i in (0..whole).step_by(S::LANES) {
                    s.store(out.add(i), s.mul(s.load(out.add(i)), factor));
                }
                if whole < n {
                    let e = s.load_first(out.add(whole), n - whole);
                    s.store_first(out.add(whole), n - whole, s.mul(e, factor));
                }
            }
        }
    }
}

struct Backward<'a> {
    y: &'a [f32],
    dy: &'a [f32],
    n: usize,
    dx: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.n;
        let whole = n - n % S::LANES;
        for ((y, dy), dx) in self.y.chunks_exact(n).zip(self.dy.chunks_exact(n)).zip(self.dx.chunks_exact_mut(n)) {
            let (y, dy, dx) = (y.as_ptr(), dy.as_ptr(), dx.as_mut_ptr());
            let rest = n - whole;
            // SAFETY: the rows have `n` elements, and no access goes beyond `n`.
            unsafe {
                let mut dot = s.splat(0.0);
                for i in (0..whole).step_by(S::LANES) {
                    dot = s.fma(s.load(y.add(i)), s.load(dy.add(i)), dot);
                }
                if rest > 0 {
                    dot = s.fma(s.load_first(y.add(whole), rest), s.load_first(dy.add(whole), rest), dot);
                }
                let dot = s.splat(s.sum(dot));
                for i in (0..whole).step_by(S::LANES) {
                    s.store(dx.add(i), s.mul(s.load(y.add(i)), s.sub(s.load(dy.add(i)), dot)));
                }
                if rest > 0 {
                    let difference = s.sub(s.load_first(dy.add(whole), rest), dot);
                    s.store_first(dx.add(whole), rest, s.mul(s.load_first(y.add(whole), rest), difference));
                }
            }
        }
    }
}
