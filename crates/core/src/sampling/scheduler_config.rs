//! What a folder's `scheduler_config.json` says, and what each sampler assumes where the file says nothing.
//!
//! Names are those of diffusers. An entry holds for a sampler only if diffusers' scheduler of that name reads it; what the
//! file leaves out takes the chosen sampler's own default. Choosing another sampler than the file's therefore gives what
//! `OtherScheduler.from_config(pipeline.scheduler.config)` gives.

use super::noise_schedule::{BetaSchedule, NoiseSchedule, PredictionType, TimestepSpacing, betas};
use super::sampler::{Sampler, Schedule};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A `scheduler_config.json`. `None` is what the file leaves out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// The scheduler's class in diffusers.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Training timesteps; 1000 everywhere.
    pub num_train_timesteps: Option<usize>,
    /// First beta.
    pub beta_start: Option<f64>,
    /// Last beta.
    pub beta_end: Option<f64>,
    /// How betas grow.
    pub beta_schedule: Option<BetaSchedule>,
    /// The betas themselves, in place of the three entries above.
    pub trained_betas: Option<Vec<f32>>,
    /// What the model predicts.
    pub prediction_type: Option<PredictionType>,
    /// How steps are spread over the timesteps.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to the timesteps of leading spacing.
    pub steps_offset: Option<i64>,
    /// Whether betas are rescaled to zero terminal SNR.
    pub rescale_betas_zero_snr: Option<bool>,
    /// Whether x0 is clipped.
    pub clip_sample: Option<bool>,
    /// To which absolute value.
    pub clip_sample_range: Option<f64>,
    /// Whether the last step ends at alpha_bar 1 rather than at that of timestep 0.
    pub set_alpha_to_one: Option<bool>,
    /// PNDM: whether the Runge-Kutta warm-up is left out.
    pub skip_prk_steps: Option<bool>,
    /// DDPM: which variance is added.
    pub variance_type: Option<String>,
    /// Schedule of Karras et al.
    pub use_karras_sigmas: Option<bool>,
    /// Exponential schedule.
    pub use_exponential_sigmas: Option<bool>,
    /// Beta schedule.
    pub use_beta_sigmas: Option<bool>,
    /// Lowest sigma of those schedules.
    pub sigma_min: Option<f64>,
    /// Highest sigma of those schedules.
    pub sigma_max: Option<f64>,
    /// `zero` or `sigma_min`.
    pub final_sigmas_type: Option<FinalSigma>,
    /// Order of multistep solvers.
    pub solver_order: Option<usize>,
    /// DPM-Solver: `midpoint` or `heun`; UniPC: `bh1` or `bh2`.
    pub solver_type: Option<String>,
    /// DPM-Solver: which equation is solved.
    pub algorithm_type: Option<String>,
    /// Whether the last steps use a lower order.
    pub lower_order_final: Option<bool>,
    /// Whether the last step is of first order.
    pub euler_at_final: Option<bool>,
    /// Lowest log signal-to-noise ratio that is sampled.
    pub lambda_min_clipped: Option<f64>,
    /// UniPC: steps after which the corrector is left out.
    pub disable_corrector: Option<Vec<usize>>,
    /// LCM: steps of the schedule that was distilled.
    pub original_inference_steps: Option<usize>,
    /// LCM: factor on the timestep in the boundary condition.
    pub timestep_scaling: Option<f64>,
    /// Entries that change results only for some samplers, and that we support at one value: checked by [`Self::settings`].
    #[serde(skip)]
    others: Map<String, Value>,
}

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// Without noise.
    Zero,
    /// At the noise of timestep 0.
    SigmaMin,
}

/// An entry that we support at one value only.
struct Fixed {
    key: &'static str,
    /// That value, as JSON.
    value: &'static str,
    /// Which samplers read the entry.
    read_by: fn(Sampler) -> bool,
}

const fn fixed(key: &'static str, value: &'static str, read_by: fn(Sampler) -> bool) -> Fixed {
    Fixed { key, value, read_by }
}

