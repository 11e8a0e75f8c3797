//! Making a picture again, and comparing.

use crate::image_file::Picture;
use serde::Serialize;

/// How far two pictures are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Whether every pixel is the same.
    pub identical: bool,
    /// The largest difference of a colour value, of 255.
    pub max_difference: u8,
    /// Share of colour values that differ.
    pub share: f64,
    /// Peak signal-to-noise ratio in decibels; `None` for identical pictures, where it is infinite.
    pub psnr: Option<f64>,
}

impl Difference {
    /// Compares two pictures; `None` if their sizes differ.
    pub fn between(a: &Picture, b: &Picture) -> Option<Self> {
        if (a.width, a.height) != (b.width, b.height) {
            return None;
        }
        let differences: Vec<u8> = a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b)).collect();
        let n = differences.len() as f64;
        let mean_square = differences.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>() / n;
        let max_difference = differences.iter().copied().max().unwrap_or(0);
        Some(Self {
            identical: max_difference == 0,
            max_difference,
            share: differences.iter().filter(|d| **d > 0).count() as f64 / n,
            psnr: (mean_square > 0.0).then(|| 10.0 * (255.0 * 255.0 / mean_square).log10()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_compared_value_by_value() {
        let a = Picture::filled(2, 2, [10, 20, 30]);
        let mut b = a.clone();
        let same = Difference::between(&a, &b).unwrap();
        assert_eq!(same, Difference { identical: true, max_difference: 0, share: 0.0, psnr: None });
        b.rgb[5] -= 12;
        let different = Difference::between(&a, &b).unwrap();
        assert_eq!((different.identical, different.max_difference, different.share), (false, 12, 1.0 / 12.0));
        // Mean square 144 / 12 = 12: 10 log10(65025 / 12).
        assert!((different.psnr.unwrap() - 37.3387).abs() < 1e-3, "{different:?}");
        assert_eq!(Difference::between(&a, &Picture::filled(2, 3, [0; 3])), None);
    }
}
