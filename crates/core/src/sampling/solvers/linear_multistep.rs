//! Linear multistep solvers: the slope of a step is extrapolated from earlier steps.

use super::{Hooks, rescaled, weighted_sum};
use crate::sampling::{Denoise, PredictionType};
use crate::{Result, Tensor};
use std::collections::VecDeque;

/// PLMS: Liu et al. 2022, Pseudo Numerical Methods for Diffusion Models on Manifolds, equation 12 with the transfer of
/// equation 11, which in sigma is a straight line along the noise; the first steps use lower orders (equations 20 to 23).
///
/// The model's outputs are what is extrapolated: the noise, or the velocity of a v-prediction model.
pub fn pndm(
    model: &mut dyn Denoise,
    mut x: Tensor,
    prediction: PredictionType,
    hooks: &mut Hooks<'_>,
) -> Result<Tensor> {
    const WEIGHTS: [&[f64]; 4] = [
        &[1.0],
        &[3.0 / 2.0, -1.0 / 2.0],
        &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    ];
    let mut outputs = VecDeque::with_capacity(4); // newest first
    let mut start = x.clone();
    for (i, step) in hooks.steps.iter().enumerate() {
        let x0 = model.denoise(&x, step.sigma)?;
        let output = output_of(&x, &x0, step.sigma, prediction)?;
        let slope = if i == 1 {
            // The first step once more, with the mean of the slopes at its two ends.
            x = rescaled(start.clone(), hooks.steps[0].sigma, step.from)?;
            weighted_sum(&[(0.5, &output), (0.5, &outputs[0])])?
        } else {
            outputs.push_front(output);
            outputs.truncate(4);
            let terms: Vec<_> = WEIGHTS[outputs.len() - 1].iter().copied().zip(&outputs).collect();
            weighted_sum(&terms)?
        };
        if i == 0 {
            start = x.clone();
        }
        let noise = noise_of(&x, &slope, step.from, prediction)?;
        x = weighted_sum(&[(1.0, &x), (step.next - step.from, &noise)])?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}

/// What the model put out, given the x0 that was made of it.
fn output_of(x: &Tensor, x0: &Tensor, sigma: f64, prediction: PredictionType) -> Result<Tensor> {
    match prediction {
        PredictionType::VPrediction => {
            let root = (1.0 + sigma * sigma).sqrt();
            weighted_sum(&[(1.0 / (sigma * root), x), (-root / sigma, x0)])
        }
        _ => weighted_sum(&[(1.0 / sigma, x), (-1.0 / sigma, x0)]),
    }
}

/// The noise in x, given an output of the model there.
fn noise_of(x: &Tensor, output: &Tensor, sigma: f64, prediction: PredictionType) -> Result<Tensor> {
    match prediction {
        PredictionType::VPrediction => {
            let variance = 1.0 + sigma * sigma;
            weighted_sum(&[(1.0 / variance.sqrt(), output), (sigma / variance, x)])
        }
        _ => Ok(output.clone()),
    }
}

/// Adams-Bashforth of order 4 over uneven steps in sigma (k-diffusion's LMS; Hairer, Norsett and Wanner, Solving Ordinary
/// Differential Equations I, section III.5).
pub fn lms(model: &mut dyn Denoise, mut x: Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
    let mut slopes: VecDeque<(f64, Tensor)> = VecDeque::with_capacity(4); // newest first
    for (i, step) in hooks.steps.iter().enumerate() {
        let x0 = model.denoise(&x, step.sigma)?;
        slopes.push_front((step.sigma, weighted_sum(&[(1.0 / step.sigma, &x), (-1.0 / step.sigma, &x0)])?));
        slopes.truncate(4);
        let nodes: Vec<f64> = slopes.iter().map(|(sigma, _)| *sigma).collect();
        let weights = adams_weights(&nodes, step.sigma, step.next);
        let mut terms = vec![(1.0, &x)];
        terms.extend(weights.into_iter().zip(slopes.iter().map(|(_, slope)| slope)));
        x = weighted_sum(&terms)?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}

/// The integrals from `a` to `b` of the Lagrange polynomials on `nodes`, at most four: two Gauss points are exact for them.
fn adams_weights(nodes: &[f64], a: f64, b: f64) -> Vec<f64> {
    let (centre, half) = (0.5 * (a + b), 0.5 * (b - a));
    let lagrange = |j: usize, s: f64| {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
        others.map(|(_, node)| (s - node) / (nodes[j] - node)).product::<f64>()
    };
    let point = half / 3f64.sqrt();
    (0..nodes.len()).map(|j| half * (lagrange(j, centre - point) + lagrange(j, centre + point))).collect()
}
