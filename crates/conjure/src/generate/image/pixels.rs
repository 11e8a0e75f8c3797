//! Between pictures of bytes and tensors of pixel values.

use crate::image_file::Picture;
use conjure_core::{DType, Device, Error, Result, Tensor};

/// A picture as the autoencoder takes it: `(1, 3, height, width)` in -1 to 1.
pub(crate) fn to_tensor(picture: &Picture, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = picture.rgb.iter().map(|&byte| f32::from(byte) / 255.0 * 2.0 - 1.0).collect();
    Ok(Tensor::from_vec(values, (1, picture.height, picture.width, 3), device)?.permute((0, 3, 1, 2))?.contiguous()?)
}

/// Pictures from what the autoencoder gives: `(batch, 3, height, width)` in -1 to 1, clamped.
///
/// # Errors
/// A value that is not a number.
pub(crate) fn to_pictures(pixels: &Tensor) -> Result<Vec<Picture>> {
    let (batch, _, height, width) = pixels.dims4()?;
    let rows =
        pixels.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.contiguous()?.reshape((batch, height * width * 3))?;
    rows.to_vec2::<f32>()?
        .into_iter()
        .map(|values| {
            if values.iter().any(|v| v.is_nan()) {
                return Err(Error::failure("the autoencoder's decoder gave values that are not numbers").with_help(
                    "its weights may be broken, or made for another precision; see conjure models inspect",
                ));
            }
            let rgb = values.into_iter().map(|v| to_byte(f64::from(v) / 2.0 + 0.5)).collect();
            Picture::new(width, height, rgb)
        })
        .collect()
}

/// As numpy rounds: half to even.
fn to_byte(share: f64) -> u8 {
    (share.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// What each latent channel of Stable Diffusion 1 and 2 contributes to red, green and blue, and what they are at zero:
/// a linear fit to the decoder. Good enough to watch a picture appear.
const LATENT_RGB: [[f64; 3]; 4] =
    [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]];

/// A rough picture of the first of some latents `(batch, 4, h, w)`, one pixel for each latent, without the decoder.
/// `None` for latents of another kind.
pub(super) fn rough(latents: &Tensor) -> Result<Option<Picture>> {
    let (_, channels, height, width) = latents.dims4()?;
    if channels != LATENT_RGB.len() {
        return Ok(None);
    }
    let values = latents.get(0)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>()?;
    let rgb = (0..height * width)
        .flat_map(|i| {
            [0, 1, 2].map(|colour| (0..channels).map(|c| f64::from(values[c][i]) * LATENT_RGB[c][colour]).sum())
        })
        .map(|value: f64| to_byte(value / 2.0 + 0.5))
        .collect();
    Ok(Some(Picture::new(width, height, rgb)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_way_there_and_back() {
        let rgb: Vec<u8> = (0..=254).chain([255; 3]).cycle().take(2 * 43 * 3).collect();
        let picture = Picture::new(2, 43, rgb.clone()).unwrap();
        let tensor = to_tensor(&picture, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [1, 3, 43, 2]);
        assert_eq!(to_pictures(&tensor).unwrap()[0].rgb, rgb);
    }

    #[test]
    fn values_beyond_the_range_are_clamped_and_nan_is_refused() {
        let pixels = |v: f32| Tensor::full(v, (1, 3, 8, 8), &Device::Cpu).unwrap();
        assert!(to_pictures(&pixels(7.0)).unwrap()[0].rgb.iter().all(|b| *b == 255));
        assert!(to_pictures(&pixels(f32::NEG_INFINITY)).unwrap()[0].rgb.iter().all(|b| *b == 0));
        assert_eq!(to_pictures(&pixels(f32::NAN)).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn a_rough_picture_has_a_pixel_for_each_latent() {
        let latents = Tensor::zeros((2, 4, 3, 5), DType::F32, &Device::Cpu).unwrap();
        let picture = rough(&latents).unwrap().unwrap();
        assert_eq!((picture.width, picture.height), (5, 3));
        assert!(picture.rgb.iter().all(|b| *b == 128));
        assert!(rough(&Tensor::zeros((1, 8, 3, 5), DType::F32, &Device::Cpu).unwrap()).unwrap().is_none());
    }
}
