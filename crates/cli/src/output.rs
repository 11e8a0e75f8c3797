//! Where pictures go: names that replace nothing by accident, and files that are whole or absent.

use conjure::image_file::write;
use conjure::{Error, Result};
use std::path::{Path, PathBuf};

/// The files that a request's pictures, and its strip, will be written to; known and writable before work begins.
#[derive(Debug)]
pub struct Targets {
    /// One for each picture of the batch.
    pub pictures: Vec<PathBuf>,
    /// The strip's.
    pub strip: PathBuf,
}

impl Targets {
    /// Chooses the files. `output` is what the user named; an existing file of that name is replaced. Without it the
    /// name is `conjure-SEED.png`, with a number after it where that name or one that goes with it is taken.
    ///
    /// # Errors
    /// `output` is a folder or not a PNG; its folder is missing or cannot be written to.
    pub fn choose(output: Option<&Path>, seed: u64, batch: usize) -> Result<Self> {
        let targets = match output {
            Some(path) => {
                if !path.is_dir() && !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
                    return Err(Error::request(format!("{}: pictures are written as PNG only", path.display()))
                        .with_help(format!("name it {}", path.with_extension("png").display())));
                }
                Self::named(path, batch)
            }
            None => (1..)
                .map(|n| {
                    let name = if n == 1 { format!("conjure-{seed}.png") } else { format!("conjure-{seed}-v{n}.png") };
                    Self::named(Path::new(&name), batch)
                })
                .find(|targets| !targets.pictures.iter().chain([&targets.strip]).any(|path| path.exists()))
                .unwrap_or_else(|| unreachable!("an endless sequence of names has a free one")),
        };
        for path in &targets.pictures {
            check_writable(path)?;
        }
        Ok(targets)
    }

    fn named(path: &Path, batch: usize) -> Self {
        let numbered = |suffix: String| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{stem}{suffix}.png"))
        };
        let pictures =
            if batch == 1 { vec![path.to_owned()] } else { (1..=batch).map(|i| numbered(format!("-{i}"))).collect() };
        Self { pictures, strip: numbered("-strip".into()) }
    }
}

/// Refuses a file that cannot be written, before hours of work go into its content.
///
/// # Errors
/// The folder is missing or takes no new files, or the path is a folder.
pub fn check_writable(path: &Path) -> Result<()> {
    write::check_destination(path).map_err(elsewhere)
}

/// Refuses a folder that cannot be made if needed, or in which these files cannot be written, before hours of work go into
/// their content.
///
/// # Errors
/// Where the folder is, or would be, lies a file or nothing may be written; one of the files is a folder.
pub fn check_folder(folder: &Path, files: &[&str]) -> Result<()> {
    write::check_folder(folder, files).map_err(elsewhere)
}

/// The system's refusal as an error of the request.
fn elsewhere(error: Error) -> Error {
    match error {
        Error::Io { path, source } => {
            Error::file(path, format!("cannot be written: {source}")).with_help("choose a place that you may write to")
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_numbered_and_a_named_file_is_kept_as_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.png");
        let one = Targets::choose(Some(&path), 7, 1).unwrap();
        assert_eq!(one.pictures, std::slice::from_ref(&path));
        assert_eq!(one.strip, folder.path().join("cat-strip.png"));
        let two = Targets::choose(Some(&path), 7, 2).unwrap();
        assert_eq!(two.pictures, [folder.path().join("cat-1.png"), folder.path().join("cat-2.png")]);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "asking leaves nothing behind");
    }

    #[test]
    fn folders_other_formats_and_missing_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| Targets::choose(Some(path), 7, 1).unwrap_err().to_string();
        assert!(refusal(folder.path()).contains("is a folder"));
        assert!(refusal(&folder.path().join("cat.jpg")).ends_with("pictures are written as PNG only"));
        assert!(refusal(&folder.path().join("no/cat.png")).contains("does not exist"));
    }
}
