//! The samplers: one short function each, over a [`Denoise`], in the variance-exploding convention
//! `x = x0 + sigma * noise`. Coefficients are computed in f64.
//!
//! Notation: `sigma` is the noise level of the step, `next` that of the following one, `x0` what the model predicts,
//! `d = (x - x0) / sigma` the noise in x, which is also `dx/dsigma` of the probability-flow ODE (Karras et al. 2022, eq. 3).

#[cfg(test)]
mod convergence;
mod dpm_solver;
mod lcm;
mod linear_multistep;
mod posterior;
mod runge_kutta;
mod unipc;

pub use dpm_solver::{dpmpp_2s_ancestral, dpmpp_multistep, dpmpp_sde};
pub use lcm::lcm;
pub use linear_multistep::{lms, pndm};
pub use posterior::{ddim, ddpm, euler_ancestral};
pub use runge_kutta::{dpm2, dpm2_ancestral, euler, heun};
pub use unipc::unipc;

use super::plan::{Progress, Step};
use super::scheduler_config::SolverType;
use crate::{DType, Error, Result, Shape, Tensor};

/// The steps of a run, and what a sampler needs besides the model.
pub struct Hooks<'a> {
    /// The steps, in order.
    pub steps: &'a [Step],
    /// Makes unit noise of a shape.
    pub noise: &'a mut dyn FnMut(&Shape) -> Result<Tensor>,
    /// Sees every step; may stop the run with an error, or replace x.
    pub each: &'a mut dyn FnMut(&Progress<'_>) -> Result<Option<Tensor>>,
}

impl Hooks<'_> {
    /// Ends step `i`, which took x to `steps[i].next`: reports it, and returns the x that the following step starts from.
    fn finish(&mut self, i: usize, x: Tensor, x0: &Tensor) -> Result<Tensor> {
        require_finite(&x, &format!("in step {} of {}", i + 1, self.steps.len()))?;
        let landed = self.steps[i].next;
        let sigma = self.steps.get(i + 1).map_or(landed, |step| step.sigma);
        let x = rescaled(x, landed, sigma)?;
        let progress = Progress { step: i, steps: self.steps.len(), sigma, x: &x, x0 };
        Ok((self.each)(&progress)?.unwrap_or(x))
    }

    /// `x + scale * fresh noise`; nothing is drawn where the scale is 0.
    fn add_noise(&mut self, x: Tensor, scale: f64) -> Result<Tensor> {
        if scale == 0.0 { Ok(x) } else { weighted_sum(&[(1.0, &x), (scale, &(self.noise)(x.shape())?)]) }
    }
}

/// How the multistep solvers of the DPM-Solver family behave.
#[derive(Clone, Debug)]
pub struct MultistepOptions {
    /// Highest order.
    pub order: usize,
    /// How the change of x0 enters.
    pub solver_type: SolverType,
    /// Whether the last steps of a short run use a lower order.
    pub lower_order_final: bool,
    /// Whether the last step is always of first order.
    pub first_order_last: bool,
    /// The number of steps that were asked for; the run may be the last part of these.
    pub asked: usize,
    /// UniPC: indices, among the steps asked for, after which nothing is corrected.
    pub without_corrector: Vec<usize>,
}

/// `sum_i weight_i * tensor_i`; all tensors of one shape. A weight of 0 leaves its tensor out.
pub(super) fn weighted_sum(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, tensor) in terms.iter().filter(|(weight, _)| *weight != 0.0) {
        let term = if *weight == 1.0 { (*tensor).clone() } else { (*tensor * *weight)? };
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(terms[0].1.zeros_like()?),
    }
}

/// An x at noise level `from` as one at level `to` with the same ratio of signal to variance-preserving scale. Samplers that
/// land beside the next timestep (see [`Step`]) leave such a gap; the reference, which keeps x variance-preserving, leaps it.
fn rescaled(x: Tensor, from: f64, to: f64) -> Result<Tensor> {
    if from == to { Ok(x) } else { Ok((x * ((1.0 + to * to) / (1.0 + from * from)).sqrt())?) }
}

/// x0 clipped to `[-limit, limit]`.
fn clipped(x0: Tensor, limit: Option<f64>) -> Result<Tensor> {
    match limit {
        Some(limit) => Ok(x0.clamp(-limit, limit)?),
        None => Ok(x0),
    }
}

/// Refuses a latent with a value that is NaN or infinite.
pub(super) fn require_finite(x: &Tensor, when: &str) -> Result<()> {
    // 0 * v is 0 for a finite v and NaN otherwise, so the sum cannot overflow.
    let sum = (x * 0.0)?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
    if sum == 0.0 {
        return Ok(());
    }
    Err(Error::failure(format!("the latent became NaN or infinite {when}"))
        .with_help("the model's weights may be damaged, or the guidance far too high"))
}
