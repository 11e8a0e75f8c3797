//! Does a picture show a scene?
//!
//! Made for pictures that models paint: colours a little off, edges soft, noise. Pixels are named by hue, which mixing with
//! white does not change; connected pixels of one name are an object; its shape is the one whose outline, put at the same
//! middle with the same area, overlaps it most. Corners may be rounded, then: they are a small part of the area.
//! Where an object is does not matter beyond what the caption says.

use super::draw::Outline;
use super::scene::{Colour, Object, Scene, Shape, Size};
use crate::image_file::Picture;

/// Fewer pixels, as a share of the picture, are noise.
const MIN_AREA: f32 = 0.004;
/// An object's overlap with the outline of its shape, intersection over union, must reach this.
const MIN_OVERLAP: f32 = 0.7;
/// Between the radii that are called small, medium and large.
const SMALL_BELOW: f32 = 0.12;
const LARGE_ABOVE: f32 = 0.18;
/// Pixels whose red, green and blue all reach this are background: half-way from any of the colours to white.
const LIGHT: u8 = 148;
/// Difference between the strongest and the weakest of red, green and blue from which a pixel has a hue.
const MIN_CHROMA: u8 = 60;
/// Without a hue, a pixel is black if red, green and blue are all below.
const BLACK_BELOW: u8 = 160;
/// Smaller pictures are enlarged to about this side, so that outlines are compared at a fraction of their pixels.
const SIDE: usize = 192;
/// Pictures are enlarged by no more: one of a few pixels shows nothing.
const MAX_FACTOR: usize = 8;
/// Grid on which an outline's area and middle are measured.
const GRID: usize = 64;

/// What was found of one object of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectVerdict {
    /// Something of its colour is there.
    pub present: bool,
    /// It has the shape.
    pub shape: bool,
    /// It has the size that the caption says; where it says none, any will do.
    pub size: bool,
}

impl ObjectVerdict {
    /// Whether all is as the caption says.
    pub fn right(self) -> bool {
        self.present && self.shape && self.size
    }
}

/// What was found of a scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// For each object of the scene.
    pub objects: Vec<ObjectVerdict>,
    /// For each relation of the scene; false where one of its objects is not there.
    pub relations: Vec<bool>,
    /// Things in the picture that the caption does not name.
    pub extra: usize,
}

impl Verdict {
    /// Whether the picture shows all that the caption says and nothing else.
    pub fn right(&self) -> bool {
        self.extra == 0 && self.objects.iter().all(|object| object.right()) && self.relations.iter().all(|&holds| holds)
    }
}

/// Something that was found in a picture. Lengths are shares of the picture's longer side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The colour of most of its pixels.
    pub colour: Colour,
    /// The shape that it overlaps most, if that is enough.
    pub shape: Option<Shape>,
    /// Middle of the square around it.
    pub x: f32,
    /// Middle of the square around it, downwards.
    pub y: f32,
    /// Half the side of the square around it.
    pub radius: f32,
    /// Share of the picture's pixels.
    pub area: f32,
}

/// Compares a picture of any size with a scene.
pub fn check(picture: &Picture, scene: &Scene) -> Verdict {
    let found = find(picture);
    let largest = |object: &Object| {
        let same = found.iter().filter(|found| found.colour == object.colour);
        same.max_by(|a, b| a.area.total_cmp(&b.area))
    };
    let matched: Vec<Option<&Found>> = scene.objects.iter().map(largest).collect();
    let verdict = |(object, found): (&Object, &Option<&Found>)| ObjectVerdict {
        present: found.is_some(),
        shape: found.is_some_and(|found| found.shape == Some(object.shape)),
        size: found.is_some_and(|found| match object.size {
            Size::Small => found.radius < SMALL_BELOW,
            Size::Medium => true,
            Size::Large => found.radius > LARGE_ABOVE,
        }),
    };
    let holds = |first: usize, second: usize, direction: super::Direction| match (matched[first], matched[second]) {
        (Some(a), Some(b)) => direction.holds((a.x, a.y), (b.x, b.y)),
        _ => false,
    };
    Verdict {
        objects: scene.objects.iter().zip(&matched).map(verdict).collect(),
        relations: scene.relations.iter().map(|r| holds(r.first, r.second, r.direction)).collect(),
        extra: found.len() - matched.iter().flatten().count(),
    }
}

