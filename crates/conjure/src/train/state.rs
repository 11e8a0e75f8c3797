//! Everything that a run needs to go on as if it had never stopped: one safetensors file.
//!
//! There is no random state in it: every random number depends on seed, step and purpose alone.

use super::objective::Network;
use super::recipe::{Optimizer, Recipe};
use crate::{Error, Result};
use conjure_core::optim::{AdamW, AdamWConfig, WeightAverage};
use conjure_core::weights::{self, Safetensors, TensorSource};
use conjure_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Key of the record in the file's metadata.
const RECORD: &str = "conjure.training";

/// A network with the state of its optimizer and its average.
pub(super) struct Trainee {
    pub network: Network,
    pub optimizer: AdamW,
    pub average: Option<WeightAverage>,
}

impl Trainee {
    pub fn new(network: Network, settings: &Optimizer) -> Result<Self> {
        let config = AdamWConfig {
            beta1: settings.betas[0],
            beta2: settings.betas[1],
            eps: settings.eps,
            weight_decay: settings.weight_decay,
        };
        let optimizer = AdamW::new(network.variables.clone(), config)?;
        let average = (network.averaged && settings.average > 0.0)
            .then(|| WeightAverage::new(network.variables.clone(), settings.average))
            .transpose()?;
        Ok(Self { network, optimizer, average })
    }
}

/// Exchanges the weights of all networks with their averages.
pub(super) fn swap(trainees: &mut [Trainee]) -> Result<()> {
    trainees.iter_mut().filter_map(|trainee| trainee.average.as_mut()).try_for_each(WeightAverage::swap)
}

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Updates made.
    pub step: u64,
    /// The recipe as TOML, every default written out.
    pub recipe: String,
    /// Digest of the training data.
    pub data: String,
    /// Updates made by each network's optimizer.
    pub updates: BTreeMap<String, u64>,
    /// Running average of the absolute loss of each network.
    pub usual: Vec<f64>,
    /// The best figure of the validation so far.
    pub best: Option<f64>,
    /// Seconds of training so far.
    pub seconds: f64,
    /// What was changed by force on the way: from which step, and what.
    pub changes: Vec<(u64, Vec<String>)>,
    /// Version of Conjure.
    pub version: String,
}

/// Writes the state, or leaves what was at `path`.
pub(super) fn save(path: &Path, record: &Record, trainees: &[Trainee]) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for Trainee { network, optimizer, average } in trainees {
        let mut put = |kind: &str, name: String, tensor: Tensor| {
            tensors.insert(format!("{}/{kind}/{name}", network.name), tensor);
        };
        for (name, variable) in &network.variables {
            put("weights", name.clone(), variable.as_tensor().clone());
        }
        for (name, tensor) in optimizer.state()? {
            put("optimizer", name, tensor);
        }
        for (name, tensor) in average.as_ref().map(WeightAverage::state).transpose()?.unwrap_or_default() {
            put("average", name, tensor);
        }
    }
    let record = serde_json::to_string(record).map_err(|e| Error::failure(format!("the training record: {e}")))?;
    weights::save(path, &tensors, &BTreeMap::from([(RECORD.to_owned(), record)]))
}

/// A saved state.
pub(super) struct Saved {
    pub record: Record,
    path: PathBuf,
    tensors: Safetensors,
}

impl Saved {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Not a checkpoint, or cut short.
    pub fn open(path: &Path) -> Result<Self> {
        let tensors = Safetensors::open(path)?;
        let record = tensors
            .metadata()
            .get(RECORD)
            .ok_or_else(|| Error::file(path, "holds weights, but no state of a training run"))?;
        let record = serde_json::from_str(record)
            .map_err(|e| Error::file(path, format!("its training record cannot be read: {e}")))?;
        Ok(Self { record, path: path.to_owned(), tensors })
    }

    pub fn recipe(&self) -> Result<Recipe> {
        Recipe::parse(&self.record.recipe, &[])
    }

    /// Puts the saved values into the networks.
    ///
    /// # Errors
    /// The networks are others than those that were saved.
    pub fn restore(&self, trainees: &mut [Trainee]) -> Result<()> {
        for Trainee { network, optimizer, average } in trainees {
            let load = |kind: &str, name: &str| -> Result<Tensor> {
                let key = format!("{}/{kind}/{name}", network.name);
                if !self.tensors.infos().contains_key(&key) {
                    return Err(Error::file(&self.path, format!("lacks {key}: it is of another model")));
                }
                let device = network.variables.values().next().map_or(&conjure_core::Device::Cpu, |v| v.device());
                self.tensors.load(&key, DType::F32, device)
            };
            for (name, variable) in &network.variables {
                let tensor = load("weights", name)?;
                if tensor.shape() != variable.shape() {
                    let (saved, asked) = (tensor.dims(), variable.dims());
                    let message = format!("{name} has the shape {saved:?} here, but {asked:?} in the recipe's model");
                    return Err(Error::file(&self.path, message));
                }
                variable.set(&tensor)?;
            }
            let steps = self.record.updates.get(network.name).copied().unwrap_or(0);
            optimizer.restore(steps, &mut |name| load("optimizer", name))?;
            if let Some(average) = average {
                average.restore(&mut |name| load("average", name))?;
            }
        }
        Ok(())
    }
}

/// The run's checkpoints, the latest last.
pub(super) fn checkpoints(folder: &Path) -> Vec<(u64, PathBuf)> {
    let step =
        |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok();
    let mut found: Vec<(u64, PathBuf)> = std::fs::read_dir(folder.join("checkpoints"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((step(&path)?, path))
        })
        .collect();
    found.sort();
    found
}

/// Name of the checkpoint after `step` updates.
pub(super) fn checkpoint(folder: &Path, step: u64) -> PathBuf {
    folder.join("checkpoints").join(format!("step-{step:08}.safetensors"))
}
