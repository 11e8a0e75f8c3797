//! The loop: one for everything that is trained.

use super::curves;
use super::event::{Control, Event, Listener};
use super::folder::RunFolder;
use super::metrics::{self, Metrics};
use super::objective::{Batch, Losses, Objective};
use super::order::Order;
use super::recipe::{Precision, Recipe};
use super::state::{self, Record, Trainee};
use crate::image_file::{write_atomically, write_png};
use crate::{Error, Result};
use conjure_core::optim::sum_of_squares;
use conjure_core::{DType, Shares, Tensor, precision as products, recompute};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// A loss this many times the usual one counts as exploded.
const EXPLODED: f64 = 1000.0;
/// Updates of a network before explosions of its loss are looked for.
const SETTLED: u64 = 100;

/// A training run in its folder:
///
/// | file | what it holds |
/// |---|---|
/// | `recipe.toml` | the recipe with every default |
/// | `metrics.jsonl` | a line for each stretch of updates and each validation |
/// | `loss.svg` | their curves |
/// | `samples/` | sheets of samples, or texts |
/// | `checkpoints/` | the last states, `best.safetensors`, and the state at a failure |
/// | `export/` | the trained model in the ecosystem's layout |
///
/// Two runs of the same recipe on the same data make the same checkpoints, byte for byte, however often one of them was
/// killed and resumed.
pub struct Training {
    pub(super) recipe: Recipe,
    pub(super) folder: RunFolder,
    pub(super) objective: Box<dyn Objective>,
    pub(super) trainees: Vec<Trainee>,
    pub(super) order: Order,
    /// Threads for micro-batches that are computed at the same time.
    pub(super) shares: Shares,
    pub(super) record: Record,
    pub(super) metrics: Metrics,
    /// Seconds of training since the run began. No part of the state: no two runs take the same time.
    pub(super) seconds: f64,
}

/// Gradients by parameter.
type Gradients = BTreeMap<String, Tensor>;

/// What a micro-batch gave: for each loss its network, its value and its gradients; and further figures.
#[derive(Default)]
struct Part {
    terms: Vec<(usize, f64, Gradients)>,
    figures: Vec<(&'static str, f64)>,
}

/// What the micro-batches of an update gave.
struct Gathered {
    /// Sums over the micro-batches, by network and parameter.
    gradients: Vec<Gradients>,
    /// Averages over the micro-batches; nothing for a network that had no loss.
    losses: Vec<Option<f64>>,
    figures: Vec<(&'static str, f64)>,
    examples: Vec<usize>,
}

impl Training {
    /// The recipe of the run.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Updates made.
    pub fn step(&self) -> u64 {
        self.record.step
    }

    /// Number of trained parameters by network.
    pub fn parameters(&self) -> Vec<(&'static str, usize)> {
        let count = |trainee: &Trainee| trainee.network.variables.values().map(|v| v.elem_count()).sum();
        self.trainees.iter().map(|trainee| (trainee.network.name, count(trainee))).collect()
    }

    /// Trains to the recipe's end, keeping checkpoints on the way, and exports the model.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after a request to stop, with the state saved; a loss that is not a number or explodes, with
    /// step, batch and state saved; the objective fails, with the state saved.
    pub fn run(&mut self, on_event: &mut dyn FnMut(Event) -> Control) -> Result<()> {
        let mut listener = Listener::new(on_event);
        for warning in self.objective.warnings() {
            listener.tell(Event::Warning(warning));
        }
        loop {
            if !self.record.open {
                if self.record.step == self.recipe.steps {
                    break;
                }
                self.update()?;
                self.record.open = true;
            }
            let outcome = self.close(&mut listener);
            if listener.stop {
                let path = self.save()?;
                listener.tell(Event::Wrote(path));
                return Err(Error::Cancelled);
            }
            self.saved_at_failure(outcome)?;
        }
        self.export(on_event)
    }

    /// Writes the trained model, with averaged weights, to `export/` in the run's folder.
    ///
    /// # Errors
    /// The system refuses to write.
    pub fn export(&mut self, on_event: &mut dyn FnMut(Event) -> Control) -> Result<()> {
        let folder = self.folder.export();
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        self.with_averages(|objective| objective.export(&folder))?;
        on_event(Event::Wrote(folder));
        Ok(())
    }

