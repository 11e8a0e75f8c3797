//! What a run starts from: noise, a noisy start picture, and what a mask keeps. The order of random draws is that of
//! diffusers' pipelines, so that the same generator gives the same picture.

use super::inputs::latent_mask;
use super::job::Job;
use conjure_core::rng::{self, Generator, Mode};
use conjure_core::sampling::{Plan, Progress};
use conjure_core::{Device, Result, Shape, Tensor};

/// The random numbers of one picture, in the order in which they are drawn.
pub(super) struct Draws {
    first: Box<dyn Generator>,
    later: Option<Box<dyn Generator>>,
    /// Where the numbers are used; they are drawn on the CPU.
    device: Device,
}

impl Draws {
    /// As `mode` draws for `seed`.
    pub fn new(mode: Mode, seed: u64, device: &Device) -> Self {
        Self { first: rng::generator(mode, seed), later: rng::sampler_generator(mode, seed), device: device.clone() }
    }

    /// Unit noise before the first step.
    pub fn first(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        rng::randn(&mut *self.first, shape, &self.device)
    }

    /// Unit noise that a sampler adds on its way.
    pub fn later(&mut self, shape: &Shape) -> Result<Tensor> {
        rng::randn(&mut **self.later.as_mut().unwrap_or(&mut self.first), shape.clone(), &self.device)
    }
}

/// What a run starts from. All tensors are `(batch, _, h, w)`.
pub(super) struct Start {
    /// The first latents, `x0 + sigma * noise`.
    pub x: Tensor,
    /// For a U-Net of 4 channels: what the mask keeps is put back after each step.
    pub keep: Option<Keep>,
    /// For a U-Net of 9 channels: mask and latents of the masked picture, which it sees beside the noisy latents.
    pub beside: Option<Tensor>,
}

impl Start {
    /// Prepares the first step of `plan`.
    pub fn new(job: &Job<'_>, plan: &Plan, draws: &mut Draws) -> Result<Self> {
        let (request, inputs) = (job.request, job.inputs);
        let sees_mask = job.pipeline.model.config().is_inpainting();
        let (batch, [channels, height, width]) = (request.batch, inputs.latent);
        let encode = |pixels: &Tensor, draws: &mut Draws| {
            let noise = draws.first((1, channels, height, width))?;
            Ok::<_, conjure_core::Error>(job.encode(pixels, &noise)?.repeat((batch, 1, 1, 1))?)
        };
        // With a mask and full strength the start is noise alone; only a U-Net that does not see the masked picture
        // then needs the latents of the whole one.
        let from_noise = inputs.mask.is_some() && request.strength() == 1.0;
        let whole = match &inputs.init {
            Some(init) if !(from_noise && sees_mask) => Some(encode(init, draws)?),
            _ => None,
        };
        let noise = match &inputs.noise {
            Some(noise) => noise.clone(),
            None => draws.first((batch, channels, height, width))?,
        };
        let x = match &whole {
            Some(latents) if !from_noise => plan.noised(latents, &noise)?,
            _ => plan.initial(&noise)?,
        };
        let (Some(init), Some(mask)) = (&inputs.init, &inputs.mask) else {
            return Ok(Self { x, keep: None, beside: None });
        };
        let small = latent_mask(mask, inputs.height / height)?.repeat((batch, 1, 1, 1))?;
        if sees_mask {
            let masked = init.broadcast_mul(&mask.affine(-1.0, 1.0)?)?;
            let masked = encode(&masked, draws)?;
            return Ok(Self { x, keep: None, beside: Some(Tensor::cat(&[small, masked], 1)?) });
        }
        // diffusers encodes the masked picture for every U-Net, though only one of 9 channels sees it: the draw counts.
        draws.first((1, channels, height, width))?;
        Ok(Self { x, keep: whole.map(|latents| Keep { mask: small, latents, noise }), beside: None })
    }
}

/// What a mask keeps of the start picture.
pub(super) struct Keep {
    /// `(batch, 1, h, w)`: 1 where the picture is repainted.
    mask: Tensor,
    latents: Tensor,
    noise: Tensor,
}

impl Keep {
    /// The latents after a step, with the start picture put back where the mask keeps it, at the noise of the next step;
    /// without noise after the last.
    pub fn restore(&self, plan: &Plan, progress: &Progress<'_>) -> Result<Tensor> {
        let preserving = plan.sampler().is_variance_preserving();
        // The start picture in the convention that the sampler keeps its latents in ...
        let kept = match plan.steps().get(progress.step + 1) {
            Some(next) => {
                let noisy = (&self.latents + (&self.noise * next.sigma)?)?;
                if preserving { (noisy / (1.0 + next.sigma * next.sigma).sqrt())? } else { noisy }
            }
            None => self.latents.clone(),
        };
        // ... and in that of `x`.
        let scale = if preserving { (1.0 + progress.sigma * progress.sigma).sqrt() } else { 1.0 };
        let kept = (kept * scale)?.broadcast_mul(&self.mask.affine(-1.0, 1.0)?)?;
        Ok((kept + progress.x.broadcast_mul(&self.mask)?)?)
    }
}
