//! The loop: one for everything that is trained.

use super::objective::{Batch, Objective};
use super::order::Order;
use super::recipe::{Precision, Recipe};
use super::state::{self, Record, Saved, Trainee};
use crate::image_file::{write_atomically, write_png};
use crate::{Error, Result};
use conjure_core::optim::sum_of_squares;
use conjure_core::{Tensor, precision as products};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A loss this many times the usual one counts as exploded.
const EXPLODED: f64 = 1000.0;
/// Updates before explosions are looked for.
const SETTLED: u64 = 100;

/// What happens during a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// Something is being done beside the updates, for people.
    Stage(String),
    /// A stretch of updates is done.
    Progress {
        /// Updates made.
        step: u64,
        /// Updates of the whole run.
        steps: u64,
        /// Averages over the stretch: losses by network, and the objective's own figures.
        figures: Vec<(String, f64)>,
        /// Learning rate of the last update.
        learning_rate: f64,
        /// Norm of the gradient, of the last update, before clipping.
        gradient_norm: f64,
        /// Examples per second over the stretch.
        rate: f64,
        /// Seconds that the rest will take at that rate.
        left: f64,
    },
    /// Figures on held-out data.
    Validation {
        /// Updates made.
        step: u64,
        /// The figures.
        figures: Vec<(String, f64)>,
    },
    /// A file was written.
    Wrote(PathBuf),
    /// Something failed that the run survives.
    Warning(String),
}

/// Whether to go on after an [`Event`].
pub use crate::generate::image::Control;

/// How a run is resumed.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// Changes `key=value` to its recipe.
    pub changes: Vec<String>,
    /// Go on although the recipe or the data differ.
    pub force: bool,
}

/// A training run in its folder:
///
/// | file | what it holds |
/// |---|---|
/// | `recipe.toml` | the recipe with every default |
/// | `metrics.jsonl` | a line for each stretch of updates and each validation |
/// | `loss.svg` | the curves |
/// | `samples/` | sheets of samples |
/// | `checkpoints/` | the last states, `best.safetensors`, and the state at a failure |
/// | `export/` | the trained model in the ecosystem's layout |
pub struct Training {
    recipe: Recipe,
    folder: PathBuf,
    objective: Box<dyn Objective>,
    trainees: Vec<Trainee>,
    order: Order,
    record: Record,
}

