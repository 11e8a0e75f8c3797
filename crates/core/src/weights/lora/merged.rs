//! Weights with LoRAs merged in.

use super::Lora;
use crate::weights::{Quantized, TensorInfo, TensorSource};
use crate::{DType, Device, Result, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One part's weights with any number of LoRAs added, each times its weight: merged when a tensor is asked for, in f32 or
/// better, so that the model runs as fast as without.
pub struct Merged {
    inner: Arc<dyn TensorSource>,
    component: &'static str,
    loras: Vec<(Arc<Lora>, f64)>,
}

impl Merged {
    /// `inner`, the weights of `component`, changed by each LoRA times the number beside it; 1 is as its author made it.
    pub fn new(inner: Arc<dyn TensorSource>, component: &'static str, loras: Vec<(Arc<Lora>, f64)>) -> Self {
        Self { inner, component, loras }
    }
}

impl TensorSource for Merged {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        self.inner.infos()
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut sum: Option<Tensor> = None;
        for (lora, weight) in &self.loras {
            if let Some(delta) = lora.delta(self.component, name, wide, device)? {
                let delta = (delta * *weight)?;
                sum = Some(match sum {
                    None => delta,
                    Some(sum) => (sum + delta)?,
                });
            }
        }
        match sum {
            None => self.inner.load(name, dtype, device),
            Some(sum) => Ok((self.inner.load(name, wide, device)? + sum)?.to_dtype(dtype)?),
        }
    }

    fn quantized(&self, name: &str) -> Option<Quantized> {
        let change = (self.component, name.to_owned());
        if self.loras.iter().any(|(lora, _)| lora.changes.contains_key(&change)) {
            return None; // the sum has other numbers than the blocks
        }
        self.inner.quantized(name)
    }
}
