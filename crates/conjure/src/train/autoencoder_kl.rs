//! Training of the autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G).

use super::objective::{Batch, Losses, Network, Objective};
use super::pictures::{Pictures, to_tensor};
use super::recipe::Recipe;
use crate::data::{Split, spread};
use crate::evaluate::open_classifier;
use crate::evaluate::reconstruction::{Fidelity, reconstructed};
use crate::image_file::{Picture, grid};
use crate::model_folder::{self, DIFFUSERS_FILE, half};
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::rng::{self, Generator};
use conjure_core::weights::Params;
use conjure_core::{Device, Tensor};
use conjure_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use conjure_models::image_classifier::{ImageClassifier, perceptual_distance};
use conjure_models::patch_discriminator::{
    PatchDiscriminator, PatchDiscriminatorConfig, discriminator_loss, generator_loss,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Pictures that are encoded and decoded at once when nothing is trained.
const CHUNK: usize = 32;
/// Held-out pictures that a validation looks at.
const VALIDATION: usize = 256;
/// Pictures on the sheet of samples.
const SHEET: usize = 16;

/// The table `[autoencoder_kl]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The architecture, in the words of diffusers' `config.json`.
    pub model: AutoencoderKlConfig,
    /// Folder of an autoencoder to begin with instead of random weights.
    pub start: Option<PathBuf>,
    /// Which part is trained.
    pub part: Part,
    /// Weight of the mean absolute error of pixel values in -1 to 1.
    pub l1: f64,
    /// Weight of their mean squared error.
    pub l2: f64,
    /// Weight of the divergence of the latents' distribution from the standard normal, summed over a picture's latents and
    /// divided by its number of pixel values: the same balance as Rombach et al.'s `1e-6` beside sums.
    pub kl_weight: f64,
    /// Mirror pictures, shift them by up to 4 pixels and exchange their colour channels.
    pub augment: bool,
    /// Also compare what a trained network sees in pictures and reconstructions.
    pub perceptual: Option<Perceptual>,
    /// Also train a discriminator of patches against the decoder.
    pub discriminator: Option<Discriminator>,
}

/// The perceptual loss ("The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", Zhang et al. 2018).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perceptual {
    /// Folder of an image classifier.
    pub network: PathBuf,
    /// Weight of the distance between its features.
    pub weight: f64,
}

/// The discriminator of patches, as Esser et al. 2021 train it against an autoencoder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discriminator {
    /// Its architecture.
    pub model: PatchDiscriminatorConfig,
    /// Weight of its opinion in the autoencoder's loss.
    pub weight: f64,
    /// Update from which on the autoencoder heeds it; until then it only learns.
    pub start: u64,
}

/// Which part of the autoencoder is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Encoder and decoder.
    #[default]
    All,
    /// The decoder alone: latents that were computed before stay valid, and so does their scale, which is taken from `start`.
    Decoder,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: AutoencoderKlConfig::default(),
            start: None,
            part: Part::All,
            l1: 1.0,
            l2: 1.0,
            kl_weight: 1e-6,
            augment: true,
            perceptual: None,
            discriminator: None,
        }
    }
}

/// The autoencoder with its pictures.
pub struct Autoencoder {
    settings: Settings,
    model: AutoencoderKl,
    perceptual: Option<(ImageClassifier, f64)>,
    discriminator: Option<PatchDiscriminator>,
    networks: Vec<Network>,
    params: Params,
    pictures: Pictures,
    device: Device,
}

