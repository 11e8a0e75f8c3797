//! Training of the U-Net of latent diffusion on words (Rombach et al. 2022, section 3.3 and equation 3), with the weighting of
//! "Efficient Diffusion Training via Min-SNR Weighting Strategy", Hang et al. 2023, <https://arxiv.org/abs/2303.09556>.
//!
//! Latents are computed once, when the run begins; autoencoder and text encoder stay as they are.

use super::denoising_loss::DenoisingLoss;
use super::objective::{Batch, Losses, Network, Objective};
use super::pictures::Pictures;
use super::recipe::Recipe;
use crate::data::{Split, caption::Caption, spread};
use crate::digest::{combined, model_digest};
use crate::generate::image::pixels::to_pictures;
use crate::image_file::{Picture, grid};
use crate::model_folder::{self, DIFFUSERS_FILE, TRANSFORMERS_FILE, half};
use crate::tokens::ClipTokenizer;
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::rng::{self, Generator};
use conjure_core::sampling::{Guidance, Plan, SchedulerConfig};
use conjure_core::weights::Params;
use conjure_core::{Device, Tensor, inside};
use conjure_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use conjure_models::clip_text::ClipText;
use conjure_models::unet_2d_condition::{AddedConditions, UNet2DConditionConfig, UNet2DConditionModel};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Pictures that are encoded or decoded at once.
const CHUNK: usize = 32;
/// Held-out pictures that a validation looks at, and noise levels at which it does.
const VALIDATION: usize = 128;
const LEVELS: usize = 8;

/// The table `[latent_diffusion]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The U-Net, in the words of diffusers' `config.json`.
    pub model: UNet2DConditionConfig,
    /// The noise process and the sampler, in the words of diffusers' `scheduler_config.json`.
    pub scheduler: Value,
    /// Folder of the autoencoder.
    pub autoencoder: PathBuf,
    /// Folder that holds `text_encoder/` and `tokenizer/`.
    pub text: PathBuf,
    /// Factor on the learning rate for the text encoder, which is trained along: Rombach et al. 2022 optimise both together
    /// (equation 3). 0 leaves it as it is, as Stable Diffusion does.
    pub text_rate: f64,
    /// Folder of a U-Net to begin with instead of random weights.
    pub start: Option<PathBuf>,
    /// Languages of the captions; all that a picture has if empty.
    pub languages: Vec<String>,
    /// Share of captions that are replaced by the empty one, so that the model also learns to go without (Ho & Salimans 2022).
    pub text_drop: f64,
    /// Signal-to-noise ratio from which on noise levels weigh less (Hang et al. 2023, equation 8: gamma); 0 for none.
    pub min_snr: f64,
    /// Prompts of the sheet of samples.
    pub prompts: Vec<String>,
    /// Guidance of the samples.
    pub guidance: f64,
    /// Steps of the samples.
    pub sample_steps: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: UNet2DConditionConfig::default(),
            scheduler: json!({}),
            autoencoder: PathBuf::new(),
            text: PathBuf::new(),
            text_rate: 0.0,
            start: None,
            languages: Vec::new(),
            text_drop: 0.1,
            min_snr: 5.0,
            prompts: Vec::new(),
            guidance: 3.0,
            sample_steps: 20,
        }
    }
}

/// Means and standard deviations of the latents of some pictures, scaled as the U-Net takes them.
struct Latents {
    mean: Tensor,
    std: Tensor,
}

/// The U-Net with what it is trained on.
pub struct LatentDiffusion {
    settings: Settings,
    scheduler: SchedulerConfig,
    loss: DenoisingLoss,
    unet: UNet2DConditionModel,
    params: Params,
    networks: Vec<Network>,
    autoencoder: AutoencoderKl,
    text_encoder: ClipText,
    text_params: Params,
    tokenizer: ClipTokenizer,
    pictures: Pictures,
    train: Latents,
    held_out: Vec<usize>,
    held_out_latents: Option<Latents>,
    device: Device,
    digest: String,
}

