//! Writing safetensors, so that a failure never leaves half a file or spoils the one that was there.

use crate::{DType, Error, Result, Tensor};
use candle_core::WithDType;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes tensors as safetensors, each in its own type, with `metadata` in the header. The file is written under a
/// temporary name beside `path`, flushed to disk and then renamed.
///
/// # Errors
/// A tensor of a type that safetensors lacks; the system refuses to write, for example because the disk is full. Then
/// `path` is as it was.
pub fn save(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let contents = Contents::new(tensors, metadata)?;
    replace(path, |file| contents.write(path, file))
}

/// What a safetensors file is to hold.
pub(super) struct Contents<'a> {
    header: String,
    order: Vec<(&'a String, &'a Tensor)>,
}

impl<'a> Contents<'a> {
    /// # Errors
    /// A tensor of a type that safetensors lacks.
    pub fn new(tensors: &'a BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".to_owned(), json!(metadata));
        }
        // Wide types first, so that every tensor is aligned to its element.
        let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
        order.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype().size_in_bytes()), *name));
        let mut end = 0;
        for &(name, tensor) in &order {
            let dtype = format_name(tensor.dtype()).ok_or_else(|| {
                Error::request(format!("tensor {name} has type {:?}, which is not saved", tensor.dtype()))
            })?;
            let begin = end;
            end += tensor.elem_count() * tensor.dtype().size_in_bytes();
            header.insert(name.clone(), json!({"dtype": dtype, "shape": tensor.dims(), "data_offsets": [begin, end]}));
        }
        let mut header = Value::Object(header).to_string();
        // Spaces up to a multiple of 8 keep the data aligned.
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        Ok(Self { header, order })
    }

    /// The header's text.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// Writes all of it; `path` is what errors name.
    pub fn write(&self, path: &Path, file: &mut dyn Write) -> Result<()> {
        let written = |r: io::Result<()>| r.map_err(|e| Error::io(path, e));
        written(file.write_all(&(self.header.len() as u64).to_le_bytes()))?;
        written(file.write_all(self.header.as_bytes()))?;
        for (_, tensor) in &self.order {
            written(write_elements(file, tensor)?)?;
        }
        Ok(())
    }
}

fn format_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::U8 => "U8",
        DType::I16 => "I16",
        DType::U32 => "U32",
        DType::I32 => "I32",
        DType::I64 => "I64",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::F32 => "F32",
        DType::F64 => "F64",
        _ => return None,
    })
}

/// The outer error is the tensor library's, the inner one the system's.
fn write_elements(out: &mut dyn Write, tensor: &Tensor) -> Result<io::Result<()>> {
    fn put<T: WithDType, const N: usize>(
        out: &mut dyn Write,
        tensor: &Tensor,
        bytes: fn(T) -> [u8; N],
    ) -> Result<io::Result<()>> {
        let values = tensor.flatten_all()?.to_vec1::<T>()?;
        let mut buffer = Vec::with_capacity(4096 * N);
        for chunk in values.chunks(4096) {
            buffer.clear();
            buffer.extend(chunk.iter().flat_map(|&value| bytes(value)));
            if let Err(e) = out.write_all(&buffer) {
                return Ok(Err(e));
            }
        }
        Ok(Ok(()))
    }
    match tensor.dtype() {
        DType::U8 => put(out, tensor, u8::to_le_bytes),
        DType::I16 => put(out, tensor, i16::to_le_bytes),
        DType::U32 => put(out, tensor, u32::to_le_bytes),
        DType::I32 => put(out, tensor, i32::to_le_bytes),
        DType::I64 => put(out, tensor, i64::to_le_bytes),
        DType::F16 => put(out, tensor, f16::to_le_bytes),
        DType::BF16 => put(out, tensor, bf16::to_le_bytes),
        DType::F64 => put(out, tensor, f64::to_le_bytes),
        // The header's writer has refused every other type.
        _ => put(out, tensor, f32::to_le_bytes),
    }
}

/// Writes a file under a temporary name and renames it when it is complete.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not the name of a file"))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let result = (|| {
        let failed = |e| Error::io(path, e);
        let mut file = BufWriter::new(File::create(&temporary).map_err(failed)?);
        write(&mut file)?;
        let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&temporary, path).map_err(failed)
    })();
    if result.is_err() {
        // The first error is the one to report; that this may fail too changes nothing.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, "old").unwrap();
        let error = replace(&path, |file| {
            file.write_all(b"half of the new").unwrap();
            Err(Error::io(&path, io::Error::from(io::ErrorKind::StorageFull)))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), format!("{}: no storage space", path.display()));
        assert_eq!(error.exit_code(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nowhere/model.safetensors");
        let error = save(&path, &BTreeMap::new(), &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    }
}
