//! How a network that predicts noise, velocity or the sample becomes a [`Denoise`].

use super::Denoise;
use super::noise_schedule::{NoiseSchedule, PredictionType};
use super::plan::Step;
use super::solvers::weighted_sum;
use crate::{Result, Tensor};

/// A network behind the scalings of its training.
///
/// The network sees `x / sqrt(1 + sigma^2)`, of unit variance, and a timestep. With its output F, x0 is
/// `x - sigma F` (epsilon), `x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) F` (v) or `F` (sample).
/// At a noise level of the plan the timestep is the plan's; between these it is interpolated in log sigma.
pub struct ModelDenoiser<'a, F> {
    model: F,
    prediction: PredictionType,
    noise: &'a NoiseSchedule,
    steps: &'a [Step],
}

impl<'a, F: FnMut(&Tensor, f64) -> Result<Tensor>> ModelDenoiser<'a, F> {
    /// The denoiser of `model(x of unit variance, timestep) -> output`, all of one shape.
    pub fn new(model: F, prediction: PredictionType, noise: &'a NoiseSchedule, steps: &'a [Step]) -> Self {
        Self { model, prediction, noise, steps }
    }
}

impl<F: FnMut(&Tensor, f64) -> Result<Tensor>> Denoise for ModelDenoiser<'_, F> {
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        let planned = self.steps.iter().find(|step| step.sigma == sigma);
        let timestep = planned.map_or_else(|| self.noise.timestep_at(sigma), |step| step.timestep);
        let variance = 1.0 + sigma * sigma;
        let output = (self.model)(&(x / variance.sqrt())?, timestep)?;
        match self.prediction {
            PredictionType::Epsilon => weighted_sum(&[(1.0, x), (-sigma, &output)]),
            PredictionType::VPrediction => weighted_sum(&[(1.0 / variance, x), (-sigma / variance.sqrt(), &output)]),
            PredictionType::Sample => Ok(output),
        }
    }
}