impl LatentDiffusion {
    /// What the recipe describes, with the latents of all pictures computed.
    ///
    /// # Errors
    /// Settings, models or data that cannot be used or do not fit each other.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        let device = recipe.device.open()?;
        settings.model.check()?;
        if !(0.0..=1.0).contains(&settings.text_drop) {
            return Err(Error::request(format!("text_drop is {}, not 0 to 1", settings.text_drop)));
        }
        if !(0.0..=10.0).contains(&settings.text_rate) {
            return Err(Error::request(format!("text_rate is {}, not 0 to 10", settings.text_rate)));
        }
        Guidance::new(settings.guidance, 0.0)?;
        let scheduler = SchedulerConfig::from_json(&settings.scheduler.to_string())?;
        Plan::new(&scheduler, scheduler.sampler()?, None, settings.sample_steps)?;
        let loss = DenoisingLoss::new(&scheduler, settings.min_snr)?;

        let autoencoder_config = model_folder::config(&settings.autoencoder, AutoencoderKlConfig::from_json)?;
        let text_folder = settings.text.join("text_encoder");
        let (text_config, text_params) = model_folder::open_clip_text(&text_folder, &device)?;
        let text_params = if settings.text_rate > 0.0 { text_params.trainable() } else { text_params };
        let tokenizer = ClipTokenizer::load(&settings.text.join("tokenizer"))?;
        if settings.model.in_channels != autoencoder_config.latent_channels
            || settings.model.out_channels != autoencoder_config.latent_channels
        {
            return Err(Error::request(format!(
                "the U-Net takes {} channels and gives {}, but latents have {}",
                settings.model.in_channels, settings.model.out_channels, autoencoder_config.latent_channels
            )));
        }
        let autoencoder =
            AutoencoderKl::new(&model_folder::load(&settings.autoencoder, &device)?, &autoencoder_config)?;
        let text_encoder = ClipText::new(&text_params, &text_config)?;
        let pictures = Pictures::open(&recipe.data, recipe.seed)?;
        let params = match &settings.start {
            Some(folder) => model_folder::load(folder, &device)?,
            None => recipe.random_params(&device),
        }
        .trainable();
        let unet = UNet2DConditionModel::new(&params, &settings.model)?;
        let mut networks = vec![Network::new("unet", &params)?];
        if settings.text_rate > 0.0 {
            // The U-Net attends to hidden states: nothing hangs on a projection.
            let network = Network::new("text_encoder", &text_params)?.only(|name| !name.starts_with("text_projection"));
            networks.push(Network { rate: settings.text_rate, ..network });
        }

