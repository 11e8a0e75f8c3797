//! The GGUF format of ggml and llama.cpp, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>: keys and values that
//! describe a model and its tokenizer, a table of tensors, and the tensors' bytes, most of them quantised.
//!
//! ```text
//! "GGUF"  version u32  tensors u64  keys u64
//! key, type, value           for each key
//! name, shape, type, offset  for each tensor
//! padding to general.alignment (32 if it is not given)
//! the tensors' bytes, each padded likewise
//! ```
//!
//! Versions 2 and 3 in little-endian order are read; they differ only in that version 3 may be big-endian, too.

mod metadata;
mod reader;
mod tensors;
mod value;

pub use metadata::Metadata;
pub use value::{MetadataArray, MetadataValue};

use super::bytes::Bytes;
use super::stored::StoredType;
use super::{Quantized, TensorInfo, TensorSource};
use crate::{DType, Device, Error, Result, Tensor};
use conjure_kernels::fresh::zeros;
use conjure_kernels::quantized::{self, Format};
use reader::Reader;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensors::{Entry, Stored};

/// What every GGUF file begins with.
pub(super) const START: &[u8] = b"GGUF";
/// Where tensors begin if `general.alignment` does not say so.
const ALIGNMENT: u32 = 32;
/// Larger than any page; a limit on what a lying header can ask for.
const MAX_ALIGNMENT: u32 = 1 << 24;

/// A GGUF file, mapped from disk.
///
/// Shapes are row-major, as everywhere here: a linear layer's weight is `(out_features, in_features)`. Tensors keep the names
/// and the layout that llama.cpp gave them; quantised ones are dequantised by [`TensorSource::load`], and are read where they
/// lie by [`TensorSource::quantized`].
pub struct Gguf {
    path: PathBuf,
    bytes: Arc<Bytes>,
    version: u32,
    metadata: Metadata,
    infos: BTreeMap<String, TensorInfo>,
    entries: BTreeMap<String, Entry>,
}

impl Gguf {
    /// Maps the file and checks its header; no tensor is read.
    ///
    /// # Errors
    /// Unreadable, truncated, another version, big-endian, one part of a split file, a type that is not read, or a header
    /// that is not true.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(Bytes::map(path)?, path)
    }

    /// The same from memory; `path` is what errors name.
    ///
    /// # Errors
    /// As for [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>, path: impl AsRef<Path>) -> Result<Self> {
        Self::parse(Bytes::Memory(bytes), path.as_ref())
    }

    /// What the header says about the model and its tokenizer.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        if !bytes.starts_with(START) {
            return Err(Error::file(path, "is not a GGUF file").with_help("its first four bytes would be GGUF"));
        }
        let mut reader = Reader::new(&bytes, START.len(), path);
        let version = version(&mut reader, path)?;
        let tensors = reader.count(24, format_args!("the table of tensors"))?; // name, rank, type, offset
        let keys = reader.count(13, format_args!("the table of keys"))?; // name, type, at least a byte

        let mut metadata = Metadata::new(path);
        for i in 0..keys {
            let key = reader.name(format_args!("key {i}"))?;
            let value = reader.value(key)?;
            if metadata.insert(key, value).is_some() {
                return Err(reader.damaged(format!("the key {key} is there twice")));
            }
        }
        let alignment = metadata.u32("general.alignment")?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            return Err(reader.damaged(format!(
                "general.alignment is {alignment}, which is not a power of two from 1 to {MAX_ALIGNMENT}"
            )));
        }
        let parts = metadata.usize("split.count")?.unwrap_or(1);
        if parts > 1 {
            let part = metadata.usize("split.no")?.map_or(1, |part| part.saturating_add(1));
            return Err(Error::file(path, format!("is part {part} of a model in {parts} files"))
                .with_help("join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf"));
        }
        let (infos, entries) = tensors::read(&mut reader, tensors, alignment as usize, bytes.len())?;
        Ok(Self { path: path.to_owned(), bytes: Arc::new(bytes), version, metadata, infos, entries })
    }
}

fn version(reader: &mut Reader, path: &Path) -> Result<u32> {
    let version = reader.u32(format_args!("the version"))?;
    let refused = |what: String| Err(Error::file(path, format!("is a GGUF file {what}")));
    let help = "versions 2 and 3 in little-endian order are read; get a newer conversion of this model";
    match version {
        2 | 3 => Ok(version),
        _ if (1..256).contains(&version.swap_bytes()) => {
            refused(format!("of version {} in big-endian order", version.swap_bytes()))
        }
        _ => refused(format!("of version {version}")),
    }
    .map_err(|error| error.with_help(help))
}

impl TensorSource for Gguf {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (Some(entry), Some(info)) = (self.entries.get(name), self.infos.get(name)) else {
            return Err(Error::file(&self.path, format!("the file has no tensor {name}")));
        };
        let bytes = &self.bytes[entry.range.clone()];
        let plain = |stored: StoredType| stored.tensor(bytes, &info.shape, dtype, device);
        match entry.stored {
            Stored::Plain(stored) => plain(stored),
            Stored::Blocks(Format::F32) => plain(StoredType::F32),
            Stored::Blocks(Format::F16) => plain(StoredType::F16),
            Stored::Blocks(Format::BF16) => plain(StoredType::BF16),
            Stored::Blocks(format) => {
                let mut numbers = zeros(info.shape.elem_count());
                quantized::dequantize(format, bytes, &mut numbers);
                Ok(Tensor::from_vec(numbers, info.shape.clone(), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
            }
        }
    }

    fn quantized(&self, name: &str) -> Option<Quantized> {
        let entry = self.entries.get(name)?;
        match (entry.stored, self.infos.get(name)?.shape.dims()) {
            // Floats of full width are loaded: nothing is saved by reading them where they lie, except time once.
            (Stored::Plain(_) | Stored::Blocks(Format::F32), _) => None,
            (Stored::Blocks(format), &[rows, columns]) => {
                Quantized::window(format, rows, columns, self.bytes.clone(), entry.range.clone())
            }
            _ => None,
        }
    }

    fn gguf(&self) -> Option<&Metadata> {
        Some(&self.metadata)
    }
}
