//! A run's folder: what lies where in it, and that one process at a time works in it.

use super::state::Saved;
use crate::{Error, Result};
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Held by the process that works in the folder, and freed by the system however that process ends.
const LOCK: &str = ".lock";

/// The folder of a run, held for this process.
pub(super) struct RunFolder {
    root: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Refuses a folder that holds something.
    pub fn check_free(root: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(root) else {
            return if root.exists() { Err(Error::file(root, "is not a folder")) } else { Ok(()) };
        };
        // A process that was killed before it wrote the recipe leaves no run.
        if entries.flatten().all(|entry| entry.file_name() == LOCK || is_unfinished(&entry.path())) {
            return Ok(());
        }
        Err(Error::file(root, "is not empty").with_help(format!(
            "go on with the run in it with conjure train --resume {0}, or choose another folder with --out",
            root.display()
        )))
    }

    /// Makes the folder of a new run.
    pub fn begin(root: &Path) -> Result<Self> {
        Self::check_free(root)?;
        fs::create_dir_all(root).map_err(|e| Error::io(root, e))?;
        Self::lock(root)
    }

    /// The folder of a run that was begun before.
    pub fn take_up(root: &Path) -> Result<Self> {
        let holds_a_run = root.join("recipe.toml").is_file() || !checkpoints(root).is_empty();
        if !holds_a_run {
            return Err(Error::file(root, "holds no training run")
                .with_help("begin one with conjure train RECIPE --out FOLDER"));
        }
        Self::lock(root)
    }

    fn lock(root: &Path) -> Result<Self> {
        let path = root.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::file(root, "another process is training in this folder")
                .with_help("wait until it ends or stop it; a run goes on from its latest checkpoint")),
            // A file system without locks is no reason not to train.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { root: root.to_owned(), _lock: lock }),
        }
    }

    /// Makes the folders in it.
    pub fn prepare(&self) -> Result<()> {
        for part in ["checkpoints", "samples"] {
            let path = self.root.join(part);
            fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    }

    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }

    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    pub fn curves(&self) -> PathBuf {
        self.root.join("loss.svg")
    }

    /// Where what was made after `step` updates is kept: a sheet of pictures (`png`) or texts (`txt`).
    pub fn samples(&self, step: u64, extension: &str) -> PathBuf {
        self.root.join(format!("samples/step-{step:08}.{extension}"))
    }

    pub fn export(&self) -> PathBuf {
        self.root.join("export")
    }

    pub fn best(&self) -> PathBuf {
        self.root.join("checkpoints/best.safetensors")
    }

    /// Name of the checkpoint after `step` updates.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.root.join(format!("checkpoints/step-{step:08}.safetensors"))
    }

    /// Name, but for its extension, of what is kept of update `step` that failed.
    pub fn failed(&self, step: u64) -> PathBuf {
        self.root.join(format!("checkpoints/failed-{step:08}"))
    }

    /// Removes all checkpoints but the latest `keep`. One that cannot be removed does no harm.
    pub fn keep(&self, keep: usize) {
        let all = checkpoints(&self.root);
        for (_, old) in &all[..all.len().saturating_sub(keep)] {
            let _ = fs::remove_file(old);
        }
    }

    /// The latest checkpoint that can be read, if there is any, and the damaged ones after it.
    ///
    /// # Errors
    /// There are checkpoints, and none can be read.
    pub fn latest(&self) -> Result<(Option<Saved>, Vec<Damaged>)> {
        let mut damaged = Vec::new();
        for (_, path) in checkpoints(&self.root).into_iter().rev() {
            match Saved::open(&path) {
                Ok(saved) => return Ok((Some(saved), damaged)),
                Err(error) => damaged.push(Damaged { path, error }),
            }
        }
        if damaged.is_empty() {
            return Ok((None, damaged));
        }
        let reasons: Vec<String> = damaged.iter().map(|damaged| damaged.error.to_string()).collect();
        Err(Error::file(&self.root, format!("no checkpoint can be read: {}", reasons.join("; ")))
            .with_help("put back a copy of a checkpoint, or begin the run anew in another folder"))
    }

    /// Removes what killed processes left unfinished.
    pub fn sweep(&self) {
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if is_unfinished(&path) {
                    let _ = fs::remove_file(path);
                }
            }
        }
    }
}

/// Whether this is the temporary name of a file that was being written.
fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or("");
    name.ends_with(".tmp") && (name.starts_with(".conjure-") || name.contains(".safetensors.")) && path.is_file()
}

/// A checkpoint that cannot be read.
pub(super) struct Damaged {
    path: PathBuf,
    pub error: Error,
}

impl Damaged {
    /// Renames it, so that it is neither tried again nor counted among those that are kept.
    pub fn set_aside(&self) {
        if let Some(name) = self.path.file_name() {
            let mut aside = std::ffi::OsString::from("damaged-");
            aside.push(name);
            let _ = fs::rename(&self.path, self.path.with_file_name(aside));
        }
    }
}

/// The run's checkpoints, the latest last.
fn checkpoints(root: &Path) -> Vec<(u64, PathBuf)> {
    let step =
        |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok();
    let mut found: Vec<(u64, PathBuf)> = fs::read_dir(root.join("checkpoints"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((step(&path)?, path))
        })
        .collect();
    found.sort();
    found
}
