//! What every training beside a finished picture model shares: the model, the user's pictures as latents, the error.
//!
//! Latents are computed once, when the run begins. What is trained is asked for while the model is built (see
//! [`conjure_core::weights::Params::with_low_rank`]); everything else of the model stays as it is.

use super::denoising_loss::DenoisingLoss;
use super::objective::{Batch, Losses};
use super::pictures::Pictures;
use super::recipe::Recipe;
use crate::data::Split;
use crate::digest::model_digest;
use crate::generate::image::open::{Opened, open_tokenizers, scheduler};
use crate::generate::image::pipeline::usual_size;
use crate::generate::image::pixels::to_pictures;
use crate::generate::image::words::Tokenizers;
use crate::image_file::{Picture, grid};
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::rng::{self, Generator};
use conjure_core::sampling::{Guidance, Plan, SchedulerConfig};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Tensor};
use conjure_models::stable_diffusion::{Conditions, Prompt, Sources, StableDiffusion, StableDiffusionConfig};
use conjure_models::unet_2d_condition::AddedConditions;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Pictures that are encoded or decoded at once.
const CHUNK: usize = 8;
/// Pictures that a validation looks at, and noise levels at which it does.
const VALIDATION: usize = 32;
const LEVELS: usize = 4;
/// Samples where the recipe has no prompts.
const SAMPLES: usize = 4;

/// The table `base` of a recipe for fine-tuning: the picture model and how it is looked at.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Base {
    /// A diffusers folder or a single-file checkpoint.
    pub model: PathBuf,
    /// Folder of a tokenizer, for single files.
    pub tokenizer: Option<PathBuf>,
    /// Share of captions that are replaced by the empty one.
    pub text_drop: f64,
    /// Signal-to-noise ratio from which on noise levels weigh less; 0 for none.
    pub min_snr: f64,
    /// Prompts of the sheet of samples; left out, the words of the first pictures; empty, for no samples.
    pub prompts: Option<Vec<String>>,
    /// Guidance of the samples.
    pub guidance: f64,
    /// Steps of the samples.
    pub sample_steps: usize,
}

impl Default for Base {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            tokenizer: None,
            text_drop: 0.0,
            min_snr: 5.0,
            prompts: None,
            guidance: 7.5,
            sample_steps: 25,
        }
    }
}

/// A picture model before its weights are loaded: what an objective may still change.
pub(super) struct Draft {
    pub config: StableDiffusionConfig,
    pub sources: Sources,
    pub tokenizers: Tokenizers,
}

/// A picture model with the pictures that something beside it is trained on.
pub(super) struct FineTuning {
    base: Base,
    model: StableDiffusion,
    tokenizers: Tokenizers,
    scheduler: SchedulerConfig,
    loss: DenoisingLoss,
    pictures: Pictures,
    /// Means and standard deviations of the latents, `(pictures, channels, h, w)`, scaled as the U-Net takes them.
    mean: Tensor,
    std: Tensor,
    digest: String,
}