/// All coloured things on the picture's light background, in the order of their first pixel.
pub fn find(picture: &Picture) -> Vec<Found> {
    let factor = SIDE.div_ceil(picture.width.max(picture.height)).min(MAX_FACTOR);
    let enlarged = picture.resized(picture.width * factor, picture.height * factor);
    // Only sizes beyond all limits are refused, and those are left as they are.
    let picture = enlarged.as_ref().unwrap_or(picture);
    let (width, height) = (picture.width, picture.height);
    let named: Vec<Option<Colour>> = picture.rgb.chunks_exact(3).map(|p| name([p[0], p[1], p[2]])).collect();
    let named = without_specks(&named, width, height);
    let mut seen = vec![false; named.len()];
    let mut found = Vec::new();
    let mut stack = Vec::new();
    for start in 0..named.len() {
        let Some(colour) = named[start].filter(|_| !seen[start]) else { continue };
        let mut pixels = Vec::new();
        seen[start] = true;
        stack.push(start);
        while let Some(at) = stack.pop() {
            pixels.push(at);
            let (x, y) = (at % width, at / width);
            let neighbours = [
                (x > 0).then(|| at - 1),
                (x + 1 < width).then_some(at + 1),
                (y > 0).then(|| at - width),
                (y + 1 < height).then_some(at + width),
            ];
            for next in neighbours.into_iter().flatten() {
                if !seen[next] && named[next] == Some(colour) {
                    seen[next] = true;
                    stack.push(next);
                }
            }
        }
        let area = pixels.len() as f32 / named.len() as f32;
        if area >= MIN_AREA {
            found.push(measure(&pixels, colour, area, width, height));
        }
    }
    found
}

/// The name of a pixel's colour; none for white, grey and what is too pale to tell.
fn name([r, g, b]: [u8; 3]) -> Option<Colour> {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if min >= LIGHT {
        return None;
    }
    let chroma = max - min;
    if chroma < MIN_CHROMA {
        return (max < BLACK_BELOW).then_some(Colour::Black);
    }
    let [r, g, b, chroma] = [r, g, b, chroma].map(f32::from);
    let max = f32::from(max);
    let sixth = if max == r {
        ((g - b) / chroma).rem_euclid(6.0)
    } else if max == g {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    };
    match sixth * 60.0 {
        15.0..41.0 => Some(Colour::Orange),
        41.0..70.0 => Some(Colour::Yellow),
        70.0..175.0 => Some(Colour::Green),
        175.0..252.0 => Some(Colour::Blue),
        252.0..315.0 => Some(Colour::Purple),
        _ => Some(Colour::Red),
    }
}

/// Gives every pixel the name that most of its eight neighbours and itself have, if five or more agree; others keep theirs.
fn without_specks(named: &[Option<Colour>], width: usize, height: usize) -> Vec<Option<Colour>> {
    let around = |at: usize| {
        let (x, y) = (at % width, at / width);
        let rows = y.saturating_sub(1)..=(y + 1).min(height - 1);
        let mut counts = [0; Colour::ALL.len() + 1];
        for row in rows {
            for column in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                counts[named[row * width + column].map_or(Colour::ALL.len(), |colour| colour as usize)] += 1;
            }
        }
        match counts.iter().position(|&count| count >= 5) {
            Some(most) => Colour::ALL.get(most).copied(),
            None => named[at],
        }
    };
    (0..named.len()).map(around).collect()
}

