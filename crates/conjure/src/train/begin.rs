//! How a run begins, and how it is taken up again.

use super::folder::RunFolder;
use super::metrics::{Metrics, Stretch};
use super::objective::Objective;
use super::order::Order;
use super::recipe::{Precision, Recipe};
use super::run::Training;
use super::state::{Record, Saved, Trainee};
use crate::image_file::write_atomically;
use crate::{DeviceName, Error, Result};
use conjure_core::{Shares, device};
use std::collections::BTreeMap;
use std::path::Path;

/// How a run is resumed.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// Changes `key=value` to its recipe.
    pub changes: Vec<String>,
    /// Go on although the recipe or the data differ.
    pub force: bool,
}

impl Training {
    /// Begins a run of one of [`super::OBJECTIVES`] in `folder`, which must be new or empty.
    ///
    /// # Errors
    /// A recipe or data that cannot be trained on; the folder holds something.
    pub fn start(recipe: Recipe, folder: &Path) -> Result<Self> {
        RunFolder::check_free(folder)?;
        let objective = super::build(&recipe)?;
        Self::with_objective(recipe, objective, folder)
    }

    /// As [`Training::start`], with an objective of your own. `recipe.objective` is then any name.
    ///
    /// # Errors
    /// As for [`Training::start`].
    pub fn with_objective(recipe: Recipe, objective: Box<dyn Objective>, folder: &Path) -> Result<Self> {
        recipe.check()?;
        check_examples(&*objective)?;
        let training = Self::new(recipe, objective, RunFolder::begin(folder)?)?;
        training.write_recipe()?;
        training.folder.prepare()?;
        Ok(training)
    }

    /// Takes up the run in `folder` at its latest checkpoint that can be read. Also says what is worth saying about that.
    ///
    /// # Errors
    /// No run there, another process works on it, the recipe or data differ and `force` is not set, no checkpoint can be
    /// read.
    pub fn resume(folder: &Path, how: &Resume) -> Result<(Self, Vec<String>)> {
        Self::resume_with(folder, how, super::build)
    }

    /// As [`Training::resume`], with an objective of your own, made by `build` of the recipe.
    ///
    /// # Errors
    /// As for [`Training::resume`].
    pub fn resume_with(
        folder: &Path,
        how: &Resume,
        build: impl FnOnce(&Recipe) -> Result<Box<dyn Objective>>,
    ) -> Result<(Self, Vec<String>)> {
        let folder = RunFolder::take_up(folder)?;
        let (saved, damaged) = folder.latest()?;
        let mut notes: Vec<String> =
            damaged.iter().map(|damaged| format!("passed over a damaged checkpoint: {}", damaged.error)).collect();
        // The file is what people edit; what it said when the checkpoint was made is in the checkpoint.
        let recipe = match &saved {
            Some(saved) if !folder.recipe().is_file() => saved.recipe(&how.changes)?,
            _ => Recipe::read(&folder.recipe(), &how.changes)?,
        };
        let differences = match &saved {
            Some(saved) => saved.recipe(&[])?.differences(&recipe),
            None => Vec::new(),
        };
        if !differences.is_empty() && !how.force {
            return Err(Error::request(format!("the recipe differs from the run's: {}", differences.join(", ")))
                .with_help("the result would be that of neither recipe; add --force if that is meant"));
        }
        let objective = build(&recipe)?;
        check_examples(&*objective)?;
        let mut training = Self::new(recipe, objective, folder)?;
        match saved {
            Some(saved) => training.go_on(saved, differences, how.force, &mut notes)?,
            None => notes.push("no checkpoint yet: the run begins anew".to_owned()),
        }
        training.folder.sweep();
        damaged.iter().for_each(super::folder::Damaged::set_aside);
        training.write_recipe()?;
        training.folder.prepare()?;
        let unfinished = if training.record.open { training.record.step } else { training.record.step + 1 };
        training.metrics.forget_from(unfinished)?;
        training.seconds = training.metrics.seconds();
        Ok((training, notes))
    }

    fn new(recipe: Recipe, objective: Box<dyn Objective>, folder: RunFolder) -> Result<Self> {
        let trainees = objective
            .networks()
            .iter()
            .map(|network| Trainee::new(network.clone(), &recipe.optimizer))
            .collect::<Result<Vec<_>>>()?;
        let record = Record {
            step: 0,
            open: false,
            recipe: recipe.to_toml(),
            data: objective.data_digest(),
            updates: BTreeMap::new(),
            usual: vec![0.0; trainees.len()],
            best: None,
            stretch: Stretch::default(),
            changes: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sealed: true,
        };
        let order = Order::new(recipe.seed, objective.examples());
        let metrics = Metrics::new(folder.metrics());
        // On a GPU the threads' queues of work know nothing of each other: one thread gives all of it.
        let parallel = if recipe.device == DeviceName::Cpu { recipe.parallel } else { 1 };
        device::round_gpu_products(recipe.precision == Precision::Bf16);
        let shares = Shares::new(parallel).map_err(|e| Error::failure(format!("cannot start threads: {e}")))?;
        Ok(Self { recipe, folder, objective, trainees, order, shares, record, metrics, seconds: 0.0 })
    }

    /// Puts a saved state into a new run.
    fn go_on(&mut self, saved: Saved, differences: Vec<String>, force: bool, notes: &mut Vec<String>) -> Result<()> {
        if self.record.data != saved.record.data {
            if !force {
                return Err(Error::request(format!(
                    "the data differ from the run's: digest {} instead of {}",
                    self.record.data, saved.record.data
                ))
                .with_help("give the data that the run began with, or add --force"));
            }
            notes.push("the data differ from those the run began with".to_owned());
        }
        saved.restore(&mut self.trainees)?;
        let measure = saved.recipe(&[])?.checkpoint.best;
        let (data, recipe) = (std::mem::take(&mut self.record.data), std::mem::take(&mut self.record.recipe));
        self.record = Record { data, recipe, ..saved.record };
        if measure != self.recipe.checkpoint.best {
            self.record.best = None;
        }
        self.record.usual.resize(self.trainees.len(), 0.0);
        if !differences.is_empty() {
            self.record.changes.push((self.record.step, differences));
        }
        Ok(())
    }

    fn write_recipe(&self) -> Result<()> {
        write_atomically(&self.folder.recipe(), |file| file.write_all(self.record.recipe.as_bytes()))
    }
}

fn check_examples(objective: &dyn Objective) -> Result<()> {
    if objective.examples() == 0 {
        return Err(Error::request("there is nothing to train on: the data hold no training example")
            .with_help("look at what data.file, data.styles and data.exclude_groups leave"));
    }
    Ok(())
}
