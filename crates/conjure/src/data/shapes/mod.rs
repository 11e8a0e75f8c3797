//! Scenes of coloured shapes, drawn on the fly, whose captions say what is where.
//!
//! They test models and training without any data, and because [`check`](check()) can tell exactly what a picture shows, they
//! measure whether a model understands compositions: "a small red circle above a blue square".
//!
//! | module | question it answers |
//! |---|---|
//! | [`scene`] | what can a scene hold, and how is it said in words? |
//! | `draw` | how does it look? |
//! | [`check`](mod@check) | does a picture, however imperfect, show it? |

pub mod check;
mod draw;
pub mod scene;

pub use check::{ObjectVerdict, Verdict, check};
pub use draw::draw;
pub use scene::{Colour, Direction, Object, Relation, Scene, Shape, Size};

use super::dataset::{Dataset, Pixels, Record, Split};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The style of every record.
pub const STYLE: &str = "shapes";
/// Pixels a side that can be asked for.
const SIZES: std::ops::RangeInclusive<usize> = 16..=4096;
/// Most scenes of a data set: their captions are in memory.
const MAX_COUNT: usize = 5_000_000;

/// A data set of `count` scenes, drawn at `size` pixels a side when they are asked for; a larger one begins with the scenes
/// of a smaller one. Scenes with one of the colours of shapes that [`is_held_out`] names are held-out combinations.
///
/// # Errors
/// `count` is 0 or above 5 million; `size` is outside 16 to 4096.
pub fn dataset(count: usize, seed: u64, size: usize) -> Result<Dataset> {
    if !(1..=MAX_COUNT).contains(&count) {
        return Err(Error::request(format!("{count} scenes of shapes; the limits are 1 and {MAX_COUNT}")));
    }
    if !SIZES.contains(&size) {
        let message = format!("shapes of {size} pixels a side are outside {} to {}", SIZES.start(), SIZES.end());
        return Err(Error::request(message));
    }
    let record = |index: usize| {
        let scene = Scene::random(seed, index as u64);
        let held_out = scene.objects.iter().any(|object| is_held_out(object.colour, object.shape));
        Record {
            style: STYLE.to_owned(),
            source: format!("shapes/{seed}/{index}"),
            labels: Arc::new([("en".to_owned(), scene.caption())].into()),
            split: if held_out { Split::HeldOutCombination } else { Split::Train },
            ..Record::default()
        }
    };
    let digest = Sha256::digest(format!("conjure shapes 1\0{count}\0{seed}\0{size}"));
    let records = (0..count).map(record).collect();
    Ok(Dataset::new(records, Pixels::Shapes { seed, size }, crate::digest::hex(&digest)))
}

/// Whether a shape is kept from the model in this colour: one of seven colours for each shape. Every colour and every shape
/// is known from others.
pub fn is_held_out(colour: Colour, shape: Shape) -> bool {
    (colour as usize + 2 * shape as usize).is_multiple_of(Colour::ALL.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Selection;

    #[test]
    fn a_data_set_is_the_same_every_time_and_grows_at_its_end() -> Result<()> {
        let (small, large) = (dataset(20, 5, 32)?, dataset(40, 5, 32)?);
        assert_eq!((small.len(), large.len()), (20, 40));
        for i in 0..20 {
            assert_eq!(small.record(i), large.record(i));
            assert_eq!(small.rgb(i, 32)?, large.rgb(i, 32)?);
        }
        assert_eq!(small.digest(), dataset(20, 5, 32)?.digest());
        assert_ne!(small.digest(), dataset(20, 6, 32)?.digest());
        assert_ne!(small.record(0), dataset(1, 6, 32)?.record(0));
        assert!(dataset(0, 5, 32).is_err() && dataset(1, 5, 8).is_err());
        Ok(())
    }

    #[test]
    fn held_out_combinations_are_in_no_training_scene() -> Result<()> {
        let set = dataset(3000, 1, 16)?;
        let train = set.select(&Selection { splits: vec![Split::Train], ..Selection::default() });
        // Each object is held out with probability 5/35: of scenes with one to three objects about a quarter.
        assert!((2100..2500).contains(&train.len()), "{}", train.len());
        let captions: Vec<&str> = train.iter().map(|&i| set.record(i).labels["en"].as_str()).collect();
        for shape in Shape::ALL {
            let held: Vec<Colour> = Colour::ALL.into_iter().filter(|&colour| is_held_out(colour, shape)).collect();
            assert_eq!(held.len(), 1, "{shape:?}");
            for colour in Colour::ALL {
                let words = format!("{} {}", colour.name(), shape.name());
                let seen = captions.iter().any(|caption| caption.contains(&words));
                assert_eq!(seen, !held.contains(&colour), "{words}");
            }
        }
        Ok(())
    }
}
