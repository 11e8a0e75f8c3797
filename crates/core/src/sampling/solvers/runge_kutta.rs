//! One-step solvers of the probability-flow ODE `dx/dsigma = (x - x0) / sigma`.

use super::posterior::down_and_up;
use super::{Hooks, clipped, weighted_sum};
use crate::sampling::Denoise;
use crate::{Result, Tensor};

/// `x + (to - sigma) d` with `d = (x - x0) / sigma`: along the tangent at x.
pub(super) fn euler_step(x: &Tensor, x0: &Tensor, sigma: f64, to: f64) -> Result<Tensor> {
    let ratio = to / sigma;
    weighted_sum(&[(ratio, x), (1.0 - ratio, x0)])
}

/// Euler's method: Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, algorithm 1
/// without the correction. First order.
pub fn euler(model: &mut dyn Denoise, mut x: Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    for (i, step) in hooks.steps.iter().enumerate() {
        let x0 = model.denoise(&x, step.sigma)?;
        x = euler_step(&x, &x0, step.sigma, step.next)?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}

/// Heun's method: Karras et al. 2022, algorithm 1. Second order; two evaluations a step, one in a last step to 0.
pub fn heun(model: &mut dyn Denoise, mut x: Tensor, clip: Option<f64>, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    for (i, step) in hooks.steps.iter().enumerate() {
        let (sigma, next) = (step.sigma, step.next);
        let x0 = clipped(model.denoise(&x, sigma)?, clip)?;
        let mut ahead = euler_step(&x, &x0, sigma, next)?;
        if next > 0.0 {
            // x + (next - sigma) (d + d') / 2: since d' - d = (x0 - x0') / next, the change of x0 corrects Euler's point.
            let x0_ahead = clipped(model.denoise(&ahead, next)?, clip)?;
            let correction = 0.5 * (sigma - next) / next;
            ahead = weighted_sum(&[(1.0, &ahead), (correction, &x0_ahead), (-correction, &x0)])?;
        }
        x = hooks.finish(i, ahead, &x0)?;
    }
    Ok(x)
}

/// The midpoint method in log sigma: DPM-Solver-2 (Lu et al. 2022, algorithm 1 with r1 = 1/2). Second order.
pub fn dpm2(model: &mut dyn Denoise, x: Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    midpoint(model, x, 0.0, hooks)
}

/// DPM-Solver-2 down to the ancestral level, then fresh noise up to the next one (k-diffusion).
pub fn dpm2_ancestral(model: &mut dyn Denoise, x: Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    midpoint(model, x, 1.0, hooks)
}

fn midpoint(model: &mut dyn Denoise, mut x: Tensor, eta: f64, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    for (i, step) in hooks.steps.iter().enumerate() {
        let sigma = step.sigma;
        let (down, up) = down_and_up(sigma, step.next, eta);
        let x0 = model.denoise(&x, sigma)?;
        if down == 0.0 {
            x = x0.clone();
        } else {
            // The slope at the geometric mean of the two levels, taken over the whole step; see heun.
            let middle = (sigma * down).sqrt();
            let halfway = euler_step(&x, &x0, sigma, middle)?;
            let x0_halfway = model.denoise(&halfway, middle)?;
            let correction = (sigma - down) / middle;
            let ahead = euler_step(&x, &x0, sigma, down)?;
            x = weighted_sum(&[(1.0, &ahead), (correction, &x0_halfway), (-correction, &x0)])?;
        }
        x = hooks.add_noise(x, up)?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}
