//! What every weight file looks like to a model: named tensors whose type and shape are known before memory is taken.

use crate::{DType, Device, Error, Result, Shape, Tensor};
use std::collections::BTreeMap;

/// Type and shape of a stored tensor, known without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
}

impl TensorInfo {
    /// Bytes that the stored tensor takes.
    pub fn bytes(&self) -> usize {
        self.shape.elem_count() * self.dtype.size_in_bytes()
    }
}

/// Named tensors, in a file or in memory.
pub trait TensorSource: Send + Sync {
    /// Names, types and shapes.
    fn infos(&self) -> &BTreeMap<String, TensorInfo>;

    /// Reads one tensor, converted to `dtype`, onto `device`.
    ///
    /// # Errors
    /// Unknown name, unreadable file.
    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor>;
}

/// Tensors that are in memory already.
#[derive(Default)]
pub struct MemorySource {
    infos: BTreeMap<String, TensorInfo>,
    tensors: BTreeMap<String, Tensor>,
}

impl MemorySource {
    /// A source of these tensors.
    pub fn new(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let tensors: BTreeMap<_, _> = tensors.into_iter().collect();
        let infos = tensors
            .iter()
            .map(|(name, t)| (name.clone(), TensorInfo { dtype: t.dtype(), shape: t.shape().clone() }))
            .collect();
        Self { infos, tensors }
    }
}

impl TensorSource for MemorySource {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::request(format!("no tensor named {name}")))?;
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }
}
