//! Weights split over several files, with an index that says which tensor is where.

use super::{Quantized, TensorInfo, TensorSource, open};
use crate::{DType, Device, Error, Result, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// More shards than any model has; a limit on how many files a lying index can have opened.
const MAX_SHARDS: usize = 1024;
/// Larger indexes are refused before they are parsed; that of a model with a thousand layers takes 1 MiB.
const MAX_INDEX: u64 = 32 << 20;

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The tensors of `*.safetensors.index.json` or `*.bin.index.json`.
pub struct Sharded {
    path: PathBuf,
    shards: Vec<Arc<dyn TensorSource>>,
    /// Which shard holds a tensor.
    homes: BTreeMap<String, usize>,
    infos: BTreeMap<String, TensorInfo>,
}

impl Sharded {
    /// Opens the index and every file that it names, beside it.
    ///
    /// # Errors
    /// An unreadable index, a missing shard, a shard without a tensor that the index places there, a shard outside the
    /// index's folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut text = Vec::new();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        file.take(MAX_INDEX + 1).read_to_end(&mut text).map_err(|e| Error::io(path, e))?;
        if text.len() as u64 > MAX_INDEX {
            return Err(Error::file(
                path,
                format!("is larger than {} MiB, which no index of shards is", MAX_INDEX >> 20),
            ));
        }
        let index: Index =
            serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("is not an index of shards: {e}")))?;
        let folder = path.parent().unwrap_or(Path::new(""));

        let mut files: BTreeMap<&str, usize> = BTreeMap::new();
        let mut shards: Vec<Arc<dyn TensorSource>> = Vec::new();
        let (mut homes, mut infos) = (BTreeMap::new(), BTreeMap::new());
        for (name, file) in &index.weight_map {
            let shard = match files.get(file.as_str()) {
                Some(&shard) => shard,
                None => {
                    if !matches!(Path::new(file).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
                        return Err(Error::file(path, format!("the shard {file:?} is not a file beside the index")));
                    }
                    if shards.len() == MAX_SHARDS {
                        return Err(Error::file(path, format!("names more than {MAX_SHARDS} shards")));
                    }
                    if file.ends_with(".json") {
                        return Err(Error::file(path, format!("the shard {file:?} is an index itself")));
                    }
                    let shard_path = folder.join(file);
                    if !shard_path.is_file() {
                        return Err(Error::file(path, format!("the shard {file} is missing"))
                            .with_help("the download looks incomplete; get the missing file"));
                    }
                    shards.push(open(&shard_path)?);
                    files.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            let info = shards[shard]
                .infos()
                .get(name)
                .ok_or_else(|| Error::file(path, format!("the shard {file} lacks the tensor {name}")))?;
            infos.insert(name.clone(), info.clone());
            homes.insert(name.clone(), shard);
        }
        Ok(Self { path: path.to_owned(), shards, homes, infos })
    }
}

impl TensorSource for Sharded {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shard =
            self.homes.get(name).ok_or_else(|| Error::file(&self.path, format!("the index has no tensor {name}")))?;
        self.shards[*shard].load(name, dtype, device)
    }

    fn quantized(&self, name: &str) -> Option<Quantized> {
        self.shards[*self.homes.get(name)?].quantized(name)
    }
}
