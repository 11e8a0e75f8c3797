//! One step of Stable Diffusion 1.5's U-Net at full size with random weights: seconds and peak memory, as one JSON line.
//!
//!     cargo run --release -p conjure-models --example unet_step -- [BATCH] [LATENT_SIZE] [STEPS]
//!
//! Defaults: batch 2 (both halves of guidance), latent size 64 (512x512 pixels), 3 steps of which the fastest counts.
//! `tools/peers/unet_step.py` runs this beside PyTorch.
#![allow(clippy::print_stdout)] // the report is what this program is for

use conjure_core::probe::NoProbe;
use conjure_core::rng::{self, Generator};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Result, Tensor};
use conjure_models::unet_2d_condition::{AddedConditions, UNet2DConditionConfig, UNet2DConditionModel};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn normal(name: &str, shape: &[usize]) -> Result<Tensor> {
    let values = rng::keyed(0, name).normal(shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Most memory that this process ever held, in bytes; 0 where the system does not say.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<usize>().ok());
    let mut argument = |default: usize| arguments.next().flatten().unwrap_or(default);
    let (batch, size, steps) = (argument(2), argument(64), argument(3));

    let config = UNet2DConditionConfig::sd15();
    let params = Params::seeded(0, DType::F32, &Device::Cpu);
    let model = UNet2DConditionModel::new(&params, &config)?;
    let parameters: usize = params.asked().iter().map(|p| p.shape.elem_count()).sum();

    let sample = normal("sample", &[batch, config.in_channels, size, size])?;
    let prompt = normal("prompt", &[batch, 77, config.context_features()?])?;
    let timesteps = Tensor::new(&[500f32], &Device::Cpu)?;
    let mut seconds = Vec::with_capacity(steps);
    for _ in 0..steps {
        let start = Instant::now();
        let y = model.forward(&sample, &timesteps, &prompt, &AddedConditions::default(), &mut NoProbe)?;
        // Read the result, so that nothing can be left undone.
        let sum = y.sqr()?.sum_all()?.to_scalar::<f32>()?;
        assert!(sum.is_finite() && sum > 0.0, "the output's squared norm is {sum}");
        seconds.push(start.elapsed().as_secs_f64());
    }
    println!(
        r#"{{"parameters":{parameters},"batch":{batch},"latent":{size},"seconds":{seconds:?},"peak_rss":{}}}"#,
        peak_rss()
    );
    Ok(())
}
