//! UniPC: Zhao et al. 2023, A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models.

use super::{Hooks, MultistepOptions, weighted_sum};
use crate::sampling::Denoise;
use crate::sampling::scheduler_config::SolverType;
use crate::{Result, Tensor};

/// An evaluation of the model: where, and the x0 that it predicted.
type Evaluation = (f64, Tensor);

/// UniPC in its x0 form, algorithms 1 (corrector) and 2 (predictor): each evaluation first corrects the x at which it was
/// made, then predicts the next one.
pub fn unipc(
    model: &mut dyn Denoise,
    mut x: Tensor,
    options: &MultistepOptions,
    hooks: &mut Hooks<'_>,
) -> Result<Tensor> {
    let n = hooks.steps.len();
    let mut before: Vec<Evaluation> = Vec::new(); // newest first
    let mut previous: Option<(Tensor, usize)> = None; // the x that the last step started from, and its order
    for (i, step) in hooks.steps.iter().enumerate() {
        let x0 = model.denoise(&x, step.sigma)?;
        let index = options.asked.saturating_sub(n - i); // among all steps asked for
        if let Some((start, order)) = previous.take()
            && !options.without_corrector.contains(&index.wrapping_sub(1))
        {
            x = update(&start, step.sigma, order, &before, Some(&x0), options.solver_type)?;
        }
        before.insert(0, (step.sigma, x0.clone()));
        before.truncate(options.order);

        let highest = if options.lower_order_final { options.order.min(n - i) } else { options.order };
        let order = highest.min(before.len());
        let start = x;
        x = update(&start, step.next, order, &before, None, options.solver_type)?;
        previous = Some((start, order));
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}

/// From `x` at `before[0]`'s noise level to `to`: equation 9 of the paper without `arrived`, equation 3 with the x0 that the
/// model predicts at `to`.
fn update(
    x: &Tensor,
    to: f64,
    order: usize,
    before: &[Evaluation],
    arrived: Option<&Tensor>,
    solver_type: SolverType,
) -> Result<Tensor> {
    let (sigma, x0) = &before[0];
    if to == 0.0 {
        return Ok(x0.clone());
    }
    let h = (sigma / to).ln();
    let b_of_h = if solver_type == SolverType::Bh1 { -h } else { (-h).exp_m1() };
    // Positions of the evaluations beside the newest, in units of the step: earlier ones below 0, the arrival at 1.
    let mut positions: Vec<f64> = before[1..order].iter().map(|(s, _)| (sigma / s).ln() / h).collect();
    positions.push(1.0);
    let weights = match (arrived, order) {
        (None, 1) => Vec::new(),
        (None, 2) | (Some(_), 1) => vec![0.5], // the paper's appendix F: exact enough where one difference is known
        (None, _) => difference_weights(&positions[..order - 1], h, b_of_h),
        (Some(_), _) => difference_weights(&positions, h, b_of_h),
    };
    let gain = -(-h).exp_m1();
    let values = before[1..order].iter().map(|(_, value)| value).chain(arrived);
    let mut terms = vec![(1.0 - gain, x)];
    let mut of_newest = gain;
    for ((weight, position), value) in weights.iter().zip(&positions).zip(values) {
        let w = -b_of_h * weight / position;
        of_newest -= w;
        terms.push((w, value));
    }
    terms.push((of_newest, x0));
    weighted_sum(&terms)
}

/// The weights of the scaled differences: the solution of `R rho = b` (equation 4 of the paper), where
/// `R[k][j] = position_j^k`, `b[k] = (k + 1)! phi_{k+2}(-h) (-h) / B(h)`.
fn difference_weights(positions: &[f64], h: f64, b_of_h: f64) -> Vec<f64> {
    let n = positions.len();
    let mut phi = (-h).exp_m1() / -h - 1.0;
    let mut factorial = 1.0;
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n);
    for k in 0..n {
        let mut row: Vec<f64> = positions.iter().map(|p| p.powi(k as i32)).collect();
        row.push(phi * factorial / b_of_h);
        rows.push(row);
        factorial *= (k + 2) as f64;
        phi = phi / -h - 1.0 / factorial;
    }
    solve(rows)
}

/// Gaussian elimination with partial pivoting on `n` rows of `n + 1` numbers. The positions differ, so that the Vandermonde
/// system has a solution.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        let top = rows[column].clone();
        for row in &mut rows[column + 1..] {
            let factor = row[column] / top[column];
            row.iter_mut().zip(&top).for_each(|(a, b)| *a -= factor * b);
        }
    }
    let mut solution = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| rows[i][j] * solution[j]).sum();
        solution[i] = (rows[i][n] - known) / rows[i][i];
    }
    solution
}