    /// Does what is due after an update: reports, looks at held-out data, makes samples, saves. Returns early, with the update
    /// still open, where the listener asks to stop; all of it is then done when the run is taken up again.
    fn close(&mut self, listener: &mut Listener) -> Result<()> {
        let (step, steps) = (self.record.step, self.recipe.steps);
        let last = step == steps;
        let due = |every: u64| every > 0 && (step.is_multiple_of(every) || last);
        let report = self.recipe.report.clone();
        listener.tell(Event::Update { step, steps });
        if due(report.every) && !listener.stop {
            self.report(listener);
        }
        if due(report.validate) && !listener.stop {
            self.validate(listener)?;
        }
        if due(report.samples) && !listener.stop {
            listener.tell(Event::Stage("making samples".into()));
            let (sheet, texts) =
                self.with_averages(|objective| Ok((objective.samples()?, objective.sample_texts()?)))?;
            if let Some(sheet) = sheet {
                let path = self.folder.samples(step, "png");
                listener.survive(write_png(&path, &sheet, None).map(|()| Some(path)));
            }
            if let Some(texts) = texts {
                let path = self.folder.samples(step, "txt");
                let written = write_atomically(&path, |file| file.write_all(texts.as_bytes()));
                listener.survive(written.map(|()| Some(path)));
            }
        }
        if listener.stop {
            return Ok(());
        }
        self.record.open = false;
        if due(report.every) {
            self.record.stretch = metrics::Stretch::default();
        }
        if due(self.recipe.checkpoint.every) {
            let saved = self.save();
            if last {
                saved?;
            } else {
                listener.survive(saved.map(Some));
            }
            listener.survive(curves::draw(self.metrics.path(), &self.folder.curves()).map(|()| None));
        }
        Ok(())
    }

    /// One update of every network.
    fn update(&mut self) -> Result<()> {
        let began = Instant::now();
        let gathered = self.gather();
        let Gathered { gradients, losses, figures, examples } = self.saved_at_failure(gathered)?;
        let parts = self.recipe.accumulate as f64;
        let mut norms = Vec::new();
        for gradients in &gradients {
            norms.push(sum_of_squares(gradients.values())?.sqrt() / parts);
        }
        self.look_for_failure(&losses, &norms, &examples)?;

        let factor = self.recipe.schedule.factor(self.record.step, self.recipe.steps);
        let clip = self.recipe.optimizer.clip_norm;
        let stretch = &mut self.record.stretch;
        for (place, trainee) in self.trainees.iter_mut().enumerate() {
            let name = trainee.network.name;
            if let Some(loss) = losses[place] {
                stretch.add(name, loss);
            }
            if gradients[place].is_empty() {
                continue;
            }
            let shrink = if clip > 0.0 && norms[place] > clip { clip / norms[place] } else { 1.0 };
            let rate = self.recipe.optimizer.learning_rate * factor * trainee.network.rate;
            trainee.optimizer.step(&gradients[place], rate, shrink / parts)?;
            if let Some(average) = &mut trainee.average {
                average.update(trainee.optimizer.steps())?;
            }
            self.record.updates.insert(name.to_owned(), trainee.optimizer.steps());
        }
        for (name, value) in figures {
            stretch.add(name, value);
        }
        stretch.learning_rate = self.recipe.optimizer.learning_rate * factor;
        stretch.gradient_norm = norms.first().copied().unwrap_or(0.0);
        stretch.examples += examples.len();
        let seconds = began.elapsed().as_secs_f64();
        stretch.seconds += seconds;
        self.seconds += seconds;
        self.record.step += 1;
        Ok(())
    }

    /// Losses and gradients of the update's micro-batches. Changes no weight.
    fn gather(&mut self) -> Result<Gathered> {
        let Recipe { batch, accumulate, seed, .. } = self.recipe;
        let step = self.record.step;
        let networks = self.trainees.len();
        let mut gathered = Gathered {
            gradients: vec![BTreeMap::new(); networks],
            losses: vec![None; networks],
            figures: Vec::new(),
            examples: Vec::new(),
        };
        let mut micro = 0;
        while micro < accumulate {
            let group: Vec<(usize, Vec<usize>)> = (micro..accumulate.min(micro + self.shares.count()))
                .map(|micro| (micro, self.order.take((step * accumulate as u64 + micro as u64) * batch as u64, batch)))
                .collect();
            micro += group.len();
            let compute = |place: usize| {
                let Some((micro, indices)) = group.get(place) else { return Ok(Part::default()) };
                self.part(&Batch { indices, step, micro: *micro, seed })
            };
            // A group of one has all threads.
            let parts = if group.len() == 1 { vec![compute(0)] } else { self.shares.run(compute) };
            for (part, (_, indices)) in parts.into_iter().zip(&group) {
                let Part { terms, figures } = part?;
                for (place, value, gradients) in terms {
                    *gathered.losses[place].get_or_insert(0.0) += value / accumulate as f64;
                    gathered.gradients[place] = sums(std::mem::take(&mut gathered.gradients[place]), gradients)?;
                }
                gathered.figures.extend(figures);
                gathered.examples.extend(indices);
            }
        }
        Ok(gathered)
    }

