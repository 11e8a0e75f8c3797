//! How noisy the sample is at each training timestep, and at which noise levels the model is asked.
//!
//! | symbol | here |
//! |---|---|
//! | `beta_t` | variance added at timestep t (Ho et al. 2020) |
//! | `alpha_bar_t` | `prod (1 - beta_s)`, the share of the signal's variance that is left |
//! | `sigma_t` | `sqrt((1 - alpha_bar_t) / alpha_bar_t)`, the noise-to-signal ratio |

use super::beta_distribution;
use super::sampler::Schedule;
use crate::{Error, Result};
use serde::Deserialize;

/// The noise level that stands for "no signal left" (zero terminal SNR) in samplers that take the last timestep as it is.
/// In f32, `x0 + 1e8 * noise` is noise alone, and its square does not overflow.
pub const SIGMA_OF_PURE_NOISE: f64 = 1e8;

/// `alpha_bar` that diffusers' sigma-based samplers put in place of 0 at the last timestep: f16's smallest positive number,
/// hence sigma 4096.
const SMALLEST_ALPHA_BAR: f32 = 1.0 / 16_777_216.0;

/// How the variances grow with the timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly spaced (Ho et al. 2020).
    Linear,
    /// Square roots evenly spaced (Rombach et al. 2022).
    ScaledLinear,
    /// Cosine `alpha_bar` (Nichol and Dhariwal 2021), betas capped at 0.999.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// What the model's output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `alpha * noise - sigma_vp * x0` (Salimans and Ho 2022).
    VPrediction,
    /// `x0` itself.
    Sample,
}

/// How sampling steps are spread over the training timesteps (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// From 0 upwards, plus `steps_offset`.
    Leading,
    /// From the last timestep downwards.
    Trailing,
    /// Both ends included.
    Linspace,
}

/// The noise level of every training timestep.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    sigmas: Vec<f64>,
}

/// The variances of `n` training timesteps. In f32 like the training code: near t = 0 the difference `1 - alpha_bar` loses
/// digits, so that exact betas would give a first sigma that differs by 3e-5 from the one that models are trained with.
pub fn betas(schedule: BetaSchedule, start: f64, end: f64, n: usize) -> Vec<f32> {
    match schedule {
        BetaSchedule::Linear => evenly_spaced(start as f32, end as f32, n),
        BetaSchedule::ScaledLinear => {
            evenly_spaced(start.sqrt() as f32, end.sqrt() as f32, n).into_iter().map(|b| b * b).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let at = |i: usize| alpha_bar(i as f64 / n as f64);
            (0..n).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
        }
    }
}

/// `n` f32 values from `start` to `end`, counted from the nearer end, as `torch.linspace` does.
fn evenly_spaced(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = if n > 1 { (end - start) / (n - 1) as f32 } else { 0.0 };
    (0..n)
        .map(|i| if i < n / 2 || n == 1 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 })
        .collect()
}

/// Betas rescaled so that nothing of the signal is left at the last timestep (Lin et al. 2023, algorithm 1).
fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Vec::new() };
    let alpha_bars = roots.iter().map(|r| (r - last) * (first / (first - last))).map(|r| r * r);
    let mut before = 1.0;
    alpha_bars.map(|a| 1.0 - a / std::mem::replace(&mut before, a)).collect()
}

/// Running product of `1 - beta`, accumulated in f64 and rounded to f32 at each timestep.
fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0_f64;
    betas
        .iter()
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        })
        .collect()
}

impl NoiseSchedule {
    /// The schedule of these betas. With `zero_terminal_snr` they are rescaled first; `finite_last_sigma` then keeps sigma
    /// 4096 at the last timestep, as diffusers' sigma-based samplers do, instead of [`SIGMA_OF_PURE_NOISE`].
    ///
    /// # Errors
    /// No betas, or one that is not inside (0, 1).
    pub fn new(betas: &[f32], zero_terminal_snr: bool, finite_last_sigma: bool) -> Result<Self> {
        if betas.is_empty() {
            return Err(Error::request("the noise schedule has no timesteps")
                .with_help("num_train_timesteps in scheduler_config.json must be at least 1; 1000 is usual"));
        }
        if let Some((t, beta)) = betas.iter().enumerate().find(|(_, b)| !(**b > 0.0 && **b < 1.0)) {
            return Err(Error::request(format!(
                "the noise schedule's beta at timestep {t} is {beta}, not inside 0 to 1"
            ))
            .with_help("check beta_start, beta_end and trained_betas in scheduler_config.json"));
        }
        let mut alphas =
            if zero_terminal_snr { alphas_cumprod(&rescale_zero_terminal_snr(betas)) } else { alphas_cumprod(betas) };
        if zero_terminal_snr
            && finite_last_sigma
            && let Some(last) = alphas.last_mut()
        {
            *last = SMALLEST_ALPHA_BAR;
        }
        let sigma = |a: f32| if a > 0.0 { f64::from(((1.0 - a) / a).sqrt()) } else { SIGMA_OF_PURE_NOISE };
        Ok(Self {
            sigmas: alphas.iter().map(|&a| sigma(a)).collect(),
            alphas_cumprod: alphas.into_iter().map(f64::from).collect(),
        })
    }

