//! Which steps a run takes, from which noise, and how it is run.

use super::Denoise;
use super::denoiser::ModelDenoiser;
use super::noise_schedule::{Grid, PredictionType, TimestepSpacing, spaced_sigmas, spaced_timesteps};
use super::sampler::{Sampler, Schedule};
use super::scheduler_config::{SchedulerConfig, Settings};
use super::solvers::{self, Hooks, MultistepOptions};
use crate::{Error, Result, Shape, Tensor};

/// One step of a sampler; noise levels in the variance-exploding convention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The timestep that the model is told.
    pub timestep: f64,
    /// The noise level at which the model is asked.
    pub sigma: f64,
    /// The noise level from which x is moved: `sigma`, except in PLMS's second evaluation, which repeats the first step.
    pub from: f64,
    /// The noise level to which x is moved.
    pub next: f64,
}

/// What a run reports after each step.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The step just taken, counted from 0 within the run.
    pub step: usize,
    /// The number of steps of the run.
    pub steps: usize,
    /// The noise level of `x`.
    pub sigma: f64,
    /// The latent after the step, `x0 + sigma * noise`.
    pub x: &'a Tensor,
    /// The sample that the model predicted in this step.
    pub x0: &'a Tensor,
}

/// A run, settled before it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    sampler: Sampler,
    settings: Settings,
    steps: Vec<Step>,
    /// Steps that were asked for, of which [`Self::from_strength`] leaves out the first.
    asked: usize,
    initial_scale: f64,
    eta: f64,
}

impl Plan {
    /// The run of `steps` steps that diffusers' scheduler for `sampler` takes with this config; `schedule` in place of the
    /// file's where one is given. `pndm` evaluates the model once more than `steps` says.
    ///
    /// # Errors
    /// 0 steps or more than training timesteps; steps that cannot be told apart on whole timesteps; a config entry that the
    /// sampler cannot follow; a schedule on a sampler that walks over training timesteps.
    pub fn new(config: &SchedulerConfig, sampler: Sampler, schedule: Option<Schedule>, steps: usize) -> Result<Self> {
        let settings = config.settings(sampler, schedule)?;
        let train = settings.noise.sigmas().len();
        if steps == 0 || steps > train {
            return Err(Error::request(format!("steps {steps} is outside 1 to {train}"))
                .with_help(format!("the model was trained with {train} timesteps; 20 to 50 steps are usual")));
        }
        let timesteps = timesteps(sampler, &settings, steps)?;
        let planned = match sampler {
            Sampler::Ddim => falling_by_ratio(&settings, &timesteps, train / steps),
            Sampler::Pndm => falling_by_ratio(&settings, &timesteps_of_plms(&timesteps), train / steps),
            Sampler::Ddpm | Sampler::Lcm => {
                contiguous(&timesteps, timesteps.iter().map(|t| settings.noise.sigma_at(*t)).collect(), 0.0)
            }
            _ => on_sigmas(sampler, &settings, &timesteps),
        };
        let top = planned.iter().map(|s| s.sigma).fold(0.0, f64::max);
        let from_top = !sampler.is_variance_preserving() && settings.spacing != TimestepSpacing::Leading;
        let mut plan = Self {
            sampler,
            steps: planned,
            asked: steps,
            initial_scale: if from_top { top } else { (1.0 + top * top).sqrt() },
            eta: 0.0,
            settings,
        };
        if sampler == Sampler::Pndm && plan.steps.len() > 1 {
            let ratio = (train / steps) as f64;
            plan.steps[1] = plan.repeating(plan.steps[1], ratio);
        }
        Ok(plan)
    }

    /// PLMS's second evaluation: it stands where the first step led, and takes that step again.
    fn repeating(&self, step: Step, ratio: f64) -> Step {
        Step { from: self.settings.noise.sigma_at(step.timestep + ratio), next: step.sigma, ..step }
    }

