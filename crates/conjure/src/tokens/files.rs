//! Reading the files of a tokenizer's folder, none larger than it may be.

use crate::{Error, Result};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// The bytes of a file.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("larger than {} MiB, which no tokenizer's file is", limit >> 20))
            .with_help("check that the file belongs to the model; download it again"));
    }
    Ok(bytes)
}

/// The text of a file.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|e| {
        Error::file(path, format!("byte {} is not UTF-8", e.utf8_error().valid_up_to()))
            .with_help("the file is damaged; download it again")
    })
}

/// The JSON object in a file; `Null` where there is no such file.
pub(super) fn read_json(path: &Path, limit: u64) -> Result<Value> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let value: Value = serde_json::from_str(&read_text(path, limit)?).map_err(|e| {
        Error::file(path, format!("not readable as JSON: {e}")).with_help("the file is damaged; download it again")
    })?;
    if !value.is_object() {
        return Err(Error::file(path, "not a JSON object").with_help("the file is damaged; download it again"));
    }
    Ok(value)
}
