//! Which weights a LoRA can change, and how LoRA files spell their layers.

use super::sources::original_views;
use super::{StableDiffusion, StableDiffusionConfig, original_keys};
use conjure_core::Result;
use conjure_core::weights::LoraTarget;

impl StableDiffusion {
    /// Every matrix and convolution of the text encoders and the U-Net, with its spellings in LoRA files: diffusers', PEFT's,
    /// kohya's, and the original names of the U-Net's layers, which kohya's scripts use for SDXL.
    ///
    /// # Errors
    /// Configs that cannot be built or do not fit each other.
    pub fn lora_targets(config: &StableDiffusionConfig) -> Result<Vec<LoraTarget>> {
        let mut targets = Vec::new();
        for (component, wanted) in Self::outline(config)? {
            let prefixes: &[&str] = match component {
                "unet" => &["unet.", "", "base_model.model.", "base_model.model.unet."],
                "text_encoder" => &["text_encoder.", "te.", "te1.", "", "base_model.model."],
                "text_encoder_2" => &["text_encoder_2.", "te2.", "", "base_model.model."],
                _ => continue,
            };
            let original = match component {
                "unet" => original_views(config, component, &wanted, [].iter()),
                _ => Vec::new(),
            };
            for (i, spec) in wanted.into_iter().enumerate() {
                let Some(layer) = spec.name.strip_suffix(".weight").filter(|_| spec.shape.rank() >= 2) else {
                    continue;
                };
                let mut spellings: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix}{layer}")).collect();
                // transformers 5 has no level `text_model`.
                if let Some(rest) = layer.strip_prefix("text_model.") {
                    spellings.extend(prefixes.iter().map(|prefix| format!("{prefix}{rest}")));
                }
                if let Some((_, view)) = original.get(i)
                    && let Some(name) = view.source_name.strip_prefix(original_keys::UNET)
                {
                    let name = name.trim_end_matches(".weight");
                    spellings.extend([format!("unet.{name}"), format!("diffusion_model.{name}")]);
                }
                targets.push(LoraTarget { component, shape: spec.shape, spellings, parameter: spec.name });
            }
        }
        Ok(targets)
    }
}