    /// The same run with DDIM's `eta`: 0 adds no noise, 1 as much as DDPM.
    ///
    /// # Errors
    /// An eta outside `[0, 1]`, or above 0 for another sampler.
    pub fn with_eta(mut self, eta: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(
                Error::request(format!("eta {eta} is outside 0 to 1")).with_help("0 adds no noise; 1 as much as ddpm")
            );
        }
        if eta > 0.0 && self.sampler != Sampler::Ddim {
            return Err(
                Error::request(format!("sampler {} has no eta", self.sampler)).with_help("choose the sampler ddim")
            );
        }
        self.eta = eta;
        Ok(self)
    }

    /// The last part of the run, for an image that is changed rather than made: of `n` steps the last `int(n * strength)`.
    ///
    /// # Errors
    /// A strength outside `(0, 1]`, or so small that no step is left.
    pub fn from_strength(mut self, strength: f64) -> Result<Self> {
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::request(format!("strength {strength} is outside 0 to 1"))
                .with_help("1 starts from noise alone; 0.75 is usual"));
        }
        let kept = (self.asked as f64 * strength) as usize;
        if kept == 0 {
            return Err(Error::request(format!("strength {strength} leaves none of {} steps", self.asked))
                .with_help(format!("raise steps or strength: at least {:.3} here", 1.0 / self.asked as f64)));
        }
        let skipped = self.asked - kept;
        self.steps.drain(..skipped);
        if self.sampler == Sampler::Pndm && skipped > 0 {
            // Started in the middle, PLMS still counts from its first evaluation: the second again repeats the first step,
            // and what was planned as the second is an ordinary step.
            let ratio = (self.settings.noise.sigmas().len() / self.asked) as f64;
            let plain = falling_by_ratio(
                &self.settings,
                &self.steps.iter().map(|s| s.timestep).collect::<Vec<_>>(),
                ratio as usize,
            );
            self.steps = plain;
            if self.steps.len() > 1 {
                self.steps[1] = self.repeating(self.steps[1], ratio);
            }
        }
        Ok(self)
    }

    /// The sampler.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// How the noise levels are placed: as was asked, or else as the config says.
    pub fn schedule(&self) -> Schedule {
        self.settings.schedule
    }

    /// What the model's output stands for.
    pub fn prediction(&self) -> PredictionType {
        self.settings.prediction
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The latent to start from, given unit noise of its shape.
    ///
    /// # Errors
    /// The tensor operation's own.
    pub fn initial(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((noise * self.initial_scale)?)
    }

    /// `x0` with noise as at the first step, both of one shape.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn noised(&self, x0: &Tensor, noise: &Tensor) -> Result<Tensor> {
        solvers::weighted_sum(&[(1.0, x0), (self.steps[0].sigma, noise)])
    }

    /// `model(x of unit variance, timestep) -> output` as a [`Denoise`] on this plan's noise levels.
    pub fn denoiser<F: FnMut(&Tensor, f64) -> Result<Tensor>>(&self, model: F) -> ModelDenoiser<'_, F> {
        ModelDenoiser::new(model, self.settings.prediction, &self.settings.noise, &self.steps)
    }

    /// Runs all steps from `x`, which [`Self::initial`] or [`Self::noised`] made, to the sample, of the same shape.
    ///
    /// `noise` makes unit noise of a shape; it is asked in the order in which diffusers draws. `each` sees every step; an
    /// error from it stops the run and is returned, and a tensor from it takes the place of `x` (inpainting).
    ///
    /// # Errors
    /// A latent that is not finite, with the step; an error of the model, of `noise` or of `each`.
    pub fn run(
        &self,
        model: &mut dyn Denoise,
        x: Tensor,
        noise: &mut dyn FnMut(&Shape) -> Result<Tensor>,
        each: &mut dyn FnMut(&Progress<'_>) -> Result<Option<Tensor>>,
    ) -> Result<Tensor> {
        solvers::require_finite(&x, "before the first step")?;
        let (steps, settings) = (self.steps.as_slice(), &self.settings);
        let options = MultistepOptions {
            order: settings.solver_order,
            solver_type: settings.solver_type,
            lower_order_final: settings.lower_order_final,
            first_order_last: settings.euler_at_final,
            asked: self.asked,
            without_corrector: settings.disable_corrector.clone(),
        };
        let hooks = &mut Hooks { steps, noise, each };
        let x = match self.sampler {
            Sampler::Ddpm => solvers::ddpm(model, x, settings.clip, settings.fixed_large_variance, hooks),
            Sampler::Ddim => solvers::ddim(model, x, self.eta, settings.clip, hooks),
            Sampler::Pndm => solvers::pndm(model, x, settings.prediction, hooks),
            Sampler::Euler => solvers::euler(model, x, hooks),
            Sampler::EulerAncestral => solvers::euler_ancestral(model, x, hooks),
            Sampler::Heun => solvers::heun(model, x, settings.clip, hooks),
            Sampler::Dpm2 => solvers::dpm2(model, x, hooks),
            Sampler::Dpm2Ancestral => solvers::dpm2_ancestral(model, x, hooks),
            Sampler::Lms => solvers::lms(model, x, hooks),
            Sampler::Dpmpp2m => solvers::dpmpp_multistep(model, x, false, &options, hooks),
            Sampler::Dpmpp2mSde | Sampler::Dpmpp3mSde => solvers::dpmpp_multistep(model, x, true, &options, hooks),
            Sampler::Dpmpp2sAncestral => solvers::dpmpp_2s_ancestral(model, x, hooks),
            Sampler::DpmppSde => solvers::dpmpp_sde(model, x, hooks),
            Sampler::UniPc => solvers::unipc(model, x, &options, hooks),
            Sampler::Lcm => solvers::lcm(model, x, settings.clip, settings.timestep_scaling, hooks),
        }?;
        let last = steps[steps.len() - 1].next;
        if self.sampler.is_variance_preserving() && last > 0.0 { Ok((x / (1.0 + last * last).sqrt())?) } else { Ok(x) }
    }
}

