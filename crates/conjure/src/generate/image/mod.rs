//! Words become a picture: Stable Diffusion from request to pixels.
//!
//! ```text
//! ImageRequest -> inputs (files) -> words (text encoder) -> start (noise, start picture, mask)
//!              -> pipeline (sampler over the U-Net) -> pixels (autoencoder's decoder) -> Generation
//! ```

mod adapters;
mod best_of;
mod inputs;
mod job;
mod memory;
pub(crate) mod open;
pub(crate) mod pipeline;
pub(crate) mod pixels;
mod recipe;
mod replay;
mod request;
mod shipped;
mod start;
mod strip;
mod tiny;
mod upscale;
pub(crate) mod words;

pub use adapters::{Adapters, LoraFile};
pub use best_of::{BestOf, Choice, Chosen, MAX_CANDIDATES};
pub use conjure_core::rng::Mode as RngMode;
pub use conjure_core::sampling::{Sampler, Schedule};
pub use open::BUILT_IN;
pub use pipeline::{Control, Event, Generation, Output, Pipeline};
pub use replay::Difference;
pub use request::{ImageRequest, MAX_BATCH, MAX_PROMPT, MAX_SIDE, MAX_STEPS, STRIP_STEPS, Strip};
pub use shipped::{DEFAULT_MODEL, Recommended, SHIPPED, find, find_with};
pub use tiny::save_tiny;
pub use upscale::{FACTORS, Upscaler};

use std::hash::{BuildHasher as _, RandomState};

/// A seed that nobody chose, short enough to be typed again. PyTorch's CPU generator uses 32 bits of a seed.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX)
}