impl FineTuning {
    /// Opens the model and the pictures. `draft` may extend the model before it is built; `prepare` is handed each component's
    /// parameters, as by [`StableDiffusion::load_with`].
    ///
    /// # Errors
    /// Settings, a model or data that cannot be used.
    pub fn new(
        recipe: &Recipe,
        device: &Device,
        base: Base,
        draft: impl FnOnce(Draft) -> Result<Draft>,
        prepare: &mut dyn FnMut(&'static str, Params) -> Params,
    ) -> Result<Self> {
        if base.model.as_os_str().is_empty() {
            return Err(Error::request("the recipe names no picture model")
                .with_help("set base.model to a diffusers folder or a single-file checkpoint"));
        }
        if !(0.0..=1.0).contains(&base.text_drop) {
            return Err(Error::request(format!("text_drop is {}, not 0 to 1", base.text_drop)));
        }
        Guidance::new(base.guidance, 0.0)?;
        let Opened { config, sources } = Opened::new(&base.model)?;
        if config.is_inpainting() {
            return Err(Error::file(&base.model, "repaints parts of pictures, and its training needs masks")
                .with_help("train beside the model for whole pictures that it was made from"));
        }
        let factor = config.vae.downscale();
        let mut data = recipe.data.clone();
        if data.size == 0 {
            data.size = usual_size(&config).0;
        }
        if !data.size.is_multiple_of(factor) {
            let message = format!("data.size is {}, not a multiple of {factor}, the model's grid", data.size);
            return Err(Error::request(message).with_help("leave it out for the size that the model was made for"));
        }
        let scheduler = scheduler(&config)?;
        let loss = DenoisingLoss::new(&scheduler, base.min_snr)?;
        Plan::new(&scheduler, scheduler.sampler()?, None, base.sample_steps)?;
        let tokenizers = open_tokenizers(&base.model, base.tokenizer.as_deref(), &config)?;
        let Draft { config, sources, tokenizers } = draft(Draft { config, sources, tokenizers })?;
        let pictures = Pictures::open(&data, recipe.seed)?;
        let model = StableDiffusion::load_with(&config, &sources, DType::F32, device, prepare)?;
        let (mut means, mut stds) = (Vec::new(), Vec::new());
        for chunk in pictures.split(Split::Train).chunks(CHUNK) {
            let distribution = model.vae().encode(&pictures.tensor(chunk, device)?, &mut NoProbe)?;
            // Scaling is affine: the deviation is what the scaled mean moves by.
            let std = (distribution.logvar.detach() * 0.5)?.exp()?;
            let mean = model.vae().scale_latents(&distribution.mean.detach())?;
            let moved = model.vae().scale_latents(&(distribution.mean.detach() + std)?)?;
            stds.push((moved - &mean)?);
            means.push(mean);
        }
        if means.is_empty() {
            return Err(Error::request("there is nothing to train on: the data hold no training example"));
        }
        let digest = format!("{} {}", pictures.digest(), model_digest(&base.model)?);
        let (mean, std) = (Tensor::cat(&means, 0)?, Tensor::cat(&stds, 0)?);
        Ok(Self { base, model, tokenizers, scheduler, loss, pictures, mean, std, digest })
    }

    /// The model.
    pub fn model(&self) -> &StableDiffusion {
        &self.model
    }

    /// Number of pictures.
    pub fn examples(&self) -> usize {
        self.pictures.split(Split::Train).len()
    }

    /// Files that were left out.
    pub fn warnings(&self) -> Vec<String> {
        self.pictures.warnings()
    }

    /// Digest of the pictures and of the model beside which is trained.
    pub fn data_digest(&self) -> String {
        self.digest.clone()
    }

    /// How messages name an example.
    pub fn describe(&self, index: usize) -> String {
        self.pictures.describe(self.pictures.split(Split::Train)[index])
    }

    /// What the user wrote under a picture.
    pub fn caption(&self, index: usize) -> String {
        let labels = &self.pictures.record(self.pictures.split(Split::Train)[index]).labels;
        labels.get("en").or_else(|| labels.values().next()).cloned().unwrap_or_default()
    }

    /// The loss of a micro-batch whose pictures have these captions.
    pub fn losses(&self, batch: &Batch, mut captions: Vec<String>) -> Result<Losses> {
        let n = batch.indices.len();
        let rows: Vec<u32> = batch.indices.iter().map(|&i| i as u32).collect();
        let rows = Tensor::new(rows, self.mean.device())?;
        let mean = self.mean.index_select(&rows, 0)?; // (batch, channels, h, w)
        let std = self.std.index_select(&rows, 0)?;
        let posterior = rng::randn(&mut batch.generator("posterior"), mean.shape(), mean.device())?;
        let z = (mean + (std * posterior)?)?;
        for (caption, draw) in captions.iter_mut().zip(batch.generator("text drop").uniform(n)) {
            if f64::from(draw) < self.base.text_drop {
                caption.clear();
            }
        }
        let words = self.encode(&captions)?;
        let timesteps = self.loss.timesteps(n, f64::from(batch.generator("timesteps").uniform(1)[0]));
        let noise = rng::randn(&mut batch.generator("noise"), z.shape(), z.device())?;
        Ok(Losses::one(self.errors(&z, &noise, &timesteps, &words)?.mean_all()?))
    }

    /// The mean error over fixed noise at evenly spread noise levels: of the training pictures, for a handful has none to
    /// spare. `caption` gives the words of each.
    pub fn fixed_error(&self, caption: impl Fn(usize) -> String) -> Result<f64> {
        let count = self.examples().min(VALIDATION);
        let (mut sum, mut terms) = (0.0, 0);
        for first in (0..count).step_by(CHUNK) {
            let n = CHUNK.min(count - first);
            let z = self.mean.narrow(0, first, n)?;
            let words = self.encode(&(first..first + n).map(&caption).collect::<Vec<_>>())?;
            for level in 0..LEVELS {
                let noise =
                    rng::randn(&mut rng::keyed(0, &format!("validation {first} {level}")), z.shape(), z.device())?;
                let timestep = (2 * level + 1) * self.loss.levels() / (2 * LEVELS);
                let errors = self.errors(&z, &noise, &vec![timestep; n], &words)?.detach();
                sum += f64::from(errors.sum_all()?.to_scalar::<f32>()?);
                terms += n;
            }
        }
        Ok(sum / terms as f64)
    }

    /// A sheet of samples at the recipe's prompts, or at the words of the first pictures where it names none. `caption` gives
    /// the words of each.
    pub fn samples(&self, caption: impl Fn(usize) -> String) -> Result<Option<Picture>> {
        let prompts = match &self.base.prompts {
            Some(prompts) => prompts.clone(),
            None => (0..self.examples().min(SAMPLES)).map(caption).collect(),
        };
        let n = prompts.len();
        if n == 0 {
            return Ok(None);
        }
        let guidance = Guidance::new(self.base.guidance, 0.0)?;
        let plan = Plan::new(&self.scheduler, self.scheduler.sampler()?, None, self.base.sample_steps)?;
        let prompt = self.encode(&vec![String::new(); n])?.cat(&self.encode(&prompts)?)?;
        let sizes = self.sizes(&prompt);
        let conditions = Conditions { prompt, sizes, guidance: Some(self.base.guidance), inpainting: None };
        let shape: Vec<usize> = [&[n], &self.mean.dims()[1..]].concat();
        let mut generator = rng::keyed(0, "samples");
        let start = plan.initial(&rng::randn(&mut generator, shape, self.mean.device())?)?;
        let mut denoiser = plan.denoiser(|x: &Tensor, timestep: f64| {
            let output = self.model.predict(x, timestep, &conditions, &mut NoProbe)?.detach();
            guidance.combine(&output.narrow(0, 0, n)?, &output.narrow(0, n, n)?)
        });
        let latents = plan.run(
            &mut denoiser,
            start,
            &mut |shape| rng::randn(&mut generator, shape.clone(), self.mean.device()),
            &mut |_| Ok(None),
        )?;
        let pictures = (0..n)
            .map(|i| to_pictures(&self.model.decode(&latents.narrow(0, i, 1)?, false, &mut NoProbe)?.detach()))
            .collect::<Result<Vec<_>>>()?;
        grid(&pictures.concat(), 4, 2).map(Some)
    }

    fn encode(&self, texts: &[String]) -> Result<Prompt> {
        let ids = |tokenizer: &crate::tokens::ClipTokenizer| -> Result<Tensor> {
            let ids = texts.iter().map(|text| tokenizer.encode_window(text)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::new(ids, self.mean.device())?) // (batch, tokens)
        };
        let second = self.tokenizers.second.as_ref().map(ids).transpose()?;
        self.model.encode_prompt(&ids(&self.tokenizers.first)?, second.as_ref(), 0, &mut NoProbe)
    }

    /// SDXL: original size, crop and target size of uncropped pictures.
    fn sizes(&self, prompt: &Prompt) -> Option<[f32; 6]> {
        let side = self.pictures.size() as f32;
        prompt.pooled.as_ref().map(|_| [side, side, 0.0, 0.0, side, side])
    }

    fn errors(&self, z: &Tensor, noise: &Tensor, timesteps: &[usize], words: &Prompt) -> Result<Tensor> {
        let mut added = AddedConditions { text_embeds: words.pooled.clone(), ..AddedConditions::default() };
        if let Some(sizes) = self.sizes(words) {
            added.time_ids = Some(Tensor::new(&sizes, z.device())?.broadcast_as((timesteps.len(), 6))?.contiguous()?);
        }
        self.loss.errors(z, noise, timesteps, |noisy, times| {
            self.model.unet().forward(noisy, times, &words.hidden_states, &added, &mut NoProbe)
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image_file::write_png;
    use conjure_core::Var;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// The tiny model that the parity tests use.
    pub fn model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable_diffusion")
    }

    /// A recipe for `objective` on four pictures in `folder`, with further settings in its table.
    pub fn recipe(objective: &str, folder: &Path, settings: &str) -> Recipe {
        for (name, rgb) in
            [("red", [230, 20, 30]), ("green", [20, 200, 40]), ("blue", [10, 30, 220]), ("grey", [128; 3])]
        {
            let mut picture = Picture::filled(64, 64, rgb);
            picture.rgb[..64 * 3 * 20].fill(255);
            write_png(&folder.join(format!("{name}.png")), &picture, None).unwrap();
            std::fs::write(folder.join(format!("{name}.txt")), format!("a {name} heart")).unwrap();
        }
        let text = format!(
            "objective = \"{objective}\"\nsteps = 30\nbatch = 4\nseed = 3\n[data]\nfolder = {folder:?}\nsize = 64\n\
             [optimizer]\nlearning_rate = 1e-2\nweight_decay = 0.0\n[report]\nvalidate = 1\nsamples = 0\n\
             [{objective}]\n{settings}\n[{objective}.base]\nmodel = {:?}\nmin_snr = 0.0\nsample_steps = 3\n\
             prompts = [\"a red heart\"]\n",
            model()
        );
        Recipe::parse(&text, &[]).unwrap()
    }

    /// Draws every variable anew, so that no factor is zero.
    pub fn shake(variables: &BTreeMap<String, Var>) {
        for (name, variable) in variables {
            let drawn = rng::randn(&mut rng::keyed(5, name), variable.shape(), &Device::Cpu).unwrap();
            variable.set(&(drawn * 0.2).unwrap()).unwrap();
        }
    }

    /// Every variable gets a finite gradient that is not zero from one micro-batch of `objective`.
    pub fn check_gradients(objective: &mut dyn super::super::Objective) {
        shake(&objective.networks()[0].variables);
        let losses = objective.losses(&Batch { indices: &[0, 1, 2, 3], step: 0, micro: 0, seed: 1 }).unwrap();
        let gradients = losses.terms[0].1.backward().unwrap();
        for (name, variable) in &objective.networks()[0].variables {
            let gradient = gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size.is_finite() && size > 0.0, "{name}: {size}");
        }
    }
}
