//! Training: one loop for everything, with the objective plugged in.
//!
//! | module | question it answers |
//! |---|---|
//! | [`recipe`] | what can a run be told? |
//! | [`run`] | what happens, in which order, and what is kept? |
//! | [`objective`] | what does a model bring to be trained? |
//! | [`schedule`] | how large are the steps? |
//! | [`order`] | which examples come when? |
//! | [`pictures`] | which pictures does a recipe ask for? |
//! | [`autoencoder_kl`], [`clip`], [`latent_diffusion`] | how is each model trained? |

pub mod autoencoder_kl;
pub mod clip;
pub mod export;
pub mod latent_diffusion;
pub mod objective;
pub mod order;
pub mod pictures;
pub mod recipe;
pub mod run;
pub mod schedule;
mod state;

pub use objective::{Batch, Losses, Network, Objective};
pub use recipe::Recipe;
pub use run::{Control, Event, Resume, Training};

use crate::{Error, Result};

/// Makes an objective of what a recipe says.
type Build = fn(&Recipe) -> Result<Box<dyn Objective>>;

/// What can be trained: the recipe's word for it, what it is, how it is made.
pub const OBJECTIVES: &[(&str, &str, Build)] = &[
    ("autoencoder_kl", "the autoencoder between pictures and latents", |recipe| {
        Ok(Box::new(autoencoder_kl::Autoencoder::new(recipe)?))
    }),
    ("latent_diffusion", "the U-Net that turns noise into the latents of a picture, as words say", |recipe| {
        Ok(Box::new(latent_diffusion::LatentDiffusion::new(recipe)?))
    }),
    ("clip", "texts and pictures in one space", |recipe| Ok(Box::new(clip::ClipObjective::new(recipe)?))),
];

fn objective_names() -> String {
    OBJECTIVES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
}

fn build(recipe: &Recipe) -> Result<Box<dyn Objective>> {
    match OBJECTIVES.iter().find(|(name, ..)| *name == recipe.objective) {
        Some((_, _, build)) => build(recipe),
        None => Err(Error::request(format!("unknown objective \"{}\"", recipe.objective))
            .with_help(format!("known are {}", objective_names()))),
    }
}
