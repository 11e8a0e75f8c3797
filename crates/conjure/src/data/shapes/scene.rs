//! What a scene holds, and how it is said in words.

use conjure_core::rng::Philox;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A disc.
    Circle,
    /// With horizontal and vertical sides.
    Square,
    /// Pointing up.
    Triangle,
    /// Of five points, one of them up.
    Star,
    /// A square on its corner.
    Diamond,
}

/// The colour of an object. The background is white.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Black,
}

/// How large an object is: `Medium` is not said in captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Size {
    Small,
    Medium,
    Large,
}

/// Where one object is, seen from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Direction {
    Above,
    Below,
    LeftOf,
    RightOf,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 5] = [Self::Circle, Self::Square, Self::Triangle, Self::Star, Self::Diamond];

    /// The English word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Diamond => "diamond",
        }
    }
}

impl Colour {
    /// All colours.
    pub const ALL: [Self; 7] =
        [Self::Red, Self::Orange, Self::Yellow, Self::Green, Self::Blue, Self::Purple, Self::Black];

    /// The English word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Purple => "purple",
            Self::Black => "black",
        }
    }

    /// Red, green and blue with which it is drawn.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 40, 40],
            Self::Orange => [245, 140, 30],
            Self::Yellow => [250, 215, 40],
            Self::Green => [40, 160, 70],
            Self::Blue => [40, 90, 220],
            Self::Purple => [140, 60, 190],
            Self::Black => [30, 30, 30],
        }
    }
}

impl Size {
    /// All sizes.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// The smallest and the largest radius, as a share of the picture's side.
    pub fn radii(self) -> (f32, f32) {
        match self {
            Self::Small => (0.09, 0.105),
            Self::Medium => (0.135, 0.16),
            Self::Large => (0.20, 0.23),
        }
    }
}

impl Direction {
    /// All directions.
    pub const ALL: [Self; 4] = [Self::Above, Self::Below, Self::LeftOf, Self::RightOf];

    /// The words between two objects.
    pub fn words(self) -> &'static str {
        match self {
            Self::Above => "above",
            Self::Below => "below",
            Self::LeftOf => "to the left of",
            Self::RightOf => "to the right of",
        }
    }

    /// Whether a point lies in this direction from another, `(x, y)` with y downwards: further in this direction than
    /// to either side.
    pub fn holds(self, a: (f32, f32), b: (f32, f32)) -> bool {
        let (dx, dy) = (a.0 - b.0, a.1 - b.1);
        match self {
            Self::Above => -dy > dx.abs(),
            Self::Below => dy > dx.abs(),
            Self::LeftOf => -dx > dy.abs(),
            Self::RightOf => dx > dy.abs(),
        }
    }
}

/// A shape somewhere. Lengths are shares of the picture's side, measured from its top left corner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// What it is.
    pub shape: Shape,
    /// Its colour; no two objects of a scene share one.
    pub colour: Colour,
    /// How large it is called.
    pub size: Size,
    /// Middle of its bounding square.
    pub x: f32,
    /// Middle of its bounding square, downwards.
    pub y: f32,
    /// Half the side of its bounding square.
    pub radius: f32,
}

/// Object `first` lies in `direction` from object `second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Index in [`Scene::objects`].
    pub first: usize,
    /// Where it lies.
    pub direction: Direction,
    /// Index in [`Scene::objects`].
    pub second: usize,
}

/// One to three objects, and a relation for each after the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The objects, in the order in which the caption names them.
    pub objects: Vec<Object>,
    /// What the caption says about their places.
    pub relations: Vec<Relation>,
}

/// Space kept free around each object.
const MARGIN: f32 = 0.03;
/// Arrangements that are tried for one choice of objects, and choices of objects: more than enough by far.
const TRIES: usize = 200;

/// Numbers of one scene.
struct Dice {
    seed: u64,
    index: u64,
    block: u64,
    left: Vec<u32>,
}

impl Dice {
    fn next(&mut self) -> u32 {
        if self.left.is_empty() {
            self.left = Philox::block(self.seed, self.index, self.block).to_vec();
            self.block += 1;
        }
        self.left.pop().unwrap_or_default()
    }

    /// A whole number below `n`; that 2^32 is no multiple of `n` shifts probabilities by less than 1e-8.
    fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.next()) * n as u64) >> 32) as usize
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (f64::from(self.next()) / 2.0_f64.powi(32)) as f32
    }
}

impl Scene {
    /// Scene `index` of the endless sequence that `seed` names.
    pub fn random(seed: u64, index: u64) -> Self {
        let mut dice = Dice { seed, index, block: 0, left: Vec::new() };
        let count = 1 + dice.below(3);
        for _ in 0..TRIES {
            let objects = choose(&mut dice, count);
            for _ in 0..TRIES {
                if let Some(scene) = arrange(&mut dice, &objects) {
                    return scene;
                }
            }
        }
        // Not reached in practice; a single object always fits.
        let object = Object { x: 0.5, y: 0.5, ..choose(&mut dice, 1)[0] };
        Self { objects: vec![object], relations: Vec::new() }
    }

