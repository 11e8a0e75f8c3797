//! Steps from the posterior of the noising process: DDPM, DDIM and Euler ancestral.

use super::{Hooks, clipped, weighted_sum};
use crate::sampling::Denoise;
use crate::{Result, Tensor};

/// How a step from `sigma` to `next` divides into a move down and fresh noise, `next^2 = down^2 + up^2`: `up` is `eta`
/// times the standard deviation of the posterior, `next sqrt(1 - next^2 / sigma^2)` (Song et al. 2021, equation 16).
pub(super) fn down_and_up(sigma: f64, next: f64, eta: f64) -> (f64, f64) {
    let up = eta * next * (1.0 - (next / sigma).powi(2)).max(0.0).sqrt();
    ((next * next - up * up).max(0.0).sqrt(), up)
}

/// DDPM: Ho et al. 2020, Denoising Diffusion Probabilistic Models, algorithm 2 with x0 from the model (equation 7).
///
/// In sigma the posterior's mean is `x0 + (next / sigma)^2 (x - x0)` and its variance `next^2 (1 - next^2 / sigma^2)`.
/// `large_variance` adds `beta` instead, the upper bound of section 3.2.
pub fn ddpm(
    model: &mut dyn Denoise,
    mut x: Tensor,
    clip: Option<f64>,
    large_variance: bool,
    hooks: &mut Hooks<'_>,
) -> Result<Tensor> {
    for (i, step) in hooks.steps.iter().enumerate() {
        let (sigma, next) = (step.sigma, step.next);
        let x0 = clipped(model.denoise(&x, sigma)?, clip)?;
        let kept = (next / sigma).powi(2);
        let deviation = if !large_variance {
            down_and_up(sigma, next, 1.0).1
        } else if step.timestep > 0.0 {
            ((sigma * sigma - next * next) * (1.0 + next * next) / (1.0 + sigma * sigma)).sqrt()
        } else {
            0.0
        };
        x = weighted_sum(&[(1.0 - kept, &x0), (kept, &x)])?;
        x = hooks.add_noise(x, deviation)?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}

/// DDIM: Song et al. 2021, Denoising Diffusion Implicit Models, equation 12. `eta` 0 is deterministic, 1 adds DDPM's noise.
/// Clipping changes x0 only, not the direction to x, as in diffusers.
pub fn ddim(
    model: &mut dyn Denoise,
    mut x: Tensor,
    eta: f64,
    clip: Option<f64>,
    hooks: &mut Hooks<'_>,
) -> Result<Tensor> {
    for (i, step) in hooks.steps.iter().enumerate() {
        let predicted = model.denoise(&x, step.sigma)?;
        let (down, up) = down_and_up(step.sigma, step.next, eta);
        let ratio = down / step.sigma;
        let x0 = clipped(predicted.clone(), clip)?;
        x = weighted_sum(&[(1.0, &x0), (ratio, &x), (-ratio, &predicted)])?;
        x = hooks.add_noise(x, up)?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}

/// Euler ancestral: an Euler step of the ODE down to `down`, then fresh noise up to `next` (k-diffusion; the same step as
/// DDIM's with eta 1).
pub fn euler_ancestral(model: &mut dyn Denoise, x: Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    ddim(model, x, 1.0, None, hooks)
}
