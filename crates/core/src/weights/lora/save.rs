//! Writing LoRA files that other programs read.

use super::{Lora, keys};
use crate::{DType, Device, Result, Tensor, weights};
use std::collections::BTreeMap;
use std::path::Path;

/// How a LoRA file names its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraLayout {
    /// diffusers' and PEFT's: `unet.….to_q.lora_A.weight`. The scale is multiplied into `lora_B`, because what reads this
    /// layout does not agree on where else to look for it.
    #[default]
    Diffusers,
    /// kohya's scripts', which web interfaces read: `lora_unet_…_to_q.lora_down.weight` and `alpha`.
    Kohya,
}

impl LoraLayout {
    /// Both, for lists of choices.
    pub const ALL: [Self; 2] = [Self::Diffusers, Self::Kohya];

    /// The name in recipes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Kohya => "kohya",
        }
    }
}

impl Lora {
    /// Writes the LoRA in a layout, factors of type `dtype`; `metadata` goes into the header beside what the layout wants.
    ///
    /// # Errors
    /// The factors cannot be read, the file cannot be written.
    pub fn save(
        &self,
        path: impl AsRef<Path>,
        layout: LoraLayout,
        dtype: DType,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut tensors = BTreeMap::new();
        let mut metadata = metadata.clone();
        metadata.insert("format".to_owned(), "pt".to_owned());
        for ((component, parameter), change) in &self.changes {
            let layer = parameter.trim_end_matches(".weight");
            let (down, up) = self.factors(change, DType::F32, &Device::Cpu)?;
            let mut put = |name: String, tensor: Tensor| -> Result<()> {
                tensors.insert(name, tensor.to_dtype(dtype)?.contiguous()?);
                Ok(())
            };
            match layout {
                LoraLayout::Diffusers => {
                    put(format!("{component}.{layer}.lora_A.weight"), down)?;
                    put(format!("{component}.{layer}.lora_B.weight"), (up * change.scale)?)?;
                }
                LoraLayout::Kohya => {
                    let part = match *component {
                        "text_encoder" if self.two_text_encoders => "te1",
                        "text_encoder" => "te",
                        "text_encoder_2" => "te2",
                        other => other,
                    };
                    let name = format!("lora_{part}_{}", keys::flat(layer));
                    put(format!("{name}.lora_down.weight"), down)?;
                    put(format!("{name}.lora_up.weight"), up)?;
                    let alpha = change.scale * change.rank as f64;
                    put(format!("{name}.alpha"), Tensor::new(alpha as f32, &Device::Cpu)?)?;
                }
            }
        }
        if layout == LoraLayout::Kohya {
            metadata.insert("ss_network_module".to_owned(), "networks.lora".to_owned());
        }
        weights::save(path, &tensors, &metadata)
    }
}
