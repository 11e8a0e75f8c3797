//! What `torch.save` writes: a zip archive with a pickle and one entry per storage, or, before PyTorch 1.6, pickles
//! followed by the storages.

use super::bytes::Bytes;
use super::pickle::{Node, Pickle, Strided};
use super::{TensorInfo, TensorSource};
use crate::{DType, Device, Error, Result, Shape, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zip::{CompressionMethod, ZipArchive};

/// Largest pickle that is read: that of a checkpoint with its optimiser's state is a few megabytes.
const MAX_PICKLE: u64 = 32 << 20;
/// Deflate cannot do better; an entry that claims more is lying.
const MAX_RATIO: u64 = 1032;
/// How a legacy file begins: a pickle of the number 0x1950a86a20f9469cfc6c.
pub(super) const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Where a storage's bytes lie.
#[derive(Clone, Debug)]
enum Place {
    /// In the file as they are.
    Plain(Range<usize>),
    /// Deflated, in this entry of the archive; bytes when inflated.
    Deflated(usize, u64),
}

/// The tensors of a PyTorch checkpoint (`.bin`, `.ckpt`, `.pt`), read as data: no code of the file is run. Storages are
/// read when their tensors are. The archive's checksums are not compared.
pub struct Checkpoint {
    path: PathBuf,
    bytes: Bytes,
    infos: BTreeMap<String, TensorInfo>,
    tensors: Tensors,
}

impl Checkpoint {
    /// Maps the file and reads its pickle; no storage is read.
    ///
    /// # Errors
    /// Unreadable, damaged, past the limits, with a pickle that asks to run something, or without tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(Bytes::map(path)?, path)
    }

    /// The same from memory; `path` is what errors name.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`].
    pub fn from_bytes(bytes: Vec<u8>, path: impl AsRef<Path>) -> Result<Self> {
        Self::parse(Bytes::Memory(bytes), path.as_ref())
    }

    fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        let read = if bytes.starts_with(LEGACY_START) { read_legacy(&bytes) } else { read_archive(&bytes) };
        let (tensors, infos) = read.map_err(|message| {
            let dangerous = message.contains("asks to run");
            Error::file(path, message).with_help(if dangerous {
                "do not trust this file or where it came from; get the model as safetensors"
            } else {
                "the file is damaged, incomplete or no PyTorch checkpoint; download it again, best as safetensors"
            })
        })?;
        Ok(Self { path: path.to_owned(), bytes, infos, tensors })
    }
}

type Tensors = BTreeMap<String, (Arc<Strided>, Place)>;
type Tables = (Tensors, BTreeMap<String, TensorInfo>);

fn read_archive(bytes: &[u8]) -> std::result::Result<Tables, String> {
    let mut archive =
        ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("the file is not a whole zip archive: {e}"))?;
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| format!("entry {i} of the archive is not readable: {e}"))?;
        let name =
            entry.name().map_err(|e| format!("entry {i} of the archive has no readable name: {e}"))?.into_owned();
        let (size, packed) = (entry.size(), entry.compressed_size());
        let start = entry.data_start().ok_or_else(|| format!("entry {name} of the archive has no data"))?;
        if entry.encrypted() {
            return Err(format!("entry {name} of the archive is encrypted"));
        }
        if start.checked_add(packed).is_none_or(|end| end > bytes.len() as u64) {
            return Err(format!("entry {name} of the archive reaches past the end of the file"));
        }
        let place = match entry.compression() {
            CompressionMethod::Stored if size == packed => Place::Plain(start as usize..(start + size) as usize),
            CompressionMethod::Deflated if size / MAX_RATIO <= packed => Place::Deflated(i, size),
            CompressionMethod::Stored | CompressionMethod::Deflated => {
                return Err(format!("entry {name} of the archive claims {size} bytes in {packed}"));
            }
            other => return Err(format!("entry {name} of the archive is packed by the unsupported method {other:?}")),
        };
        drop(entry);
        if entries.insert(name.clone(), place).is_some() {
            return Err(format!("the archive has two entries {name}"));
        }
    }
    let pickles: Vec<&String> =
        entries.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).collect();
    let prefix = match pickles[..] {
        [name] => name.trim_end_matches("data.pkl").to_owned(),
        [] => return Err("the archive has no data.pkl, so it is not a PyTorch checkpoint".to_owned()),
        _ => return Err("the archive has several data.pkl".to_owned()),
    };
    if entries.contains_key(&format!("{prefix}constants.pkl")) {
        return Err("is a TorchScript program, not a checkpoint".to_owned());
    }
    let part = |name: &str, limit: u64| {
        let Some(place) = entries.get(&format!("{prefix}{name}")) else { return Ok(None) };
        let size = match place {
            Place::Plain(range) => range.len() as u64,
            Place::Deflated(_, size) => *size,
        };
        if size > limit {
            return Err(format!("{name} has {size} bytes, more than the limit of {limit}"));
        }
        fetch(bytes, place).map(Some)
    };
    if part("byteorder", 16)?.is_some_and(|order| order == b"big") {
        return Err("the checkpoint was written on a big-endian machine, which is not supported".to_owned());
    }
    let pickle = part("data.pkl", MAX_PICKLE)?.unwrap_or_default();
    let pickle = Pickle::read(&pickle, 0)?;
    locate_tensors(&pickle, |key| entries.get(&format!("{prefix}data/{key}")).cloned())
}