impl Training {
    /// Begins a run in `folder`, which must be new or empty.
    ///
    /// # Errors
    /// A recipe or data that cannot be trained on; the folder holds something.
    pub fn start(recipe: Recipe, folder: &Path) -> Result<Self> {
        if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::file(folder, "is not empty").with_help(format!(
                "go on with the run in it with conjure train --resume {0}, or choose another folder with --out",
                folder.display()
            )));
        }
        let training = Self::new(recipe, folder)?;
        for part in ["checkpoints", "samples"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
        training.write_recipe()?;
        Ok(training)
    }

    /// Takes up the run in `folder` at its latest checkpoint. Also says what is worth saying about that.
    ///
    /// # Errors
    /// No run there, the recipe or data differ and `force` is not set, no checkpoint can be read.
    pub fn resume(folder: &Path, how: &Resume) -> Result<(Self, Vec<String>)> {
        let mut notes = Vec::new();
        let checkpoints = state::checkpoints(folder);
        let stored = folder.join("recipe.toml");
        if checkpoints.is_empty() {
            if !stored.is_file() {
                return Err(Error::file(folder, "holds no training run")
                    .with_help("begin one with conjure train RECIPE --out FOLDER"));
            }
            notes.push("no checkpoint yet: the run begins anew".to_owned());
            return Ok((Self::new(Recipe::read(&stored, &how.changes)?, folder)?, notes));
        }
        let mut saved = None;
        for (_, path) in checkpoints.iter().rev() {
            match Saved::open(path) {
                Ok(found) => {
                    saved = Some(found);
                    break;
                }
                Err(error) => notes.push(format!("passed over a damaged checkpoint: {error}")),
            }
        }
        let saved = saved.ok_or_else(|| {
            Error::file(folder, format!("no checkpoint can be read: {}", notes.join("; ")))
                .with_help("begin the run anew in another folder")
        })?;
        let before = saved.recipe()?;
        let recipe =
            if how.changes.is_empty() { before.clone() } else { Recipe::parse(&saved.record.recipe, &how.changes)? };
        let differences = before.differences(&recipe);
        if !differences.is_empty() && !how.force {
            return Err(Error::request(format!("the recipe differs from the run's: {}", differences.join(", ")))
                .with_help("the result would be that of neither recipe; add --force if that is meant"));
        }
        let mut training = Self::new(recipe, folder)?;
        if training.record.data != saved.record.data {
            if !how.force {
                return Err(Error::request(format!(
                    "the data differ from the run's: digest {} instead of {}",
                    training.record.data, saved.record.data
                ))
                .with_help("give the data that the run began with, or add --force"));
            }
            notes.push("the data differ from those the run began with".to_owned());
        }
        saved.restore(&mut training.trainees)?;
        let (data, recipe) = (training.record.data.clone(), training.record.recipe.clone());
        training.record = Record { data, recipe, ..saved.record };
        if !differences.is_empty() {
            training.record.changes.push((training.record.step, differences));
        }
        training.write_recipe()?;
        training.forget_after()?;
        Ok((training, notes))
    }

    fn new(recipe: Recipe, folder: &Path) -> Result<Self> {
        let objective = super::build(&recipe)?;
        if objective.examples() == 0 {
            return Err(Error::request("there is nothing to train on: the data hold no training example")
                .with_help("look at what data.file, data.styles and data.exclude_groups leave"));
        }
        let trainees = objective
            .networks()
            .iter()
            .map(|network| Trainee::new(network.clone(), &recipe.optimizer))
            .collect::<Result<Vec<_>>>()?;
        let record = Record {
            step: 0,
            recipe: recipe.to_toml(),
            data: objective.data_digest(),
            updates: BTreeMap::new(),
            usual: vec![0.0; trainees.len()],
            best: None,
            seconds: 0.0,
            changes: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let order = Order::new(recipe.seed, objective.examples());
        Ok(Self { recipe, folder: folder.to_owned(), objective, trainees, order, record })
    }

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
    /// step, batch and state saved.
    pub fn run(&mut self, on_event: &mut dyn FnMut(Event) -> Control) -> Result<()> {
        let mut stretch = Stretch::new();
        let report = self.recipe.report.clone();
        while self.record.step < self.recipe.steps {
            let began = Instant::now();
            self.update(&mut stretch)?;
            self.record.seconds += began.elapsed().as_secs_f64();
            let (step, last) = (self.record.step, self.record.step == self.recipe.steps);
            let due = |every: u64| every > 0 && (step.is_multiple_of(every) || last);
            let mut control = Control::Continue;
            if due(report.every) {
                control = self.report(&mut stretch, on_event)?;
            }
            if due(report.validate) {
                tell(&mut control, on_event, Event::Stage("looking at held-out data".into()));
                let figures = self.with_averages(|objective| objective.validate())?;
                self.log(json!({ "step": step, "validation": figures.iter().cloned().collect::<BTreeMap<_, _>>() }))?;
                let best = self.keep_best(&figures);
                tell(&mut control, on_event, Event::Validation { step, figures });
                self.survive(best, &mut control, on_event);
            }
            if due(report.samples) {
                tell(&mut control, on_event, Event::Stage("making samples".into()));
                if let Some(sheet) = self.with_averages(|objective| objective.samples())? {
                    let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
                    let written = write_png(&path, &sheet, None).map(|()| Some(path));
                    self.survive(written, &mut control, on_event);
                }
            }
            if due(self.recipe.checkpoint.every) || control == Control::Stop {
                let saved = self.save();
                if last {
                    saved?;
                } else if control == Control::Stop {
                    on_event(Event::Wrote(saved?));
                } else {
                    self.survive(saved.map(Some), &mut control, on_event);
                }
            }
            if control == Control::Stop {
                return Err(Error::Cancelled);
            }
        }
        self.export(on_event)
    }

    /// Writes the trained model, with averaged weights, to `export/` in the run's folder.
    ///
    /// # Errors
    /// The system refuses to write.
    pub fn export(&mut self, on_event: &mut dyn FnMut(Event) -> Control) -> Result<()> {
        let folder = self.folder.join("export");
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        self.with_averages(|objective| objective.export(&folder))?;
        on_event(Event::Wrote(folder));
        Ok(())
    }

    /// One update of every network.
    fn update(&mut self, stretch: &mut Stretch) -> Result<()> {
        let Recipe { batch, accumulate, seed, .. } = self.recipe;
        let step = self.record.step;
        let mut gradients: Vec<BTreeMap<String, Tensor>> = vec![BTreeMap::new(); self.trainees.len()];
        let mut losses = vec![0.0; self.trainees.len()];
        let mut seen = Vec::with_capacity(batch * accumulate);
        for micro in 0..accumulate {
            let position = (step * accumulate as u64 + micro as u64) * batch as u64;
            let indices = self.order.take(position, batch);
            let batch = Batch { indices: &indices, step, micro, seed };
            let outcome = with_precision(self.recipe.precision, || -> Result<super::Losses> {
                let outcome = self.objective.losses(&batch)?;
                for (place, loss) in &outcome.terms {
                    losses[*place] +=
                        f64::from(loss.to_dtype(conjure_core::DType::F32)?.to_scalar::<f32>()?) / accumulate as f64;
                    let mut store = loss.backward()?;
                    for (name, variable) in &self.trainees[*place].network.variables {
                        let Some(gradient) = store.remove(variable.as_tensor()) else { continue };
                        let sum = match gradients[*place].remove(name) {
                            Some(before) => (before + gradient)?,
                            None => gradient,
                        };
                        gradients[*place].insert(name.clone(), sum);
                    }
                }
                Ok(outcome)
            })?;
            stretch.add(&outcome.figures);
            seen.extend(indices);
        }
        let mut norms = Vec::new();
        for gradients in &gradients {
            let squares = gradients.values().map(sum_of_squares).sum::<Result<f64>>()?;
            norms.push(squares.sqrt() / accumulate as f64);
        }
        self.look_for_failure(&losses, &norms, &seen)?;

        let factor = self.recipe.schedule.factor(step, self.recipe.steps);
        let clip = self.recipe.optimizer.clip_norm;
        for (place, trainee) in self.trainees.iter_mut().enumerate() {
            if gradients[place].is_empty() {
                continue;
            }
            let shrink = if clip > 0.0 && norms[place] > clip { clip / norms[place] } else { 1.0 };
            let rate = self.recipe.optimizer.learning_rate * factor * trainee.network.rate;
            trainee.optimizer.step(&gradients[place], rate, shrink / accumulate as f64)?;
            if let Some(average) = &mut trainee.average {
                average.update(trainee.optimizer.steps())?;
            }
            self.record.updates.insert(trainee.network.name.to_owned(), trainee.optimizer.steps());
            stretch.add(&[(trainee.network.name, losses[place])]);
        }
        self.record.step += 1;
        stretch.examples += seen.len();
        stretch.updates += 1;
        stretch.learning_rate = self.recipe.optimizer.learning_rate * factor;
        stretch.gradient_norm = norms.first().copied().unwrap_or(0.0);
        Ok(())
    }

    /// # Errors
    /// A loss or gradient is not a number, or a loss exploded. Then the state before the update and the batch are saved.
    fn look_for_failure(&mut self, losses: &[f64], norms: &[f64], seen: &[usize]) -> Result<()> {
        let step = self.record.step;
        let mut reason = None;
        for (place, (&loss, &norm)) in losses.iter().zip(norms).enumerate() {
            let name = self.trainees[place].network.name;
            let usual = self.record.usual[place];
            if !loss.is_finite() || !norm.is_finite() {
                reason = Some(format!("the loss of {name} is {loss}, the norm of its gradient {norm}"));
            } else if step >= SETTLED && loss.abs() > EXPLODED * (usual + 1e-3) {
                reason = Some(format!("the loss of {name} exploded: {loss:.3e} instead of about {usual:.3e}"));
            }
            self.record.usual[place] = if step == 0 { loss.abs() } else { 0.99 * usual + 0.01 * loss.abs() };
        }
        let Some(reason) = reason else { return Ok(()) };
        let stem = self.folder.join(format!("checkpoints/failed-{step:08}"));
        let examples: Vec<Value> =
            seen.iter().map(|&i| json!({ "index": i, "what": self.objective.describe(i) })).collect();
        let account =
            json!({ "step": step, "reason": reason, "losses": losses, "gradient_norms": norms, "batch": examples });
        write_atomically(&stem.with_extension("json"), |file| writeln!(file, "{account:#}"))?;
        state::save(&stem.with_extension("safetensors"), &self.record, &self.trainees)?;
        Err(Error::failure(format!("update {step}: {reason}")).with_help(format!(
            "{} names the batch, and the state before it is beside it; a lower optimizer.learning_rate, a longer \
             schedule.warmup or a smaller optimizer.clip_norm usually help",
            stem.with_extension("json").display()
        )))
    }

    fn report(&mut self, stretch: &mut Stretch, on_event: &mut dyn FnMut(Event) -> Control) -> Result<Control> {
        let done = std::mem::replace(stretch, Stretch::new());
        let rate = done.examples as f64 / done.began.elapsed().as_secs_f64().max(1e-9);
        let figures = done.averages();
        let (step, steps) = (self.record.step, self.recipe.steps);
        let left = (steps - step) as f64 * (self.recipe.batch * self.recipe.accumulate) as f64 / rate;
        self.log(json!({
            "step": step, "figures": figures.iter().cloned().collect::<BTreeMap<_, _>>(),
            "learning_rate": done.learning_rate, "gradient_norm": done.gradient_norm, "examples_per_second": rate,
            "seconds": self.record.seconds,
        }))?;
        Ok(on_event(Event::Progress {
            step,
            steps,
            figures,
            learning_rate: done.learning_rate,
            gradient_norm: done.gradient_norm,
            rate,
            left,
        }))
    }

    /// Runs `look` with averaged weights in the networks.
    fn with_averages<T>(&mut self, look: impl FnOnce(&mut dyn Objective) -> Result<T>) -> Result<T> {
        state::swap(&mut self.trainees)?;
        let outcome = look(&mut *self.objective);
        state::swap(&mut self.trainees)?;
        outcome
    }

    /// Passes on a file that was written, or a warning that it was not: the run goes on.
    fn survive(
        &self,
        written: Result<Option<PathBuf>>,
        control: &mut Control,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) {
        match written {
            Ok(None) => {}
            Ok(Some(path)) => tell(control, on_event, Event::Wrote(path)),
            Err(error) => tell(control, on_event, Event::Warning(format!("{error}; the run goes on"))),
        }
    }

    fn save(&self) -> Result<PathBuf> {
        let path = state::checkpoint(&self.folder, self.record.step);
        state::save(&path, &self.record, &self.trainees)?;
        let all = state::checkpoints(&self.folder);
        for (_, old) in &all[..all.len().saturating_sub(self.recipe.checkpoint.keep)] {
            // One that cannot be removed does no harm.
            let _ = fs::remove_file(old);
        }
        Ok(path)
    }

    fn keep_best(&mut self, figures: &[(String, f64)]) -> Result<Option<PathBuf>> {
        let Some(wanted) = self.recipe.checkpoint.best.clone() else { return Ok(None) };
        let (name, sign) = wanted.strip_prefix('-').map_or((wanted.as_str(), 1.0), |name| (name, -1.0));
        let Some((_, value)) = figures.iter().find(|(figure, _)| figure == name) else {
            let known: Vec<&str> = figures.iter().map(|(figure, _)| figure.as_str()).collect();
            return Err(Error::request(format!("checkpoint.best: no figure {name}; there are {}", known.join(", "))));
        };
        let value = sign * value;
        if self.record.best.is_some_and(|best| best >= value) {
            return Ok(None);
        }
        let path = self.folder.join("checkpoints/best.safetensors");
        self.record.best = Some(value);
        state::save(&path, &self.record, &self.trainees)?;
        Ok(Some(path))
    }

    fn write_recipe(&self) -> Result<()> {
        write_atomically(&self.folder.join("recipe.toml"), |file| file.write_all(self.record.recipe.as_bytes()))
    }

    fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }

    fn log(&self, line: Value) -> Result<()> {
        let path = self.metrics();
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|e| Error::io(&path, e))
    }

    /// Drops log lines of updates after the checkpoint: they will be made again.
    fn forget_after(&self) -> Result<()> {
        let path = self.metrics();
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        let kept = |line: &&str| {
            serde_json::from_str::<Map<String, Value>>(line)
                .is_ok_and(|line| line.get("step").and_then(Value::as_u64).is_some_and(|step| step <= self.record.step))
        };
        write_atomically(&path, |file| text.lines().filter(kept).try_for_each(|line| writeln!(file, "{line}")))
    }
}