/// The timesteps of the sampler, falling.
fn timesteps(sampler: Sampler, settings: &Settings, n: usize) -> Result<Vec<f64>> {
    let train = settings.noise.sigmas().len();
    if sampler == Sampler::Lcm {
        return timesteps_of_lcm(train, settings.original_inference_steps, n);
    }
    let grid = match sampler {
        _ if sampler.is_multistep_solver() => Grid::WholeWithoutLowest,
        _ if sampler.walks_training_timesteps() => Grid::Whole,
        _ => Grid::Real,
    };
    let t = spaced_timesteps(settings.spacing, n, (train, settings.usable), settings.offset, grid);
    let falls = t.windows(2).all(|pair| pair[0] > pair[1]);
    let inside = grid == Grid::Real || t.iter().all(|t| *t >= 0.0 && *t < train as f64);
    if falls && inside && !t.is_empty() {
        return Ok(t);
    }
    Err(Error::request(format!("{n} steps of sampler {sampler} do not fit on {train} training timesteps"))
        .with_help("take fewer steps; 20 to 50 are usual"))
}

/// The timesteps that a latent consistency model was distilled on, thinned to `n` (Luo et al. 2023).
fn timesteps_of_lcm(train: usize, original: usize, n: usize) -> Result<Vec<f64>> {
    if original == 0 || original > train {
        return Err(Error::request(format!(
            "scheduler config: original_inference_steps = {original} is outside 1 to {train}"
        ))
        .with_help("50 is usual"));
    }
    if n > original {
        return Err(Error::request(format!(
            "steps {n} is more than the {original} that sampler lcm was distilled for"
        ))
        .with_help("4 to 8 steps are usual"));
    }
    let stride = train / original;
    Ok((0..n).map(|i| ((original - i * original / n) * stride) as f64 - 1.0).collect())
}

/// PLMS evaluates the second timestep twice: once to improve the first step, once to go on.
fn timesteps_of_plms(timesteps: &[f64]) -> Vec<f64> {
    let mut t = timesteps.to_vec();
    if let Some(&second) = timesteps.get(1) {
        t.insert(1, second);
    }
    t
}

/// DDIM and PLMS in diffusers land `ratio` timesteps below each timestep, whatever the spacing; below 0 at the last sigma.
fn falling_by_ratio(settings: &Settings, timesteps: &[f64], ratio: usize) -> Vec<Step> {
    let step = |timestep: f64| {
        let sigma = settings.noise.sigma_at(timestep);
        let landing = timestep - ratio as f64;
        let next = if landing >= 0.0 { settings.noise.sigma_at(landing) } else { settings.last_sigma };
        Step { timestep, sigma, from: sigma, next }
    };
    timesteps.iter().map(|t| step(*t)).collect()
}

/// Steps each of which ends where the next begins.
fn contiguous(timesteps: &[f64], mut sigmas: Vec<f64>, last: f64) -> Vec<Step> {
    sigmas.push(last);
    let levels = sigmas.windows(2);
    timesteps.iter().zip(levels).map(|(&timestep, s)| Step { timestep, sigma: s[0], from: s[0], next: s[1] }).collect()
}

/// Samplers that know sigmas: those of the timesteps, or those of a schedule with the timesteps that belong to them.
fn on_sigmas(sampler: Sampler, settings: &Settings, timesteps: &[f64]) -> Vec<Step> {
    let noise = &settings.noise;
    let single = |x: f64| f64::from(x as f32);
    let levels: Vec<f64> = timesteps.iter().map(|t| noise.sigma_at(*t)).collect();
    let (low, high) = if sampler.is_multistep_solver() {
        (noise.sigmas()[0], noise.sigmas()[noise.sigmas().len() - 1])
    } else {
        (levels[levels.len() - 1], levels[0])
    };
    let (min, max) = (settings.sigma_min.unwrap_or(low), settings.sigma_max.unwrap_or(high));
    let Some(spaced) = spaced_sigmas(settings.schedule, levels.len(), min, max) else {
        return contiguous(timesteps, levels.into_iter().map(single).collect(), settings.last_sigma);
    };
    let timestep_of = |sigma: &f64| {
        let mut t = noise.timestep_at(*sigma);
        if settings.schedule == Schedule::Karras && settings.whole_timesteps_if_karras {
            t = t.round_ties_even();
        }
        if sampler.is_multistep_solver() { t.trunc() } else { single(t) }
    };
    let timesteps: Vec<f64> = spaced.iter().map(timestep_of).collect();
    // UniPC's own schedules end, where not at zero, at their own lowest level.
    let last = if sampler == Sampler::UniPc && settings.last_sigma > 0.0 { min } else { settings.last_sigma };
    contiguous(&timesteps, spaced.into_iter().map(single).collect(), last)
}
