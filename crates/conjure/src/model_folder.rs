//! Folders of models in the layout of diffusers and transformers: a `config.json` beside the weights.

use crate::image_file::write_atomically;
use crate::{Error, Result};
use conjure_core::weights::{self, Params, Renamed};
use conjure_core::{DType, Device, Tensor, Var};
use conjure_models::clip_text::{self, ClipTextConfig};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use zip::ZipArchive;

/// Name of the weights' file in transformers' folders.
pub const TRANSFORMERS_FILE: &str = "model.safetensors";
/// Name of the weights' file in diffusers' folders.
pub const DIFFUSERS_FILE: &str = "diffusion_pytorch_model.safetensors";
/// Larger files are no configs.
const MAX_CONFIG: u64 = 16 << 20;

/// A config file's text; `None` if there is no such file.
///
/// # Errors
/// The file cannot be read, is no text, or is larger than any config.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    let size = path.metadata().map_err(|e| Error::io(path, e))?.len();
    if size > MAX_CONFIG {
        return Err(Error::file(path, format!("has {size} bytes, which no config has")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map(Some).map_err(|_| Error::file(path, "is not text"))
}

/// Refuses a file whose beginning says that it holds no weights: the numbers that a reader of weights would find in it mean
/// nothing to a user.
///
/// # Errors
/// It cannot be read, or is a picture, a text, an archive or something else that no model is saved as.
pub fn check_weights(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(64).read_to_end(&mut start)).map_err(|e| Error::io(path, e))?;
    match other_kind(path, &start) {
        Some(kind) => Err(Error::file(path, format!("is {kind}, neither a safetensors nor a GGUF file"))
            .with_help("name a .safetensors, .gguf or .ckpt file, or a model's folder")),
        None => Ok(()),
    }
}

/// What a file that begins with `start` is, where it is surely no weights; those who read weights tell the rest.
fn other_kind(path: &Path, start: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 6] = [
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"GIF8", "a GIF picture"),
        (b"RIFF", "a WebP picture, a sound or a film"),
        (b"%PDF", "a PDF document"),
        (b"\x1f\x8b", "a gzip archive"),
    ];
    // Safetensors have a JSON object after eight bytes, which tell its length and may be any.
    if start.get(8) == Some(&b'{') {
        return None;
    }
    if let Some((_, kind)) = KINDS.iter().find(|(sign, _)| start.starts_with(sign)) {
        return Some(kind);
    }
    if start.starts_with(b"PK\x03\x04") {
        // PyTorch's checkpoints are archives too, with the tensors' list in a pickle.
        let archive = ZipArchive::new(BufReader::new(File::open(path).ok()?)).ok()?;
        let checkpoint = archive.file_names().flatten().any(|name| name.ends_with(".pkl"));
        return (!checkpoint).then_some("a zip archive without a checkpoint in it");
    }
    // A pickle, an index of shards, a page in place of the file, or what git keeps for it are known to those who read weights.
    let pickle_or_gguf = start.starts_with(b"\x80") || start.starts_with(b"GGUF");
    let told = path.extension().is_some_and(|e| e == "json" || e == "gguf")
        || start.starts_with(b"version https://git-lfs")
        || start.trim_ascii_start().starts_with(b"<");
    if start.len() < 9 || pickle_or_gguf || told {
        return None;
    }
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // The last character may be cut.
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&start[..e.valid_up_to()]).unwrap_or_default(),
        Err(_) => return Some("a file of another kind"),
    };
    let printable = text.chars().all(|c| !c.is_control() || c.is_whitespace());
    Some(if printable { "text" } else { "a file of another kind" })
}

/// The config in `folder`, as `parse` reads it, and its weights in f32, for `device`.
///
/// # Errors
/// Either is missing or damaged.
pub fn open<C>(folder: &Path, parse: impl FnOnce(&str) -> Result<C>, device: &Device) -> Result<(C, Params)> {
    Ok((config(folder, parse)?, load(folder, device)?))
}

/// The config in `folder`, as `parse` reads it.
///
/// # Errors
/// It is missing or damaged; `folder` is a file.
pub fn config<C>(folder: &Path, parse: impl FnOnce(&str) -> Result<C>) -> Result<C> {
    if folder.is_file() {
        return Err(Error::file(folder, "is a file, and a model's folder is needed")
            .with_help("name the folder that holds config.json and the weights"));
    }
    let path = folder.join("config.json");
    let text = read_text(&path)?.ok_or_else(|| Error::file(&path, "not found").with_help("name a model's folder"))?;
    parse(&text).map_err(|error| match error {
        Error::Request { message, help } => Error::File { path, message, help },
        other => other,
    })
}

/// A config as it stands, for [`config`] and [`open`].
///
/// # Errors
/// It is no JSON.
pub fn as_json(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::request(format!("is not readable as JSON: {e}")))
}

