//! Drawing a scene.

use super::scene::{Object, Scene, Shape};
use crate::image_file::Picture;
use crate::{Error, Result};

/// Samples along each side of a pixel: edges have 17 shades.
const SAMPLES: usize = 4;
/// Radius of a star's inner corners, its points being at 1.
const STAR_WAIST: f32 = 0.45;

/// The outline of a shape in the square from -1 to 1, y downwards.
pub(super) enum Outline {
    Disc,
    /// Corners in order.
    Polygon(Vec<(f32, f32)>),
}

impl Outline {
    /// The outline that fills the square.
    pub fn of(shape: Shape) -> Self {
        match shape {
            Shape::Circle => Self::Disc,
            Shape::Square => Self::Polygon(vec![(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
            Shape::Triangle => Self::Polygon(vec![(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
            Shape::Diamond => Self::Polygon(vec![(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]),
            Shape::Star => {
                let corner = |n: usize| {
                    let radius = if n.is_multiple_of(2) { 1.0 } else { STAR_WAIST };
                    let angle = n as f32 * std::f32::consts::PI / 5.0;
                    (radius * angle.sin(), -radius * angle.cos())
                };
                let corners: Vec<_> = (0..10).map(corner).collect();
                // A regular star is a little narrower and lower than the circle around it.
                let (wide, low) = ((0.4 * std::f32::consts::PI).sin(), (0.2 * std::f32::consts::PI).cos());
                let stretch = |(x, y): (f32, f32)| (x / wide, (y + 1.0) / (low + 1.0) * 2.0 - 1.0);
                Self::Polygon(corners.into_iter().map(stretch).collect())
            }
        }
    }

    /// Whether a point is inside.
    pub fn contains(&self, x: f32, y: f32) -> bool {
        match self {
            Self::Disc => x * x + y * y <= 1.0,
            Self::Polygon(corners) => {
                // A ray to the right crosses the outline an odd number of times.
                let mut inside = false;
                let mut last = corners[corners.len() - 1];
                for &corner in corners {
                    let ((x1, y1), (x2, y2)) = (last, corner);
                    if (y1 > y) != (y2 > y) && x < (x2 - x1) * (y - y1) / (y2 - y1) + x1 {
                        inside = !inside;
                    }
                    last = corner;
                }
                inside
            }
        }
    }
}

/// The scene at `size` pixels a side on white, with smooth edges.
///
/// # Errors
/// `size` is 0 or above 16384.
pub fn draw(scene: &Scene, size: usize) -> Result<Picture> {
    if !(1..=16_384).contains(&size) {
        return Err(Error::request(format!("a scene of {size} pixels a side")));
    }
    let mut picture = Picture::filled(size, size, [255; 3]);
    for object in &scene.objects {
        add(&mut picture, object);
    }
    Ok(picture)
}

fn add(picture: &mut Picture, object: &Object) {
    let size = picture.width;
    let outline = Outline::of(object.shape);
    let span = |middle: f32| {
        let pixel = |at: f32| (at * size as f32).clamp(0.0, size as f32);
        pixel(middle - object.radius).floor() as usize..pixel(middle + object.radius).ceil() as usize
    };
    let local = |pixel: usize, sample: usize, middle: f32| {
        let at = (pixel as f32 + (sample as f32 + 0.5) / SAMPLES as f32) / size as f32;
        (at - middle) / object.radius
    };
    for row in span(object.y) {
        for column in span(object.x) {
            let inside = (0..SAMPLES * SAMPLES)
                .filter(|n| outline.contains(local(column, n % SAMPLES, object.x), local(row, n / SAMPLES, object.y)));
            let share = inside.count() as f32 / (SAMPLES * SAMPLES) as f32;
            let at = (row * size + column) * 3;
            for (value, colour) in picture.rgb[at..at + 3].iter_mut().zip(object.colour.rgb()) {
                *value = (f32::from(*value) * (1.0 - share) + f32::from(colour) * share).round() as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes::{Colour, Size};

    fn scene(shape: Shape) -> Scene {
        let object = Object { shape, colour: Colour::Black, size: Size::Large, x: 0.5, y: 0.5, radius: 0.25 };
        Scene { objects: vec![object], relations: Vec::new() }
    }

    #[test]
    fn areas_are_those_of_geometry() -> Result<()> {
        // Share of the bounding square. A star of waist w covers 5 w sin(36 degrees) of the circle's square of radius 1,
        // stretched as its bounding box of 2 sin(72 degrees) by 1 + cos(36 degrees) is.
        let star = 5.0 * f64::from(STAR_WAIST) * 0.587_785 / (2.0 * 0.951_057 * 1.809_017);
        let shares = [std::f64::consts::PI / 4.0, 1.0, 0.5, star, 0.5];
        for (shape, share) in Shape::ALL.into_iter().zip(shares) {
            let picture = draw(&scene(shape), 128)?;
            let ink: f64 = picture.rgb.iter().map(|&v| (255.0 - f64::from(v)) / 225.0).sum();
            let area = ink / 3.0 / (64.0 * 64.0);
            assert!((area - share).abs() < 0.01, "{shape:?}: {area} instead of {share}");
        }
        Ok(())
    }

    #[test]
    fn edges_are_smooth_and_the_rest_is_flat() -> Result<()> {
        let picture = draw(&scene(Shape::Circle), 64)?;
        let at = |x: usize, y: usize| picture.rgb[(y * 64 + x) * 3];
        assert_eq!((at(32, 32), at(0, 0)), (30, 255));
        let shades = picture.rgb.iter().filter(|v| !matches!(v, 30 | 255)).count();
        assert!(shades > 100, "{shades}");
        assert!(draw(&scene(Shape::Star), 0).is_err());
        Ok(())
    }
}
