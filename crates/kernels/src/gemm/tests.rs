use super::*;
use crate::precision::{Precision, rounded};
use proptest::prelude::*;

/// Every instruction set that this processor has.
pub(crate) fn levels() -> Vec<Isa> {
    [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|level| *level <= isa()).collect()
}

/// Reproducible values in (-1, 1).
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        })
        .collect()
}

fn naive(m: usize, n: usize, k: usize, a: Matrices, b: Matrices, index: usize) -> Vec<f64> {
    let mut out = vec![0f64; m * n];
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                let x = a.data[a.offsets[index] + i * a.row_stride + p * a.column_stride];
                let y = b.data[b.offsets[index] + p * b.row_stride + j * b.column_stride];
                out[i * n + j] += f64::from(x) * f64::from(y);
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against sums in f64 of the factors, rounded where they are to be; values are below 1, so k products err by less than k times 1e-6.
    #[test]
    fn agrees_with_naive_loops(
        m in 1usize..50, n in 1usize..80, k in 0usize..600, batch in 1usize..3,
        left in 0usize..3, right in 0usize..3, start in 0usize..4, bf16: bool, seed in 0u64..1000,
    ) {
        let strides = |layout: usize, rows: usize, columns: usize| match layout {
            0 => (columns, 1),
            1 => (1, rows),
            _ => (2 * columns + 1, 2),
        };
        let (row_stride, column_stride) = strides(left, m, k);
        let (a_size, b_size) = (m * (2 * k + 1) + 1, k * (2 * n + 1) + 1);
        let a_data = values(a_size * batch, seed);
        let b_data = values(b_size * batch, seed + 1);
        let a_offsets: Vec<usize> = (0..batch).map(|i| i * a_size).collect();
        let b_offsets: Vec<usize> = (0..batch).map(|i| (batch - 1 - i) * b_size).collect();
        let a = Matrices { data: &a_data, offsets: &a_offsets, row_stride, column_stride };
        let (row_stride, column_stride) = strides(right, k, n);
        let b = Matrices { data: &b_data, offsets: &b_offsets, row_stride, column_stride };
        let (row_bias, column_bias, before) = (values(m, 5), values(n, 6), values(batch * m * n, 7));
        let start = [Start::Zero, Start::Rows(&row_bias), Start::Columns(&column_bias), Start::Keep][start];
        let (rounded_a, rounded_b) = (a_data.iter().map(|x| rounded(*x)), b_data.iter().map(|x| rounded(*x)));
        let (rounded_a, rounded_b): (Vec<f32>, Vec<f32>) = (rounded_a.collect(), rounded_b.collect());
        let (precision, want_a, want_b) = if bf16 {
            (Precision::Bf16, Matrices { data: &rounded_a, ..a }, Matrices { data: &rounded_b, ..b })
        } else {
            (Precision::F32, a, b)
        };
        for level in levels() {
            let mut out = before.clone();
            precision::with(precision, || matmul_on(level, m, n, k, a, b, start, &mut out));
            for index in 0..batch {
                let want = naive(m, n, k, want_a, want_b, index);
                for i in 0..m {
                    for j in 0..n {
                        let at = (index * m + i) * n + j;
                        let begin = match start {
                            Start::Zero => 0.0,
                            Start::Rows(bias) => bias[i],
                            Start::Columns(bias) => bias[j],
                            Start::Keep => before[at],
                        };
                        let want = want[i * n + j] + f64::from(begin);
                        prop_assert!((f64::from(out[at]) - want).abs() <= 1e-6 * (k + 1) as f64, "{level:?} {i} {j}");
                    }
                }
            }
        }
    }
}

#[test]
fn empty_products_give_the_start() {
    let mut out = vec![9.0; 6];
    matmul(2, 3, 0, Matrices::row_major(&[], 0), Matrices::row_major(&[], 3), Start::Rows(&[1.0, 2.0]), &mut out);
    assert_eq!(out, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    matmul(0, 3, 2, Matrices::row_major(&[], 2), Matrices::row_major(&[0.0; 6], 3), Start::Zero, &mut []);
}

/// However the output is cut, its bits are the same: blocks of odd sizes against one block.
#[test]
fn the_cut_does_not_change_the_bits() {
    let (m, n, k) = (61, 130, 700);
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let precisions = [Precision::F32, Precision::Bf16];
    for (level, precision) in levels().into_iter().flat_map(|level| precisions.map(|precision| (level, precision))) {
        let micro = Micro::new(level, precision);
        let left = Strided { data: &a, line_stride: k, depth_stride: 1 };
        let right = Strided { data: &b, line_stride: 1, depth_stride: n };
        let run = |tile_m: usize, tile_n: usize| {
            let mut out = vec![0f32; m * n];
            let output = Output::matrix(out.as_mut_ptr(), m, n);
            Grid { m, n, tile_m, tile_n }.run(1, |_, rows, columns| {
                // SAFETY: blocks are disjoint and lie within `out`.
                unsafe { block(&micro, k, &left, &right, Start::Zero, output, rows, columns) };
            });
            out
        };
        let whole = run(m, n);
        for (tile_m, tile_n) in [(7, 130), (61, 33), (13, 17), (1, 1)] {
            assert_eq!(whole, run(tile_m, tile_n), "{level:?} {precision:?} {tile_m} {tile_n}");
        }
    }
}

/// Matrices side by side in columns, at a distance in memory: the same numbers as in one matrix, at their places.
#[test]
fn an_output_may_be_several_matrices() {
    let (m, k, side, count) = (13, 530, 5, 9);
    let n = side * count;
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let left = Strided { data: &a, line_stride: k, depth_stride: 1 };
    let right = Strided { data: &b, line_stride: 1, depth_stride: n };
    for level in levels() {
        let micro = Micro::new(level, Precision::F32);
        let (mut one, mut several) = (vec![0f32; m * n], vec![0f32; m * n]);
        let apart = Output { data: several.as_mut_ptr(), stride: side, rows: m, columns: n, side, next: m * side };
        for output in [Output::matrix(one.as_mut_ptr(), m, n), apart] {
            // SAFETY: the outputs have room for the block.
            unsafe { block(&micro, k, &left, &right, Start::Zero, output, 0..m, 0..n) };
        }
        for (i, value) in several.iter().enumerate() {
            let (matrix, row, column) = (i / (m * side), i / side % m, i % side);
            assert_eq!(*value, one[row * n + matrix * side + column], "{level:?} {i}");
        }
    }
}