const FIXED: [Fixed; 9] = [
    fixed("thresholding", "false", |s| s.is_variance_preserving() && s != Sampler::Pndm),
    fixed("use_lu_lambdas", "false", |s| s.is_multistep_solver() && s != Sampler::UniPc),
    fixed("use_flow_sigmas", "false", Sampler::is_multistep_solver),
    fixed("use_dynamic_shifting", "false", Sampler::is_multistep_solver),
    fixed("shift_terminal", "null", |s| s == Sampler::UniPc),
    fixed("predict_x0", "true", |s| s == Sampler::UniPc),
    fixed("solver_p", "null", |s| s == Sampler::UniPc),
    fixed("interpolation_type", "\"linear\"", |s| s == Sampler::Euler),
    fixed("timestep_type", "\"discrete\"", |s| s == Sampler::Euler),
];

/// Entries without effect on these samplers, or with effect only beside one of [`FIXED`] at another value.
const WITHOUT_EFFECT: &[&str] =
    &["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type", "noise_sampler_seed"];

/// More training timesteps than any model has; a file that says more is damaged.
const MOST_TIMESTEPS: usize = 1_000_000;

/// Schedulers of diffusers whose `x`, sigma and output mean something else than here.
const OTHER_PROCESSES: &[&str] = &["FlowMatch", "EDM", "VQDiffusion", "ScoreSde", "Cosine", "CM", "Karras"];

/// Everything that a sampler needs to know, with nothing left open.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub noise: NoiseSchedule,
    pub prediction: PredictionType,
    pub schedule: Schedule,
    pub spacing: TimestepSpacing,
    pub offset: i64,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    /// Sigma after the last step.
    pub last_sigma: f64,
    pub clip: Option<f64>,
    pub whole_timesteps_if_karras: bool,
    pub fixed_large_variance: bool,
    pub solver_order: usize,
    pub solver_type: SolverType,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    /// The first timestep that may be used, plus one.
    pub usable: usize,
    pub disable_corrector: Vec<usize>,
    pub original_inference_steps: usize,
    pub timestep_scaling: f64,
}