fn with_precision<T>(precision: Precision, work: impl FnOnce() -> T) -> T {
    let products = match precision {
        Precision::F32 => products::Precision::F32,
        Precision::Bf16 => products::Precision::Bf16,
    };
    products::with(products, work)
}

fn tell(control: &mut Control, on_event: &mut dyn FnMut(Event) -> Control, event: Event) {
    if on_event(event) == Control::Stop {
        *control = Control::Stop;
    }
}

/// What came about since the last report.
struct Stretch {
    sums: Vec<(String, f64, usize)>,
    examples: usize,
    updates: usize,
    learning_rate: f64,
    gradient_norm: f64,
    began: Instant,
}

impl Stretch {
    fn new() -> Self {
        Self {
            sums: Vec::new(),
            examples: 0,
            updates: 0,
            learning_rate: 0.0,
            gradient_norm: 0.0,
            began: Instant::now(),
        }
    }

    fn add(&mut self, figures: &[(&str, f64)]) {
        for (name, value) in figures {
            match self.sums.iter_mut().find(|(known, _, _)| known == name) {
                Some((_, sum, count)) => {
                    *sum += value;
                    *count += 1;
                }
                None => self.sums.push(((*name).to_owned(), *value, 1)),
            }
        }
    }

    fn averages(&self) -> Vec<(String, f64)> {
        self.sums.iter().map(|(name, sum, count)| (name.clone(), sum / *count as f64)).collect()
    }
}