    /// Losses and gradients of one micro-batch.
    fn part(&self, batch: &Batch) -> Result<Part> {
        let Recipe { recompute, precision, .. } = self.recipe;
        let compute = || {
            let Losses { terms, figures } = self.objective.losses(batch)?;
            // Networks that follow the same loss share its backward pass.
            let mut last = None;
            let terms = terms.into_iter().map(|(place, loss)| {
                let Some(trainee) = self.trainees.get(place) else {
                    let networks = self.trainees.len();
                    return Err(Error::failure(format!("a loss is for network {place}, but there are {networks}")));
                };
                let mut store = match last.take() {
                    Some((id, store)) if id == loss.id() => store,
                    _ => recompute::backward(&loss)?,
                };
                // Read after the backward pass was begun: a GPU would wait for it.
                let value = f64::from(loss.detach().to_dtype(DType::F32)?.to_scalar::<f32>()?);
                let gradients = trainee.network.variables.iter().filter_map(|(name, variable)| {
                    // Detached, or it would keep everything alive that it was computed from.
                    Some((name.clone(), store.remove(variable.as_tensor())?.detach()))
                });
                let gradients = gradients.collect();
                last = Some((loss.id(), store));
                Ok((place, value, gradients))
            });
            Ok(Part { terms: terms.collect::<Result<_>>()?, figures })
        };
        recompute::with(recompute, || with_precision(precision, compute))
    }

    /// # Errors
    /// A loss or gradient is not a number, or a loss exploded. Then the state before the update and the batch are saved.
    fn look_for_failure(&mut self, losses: &[Option<f64>], norms: &[f64], examples: &[usize]) -> Result<()> {
        let mut usual = self.record.usual.clone();
        let mut reason = None;
        for (place, (&loss, &norm)) in losses.iter().zip(norms).enumerate() {
            let Some(loss) = loss else { continue };
            let Trainee { network, optimizer, .. } = &self.trainees[place];
            let (name, before) = (network.name, usual[place]);
            if !loss.is_finite() || !norm.is_finite() {
                reason = Some(format!("the loss of {name} is {loss}, the norm of its gradient {norm}"));
            } else if optimizer.steps() >= SETTLED && loss.abs() > EXPLODED * (before + 1e-3) {
                reason = Some(format!("the loss of {name} exploded: {loss:.3e} instead of about {before:.3e}"));
            }
            usual[place] = if optimizer.steps() == 0 { loss.abs() } else { 0.99 * before + 0.01 * loss.abs() };
        }
        let Some(reason) = reason else {
            self.record.usual = usual;
            return Ok(());
        };
        let step = self.record.step;
        let help = match self.keep_failure(&reason, losses, norms, examples) {
            Ok(account) => format!("{} names the batch, and the state before it is beside it", account.display()),
            Err(error) => format!("the batch and the state before it could not be saved: {error}"),
        };
        Err(Error::failure(format!("update {step}: {reason}")).with_help(format!(
            "{help}; a lower optimizer.learning_rate, a longer schedule.warmup or a smaller optimizer.clip_norm \
             usually help",
        )))
    }

    /// Saves the state before an update that failed, and an account of its batch.
    fn keep_failure(&self, reason: &str, losses: &[Option<f64>], norms: &[f64], examples: &[usize]) -> Result<PathBuf> {
        let step = self.record.step;
        let stem = self.folder.failed(step);
        let examples: Vec<Value> =
            examples.iter().map(|&i| json!({ "index": i, "what": self.objective.describe(i) })).collect();
        let account =
            json!({ "step": step, "reason": reason, "losses": losses, "gradient_norms": norms, "batch": examples });
        let path = stem.with_extension("json");
        write_atomically(&path, |file| writeln!(file, "{account:#}"))?;
        state::save(&stem.with_extension("safetensors"), &self.record, &self.trainees)?;
        Ok(path)
    }

    fn report(&mut self, listener: &mut Listener) {
        let stretch = &self.record.stretch;
        let (step, steps) = (self.record.step, self.recipe.steps);
        let (figures, rate) = (stretch.averages(), stretch.examples_per_second());
        let (learning_rate, gradient_norm) = (stretch.learning_rate, stretch.gradient_norm);
        let left = (steps - step) as f64 * (self.recipe.batch * self.recipe.accumulate) as f64 / rate;
        let logged = self.metrics.add(&json!({
            "step": step, "figures": object(&figures), "learning_rate": learning_rate, "gradient_norm": gradient_norm,
            "examples_per_second": rate, "seconds": self.seconds,
        }));
        listener.tell(Event::Progress { step, steps, figures, learning_rate, gradient_norm, rate, left });
        listener.survive(logged.map(|()| None));
    }

