//! The pipeline: one request, one run of the sampler over the U-Net.

use super::adapters::Recorded;
use super::inputs::Inputs;
use super::job::Job;
use super::request::{ImageRequest, STRIP_STEPS, Strip};
use super::strip::{self, Captured};
use super::upscale::Upscaler;
use super::words::{self, Tokenizers};
use super::{memory, pixels, random_seed};
use crate::image_file::{Picture, Recipe};
use conjure_core::probe::NoProbe;
use conjure_core::sampling::{Guidance, Plan, SchedulerConfig};
use conjure_core::{Error, Result, Tensor, weights};
use conjure_models::stable_diffusion::{Sources, StableDiffusion, StableDiffusionConfig};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What happens during a run.
#[derive(Debug)]
pub enum Event {
    /// Work on a candidate begins.
    Candidate {
        /// Which, from 0.
        candidate: usize,
        /// Number of candidates.
        of: usize,
    },
    /// What is being done beside the steps, for people.
    Stage(&'static str),
    /// So many of all steps are done; 0 when they begin.
    Step {
        /// Done.
        step: usize,
        /// All.
        steps: usize,
    },
    /// A rough picture of the current state, one pixel for each latent; only if the request wants it.
    Preview(Picture),
}

/// Whether to go on after an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Stop: [`Pipeline::generate`] returns [`Error::Cancelled`].
    Stop,
}

/// A picture and everything needed to make it again.
#[derive(Clone, Debug)]
pub struct Output {
    /// The picture.
    pub picture: Picture,
    /// How to make it again.
    pub recipe: Recipe,
}

/// What a request gave.
pub struct Generation {
    /// One for each picture of the batch.
    pub outputs: Vec<Output>,
    /// The first picture's appearance, if the request wanted it.
    pub strip: Option<Picture>,
    latents: Tensor,
}

impl Generation {
    /// Makes the pictures `factor` times as wide and high, where both are given.
    pub(super) fn enlarge(
        &mut self,
        upscaler: Option<&Upscaler>,
        factor: Option<usize>,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<()> {
        let (Some(upscaler), Some(factor)) = (upscaler, factor) else { return Ok(()) };
        for output in &mut self.outputs {
            tell(on_event, Event::Stage("making the picture larger"))?;
            output.picture = upscaler.enlarge(&output.picture, factor)?;
        }
        Ok(())
    }

    /// Writes the final latents, `(batch, channels, h, w)` as the sampler left them, under the name `latents`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_latents(&self, path: &Path) -> Result<()> {
        weights::save(path, &BTreeMap::from([("latents".to_owned(), self.latents.clone())]), &BTreeMap::new())
    }
}

/// A model that is ready to make pictures.
pub struct Pipeline {
    pub(super) tokenizers: Tokenizers,
    pub(super) model: StableDiffusion,
    pub(super) scheduler: SchedulerConfig,
    pub(super) path: String,
    pub(super) tokenizer_path: Option<PathBuf>,
    pub(super) sources: Sources,
    /// The model's files; `None` for the built-in model.
    pub(super) file: Option<PathBuf>,
    pub(super) digest: OnceLock<String>,
    pub(super) adapters: Recorded,
}

impl Pipeline {
    /// Makes the pictures that `request` asks for. `on_event` is told how far the work is, and can stop it at each step.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::File`] before work begins; [`Error::Cancelled`] when `on_event` says so;
    /// [`Error::Failure`] when a value becomes NaN.
    pub fn generate(&self, request: &ImageRequest, on_event: &mut dyn FnMut(Event) -> Control) -> Result<Generation> {
        let upscaler = self.upscaler(request)?;
        let mut generation = self.draw(request, upscaler.as_ref(), on_event)?;
        generation.enlarge(upscaler.as_ref(), request.upscale, on_event)?;
        Ok(generation)
    }

