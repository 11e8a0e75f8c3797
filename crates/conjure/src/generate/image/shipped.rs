//! Models that come with Conjure, and the settings that a model's makers recommend.

use crate::model_folder::read_text;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The model that is used when none is named.
pub const DEFAULT_MODEL: &str = "emoji";
/// What a recipe calls the place of a model that came with Conjure: this and its name.
pub const SHIPPED: &str = "shipped:";
/// The environment variable that says where these models are.
const VARIABLE: &str = "CONJURE_MODELS";
/// How far above the program its models are looked for: a program in `target/release` finds those of its source tree.
const LEVELS: usize = 4;

/// The file by which a model's folder is known: of one in several parts, or in one.
const MODEL_FILES: [&str; 2] = ["model_index.json", "config.json"];

/// The folder of a model that came with Conjure: in the folder that the environment variable `CONJURE_MODELS` names, in
/// `models` beside the program or up to three folders above it, or in `models` of the current folder.
pub(super) fn shipped(name: &str) -> Option<PathBuf> {
    with_one_of(name, &MODEL_FILES)
}

fn with_one_of(name: &str, files: &[&str]) -> Option<PathBuf> {
    let named = variable();
    let program = std::env::current_exe().ok().and_then(|path| path.canonicalize().ok());
    let beside =
        program.iter().flat_map(|path| path.ancestors().skip(1).take(LEVELS)).map(|folder| folder.join("models"));
    named
        .into_iter()
        .chain(beside)
        .chain([PathBuf::from("models")])
        .map(|folder| folder.join(name))
        .find(|folder| files.iter().any(|file| folder.join(file).is_file()))
}

/// The folder of a model that came with Conjure: in the folder that the environment variable `CONJURE_MODELS` names, or, where
/// it is not set, in `models` beside the program or up to three folders above it, or in `models` of the current folder.
///
/// # Errors
/// The variable names no folder, or one without this model: whoever sets it means that model and no other.
pub fn find(name: &str) -> Result<Option<PathBuf>> {
    find_with(name, &MODEL_FILES)
}

/// As [`find`], a folder that holds one of these files: of a model that is in parts, one part.
///
/// # Errors
/// Those of [`find`].
pub fn find_with(name: &str, files: &[&str]) -> Result<Option<PathBuf>> {
    if let Some(folder) = named_folder()? {
        let inner = folder.join(name);
        if !files.iter().any(|file| inner.join(file).is_file()) {
            let message = format!("{VARIABLE} is {}, and no model {name} is in it", folder.display());
            return Err(Error::request(message).with_help(format!(
                "set it to the folder that holds {name}/{}, unset it, or name a model with --model",
                files.first().unwrap_or(&"")
            )));
        }
    }
    Ok(with_one_of(name, files))
}

/// What `CONJURE_MODELS` is set to; set to nothing it counts as not set.
fn variable() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The folder that `CONJURE_MODELS` names.
///
/// # Errors
/// It names none that is there.
pub(super) fn named_folder() -> Result<Option<PathBuf>> {
    match variable() {
        Some(folder) if !folder.is_dir() => {
            Err(Error::request(format!("{VARIABLE} is {}, and there is no such folder", folder.display()))
                .with_help("set it to the folder that holds the models which come with conjure, or unset it"))
        }
        named => Ok(named),
    }
}

/// What a model's folder recommends in `generation_config.json`; entries that it leaves out are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recommended {
    /// Denoising steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<usize>,
    /// Scale of classifier-free guidance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// How many times higher and wider finished pictures are made: 2 or 4, or 1 for not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upscale: Option<usize>,
    /// Candidates of which the model's own judge keeps the best, where no seed names one picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_of: Option<usize>,
}

impl Recommended {
    /// What the folder recommends: nothing where there is no such file.
    ///
    /// # Errors
    /// The file cannot be read, or is not JSON of the right types.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("generation_config.json");
        let Some(text) = read_text(&path)? else { return Ok(Self::default()) };
        serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recommendations_are_read_and_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Recommended::read(folder.path()).unwrap(), Recommended::default());
        let path = folder.path().join("generation_config.json");
        std::fs::write(
            &path,
            r#"{ "num_inference_steps": 20, "guidance_scale": 3.5, "upscale": 2, "best_of": 4, "other": 1 }"#,
        )
        .unwrap();
        let read = Recommended::read(folder.path()).unwrap();
        let expected = Recommended {
            num_inference_steps: Some(20),
            guidance_scale: Some(3.5),
            upscale: Some(2),
            best_of: Some(4),
        };
        assert_eq!(read, expected);
        std::fs::write(&path, r#"{ "num_inference_steps": "many" }"#).unwrap();
        let error = Recommended::read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("generation_config.json: cannot be read"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_name_that_nothing_has_is_not_found() {
        assert_eq!(shipped("no-model-of-this-name"), None);
    }
}
