//! Times attention, norms and activations at Stable Diffusion's sizes; one JSON object a line, for
//! `tools/peers/attention.py`, which times PyTorch beside it. The argument is the number of threads.
#![allow(clippy::print_stdout)]

use conjure_core::ops::{self, AttentionSpec};
use conjure_core::{Device, Result, Tensor};
use std::time::Instant;

const REPEATS: usize = 7;

fn numbers(shape: &[usize]) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let mut state = 1u32;
    let data: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// Prints the shortest of some runs, in milliseconds.
fn time(name: &str, mut run: impl FnMut() -> Result<Tensor>) -> Result<()> {
    let mut best = f64::MAX;
    for _ in 0..REPEATS {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{{\"case\": \"{name}\", \"ms\": {:.3}}}", best * 1e3);
    Ok(())
}

fn attention(batch: usize, heads: usize, t: usize, s: usize, dim: usize) -> Result<()> {
    let view = |time| -> Result<Tensor> { Ok(numbers(&[batch, time, heads, dim])?.transpose(1, 2)?) };
    let (q, k, v) = (view(t)?, view(s)?, view(s)?);
    let name = format!("attention {batch} {heads} {t} {s} {dim}");
    time(&name, || ops::attention(&q, &k, &v, AttentionSpec::new(dim)))
}

fn group_norm_silu(batch: usize, channels: usize, side: usize) -> Result<()> {
    let (x, weight) = (numbers(&[batch, channels, side, side])?, numbers(&[channels])?);
    let name = format!("group_norm_silu {batch} {channels} {side}");
    time(&name, || ops::group_norm_silu(&x, &weight, &weight, 32, 1e-5))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |count| count.parse())?;
    conjure_kernels::threads::set_count(threads)?;
    attention(1, 8, 4096, 4096, 40)?;
    attention(2, 8, 1024, 1024, 80)?;
    attention(2, 8, 256, 256, 160)?;
    attention(1, 10, 4096, 4096, 64)?;
    attention(1, 1, 4096, 4096, 512)?;
    attention(2, 8, 4096, 77, 40)?;
    group_norm_silu(2, 320, 64)?;
    group_norm_silu(2, 1280, 16)?;
    group_norm_silu(1, 128, 512)?;
    let (x, weight) = (numbers(&[2, 4096, 320])?, numbers(&[320])?);
    time("layer_norm 2 4096 320", || ops::layer_norm(&x, &weight, &weight, 1e-5))?;
    let x = numbers(&[2, 4096, 1280])?;
    time("gelu 2 4096 1280", || ops::gelu(&x))?;
    let x = numbers(&[2, 320, 64, 64])?;
    time("add 2 320 64", || ops::add(&x, &x))?;
    Ok(())
}
