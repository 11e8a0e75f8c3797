//! What every weight file looks like to a model: named tensors whose type and shape are known before memory is taken.

use super::Quantized;
use super::gguf::Metadata;
use crate::{DType, Device, Error, Result, Shape, Tensor};
use conjure_kernels::quantized::Format;
use std::collections::BTreeMap;

/// Type and shape of a stored tensor, known without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored element type; of a quantised tensor, the type of its numbers once they are read.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
    /// The block format of a quantised tensor.
    pub format: Option<Format>,
}

impl TensorInfo {
    /// A tensor that is not quantised.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Self {
        Self { dtype, shape: shape.into(), format: None }
    }

    /// Bytes that the stored tensor takes.
    pub fn bytes(&self) -> usize {
        let elements = self.shape.elem_count();
        match self.format {
            Some(format) => elements / format.block() * format.bytes(),
            None => elements * self.dtype.size_in_bytes(),
        }
    }

    /// How the elements are stored, as files name it: `f16`, `Q4_K`.
    pub fn precision(&self) -> &'static str {
        match self.format {
            Some(format) => format.name(),
            None => self.dtype.as_str(),
        }
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

    /// A matrix that is stored in fewer bits than f32 has, to be read where it lies; `None` for what can only be loaded.
    fn quantized(&self, name: &str) -> Option<Quantized> {
        let _ = name;
        None
    }

    /// What a GGUF file says about its model; `None` for every other source.
    fn gguf(&self) -> Option<&Metadata> {
        None
    }
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
        let infos = tensors.iter().map(|(name, t)| (name.clone(), TensorInfo::new(t.dtype(), t.shape()))).collect();
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
