//! `conjure train ...`.
//!
//! With `--json` every event of the run is a line of JSON on stdout, its kind under `event`:
//!
//! | event | entries |
//! |---|---|
//! | `begin` | `folder`, `step`, `steps`, `parameters` by network |
//! | `progress` | `step`, `steps`, `figures`, `learning_rate`, `gradient_norm`, `examples_per_second`, `seconds_left` |
//! | `validation` | `step`, `figures` |
//! | `wrote` | `path` |
//! | `warning` | `message` |
//! | `end` | `folder`, `export`, `step` |

use crate::args::TrainArgs;
use crate::progress::Progress;
use crate::{interrupt, report};
use conjure::train::{Control, Event, Recipe, Resume, Training};
use conjure::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub fn run(args: &TrainArgs) -> Result<ExitCode> {
    if let Some(threads) = args.machine.threads {
        conjure::set_threads(threads)?;
    }
    let mut changes = args.set.clone();
    changes.extend(args.device.map(|device| format!("device={device}")));
    let (mut training, folder) = match (&args.recipe, &args.resume) {
        (Some(recipe), None) => {
            let folder = args.out.clone().unwrap_or_else(|| default_folder(recipe));
            (Training::start(Recipe::read(recipe, &changes)?, &folder)?, folder)
        }
        (None, Some(folder)) => {
            let how = Resume { changes, force: args.force };
            let (training, notes) = Training::resume(folder, &how)?;
            for note in notes {
                report::note(&format!("note: {note}"));
            }
            (training, folder.clone())
        }
        _ => {
            return Err(Error::request("nothing to train")
                .with_help("conjure train RECIPE begins a run, conjure train --resume FOLDER goes on with one"));
        }
    };
    let (step, steps) = (training.step(), training.recipe().steps);
    let parameters = training.parameters();
    let list: Vec<String> = parameters.iter().map(|(name, count)| format!("{name} {count} parameters")).collect();
    report::note(&format!("{}: {}, update {step} of {steps}", folder.display(), list.join(", ")));
    let mut teller = Teller { json: args.machine.json, progress: Progress::updates(), closed: None };
    let parameters: Map<String, Value> =
        parameters.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
    teller.line(json!({ "event": "begin", "folder": folder, "step": step, "steps": steps, "parameters": parameters }));
    let outcome = training.run(&mut |event| {
        teller.tell(&event);
        if interrupt::requested() || teller.closed.is_some() { Control::Stop } else { Control::Continue }
    });
    teller.progress.finish();
    if matches!(outcome, Err(Error::Cancelled)) {
        report::note(&format!("the state is saved; go on with conjure train --resume {}", folder.display()));
    }
    match teller.closed {
        Some(error) if matches!(outcome, Err(Error::Cancelled)) => return Err(error),
        _ => outcome?,
    }
    let export = folder.join("export");
    report::result(&if args.machine.json {
        json!({ "event": "end", "folder": folder, "export": export, "step": training.step() }).to_string()
    } else {
        export.display().to_string()
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `out/NAME` for the recipe `NAME.toml`.
fn default_folder(recipe: &Path) -> PathBuf {
    Path::new("out").join(recipe.file_stem().unwrap_or_default())
}

/// Passes on what happens: to people on stderr, to machines on stdout.
struct Teller {
    json: bool,
    progress: Progress,
    /// Why machines can no longer be told.
    closed: Option<Error>,
}

impl Teller {
    fn tell(&mut self, event: &Event) {
        match event {
            Event::Update { step, steps } => self.progress.at(*step, *steps),
            Event::Stage(what) => self.progress.doing(&format!("{what} ...")),
            Event::Progress { step, steps, figures, learning_rate, gradient_norm, rate, left } => {
                let left_text = if left.is_finite() { duration(*left) } else { "unknown".to_owned() };
                self.progress.update(&format!(
                    "{}  rate {learning_rate:.2e}  gradient {gradient_norm:.2}  {rate:.1}/s  {left_text} left",
                    list(figures)
                ));
                self.line(json!({
                    "event": "progress", "step": step, "steps": steps, "figures": object(figures),
                    "learning_rate": learning_rate, "gradient_norm": gradient_norm, "examples_per_second": rate,
                    "seconds_left": left,
                }));
            }
            Event::Validation { step, figures } => {
                self.note(&format!("validation after update {step}: {}", list(figures)));
                self.line(json!({ "event": "validation", "step": step, "figures": object(figures) }));
            }
            Event::Wrote(path) => {
                self.note(&format!("wrote {}", path.display()));
                self.line(json!({ "event": "wrote", "path": path }));
            }
            Event::Warning(message) => {
                self.note(&format!("warning: {message}"));
                self.line(json!({ "event": "warning", "message": message }));
            }
        }
    }

    fn note(&self, line: &str) {
        self.progress.suspend(|| report::note(line));
    }

    fn line(&mut self, line: Value) {
        if self.json && self.closed.is_none() {
            self.closed = report::result(&line.to_string()).err();
        }
    }
}

fn list(figures: &[(String, f64)]) -> String {
    figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
}

fn object(figures: &[(String, f64)]) -> Map<String, Value> {
    figures.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {:02} h", whole / 86_400, whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_their_two_largest_units() {
        let texts = [0.4, 59.0, 61.0, 3725.0, 100_000.0].map(duration);
        assert_eq!(texts, ["0 s", "59 s", "1 min 01 s", "1 h 02 min", "1 d 03 h"]);
    }

    #[test]
    fn the_default_folder_is_named_after_the_recipe() {
        assert_eq!(default_folder(Path::new("recipes/unet.toml")), Path::new("out/unet"));
    }
}
