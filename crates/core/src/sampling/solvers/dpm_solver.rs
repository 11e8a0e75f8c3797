//! DPM-Solver++ (Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models).
//!
//! With `lambda = -ln sigma` and `h = ln(sigma / next)` the ODE's exact solution over a step is
//! `(next / sigma) x + next * integral of e^lambda x0(lambda)`; the solvers differ in how they extrapolate x0.

use super::posterior::down_and_up;
use super::runge_kutta::euler_step;
use super::{Hooks, MultistepOptions, weighted_sum};
use crate::sampling::Denoise;
use crate::sampling::scheduler_config::SolverType;
use crate::{Result, Tensor};

/// DPM-Solver++ 2M and 3M, and their SDE forms.
///
/// The ODE is algorithm 2 of the paper (third order: its section 4.2); the SDE is its equation 14 (SDE-DPM-Solver++), the
/// same formula with `2h` in place of `h`, plus noise. Third order for the SDE follows k-diffusion's DPM++ 3M SDE.
pub fn dpmpp_multistep(
    model: &mut dyn Denoise,
    mut x: Tensor,
    stochastic: bool,
    options: &MultistepOptions,
    hooks: &mut Hooks<'_>,
) -> Result<Tensor> {
    let n = hooks.steps.len();
    let mut before: Vec<(f64, Tensor)> = Vec::new(); // steps already taken: h, x0; newest first
    for (i, step) in hooks.steps.iter().enumerate() {
        let (sigma, next) = (step.sigma, step.next);
        let x0 = model.denoise(&x, sigma)?;
        let h = (sigma / next).ln();
        let short = options.lower_order_final && options.asked < 15;
        let highest = match n - i {
            1 if next == 0.0 || short || options.first_order_last => 1,
            2 if short => 2,
            _ => options.order,
        };
        let order = highest.min(before.len() + 1);

        let width = if stochastic { 2.0 * h } else { h };
        let gain = -(-width).exp_m1(); // 1 - e^-width
        let first = (1.0 - gain, gain);
        x = match order {
            1 => weighted_sum(&[(first.0, &x), (first.1, &x0)])?,
            2 => {
                let (h1, x1) = &before[0];
                let weight = match options.solver_type {
                    SolverType::Heun => 1.0 - gain / width,
                    _ => 0.5 * gain,
                } * h
                    / h1;
                weighted_sum(&[(first.0, &x), (first.1 + weight, &x0), (-weight, x1)])?
            }
            _ => {
                let ((h1, x1), (h2, x2)) = (&before[0], &before[1]);
                let (r0, r1) = (h1 / h, h2 / h);
                // Divided differences a = (x0 - x1) / r0, b = (x1 - x2) / r1 give slope and curvature of x0.
                let (phi2, phi3) = (1.0 - gain / width, (width - gain) / (width * width) - 0.5);
                let of_a = phi2 * (1.0 + r0 / (r0 + r1)) - phi3 / (r0 + r1);
                let of_b = -phi2 * r0 / (r0 + r1) + phi3 / (r0 + r1);
                weighted_sum(&[
                    (first.0, &x),
                    (first.1 + of_a / r0, &x0),
                    (of_b / r1 - of_a / r0, x1),
                    (-of_b / r1, x2),
                ])?
            }
        };
        if stochastic {
            x = hooks.add_noise(x, next * (-(-2.0 * h).exp_m1()).sqrt())?;
        }
        x = hooks.finish(i, x, &x0)?;
        before.insert(0, (h, x0));
        before.truncate(2);
    }
    Ok(x)
}

/// DPM-Solver++(2S), algorithm 1 of the paper with r = 1/2, down to the ancestral level, then fresh noise (k-diffusion).
pub fn dpmpp_2s_ancestral(model: &mut dyn Denoise, mut x: Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    for (i, step) in hooks.steps.iter().enumerate() {
        let sigma = step.sigma;
        let (down, up) = down_and_up(sigma, step.next, 1.0);
        let x0 = model.denoise(&x, sigma)?;
        if down == 0.0 {
            x = x0.clone();
        } else {
            let middle = (sigma * down).sqrt();
            let halfway = euler_step(&x, &x0, sigma, middle)?;
            x = euler_step(&x, &model.denoise(&halfway, middle)?, sigma, down)?;
        }
        x = hooks.add_noise(x, up)?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}

/// The single-step DPM-Solver++ for the SDE with r = 1/2 (k-diffusion's DPM++ SDE).
///
/// Its two noises, from sigma to the middle and from sigma to the end, belong to one Brownian path in sigma: two fresh
/// noises are drawn, for the two halves of the step, and added in proportion to their lengths.
pub fn dpmpp_sde(model: &mut dyn Denoise, mut x: Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    for (i, step) in hooks.steps.iter().enumerate() {
        let (sigma, next) = (step.sigma, step.next);
        let x0 = model.denoise(&x, sigma)?;
        if next == 0.0 {
            x = x0.clone();
        } else {
            let middle = (sigma * next).sqrt();
            let (down, up) = down_and_up(sigma, middle, 1.0);
            let early = (hooks.noise)(x.shape())?;
            let halfway = weighted_sum(&[(1.0, &euler_step(&x, &x0, sigma, down)?), (up, &early)])?;
            let x0_halfway = model.denoise(&halfway, middle)?;

            let (down, up) = down_and_up(sigma, next, 1.0);
            let late = (hooks.noise)(x.shape())?;
            let share = |length: f64| up * (length / (sigma - next)).sqrt();
            x = weighted_sum(&[
                (1.0, &euler_step(&x, &x0_halfway, sigma, down)?),
                (share(sigma - middle), &early),
                (share(middle - next), &late),
            ])?;
        }
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}
