//! The log of a run: `metrics.jsonl`, a JSON object on each line.
//!
//! | line | entries |
//! |---|---|
//! | a stretch of updates | `step`, `figures` (averages over the stretch), `learning_rate`, `gradient_norm`, `examples_per_second`, `seconds` (of training since the run began) |
//! | a validation | `step`, `validation` |

use crate::image_file::write_atomically;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The log's file, and the lines that it refused so far.
pub(super) struct Metrics {
    path: PathBuf,
    waiting: String,
}

impl Metrics {
    pub fn new(path: PathBuf) -> Self {
        Self { path, waiting: String::new() }
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The system refuses to write. The line then waits for the next one.
    pub fn add(&mut self, line: &Value) -> Result<()> {
        self.waiting.push_str(&format!("{line}\n"));
        append(&self.path, self.waiting.as_bytes()).map_err(|e| Error::io(&self.path, e))?;
        self.waiting.clear();
        Ok(())
    }

    /// Drops the lines of updates from number `step` on: they will be made again.
    ///
    /// # Errors
    /// The system refuses to write.
    pub fn forget_from(&self, step: u64) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let bytes = fs::read(&self.path).map_err(|e| Error::io(&self.path, e))?;
        let before = |line: &Map<String, Value>| line.get("step").and_then(Value::as_u64).is_some_and(|s| s < step);
        write_atomically(&self.path, |file| {
            let kept = parsed(&bytes).filter(|(_, line)| before(line));
            kept.map(|(text, _)| text).try_for_each(|text| file.write_all(text).and_then(|()| file.write_all(b"\n")))
        })
    }

    /// Seconds of training that the log tells of.
    pub fn seconds(&self) -> f64 {
        let lines = read(&self.path).unwrap_or_default();
        lines.iter().rev().find_map(|line| line.get("seconds").and_then(Value::as_f64)).unwrap_or(0.0)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Appends all of `bytes` or nothing.
fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| {
        // Half a line would spoil the next one. Making a file shorter needs no space.
        let _ = file.set_len(length);
    })
}

/// The log's lines.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(parsed(&bytes).map(|(_, line)| line).collect())
}

/// Each line and what it says. One that was cut short, as a killed process leaves it, is left out.
fn parsed(bytes: &[u8]) -> impl Iterator<Item = (&[u8], Map<String, Value>)> {
    bytes.split(|&byte| byte == b'\n').filter_map(|text| Some((text, serde_json::from_slice(text).ok()?)))
}

/// What came about since the last line of the log. Part of the state, so that a line covers the same updates whether the run
/// was interrupted among them or not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Stretch {
    sums: Vec<(String, f64, u64)>,
    pub learning_rate: f64,
    pub gradient_norm: f64,
    /// What the examples per second are computed from: no part of the state, because no two runs take the same time.
    #[serde(skip)]
    pub examples: usize,
    #[serde(skip)]
    pub seconds: f64,
}

impl Stretch {
    pub fn add(&mut self, name: &str, value: f64) {
        match self.sums.iter_mut().find(|(known, ..)| known == name) {
            Some((_, sum, count)) => {
                *sum += value;
                *count += 1;
            }
            None => self.sums.push((name.to_owned(), value, 1)),
        }
    }

    /// The figures' averages, in the order in which they came first.
    pub fn averages(&self) -> Vec<(String, f64)> {
        self.sums.iter().map(|(name, sum, count)| (name.clone(), sum / *count as f64)).collect()
    }

    pub fn examples_per_second(&self) -> f64 {
        self.examples as f64 / self.seconds.max(1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_from_a_step_on_and_half_lines_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::new(path.clone());
        for step in 1..=4 {
            metrics.add(&json!({ "step": step, "seconds": 0.5 * f64::from(step) })).unwrap();
        }
        append(&path, b"{\"step\": 5, \"val").unwrap();
        assert_eq!(read(&path).unwrap().len(), 4);
        metrics.forget_from(4).unwrap();
        let steps: Vec<u64> = read(&path).unwrap().iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert_eq!(metrics.seconds(), 1.5);
    }

    #[test]
    fn a_line_that_was_refused_is_written_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::new(path.clone());
        fs::create_dir(&path).unwrap();
        assert!(metrics.add(&json!({ "step": 1 })).is_err());
        fs::remove_dir(&path).unwrap();
        metrics.add(&json!({ "step": 2 })).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    fn a_stretch_survives_the_way_out_and_back() {
        let mut stretch = Stretch::default();
        for value in [0.1, 0.2, 0.7] {
            stretch.add("loss", value);
        }
        stretch.add("kl", 1.0 / 3.0);
        let text = toml::to_string(&stretch).unwrap();
        assert_eq!(toml::from_str::<Stretch>(&text).unwrap(), stretch);
        assert_eq!(stretch.averages(), [("loss".to_owned(), (0.1 + 0.2 + 0.7) / 3.0), ("kl".to_owned(), 1.0 / 3.0)]);
    }
}
