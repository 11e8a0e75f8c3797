//! Samplers against diffusers and k-diffusion (`tools/reference/samplers.py`): the latent after every step, on a small
//! nonlinear model, and the timesteps that the model is asked.

use conjure_core::sampling::noise_schedule::{BetaSchedule, NoiseSchedule, SIGMA_OF_PURE_NOISE, betas};
use conjure_core::sampling::{Denoise, Plan, Sampler, Schedule, SchedulerConfig};
use conjure_core::{DType, Device, Error, Result, Shape, Tensor};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;

/// The agreement asked of every latent: largest difference over largest value.
const TOLERANCE: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling").join(name)
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name), &Device::Cpu).unwrap()
}

/// `tanh(A x + B (sin t/100, cos t/100, t/1000))`.
struct Toy {
    a: Tensor,
    b: Tensor,
    noise: Tensor,
    start: Tensor,
    x0: Tensor,
}

impl Toy {
    fn load() -> Self {
        let t = tensors("model.safetensors");
        let get = |name: &str| t[name].clone();
        Self { a: get("a"), b: get("b"), noise: get("noise"), start: get("start"), x0: get("x0") }
    }

    fn output(&self, x: &Tensor, t: f64) -> Result<Tensor> {
        let embedding = [(t / 100.0).sin() as f32, (t / 100.0).cos() as f32, (t / 1000.0) as f32];
        let embedding = Tensor::from_slice(&embedding, (3, 1), &Device::Cpu)?;
        let column = x.flatten_all()?.unsqueeze(1)?;
        Ok((self.a.matmul(&column)? + self.b.matmul(&embedding)?)?.tanh()?.reshape(x.shape())?)
    }
}

struct Case {
    json: Value,
    reference: Tensor,
}

fn cases() -> Vec<Case> {
    let list: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(fixture("cases.json")).unwrap()).unwrap();
    let groups: HashMap<&str, HashMap<String, Tensor>> =
        ["runge_kutta", "multistep", "others"].map(|g| (g, tensors(&format!("{g}.safetensors")))).into();
    list.into_iter()
        .map(|json| {
            let reference = groups[json["group"].as_str().unwrap()][&json["index"].to_string()].clone();
            Case { json, reference }
        })
        .collect()
}

/// The largest difference over the largest value of the reference.
fn difference(ours: &Tensor, reference: &Tensor) -> f32 {
    let largest = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    largest(&(ours - reference).unwrap()) / largest(reference)
}