fn measure(pixels: &[usize], colour: Colour, area: f32, width: usize, height: usize) -> Found {
    let columns = pixels.iter().map(|at| at % width);
    let rows = pixels.iter().map(|at| at / width);
    let (left, right) = (columns.clone().min().unwrap_or(0), columns.max().unwrap_or(0) + 1);
    let (top, bottom) = (rows.clone().min().unwrap_or(0), rows.max().unwrap_or(0) + 1);
    let (wide, high) = (right - left, bottom - top);
    let mut filled = vec![false; wide * high];
    let (mut sum_x, mut sum_y) = (0.0, 0.0);
    for at in pixels {
        filled[(at / width - top) * wide + at % width - left] = true;
        sum_x += (at % width - left) as f64 + 0.5;
        sum_y += (at / width - top) as f64 + 0.5;
    }
    let count = pixels.len() as f64;
    let middle = ((sum_x / count) as f32, (sum_y / count) as f32);
    let fits = Shape::ALL.map(|shape| Fit::new(shape, &filled, wide, count as f32, middle));
    let best = fits.into_iter().max_by(|a, b| a.overlap.total_cmp(&b.overlap)).filter(|fit| fit.overlap >= MIN_OVERLAP);
    let (x, y, radius) = best
        .as_ref()
        .map_or((wide as f32 / 2.0, high as f32 / 2.0, wide.max(high) as f32 / 2.0), |fit| (fit.x, fit.y, fit.radius));
    let longest = width.max(height) as f32;
    Found {
        colour,
        shape: best.map(|fit| fit.shape),
        x: (left as f32 + x) / longest,
        y: (top as f32 + y) / longest,
        radius: radius / longest,
        area,
    }
}

/// An outline put over an object, in pixels of the object's bounding box.
struct Fit {
    shape: Shape,
    /// Intersection over union.
    overlap: f32,
    x: f32,
    y: f32,
    radius: f32,
}

impl Fit {
    /// The outline with the object's area and middle.
    fn new(shape: Shape, filled: &[bool], wide: usize, area: f32, middle: (f32, f32)) -> Self {
        let outline = Outline::of(shape);
        let (share, own_x, own_y) = extent(&outline);
        let radius = (area / (4.0 * share)).sqrt();
        let (x, y) = (middle.0 - own_x * radius, middle.1 - own_y * radius);
        let high = filled.len() / wide;
        let (mut both, mut drawn) = (0.0, 0.0);
        // The outline may reach beyond the object's bounding box.
        let beyond = radius.ceil() as isize;
        for row in -beyond..high as isize + beyond {
            for column in -beyond..wide as isize + beyond {
                let local = |at: isize, middle: f32| (at as f32 + 0.5 - middle) / radius;
                if outline.contains(local(column, x), local(row, y)) {
                    drawn += 1.0;
                    let inside = (0..high as isize).contains(&row) && (0..wide as isize).contains(&column);
                    if inside && filled[row as usize * wide + column as usize] {
                        both += 1.0;
                    }
                }
            }
        }
        Self { shape, overlap: both / (area + drawn - both), x, y, radius }
    }
}

/// What share of its square an outline fills, and where the middle of its area is.
fn extent(outline: &Outline) -> (f32, f32, f32) {
    let (mut count, mut x, mut y) = (0.0_f32, 0.0, 0.0);
    for n in 0..GRID * GRID {
        let at = |n: usize| (n as f32 + 0.5) / GRID as f32 * 2.0 - 1.0;
        let (column, row) = (at(n % GRID), at(n / GRID));
        if outline.contains(column, row) {
            count += 1.0;
            x += column;
            y += row;
        }
    }
    (count / (GRID * GRID) as f32, x / count, y / count)
}

#[cfg(test)]
mod tests {
    use super::super::{Direction, Relation, draw};
    use super::*;
    use crate::Result;

    fn object(shape: Shape, colour: Colour, size: Size, x: f32, y: f32) -> Object {
        Object { shape, colour, size, x, y, radius: (size.radii().0 + size.radii().1) / 2.0 }
    }

    fn pair() -> Scene {
        let circle = object(Shape::Circle, Colour::Red, Size::Small, 0.5, 0.2);
        let square = object(Shape::Square, Colour::Blue, Size::Large, 0.45, 0.7);
        Scene {
            objects: vec![circle, square],
            relations: vec![Relation { first: 0, direction: Direction::Above, second: 1 }],
        }
    }

