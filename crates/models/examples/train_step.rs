//! Training steps of a small model with random weights and data (forward, loss, backward, AdamW): seconds and peak memory,
//! as one JSON line.
//!
//!     cargo run --release -p conjure-models --example train_step -- \
//!         --model autoencoder|unet|transformer [--threads N] [--batch N] [--steps N] [--bf16 1] \
//!         [--channels N,N,..] [--layers N]
//!
//! `tools/peers/train_step.py` runs this beside PyTorch.
#![allow(clippy::print_stdout)] // the report is what this program is for

use candle_core::{CpuStorage, InplaceOp2, Layout};
use conjure_core::probe::NoProbe;
use conjure_core::rng::{self, Generator};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Error, Result, Tensor, Var, ops};
use conjure_kernels::optimizer::{self, AdamW};
use conjure_kernels::precision::{self, Precision};
use conjure_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use conjure_models::clip_text::{ClipText, ClipTextConfig};
use conjure_models::unet_2d_condition::{AddedConditions, UNet2DConditionConfig, UNet2DConditionModel};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A training step up to the loss.
type Loss = Box<dyn Fn() -> Result<Tensor>>;

struct Task {
    params: Params,
    /// Samples in a batch.
    batch: usize,
    loss: Loss,
}

/// Standard normal values, the same in every run.
fn normal(name: &str, shape: &[usize]) -> Result<Tensor> {
    let values = rng::keyed(0, name).normal(shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn trainable() -> Params {
    Params::seeded(0, DType::F32, &Device::Cpu).trainable()
}

/// Pictures of 64x64 to 8 channels of 8x8 and back: mean squared error and a little divergence.
fn autoencoder(options: &Options) -> Result<Task> {
    let channels = options.list("--channels", &[32, 64, 128, 192])?;
    let batch = options.number("--batch", 16)?;
    let config = AutoencoderKlConfig {
        down_block_types: vec!["DownEncoderBlock2D".to_owned(); channels.len()],
        up_block_types: vec!["UpDecoderBlock2D".to_owned(); channels.len()],
        layers_per_block: options.number("--layers", 1)?,
        latent_channels: 8,
        block_out_channels: channels,
        ..AutoencoderKlConfig::default()
    };
    let params = trainable();
    let model = AutoencoderKl::new(&params, &config)?;
    let x = normal("pictures", &[batch, 3, 64, 64])?;
    let noise = normal("noise", &[batch, 8, 8, 8])?;
    let loss = Box::new(move || {
        let posterior = model.encode(&x, &mut NoProbe)?;
        let y = model.decode(&posterior.sample(&noise)?, &mut NoProbe)?;
        let error = (y - &x)?.sqr()?.mean_all()?;
        Ok((error + (posterior.kl()?.mean_all()? * 1e-6)?)?)
    });
    Ok(Task { params, batch, loss })
}

/// The U-Net that comes with Conjure, on noise in latents of 8x8 under a prompt of 32 tokens: mean squared error.
fn unet(options: &Options) -> Result<Task> {
    let batch = options.number("--batch", 32)?;
    let config = UNet2DConditionConfig::from_json(include_str!("../../../models/emoji/unet/config.json"))?;
    let params = trainable();
    let model = UNet2DConditionModel::new(&params, &config)?;
    let channels = config.in_channels;
    let x = normal("latents", &[batch, channels, 8, 8])?;
    let target = normal("target", &[batch, channels, 8, 8])?;
    let prompt = normal("prompt", &[batch, 32, 256])?;
    let timesteps: Vec<f32> = (0..batch).map(|i| (i * 1000 / batch) as f32).collect();
    let timesteps = Tensor::new(timesteps, &Device::Cpu)?;
    let loss = Box::new(move || {
        let y = model.forward(&x, &timesteps, &prompt, &AddedConditions::default(), &mut NoProbe)?;
        Ok((y - &target)?.sqr()?.mean_all()?)
    });
    Ok(Task { params, batch, loss })
}

/// A causal transformer over 256 of 1024 tokens: cross-entropy of the next token.
fn transformer(options: &Options) -> Result<Task> {
    const VOCABULARY: usize = 1024;
    let (batch, time) = (options.number("--batch", 8)?, 256);
    let width = options.list("--channels", &[384])?[0];
    let config = ClipTextConfig {
        vocab_size: VOCABULARY,
        hidden_size: width,
        intermediate_size: 4 * width,
        num_hidden_layers: options.number("--layers", 6)?,
        num_attention_heads: width / 64,
        max_position_embeddings: time,
        architectures: vec!["CLIPTextModel".to_owned()],
        eos_token_id: (VOCABULARY - 1) as u32,
        ..ClipTextConfig::vit_l_14()
    };
    let params = trainable();
    let model = ClipText::new(&params, &config)?;
    let head = conjure_core::blocks::Linear::new(&params.sub("head"), width, VOCABULARY, false)?;
    let ids: Vec<u32> = (0..batch * time).map(|i| (i * 7919 % VOCABULARY) as u32).collect();
    let ids = Tensor::from_vec(ids, (batch, time), &Device::Cpu)?;
    let targets = ids.flatten_all()?.unsqueeze(1)?;
    let loss = Box::new(move || {
        let y = head.forward(&model.forward(&ids, &mut NoProbe)?.last_hidden_state)?;
        let logits = y.reshape((batch * time, VOCABULARY))?;
        let picked = ops::softmax(&logits)?.gather(&targets, 1)?; // (batch * time, 1)
        Ok(picked.log()?.mean_all()?.neg()?)
    });
    Ok(Task { params, batch, loss })
}

/// One step of AdamW on one parameter; the means live here.
struct Update<'a> {
    means: Mutex<&'a mut (Vec<f32>, Vec<f32>)>,
    hyper: AdamW,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        param: &mut CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let mut means = self.means.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (m, v) = &mut **means;
        match (param, layout.contiguous_offsets(), grad, grad_layout.contiguous_offsets()) {
            (CpuStorage::F32(param), Some((from, to)), CpuStorage::F32(grad), Some((grad_from, grad_to))) => {
                optimizer::adamw(&mut param[from..to], &grad[grad_from..grad_to], m, v, self.hyper);
                Ok(())
            }
            _ => candle_core::bail!("a parameter that is not f32 and contiguous"),
        }
    }
}

