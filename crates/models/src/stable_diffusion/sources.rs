//! Where the components' weights come from: a folder for each, or one file for all.

use super::original_keys::{self, Part};
use super::{StableDiffusion, StableDiffusionConfig, detect};
use crate::{autoencoder_kl, clip_text};
use conjure_core::weights::{self, Extended, Lora, Merged, ParameterSpec, Renamed, TensorSource, View};
use conjure_core::{Error, Result, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The weights of each component, under the names that the models ask for.
#[derive(Clone)]
pub struct Sources {
    components: BTreeMap<&'static str, Arc<dyn TensorSource>>,
}

impl Sources {
    /// The components of a diffusers folder. `open` gives the weights of a component's folder: `text_encoder`,
    /// `text_encoder_2`, `unet`, `vae`.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn folder(
        config: &StableDiffusionConfig,
        open: &mut dyn FnMut(&str) -> Result<Arc<dyn TensorSource>>,
    ) -> Result<Self> {
        let mut components = BTreeMap::new();
        for component in names(config) {
            let stored = open(component)?;
            let canonical = |name: &str| match component {
                "text_encoder" | "text_encoder_2" => clip_text::canonical_key(name),
                "vae" => Some(autoencoder_kl::canonical_key(name)),
                _ => Some(name.to_owned()),
            };
            components.insert(component, Arc::new(Renamed::by(stored, canonical)?) as Arc<dyn TensorSource>);
        }
        Ok(Self { components })
    }

    /// The components of a single-file checkpoint with its authors' key names, and what they show of its config.
    ///
    /// # Errors
    /// Not a Stable Diffusion checkpoint; an architecture that cannot be built.
    pub fn single_file(file: &Arc<dyn TensorSource>) -> Result<(StableDiffusionConfig, Self)> {
        let config = detect::config(file.infos())?;
        let mut components = BTreeMap::new();
        for (component, wanted) in StableDiffusion::outline(&config)? {
            let source = Renamed::new(file.clone(), original_views(&config, component, &wanted, file.infos().keys()))?;
            components.insert(component, Arc::new(source) as Arc<dyn TensorSource>);
        }
        Ok((config, Self { components }))
    }

    /// The weights of a component.
    pub fn get(&self, component: &str) -> Option<Arc<dyn TensorSource>> {
        self.components.get(component).cloned()
    }

    /// The same weights with LoRAs merged in as they are loaded, each times the number beside it. They must have been opened
    /// for [`StableDiffusion::lora_targets`] of this model's config.
    pub fn with_loras(self, loras: &[(Arc<Lora>, f64)]) -> Self {
        let merged = |(component, source)| {
            (component, Arc::new(Merged::new(source, component, loras.to_vec())) as Arc<dyn TensorSource>)
        };
        Self { components: self.components.into_iter().map(merged).collect() }
    }

    /// The same weights with `rows (n, hidden_size)` after those of a text encoder's token embedding: what textual inversion
    /// learns. The config's `vocab_size` must grow with them.
    ///
    /// # Errors
    /// The model has no such text encoder, or one of another width.
    pub fn with_token_rows(mut self, component: &'static str, rows: Tensor) -> Result<Self> {
        let source = self.get(component).ok_or_else(|| Error::request(format!("the model has no {component}")))?;
        self.components.insert(component, Arc::new(Extended::new(source, clip_text::TOKEN_EMBEDDING, rows)?));
        Ok(self)
    }

    /// Compares what the models ask for with what there is, before memory is taken.
    ///
    /// # Errors
    /// Configs that do not fit each other; missing and misshapen tensors by name.
    pub fn check(&self, config: &StableDiffusionConfig) -> Result<()> {
        for (component, wanted) in StableDiffusion::outline(config)? {
            let source = self
                .components
                .get(component)
                .ok_or_else(|| Error::request(format!("there are no weights for the {component}")))?;
            weights::check(&wanted, source.as_ref()).require(component)?;
        }
        Ok(())
    }
}

fn names(config: &StableDiffusionConfig) -> impl Iterator<Item = &'static str> {
    let second = config.text_encoder_2.as_ref().map(|_| "text_encoder_2");
    ["text_encoder"].into_iter().chain(second).chain(["unet", "vae"])
}

/// Where each wanted tensor of a component lies in a single file.
pub(super) fn original_views<'a>(
    config: &StableDiffusionConfig,
    component: &str,
    wanted: &[ParameterSpec],
    stored: impl Iterator<Item = &'a String> + Clone,
) -> Vec<(String, View)> {
    let holds = |prefix: &str| stored.clone().any(|name| name.starts_with(prefix));
    let part = match component {
        "unet" => Part::UNet {
            layers_per_block: config.unet.layers_per_block.coarsest().copied().unwrap_or(0),
            up_block_types: &config.unet.up_block_types,
        },
        "vae" => Part::Vae { levels: config.vae.block_out_channels.len() },
        "text_encoder_2" => Part::OpenClip { prefix: original_keys::OPEN_CLIP_G },
        _ if holds(original_keys::OPEN_CLIP_H) => Part::OpenClip { prefix: original_keys::OPEN_CLIP_H },
        _ => {
            let xl = config.text_encoder_2.is_some();
            let prefix = if xl { original_keys::CLIP_L_XL } else { original_keys::CLIP_L };
            Part::ClipText { prefix, level: detect::clip_level(stored.clone(), prefix) }
        }
    };
    wanted.iter().map(|spec| (spec.name.clone(), original_keys::view(part, spec))).collect()
}
