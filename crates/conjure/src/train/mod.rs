//! Training: one loop for everything, with the objective plugged in.
//!
//! | module | question it answers |
//! |---|---|
//! | [`recipe`] | what can a run be told? |
//! | [`run`] | what happens, and in which order? |
//! | [`begin`] | how does a run begin, and go on after an interruption? |
//! | [`event`] | what does a run tell while it goes? |
//! | [`objective`] | what does a model bring to be trained? |
//! | [`schedule`] | how large are the steps? |
//! | [`order`] | which examples come when? |
//! | `folder`, `state`, `metrics`, `curves` | what lies in a run's folder, a checkpoint, the log, `loss.svg`? |
//! | [`pictures`] | which pictures does a recipe ask for? |
//! | [`autoencoder_kl`], [`clip`], [`latent_diffusion`], [`image_classifier`], [`super_resolution`], [`text_distillation`] | how is each model trained? |
//! | [`language_model`], [`supervised`], [`preference`] | how does a language model learn from texts, conversations, preferences? |
//! | [`decoder_lora`], `text_model`, `conversation` | what do these three share? |
//! | [`translation`] | how is a translator trained? |
//! | [`denoising_loss`] | how wrong is a model about noisy latents? |
//! | [`lora`], [`textual_inversion`] | what is trained beside a finished picture model, on the user's pictures? |
//! | [`fine_tuning`] | what do these two share? |

pub mod autoencoder_kl;
pub mod begin;
pub mod clip;
mod conversation;
mod curves;
pub mod decoder_lora;
pub mod denoising_loss;
pub mod event;
pub mod fine_tuning;
mod folder;
pub mod image_classifier;
pub mod language_model;
pub mod latent_diffusion;
pub mod lora;
mod metrics;
pub mod objective;
pub mod order;
pub mod pictures;
pub mod preference;
pub mod recipe;
pub mod run;
pub mod schedule;
mod state;
pub mod super_resolution;
pub mod supervised;
pub mod text_distillation;
pub mod text_model;
pub mod textual_inversion;
pub mod translation;

pub use begin::Resume;
pub use event::{Control, Event};
pub use objective::{Batch, Losses, Network, Objective};
pub use recipe::Recipe;
pub use run::Training;

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
    ("image_classifier", "the classifier that judges what pictures show", |recipe| {
        Ok(Box::new(image_classifier::Classifier::new(recipe)?))
    }),
    ("super_resolution", "the network that makes pictures bigger", |recipe| {
        Ok(Box::new(super_resolution::Enlarger::new(recipe)?))
    }),
    ("text_distillation", "a text encoder that reads other languages as it reads English", |recipe| {
        Ok(Box::new(text_distillation::TextDistillation::new(recipe)?))
    }),
    ("language_model", "a language model, from texts", |recipe| {
        Ok(Box::new(language_model::LanguageModelling::new(recipe)?))
    }),
    ("supervised", "a language model that answers, from conversations", |recipe| {
        Ok(Box::new(supervised::Supervised::new(recipe)?))
    }),
    ("preference", "a language model that answers as people prefer, from pairs of answers", |recipe| {
        Ok(Box::new(preference::Preference::new(recipe)?))
    }),
    ("translation", "an encoder-decoder that translates between all languages of the data", |recipe| {
        Ok(Box::new(translation::Translation::new(recipe)?))
    }),
    ("lora", "low-rank adapters on a picture model, from a handful of pictures", |recipe| {
        Ok(Box::new(lora::Lora::new(recipe)?))
    }),
    ("textual_inversion", "a new word for a picture model, from a handful of pictures", |recipe| {
        Ok(Box::new(textual_inversion::TextualInversion::new(recipe)?))
    }),
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