    fn validate(&mut self, listener: &mut Listener) -> Result<()> {
        let step = self.record.step;
        listener.tell(Event::Stage("looking at held-out data".into()));
        let figures = self.with_averages(|objective| objective.validate())?;
        if figures.is_empty() {
            // Once: the first validation is the run's first, or that after it was taken up.
            if let Some(best) = self.recipe.checkpoint.best.take() {
                let best = best.trim_start_matches('-');
                let told = format!("no data are held out, so there is no {best} by which to keep the best state");
                listener.tell(Event::Warning(told));
            }
            return Ok(());
        }
        let logged = self.metrics.add(&json!({ "step": step, "validation": object(&figures) }));
        listener.survive(logged.map(|()| None));
        let best = self.best(&figures)?;
        listener.tell(Event::Validation { step, figures });
        if let Some(best) = best {
            let before = self.record.best.replace(best);
            let path = self.folder.best();
            let saved = state::save(&path, &self.record, &self.trainees);
            if saved.is_err() {
                self.record.best = before;
            }
            listener.survive(saved.map(|()| Some(path)));
        }
        listener.survive(curves::draw(self.metrics.path(), &self.folder.curves()).map(|()| None));
        Ok(())
    }

    /// The figure by which the best state is kept, larger being better, if it is better than before.
    ///
    /// # Errors
    /// There is no such figure.
    fn best(&self, figures: &[(String, f64)]) -> Result<Option<f64>> {
        let Some(wanted) = &self.recipe.checkpoint.best else { return Ok(None) };
        let (name, sign) = wanted.strip_prefix('-').map_or((wanted.as_str(), 1.0), |name| (name, -1.0));
        let Some((_, value)) = figures.iter().find(|(figure, _)| figure == name) else {
            let known: Vec<&str> = figures.iter().map(|(figure, _)| figure.as_str()).collect();
            return Err(Error::failure(format!("checkpoint.best: the validation gives no figure {name}")).with_help(
                format!(
                    "it gives {}; the state is saved, so go on with --resume and --set checkpoint.best=...",
                    known.join(", ")
                ),
            ));
        };
        let value = sign * value;
        Ok((value.is_finite() && self.record.best.is_none_or(|best| value > best)).then_some(value))
    }

    /// Runs `look` with averaged weights in the networks.
    fn with_averages<T>(&mut self, look: impl FnOnce(&mut dyn Objective) -> Result<T>) -> Result<T> {
        state::swap(&mut self.trainees)?;
        let outcome = look(&mut *self.objective);
        state::swap(&mut self.trainees)?;
        outcome
    }

    fn save(&self) -> Result<PathBuf> {
        let path = self.folder.checkpoint(self.record.step);
        state::save(&path, &self.record, &self.trainees)?;
        self.folder.keep(self.recipe.checkpoint.keep);
        Ok(path)
    }

    /// Saves the state, which is whole, before passing on that the objective failed.
    fn saved_at_failure<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() && self.record.step > 0 {
            // The first error is the one to report.
            let _ = self.save();
        }
        outcome
    }
}

/// The sum of both by parameter; on a CPU parameters on several threads, as one addition is too small to be divided.
fn sums(mut before: Gradients, added: Gradients) -> Result<Gradients> {
    if before.is_empty() {
        return Ok(added);
    }
    let pairs: Vec<_> = added.into_iter().map(|(name, gradient)| (before.remove(&name), name, gradient)).collect();
    let sum = |(before, name, gradient): (Option<Tensor>, String, Tensor)| {
        Ok((name, before.map_or(Ok(gradient.clone()), |before| before + gradient)?))
    };
    let sums: Result<Vec<_>> = match pairs.iter().all(|(.., gradient)| gradient.device().is_cpu()) {
        true => pairs.into_par_iter().map(sum).collect(),
        false => pairs.into_iter().map(sum).collect(),
    };
    before.extend(sums?);
    Ok(before)
}

fn with_precision<T>(precision: Precision, work: impl FnOnce() -> T) -> T {
    let products = match precision {
        Precision::F32 => products::Precision::F32,
        Precision::Bf16 => products::Precision::Bf16,
    };
    products::with(products, work)
}

fn object(figures: &[(String, f64)]) -> BTreeMap<&str, f64> {
    figures.iter().map(|(name, value)| (name.as_str(), *value)).collect()
}
