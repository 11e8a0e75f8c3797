//! A training run's recipe: TOML, with every key known.

use super::schedule::Schedule;
use crate::{DeviceName, Error, Result, memory};
use conjure_core::weights::Params;
use conjure_core::{DType, Device};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What every run has, whatever it trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What is trained: a name of [`super::OBJECTIVES`]. Its own settings stand in the table of that name.
    pub objective: String,
    /// Seed of the initial weights, the data's order and everything drawn.
    #[serde(default)]
    pub seed: u64,
    /// Updates.
    pub steps: u64,
    /// Examples in a micro-batch.
    pub batch: usize,
    /// Micro-batches whose gradients are averaged for an update.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Micro-batches of an update that are computed at the same time, at most `accumulate` and one for each thread. The results
    /// are the same, bit for bit, whatever it is; where single operations are small, two at once are faster than one after
    /// the other on two threads, in twice the memory.
    #[serde(default = "one")]
    pub parallel: usize,
    /// Keep fewer activations for the backward pass, and compute them again there: less memory, the same gradients, about a
    /// third more work. See [`conjure_core::recompute`].
    #[serde(default)]
    pub recompute: bool,
    /// Precision of products; sums and everything stored are f32 in any case.
    #[serde(default)]
    pub precision: Precision,
    /// Where it is computed: `cpu`, `cuda` or `cuda:N`. A run may go on on another device, whose sums are rounded otherwise.
    /// `parallel` and `precision` are for the CPU; a GPU computes micro-batches one after the other, in f32.
    #[serde(default)]
    pub device: DeviceName,
    /// How parameters follow their gradients.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: Schedule,
    /// What is kept on the way.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// What is reported on the way.
    #[serde(default)]
    pub report: Report,
    /// The pictures, where the objective takes pictures.
    #[serde(default)]
    pub data: Data,
    /// The objective's own table.
    #[serde(skip)]
    pub own: Table,
}

fn one() -> usize {
    1
}

/// Precision of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Factors rounded to bf16, on a GPU to TF32; sums in f32.
    Bf16,
}

/// AdamW's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Learning rate at the schedule's height.
    pub learning_rate: f64,
    /// Decays of the averages of gradients and of their squares.
    pub betas: [f64; 2],
    /// Added to the root of the latter.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients of a network whose norm is larger are scaled down to it; 0 for no limit.
    pub clip_norm: f64,
    /// Decay of the moving average of weights; 0 for none.
    pub average: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { learning_rate: 1e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, clip_norm: 1.0, average: 0.0 }
    }
}

/// What is kept on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Updates between checkpoints.
    pub every: u64,
    /// How many of the latest are kept.
    pub keep: usize,
    /// The figure of the validation by which the best is kept as well; the smallest is best where the name begins with `-`.
    pub best: Option<String>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 1000, keep: 2, best: None }
    }
}

/// What is reported on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Report {
    /// Updates between lines of the log.
    pub every: u64,
    /// Updates between validations; 0 for none.
    pub validate: u64,
    /// Updates between sheets of samples; 0 for none.
    pub samples: u64,
}

impl Default for Report {
    fn default() -> Self {
        Self { every: 20, validate: 1000, samples: 1000 }
    }
}

/// Which pictures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// A data file that `conjure data` wrote.
    pub file: Option<PathBuf>,
    /// A folder of pictures with captions.
    pub folder: Option<PathBuf>,
    /// So many drawn scenes of shapes.
    pub shapes: Option<usize>,
    /// Side of the pictures in pixels; 0 for that of the model, where a finished one is trained beside.
    pub size: usize,
    /// Drawing styles to use; all if empty.
    pub styles: Vec<String>,
    /// Groups to leave out.
    pub exclude_groups: Vec<String>,
    /// Refuse a folder for pictures, captions or lines of its table that cannot be used, instead of skipping them.
    pub strict: bool,
}

/// Keys that change what is kept and shown, where the data lie and what computes, but not what is computed: a resumed run may
/// change them.
/// The data themselves are known by their digest.
const HARMLESS: [&str; 11] = [
    "checkpoint.best",
    "checkpoint.every",
    "checkpoint.keep",
    "data.file",
    "data.folder",
    "device",
    "parallel",
    "recompute",
    "report.every",
    "report.samples",
    "report.validate",
];

