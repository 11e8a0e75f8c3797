//! Nearest-neighbour upsampling and its gradient.

use crate::threads;

/// From `(planes, from[0], from[1])` to `(planes, to[0], to[1])`: output row `i` shows input row `i * from[0] / to[0]`,
/// rounded down, and columns likewise.
///
/// # Panics
/// A slice's length does not fit its shape.
pub fn nearest(planes: usize, from: [usize; 2], to: [usize; 2], x: &[f32], y: &mut [f32]) {
    assert_eq!((x.len(), y.len()), (planes * from[0] * from[1], planes * to[0] * to[1]), "upsample: lengths");
    if y.is_empty() {
        return;
    }
    let columns: Vec<usize> = (0..to[1]).map(|j| j * from[1] / to[1]).collect();
    threads::run_chunks(y, to[0] * to[1], |plane, y| {
        let x = &x[plane * from[0] * from[1]..][..from[0] * from[1]];
        for i in 0..to[0] {
            let row = i * from[0] / to[0];
            let (above, rest) = y.split_at_mut(i * to[1]);
            let out = &mut rest[..to[1]];
            if i > 0 && row == (i - 1) * from[0] / to[0] {
                out.copy_from_slice(&above[(i - 1) * to[1]..]);
            } else {
                let x = &x[row * from[1]..][..from[1]];
                for (out, column) in out.iter_mut().zip(&columns) {
                    *out = x[*column];
                }
            }
        }
    });
}

/// The gradient of [`nearest`]: each input element's gradient is the sum over the outputs that show it.
///
/// # Panics
/// A slice's length does not fit its shape.
pub fn nearest_gradient(planes: usize, from: [usize; 2], to: [usize; 2], gy: &[f32], gx: &mut [f32]) {
    assert_eq!((gx.len(), gy.len()), (planes * from[0] * from[1], planes * to[0] * to[1]), "upsample: lengths");
    if gx.is_empty() {
        return;
    }
    let columns: Vec<usize> = (0..to[1]).map(|j| j * from[1] / to[1]).collect();
    threads::run_chunks(gx, from[0] * from[1], |plane, gx| {
        gx.fill(0.0);
        let gy = &gy[plane * to[0] * to[1]..][..to[0] * to[1]];
        for (i, gy) in gy.chunks_exact(to[1].max(1)).enumerate() {
            let gx = &mut gx[i * from[0] / to[0] * from[1]..][..from[1]];
            for (gy, column) in gy.iter().zip(&columns) {
                gx[*column] += gy;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_repeat() {
        let mut y = [0.0; 15];
        nearest(1, [2, 2], [3, 5], &[1.0, 2.0, 3.0, 4.0], &mut y);
        assert_eq!(y, [1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0]);
    }

    #[test]
    fn gradients_add_up() {
        let mut gx = [0.0; 4];
        let gy: Vec<f32> = (1..=15).map(|i| i as f32).collect();
        nearest_gradient(1, [2, 2], [3, 5], &gy, &mut gx);
        assert_eq!(gx, [27.0, 28.0, 36.0, 29.0]);
    }

    #[test]
    fn shrinking_leaves_gaps_without_gradient() {
        let mut y = [0.0; 2];
        nearest(1, [1, 4], [1, 2], &[1.0, 2.0, 3.0, 4.0], &mut y);
        assert_eq!(y, [1.0, 3.0]);
        let mut gx = [9.0; 4];
        nearest_gradient(1, [1, 4], [1, 2], &[5.0, 6.0], &mut gx);
        assert_eq!(gx, [5.0, 0.0, 6.0, 0.0]);
    }
}
