//! How noise becomes a sample. A sampler takes a function, never a model.
//!
//! | file | question it answers |
//! |---|---|
//! | [`noise_schedule`] | how noisy is the sample at timestep t, and at which noise levels is the model asked? |
//! | [`scheduler_config`] | what does a folder's `scheduler_config.json` say, and what does each sampler assume? |
//! | [`plan`] | which steps does a run take, from which noise, and how is it run? |
//! | [`denoiser`] | how does a network that predicts noise become a [`Denoise`]? |
//! | [`guidance`] | how is the prompt made to count for more? |
//! | [`solvers`] | the samplers: one short function each |
//! | [`text`] | how do a language model's scores become a token? |
//!
//! Everything works in the variance-exploding convention `x = x0 + sigma * noise`. The variance-preserving samplers of the
//! literature (DDPM, DDIM, PNDM, DPM-Solver++, UniPC, LCM) are the same mathematics with `x_vp = x / sqrt(1 + sigma^2)`,
//! where `alpha_bar = 1 / (1 + sigma^2)`.

pub mod denoiser;
pub mod guidance;
pub mod noise_schedule;
pub mod plan;
pub mod sampler;
pub mod scheduler_config;
pub mod solvers;
pub mod text;

mod beta_distribution;

pub use denoiser::ModelDenoiser;
pub use guidance::Guidance;
pub use noise_schedule::{NoiseSchedule, PredictionType, betas};
pub use plan::{Plan, Progress, Step};
pub use sampler::{Sampler, Schedule};
pub use scheduler_config::SchedulerConfig;

use crate::{Result, Tensor};

/// A denoiser in the variance-exploding convention of Karras et al. 2022: for `x = x0 + sigma * noise` it predicts `x0`.
pub trait Denoise {
    /// `x (batch, ...)` at noise level `sigma`: the predicted `x0`, of the same shape.
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor>;
}