/// Places where pictures come from, of which a recipe names one.
const DATA: [&str; 3] = ["file", "folder", "shapes"];

/// The largest whole number that TOML has.
const MOST: u64 = i64::MAX as u64;
/// Examples of all micro-batches together can then be counted.
const MOST_STEPS: u64 = 1 << 31;

impl Recipe {
    /// Reads a recipe with changes `key.path=value` applied, and checks it.
    ///
    /// # Errors
    /// Not TOML, unknown keys, values of the wrong type or outside their range.
    pub fn read(path: &Path, changes: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                Error::file(path, "not found").with_help("name a recipe; there are some in recipes/")
            }
            ErrorKind::InvalidData => Error::file(path, "is no text").with_help("a recipe is a .toml file"),
            _ => Error::io(path, e),
        })?;
        Self::parse(&text, changes).map_err(|error| match error {
            Error::Request { message, help } => Error::File { path: path.to_owned(), message, help },
            other => other,
        })
    }

    /// As [`Recipe::read`], from text.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str, changes: &[String]) -> Result<Self> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| Error::request(format!("not TOML: {e}")))?;
        for change in changes {
            set(&mut table, change)?;
        }
        let objective = match table.get("objective") {
            Some(Value::String(name)) => name.clone(),
            Some(other) => return Err(Error::request(format!("objective is {other}, not a name"))),
            None => {
                return Err(Error::request("the recipe names no objective")
                    .with_help(format!("begin it with objective = \"NAME\"; known are {}", super::objective_names())));
            }
        };
        let own = match table.remove(&objective) {
            Some(Value::Table(own)) => own,
            Some(_) => return Err(Error::request(format!("{objective} is not a table"))),
            None => Table::new(),
        };
        let other = super::OBJECTIVES.iter().map(|(name, ..)| *name).find(|name| table.contains_key(*name));
        if let Some(other) = other {
            return Err(Error::request(format!("the objective is {objective}, but there is a table [{other}]"))
                .with_help(format!(
                    "known objectives are {}; each reads the table of its name",
                    super::objective_names()
                )));
        }
        let mut recipe: Self = parsed(table)?;
        recipe.own = own;
        // The way to take it back in a change, as TOML has no word for nothing.
        recipe.checkpoint.best = recipe.checkpoint.best.filter(|name| !name.is_empty());
        recipe.check()?;
        Ok(recipe)
    }

    /// The objective's own settings.
    ///
    /// # Errors
    /// Unknown keys, values of the wrong type.
    pub fn own<T: DeserializeOwned>(&self) -> Result<T> {
        parsed(self.own.clone()).map_err(|error| match error {
            Error::Request { message, help } => {
                Error::Request { message: format!("[{}]: {message}", self.objective), help }
            }
            other => other,
        })
    }

    /// Random weights to begin with, of no more parameters than can be trained in the memory that is free: each is held with its
    /// gradient, the optimizer's two averages and, if wanted, its own.
    pub(super) fn random_params(&self, device: &Device) -> Params {
        let params = Params::seeded(self.seed, DType::F32, device);
        let copies = if self.optimizer.average > 0.0 { 5 } else { 4 };
        match memory::free().filter(|_| device.is_cpu()) {
            Some(free) => params.at_most(free / (copies * size_of::<f32>() as u64)),
            None => params,
        }
    }

    /// The whole recipe as TOML, with every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.table()).unwrap_or_default()
    }

    fn table(&self) -> Table {
        let mut table = Table::try_from(self).unwrap_or_default();
        if !self.own.is_empty() {
            table.insert(self.objective.clone(), Value::Table(self.own.clone()));
        }
        table
    }

    /// Keys in which another recipe differs so that a run cannot go on with it unnoticed: `key: here -> there`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        flatten("", &Value::Table(self.table()), &mut here);
        flatten("", &Value::Table(other.table()), &mut there);
        let keys: std::collections::BTreeSet<&String> = here.iter().chain(&there).map(|(key, _)| key).collect();
        let value = |pairs: &[(String, String)], key: &str| {
            pairs.iter().find(|(k, _)| k == key).map_or("absent".to_owned(), |(_, v)| v.clone())
        };
        keys.into_iter()
            .filter(|key| !HARMLESS.contains(&key.as_str()))
            .map(|key| (key, value(&here, key), value(&there, key)))
            .filter(|(_, a, b)| a != b)
            .map(|(key, a, b)| format!("{key}: {a} -> {b}"))
            .collect()
    }

    /// # Errors
    /// A value outside its range.
    pub(super) fn check(&self) -> Result<()> {
        let o = &self.optimizer;
        let share = |x: f64| (0.0..1.0).contains(&x);
        let problems = [
            (self.seed > MOST, format!("seed is {}, more than {MOST}", self.seed)),
            (self.steps == 0 || self.steps > MOST_STEPS, format!("steps is {}, not 1 to {MOST_STEPS}", self.steps)),
            (self.batch == 0 || self.batch > 1 << 16, format!("batch is {}, not 1 to 65536", self.batch)),
            (
                self.accumulate == 0 || self.accumulate > 1 << 16,
                format!("accumulate is {}, not 1 to 65536", self.accumulate),
            ),
            (
                self.parallel == 0 || self.parallel > self.accumulate,
                format!("parallel is {}, not 1 to accumulate, which is {}", self.parallel, self.accumulate),
            ),
            (
                !(o.learning_rate.is_finite() && o.learning_rate > 0.0),
                format!("optimizer.learning_rate is {}, not over 0", o.learning_rate),
            ),
            (!o.betas.into_iter().all(share), format!("optimizer.betas are {:?}, not from 0 to below 1", o.betas)),
            (!(o.eps.is_finite() && o.eps > 0.0), format!("optimizer.eps is {}, not over 0", o.eps)),
            (
                !(o.weight_decay.is_finite() && o.weight_decay >= 0.0),
                format!("optimizer.weight_decay is {}, not 0 or more", o.weight_decay),
            ),
            (
                !(o.clip_norm.is_finite() && o.clip_norm >= 0.0),
                format!("optimizer.clip_norm is {}, not 0 or more", o.clip_norm),
            ),
            (!share(o.average), format!("optimizer.average is {}, not from 0 to below 1", o.average)),
            (
                !(0.0..=1.0).contains(&self.schedule.floor),
                format!("schedule.floor is {}, not 0 to 1", self.schedule.floor),
            ),
            (self.checkpoint.every == 0, "checkpoint.every is 0".to_owned()),
            (self.checkpoint.keep == 0, "checkpoint.keep is 0".to_owned()),
            (self.report.every == 0, "report.every is 0".to_owned()),
        ];
        match problems.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, message)) => Err(Error::request(message)),
            None => Ok(()),
        }
    }
}

