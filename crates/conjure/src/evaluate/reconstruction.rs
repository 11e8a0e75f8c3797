//! How well pictures come back: through an autoencoder, or made small and enlarged again.

use super::{psnr, ssim};
use crate::generate::image::pixels::to_pictures;
use crate::image_file::Picture;
use crate::model_folder;
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::{Device, Tensor, ops};
use conjure_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use conjure_models::super_resolution::{SuperResolution, SuperResolutionConfig};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// How like their originals pictures are: means over pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fidelity {
    /// Peak signal-to-noise ratio in decibels.
    pub psnr: f64,
    /// Structural similarity, at most 1.
    pub ssim: f64,
}

impl Fidelity {
    /// That of pictures beside their originals. Not a number where there are none; infinite PSNR where one is equal to its original.
    ///
    /// # Errors
    /// Not as many pictures as originals; one of another size than its original's, or too small for [`ssim`].
    pub fn of(originals: &[Picture], pictures: &[Picture]) -> Result<Self> {
        if originals.len() != pictures.len() {
            let (n, m) = (originals.len(), pictures.len());
            return Err(Error::failure(format!("{m} pictures stand beside {n} originals")));
        }
        let (mut ratio, mut similarity) = (0.0, 0.0);
        for (original, picture) in originals.iter().zip(pictures) {
            ratio += psnr(original, picture)?;
            similarity += ssim(original, picture)?;
        }
        let n = originals.len() as f64;
        Ok(Self { psnr: ratio / n, ssim: similarity / n })
    }
}

/// What gives pictures back.
pub enum Restorer {
    /// An autoencoder.
    Autoencoder(Box<AutoencoderKl>),
    /// A network that makes pictures larger.
    Enlarger(Box<SuperResolution>),
}

impl Restorer {
    /// That in a folder: of an autoencoder, a super-resolution network, or a picture model, of which it is the autoencoder. Also
    /// the side in pixels of the pictures that an autoencoder was made for.
    ///
    /// # Errors
    /// Nothing there, or something else; files that are damaged.
    pub fn open(folder: &Path, device: &Device) -> Result<(Self, Option<usize>)> {
        let vae = folder.join("vae");
        let folder = if folder.join("model_index.json").is_file() { vae.as_path() } else { folder };
        let config = model_folder::config(folder, model_folder::as_json)?;
        if config.get("_class_name").and_then(Value::as_str) == Some("AutoencoderKL") {
            let (config, params) = model_folder::open(folder, AutoencoderKlConfig::from_json, device)?;
            let model = AutoencoderKl::new(&params, &config)?;
            return Ok((Self::Autoencoder(Box::new(model)), Some(config.sample_size)));
        }
        if config.get("model_type").and_then(Value::as_str) != Some("super_resolution") {
            return Err(Error::file(folder, "is no model that gives pictures back")
                .with_help("name the folder of a picture model, an autoencoder or a super-resolution network"));
        }
        let (config, params) = model_folder::open(folder, SuperResolutionConfig::from_json, device)?;
        Ok((Self::Enlarger(Box::new(SuperResolution::new(&params, &config)?)), None))
    }

    /// By which number the side of a picture must be divisible.
    pub fn grid(&self) -> usize {
        match self {
            Self::Autoencoder(model) => model.config().downscale(),
            Self::Enlarger(model) => model.config().scale,
        }
    }

    /// The pictures `(batch, 3, h, w)` in -1 to 1 as they come back.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn restored(&self, x: &Tensor) -> Result<Vec<Picture>> {
        match self {
            Self::Autoencoder(model) => reconstructed(model, x),
            Self::Enlarger(model) => enlarged(model, &shrunk(x, model.config().scale)?),
        }
    }

    /// The same by bicubic interpolation, of what makes pictures larger.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn interpolated(&self, x: &Tensor) -> Result<Option<Vec<Picture>>> {
        match self {
            Self::Autoencoder(_) => Ok(None),
            Self::Enlarger(model) => bicubic(&shrunk(x, model.config().scale)?, model.config().scale).map(Some),
        }
    }
}

/// Pictures `(batch, 3, h, w)` through an autoencoder, by the likeliest latents.
///
/// # Errors
/// A tensor operation fails.
pub fn reconstructed(model: &AutoencoderKl, x: &Tensor) -> Result<Vec<Picture>> {
    let latents = model.encode(x, &mut NoProbe)?.mode().detach();
    to_pictures(&model.decode(&latents, &mut NoProbe)?.detach())
}

/// Small pictures `(batch, 3, h, w)` enlarged by a network.
///
/// # Errors
/// A tensor operation fails.
pub fn enlarged(model: &SuperResolution, small: &Tensor) -> Result<Vec<Picture>> {
    to_pictures(&model.forward(small, &mut NoProbe)?.detach())
}

/// The same by bicubic interpolation, `scale` times.
///
/// # Errors
/// A tensor operation fails.
pub fn bicubic(small: &Tensor, scale: usize) -> Result<Vec<Picture>> {
    let (_, _, height, width) = small.dims4()?;
    to_pictures(&ops::resize_bicubic(small, height * scale, width * scale)?)
}

/// The mean of each `scale x scale` pixels, which is the data set's area filter for whole factors:
/// `(batch, channels, h / scale, w / scale)`.
///
/// # Errors
/// A side that is no multiple of `scale`.
pub fn shrunk(x: &Tensor, scale: usize) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    let parts = x.reshape((batch * channels * (h / scale), scale, w / scale, scale))?;
    Ok(parts.mean(3)?.mean(1)?.reshape((batch, channels, h / scale, w / scale))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fidelity_is_the_mean_over_pictures() {
        let white = Picture::filled(16, 16, [255; 3]);
        let grey = Picture::filled(16, 16, [245; 3]);
        let dark = Picture::filled(16, 16, [155; 3]);
        let both = Fidelity::of(&[white.clone(), white.clone()], &[grey.clone(), dark.clone()]).unwrap();
        // 10 log10(255^2 / 10^2) and 10 log10(255^2 / 100^2).
        assert!((both.psnr - (28.1308 + 8.1308) / 2.0).abs() < 1e-3, "{both:?}");
        let each = [&grey, &dark].map(|picture| ssim(&white, picture).unwrap());
        assert!((both.ssim - (each[0] + each[1]) / 2.0).abs() < 1e-12);
        assert!(Fidelity::of(&[white], &[Picture::filled(8, 16, [0; 3])]).is_err());
    }

    #[test]
    fn folders_of_other_models_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || Restorer::open(folder.path(), &Device::Cpu).err().unwrap();
        assert!(refused().to_string().contains("config.json: not found"));
        std::fs::write(folder.path().join("config.json"), r#"{ "model_type": "clip" }"#).unwrap();
        let error = refused();
        assert_eq!(error.exit_code(), 2);
        assert!(error.help().unwrap().contains("super-resolution network"), "{error}");
    }
}