/// How a multistep solver treats the change of x0 over a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SolverType {
    /// DPM-Solver: as at the middle of the step.
    Midpoint,
    /// DPM-Solver: integrated exactly.
    Heun,
    /// UniPC with `B(h) = h`.
    Bh1,
    /// UniPC with `B(h) = exp(h) - 1`.
    Bh2,
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`. Python's `Infinity`, `-Infinity` and `NaN` are read as absent.
    ///
    /// # Errors
    /// Text that is not a JSON object; a scheduler of another noise process; an entry of the wrong type or with an unknown value; an entry that no scheduler of
    /// diffusers has, unless it is `null` or `false`.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| {
            Error::request(format!("scheduler config: {e}"))
                .with_help("scheduler_config.json must be as diffusers writes it")
        };
        let mut map: Map<String, Value> = serde_json::from_str(&without_infinities(text)).map_err(|e| bad(&e))?;
        if let Some(class) = map.get("_class_name").and_then(Value::as_str)
            && OTHER_PROCESSES.iter().any(|p| class.starts_with(p))
        {
            return Err(bad(&format!("{class} runs another noise process than these samplers"))
                .with_help("models with a discrete schedule of betas (Stable Diffusion 1, 2, XL) are supported"));
        }
        let mut others = Map::new();
        map.retain(|key, value| {
            let fixed = FIXED.iter().any(|entry| entry.key == key);
            if fixed {
                others.insert(key.clone(), value.take());
            }
            !fixed && !value.is_null() && (!key.starts_with('_') || key == "_class_name")
        });
        for (key, value) in &map {
            if !FIELDS.contains(&key.as_str()) && !WITHOUT_EFFECT.contains(&key.as_str()) && value != false {
                return Err(Error::request(format!("scheduler config: unknown entry {key} = {value}"))
                    .with_help("it may change the picture; remove it from scheduler_config.json if it does not"));
            }
        }
        // One entry at a time first, so that the message names it.
        for (key, value) in &map {
            let single = Map::from_iter([(key.clone(), value.clone())]);
            serde_json::from_value::<Self>(Value::Object(single)).map_err(|e| bad(&format!("{key} = {value}: {e}")))?;
        }
        let mut config: Self = serde_json::from_value(Value::Object(map)).map_err(|e| bad(&e))?;
        config.others = others;
        Ok(config)
    }

    /// The config as a Stable Diffusion pipeline of diffusers hands it to `sampler`. When it opens a folder it sets two
    /// entries of the folder's own scheduler: the offset of leading spacing is 1, and x0 is not clipped, since a latent is
    /// not confined to [-1, 1]. Another sampler sees that only for entries that the file states.
    pub fn for_stable_diffusion(mut self, sampler: Sampler) -> Self {
        let own = self.sampler().is_ok_and(|own| own == sampler);
        if own || self.steps_offset.is_some() {
            self.steps_offset = Some(1);
        }
        if own || self.clip_sample.is_some() {
            self.clip_sample = Some(false);
        }
        self
    }

    /// The sampler that the file names.
    ///
    /// # Errors
    /// No scheduler named, or one that is not among [`Sampler::ALL`].
    pub fn sampler(&self) -> Result<Sampler> {
        let choose = || format!("choose a sampler: {}", Sampler::ALL.map(Sampler::name).join(", "));
        let Some(class) = self.class_name.as_deref() else {
            return Err(Error::request("scheduler config: _class_name is missing").with_help(choose()));
        };
        let algorithm = self.algorithm_type.as_deref().unwrap_or("dpmsolver++");
        Ok(match class {
            "DDPMScheduler" => Sampler::Ddpm,
            "DDIMScheduler" => Sampler::Ddim,
            "PNDMScheduler" => Sampler::Pndm,
            "EulerDiscreteScheduler" => Sampler::Euler,
            "EulerAncestralDiscreteScheduler" => Sampler::EulerAncestral,
            "HeunDiscreteScheduler" => Sampler::Heun,
            "KDPM2DiscreteScheduler" => Sampler::Dpm2,
            "KDPM2AncestralDiscreteScheduler" => Sampler::Dpm2Ancestral,
            "LMSDiscreteScheduler" => Sampler::Lms,
            "DPMSolverSDEScheduler" => Sampler::DpmppSde,
            "UniPCMultistepScheduler" => Sampler::UniPc,
            "LCMScheduler" => Sampler::Lcm,
            "DPMSolverMultistepScheduler" => match (algorithm, self.solver_order) {
                ("dpmsolver++" | "deis", _) => Sampler::Dpmpp2m,
                ("sde-dpmsolver++", Some(3)) => Sampler::Dpmpp3mSde,
                ("sde-dpmsolver++", _) => Sampler::Dpmpp2mSde,
                _ => {
                    return Err(Error::request(format!(
                        "scheduler config: algorithm_type = {algorithm:?} is not supported"
                    ))
                    .with_help("choose the sampler dpmpp-2m or dpmpp-2m-sde"));
                }
            },
            _ => return Err(Error::request(format!("scheduler config: unknown scheduler {class}")).with_help(choose())),
        })
    }

    /// Everything settled for `sampler`; `schedule` in place of the file's where one is given.
    pub(super) fn settings(&self, sampler: Sampler, schedule: Option<Schedule>) -> Result<Settings> {
        self.check_supported(sampler)?;
        let multistep = sampler.is_multistep_solver();
        let second_order_k = matches!(
            sampler,
            Sampler::Heun | Sampler::Dpm2 | Sampler::Dpm2Ancestral | Sampler::Dpmpp2sAncestral | Sampler::DpmppSde
        );
        let (start, end, kind) = match sampler {
            Sampler::Lcm => (0.00085, 0.012, BetaSchedule::ScaledLinear),
            _ if second_order_k => (0.00085, 0.012, BetaSchedule::Linear),
            _ => (0.0001, 0.02, BetaSchedule::Linear),
        };
        let train = self.num_train_timesteps.unwrap_or(1000);
        if train > MOST_TIMESTEPS {
            return Err(Error::request(format!(
                "scheduler config: num_train_timesteps = {train} is more than {MOST_TIMESTEPS}"
            ))
            .with_help("1000 is usual"));
        }
        let betas = match &self.trained_betas {
            Some(betas) => betas.clone(),
            None => betas(
                self.beta_schedule.unwrap_or(kind),
                self.beta_start.unwrap_or(start),
                self.beta_end.unwrap_or(end),
                train,
            ),
        };
        let sigma_based_zero_snr = multistep || matches!(sampler, Sampler::Euler | Sampler::EulerAncestral);
        let reads_zero_snr = sigma_based_zero_snr || matches!(sampler, Sampler::Ddpm | Sampler::Ddim | Sampler::Lcm);
        let zero_snr = reads_zero_snr && self.rescale_betas_zero_snr == Some(true);
        let noise = NoiseSchedule::new(&betas, zero_snr, sigma_based_zero_snr)?;

        let ends_above_zero = match sampler {
            Sampler::Ddim => self.set_alpha_to_one == Some(false),
            Sampler::Pndm => self.set_alpha_to_one != Some(true),
            Sampler::Euler => self.final_sigmas_type == Some(FinalSigma::SigmaMin),
            _ => multistep && self.final_sigmas_type == Some(FinalSigma::SigmaMin),
        };
        let clips = match sampler {
            Sampler::Ddpm | Sampler::Ddim => self.clip_sample != Some(false),
            Sampler::Heun | Sampler::Lcm => self.clip_sample == Some(true),
            _ => false,
        };
        let reads_limits = matches!(sampler, Sampler::Euler | Sampler::UniPc);
        let lambda = |sigma: &f64| -sigma.ln();
        let clipped = match self.lambda_min_clipped {
            Some(limit) if multistep && sampler != Sampler::UniPc => {
                noise.sigmas().iter().filter(|s| lambda(s) < limit).count()
            }
            _ => 0,
        };
        let usable = noise.sigmas().len() - clipped;
        if usable == 0 {
            let limit = self.lambda_min_clipped.unwrap_or_default();
            return Err(Error::request(format!("scheduler config: lambda_min_clipped = {limit} leaves no timestep"))
                .with_help("-5.1 is usual"));
        }
        let limits = (self.sigma_min.filter(|_| reads_limits), self.sigma_max.filter(|_| reads_limits));
        let (low, high) = (limits.0.unwrap_or(noise.sigmas()[0]), limits.1.unwrap_or(f64::INFINITY));
        if !(low > 0.0 && low < high) {
            return Err(Error::request(format!(
                "scheduler config: sigma_min {low} is not between 0 and sigma_max {high}"
            ))
            .with_help("remove both entries to sample the range that the model was trained on"));
        }
        Ok(Settings {
            prediction: self.prediction_type.unwrap_or(PredictionType::Epsilon),
            schedule: self.schedule(sampler, schedule)?,
            spacing: self.timestep_spacing.unwrap_or(if sampler.walks_training_timesteps() {
                TimestepSpacing::Leading
            } else {
                TimestepSpacing::Linspace
            }),
            offset: self.steps_offset.unwrap_or(0),
            sigma_min: limits.0,
            sigma_max: limits.1,
            last_sigma: if ends_above_zero { noise.sigmas()[0] } else { 0.0 },
            clip: clips.then(|| self.clip_sample_range.unwrap_or(1.0)),
            whole_timesteps_if_karras: sampler == Sampler::UniPc
                || matches!(sampler, Sampler::Dpm2 | Sampler::Dpm2Ancestral)
                || (multistep && self.beta_schedule != Some(BetaSchedule::SquaredcosCapV2)),
            fixed_large_variance: self.variance_type.as_deref() == Some("fixed_large"),
            solver_order: if sampler == Sampler::Dpmpp3mSde { 3 } else { self.solver_order.unwrap_or(2) },
            solver_type: self.solver_type(sampler)?,
            lower_order_final: sampler != Sampler::Dpmpp3mSde && self.lower_order_final.unwrap_or(true),
            euler_at_final: self.euler_at_final.unwrap_or(false),
            usable,
            disable_corrector: self.disable_corrector.clone().unwrap_or_default(),
            original_inference_steps: self.original_inference_steps.unwrap_or(50),
            timestep_scaling: self.timestep_scaling.unwrap_or(10.0),
            noise,
        })
    }

    /// The schedule that is asked for, or else the file's.
    fn schedule(&self, sampler: Sampler, asked: Option<Schedule>) -> Result<Schedule> {
        if sampler.walks_training_timesteps() {
            return match asked {
                None | Some(Schedule::Default) => Ok(Schedule::Default),
                Some(other) => Err(Error::request(format!("sampler {sampler} has no schedule {other}")).with_help(
                    "it walks over whole training timesteps; euler (for ddim) and euler-a (for ddpm) take every schedule",
                )),
            };
        }
        if let Some(asked) = asked {
            return Ok(asked);
        }
        if sampler == Sampler::EulerAncestral {
            return Ok(Schedule::Default); // diffusers' scheduler has no such entries
        }
        let named = [
            ("use_karras_sigmas", self.use_karras_sigmas, Schedule::Karras),
            ("use_exponential_sigmas", self.use_exponential_sigmas, Schedule::Exponential),
            ("use_beta_sigmas", self.use_beta_sigmas, Schedule::Beta),
        ];
        let mut on = named.iter().filter(|(_, value, _)| *value == Some(true));
        let first = on.next();
        if let (Some((a, ..)), Some((b, ..))) = (first, on.next()) {
            return Err(Error::request(format!("scheduler config: {a} and {b} are both true"))
                .with_help("choose a schedule: default, karras, exponential, beta"));
        }
        Ok(first.map_or(Schedule::Default, |(.., schedule)| *schedule))
    }

    /// A solver type of the other family stands for this family's default, as in diffusers.
    fn solver_type(&self, sampler: Sampler) -> Result<SolverType> {
        let default = if sampler == Sampler::UniPc { SolverType::Bh2 } else { SolverType::Midpoint };
        match (self.solver_type.as_deref(), sampler) {
            (_, Sampler::Dpmpp3mSde) => Ok(SolverType::Heun), // k-diffusion's warm-up
            (Some("bh1"), Sampler::UniPc) => Ok(SolverType::Bh1),
            (Some("heun"), s) if s != Sampler::UniPc => Ok(SolverType::Heun),
            (None | Some("bh1" | "bh2" | "midpoint" | "heun" | "logrho"), _) => Ok(default),
            (Some(other), s) if s.is_multistep_solver() => {
                Err(Error::request(format!("scheduler config: unknown solver_type {other:?}"))
                    .with_help("known are midpoint, heun, bh1 and bh2"))
            }
            _ => Ok(default),
        }
    }

    /// Refuses what would change the result of `sampler` in a way that is not implemented.
    fn check_supported(&self, sampler: Sampler) -> Result<()> {
        let refuse = |key: &str, value: &dyn std::fmt::Display| {
            Err(Error::request(format!("scheduler config: {key} = {value} is not supported by sampler {sampler}"))
                .with_help("choose another sampler, or change the entry in scheduler_config.json"))
        };
        for Fixed { key, value: supported, read_by } in FIXED {
            if let Some(value) = self.others.get(key).filter(|v| !v.is_null() && read_by(sampler)) {
                let value = value.to_string();
                if value != supported {
                    return refuse(key, &value);
                }
            }
        }
        let variance = self.variance_type.as_deref().unwrap_or("fixed_small");
        if sampler == Sampler::Ddpm && !matches!(variance, "fixed_small" | "fixed_small_log" | "fixed_large") {
            return refuse("variance_type", &variance);
        }
        let learned = variance.starts_with("learned");
        if learned && sampler.is_multistep_solver() && sampler != Sampler::UniPc {
            return refuse("variance_type", &variance);
        }
        if sampler == Sampler::Pndm && self.skip_prk_steps == Some(false) {
            return refuse("skip_prk_steps", &false);
        }
        let highest = match sampler {
            Sampler::Dpmpp2m | Sampler::Dpmpp2mSde => 3,
            Sampler::UniPc => 4,
            _ => usize::MAX,
        };
        match self.solver_order {
            Some(order) if order == 0 || order > highest => refuse("solver_order", &order),
            _ => Ok(()),
        }
    }
}

/// The names of [`SchedulerConfig`]'s fields in the file.
const FIELDS: &[&str] = &[
    "_class_name",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "rescale_betas_zero_snr",
    "clip_sample",
    "clip_sample_range",
    "set_alpha_to_one",
    "skip_prk_steps",
    "variance_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "sigma_min",
    "sigma_max",
    "final_sigmas_type",
    "solver_order",
    "solver_type",
    "algorithm_type",
    "lower_order_final",
    "euler_at_final",
    "lambda_min_clipped",
    "disable_corrector",
    "original_inference_steps",
    "timestep_scaling",
];

/// The text with Python's non-finite numbers, which are no JSON, replaced by `null`; strings are left alone.
fn without_infinities(text: &str) -> String {
    let (mut out, mut rest, mut in_string) = (String::with_capacity(text.len()), text, false);
    'next: while let Some(c) = rest.chars().next() {
        if !in_string {
            for word in ["-Infinity", "Infinity", "NaN"] {
                if let Some(after) = rest.strip_prefix(word) {
                    out.push_str("null");
                    rest = after;
                    continue 'next;
                }
            }
        }
        let mut taken = c.len_utf8();
        if c == '"' {
            in_string = !in_string;
        } else if c == '\\' && in_string {
            taken += rest[taken..].chars().next().map_or(0, char::len_utf8);
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}
