//! Writing trained components in the layout of diffusers and transformers.

use crate::image_file::write_atomically;
use crate::{Error, Result};
use conjure_core::{DType, Tensor, Var, weights};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes `config.json` and the weights, in f16, to `folder`, which is made if it is missing. `class` is what diffusers keeps
/// as `_class_name`.
///
/// # Errors
/// The system refuses to write.
pub fn component(
    folder: &Path,
    file: &str,
    config: &impl Serialize,
    class: Option<&str>,
    variables: &BTreeMap<String, Var>,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut config = serde_json::to_value(config).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    if let Some(class) = class {
        config["_class_name"] = class.into();
    }
    write_json(&folder.join("config.json"), &config)?;
    let tensors = variables
        .iter()
        .map(|(name, variable)| Ok((name.clone(), variable.as_detached_tensor().to_dtype(DType::F16)?)))
        .collect::<Result<BTreeMap<String, Tensor>>>()?;
    weights::save(folder.join(file), &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
}

/// Writes a value as indented JSON.
///
/// # Errors
/// The system refuses to write.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    write_atomically(path, |file| writeln!(file, "{text}"))
}

/// Completes a folder that holds `unet/` to a `StableDiffusionPipeline` of diffusers: copies the autoencoder, and the text
/// encoder and tokenizer that lie in `text`, and writes scheduler and index.
///
/// # Errors
/// A file cannot be read or written; the scheduler names no class.
pub fn pipeline(folder: &Path, scheduler: &Value, autoencoder: &Path, text: &Path) -> Result<()> {
    let class = scheduler.get("_class_name").and_then(Value::as_str).ok_or_else(|| {
        Error::request("the scheduler names no _class_name")
            .with_help("for example _class_name = \"DPMSolverMultistepScheduler\"")
    })?;
    copy_folder(autoencoder, &folder.join("vae"))?;
    for part in ["text_encoder", "tokenizer"] {
        copy_folder(&text.join(part), &folder.join(part))?;
    }
    let place = folder.join("scheduler");
    std::fs::create_dir_all(&place).map_err(|e| Error::io(&place, e))?;
    write_json(&place.join("scheduler_config.json"), scheduler)?;
    write_json(
        &folder.join("model_index.json"),
        &json!({
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [null, null],
            "image_encoder": [null, null],
            "requires_safety_checker": false,
            "safety_checker": [null, null],
            "scheduler": ["diffusers", class],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }),
    )
}

/// Copies the files of a folder, without those of folders in it.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    for entry in std::fs::read_dir(from).map_err(|e| Error::io(from, e))? {
        let path = entry.map_err(|e| Error::io(from, e))?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            std::fs::copy(&path, to.join(name)).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}
