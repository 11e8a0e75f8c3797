//! Times operations for `tools/peers/kernels.py`: reads the name of a case from each line of standard input, runs it once
//! and prints the seconds it took. A case is prepared when it is first named. The one argument is the number of threads.
#![allow(clippy::print_stdout, reason = "a tool that answers on standard output")]

use conjure_core::ops::{self, AttentionSpec, Conv2dSpec};
use conjure_core::rng::{self, Generator};
use conjure_core::{Device, Result, Tensor, Var};
use std::collections::HashMap;
use std::io::BufRead;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Run = Box<dyn Fn() -> Result<()>>;

/// The case `name`: its kind, then numbers, separated by blanks.
fn case(name: &str) -> Result<Run> {
    let mut words = name.split_whitespace();
    let kind = words.next().unwrap_or_default();
    let sizes: Vec<usize> = words.filter_map(|word| word.parse().ok()).collect();
    match (kind, sizes.as_slice()) {
        ("conv3x3", [channels, size]) => conv3x3(*channels, *size),
        ("linear", [rows, inputs, outputs]) => linear(*rows, *inputs, *outputs),
        ("train", [batch]) => train(*batch),
        ("attention", [batch, heads, queries, keys, size]) => attention(*batch, *heads, [*queries, *keys], *size),
        ("group_norm_silu", [batch, channels, size]) => group_norm_silu(*batch, *channels, *size),
        ("layer_norm", [rows, features]) => layer_norm(*rows, *features),
        ("gelu", shape) => gelu(shape),
        ("add", shape) => add(shape),
        _ => Err(conjure_core::Error::request(format!("no case '{name}'"))),
    }
}

/// Standard normal values, the same in every run.
fn normal(shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    Ok(Tensor::from_vec(rng::keyed(0, &format!("{shape:?}")).normal(count), shape, &Device::Cpu)?)
}

fn conv3x3(channels: usize, size: usize) -> Result<Run> {
    let x = normal(&[1, channels, size, size])?;
    let weight = normal(&[channels, channels, 3, 3])?;
    let bias = normal(&[channels])?;
    Ok(Box::new(move || ops::conv2d(&x, &weight, Some(&bias), Conv2dSpec::new(1, 1)).map(drop)))
}

fn linear(rows: usize, inputs: usize, outputs: usize) -> Result<Run> {
    let (x, weight, bias) = (normal(&[rows, inputs])?, normal(&[outputs, inputs])?, normal(&[outputs])?);
    Ok(Box::new(move || ops::linear(&x, &weight, Some(&bias)).map(drop)))
}

/// Heads as a layer hands them over: `(batch, time, heads, size)` with time and heads swapped.
fn attention(batch: usize, heads: usize, times: [usize; 2], size: usize) -> Result<Run> {
    let view = |time| -> Result<Tensor> { Ok(normal(&[batch, time, heads, size])?.transpose(1, 2)?) };
    let (q, k, v) = (view(times[0])?, view(times[1])?, view(times[1])?);
    Ok(Box::new(move || ops::attention(&q, &k, &v, AttentionSpec::new(size)).map(drop)))
}

fn group_norm_silu(batch: usize, channels: usize, size: usize) -> Result<Run> {
    let (x, weight) = (normal(&[batch, channels, size, size])?, normal(&[channels])?);
    Ok(Box::new(move || ops::group_norm_silu(&x, &weight, &weight, 32, 1e-5).map(drop)))
}

fn layer_norm(rows: usize, features: usize) -> Result<Run> {
    let (x, weight) = (normal(&[rows, features])?, normal(&[features])?);
    Ok(Box::new(move || ops::layer_norm(&x, &weight, &weight, 1e-5).map(drop)))
}

fn gelu(shape: &[usize]) -> Result<Run> {
    let x = normal(shape)?;
    Ok(Box::new(move || ops::gelu(&x).map(drop)))
}

fn add(shape: &[usize]) -> Result<Run> {
    let x = normal(shape)?;
    Ok(Box::new(move || ops::add(&x, &x).map(drop)))
}

/// Forward and backward through three convolutions, 1 to 32 to 64 to 64 channels at 28 x 28, each followed by SiLU.
fn train(batch: usize) -> Result<Run> {
    let x = normal(&[batch, 1, 28, 28])?;
    let mut layers = Vec::new();
    for channels in [1, 32, 64, 64].windows(2) {
        let weight = (normal(&[channels[1], channels[0], 3, 3])? * 0.05)?;
        layers.push((Var::from_tensor(&weight)?, Var::from_tensor(&normal(&[channels[1]])?)?));
    }
    Ok(Box::new(move || {
        let mut y = x.clone();
        for (weight, bias) in &layers {
            y = ops::silu(&ops::conv2d(&y, weight, Some(bias), Conv2dSpec::new(1, 1))?)?;
        }
        y.sum_all()?.backward()?;
        Ok(())
    }))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).ok_or("usage: bench_ops THREADS")?;
    conjure_kernels::threads::set_count(threads.parse()?)?;
    let mut cases: HashMap<String, Run> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let name = line?;
        if !cases.contains_key(&name) {
            cases.insert(name.clone(), case(&name)?);
        }
        let start = Instant::now();
        cases[&name]()?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
