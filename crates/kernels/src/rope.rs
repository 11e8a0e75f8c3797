//! Rotary position embedding.

use crate::threads;

/// Which elements of a row are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `i` with `i + dim / 2`.
    Halves,
    /// `2 i` with `2 i + 1`.
    Interleaved,
}

/// Rotates `x (sequences, time, dim)` by the angles with cosines `cos` and sines `sin`, both `(time, dim / 2)`; backwards
/// where `inverse`, which is the gradient.
///
/// # Panics
/// The lengths do not fit.
pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], dim: usize, pairs: Pairs, inverse: bool, out: &mut [f32]) {
    assert!(x.len() == out.len() && cos.len() == sin.len());
    if out.is_empty() {
        return;
    }
    assert!(dim >= 2 && dim.is_multiple_of(2), "rows of {dim} elements have no pairs");
    let half = dim / 2;
    let time = cos.len() / half;
    assert!(cos.len() == time * half && x.len().is_multiple_of(time * dim));
    let sign = if inverse { -1.0 } else { 1.0 };
    let rows = (16_384 / dim).max(1);
    threads::run_chunks(out, rows * dim, |task, piece| {
        for (i, out) in piece.chunks_exact_mut(dim).enumerate() {
            let row = task * rows + i;
            let x = &x[row * dim..][..dim];
            let at = row % time * half;
            let angles = cos[at..][..half].iter().zip(&sin[at..][..half]).map(|(cos, sin)| (*cos, sign * sin));
            match pairs {
                Pairs::Halves => {
                    let ((a, b), (to_a, to_b)) = (x.split_at(half), out.split_at_mut(half));
                    let places = a.iter().zip(b).zip(to_a.iter_mut().zip(to_b));
                    for (((a, b), (to_a, to_b)), (cos, sin)) in places.zip(angles) {
                        *to_a = a * cos - b * sin;
                        *to_b = a * sin + b * cos;
                    }
                }
                Pairs::Interleaved => {
                    for ((pair, to), (cos, sin)) in x.chunks_exact(2).zip(out.chunks_exact_mut(2)).zip(angles) {
                        to[0] = pair[0] * cos - pair[1] * sin;
                        to[1] = pair[0] * sin + pair[1] * cos;
                    }
                }
            }
        }
    });
}
