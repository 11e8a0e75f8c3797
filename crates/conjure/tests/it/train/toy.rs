//! A model of a hundred parameters with a critic beside it, and everything that can go wrong with them.

use conjure::image_file::Picture;
use conjure::train::{Batch, Losses, Network, Objective, Recipe};
use conjure::{Error, Result};
use conjure_core::rng::{self, Generator as _};
use conjure_core::weights::{Init, Params};
use conjure_core::{DType, Device, Tensor, precision};
use std::path::Path;

/// What a run is to meet.
#[derive(Clone)]
pub struct Plan {
    pub examples: usize,
    pub data_seed: u64,
    /// Noise in the input, drawn from the batch's generator.
    pub noise: bool,
    /// Update from which the critic is trained.
    pub critic_from: u64,
    /// Update whose loss is not a number.
    pub nan_at: Option<u64>,
    /// Update whose loss is a million times too large.
    pub explode_at: Option<u64>,
    /// Update at which the data cannot be read.
    pub unreadable_at: Option<u64>,
    /// The validation fails.
    pub blind: bool,
    /// Nothing is held out.
    pub all_trained: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            examples: 50,
            data_seed: 1,
            noise: true,
            critic_from: 9,
            nan_at: None,
            explode_at: None,
            unreadable_at: None,
            blind: false,
            all_trained: false,
        }
    }
}

pub struct Toy {
    plan: Plan,
    networks: Vec<Network>,
    model: [Tensor; 2],
    critic: Tensor,
    inputs: Tensor,
    targets: Tensor,
}

impl Toy {
    pub fn new(recipe: &Recipe, plan: &Plan) -> Self {
        let params = |name: &str| Params::seeded(recipe.seed, DType::F32, &Device::Cpu).trainable().sub(name);
        let (model, critic) = (params("model"), params("critic"));
        let init = Init::Uniform { bound: 0.5 };
        let weights = [model.get("a", (16, 6), init).unwrap(), model.get("b", (1, 16), init).unwrap()];
        let judge = critic.get("c", (1, 7), init).unwrap();
        let n = plan.examples.max(1);
        let inputs = rng::randn(&mut rng::keyed(plan.data_seed, "inputs"), (n, 6), &Device::Cpu).unwrap();
        let targets = inputs.narrow(1, 0, 1).unwrap().sin().unwrap();
        let networks = vec![
            Network::new("model", &model).unwrap(),
            Network { averaged: false, rate: 0.5, ..Network::new("critic", &critic).unwrap() },
        ];
        Self { plan: plan.clone(), networks, model: weights, critic: judge, inputs, targets }
    }

    fn predict(&self, inputs: &Tensor) -> Result<Tensor> {
        let hidden = inputs.matmul(&self.model[0].t()?)?.tanh()?;
        Ok(hidden.matmul(&self.model[1].t()?)?)
    }

    /// The weights `a` of the model.
    pub fn weights(&self) -> Vec<f32> {
        self.model[0].flatten_all().unwrap().to_vec1().unwrap()
    }
}

impl Objective for Toy {
    fn networks(&self) -> &[Network] {
        &self.networks
    }

    fn examples(&self) -> usize {
        self.plan.examples
    }

    fn data_digest(&self) -> String {
        format!("toy {}", self.plan.data_seed)
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        if self.plan.unreadable_at == Some(batch.step) {
            return Err(Error::failure("example 7 cannot be read"));
        }
        let rows: Vec<u32> = batch.indices.iter().map(|&i| i as u32).collect();
        let rows = Tensor::new(rows, &Device::Cpu)?;
        let mut inputs = self.inputs.index_select(&rows, 0)?;
        if self.plan.noise {
            let noise = batch.generator("noise").normal(inputs.elem_count());
            inputs = (inputs + (Tensor::from_vec(noise, (rows.dim(0)?, 6), &Device::Cpu)? * 0.1)?)?;
        }
        let predicted = self.predict(&inputs)?;
        let mut loss = (&predicted - self.targets.index_select(&rows, 0)?)?.sqr()?.mean_all()?;
        if self.plan.nan_at == Some(batch.step) {
            loss = (loss * f64::NAN)?;
        }
        if self.plan.explode_at == Some(batch.step) {
            loss = (loss * 1e6)?;
        }
        let size = f64::from(predicted.sqr()?.mean_all()?.to_scalar::<f32>()?);
        let mut terms = vec![(0, loss)];
        if batch.step >= self.plan.critic_from {
            // Depends on the model as well, which must not follow it.
            let seen = Tensor::cat(&[&inputs, &predicted], 1)?;
            terms.push((1, (seen.matmul(&self.critic.t()?)? - 2.0)?.sqr()?.mean_all()?));
        }
        Ok(Losses { terms, figures: vec![("size", size), ("bf16", in_bf16())] })
    }

    fn describe(&self, index: usize) -> String {
        format!("row {index}")
    }

    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        if self.plan.blind {
            return Err(Error::failure("the held-out data cannot be read"));
        }
        if self.plan.all_trained {
            return Ok(Vec::new());
        }
        let error = (self.predict(&self.inputs)? - &self.targets)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
        Ok(vec![("error".to_owned(), f64::from(error)), ("bf16".to_owned(), in_bf16())])
    }

    fn samples(&mut self) -> Result<Option<Picture>> {
        let shade = (self.weights()[0].abs() * 200.0) as u8;
        Ok(Some(Picture::new(2, 2, vec![shade; 12])?))
    }

    fn export(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join("model.safetensors");
        let variables = &self.networks[0].variables;
        let tensors = variables.iter().map(|(name, v)| (name.clone(), v.as_detached_tensor())).collect();
        conjure_core::weights::save(path, &tensors, &Default::default())
    }
}

/// 1 where products are computed in bf16.
fn in_bf16() -> f64 {
    if precision::current() == precision::Precision::Bf16 { 1.0 } else { 0.0 }
}