    /// Noise of up to `strength`, the same every time, and a blur over 3 x 3 pixels: what a model paints.
    fn spoiled(picture: &Picture, strength: i32) -> Picture {
        let (width, height) = (picture.width, picture.height);
        let value = |x: usize, y: usize, c: usize| {
            let mut sum = 0;
            for dy in [height - 1, 0, 1] {
                for dx in [width - 1, 0, 1] {
                    sum += i32::from(picture.rgb[((y + dy) % height * width + (x + dx) % width) * 3 + c]);
                }
            }
            let n = ((y * width + x) * 3 + c) as u64;
            let noise = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as i32 % (2 * strength + 1) - strength;
            (sum / 9 + noise).clamp(0, 255) as u8
        };
        let all = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (x, y, c))));
        Picture { width, height, rgb: all.map(|(x, y, c)| value(x, y, c)).collect() }
    }

    #[test]
    fn what_was_drawn_is_found() -> Result<()> {
        for size in [48, 64, 128] {
            for index in 0..150 {
                let scene = Scene::random(3, index);
                let verdict = check(&draw(&scene, size)?, &scene);
                assert!(verdict.right(), "{size} pixels, {index}: {}: {verdict:?}", scene.caption());
            }
        }
        Ok(())
    }

    #[test]
    fn soft_edges_and_noise_do_not_deceive() -> Result<()> {
        let right = |index: &u64| -> Result<bool> {
            let scene = Scene::random(4, *index);
            Ok(check(&spoiled(&draw(&scene, 64)?, 25), &scene).right())
        };
        let count = (0..150).map(|index| right(&index)).collect::<Result<Vec<_>>>()?.into_iter().filter(|r| *r).count();
        assert!(count >= 140, "{count} of 150");
        Ok(())
    }

    #[test]
    fn each_thing_that_is_wrong_is_told() -> Result<()> {
        let scene = pair();
        let verdict = |change: &dyn Fn(&mut Scene)| -> Result<Verdict> {
            let mut other = scene.clone();
            change(&mut other);
            Ok(check(&draw(&other, 64)?, &scene))
        };
        let right = ObjectVerdict { present: true, shape: true, size: true };
        assert_eq!(verdict(&|_| {})?, Verdict { objects: vec![right, right], relations: vec![true], extra: 0 });
        let shape = verdict(&|s| s.objects[0].shape = Shape::Triangle)?;
        assert_eq!(shape.objects, [ObjectVerdict { shape: false, ..right }, right]);
        assert!(!shape.right() && shape.relations == [true]);
        let size = verdict(&|s| s.objects[1].radius = 0.1)?;
        assert_eq!(size.objects, [right, ObjectVerdict { size: false, ..right }]);
        let colour = verdict(&|s| s.objects[0].colour = Colour::Green)?;
        let absent = ObjectVerdict { present: false, shape: false, size: false };
        assert_eq!(colour, Verdict { objects: vec![absent, right], relations: vec![false], extra: 1 });
        let place = verdict(&|s| (s.objects[0].y, s.objects[1].y) = (0.8, 0.3))?;
        assert_eq!(place, Verdict { objects: vec![right, right], relations: vec![false], extra: 0 });
        let swapped = verdict(&|s| (s.objects[0].colour, s.objects[1].colour) = (Colour::Blue, Colour::Red))?;
        assert_eq!(swapped.objects.iter().filter(|object| object.right()).count(), 0);
        assert_eq!(swapped.relations, [false]);
        let more = verdict(&|s| s.objects.push(object(Shape::Star, Colour::Green, Size::Small, 0.85, 0.2)))?;
        assert_eq!((more.extra, more.right()), (1, false));
        let missing = verdict(&|s| s.objects.truncate(1))?;
        assert_eq!(missing.objects, [right, absent]);
        Ok(())
    }

    #[test]
    fn empty_and_strange_pictures_hold_nothing() {
        let scene = pair();
        for picture in
            [Picture::filled(64, 64, [255; 3]), Picture::filled(64, 64, [128; 3]), Picture::filled(1, 1, [0; 3])]
        {
            assert!(!check(&picture, &scene).right());
        }
        assert_eq!(find(&Picture::filled(64, 64, [255; 3])), []);
        // A bar is no square.
        let mut bar = Picture::filled(64, 64, [255; 3]);
        bar.paste(&Picture::filled(60, 12, [220, 40, 40]), 2, 20);
        let found = find(&bar);
        assert_eq!((found.len(), found[0].colour, found[0].shape), (1, Colour::Red, None));
    }
}
