//! Samplers against diffusers and k-diffusion (`tools/reference/samplers.py`): the latent after every step, on a small
//! nonlinear model, and the timesteps that the model is asked.

use conjure_core::sampling::{Plan, Sampler, SchedulerConfig};
use conjure_core::{Device, Result, Shape, Tensor};
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
                if asked.len() != expected.len() || asked.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.02)
                {
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
