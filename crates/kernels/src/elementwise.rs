//! Functions of each element, and sums of tensors, on several threads once a tensor is worth it.

use crate::simd::{Kernel, Simd, dispatch};
use crate::{fresh, moments, threads};
use std::mem::MaybeUninit;

/// Elements that one task handles: large enough that waking a thread pays.
const CHUNK: usize = 1 << 14;

/// A function of one vector.
pub(crate) trait Map1: Copy + Send + Sync {
    /// The function; implementations are `#[inline(always)]`.
    fn apply<S: Simd>(self, simd: S, x: S::V) -> S::V;
}

/// A function of two vectors.
pub(crate) trait Map2: Copy + Send + Sync {
    /// The function; implementations are `#[inline(always)]`.
    fn apply<S: Simd>(self, simd: S, a: S::V, b: S::V) -> S::V;
}

struct Run1<'a, F> {
    f: F,
    x: &'a [f32],
    out: &'a mut [MaybeUninit<f32>],
}

impl<F: Map1> Kernel for Run1<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.x.len(), self.out.len());
        let (n, x, out) = (self.out.len(), self.x.as_ptr(), self.out.as_mut_ptr().cast::<f32>());
        let mut i = 0;
        // SAFETY: both slices have `n` elements, and no access goes beyond `n`.
        unsafe {
            while i + S::LANES <= n {
                s.store(out.add(i), self.f.apply(s, s.load(x.add(i))));
                i += S::LANES;
            }
            if i < n {
                s.store_first(out.add(i), n - i, self.f.apply(s, s.load_first(x.add(i), n - i)));
            }
        }
    }
}

struct Run2<'a, F> {
    f: F,
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [MaybeUninit<f32>],
}

impl<F: Map2> Kernel for Run2<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.a.len() == self.out.len() && self.b.len() == self.out.len());
        let (n, a, b, out) = (self.out.len(), self.a.as_ptr(), self.b.as_ptr(), self.out.as_mut_ptr().cast::<f32>());
        let mut i = 0;
        // SAFETY: all three slices have `n` elements, and no access goes beyond `n`.
        unsafe {
            while i + S::LANES <= n {
                s.store(out.add(i), self.f.apply(s, s.load(a.add(i)), s.load(b.add(i))));
                i += S::LANES;
            }
            if i < n {
                let (x, y) = (s.load_first(a.add(i), n - i), s.load_first(b.add(i), n - i));
                s.store_first(out.add(i), n - i, self.f.apply(s, x, y));
            }
        }
    }
}

/// Initialised floats, to be overwritten.
fn overwritten(out: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the same layout; the kernels of this file only ever write initialised floats.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) }
}

/// `out[i] = f(x[i])` on this thread.
pub(crate) fn map1_here<F: Map1>(f: F, x: &[f32], out: &mut [f32]) {
    dispatch(Run1 { f, x, out: overwritten(out) });
}

fn run1<F: Map1>(f: F, x: &[f32], out: &mut [MaybeUninit<f32>]) {
    threads::run_chunks(out, CHUNK, |i, out| dispatch(Run1 { f, x: &x[i * CHUNK..][..out.len()], out }));
}

fn run2<F: Map2>(f: F, a: &[f32], b: &[f32], out: &mut [MaybeUninit<f32>]) {
    threads::run_chunks(out, CHUNK, |i, out| {
        let (a, b) = (&a[i * CHUNK..][..out.len()], &b[i * CHUNK..][..out.len()]);
        dispatch(Run2 { f, a, b, out });
    });
}

/// `f(x[i])`, in a new buffer.
pub(crate) fn mapped1<F: Map1>(f: F, x: &[f32]) -> Vec<f32> {
    // SAFETY: the chunks are the whole buffer, and each is written whole.
    unsafe { fresh::written(x.len(), |out| run1(f, x, out)) }
}

/// `f(a[i], b[i])`, in a new buffer.
pub(crate) fn mapped2<F: Map2>(f: F, a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len());
    // SAFETY: as in `mapped1`.
    unsafe { fresh::written(a.len(), |out| run2(f, a, b, out)) }
}

#[derive(Clone, Copy)]
struct Sum;

impl Map2 for Sum {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V {
        s.add(a, b)
    }
}

#[derive(Clone, Copy)]
struct AddConstant(f32);

impl Map1 for AddConstant {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.add(x, s.splat(self.0))
    }
}

/// `a + b`, both of one length.
///
/// # Panics
/// The lengths differ.
pub fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    mapped2(Sum, a, b)
}

/// `out[c] = x[c] + bias[c]` for each plane `c` of `plane` elements; `x` has `bias.len()` planes.
///
/// # Panics
/// The lengths do not fit.
pub fn add_to_planes(x: &[f32], bias: &[f32], plane: usize, out: &mut [f32]) {
    assert!(x.len() == bias.len() * plane && out.len() == x.len());
    if plane == 0 {
        return;
    }
    let planes = (CHUNK / plane).max(1);
    threads::run_chunks(out, planes * plane, |i, pieces| {
        for (j, piece) in pieces.chunks_mut(plane).enumerate() {
            let c = i * planes + j;
            map1_here(AddConstant(bias[c]), &x[c * plane..][..plane], piece);
        }
    });
}

struct SumOf<'a>(&'a [f32]);

impl Kernel for SumOf<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        moments::sum(s, self.0)
    }
}

/// `out[c]` = the sum of plane `c` of `plane` elements of `x`: the gradient of [`add_to_planes`] for `bias`.
///
/// # Panics
/// The lengths do not fit.
pub fn sum_planes(x: &[f32], plane: usize, out: &mut [f32]) {
    assert_eq!(x.len(), out.len() * plane);
    let planes = (CHUNK / plane.max(1)).max(1);
    threads::run_chunks(out, planes, |i, sums| {
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = dispatch(SumOf(&x[(i * planes + j) * plane..][..plane])) as f32;
        }
    });
}

/// `out[j]` = the sum of column `j` of `x (rows, out.len())`: the gradient of a bias.
///
/// # Panics
/// The lengths do not fit.
pub fn sum_rows(x: &[f32], out: &mut [f32]) {
    const COLUMNS: usize = 64; // of a task
    const ROWS: usize = 256; // summed before they are added to the total
    let n = out.len();
    assert!(n > 0 && x.len().is_multiple_of(n) || x.is_empty());
    threads::run_chunks(out, COLUMNS, |task, out| {
        let (first, count) = (task * COLUMNS, out.len());
        out.fill(0.0);
        for rows in x.chunks(ROWS * n) {
            let mut sums = [0f32; COLUMNS];
            for row in rows.chunks_exact(n) {
                for (sum, x) in sums.iter_mut().zip(&row[first..first + count]) {
                    *sum += x;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += sum;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_summed_over_many_rows() {
        let (rows, n) = (700, 131);
        let x: Vec<f32> = (0..rows * n).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut out = vec![9.0; n];
        sum_rows(&x, &mut out);
        for (j, got) in out.iter().enumerate() {
            // Sums of small integers are exact.
            assert_eq!(*got, (0..rows).map(|i| x[i * n + j]).sum::<f32>());
        }
        sum_rows(&[], &mut out);
        assert_eq!(out, vec![0.0; n]);
    }
}