        let train = latents(&autoencoder, &pictures, pictures.split(Split::Train), &device)?
            .ok_or_else(|| Error::request("there is nothing to train on: the data hold no training example"))?;
        let held_out: Vec<usize> = spread(pictures.split(Split::HeldOutCombination), VALIDATION).copied().collect();
        let held_out_latents = latents(&autoencoder, &pictures, &held_out, &device)?;
        let digest = combined(&[
            pictures.digest(),
            &model_digest(&settings.autoencoder)?,
            &model_digest(&text_folder)?,
            &model_digest(&settings.text.join("tokenizer"))?,
        ]);
        Ok(Self {
            settings,
            scheduler,
            loss,
            unet,
            params,
            networks,
            autoencoder,
            text_encoder,
            text_params,
            tokenizer,
            pictures,
            train,
            held_out,
            held_out_latents,
            device,
            digest,
        })
    }

    /// What the U-Net attends to, `(texts.len(), tokens, hidden_size)`.
    fn encode(&self, texts: &[String]) -> Result<Tensor> {
        let read = || texts.par_iter().map(|text| self.tokenizer.encode_window(text)).collect::<Result<Vec<_>>>();
        let ids = inside(read)?;
        let ids = Tensor::new(ids, &self.device)?; // (batch, tokens)
        let output = self.text_encoder.forward(&ids, &mut NoProbe)?;
        self.text_encoder.features(&output, 0, true)
    }

    /// The weighted error for latents `z (batch, channels, h, w)` at whole `timesteps`, for each picture: `(batch)`.
    fn errors(&self, z: &Tensor, noise: &Tensor, timesteps: &[usize], words: &Tensor) -> Result<Tensor> {
        self.loss.errors(z, noise, timesteps, |noisy, times| {
            self.unet.forward(noisy, times, words, &AddedConditions::default(), &mut NoProbe)
        })
    }

    /// The mean error over fixed noise at evenly spread timesteps.
    fn fixed_error(&self, latents: &Latents, rows: usize, pictures: &[usize]) -> Result<f64> {
        let timesteps = self.loss.levels();
        let (mut sum, mut count) = (0.0, 0);
        for first in (0..rows).step_by(CHUNK) {
            let n = CHUNK.min(rows - first);
            let z = latents.mean.narrow(0, first, n)?;
            let texts: Vec<String> = pictures[first..first + n]
                .iter()
                .map(|&i| Caption::plain(self.pictures.record(i), "en").map_or(String::new(), |caption| caption.text))
                .collect();
            let words = self.encode(&texts)?.detach();
            for level in 0..LEVELS {
                let name = format!("validation {first} {level}");
                let noise = rng::randn(&mut rng::keyed(0, &name), z.shape(), z.device())?;
                let timestep = (2 * level + 1) * timesteps / (2 * LEVELS);
                let errors = self.errors(&z, &noise, &vec![timestep; n], &words)?.detach();
                sum += f64::from(errors.sum_all()?.to_scalar::<f32>()?);
                count += n;
            }
        }
        Ok(sum / f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
    }
}

/// Latents of pictures, or nothing where there are none.
fn latents(
    autoencoder: &AutoencoderKl,
    pictures: &Pictures,
    indices: &[usize],
    device: &Device,
) -> Result<Option<Latents>> {
    let (mut means, mut stds) = (Vec::new(), Vec::new());
    for chunk in indices.chunks(CHUNK) {
        let distribution = autoencoder.encode(&pictures.tensor(chunk, device)?, &mut NoProbe)?;
        let std = (distribution.logvar.detach() * 0.5)?.exp()?;
        // Scaling is affine: the deviation is what the scaled mean moves by.
        let mean = autoencoder.scale_latents(&distribution.mean.detach())?;
        let moved = autoencoder.scale_latents(&(distribution.mean.detach() + &std)?)?;
        stds.push((moved - &mean)?);
        means.push(mean);
    }
    if means.is_empty() {
        return Ok(None);
    }
    Ok(Some(Latents { mean: Tensor::cat(&means, 0)?, std: Tensor::cat(&stds, 0)? }))
}

impl Objective for LatentDiffusion {
    fn networks(&self) -> &[Network] {
        &self.networks
    }

    fn examples(&self) -> usize {
        self.pictures.split(Split::Train).len()
    }

    fn warnings(&self) -> Vec<String> {
        self.pictures.warnings()
    }

    /// Of pictures, autoencoder, text encoder and tokenizer: each of them makes another training set.
    fn data_digest(&self) -> String {
        self.digest.clone()
    }

    fn describe(&self, index: usize) -> String {
        self.pictures.describe(self.pictures.split(Split::Train)[index])
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let n = batch.indices.len();
        let rows: Vec<u32> = batch.indices.iter().map(|&i| i as u32).collect();
        let rows = Tensor::new(rows, &self.device)?;
        // 1. A latent of each picture.
        let mean = self.train.mean.index_select(&rows, 0)?; // (batch, channels, h, w)
        let std = self.train.std.index_select(&rows, 0)?;
        let posterior = rng::randn(&mut batch.generator("posterior"), mean.shape(), mean.device())?;
        let z = (mean + (std * posterior)?)?;
        // 2. A caption of each, or none.
        let train = self.pictures.split(Split::Train);
        let mut generator = batch.generator("captions");
        let mut texts: Vec<String> = batch
            .indices
            .iter()
            .map(|&i| {
                Caption::draw_among(self.pictures.record(train[i]), &self.settings.languages, &mut generator).text
            })
            .collect();
        for (text, draw) in texts.iter_mut().zip(batch.generator("text drop").uniform(n)) {
            if f64::from(draw) < self.settings.text_drop {
                text.clear();
            }
        }
        let words = self.encode(&texts)?; // (batch, tokens, hidden_size)
        // 3. A timestep of each.
        let timesteps = self.loss.timesteps(n, f64::from(batch.generator("timesteps").uniform(1)[0]));
        // 4. The error of the prediction.
        let noise = rng::randn(&mut batch.generator("noise"), z.shape(), z.device())?;
        let loss = self.errors(&z, &noise, &timesteps, &words)?.mean_all()?;
        let terms = (0..self.networks.len()).map(|network| (network, loss.clone())).collect();
        Ok(Losses { terms, figures: Vec::new() })
    }

