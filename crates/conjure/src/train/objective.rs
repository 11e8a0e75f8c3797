//! What a training run minimises: the part that differs between models.

use crate::image_file::Picture;
use crate::{Error, Result};
use conjure_core::rng::{self, Philox};
use conjure_core::weights::Params;
use conjure_core::{Tensor, Var};
use std::collections::BTreeMap;
use std::path::Path;

/// Parameters that are trained together by one optimizer.
#[derive(Clone)]
pub struct Network {
    /// Name, under which its state is saved.
    pub name: &'static str,
    /// The trained parameters by name.
    pub variables: BTreeMap<String, Var>,
    /// Whether the moving average of the weights is kept and used for validation, samples and export.
    pub averaged: bool,
    /// Factor on the learning rate.
    pub rate: f64,
}

impl Network {
    /// All that `params` handed out, averaged, at the run's learning rate.
    ///
    /// # Errors
    /// `params` is not trainable, or nothing was asked of it.
    pub fn new(name: &'static str, params: &Params) -> Result<Self> {
        let variables = params.variables();
        if variables.is_empty() {
            return Err(Error::failure(format!("the network {name} has no parameters to train")));
        }
        Ok(Self { name, variables, averaged: true, rate: 1.0 })
    }

    /// Only the parameters whose name `keep` accepts.
    pub fn only(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.variables.retain(|name, _| keep(name));
        self
    }
}

/// One micro-batch.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Examples, numbered as the objective does.
    pub indices: &'a [usize],
    /// Updates made before.
    pub step: u64,
    /// Number of the micro-batch within the update.
    pub micro: usize,
    /// Seed of the run.
    pub seed: u64,
}

impl Batch<'_> {
    /// Random numbers for one purpose in this micro-batch. They depend on seed, step, micro-batch and purpose alone, so a
    /// run that is resumed draws what it would have drawn.
    pub fn generator(&self, purpose: &str) -> Philox {
        rng::keyed(self.seed, &format!("step {} part {} {purpose}", self.step, self.micro))
    }
}

/// What a micro-batch gave.
pub struct Losses {
    /// A scalar for each network that is to follow its gradient: the network's place in [`Objective::networks`], the loss.
    /// Gradients of one network's loss with respect to another network are dropped; the same loss may be named for several.
    pub terms: Vec<(usize, Tensor)>,
    /// Further figures for the log.
    pub figures: Vec<(&'static str, f64)>,
}

impl Losses {
    /// One loss for the first network.
    pub fn one(loss: Tensor) -> Self {
        Self { terms: vec![(0, loss)], figures: Vec::new() }
    }
}

/// What is trained, on what, and how it is looked at. A run owns one and calls it from one thread.
///
/// An objective may keep what it computed, but nothing may depend on which calls came before: losses come of the weights and
/// the [`Batch`] alone, or a run that is resumed would not go on as it would have.
pub trait Objective: Send + Sync {
    /// The networks that are trained.
    fn networks(&self) -> &[Network];

    /// Number of training examples.
    fn examples(&self) -> usize;

    /// What the training data are, as a digest: a resumed run must see the same.
    fn data_digest(&self) -> String;

    /// The losses of a micro-batch. Called from several threads at once where a recipe asks for that.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn losses(&self, batch: &Batch) -> Result<Losses>;

    /// What the user should know before the run, such as files that were left out.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// What example `index` is, for messages about it.
    fn describe(&self, index: usize) -> String {
        format!("example {index}")
    }

    /// Figures on held-out data, computed with averaged weights.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }

    /// Texts that the model writes at fixed prompts and seeds, made with averaged weights.
    ///
    /// # Errors
    /// The model fails.
    fn sample_texts(&mut self) -> Result<Option<String>> {
        Ok(None)
    }

    /// A sheet of samples at fixed prompts and seeds, made with averaged weights.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn samples(&mut self) -> Result<Option<Picture>> {
        Ok(None)
    }

    /// Writes what was trained to `folder`, in the ecosystem's layout, with averaged weights.
    ///
    /// # Errors
    /// The system refuses to write.
    fn export(&mut self, folder: &Path) -> Result<()>;
}
