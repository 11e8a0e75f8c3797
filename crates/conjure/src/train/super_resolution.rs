//! Training of the network that makes pictures bigger (Wang et al. 2018, section 4.1, its first stage): small pictures are
//! made of large ones with the data set's own filter, and the large ones are to be found again.

use super::objective::{Batch, Losses, Network, Objective};
use super::pictures::Pictures;
use super::recipe::Recipe;
use crate::data::{Split, spread};
use crate::evaluate::reconstruction::{Fidelity, bicubic, enlarged, shrunk};
use crate::image_file::{Picture, grid};
use crate::model_folder::{self, TRANSFORMERS_FILE, half};
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::rng::Generator;
use conjure_core::weights::Params;
use conjure_core::{Device, Tensor};
use conjure_models::super_resolution::{self as model, SuperResolution, SuperResolutionConfig};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Pictures that are enlarged at once when nothing is trained.
const CHUNK: usize = 8;
/// Held-out pictures that a validation looks at.
const VALIDATION: usize = 64;
/// Pictures on the sheet of samples.
const SHEET: usize = 8;

/// The table `[super_resolution]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The network.
    pub model: SuperResolutionConfig,
    /// Side of the pieces of large pictures that are trained on, in pixels; 0 for whole pictures.
    pub crop: usize,
    /// Most noise that is laid over a small picture, as a standard deviation of values in -1 to 1; each gets a share.
    pub noise: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { model: SuperResolutionConfig::small(2), crop: 64, noise: 0.0 }
    }
}

/// The network with its pictures.
pub struct Enlarger {
    settings: Settings,
    model: SuperResolution,
    networks: Vec<Network>,
    params: Params,
    pictures: Pictures,
    device: Device,
}

impl Enlarger {
    /// What the recipe describes; `data.size` is the side of the large pictures.
    ///
    /// # Errors
    /// Settings or data that cannot be used.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let mut settings: Settings = recipe.own()?;
        let device = recipe.device.open()?;
        settings.model.check()?;
        if settings.crop == 0 {
            settings.crop = recipe.data.size;
        }
        let (crop, scale) = (settings.crop, settings.model.scale);
        if crop > recipe.data.size {
            return Err(Error::request(format!("crop is {crop}, more than data.size {}", recipe.data.size)));
        }
        for (name, side) in [("crop", crop), ("data.size", recipe.data.size)] {
            if !side.is_multiple_of(scale) {
                return Err(Error::request(format!("{name} is {side}, not a multiple of the scale {scale}")));
            }
        }
        if !(0.0..=1.0).contains(&settings.noise) {
            return Err(Error::request(format!("noise is {}, not 0 to 1", settings.noise)));
        }
        let pictures = Pictures::open(&recipe.data, recipe.seed)?;
        let params = recipe.random_params(&device).trainable();
        let model = SuperResolution::new(&params, &settings.model)?;
        let networks = vec![Network::new("super_resolution", &params)?];
        Ok(Self { settings, model, networks, params, pictures, device })
    }

    /// Pieces of training pictures at random places, half of them mirrored: `(batch, 3, crop, crop)`.
    fn pieces(&self, batch: &Batch) -> Result<Tensor> {
        let train = self.pictures.split(Split::Train);
        let (size, crop) = (self.pictures.size(), self.settings.crop);
        let draws = batch.generator("pieces").uniform(batch.indices.len() * 3);
        let mut values = Vec::with_capacity(batch.indices.len() * 3 * crop * crop);
        for (&i, draws) in batch.indices.iter().zip(draws.chunks_exact(3)) {
            let rgb = self.pictures.rgb(train[i]);
            let start = |draw: f32| ((draw * (size - crop + 1) as f32) as usize).min(size - crop);
            let (left, top, mirror) = (start(draws[0]), start(draws[1]), draws[2] < 0.5);
            for channel in 0..3 {
                for y in top..top + crop {
                    values.extend((0..crop).map(|x| {
                        let x = left + if mirror { crop - 1 - x } else { x };
                        f32::from(rgb[(y * size + x) * 3 + channel]) / 127.5 - 1.0
                    }));
                }
            }
        }
        Ok(Tensor::from_vec(values, (batch.indices.len(), 3, crop, crop), &self.device)?)
    }

    /// Held-out pictures, spread evenly over all there are.
    fn held_out(&self, count: usize) -> Vec<usize> {
        spread(self.pictures.split(Split::HeldOutConcept), count).copied().collect()
    }

    /// Each picture made small, and enlarged again by bicubic interpolation and by the network.
    fn enlarged(&self, indices: &[usize]) -> Result<[Vec<Picture>; 2]> {
        let scale = self.settings.model.scale;
        let (mut plain, mut made) = (Vec::new(), Vec::new());
        for chunk in indices.chunks(CHUNK) {
            let small = shrunk(&self.pictures.tensor(chunk, &self.device)?, scale)?;
            plain.extend(bicubic(&small, scale)?);
            made.extend(enlarged(&self.model, &small)?);
        }
        Ok([plain, made])
    }
}

