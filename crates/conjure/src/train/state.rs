//! Everything that a run needs to go on as if it had never stopped: one safetensors file.
//!
//! There is no random state in it: every random number depends on seed, step and purpose alone.

use super::metrics::Stretch;
use super::objective::Network;
use super::recipe::{Optimizer, Recipe};
use crate::{Error, Result};
use conjure_core::optim::{AdamW, AdamWConfig, WeightAverage};
use conjure_core::weights::{self, Safetensors, TensorSource};
use conjure_core::{Tensor, Var};
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

/// Where a run is. What was added since the first version has a default, so that older checkpoints can be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Updates made.
    pub step: u64,
    /// Whether the reports, validation and samples that are due after the last of them are still to be made.
    #[serde(default)]
    pub open: bool,
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
    /// What the next line of the log will tell.
    #[serde(default)]
    pub stretch: Stretch,
    /// What was changed by force on the way: from which step, and what.
    pub changes: Vec<(u64, Vec<String>)>,
    /// Version of Conjure.
    pub version: String,
    /// Whether the file was sealed when it was written; only a flipped bit takes a seal away.
    #[serde(default)]
    pub sealed: bool,
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
    // Not JSON, whose parser may miss the last bit of a number.
    let record = toml::to_string(&Record { sealed: true, ..record.clone() })
        .map_err(|e| Error::failure(format!("the training record: {e}")))?;
    weights::save_sealed(path, &tensors, &BTreeMap::from([(RECORD.to_owned(), record)]))
}

/// A saved state.
pub(super) struct Saved {
    pub record: Record,
    path: PathBuf,
    tensors: Safetensors,
}

impl Saved {
    /// Opens a checkpoint. Reads all of it, to see whether it is as it was written.
    ///
    /// # Errors
    /// Not a checkpoint, cut short, or with a bit that flipped.
    pub fn open(path: &Path) -> Result<Self> {
        let tensors = Safetensors::open(path)?;
        let sealed = tensors.check_seal()?;
        let record = tensors
            .metadata()
            .get(RECORD)
            .ok_or_else(|| Error::file(path, "holds weights, but no state of a training run"))?;
        // JSON in checkpoints of the first version.
        let record = if record.starts_with('{') {
            serde_json::from_str(record).map_err(|e| e.to_string())
        } else {
            toml::from_str(record).map_err(|e| e.to_string())
        };
        let record: Record =
            record.map_err(|e| Error::file(path, format!("its training record cannot be read: {e}")))?;
        if record.sealed && !sealed {
            return Err(Error::file(path, "has lost its digest: it is not as it was written"));
        }
        Ok(Self { record, path: path.to_owned(), tensors })
    }

    /// The recipe that the state was made by, with changes `key=value`.
    pub fn recipe(&self, changes: &[String]) -> Result<Recipe> {
        Recipe::parse(&self.record.recipe, changes)
    }

    /// Puts the saved values into the networks.
    ///
    /// # Errors
    /// The networks are others than those that were saved.
    pub fn restore(&self, trainees: &mut [Trainee]) -> Result<()> {
        for Trainee { network, optimizer, average } in trainees {
            let has = |key: &str| self.tensors.infos().contains_key(key);
            let load = |kind: &str, name: &str, like: &Var| -> Result<Tensor> {
                let key = format!("{}/{kind}/{name}", network.name);
                if !has(&key) {
                    return Err(Error::file(&self.path, format!("lacks {key}: it is of another model")));
                }
                let tensor = self.tensors.load(&key, like.dtype(), like.device())?;
                if tensor.shape() != like.shape() {
                    let (saved, asked) = (tensor.dims(), like.dims());
                    let message = format!("{key} has the shape {saved:?} here, but {asked:?} in the recipe's model");
                    return Err(Error::file(&self.path, message));
                }
                Ok(tensor)
            };
            for (name, variable) in &network.variables {
                variable.set(&load("weights", name, variable)?)?;
            }
            let steps = self.record.updates.get(network.name).copied().unwrap_or(0);
            optimizer.restore(steps, &mut |moment| {
                let name = moment.split_once('.').map_or(moment, |(_, name)| name);
                load("optimizer", moment, &network.variables[name])
            })?;
            if let Some(average) = average {
                // A run that kept no average, and was then forced to, begins it with the weights.
                let kept = network.variables.keys().any(|name| has(&format!("{}/average/{name}", network.name)));
                average.restore(&mut |name| {
                    let variable = &network.variables[name];
                    if kept { load("average", name, variable) } else { Ok(variable.as_detached_tensor().copy()?) }
                })?;
            }
        }
        Ok(())
    }
}