/// A CLIP text encoder as transformers saves it, whatever version named its tensors.
///
/// # Errors
/// Its config or weights are missing or damaged.
pub fn open_clip_text(folder: &Path, device: &Device) -> Result<(ClipTextConfig, Params)> {
    let config = config(folder, ClipTextConfig::from_json)?;
    let source = Renamed::by(weights::open(weights::locate(folder)?)?, clip_text::canonical_key)?;
    Ok((config, Params::load(Arc::new(source), DType::F32, device)))
}

/// The weights in `folder`, in f32, for `device`.
///
/// # Errors
/// They are missing or damaged.
pub fn load(folder: &Path, device: &Device) -> Result<Params> {
    Ok(Params::load(weights::open(weights::locate(folder)?)?, DType::F32, device))
}

/// Writes `config.json` and the weights to `folder`, which is made if it is missing. `class` is what diffusers keeps as
/// `_class_name`.
///
/// # Errors
/// The system refuses to write.
pub fn write(
    folder: &Path,
    file: &str,
    config: &impl Serialize,
    class: Option<&str>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut config = serde_json::to_value(config).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    if let Some(class) = class {
        config["_class_name"] = class.into();
    }
    write_json(&folder.join("config.json"), &config)?;
    weights::save(folder.join(file), tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
}

/// Trained parameters as they are written: in f16.
///
/// # Errors
/// A tensor operation fails.
pub fn half(variables: &BTreeMap<String, Var>) -> Result<BTreeMap<String, Tensor>> {
    variables.iter().map(|(name, v)| Ok((name.clone(), v.as_detached_tensor().to_dtype(DType::F16)?))).collect()
}

/// Writes a value as indented JSON.
///
/// # Errors
/// The system refuses to write.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    write_atomically(path, |file| writeln!(file, "{text}"))
}

/// Completes a folder that holds the components of Stable Diffusion with the scheduler's config and the index by which
/// diffusers opens a `StableDiffusionPipeline`. `origin` is kept as `_name_or_path`.
///
/// # Errors
/// The system refuses to write; the scheduler names no class.
pub fn write_index(folder: &Path, scheduler: &Value, origin: Option<&str>) -> Result<()> {
    let class = scheduler.get("_class_name").and_then(Value::as_str).ok_or_else(|| {
        Error::request("the scheduler names no _class_name")
            .with_help("for example _class_name = \"DPMSolverMultistepScheduler\"")
    })?;
    let place = folder.join("scheduler");
    std::fs::create_dir_all(&place).map_err(|e| Error::io(&place, e))?;
    write_json(&place.join("scheduler_config.json"), scheduler)?;
    let mut index = json!({
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
    });
    if let Some(origin) = origin {
        index["_name_or_path"] = origin.into();
    }
    write_json(&folder.join("model_index.json"), &index)
}

/// Copies the files of a folder, without those of folders in it.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    for entry in std::fs::read_dir(from).map_err(|e| Error::io(from, e))? {
        let path = entry.map_err(|e| Error::io(from, e))?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            std::fs::copy(&path, to.join(name)).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_surely_no_weights_is_told_by_its_beginning() {
        let of = |name: &str, start: &[u8]| other_kind(Path::new(name), start);
        assert_eq!(of("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), Some("a PNG picture"));
        assert_eq!(of("a.safetensors", b"\xff\xd8\xff\xe0\0\x10JFIF"), Some("a JPEG picture"));
        assert_eq!(of("a.md", "# Modelle für Bilder".as_bytes()), Some("text"));
        // Cut in the middle of a character.
        assert_eq!(of("a.md", &"Modell für".as_bytes()[..9]), Some("text"));
        assert_eq!(of("a", b"\0\x01\x02\x03\x04\x05\x06\x07\x08\x09"), Some("a file of another kind"));
        for (name, start) in [
            ("a.safetensors", &b"\x40\0\0\0\0\0\0\0{\"x\":"[..]),
            ("a.safetensors", b"abc"),
            ("a.safetensors", b"<!DOCTYPE html>"),
            ("a.safetensors", b"version https://git-lfs.github.com/spec/v1"),
            ("a.gguf", b"GGUF\x03\0\0\0\x01\0"),
            ("a.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"),
            ("a.index.json", b"{ \"weight_map\": {} }"),
        ] {
            assert_eq!(of(name, start), None, "{name}");
        }
    }

    #[test]
    fn an_archive_is_weights_if_a_checkpoint_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let refused = |entry: &str| {
            let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
            archive.start_file(entry, zip::write::SimpleFileOptions::default()).unwrap();
            archive.finish().unwrap();
            check_weights(&path).err().map(|error| error.to_string())
        };
        assert_eq!(refused("archive/data.pkl"), None);
        let message = refused("metadata.jsonl").unwrap();
        assert!(
            message
                .ends_with("a.zip: is a zip archive without a checkpoint in it, neither a safetensors nor a GGUF file")
        );
    }
}