impl Objective for Enlarger {
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
        let target = self.pieces(batch)?; // (batch, 3, crop, crop)
        let mut small = shrunk(&target, self.settings.model.scale)?; // (batch, 3, crop / scale, crop / scale)
        if self.settings.noise > 0.0 {
            let mut generator = batch.generator("noise");
            let shares = generator.uniform(small.dim(0)?);
            let shares = Tensor::from_vec(shares, (small.dim(0)?, 1, 1, 1), &self.device)?;
            let noise = Tensor::from_vec(generator.normal(small.elem_count()), small.shape(), &self.device)?;
            small = (small + (noise.broadcast_mul(&shares)? * self.settings.noise)?)?;
        }
        Ok(Losses::one(model::loss(&self.model.forward(&small, &mut NoProbe)?, &target)?))
    }

    /// PSNR and SSIM on concepts that were held out, of the network (`psnr`, `ssim`) and of bicubic interpolation.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        let indices = self.held_out(VALIDATION);
        if indices.is_empty() {
            return Ok(Vec::new());
        }
        let originals = indices.iter().map(|&i| self.pictures.picture(i)).collect::<Result<Vec<_>>>()?;
        let mut figures = Vec::new();
        for (suffix, pictures) in ["_bicubic", ""].into_iter().zip(self.enlarged(&indices)?) {
            let Fidelity { psnr, ssim } = Fidelity::of(&originals, &pictures)?;
            figures.push((format!("psnr{suffix}"), psnr));
            figures.push((format!("ssim{suffix}"), ssim));
        }
        Ok(figures)
    }

    /// Held-out pictures: enlarged by bicubic interpolation, by the network, and as they were.
    fn samples(&mut self) -> Result<Option<Picture>> {
        let indices = self.held_out(SHEET);
        if indices.is_empty() {
            return Ok(None);
        }
        let originals = indices.iter().map(|&i| self.pictures.picture(i)).collect::<Result<Vec<_>>>()?;
        let [plain, made] = self.enlarged(&indices)?;
        grid(&[plain, made, originals].concat(), indices.len(), 2).map(Some)
    }

    fn export(&mut self, folder: &Path) -> Result<()> {
        model_folder::write(folder, TRANSFORMERS_FILE, self.model.config(), None, &half(&self.params.variables())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_takes_the_mean_of_each_square() {
        let values: Vec<f32> = (0..2 * 4 * 6).map(|i| (i * i % 7) as f32).collect();
        let x = Tensor::from_vec(values.clone(), (1, 2, 4, 6), &Device::Cpu).unwrap();
        let y = shrunk(&x, 2).unwrap();
        assert_eq!(y.dims(), [1, 2, 2, 3]);
        let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (n, got) in y.iter().enumerate() {
            let (c, row, column) = (n / 6, n / 3 % 2, n % 3);
            let at = |dy: usize, dx: usize| values[(c * 4 + 2 * row + dy) * 6 + 2 * column + dx];
            assert_eq!(*got, (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0);
        }
    }
}
