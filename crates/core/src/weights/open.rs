//! From a path to weights, whatever their format.

use super::checkpoint::LEGACY_START;
use super::gguf::{self, Gguf};
use super::{Checkpoint, Safetensors, Sharded, TensorSource};
use crate::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens weights: a file (safetensors, GGUF, a PyTorch checkpoint, an index of shards) or the folder of one component as diffusers
/// and transformers save it. Headers are read and checked; tensors are read when they are asked for.
///
/// # Errors
/// Nothing there, no weights in the folder, a format that is not read, a damaged file.
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn TensorSource>> {
    let path = path.as_ref();
    if path.is_dir() {
        return open(locate(path)?);
    }
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(64).read_to_end(&mut start)).map_err(|e| Error::io(path, e))?;
    if path.extension().is_some_and(|e| e == "json") {
        return Ok(Arc::new(Sharded::open(path)?));
    }
    if start.starts_with(b"version https://git-lfs") {
        return Err(Error::file(path, "is a Git LFS pointer, not the weights themselves")
            .with_help("run git lfs pull in that folder, or download the file itself"));
    }
    if start.trim_ascii_start().starts_with(b"<") {
        return Err(Error::file(path, "is a web page, not weights")
            .with_help("the download link led to a page; download the file itself"));
    }
    if start.starts_with(gguf::START) {
        return Ok(Arc::new(Gguf::open(path)?));
    }
    if start.starts_with(b"PK\x03\x04") || start.starts_with(LEGACY_START) {
        return Ok(Arc::new(Checkpoint::open(path)?));
    }
    if start.first() == Some(&0x80) && start.get(8) != Some(&b'{') {
        return Err(Error::file(path, "is a Python pickle, but not one that torch.save wrote")
            .with_help("save the model's state dictionary with torch.save, or as safetensors"));
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Err(Error::file(path, "is no GGUF file: it does not begin with GGUF").with_help(
            "it may be a saved error page or an unfinished download; download it again and compare its size",
        ));
    }
    Ok(Arc::new(Safetensors::open(path)?))
}

/// Stems under which the ecosystem saves a component: diffusers, transformers since 2023, transformers before.
const STEMS: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];
/// Endings, most wanted first: full precision before half, safetensors before pickles.
const ENDINGS: [&str; 10] = [
    "safetensors",
    "safetensors.index.json",
    "fp16.safetensors",
    "safetensors.index.fp16.json",
    "fp16.safetensors.index.json",
    "bin",
    "bin.index.json",
    "fp16.bin",
    "bin.index.fp16.json",
    "fp16.bin.index.json",
];

/// The weights of a component's folder: of the usual names the most wanted one, else the only safetensors file, else the
/// only GGUF file.
///
/// # Errors
/// No weights, or several files with unusual names, or the folder of a whole pipeline.
pub fn locate(folder: impl AsRef<Path>) -> Result<PathBuf> {
    let folder = folder.as_ref();
    let usual = ENDINGS.iter().flat_map(|ending| STEMS.map(|stem| folder.join(format!("{stem}.{ending}"))));
    if let Some(file) = usual.into_iter().find(|file| file.is_file()) {
        return Ok(file);
    }
    let (mut others, mut ggufs) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let file = entry.map_err(|e| Error::io(folder, e))?.path();
        match file.extension().and_then(|e| e.to_str()) {
            Some("safetensors") if file.is_file() => others.push(file),
            Some("gguf") if file.is_file() => ggufs.push(file),
            _ => {}
        }
    }
    if folder.join("model_index.json").is_file() {
        return Err(Error::file(folder, "is a whole pipeline, not one component's folder")
            .with_help("name a component, such as its unet folder"));
    }
    match (others.len(), ggufs.len()) {
        (1, _) => Ok(others.remove(0)),
        (0, 1) => Ok(ggufs.remove(0)),
        (0, n) if n > 0 => {
            Err(Error::file(folder, format!("the folder holds {n} GGUF files")).with_help("name the file itself"))
        }
        (0, _) => Err(Error::file(folder, "the folder holds no weights").with_help(
            "the folder looks like an incomplete download; expected diffusion_pytorch_model.safetensors or \
             model.safetensors",
        )),
        (n, _) => Err(Error::file(folder, format!("the folder holds {n} safetensors files, none with a usual name"))
            .with_help("name the file itself")),
    }
}