fn read_legacy(bytes: &[u8]) -> std::result::Result<Tables, String> {
    // Storages follow the pickles, so the limit holds for what is before them; pickles end themselves.
    let window = &bytes[..bytes.len().min(MAX_PICKLE as usize)];
    let protocol = Pickle::read(window, LEGACY_START.len())?;
    if !matches!(protocol.node(protocol.root), Node::Int(1001)) {
        return Err("the checkpoint is of an unknown version".to_owned());
    }
    let system = Pickle::read(window, protocol.end)?;
    let object = Pickle::read(window, system.end)?;
    let keys = Pickle::read(window, object.end)?;
    let Node::List(order) = keys.node(keys.root) else {
        return Err("the checkpoint has no list of storages".to_owned());
    };
    let sizes: HashMap<&str, usize> =
        object.storages().map(|storage| (storage.key.as_str(), storage.stored.size())).collect();
    let mut places = HashMap::new();
    let mut at = keys.end;
    for &id in order {
        let key = keys.text(id).ok_or("a storage's key is no text")?;
        let size = sizes.get(key).ok_or_else(|| format!("storage {key} belongs to no tensor"))?;
        let end = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).and_then(|len| {
            let bytes = usize::try_from(u64::from_le_bytes(*len)).ok()?.checked_mul(*size)?;
            (at + 8).checked_add(bytes)
        });
        let end = end.filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| format!("storage {key} reaches past the end of the file"))?;
        places.insert(key, Place::Plain(at + 8..end));
        at = end;
    }
    locate_tensors(&object, |key| places.get(key).cloned())
}

/// The state dictionary's tensors, each with the place of its storage, which is checked to be large enough.
fn locate_tensors(
    pickle: &Pickle<'_>,
    place_of: impl Fn(&str) -> Option<Place>,
) -> std::result::Result<Tables, String> {
    let (mut tensors, mut infos) = (BTreeMap::new(), BTreeMap::new());
    for &(key, value) in state_dict(pickle)? {
        let (Some(name), Node::Tensor(tensor)) = (pickle.text(key), pickle.node(value)) else { continue };
        let storage = &tensor.storage;
        let place = place_of(&storage.key)
            .ok_or_else(|| format!("tensor {name} lies in storage {}, which the file lacks", storage.key))?;
        let available = match &place {
            Place::Plain(range) => range.len() as u64,
            Place::Deflated(_, size) => *size,
        };
        if (storage.len as u64).checked_mul(storage.stored.size() as u64).is_none_or(|needed| needed > available) {
            return Err(format!(
                "tensor {name} lies in storage {} of {} elements, which has only {available} bytes",
                storage.key, storage.len
            ));
        }
        let shape = Shape::from(tensor.shape.clone());
        infos.insert(name.to_owned(), TensorInfo::new(storage.stored.dtype(), shape));
        tensors.insert(name.to_owned(), (tensor.clone(), place));
    }
    if tensors.is_empty() {
        return Err("the checkpoint holds no state dictionary with tensors".to_owned());
    }
    Ok((tensors, infos))
}

