//! The safetensors format: eight bytes of header length, a JSON header, the tensors' bytes.
//!
//! The header is read here and not by the `safetensors` crate, so that a damaged file is refused with the name of the
//! tensor that is wrong and the likely cause.

use super::bytes::Bytes;
use super::stored::StoredType;
use super::{TensorInfo, TensorSource};
use crate::{DType, Device, Error, Result, Tensor};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;
/// More dimensions than any model has; a limit on what a lying header can cost.
const MAX_RANK: usize = 16;

struct Entry {
    stored: StoredType,
    range: Range<usize>,
}

/// A safetensors file, mapped from disk.
pub struct Safetensors {
    pub(super) path: PathBuf,
    pub(super) bytes: Bytes,
    infos: BTreeMap<String, TensorInfo>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Safetensors {
    /// Maps the file and checks its header; no tensor is read.
    ///
    /// # Errors
    /// Unreadable; truncated, longer than its header says, or with a header that is not true.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(Bytes::map(path)?, path)
    }

    /// The same from memory; `path` is what errors name.
    ///
    /// # Errors
    /// As for [`Safetensors::open`].
    pub fn from_bytes(bytes: Vec<u8>, path: impl AsRef<Path>) -> Result<Self> {
        Self::parse(Bytes::Memory(bytes), path.as_ref())
    }

    /// The header's free text, for example `format: pt`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        let wrong = |message: String| Error::file(path, message);
        let damaged = |message: String| {
            wrong(message).with_help("the file is damaged or was not written by safetensors; download it again")
        };
        let cut = |message: String| {
            wrong(message).with_help("the download looks incomplete; download the file again and compare its size")
        };
        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(cut(format!("the file has {} bytes, too few for a safetensors header", bytes.len())));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER {
            return Err(damaged(format!("the header claims {length} bytes, more than the format's {MAX_HEADER}")));
        }
        let Some((header, data)) = rest.split_at_checked(length as usize) else {
            return Err(cut(format!("the header claims {length} bytes, the file has {} after it", rest.len())));
        };
        let header: Header =
            serde_json::from_slice(header).map_err(|e| damaged(format!("the header is not readable: {e}")))?;

        let mut infos = BTreeMap::new();
        let mut entries = BTreeMap::new();
        let mut ranges = Vec::with_capacity(header.tensors.len());
        for (name, tensor) in header.tensors {
            let stored = StoredType::from_safetensors(&tensor.dtype).ok_or_else(|| {
                wrong(format!("tensor {name} has the unsupported element type {}", tensor.dtype))
                    .with_help("convert the file to F32, F16 or BF16")
            })?;
            let size = checked_bytes(&tensor.shape, stored)
                .ok_or_else(|| damaged(format!("tensor {name} has the impossible shape {:?}", tensor.shape)))?;
            let [begin, end] = tensor.data_offsets;
            if end < begin || end - begin != size as u64 {
                return Err(damaged(format!(
                    "tensor {name} of shape {:?} and type {} needs {size} bytes, its offsets are {begin}..{end}",
                    tensor.shape, tensor.dtype
                )));
            }
            if end > data.len() as u64 {
                let missing = end - data.len() as u64;
                return Err(cut(format!("tensor {name} ends {missing} bytes after the end of the file")));
            }
            let shift = bytes.len() - data.len();
            let range = begin as usize + shift..end as usize + shift;
            ranges.push((range.clone(), name.clone()));
            infos.insert(name.clone(), TensorInfo::new(stored.dtype(), tensor.shape));
            if entries.insert(name.clone(), Entry { stored, range }).is_some() {
                return Err(damaged(format!("tensor {name} is listed twice")));
            }
        }
        ranges.sort_by_key(|(range, _)| (range.start, range.end));
        let mut reached = bytes.len() - data.len();
        for (range, name) in &ranges {
            if range.start < reached {
                return Err(damaged(format!("tensor {name} overlaps the tensor before it")));
            }
            if range.start > reached {
                return Err(damaged(format!("{} unused bytes lie before tensor {name}", range.start - reached)));
            }
            reached = range.end;
        }
        if reached != bytes.len() {
            return Err(damaged(format!("{} bytes follow the last tensor", bytes.len() - reached)));
        }
        Ok(Self { path: path.to_owned(), bytes, infos, entries, metadata: header.metadata })
    }
}

impl TensorSource for Safetensors {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (Some(entry), Some(info)) = (self.entries.get(name), self.infos.get(name)) else {
            return Err(Error::file(&self.path, format!("the file has no tensor {name}")));
        };
        entry.stored.tensor(&self.bytes[entry.range.clone()], &info.shape, dtype, device)
    }
}

/// Bytes of a tensor. `None` where the shape is past reason: a zero among huge dimensions counts as huge too, because
/// strides are products of the others.
pub(super) fn checked_bytes(shape: &[usize], stored: StoredType) -> Option<usize> {
    if shape.len() > MAX_RANK {
        return None;
    }
    let most = shape.iter().try_fold(stored.size(), |bytes, &n| bytes.checked_mul(n.max(1)))?;
    isize::try_from(most).ok()?;
    Some(if shape.contains(&0) { 0 } else { most })
}

#[derive(serde::Deserialize)]
struct TensorHeader {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The JSON header, every entry in order, duplicates included.
struct Header {
    tensors: Vec<(String, TensorHeader)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
