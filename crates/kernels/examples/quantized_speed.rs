//! Quantised products on the layers of SmolLM2-135M: one token and a prompt of 512, beside this crate's product in f32. The
//! best of many short rounds, because other programs may share the processor, as a Markdown table.
//!
//!     cargo run --release -p conjure-kernels --example quantized_speed [THREADS [FORMAT ...]]
#![allow(clippy::print_stdout)] // the table is what this program is for

use conjure_kernels::gemm::{Matrices, Start, matmul};
use conjure_kernels::quantized::{self, Format};
use conjure_kernels::threads;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Outputs, inputs.
const SHAPES: [[usize; 2]; 5] = [[576, 576], [192, 576], [1536, 576], [576, 1536], [49152, 576]];
/// Another layer's weights each round, as in a model, so that they come from memory: bytes to go through.
const WEIGHTS: usize = 128 << 20;

/// Seconds of the fastest round; at least 20, for at least a fifth of a second.
fn best(mut round: impl FnMut(usize)) -> f64 {
    let (began, mut best, mut count) = (Instant::now(), f64::INFINITY, 0);
    while count < 20 || began.elapsed() < Duration::from_millis(200) && count < 100_000 {
        let start = Instant::now();
        round(count);
        best = best.min(start.elapsed().as_secs_f64());
        count += 1;
    }
    best
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let count = arguments.first().map_or(2, |count| count.parse().expect("the number of threads"));
    threads::set_count(count).expect("threads");
    let chosen = |format: &Format| arguments.len() < 2 || arguments[1..].iter().any(|name| name == format.name());
    println!("{} threads\n\n| format | m n k | µs | GB/s of weights | GFLOP/s | times f32 |", threads::count());
    println!("|---|---|---|---|---|---|");
    for [n, k] in SHAPES {
        for m in [1, 512] {
            if m == 512 && n > 10_000 {
                continue; // logits are made of the last position alone
            }
            let x: Vec<f32> = (0..m * k).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
            let floats: Vec<f32> = (0..n * k).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
            let mut out = vec![0f32; m * n];
            let plain = best(|_| {
                let w = Matrices::row_major(&floats, k).transposed();
                matmul(m, n, k, Matrices::row_major(&x, k), w, Start::Zero, black_box(&mut out));
            });
            for format in Format::ALL.into_iter().filter(chosen) {
                let Some(bytes) = format.bytes_of(n * k).filter(|_| k % format.block() == 0) else { continue };
                let copies = (WEIGHTS / bytes).max(1);
                // f16 of 0x2222 are small numbers.
                let w = vec![0x22u8; copies * bytes];
                let time = best(|round| {
                    let w = &w[round % copies * bytes..][..bytes];
                    quantized::matmul(format, w, n, k, &x, m, black_box(&mut out));
                });
                println!(
                    "| {format} | {m} {n} {k} | {:.1} | {:.1} | {:.0} | {:.1} |",
                    time * 1e6,
                    bytes as f64 / time / 1e9,
                    2.0 * (m * n * k) as f64 / time / 1e9,
                    plain / time
                );
            }
        }
    }
}
