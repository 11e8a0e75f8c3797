//! How much two pictures of the same thing differ.

use crate::image_file::Picture;
use crate::{Error, Result};

/// Peak signal-to-noise ratio in decibels over all pixel values: `10 log10(255^2 / mean squared error)`; infinite for equal
/// pictures.
///
/// # Errors
/// Pictures of different sizes.
pub fn psnr(a: &Picture, b: &Picture) -> Result<f64> {
    same_size(a, b)?;
    let squares: u64 = a.rgb.iter().zip(&b.rgb).map(|(x, y)| u64::from(x.abs_diff(*y)).pow(2)).sum();
    Ok(10.0 * (255.0f64.powi(2) * a.rgb.len() as f64 / squares as f64).log10())
}

/// Side of the window, its standard deviation, and the two constants ("Image Quality Assessment: From Error Visibility to
/// Structural Similarity", Wang et al. 2004, section III.B).
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// Structural similarity (Wang et al. 2004, equation 13), with their Gaussian window of 11 pixels, averaged over the
/// positions where the window lies inside the picture and over the three colours. 1 for equal pictures.
///
/// # Errors
/// Pictures of different sizes, or smaller than the window.
pub fn ssim(a: &Picture, b: &Picture) -> Result<f64> {
    same_size(a, b)?;
    if a.width < WINDOW || a.height < WINDOW {
        return Err(Error::request(format!(
            "{}x{} pixels are too few for SSIM, which needs {WINDOW}",
            a.width, a.height
        )));
    }
    let plane = |picture: &Picture, colour: usize| -> Vec<f64> {
        picture.rgb.iter().skip(colour).step_by(3).map(|&v| f64::from(v)).collect()
    };
    let product = |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let mut total = 0.0;
    for colour in 0..3 {
        let (x, y) = (plane(a, colour), plane(b, colour));
        let smooth = |values: &[f64]| smoothed(values, a.width, a.height);
        let (mx, my) = (smooth(&x), smooth(&y));
        let (xx, yy, xy) = (smooth(&product(&x, &x)), smooth(&product(&y, &y)), smooth(&product(&x, &y)));
        let sum: f64 = (0..mx.len())
            .map(|i| {
                let (variances, covariance) = (xx[i] - mx[i] * mx[i] + yy[i] - my[i] * my[i], xy[i] - mx[i] * my[i]);
                (2.0 * mx[i] * my[i] + C1) * (2.0 * covariance + C2)
                    / ((mx[i] * mx[i] + my[i] * my[i] + C1) * (variances + C2))
            })
            .sum();
        total += sum / mx.len() as f64;
    }
    Ok(total / 3.0)
}

/// The Gaussian-weighted mean around each position whose window lies inside.
fn smoothed(values: &[f64], width: usize, height: usize) -> Vec<f64> {
    let mut kernel = [0.0; WINDOW];
    for (i, weight) in kernel.iter_mut().enumerate() {
        let distance = i as f64 - (WINDOW / 2) as f64;
        *weight = (-distance * distance / (2.0 * SIGMA * SIGMA)).exp();
    }
    let sum: f64 = kernel.iter().sum();
    let kernel = kernel.map(|weight| weight / sum);
    let inner = width - WINDOW + 1;
    let mut rows = Vec::with_capacity(inner * height);
    for row in values.chunks_exact(width) {
        rows.extend(row.windows(WINDOW).map(|window| window.iter().zip(&kernel).map(|(v, w)| v * w).sum::<f64>()));
    }
    let mut out = Vec::with_capacity(inner * (height - WINDOW + 1));
    for y in 0..=height - WINDOW {
        out.extend((0..inner).map(|x| (0..WINDOW).map(|i| rows[(y + i) * inner + x] * kernel[i]).sum::<f64>()));
    }
    out
}

fn same_size(a: &Picture, b: &Picture) -> Result<()> {
    if (a.width, a.height) == (b.width, b.height) {
        return Ok(());
    }
    let message =
        format!("pictures of {}x{} and {}x{} pixels cannot be compared", a.width, a.height, b.width, b.height);
    Err(Error::request(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pictures of `tools/reference/picture_quality.py`.
    fn picture(phase: usize) -> Picture {
        let (width, height) = (24, 17);
        let rgb = (0..width * height * 3).map(|i| ((i * i / 7 + i * phase * 3 + phase * 11) % 256) as u8).collect();
        Picture::new(width, height, rgb).unwrap()
    }

    #[test]
    fn agrees_with_scikit_image() {
        let (a, b) = (picture(0), picture(1));
        assert!((psnr(&a, &b).unwrap() - PSNR).abs() < 1e-9, "{}", psnr(&a, &b).unwrap());
        assert!((ssim(&a, &b).unwrap() - SSIM).abs() < 1e-9, "{}", ssim(&a, &b).unwrap());
    }

    #[test]
    fn equal_pictures_are_perfect_and_others_must_fit() {
        let a = picture(0);
        assert_eq!(psnr(&a, &a).unwrap(), f64::INFINITY);
        assert!((ssim(&a, &a).unwrap() - 1.0).abs() < 1e-12);
        assert!(psnr(&a, &Picture::filled(24, 16, [0; 3])).is_err());
        assert!(ssim(&Picture::filled(9, 9, [0; 3]), &Picture::filled(9, 9, [0; 3])).is_err());
    }

    const PSNR: f64 = 7.731658348414515;
    const SSIM: f64 = -0.06429859308700092;
}
