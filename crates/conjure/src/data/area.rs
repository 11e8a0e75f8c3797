//! The area filter: every new pixel is the mean of the area of old pixels that it covers.

use crate::image_file::Picture;
use crate::{Error, Result};

/// The middle square of a picture at `size` pixels a side. Smaller pictures are enlarged by [`Picture::resized`].
pub(super) fn square(picture: &Picture, size: usize) -> Result<Picture> {
    let side = picture.width.min(picture.height);
    let (left, top) = ((picture.width - side) / 2, (picture.height - side) / 2);
    if size == 0 {
        return Err(Error::request("a picture of 0 pixels a side has no content"));
    }
    if size >= side {
        let mut middle = Picture::filled(side, side, [0; 3]);
        for row in 0..side {
            let from = ((top + row) * picture.width + left) * 3;
            middle.rgb[row * side * 3..][..side * 3].copy_from_slice(&picture.rgb[from..from + side * 3]);
        }
        return middle.resized(size, size);
    }
    let spans = spans(side, size);
    let mut rgb = Vec::with_capacity(size * size * 3);
    let mut line = vec![0.0_f32; side * 3];
    let area = (side as f32 / size as f32).powi(2);
    for rows in &spans {
        line.fill(0.0);
        for (row, weight) in rows.iter() {
            let from = ((top + row) * picture.width + left) * 3;
            for (sum, &value) in line.iter_mut().zip(&picture.rgb[from..from + side * 3]) {
                *sum += weight * f32::from(value);
            }
        }
        for columns in &spans {
            let mut sum = [0.0_f32; 3];
            for (column, weight) in columns.iter() {
                for (sum, value) in sum.iter_mut().zip(&line[column * 3..]) {
                    *sum += weight * value;
                }
            }
            rgb.extend(sum.map(|sum| (sum / area).round() as u8));
        }
    }
    Picture::new(size, size, rgb)
}

/// Old pixels under one new one: the first, and how much of each is covered.
struct Span {
    first: usize,
    weights: Vec<f32>,
}

impl Span {
    fn iter(&self) -> impl Iterator<Item = (usize, f32)> {
        (self.first..).zip(self.weights.iter().copied())
    }
}

fn spans(from: usize, to: usize) -> Vec<Span> {
    let step = from as f64 / to as f64;
    let span = |n: usize| {
        let (start, end) = (n as f64 * step, ((n + 1) as f64 * step).min(from as f64));
        let first = start as usize;
        let covered = |pixel: usize| (end.min(pixel as f64 + 1.0) - start.max(pixel as f64)) as f32;
        Span { first, weights: (first..from).take_while(|&p| (p as f64) < end).map(covered).collect() }
    };
    (0..to).map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_factors_give_the_exact_mean() -> Result<()> {
        let rgb: Vec<u8> = (0..12 * 12 * 3).map(|n| (n * 7 % 256) as u8).collect();
        let picture = Picture::new(12, 12, rgb.clone())?;
        let small = square(&picture, 4)?;
        for y in 0..4 {
            for x in 0..4 {
                for c in 0..3 {
                    let at = |dy: usize, dx: usize| u32::from(rgb[((y * 3 + dy) * 12 + x * 3 + dx) * 3 + c]);
                    let sum: u32 = (0..9).map(|n| at(n / 3, n % 3)).sum();
                    assert_eq!(u32::from(small.rgb[(y * 4 + x) * 3 + c]), (sum * 2 + 9) / 18, "{x} {y} {c}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn other_factors_share_pixels_by_area() -> Result<()> {
        // 3 pixels become 2: the middle one is shared.
        let picture = Picture::new(3, 3, [[0; 3], [90; 3], [240; 3]].concat().repeat(3))?;
        let small = square(&picture, 2)?;
        assert_eq!(small.rgb[..6], [30, 30, 30, 190, 190, 190]);
        assert_eq!(square(&Picture::filled(50, 50, [1, 128, 255]), 7)?, Picture::filled(7, 7, [1, 128, 255]));
        Ok(())
    }

    #[test]
    fn a_wide_picture_is_cut_to_its_middle() -> Result<()> {
        let mut picture = Picture::filled(8, 4, [255, 0, 0]);
        picture.paste(&Picture::filled(4, 4, [0, 0, 255]), 2, 0);
        assert_eq!(square(&picture, 2)?, Picture::filled(2, 2, [0, 0, 255]));
        assert_eq!(square(&picture, 4)?, Picture::filled(4, 4, [0, 0, 255]));
        assert_eq!(square(&picture, 8)?, Picture::filled(8, 8, [0, 0, 255]));
        assert!(square(&picture, 0).is_err());
        Ok(())
    }
}