impl Autoencoder {
    /// What the recipe describes.
    ///
    /// # Errors
    /// Settings or data that cannot be used.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let mut settings: Settings = recipe.own()?;
        let device = recipe.device.open()?;
        settings.model.check()?;
        let factor = settings.model.downscale();
        if settings.part == Part::Decoder && settings.start.is_none() {
            return Err(Error::request("autoencoder_kl.part is decoder, but no encoder has been trained")
                .with_help("set autoencoder_kl.start to the folder of an autoencoder"));
        }
        if !recipe.data.size.is_multiple_of(factor) {
            return Err(Error::request(format!(
                "data.size is {}, not a multiple of {factor}, by which the autoencoder scales down",
                recipe.data.size
            )));
        }
        let pictures = Pictures::open(&recipe.data, recipe.seed)?;
        let params = match &settings.start {
            Some(folder) => {
                let (config, params) = model_folder::open(folder, AutoencoderKlConfig::from_json, &device)?;
                if settings.part == Part::Decoder {
                    let AutoencoderKlConfig { scaling_factor, shift_factor, latents_mean, latents_std, .. } = config;
                    settings.model = AutoencoderKlConfig {
                        scaling_factor,
                        shift_factor,
                        latents_mean,
                        latents_std,
                        ..settings.model
                    };
                }
                params
            }
            None => recipe.random_params(&device),
        }
        .trainable();
        let model = AutoencoderKl::new(&params, &settings.model)?;
        let network = Network::new("autoencoder", &params)?;
        let network = match settings.part {
            Part::All => network,
            Part::Decoder => network.only(|name| name.starts_with("decoder.") || name.starts_with("post_quant_conv.")),
        };
        let mut networks = vec![network];
        let discriminator = match &settings.discriminator {
            Some(described) => {
                let params = recipe.random_params(&device).sub("discriminator").trainable();
                let discriminator = PatchDiscriminator::new(&params, &described.model)?;
                networks.push(Network { averaged: false, ..Network::new("discriminator", &params)? });
                Some(discriminator)
            }
            None => None,
        };
        let perceptual = match &settings.perceptual {
            Some(described) => Some((open_classifier(&described.network, &device)?, described.weight)),
            None => None,
        };
        Ok(Self { settings, model, perceptual, discriminator, networks, params, pictures, device })
    }

    fn batch(&self, batch: &Batch) -> Result<Tensor> {
        let train = self.pictures.split(Split::Train);
        let indices: Vec<usize> = batch.indices.iter().map(|&i| train[i]).collect();
        if !self.settings.augment {
            return self.pictures.tensor(&indices, &self.device);
        }
        let draws = batch.generator("augmentation").uniform(indices.len() * 5);
        let size = self.pictures.size();
        let changed: Vec<Vec<u8>> = indices
            .iter()
            .zip(draws.chunks_exact(5))
            .map(|(&i, draws)| augmented(self.pictures.rgb(i), size, draws))
            .collect();
        to_tensor(&changed.iter().map(Vec::as_slice).collect::<Vec<_>>(), size, &self.device)
    }

    fn reconstruct(&self, indices: &[usize]) -> Result<Vec<Picture>> {
        let mut pictures = Vec::with_capacity(indices.len());
        for chunk in indices.chunks(CHUNK) {
            pictures.extend(reconstructed(&self.model, &self.pictures.tensor(chunk, &self.device)?)?);
        }
        Ok(pictures)
    }

    /// Held-out pictures, spread evenly over all there are.
    fn held_out(&self, count: usize) -> Vec<usize> {
        spread(self.pictures.split(Split::HeldOutConcept), count).copied().collect()
    }

    /// One over the standard deviation of the latents of training pictures: Rombach et al. 2022, appendix G. Where the encoder
    /// stays, it is what it was: denoisers have learned latents of that scale.
    fn scaling_factor(&self) -> Result<f64> {
        if self.settings.part == Part::Decoder {
            return Ok(self.settings.model.scaling_factor);
        }
        let train: Vec<usize> = spread(self.pictures.split(Split::Train), 512).copied().collect();
        let (mut n, mut sum, mut squares) = (0, 0.0, 0.0);
        for chunk in train.chunks(CHUNK) {
            let distribution = self.model.encode(&self.pictures.tensor(chunk, &self.device)?, &mut NoProbe)?;
            let noise = rng::randn(&mut rng::keyed(0, "latents"), distribution.mean.shape(), &self.device)?;
            for z in distribution.sample(&noise)?.detach().flatten_all()?.to_vec1::<f32>()? {
                n += 1;
                sum += f64::from(z);
                squares += f64::from(z).powi(2);
            }
        }
        let mean = sum / f64::from(n);
        Ok(1.0 / (squares / f64::from(n) - mean * mean).max(1e-12).sqrt())
    }
}

/// A picture mirrored, shifted and with exchanged colours as `draws` (five numbers in 0 to 1) say. What is shifted in is white.
fn augmented(rgb: &[u8], size: usize, draws: &[f32]) -> Vec<u8> {
    const SHIFT: f32 = 4.0;
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mirror = draws[0] < 0.5;
    let shift = |draw: f32| (draw * (2.0 * SHIFT + 1.0)).floor().min(2.0 * SHIFT) as isize - SHIFT as isize;
    let (dx, dy) = (shift(draws[1]), shift(draws[2]));
    let order = if draws[3] < 0.5 { ORDERS[0] } else { ORDERS[((draws[4] * 6.0) as usize).min(5)] };
    let mut out = vec![255; rgb.len()];
    for y in 0..size {
        let Some(from_y) = y.checked_add_signed(dy).filter(|y| *y < size) else { continue };
        for x in 0..size {
            let Some(from_x) = x.checked_add_signed(dx).filter(|x| *x < size) else { continue };
            let from_x = if mirror { size - 1 - from_x } else { from_x };
            let (to, from) = ((y * size + x) * 3, (from_y * size + from_x) * 3);
            for channel in 0..3 {
                out[to + channel] = rgb[from + order[channel]];
            }
        }
    }
    out
}

impl Objective for Autoencoder {
    fn networks(&self) -> &[Network] {
        &self.networks
    }

    fn examples(&self) -> usize {
        self.pictures.split(Split::Train).len()
    }

    fn warnings(&self) -> Vec<String> {
        self.pictures.warnings()
    }

    fn data_digest(&self) -> String {
        self.pictures.digest().to_owned()
    }

