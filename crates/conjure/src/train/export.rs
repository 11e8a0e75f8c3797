//! Writing trained components in the layout of diffusers and transformers.

use crate::image_file::write_atomically;
use crate::{Error, Result};
use conjure_core::{DType, Tensor, Var, weights};
use serde::Serialize;
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
    json(&folder.join("config.json"), &config)?;
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
pub fn json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    write_atomically(path, |file| writeln!(file, "{text}"))
}