fn parsed<T: DeserializeOwned>(table: Table) -> Result<T> {
    Value::Table(table)
        .try_into()
        .map_err(|e: toml::de::Error| Error::request(e.to_string().trim_end().replace('\n', "; ")))
}

/// Applies `a.b=value` to a table. A value that is not TOML is taken as text.
fn set(table: &mut Table, change: &str) -> Result<()> {
    let malformed = || {
        Error::request(format!("\"{change}\" is not of the form key=value"))
            .with_help("for example --set optimizer.learning_rate=2e-4")
    };
    let (path, text) = change.split_once('=').ok_or_else(malformed)?;
    let value = format!("x = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("x"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty()).ok_or_else(malformed)?;
    let mut inner = table;
    for key in keys {
        let next = inner.entry(key).or_insert_with(|| Value::Table(Table::new()));
        inner = next.as_table_mut().ok_or_else(|| Error::request(format!("\"{change}\": {key} is not a table")))?;
    }
    // Data come from one place: a change names another in place of the recipe's.
    if path.trim().strip_prefix("data.").is_some_and(|key| DATA.contains(&key)) {
        DATA.iter().for_each(|key| {
            inner.remove(*key);
        });
    }
    inner.insert(last.to_owned(), value);
    Ok(())
}

fn flatten(prefix: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, pairs);
            }
        }
        other => pairs.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        objective = "autoencoder_kl"
        steps = 100
        batch = 8
        [optimizer]
        learning_rate = 2e-4
        [autoencoder_kl]
        kl_weight = 1e-6
    "#;

    #[test]
    fn a_recipe_is_read_with_changes_and_written_back() {
        let changes = ["optimizer.learning_rate=1e-3", "data.file=emoji.zip", "autoencoder_kl.l1=0.5"];
        let recipe = Recipe::parse(TEXT, &changes.map(str::to_owned)).unwrap();
        assert_eq!(recipe.optimizer.learning_rate, 1e-3);
        assert_eq!(recipe.data.file.as_deref(), Some(Path::new("emoji.zip")));
        assert_eq!(recipe.own["l1"].as_float(), Some(0.5));
        assert_eq!(Recipe::parse(&recipe.to_toml(), &[]).unwrap(), recipe);
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_by_name() {
        let refusal = |change: &str| Recipe::parse(TEXT, &[change.to_owned()]).unwrap_err().to_string();
        assert!(refusal("optimizer.learning_rat=1").contains("learning_rat"));
        assert!(refusal("bach=3").contains("bach"));
        assert!(refusal("batch=0").contains("batch is 0"));
        assert!(refusal("batch=many").contains("batch"));
        assert!(refusal("optimizer.learning_rate=-1").contains("learning_rate is -1"));
        assert!(refusal("optimizer.betas=[0.9, 1.0]").contains("betas"));
        assert!(refusal("steps").contains("not of the form key=value"));
        assert!(refusal("batch.x=3").contains("batch is not a table"));
        assert!(refusal("device=gpu").contains("unknown device \"gpu\""));
        assert_eq!(refusal("objective=clip"), "the objective is clip, but there is a table [autoencoder_kl]");
        assert!(Recipe::parse("steps = ", &[]).unwrap_err().to_string().contains("not TOML"));
        assert!(Recipe::parse("steps = 3", &[]).unwrap_err().to_string().contains("names no objective"));
    }

    #[test]
    fn a_change_names_other_data_in_place_of_the_recipes_and_takes_back_the_best() {
        let changes = ["data.file=a.zip", "data.size=64", "data.folder=mine", "checkpoint.best=psnr"];
        let recipe = Recipe::parse(TEXT, &changes.map(str::to_owned)).unwrap();
        assert_eq!((recipe.data.file.clone(), recipe.data.size), (None, 64));
        assert_eq!(recipe.data.folder.as_deref(), Some(Path::new("mine")));
        assert_eq!(recipe.checkpoint.best.as_deref(), Some("psnr"));
        let back = Recipe::parse(&recipe.to_toml(), &["checkpoint.best=".to_owned()]).unwrap();
        assert_eq!(back.checkpoint.best, None);
    }

    #[test]
    fn random_weights_fit_into_memory() {
        let recipe = Recipe::parse(TEXT, &[]).unwrap();
        let params = recipe.random_params(&Device::Cpu);
        params.get("small", (8, 8), conjure_core::weights::Init::Constant(0.0)).unwrap();
        if memory::free().is_some() {
            // 40 TB to train.
            let error =
                params.get("large", (1 << 20, 1 << 20), conjure_core::weights::Init::Constant(0.0)).unwrap_err();
            assert!(error.to_string().starts_with("the model has over 1099512 million parameters"), "{error}");
        }
    }

    #[test]
    fn differences_name_the_key_and_both_values() {
        let recipe = Recipe::parse(TEXT, &[]).unwrap();
        let changes = ["batch=16", "report.every=1", "autoencoder_kl.l2=1.0", "device=cuda:1"];
        let changed = Recipe::parse(TEXT, &changes.map(str::to_owned)).unwrap();
        assert_eq!(changed.device, DeviceName::Cuda(1));
        assert_eq!(Recipe::parse(&changed.to_toml(), &[]).unwrap(), changed);
        assert_eq!(recipe.differences(&changed), ["autoencoder_kl.l2: absent -> 1.0", "batch: 8 -> 16"]);
        assert!(recipe.differences(&recipe).is_empty());
    }
}