/// Differences from the reference: start and every step, in the scale in which diffusers keeps its latents, and of
/// timesteps.
fn run(case: &Case, toy: &Toy) -> Result<(Vec<f32>, Vec<f64>, Vec<f64>)> {
    let json = &case.json;
    let sampler: Sampler = json["sampler"].as_str().unwrap().parse()?;
    let config = SchedulerConfig::from_json(&json["config"].to_string())?;
    let config = if config.class_name.is_some() { config.for_stable_diffusion(sampler) } else { config };
    let mut plan = Plan::new(&config, sampler, None, json["steps"].as_u64().unwrap() as usize)?
        .with_eta(json["eta"].as_f64().unwrap())?;
    let strength = json["strength"].as_f64().unwrap();
    let x = if strength < 1.0 {
        plan = plan.from_strength(strength)?;
        plan.noised(&toy.x0, &toy.start)?
    } else {
        plan.initial(&toy.start)?
    };
    let scaled = |x: &Tensor, sigma: f64| -> Result<Tensor> {
        Ok(if sampler.is_variance_preserving() { (x / (1.0 + sigma * sigma).sqrt())? } else { x.clone() })
    };
    let asked = RefCell::new(Vec::new());
    let drawn = Cell::new(0);
    let mut trajectory = vec![scaled(&x, plan.steps()[0].sigma)?];
    let mut model = plan.denoiser(|x, t| {
        asked.borrow_mut().push(t);
        toy.output(x, t)
    });
    let sample = plan.run(
        &mut model,
        x,
        &mut |shape: &Shape| {
            drawn.set(drawn.get() + 1);
            Ok(toy.noise.get(drawn.get() - 1)?.reshape(shape)?)
        },
        &mut |p| {
            trajectory.push(scaled(p.x, p.sigma)?);
            Ok(None)
        },
    )?;
    *trajectory.last_mut().unwrap() = sample;
    assert_eq!(trajectory.len(), case.reference.dim(0)?, "{json}");
    let differences =
        trajectory.iter().enumerate().map(|(i, x)| difference(x, &case.reference.get(i).unwrap())).collect();
    let expected = json["timesteps"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
    Ok((differences, asked.into_inner(), expected))
}

#[test]
fn every_step_equals_the_reference() {
    let toy = Toy::load();
    let mut failures = Vec::new();
    let cases = cases();
    let mut samplers: Vec<String> = Vec::new();
    for case in &cases {
        let label = format!("{} {}", case.json["sampler"], case.json);
        samplers.push(case.json["sampler"].as_str().unwrap().to_owned());
        match run(case, &toy) {
            Err(error) => failures.push(format!("{label}\n   {error}")),
            Ok((differences, asked, expected)) => {
                // Between training timesteps the reference computes in f32, which moves a timestep near 0 by up to 0.01.
                if asked.len() != expected.len() || asked.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.02) {
                    failures.push(format!("{label}\n   timesteps {asked:?}\n   expected  {expected:?}"));
                }
                if !differences.iter().all(|d| *d < TOLERANCE) {
                    failures.push(format!("{label}\n   {differences:?}"));
                }
            }
        }
    }
    for sampler in Sampler::ALL {
        assert!(samplers.contains(&sampler.to_string()), "no case for {sampler}");
    }
    assert!(failures.is_empty(), "{} of {} cases fail\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn noise_schedules_equal_diffusers() {
    let reference = tensors("noise_schedules.safetensors");
    let sd = || betas(BetaSchedule::ScaledLinear, 0.00085, 0.012, 1000);
    let schedules = [
        ("linear", NoiseSchedule::new(&betas(BetaSchedule::Linear, 1e-4, 0.02, 1000), false, false)),
        ("scaled_linear", NoiseSchedule::new(&sd(), false, false)),
        (
            "squaredcos_cap_v2",
            NoiseSchedule::new(&betas(BetaSchedule::SquaredcosCapV2, 1e-4, 0.02, 1000), false, false),
        ),
        ("zero_snr", NoiseSchedule::new(&sd(), true, false)),
        ("zero_snr_finite", NoiseSchedule::new(&sd(), true, true)),
    ];
    for (name, schedule) in schedules {
        let expected = reference[name].to_vec1::<f32>().unwrap();
        for (t, (ours, expected)) in schedule.unwrap().alphas_cumprod().iter().zip(&expected).enumerate() {
            let expected = f64::from(*expected);
            assert!((ours - expected).abs() < 1e-6, "{name} at {t}: {ours} != {expected}");
        }
    }
    assert_eq!(NoiseSchedule::new(&sd(), true, false).unwrap().sigmas()[999], SIGMA_OF_PURE_NOISE);
    assert!((NoiseSchedule::new(&sd(), true, true).unwrap().sigmas()[999] - 4096.0).abs() < 1e-3);
}

#[test]
fn sigma_and_timestep_are_inverse() {
    let noise = NoiseSchedule::new(&betas(BetaSchedule::ScaledLinear, 0.00085, 0.012, 1000), false, false).unwrap();
    for t in [0, 1, 500, 998, 999] {
        assert_eq!(noise.timestep_at(noise.sigma_at(f64::from(t))), f64::from(t));
    }
    assert_eq!((noise.timestep_at(1e-9), noise.timestep_at(1e9)), (0.0, 999.0));
    assert_eq!((noise.sigma_at(-1.0), noise.sigma_at(1e4)), (noise.sigmas()[0], noise.sigmas()[999]));
    // Between timesteps: linear in log sigma one way, in sigma the other.
    let between = (noise.sigmas()[10] * noise.sigmas()[11]).sqrt();
    assert!((noise.timestep_at(between) - 10.5).abs() < 1e-9);
    assert!((noise.sigma_at(10.5) - 0.5 * (noise.sigmas()[10] + noise.sigmas()[11])).abs() < 1e-12);
}

fn config(json: &str) -> SchedulerConfig {
    SchedulerConfig::from_json(json).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.help().is_some(), "{error} has no help");
    error.to_string()
}

