//! What models are trained on: pictures with words, and texts.
//!
//! | module | question it answers |
//! |---|---|
//! | [`dataset`] | what is a data set to those who train on it? |
//! | [`archive`] | how does a data set travel as one file, and how is a stranger's file read safely? |
//! | [`folder`] | how do the user's own pictures and captions become a data set? |
//! | [`caption`] | which captions does a picture have, of its name, keywords and style? |
//! | [`asking`] | in which other words would people ask for it? |
//! | [`shapes`] | what if there are no pictures, or it must be known exactly what one shows? |
//! | [`texts`] | how do the user's own texts become documents? |
//! | [`emoji`] | where does the set that ships with Conjure come from, and what is kept from the model? |
//! | [`spread`] | which few stand for many, where looking at all takes too long? |
//! | [`translation`] | what says the same in several languages, and which pairs is a translator trained on? |

pub mod archive;
mod area;
pub mod asking;
pub mod caption;
pub mod dataset;
pub mod emoji;
pub mod folder;
pub mod shapes;
mod spread;
pub mod texts;
pub mod translation;

pub use dataset::{Dataset, Record, Selection, Skipped, Split};
pub use spread::spread;