    fn describe(&self, index: usize) -> String {
        self.pictures.describe(self.pictures.split(Split::Train)[index])
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let x = self.batch(batch)?; // (batch, 3, size, size)
        let mut distribution = self.model.encode(&x, &mut NoProbe)?;
        if self.settings.part == Part::Decoder {
            distribution.mean = distribution.mean.detach();
            distribution.logvar = distribution.logvar.detach();
        }
        let noise = rng::randn(&mut batch.generator("posterior"), distribution.mean.shape(), x.device())?;
        let z = distribution.sample(&noise)?; // (batch, latent_channels, h, w)
        let reconstruction = self.model.decode(&z, &mut NoProbe)?; // (batch, 3, size, size)
        let error = (&reconstruction - &x)?;
        let (l1, l2) = (error.abs()?.mean_all()?, error.sqr()?.mean_all()?);
        let values_per_picture = (x.elem_count() / x.dim(0)?) as f64;
        let kl = (distribution.kl()?.mean_all()? / values_per_picture)?;
        let mut loss = (((&l1 * self.settings.l1)? + (&l2 * self.settings.l2)?)? + (&kl * self.settings.kl_weight)?)?;
        let value = |x: &Tensor| -> Result<f64> { Ok(f64::from(x.to_scalar::<f32>()?)) };
        let mut figures = vec![("l1", value(&l1)?), ("l2", value(&l2)?), ("kl", value(&kl)?)];
        if let Some((network, weight)) = &self.perceptual {
            let seen = network.pyramid(&x, &mut NoProbe)?;
            let distance = perceptual_distance(&network.pyramid(&reconstruction, &mut NoProbe)?, &seen)?;
            figures.push(("perceptual", value(&distance)?));
            loss = (loss + (distance * *weight)?)?;
        }
        let mut terms = Vec::new();
        if let (Some(discriminator), Some(described)) = (&self.discriminator, &self.settings.discriminator) {
            let real = discriminator.forward(&x)?;
            let made = discriminator.forward(&reconstruction.detach())?;
            terms.push((1, discriminator_loss(&real, &made)?));
            if batch.step >= described.start {
                let fooled = generator_loss(&discriminator.forward(&reconstruction)?)?;
                figures.push(("fooled", value(&fooled)?));
                loss = (loss + (fooled * described.weight)?)?;
            }
        }
        terms.push((0, loss));
        Ok(Losses { terms, figures })
    }

    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        let indices = self.held_out(VALIDATION);
        if indices.is_empty() {
            return Ok(Vec::new());
        }
        let reconstructions = self.reconstruct(&indices)?;
        let originals = indices.iter().map(|&i| self.pictures.picture(i)).collect::<Result<Vec<_>>>()?;
        let Fidelity { psnr, ssim } = Fidelity::of(&originals, &reconstructions)?;
        Ok(vec![("psnr".to_owned(), psnr), ("ssim".to_owned(), ssim)])
    }

    /// Held-out pictures above their reconstructions.
    fn samples(&mut self) -> Result<Option<Picture>> {
        let indices = self.held_out(SHEET);
        if indices.is_empty() {
            return Ok(None);
        }
        let originals = indices.iter().map(|&i| self.pictures.picture(i)).collect::<Result<Vec<_>>>()?;
        let reconstructions = self.reconstruct(&indices)?;
        let rows: Vec<Picture> = originals
            .chunks(SHEET / 2)
            .zip(reconstructions.chunks(SHEET / 2))
            .flat_map(|(above, below)| [above, below].concat())
            .collect();
        grid(&rows, SHEET / 2, 2).map(Some)
    }

    fn export(&mut self, folder: &Path) -> Result<()> {
        let config = AutoencoderKlConfig {
            sample_size: self.pictures.size(),
            scaling_factor: self.scaling_factor()?,
            ..self.settings.model.clone()
        };
        model_folder::write(folder, DIFFUSERS_FILE, &config, Some("AutoencoderKL"), &half(&self.params.variables())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn augmentation_moves_mirrors_and_recolours() {
        // One dark pixel at (x 10, y 12) whose channels differ.
        let size = 32;
        let mut rgb = vec![255; size * size * 3];
        let at = |x: usize, y: usize| (y * size + x) * 3;
        rgb[at(10, 12)..][..3].copy_from_slice(&[1, 2, 3]);
        assert_eq!(augmented(&rgb, size, &[0.9, 0.5, 0.5, 0.1, 0.0]), rgb);
        let mirrored = augmented(&rgb, size, &[0.1, 0.5, 0.5, 0.1, 0.0]);
        assert_eq!(mirrored[at(size - 1 - 10, 12)..][..3], [1, 2, 3]);
        let moved = augmented(&rgb, size, &[0.9, 0.999, 0.0, 0.9, 0.999]);
        assert_eq!(moved[at(10 - 4, 12 + 4)..][..3], [3, 2, 1]);
        assert_eq!(moved.iter().filter(|v| **v != 255).count(), 3);
    }
}