#[test]
fn a_folder_names_its_sampler() {
    for (json, sampler) in [
        (r#"{"_class_name": "PNDMScheduler"}"#, Sampler::Pndm),
        (r#"{"_class_name": "KDPM2AncestralDiscreteScheduler"}"#, Sampler::Dpm2Ancestral),
        (r#"{"_class_name": "DPMSolverMultistepScheduler"}"#, Sampler::Dpmpp2m),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#, Sampler::Dpmpp2mSde),
        (
            r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3}"#,
            Sampler::Dpmpp3mSde,
        ),
    ] {
        assert_eq!(config(json).sampler().unwrap(), sampler, "{json}");
    }
    let odd = config(r#"{"_class_name": "TCDScheduler"}"#).sampler();
    assert_eq!(refusal(odd), "scheduler config: unknown scheduler TCDScheduler");
    assert!(config("{}").sampler().unwrap_err().help().unwrap().contains("dpmpp-3m-sde, dpmpp-2s-a"));
}

#[test]
fn pythons_infinities_are_read_and_strings_are_left_alone() {
    let read = config(r#"{"lambda_min_clipped": -Infinity, "variance_type": "-Infinity \" NaN", "sigma_max": NaN}"#);
    assert_eq!(read.lambda_min_clipped, None);
    assert_eq!(read.variance_type.as_deref(), Some("-Infinity \" NaN"));
}

#[test]
fn config_entries_that_would_change_the_picture_are_refused_by_name() {
    let read = |json: &str| refusal(SchedulerConfig::from_json(json));
    assert_eq!(read(r#"{"new_idea": 3}"#), "scheduler config: unknown entry new_idea = 3");
    assert!(SchedulerConfig::from_json(r#"{"new_idea": false, "other": null, "_private": 1}"#).is_ok());
    assert!(
        read(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3}"#).contains("another noise process")
    );

    let plan = |json: &str, sampler| refusal(Plan::new(&config(json), sampler, None, 5));
    assert_eq!(
        plan(r#"{"thresholding": true}"#, Sampler::Ddim),
        "scheduler config: thresholding = true is not supported by sampler ddim"
    );
    assert!(Plan::new(&config(r#"{"thresholding": true}"#), Sampler::Euler, None, 5).is_ok(), "euler does not read it");
    assert!(plan(r#"{"skip_prk_steps": false}"#, Sampler::Pndm).contains("skip_prk_steps = false"));
    assert!(plan(r#"{"variance_type": "learned"}"#, Sampler::Ddpm).contains("variance_type = learned"));
    assert!(plan(r#"{"use_flow_sigmas": true}"#, Sampler::UniPc).contains("use_flow_sigmas = true"));
    assert!(plan(r#"{"predict_x0": false}"#, Sampler::UniPc).contains("predict_x0 = false"));
    assert!(plan(r#"{"timestep_type": "continuous"}"#, Sampler::Euler).contains("timestep_type = \"continuous\""));
    assert!(plan(r#"{"solver_order": 0}"#, Sampler::Dpmpp2m).contains("solver_order = 0"));
    assert!(plan(r#"{"use_karras_sigmas": true, "use_beta_sigmas": true}"#, Sampler::Heun).contains("both true"));
    assert!(plan(r#"{"beta_end": 1.5}"#, Sampler::Heun).contains("not inside 0 to 1"));
    assert!(plan(r#"{"num_train_timesteps": 99999999999999}"#, Sampler::Heun).contains("is more than 1000000"));
    assert!(plan(r#"{"lambda_min_clipped": 1e9}"#, Sampler::Dpmpp2m).contains("leaves no timestep"));
    assert!(plan(r#"{"sigma_min": -1, "use_karras_sigmas": true}"#, Sampler::Euler).contains("sigma_min -1"));
    assert!(plan(r#"{"num_train_timesteps": 0}"#, Sampler::Heun).contains("no timesteps"));
}

#[test]
fn text_that_is_no_config_is_refused() {
    for text in ["", "[]", "{", "\"", "{\"beta_start\": }", "\\"] {
        refusal(SchedulerConfig::from_json(text));
    }
    let wrong = refusal(SchedulerConfig::from_json(r#"{"beta_schedule": "sigmoid"}"#));
    assert!(wrong.starts_with("scheduler config: beta_schedule = \"sigmoid\""), "{wrong}");
    assert!(refusal(SchedulerConfig::from_json(r#"{"steps_offset": "one"}"#)).contains("steps_offset = \"one\""));
    assert!(refusal(SchedulerConfig::from_json(r#"{"num_train_timesteps": -1}"#)).contains("num_train_timesteps = -1"));
}

#[test]
fn requests_out_of_range_are_refused() {
    let sd = config(r#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#);
    let plan = |sampler, steps| Plan::new(&sd, sampler, None, steps);
    assert_eq!(refusal(plan(Sampler::Euler, 0)), "steps 0 is outside 1 to 1000");
    assert_eq!(refusal(plan(Sampler::Euler, 1001)), "steps 1001 is outside 1 to 1000");
    assert_eq!(refusal(plan(Sampler::Lcm, 51)), "steps 51 is more than the 50 that sampler lcm was distilled for");
    assert!(refusal(plan(Sampler::Dpmpp2m, 1000)).contains("do not fit on 1000"));
    assert!(refusal(Plan::new(&sd, Sampler::Ddim, Some(Schedule::Karras), 5)).contains("has no schedule karras"));
    for eta in [-0.1, 1.1, f64::NAN] {
        assert!(refusal(plan(Sampler::Ddim, 5).unwrap().with_eta(eta)).contains("is outside 0 to 1"));
    }
    assert_eq!(refusal(plan(Sampler::Heun, 5).unwrap().with_eta(0.5)), "sampler heun has no eta");
    for strength in [0.0, -1.0, 1.5, f64::NAN] {
        assert!(refusal(plan(Sampler::Ddim, 5).unwrap().from_strength(strength)).contains("is outside 0 to 1"));
    }
    assert_eq!(refusal(plan(Sampler::Ddim, 5).unwrap().from_strength(0.1)), "strength 0.1 leaves none of 5 steps");
    assert_eq!(plan(Sampler::Ddim, 50).unwrap().from_strength(0.75).unwrap().steps().len(), 37);
    assert_eq!(plan(Sampler::Pndm, 50).unwrap().steps().len(), 51);
}

/// A model that answers 0, with NaN from its `bad`th evaluation on.
struct Failing {
    bad: usize,
    asked: usize,
}

impl Denoise for Failing {
    fn denoise(&mut self, x: &Tensor, _: f64) -> Result<Tensor> {
        self.asked += 1;
        Ok(x.affine(0.0, if self.asked >= self.bad { f64::NAN } else { 0.0 })?)
    }
}

fn zeros(shape: &Shape) -> Result<Tensor> {
    Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
}

#[test]
fn a_latent_that_is_not_finite_is_reported_with_its_step() {
    let ones = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
    for sampler in [Sampler::Euler, Sampler::Ddim, Sampler::Dpmpp2mSde, Sampler::UniPc] {
        let plan = Plan::new(&SchedulerConfig::default(), sampler, None, 5).unwrap();
        let mut model = Failing { bad: 3, asked: 0 };
        let x = plan.initial(&ones).unwrap();
        let error = plan.run(&mut model, x, &mut zeros, &mut |_| Ok(None)).unwrap_err();
        assert_eq!(error.to_string(), "the latent became NaN or infinite in step 3 of 5", "{sampler}");
        assert_eq!(error.exit_code(), 1);
        let x = (&ones * f64::INFINITY).unwrap();
        let error = plan.run(&mut model, x, &mut zeros, &mut |_| Ok(None)).unwrap_err();
        assert!(error.to_string().ends_with("before the first step"), "{sampler}: {error}");
    }
}

#[test]
fn a_callback_stops_or_replaces() {
    let ones = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
    let plan = Plan::new(&SchedulerConfig::default(), Sampler::Euler, None, 5).unwrap();
    let run = |each: &mut dyn FnMut(usize) -> Result<Option<Tensor>>| {
        let mut model = Failing { bad: usize::MAX, asked: 0 };
        let x = plan.initial(&ones).unwrap();
        let result = plan.run(&mut model, x, &mut zeros, &mut |p| each(p.step));
        (result, model.asked)
    };
    let (result, asked) = run(&mut |step| if step == 1 { Err(Error::Cancelled) } else { Ok(None) });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(asked, 2, "stops within the step");
    let (result, _) = run(&mut |step| Ok((step == 4).then(|| (&ones * 7.0).unwrap())));
    assert_eq!(result.unwrap().to_vec2::<f32>().unwrap(), [[7.0, 7.0]]);
}

#[test]
fn an_explicit_schedule_takes_the_place_of_the_files() {
    let karras = config(r#"{"use_karras_sigmas": true}"#);
    let levels = |sampler, schedule| -> Vec<f64> {
        Plan::new(&karras, sampler, schedule, 6).unwrap().steps().iter().map(|s| s.sigma).collect()
    };
    let of_file = levels(Sampler::Euler, None);
    assert_eq!(of_file, levels(Sampler::Euler, Some(Schedule::Karras)));
    assert_ne!(of_file, levels(Sampler::Euler, Some(Schedule::Default)));
    // diffusers' ancestral Euler does not read the entry, but can be asked for the schedule.
    assert_eq!(levels(Sampler::EulerAncestral, None), levels(Sampler::EulerAncestral, Some(Schedule::Default)));
    assert_eq!(levels(Sampler::EulerAncestral, Some(Schedule::Karras)), of_file);
    // Exponential: a constant ratio.
    let even = levels(Sampler::Euler, Some(Schedule::Exponential));
    for pair in even.windows(3) {
        assert!((pair[1] / pair[0] - pair[2] / pair[1]).abs() < 1e-6);
    }
}