    /// The weighted error, in English and with style, on fixed noise: of held-out combinations and of as many training pictures.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        let mut figures = Vec::new();
        if let Some(latents) = &self.held_out_latents {
            figures.push(("held_out".to_owned(), self.fixed_error(latents, self.held_out.len(), &self.held_out)?));
        }
        let count = self.examples().min(VALIDATION);
        let train = &self.pictures.split(Split::Train)[..count];
        figures.push(("train".to_owned(), self.fixed_error(&self.train, count, train)?));
        Ok(figures)
    }

    fn samples(&mut self) -> Result<Option<Picture>> {
        let n = self.settings.prompts.len();
        if n == 0 {
            return Ok(None);
        }
        let words = Tensor::cat(&[self.encode(&vec![String::new(); n])?, self.encode(&self.settings.prompts)?], 0)?;
        let words = words.detach();
        let guidance = Guidance::new(self.settings.guidance, 0.0)?;
        let plan = Plan::new(&self.scheduler, self.scheduler.sampler()?, None, self.settings.sample_steps)?;
        let shape: Vec<usize> = [&[n], &self.train.mean.dims()[1..]].concat();
        let mut generator = rng::keyed(0, "samples");
        let start = plan.initial(&rng::randn(&mut generator, shape, &self.device)?)?;
        let mut denoiser = plan.denoiser(|x: &Tensor, timestep: f64| {
            let time = Tensor::new(&[timestep as f32], x.device())?;
            let both = Tensor::cat(&[x, x], 0)?; // without the prompts, with them
            let output = self.unet.forward(&both, &time, &words, &AddedConditions::default(), &mut NoProbe)?.detach();
            guidance.combine(&output.narrow(0, 0, n)?, &output.narrow(0, n, n)?)
        });
        let latents = plan.run(
            &mut denoiser,
            start,
            &mut |shape| rng::randn(&mut generator, shape.clone(), &self.device),
            &mut |_| Ok(None),
        )?;
        let pixels = self.autoencoder.decode(&self.autoencoder.unscale_latents(&latents)?, &mut NoProbe)?;
        grid(&to_pictures(&pixels.detach())?, 8, 2).map(Some)
    }

    /// A whole pipeline as diffusers opens it.
    fn export(&mut self, folder: &Path) -> Result<()> {
        let sample_size = self.train.mean.dim(3)?;
        let config = UNet2DConditionConfig { sample_size: Some(sample_size.into()), ..self.settings.model.clone() };
        let unet = half(&self.params.variables())?;
        model_folder::write(&folder.join("unet"), DIFFUSERS_FILE, &config, Some("UNet2DConditionModel"), &unet)?;
        model_folder::copy(&self.settings.autoencoder, &folder.join("vae"))?;
        model_folder::copy(&self.settings.text.join("tokenizer"), &folder.join("tokenizer"))?;
        let place = folder.join("text_encoder");
        if self.settings.text_rate > 0.0 {
            let text = half(&self.text_params.variables())?;
            model_folder::write(&place, TRANSFORMERS_FILE, self.text_encoder.config(), None, &text)?;
        } else {
            model_folder::copy(&self.settings.text.join("text_encoder"), &place)?;
        }
        model_folder::write_index(folder, &self.settings.scheduler, None)
    }
}
