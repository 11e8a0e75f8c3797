//! One request's work: runs of the sampler over the U-Net.

use super::inputs::Inputs;
use super::pipeline::{Control, Event, Pipeline, tell};
use super::pixels;
use super::request::ImageRequest;
use super::start::{Draws, Start};
use conjure_core::probe::NoProbe;
use conjure_core::sampling::{Guidance, Plan};
use conjure_core::{Result, Tensor};
use conjure_models::stable_diffusion::{Conditions, Prompt};

/// One request with everything that its runs share.
pub(super) struct Job<'a> {
    pub pipeline: &'a Pipeline,
    pub request: &'a ImageRequest,
    pub inputs: &'a Inputs,
    pub seed: u64,
    /// For each picture of the batch; with guidance the negative prompts come first.
    pub words: Prompt,
    pub guidance: Guidance,
}

impl Job<'_> {
    /// Runs the sampler: final latents `(batch, channels, h, w)`. `each` sees the number of steps done and the sample
    /// that the model predicted last.
    pub fn run(
        &self,
        plan: &Plan,
        on_event: &mut dyn FnMut(Event) -> Control,
        each: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let mut draws = Draws::new(self.request.rng, self.seed, self.pipeline.model.device());
        let start = Start::new(self, plan, &mut draws)?;
        let batch = self.request.batch;
        let (height, width) = (self.inputs.height as f32, self.inputs.width as f32);
        let conditions = Conditions {
            prompt: self.words.clone(),
            // Uncropped pictures of the size that is made, as diffusers' SDXL pipeline says by default.
            sizes: self.words.pooled.as_ref().map(|_| [height, width, 0.0, 0.0, height, width]),
            guidance: Some(self.request.guidance),
            inpainting: start.beside,
        };
        let mut denoiser = plan.denoiser(|x: &Tensor, timestep: f64| {
            let output = self.pipeline.model.predict(x, timestep, &conditions, &mut NoProbe)?;
            if !self.guided() {
                return Ok(output);
            }
            // (2 * batch, channels, h, w): without the prompt, with it.
            self.guidance.combine(&output.narrow(0, 0, batch)?, &output.narrow(0, batch, batch)?)
        });

        tell(on_event, Event::Step { step: 0, steps: plan.steps().len() })?;
        plan.run(&mut denoiser, start.x, &mut |shape| draws.later(shape), &mut |progress| {
            let (step, steps) = (progress.step + 1, progress.steps);
            each(step, progress.x0)?;
            if self.request.preview
                && let Some(picture) = pixels::rough(progress.x0)?
            {
                tell(on_event, Event::Preview(picture))?;
            }
            tell(on_event, Event::Step { step, steps })?;
            start.keep.as_ref().map(|keep| keep.restore(plan, progress)).transpose()
        })
    }

    /// Whether the U-Net runs with and without the prompt.
    pub fn guided(&self) -> bool {
        self.pipeline.guided(&self.guidance)
    }

    /// Latents `(1, channels, h, w)` of pixels `(1, 3, height, width)`, scaled as the U-Net takes them; `noise`, of their
    /// shape, picks one from the encoder's distribution.
    pub fn encode(&self, pixels: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let vae = self.pipeline.model.vae();
        let distribution = if self.request.tiled {
            vae.encode_tiled(pixels, vae.tiling())?
        } else {
            vae.encode(pixels, &mut NoProbe)?
        };
        vae.scale_latents(&distribution.sample(noise)?)
    }
}
