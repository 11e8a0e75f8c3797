//! Our matrix product beside the `gemm` crate's, in turn, on the linear layers of Stable Diffusion 1.5's U-Net: medians, as a
//! Markdown table.
//!
//!     cargo run --release -p conjure-kernels --example compare_gemm
#![allow(clippy::print_stdout)] // the table is what this program is for

use conjure_kernels::gemm::{Matrices, Start, matmul};
use conjure_kernels::precision::{self, Precision};
use conjure_kernels::threads;
use std::time::Instant;

const ROUNDS: usize = 15;
/// Rows, outputs, inputs.
const SHAPES: [[usize; 3]; 5] =
    [[4096, 320, 320], [4096, 2560, 320], [1024, 640, 640], [256, 10240, 1280], [77, 320, 768]];

fn seconds(work: &mut dyn FnMut()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!(
        "| m n k | Conjure GFLOP/s | gemm crate GFLOP/s | gemm's time / ours | Conjure in bf16 |\n|---|---|---|---|---|"
    );
    for [m, n, k] in SHAPES {
        let a: Vec<f32> = (0..m * k).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
        let weight: Vec<f32> = (0..n * k).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect(); // (n, k), as a layer stores it
        let (mut ours, mut theirs) = (vec![0f32; m * n], vec![0f32; m * n]);
        let mut run_ours = || {
            let b = Matrices::row_major(&weight, k).transposed();
            matmul(m, n, k, Matrices::row_major(&a, k), b, Start::Zero, &mut ours);
        };
        let mut in_bf16 = vec![0f32; m * n];
        let mut run_bf16 = || {
            let b = Matrices::row_major(&weight, k).transposed();
            let a = Matrices::row_major(&a, k);
            precision::with(Precision::Bf16, || matmul(m, n, k, a, b, Start::Zero, &mut in_bf16));
        };
        let mut run_theirs = || {
            let out = theirs.as_mut_ptr();
            let parallelism = gemm::Parallelism::Rayon(threads::count());
            // SAFETY: the slices have m * k, n * k and m * n elements, and the strides stay within them.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    out,
                    1,
                    n as isize,
                    false,
                    a.as_ptr(),
                    1,
                    k as isize,
                    weight.as_ptr(),
                    k as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        };
        let times: Vec<[f64; 3]> =
            (0..=ROUNDS).map(|_| [seconds(&mut run_ours), seconds(&mut run_theirs), seconds(&mut run_bf16)]).collect();
        let [t, u, v] = [0, 1, 2].map(|side| median(times[1..].iter().map(|pair| pair[side]).collect()));
        let rate = |t: f64| 2.0 * (m * n * k) as f64 / t / 1e9;
        println!("| {m} {n} {k} | {:.0} | {:.0} | {:.2} | {:.0} |", rate(t), rate(u), u / t, rate(v));
        let worst = ours.iter().zip(&theirs).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-2, "the two products differ by {worst}");
    }
}