/// The dictionary of tensors: the checkpoint itself, its `state_dict`, or its only dictionary with tensors.
fn state_dict<'a>(pickle: &'a Pickle<'_>) -> std::result::Result<&'a [(usize, usize)], String> {
    let Node::Dict(root) = pickle.node(pickle.root) else {
        return Err("the checkpoint is not a dictionary of tensors; it may be a whole pickled model".to_owned());
    };
    let dict = |id: usize| match pickle.node(id) {
        Node::Dict(items) => Some(items.as_slice()),
        _ => None,
    };
    let has_tensors = |items: &&[(usize, usize)]| items.iter().any(|&(_, v)| matches!(pickle.node(v), Node::Tensor(_)));
    if let Some(items) =
        root.iter().find_map(|&(k, v)| if pickle.text(k) == Some("state_dict") { dict(v) } else { None })
    {
        return Ok(items);
    }
    if has_tensors(&root.as_slice()) {
        return Ok(root);
    }
    // A dictionary may be named often; each is looked through once.
    let ids: BTreeSet<usize> = root.iter().map(|&(_, id)| id).collect();
    let inner: Vec<_> = ids.into_iter().filter_map(dict).filter(has_tensors).collect();
    match inner[..] {
        [only] => Ok(only),
        [] => Err("the checkpoint holds no state dictionary with tensors".to_owned()),
        _ => Err(format!("the checkpoint holds {} dictionaries of tensors and none is named state_dict", inner.len())),
    }
}

/// A storage's bytes. What is inflated is bounded by what was claimed, and that by [`MAX_RATIO`].
fn fetch(bytes: &[u8], place: &Place) -> std::result::Result<Vec<u8>, String> {
    match place {
        Place::Plain(range) => Ok(bytes[range.clone()].to_vec()),
        &Place::Deflated(entry, size) => {
            let unreadable = |e: &dyn std::fmt::Display| format!("entry {entry} of the archive is damaged: {e}");
            let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| unreadable(&e))?;
            let mut inflated = Vec::new();
            let reader = archive.by_index(entry).map_err(|e| unreadable(&e))?;
            reader.take(size + 1).read_to_end(&mut inflated).map_err(|e| unreadable(&e))?;
            if inflated.len() as u64 != size {
                return Err(format!("entry {entry} of the archive claims {size} bytes and inflates to others"));
            }
            Ok(inflated)
        }
    }
}

impl TensorSource for Checkpoint {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (tensor, place) = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::file(&self.path, format!("the checkpoint has no tensor {name}")))?;
        let inflated;
        let storage = match place {
            Place::Plain(range) => &self.bytes[range.clone()],
            Place::Deflated(..) => {
                inflated = fetch(&self.bytes, place).map_err(|message| Error::file(&self.path, message))?;
                &inflated[..]
            }
        };
        let stored = tensor.storage.stored;
        let shape = Shape::from(tensor.shape.clone());
        if tensor.is_contiguous() || shape.elem_count() == 0 {
            let start = if shape.elem_count() == 0 { 0 } else { tensor.offset * stored.size() };
            return stored.tensor(&storage[start..], &shape, dtype, device);
        }
        stored.tensor(&gather(tensor, storage), &shape, dtype, device)
    }
}

/// The bytes of a strided view in row-major order.
fn gather(tensor: &Strided, storage: &[u8]) -> Vec<u8> {
    let size = tensor.storage.stored.size();
    let count: usize = tensor.shape.iter().product();
    let mut out = Vec::with_capacity(count * size);
    let mut index = vec![0; tensor.shape.len()];
    let mut at = tensor.offset;
    for _ in 0..count {
        out.extend_from_slice(&storage[at * size..][..size]);
        for d in (0..index.len()).rev() {
            index[d] += 1;
            at += tensor.strides[d];
            if index[d] < tensor.shape[d] {
                break;
            }
            at -= index[d] * tensor.strides[d];
            index[d] = 0;
        }
    }
    out
}