    /// What the autoencoder makes of a picture. Sides that are no multiple of what a latent stands for become the next smaller one.
    ///
    /// # Errors
    /// A picture smaller than that.
    pub fn reconstruct(&self, picture: &Picture) -> Result<Picture> {
        let vae = self.model.vae();
        let distribution = vae.encode(&pixels::to_tensor(picture, self.model.device())?, &mut NoProbe)?;
        let decoded = vae.decode(&distribution.mean, &mut NoProbe)?;
        Ok(pixels::to_pictures(&decoded.detach())?.swap_remove(0))
    }

    /// Refuses a request that makes no sense to this model, and opens the network that is to make its pictures larger.
    pub(super) fn upscaler(&self, request: &ImageRequest) -> Result<Option<Upscaler>> {
        request.validate()?;
        self.check(request)?;
        let upscaler = request.upscale.map(|_| Upscaler::shipped(self.model.device())).transpose()?;
        if let (Some(upscaler), Some(wanted)) = (&upscaler, &request.upscaler)
            && upscaler.digest() != wanted
        {
            return Err(Error::request("the picture was made larger by another network than the one that is there")
                .with_help(format!("it needs the super-resolution network with the digest {wanted}")));
        }
        Ok(upscaler)
    }

    /// The pictures as the decoder makes them, with the recipe of what they become when `upscaler` makes them larger.
    pub(super) fn draw(
        &self,
        request: &ImageRequest,
        upscaler: Option<&Upscaler>,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Generation> {
        self.work(request, upscaler, on_event).map_err(|error| self.explained(error))
    }

    fn work(
        &self,
        request: &ImageRequest,
        upscaler: Option<&Upscaler>,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Generation> {
        let seed = request.seed.unwrap_or_else(random_seed);

        // 1. What the request names: files, and the model's own choices where it names nothing.
        let vae = &self.model.config().vae;
        let inputs = Inputs::read(
            request,
            usual_size(self.model.config()),
            vae.latent_channels,
            vae.downscale(),
            self.model.device(),
        )?;
        let plan = self.plan(request, request.steps)?;
        let guidance = Guidance::new(request.guidance, request.guidance_rescale)?;
        let size = (inputs.width, inputs.height);
        // A GPU has memory of its own, and says itself when that is full.
        let free = if self.model.device().is_cpu() { crate::memory::free() } else { None };
        memory::check(self.model.config(), request, size, self.guided(&guidance), free)?;

        // 2. Words.
        tell(on_event, Event::Stage("reading the prompt"))?;
        let words = words::embed(&self.model, &self.tokenizers, request, self.guided(&guidance))?;
        let job = Job { pipeline: self, request, inputs: &inputs, seed, words, guidance };
        // Reads the request's files and the model's: now, for they may be gone or changed when the run is done.
        let recipe = job.recipe(&plan, upscaler.map(Upscaler::digest))?;

        // 3. Separate shorter runs, if a strip of these is wanted.
        let mut captured = Vec::new();
        if request.strip == Some(Strip::Runs) {
            for steps in STRIP_STEPS.into_iter().filter(|steps| request.leaves_steps(*steps) && *steps < request.steps)
            {
                let latents = job.run(&self.plan(request, steps)?, on_event, &mut |_, _| Ok(()))?;
                captured.push(Captured { steps, latents: latents.narrow(0, 0, 1)? });
            }
        }

        // 4. The run.
        let latents = job.run(&plan, on_event, &mut |step, x0| {
            if request.strip == Some(Strip::Steps) && STRIP_STEPS.contains(&step) {
                captured.push(Captured { steps: step, latents: x0.narrow(0, 0, 1)?.copy()? });
            }
            Ok(())
        })?;
        if request.strip == Some(Strip::Runs) && (STRIP_STEPS.contains(&request.steps) || captured.is_empty()) {
            captured.push(Captured { steps: request.steps, latents: latents.narrow(0, 0, 1)? });
        }

        // 5. Pixels, one picture at a time: the decoder needs the most memory of all.
        tell(on_event, Event::Stage("decoding"))?;
        let mut outputs = Vec::new();
        for index in 0..request.batch {
            let picture = self.decode(&latents.narrow(0, index, 1)?, request.tiled)?;
            outputs.push(Output { picture, recipe: Recipe { index, ..recipe.clone() } });
        }
        let strip = match request.strip {
            Some(kind) => Some(strip::assemble(kind, &captured, |latents| self.decode(latents, request.tiled))?),
            None => None,
        };
        Ok(Generation { outputs, strip, latents })
    }

    /// A failure of the numbers, with the broken weights named if these are the reason.
    fn explained(&self, error: Error) -> Error {
        if !matches!(error, Error::Failure { .. }) {
            return error;
        }
        for component in ["text_encoder", "text_encoder_2", "unet", "vae"] {
            let Some(source) = self.sources.get(component) else { continue };
            if let Err(broken) = weights::scan_finite(source.as_ref()) {
                return Error::failure(format!("{error}: the weights of the {component} are broken: {broken}"))
                    .with_help("download the model again, or choose another");
            }
        }
        error
    }

    /// Refuses what this model cannot do.
    fn check(&self, request: &ImageRequest) -> Result<()> {
        let config = self.model.config();
        if config.is_inpainting() && request.mask.is_none() {
            return Err(Error::request("this model repaints parts of a picture and needs to know which")
                .with_help("add --init IMAGE and --mask IMAGE, or choose a model for whole pictures"));
        }
        Ok(())
    }

    /// Whether the U-Net runs with and without the prompt. A model that takes the scale as an input runs once.
    pub(super) fn guided(&self, guidance: &Guidance) -> bool {
        guidance.needs_unconditional() && self.model.config().unet.time_cond_proj_dim.is_none()
    }

    fn plan(&self, request: &ImageRequest, steps: usize) -> Result<Plan> {
        let sampler = match request.sampler {
            Some(sampler) => sampler,
            None => self.scheduler.sampler()?,
        };
        let plan = Plan::new(&self.scheduler, sampler, request.schedule, steps)?.with_eta(request.eta)?;
        if request.init.is_some() { plan.from_strength(request.strength()) } else { Ok(plan) }
    }

    /// The picture of latents `(1, channels, h, w)` as the U-Net knows them.
    fn decode(&self, latents: &Tensor, tiled: bool) -> Result<Picture> {
        let vae = self.model.vae();
        let latents = vae.unscale_latents(latents)?;
        let pixels =
            if tiled { vae.decode_tiled(&latents, vae.tiling())? } else { vae.decode(&latents, &mut NoProbe)? };
        let mut pictures = pixels::to_pictures(&pixels)?;
        pictures.pop().ok_or_else(|| Error::failure("the decoder gave no picture"))
    }
}

/// Height and width of latents where a U-Net's config names none: those of Stable Diffusion 1.
const USUAL_SIZE: usize = 64;

/// Tells what happens, and stops if that is the answer.
pub(super) fn tell(on_event: &mut dyn FnMut(Event) -> Control, event: Event) -> Result<()> {
    match on_event(event) {
        Control::Continue => Ok(()),
        Control::Stop => Err(Error::Cancelled),
    }
}

/// Width and height in pixels that the U-Net was trained for.
pub(crate) fn usual_size(config: &StableDiffusionConfig) -> (usize, usize) {
    let latents = |value: &Value| value.as_u64().map(|n| n as usize);
    let (height, width) = match &config.unet.sample_size {
        Some(Value::Array(sides)) => (sides.first().and_then(latents), sides.get(1).and_then(latents)),
        Some(side) => (latents(side), latents(side)),
        None => (None, None),
    };
    let factor = config.vae.downscale();
    (width.unwrap_or(USUAL_SIZE) * factor, height.unwrap_or(USUAL_SIZE) * factor)
}
