//! The files that a request names: start picture, mask, noise. Read and checked before work begins.

use super::pixels;
use super::request::ImageRequest;
use crate::image_file::{Mask, Picture};
use conjure_core::weights;
use conjure_core::{DType, Device, Error, Result, Tensor};
use std::path::Path;

/// A start picture and a mask of one size, as the model takes them.
pub(super) struct Inputs {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// The latents' channels, height and width.
    pub latent: [usize; 3],
    /// `(1, 3, height, width)` in -1 to 1.
    pub init: Option<Tensor>,
    /// `(1, 1, height, width)`: 1 where the picture is repainted, 0 where it is kept.
    pub mask: Option<Tensor>,
    /// `(batch, channels, height / factor, width / factor)`.
    pub noise: Option<Tensor>,
}

impl Inputs {
    /// Reads the files of `request`. Pictures are resized to the requested size; without one, a start picture keeps its
    /// own, rounded down to a multiple of 8, and everything else takes `size`, the model's width and height.
    /// `latent_channels` and `factor` are the autoencoder's.
    ///
    /// # Errors
    /// A file that cannot be read, or noise of another shape.
    pub fn read(
        request: &ImageRequest,
        size: (usize, usize),
        latent_channels: usize,
        factor: usize,
        device: &Device,
    ) -> Result<Self> {
        let init = request.init.as_deref().map(Picture::read).transpose()?;
        let mask = request.mask.as_deref().map(Mask::read).transpose()?;
        let own = match &init {
            Some(picture) => (whole_eights(picture.width), whole_eights(picture.height)),
            None => size,
        };
        let (width, height) = (request.width.unwrap_or(own.0), request.height.unwrap_or(own.1));
        for (what, pixels) in [("width", width), ("height", height)] {
            if pixels % factor != 0 {
                return Err(Error::request(format!(
                    "{what} {pixels} is not a multiple of {factor}, this model's grid"
                ))
                .with_help(format!("the nearest is {}", (pixels + factor / 2) / factor * factor)));
            }
        }
        let latent = [latent_channels, height / factor, width / factor];
        Ok(Self {
            width,
            height,
            latent,
            init: init.map(|picture| pixels::to_tensor(&picture.resized(width, height)?, device)).transpose()?,
            mask: mask.map(|mask| mask_values(&mask.resized(width, height)?, device)).transpose()?,
            noise: request.noise.as_deref().map(|path| read_noise(path, request.batch, latent, device)).transpose()?,
        })
    }
}

fn whole_eights(pixels: usize) -> usize {
    (pixels / 8 * 8).max(8)
}

/// 1 where the mask is at least half bright, else 0, as diffusers cuts it.
fn mask_values(mask: &Mask, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = mask.values.iter().map(|value| if *value >= 128 { 1.0 } else { 0.0 }).collect();
    Ok(Tensor::from_vec(values, (1, 1, mask.height, mask.width), device)?)
}

/// The one tensor of a file, of this shape; a first dimension of 1 is repeated for a batch.
fn read_noise(path: &Path, batch: usize, item: [usize; 3], device: &Device) -> Result<Tensor> {
    let shape = [&[batch], &item[..]].concat();
    let source = weights::open(path)?;
    let infos = source.infos();
    let name = match infos.keys().collect::<Vec<_>>()[..] {
        [only] => only.clone(),
        _ if infos.contains_key("noise") => "noise".to_owned(),
        _ => {
            return Err(Error::file(path, format!("holds {} tensors, none named noise", infos.len()))
                .with_help("store one tensor, or name it noise"));
        }
    };
    let found = infos[&name].shape.dims();
    if found.get(1..) != Some(&item[..]) || (found[0] != batch && found[0] != 1) {
        return Err(Error::file(path, format!("the noise has shape {found:?}, this request needs {shape:?}"))
            .with_help("its shape is (batch, latent channels, height / 8, width / 8) for Stable Diffusion"));
    }
    let noise = source.load(&name, DType::F32, &Device::Cpu)?;
    if noise.flatten_all()?.to_vec1::<f32>()?.iter().any(|v| !v.is_finite()) {
        return Err(Error::file(path, "the noise holds values that are not finite numbers"));
    }
    Ok(noise.broadcast_as(shape)?.contiguous()?.to_device(device)?)
}

/// The mask at the resolution of latents, `(1, 1, height / factor, width / factor)`: each takes the pixel at its upper
/// left corner, as PyTorch's nearest interpolation does.
pub(super) fn latent_mask(mask: &Tensor, factor: usize) -> Result<Tensor> {
    let (_, _, height, width) = mask.dims4()?;
    let corner = |count: usize| Tensor::from_iter((0..count / factor).map(|i| (i * factor) as u32), mask.device());
    Ok(mask.index_select(&corner(height)?, 2)?.index_select(&corner(width)?, 3)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn masks_are_cut_at_half_brightness() {
        let mask = mask_values(&Mask { width: 2, height: 2, values: vec![255, 127, 128, 0] }, &Device::Cpu).unwrap();
        assert_eq!(mask.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_latent_takes_the_mask_of_its_upper_left_pixel() {
        let mask = Tensor::arange(0f32, 32.0, &Device::Cpu).unwrap().reshape((1, 1, 4, 8)).unwrap();
        let small = latent_mask(&mask, 2).unwrap();
        assert_eq!(small.dims(), [1, 1, 2, 4]);
        assert_eq!(small.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 2., 4., 6., 16., 18., 20., 22.]);
    }

    #[test]
    fn noise_of_another_shape_is_refused_with_both_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.safetensors");
        let tensor = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap().reshape((1, 4, 2, 2)).unwrap();
        let tensors = BTreeMap::from([("x".to_owned(), tensor)]);
        weights::save(&path, &tensors, &BTreeMap::new()).unwrap();
        let noise = read_noise(&path, 2, [4, 2, 2], &Device::Cpu).unwrap();
        assert_eq!(noise.dims(), [2, 4, 2, 2]);
        assert_eq!(noise.get(0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[5], 5.0);
        let error = read_noise(&path, 1, [4, 3, 2], &Device::Cpu).unwrap_err();
        assert!(error.to_string().ends_with("the noise has shape [1, 4, 2, 2], this request needs [1, 4, 3, 2]"));
        assert_eq!(error.exit_code(), 2);
    }
}
