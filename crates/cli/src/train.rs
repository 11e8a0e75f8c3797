//! `conjure train ...`.

use crate::args::TrainArgs;
use crate::{interrupt, report};
use conjure::train::{Control, Event, Recipe, Resume, Training};
use conjure::{Error, Result};
use indicatif::HumanDuration;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

pub fn run(args: &TrainArgs) -> Result<ExitCode> {
    if let Some(threads) = args.machine.threads {
        conjure::set_threads(threads)?;
    }
    let (mut training, folder) = match (&args.recipe, &args.resume) {
        (Some(recipe), None) => {
            let folder = args.out.clone().unwrap_or_else(|| default_folder(recipe));
            (Training::start(Recipe::read(recipe, &args.set)?, &folder)?, folder)
        }
        (None, Some(folder)) => {
            let how = Resume { changes: args.set.clone(), force: args.force };
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
    let parameters: Vec<String> =
        training.parameters().iter().map(|(name, count)| format!("{name} {count} parameters")).collect();
    let (step, steps) = (training.step(), training.recipe().steps);
    report::note(&format!("{}: {}, update {step} of {steps}", folder.display(), parameters.join(", ")));
    let outcome = training.run(&mut |event| {
        tell(&event);
        if interrupt::requested() { Control::Stop } else { Control::Continue }
    });
    if matches!(outcome, Err(Error::Cancelled)) {
        report::note(&format!("the state is saved; go on with conjure train --resume {}", folder.display()));
    }
    outcome?;
    let export = folder.join("export");
    let line = if args.machine.json {
        json!({ "folder": folder, "export": export, "step": training.step() }).to_string()
    } else {
        export.display().to_string()
    };
    report::result(&line)?;
    Ok(ExitCode::SUCCESS)
}

/// `out/NAME` for the recipe `NAME.toml`.
fn default_folder(recipe: &Path) -> PathBuf {
    Path::new("out").join(recipe.file_stem().unwrap_or_default())
}

fn tell(event: &Event) {
    let list = |figures: &[(String, f64)]| {
        figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
    };
    let line = match event {
        Event::Stage(what) => format!("{what} ..."),
        Event::Progress { step, steps, figures, learning_rate, gradient_norm, rate, left } => format!(
            "update {step}/{steps}  {}  rate {learning_rate:.2e}  gradient {gradient_norm:.2}  {rate:.1}/s  {} left",
            list(figures),
            HumanDuration(Duration::from_secs_f64(left.clamp(0.0, 1e9))),
        ),
        Event::Validation { step, figures } => format!("validation after {step}: {}", list(figures)),
        Event::Wrote(path) => format!("wrote {}", path.display()),
        Event::Warning(what) => format!("warning: {what}"),
    };
    report::note(&line);
}