    /// `alpha_bar` of each training timestep.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Sigma of each training timestep, growing.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// Sigma at a timestep that need not be whole: linear between its neighbours, constant outside.
    pub fn sigma_at(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let t = timestep.clamp(0.0, last as f64);
        let low = (t as usize).min(last.saturating_sub(1));
        let high = (low + 1).min(last);
        self.sigmas[low] + (t - low as f64) * (self.sigmas[high] - self.sigmas[low])
    }

    /// The timestep, not whole in general, at which the model knows this noise level: linear in log sigma between
    /// neighbours, and clamped to the first and last timestep.
    pub fn timestep_at(&self, sigma: f64) -> f64 {
        let high = self.sigmas.partition_point(|s| *s <= sigma);
        if high == 0 {
            return 0.0;
        }
        if high == self.sigmas.len() {
            return (high - 1) as f64;
        }
        let (low, log) = (high - 1, f64::ln);
        let share = (log(sigma) - log(self.sigmas[low])) / (log(self.sigmas[high]) - log(self.sigmas[low]));
        low as f64 + share
    }
}

/// Which timesteps a sampler can stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    /// Any, as f32 holds them.
    Real,
    /// Whole ones.
    Whole,
    /// Whole ones, of which one more is spaced and the lowest dropped (the multistep DPM-Solver family).
    WholeWithoutLowest,
}

/// `n` timesteps, falling, over `train` training timesteps, of which those below `usable` may be used (`train`, unless the
/// sampler clips the schedule); `offset` is added with leading spacing.
pub(super) fn spaced_timesteps(
    spacing: TimestepSpacing,
    n: usize,
    (train, usable): (usize, usize),
    offset: i64,
    grid: Grid,
) -> Vec<f64> {
    let dropped = usize::from(grid == Grid::WholeWithoutLowest);
    let count = n + dropped;
    match spacing {
        TimestepSpacing::Linspace => {
            let last = (usable - 1) as f64;
            let step = if count > 1 { last / (count - 1) as f64 } else { 0.0 };
            let on_grid = |t: f64| if grid == Grid::Real { f64::from(t as f32) } else { t.round_ties_even() };
            (dropped..count).rev().map(|i| on_grid((i as f64 * step).min(last))).collect()
        }
        TimestepSpacing::Leading => {
            let ratio = usable / count;
            (dropped..count).rev().map(|i| (i * ratio) as f64 + offset as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let ratio = train as f64 / n as f64;
            let ends = (0..n).map(|i| usable as f64 - i as f64 * ratio).take_while(|end| *end > 0.0);
            ends.map(|end| end.round_ties_even() - 1.0).collect()
        }
    }
}

/// `n` noise levels from `max` down to `min`; `None` for the default schedule, whose levels are those of its timesteps.
pub(super) fn spaced_sigmas(schedule: Schedule, n: usize, min: f64, max: f64) -> Option<Vec<f64>> {
    let ramp = move |i: usize| if n > 1 { i as f64 / (n - 1) as f64 } else { 0.0 };
    let level: Box<dyn Fn(f64) -> f64> = match schedule {
        Schedule::Default => return None,
        Schedule::Karras => {
            const RHO: f64 = 7.0;
            let (high, low) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
            Box::new(move |r| (high + r * (low - high)).powf(RHO))
        }
        Schedule::Exponential => Box::new(move |r| (max.ln() + r * (min.ln() - max.ln())).exp()),
        Schedule::Beta => Box::new(move |r| min + beta_distribution::quantile(1.0 - r, 0.6) * (max - min)),
    };
    Some((0..n).map(|i| level(ramp(i))).collect())
}
