//! The training loop: exact resumption, and what happens when something goes wrong.

mod resume;
mod toy;
mod trouble;

use conjure::train::{Control, Event, Recipe, Resume, Training};
use conjure::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use toy::{Plan, Toy};

const RECIPE: &str = r#"
    objective = "toy"
    seed = 3
    steps = 30
    batch = 4
    accumulate = 2
    [optimizer]
    learning_rate = 0.01
    average = 0.9
    [schedule]
    shape = "cosine"
    warmup = 5
    [checkpoint]
    every = 5
    best = "-error"
    [report]
    every = 3
    validate = 4
    samples = 10
"#;

fn recipe(changes: &[&str]) -> Recipe {
    Recipe::parse(RECIPE, &changes.iter().map(|&change| change.to_owned()).collect::<Vec<_>>()).unwrap()
}

fn start(folder: &Path, recipe: Recipe, plan: &Plan) -> Result<Training> {
    let toy = Toy::new(&recipe, plan);
    Training::with_objective(recipe, Box::new(toy), folder)
}

fn resume(folder: &Path, changes: &[&str], force: bool, plan: &Plan) -> Result<(Training, Vec<String>)> {
    let how = Resume { changes: changes.iter().map(|&change| change.to_owned()).collect(), force };
    Training::resume_with(folder, &how, |recipe| Ok(Box::new(Toy::new(recipe, plan))))
}

fn to_the_end(mut training: Training) -> Result<()> {
    training.run(&mut |_| Control::Continue)
}

/// Starts a run and goes to its end: its folder.
fn finished(changes: &[&str], plan: &Plan) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    to_the_end(start(folder.path(), recipe(changes), plan).unwrap()).unwrap();
    folder
}

/// The process dies before update `step` is saved, or has told about itself.
fn dies_at(mut training: Training, fatal: u64) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        training.run(&mut |event| match event {
            Event::Update { step, .. } if step == fatal => std::panic::resume_unwind(Box::new(())),
            _ => Control::Continue,
        })
    }));
    assert!(outcome.is_err(), "update {fatal} was never made");
}

/// Everything that a run leaves but the time it took: file contents by name, the log without its timings.
fn left_by(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let mut bytes = fs::read(&path).unwrap();
                if path.ends_with("metrics.jsonl") {
                    bytes = without_timings(&bytes);
                }
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            }
        }
    }
    files
}

fn without_timings(log: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in std::str::from_utf8(log).unwrap().lines() {
        let mut line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        line.remove("seconds");
        line.remove("examples_per_second");
        out.extend(serde_json::to_vec(&line).unwrap());
        out.push(b'\n');
    }
    out
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (left_by(a), left_by(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{} differs", name.display());
    }
}

#[track_caller]
fn refusal<T>(outcome: Result<T>) -> Error {
    match outcome {
        Ok(_) => panic!("not refused"),
        Err(error) => error,
    }
}
