//! Reading what `tools/reference/` recorded.

use conjure_core::weights::{MemorySource, ParameterSpec};
use conjure_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Named tensors of one safetensors file.
pub struct Fixture(HashMap<String, Tensor>);

impl Fixture {
    pub fn open(name: &str) -> Self {
        Self(candle_core::safetensors::load(path(name), &Device::Cpu).unwrap())
    }

    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).cloned()
    }

    /// Everything below `prefix.`, without the prefix.
    pub fn below(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let strip = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.strip_prefix('.')?.to_owned(), tensor.clone()))
        };
        self.0.iter().filter_map(strip).collect()
    }

    pub fn source(&self, prefix: &str) -> Arc<MemorySource> {
        Arc::new(MemorySource::new(self.below(prefix)))
    }
}

/// Lines `name d0,d1,...` of a gzip file.
pub fn keys(name: &str) -> BTreeSet<(String, Vec<usize>)> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path(name)).unwrap()).read_to_string(&mut text).unwrap();
    text.lines()
        .map(|line| {
            let (name, shape) = line.split_once(' ').unwrap();
            (name.to_owned(), shape.split(',').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect())
        })
        .collect()
}

/// What a model asked for, as a set; fails if it asked for something twice.
pub fn asked(specs: &[ParameterSpec]) -> BTreeSet<(String, Vec<usize>)> {
    let set: BTreeSet<_> = specs.iter().map(|s| (s.name.clone(), s.shape.dims().to_vec())).collect();
    assert_eq!(set.len(), specs.len(), "a parameter was asked for twice");
    set
}

/// Largest difference divided by the largest reference value.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (got, want) = (values(got), values(want));
    let scale = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    // A NaN must not be lost in a maximum.
    got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, |m, e| if e <= m { m } else { e }) / scale
}