    /// What the scene shows, in English.
    pub fn caption(&self) -> String {
        let name = |object: &Object| format!("{} {}", object.colour.name(), object.shape.name());
        let full = |object: &Object| {
            let size = match object.size {
                Size::Small => "small ",
                Size::Medium => "",
                Size::Large => "large ",
            };
            let words = format!("{size}{}", name(object));
            let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
            format!("{article} {words}")
        };
        let mut caption = self.objects.first().map(full).unwrap_or_default();
        let mut named = 1;
        for relation in &self.relations {
            let (first, second) = (&self.objects[relation.first], &self.objects[relation.second]);
            let words = relation.direction.words();
            if relation.second >= named {
                caption += &format!(" {words} {}", full(second));
                named = relation.second + 1;
            } else {
                caption += &format!(", and {} {words} the {}", full(first), name(second));
                named = relation.first + 1;
            }
        }
        caption
    }
}

/// Objects without a place.
fn choose(dice: &mut Dice, count: usize) -> Vec<Object> {
    let mut colours = Colour::ALL.to_vec();
    let object = |_| {
        let size = Size::ALL[dice.below(Size::ALL.len())];
        let (low, high) = size.radii();
        Object {
            shape: Shape::ALL[dice.below(Shape::ALL.len())],
            colour: colours.remove(dice.below(colours.len())),
            size,
            x: 0.0,
            y: 0.0,
            radius: dice.between(low, high),
        }
    };
    (0..count).map(object).collect()
}

/// Puts objects somewhere at random; nothing if they touch or a relation between neighbours in the list is not clear.
fn arrange(dice: &mut Dice, objects: &[Object]) -> Option<Scene> {
    let mut placed: Vec<Object> = Vec::new();
    let mut relations = Vec::new();
    for (n, &object) in objects.iter().enumerate() {
        let edge = object.radius + MARGIN;
        let object = Object { x: dice.between(edge, 1.0 - edge), y: dice.between(edge, 1.0 - edge), ..object };
        let apart = |other: &Object| {
            let gap = object.radius + other.radius + MARGIN;
            (object.x - other.x).abs() > gap || (object.y - other.y).abs() > gap
        };
        if !placed.iter().all(apart) {
            return None;
        }
        if let Some(last) = placed.last() {
            let (dx, dy) = (object.x - last.x, object.y - last.y);
            // Clearly in one direction: at least twice as far as to the side.
            let (along, aside) = (dx.abs().max(dy.abs()), dx.abs().min(dy.abs()));
            if along < 2.0 * aside {
                return None;
            }
            // The first relation is said of the first object, the next of the third.
            let (a, b) = if n == 1 { (0, 1) } else { (n, n - 1) };
            let (first, second) = if n == 1 { (*last, object) } else { (object, *last) };
            let direction = Direction::ALL
                .into_iter()
                .find(|direction| direction.holds((first.x, first.y), (second.x, second.y)))?;
            relations.push(Relation { first: a, direction, second: b });
        }
        placed.push(object);
    }
    Some(Scene { objects: placed, relations })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_read_like_english() {
        let object = |shape, colour, size, x, y| Object { shape, colour, size, x, y, radius: 0.1 };
        let circle = object(Shape::Circle, Colour::Red, Size::Small, 0.5, 0.2);
        let square = object(Shape::Square, Colour::Blue, Size::Medium, 0.5, 0.7);
        let star = object(Shape::Star, Colour::Orange, Size::Medium, 0.8, 0.7);
        let above = Relation { first: 0, direction: Direction::Above, second: 1 };
        let right = Relation { first: 2, direction: Direction::RightOf, second: 1 };
        let caption = |objects: &[Object], relations: &[Relation]| {
            Scene { objects: objects.to_vec(), relations: relations.to_vec() }.caption()
        };
        assert_eq!(caption(&[star], &[]), "an orange star");
        assert_eq!(caption(&[circle, square], &[above]), "a small red circle above a blue square");
        assert_eq!(
            caption(&[circle, square, star], &[above, right]),
            "a small red circle above a blue square, and an orange star to the right of the blue square"
        );
    }

    #[test]
    fn scenes_are_true_to_their_relations_and_fit() {
        let mut counts = [0; 3];
        for index in 0..2000 {
            let scene = Scene::random(9, index);
            counts[scene.objects.len() - 1] += 1;
            assert_eq!(scene.relations.len(), scene.objects.len() - 1);
            for relation in &scene.relations {
                let (a, b) = (scene.objects[relation.first], scene.objects[relation.second]);
                assert!(relation.direction.holds((a.x, a.y), (b.x, b.y)));
            }
            for (n, a) in scene.objects.iter().enumerate() {
                assert!(a.x > a.radius && a.x < 1.0 - a.radius && a.y > a.radius && a.y < 1.0 - a.radius);
                for b in &scene.objects[..n] {
                    assert_ne!(a.colour, b.colour);
                    let gap = a.radius + b.radius;
                    assert!((a.x - b.x).abs() > gap || (a.y - b.y).abs() > gap);
                }
            }
        }
        // A third each: 667, standard deviation 21.
        assert!(counts.iter().all(|count| (580..760).contains(count)), "{counts:?}");
    }
}