struct Options(HashMap<String, String>);

impl Options {
    fn number(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.list(name, &[default])?[0])
    }

    fn list(&self, name: &str, default: &[usize]) -> Result<Vec<usize>> {
        let Some(value) = self.0.get(name) else { return Ok(default.to_vec()) };
        value
            .split(',')
            .map(|n| n.parse().map_err(|_| Error::request(format!("{name}: `{n}` is not a number"))))
            .collect()
    }
}

/// Most memory that this process ever held, in bytes; 0 where the system does not say.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn main() -> Result<()> {
    tune_libraries();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = Options(arguments.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect());
    let threads = options.number("--threads", 0)?;
    conjure_kernels::threads::set_count(threads).map_err(|e| Error::failure(e.to_string()))?;
    let task = match options.0.get("--model").map(String::as_str) {
        Some("autoencoder") => autoencoder(&options)?,
        Some("unet") => unet(&options)?,
        Some("transformer") => transformer(&options)?,
        other => return Err(Error::request(format!("--model is {other:?}, not autoencoder, unet or transformer"))),
    };
    let variables: Vec<Var> = task.params.variables().into_values().collect();
    let parameters: usize = variables.iter().map(|v| v.elem_count()).sum();
    let mut means: Vec<(Vec<f32>, Vec<f32>)> =
        variables.iter().map(|v| (vec![0.0; v.elem_count()], vec![0.0; v.elem_count()])).collect();
    let steps = options.number("--steps", 5)?;
    let precision = if options.number("--bf16", 0)? == 0 { Precision::F32 } else { Precision::Bf16 };
    let (mut seconds, mut losses) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    for step in 1..=steps {
        let start = Instant::now();
        let (loss, gradients) = precision::with(precision, || -> Result<_> {
            let loss = (task.loss)()?;
            let gradients = loss.backward()?;
            Ok((loss, gradients))
        })?;
        let norm = variables.iter().filter_map(|v| gradients.get(v)).map(sum_of_squares).sum::<Result<f64>>()?.sqrt();
        let hyper = AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.01,
            step: step as u64,
            grad_scale: (1.0 / norm).min(1.0),
        };
        for (variable, means) in variables.iter().zip(&mut means) {
            if let Some(gradient) = gradients.get(variable) {
                let update = Update { means: Mutex::new(means), hyper };
                variable.inplace_op2(&gradient.contiguous()?, &update)?;
            }
        }
        losses.push(loss.to_scalar::<f32>()?);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    println!(
        r#"{{"parameters":{parameters},"batch":{},"seconds":{seconds:?},"samples_per_second":{:.2},"losses":{losses:?},"peak_rss":{}}}"#,
        task.batch,
        task.batch as f64 / fastest,
        peak_rss()
    );
    Ok(())
}

/// As the command `conjure` does: settings of libraries that can only be made before they are first used.
fn tune_libraries() {
    /// `mi_option_purge_delay` of mimalloc.h, which the bindings have no name for.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // After 10 milliseconds, mimalloc's default, freed memory goes back to the system, and a step that takes longer pays
    // for every page again: a quarter of a training step's time.
    // SAFETY: an option that may be set at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    // The tensor library's own threads wait in a loop for its next addition, on the cores that our kernels compute on.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: this process has no other thread yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}

fn sum_of_squares(gradient: &Tensor) -> Result<f64> {
    Ok(optimizer::sum_of_squares(&gradient.flatten_all()?.to_vec1::<f32>()?))
}
