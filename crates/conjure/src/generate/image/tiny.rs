//! The smallest Stable Diffusion: the real architecture at toy size, with random weights. It runs in a second, and is what
//! the program does without a model.

use super::open::BUILT_IN;
use crate::model_folder::{self, DIFFUSERS_FILE, TRANSFORMERS_FILE};
use crate::tokens::ClipTokenizer;
use conjure_core::weights::{MemorySource, Params, TensorSource};
use conjure_core::{DType, Device, Error, Result, Tensor};
use conjure_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use conjure_models::clip_text::{ClipText, ClipTextConfig};
use conjure_models::stable_diffusion::{Sources, StableDiffusionConfig};
use conjure_models::unet_2d_condition::{UNet2DConditionConfig, UNet2DConditionModel};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The configs: pictures of 64x64, latents of 8x8.
pub(super) fn config() -> StableDiffusionConfig {
    let vocabulary = ClipTokenizer::tiny().vocabulary_size();
    StableDiffusionConfig {
        text_encoder: ClipTextConfig {
            vocab_size: vocabulary,
            hidden_size: 32,
            intermediate_size: 64,
            projection_dim: 32,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            eos_token_id: vocabulary as u32 - 1,
            ..ClipTextConfig::default()
        },
        text_encoder_2: None,
        unet: UNet2DConditionConfig::tiny(),
        vae: AutoencoderKlConfig {
            down_block_types: vec!["DownEncoderBlock2D".to_owned(); 4],
            up_block_types: vec!["UpDecoderBlock2D".to_owned(); 4],
            block_out_channels: vec![8, 8, 16, 16],
            norm_num_groups: 4,
            sample_size: 64,
            ..AutoencoderKlConfig::default()
        },
        // As SD 1.5 states it.
        scheduler: json!({
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": false,
            "skip_prk_steps": true,
            "steps_offset": 1,
        }),
        force_zeros_for_empty_prompt: false,
    }
}

type Tensors = BTreeMap<String, Tensor>;

/// The weights of each component, drawn by each layer's own initialisation.
fn components(config: &StableDiffusionConfig, seed: u64) -> Result<BTreeMap<&'static str, Tensors>> {
    let drawn = |build: &dyn Fn(&Params) -> Result<()>| {
        let params = Params::seeded(seed, DType::F32, &Device::Cpu).trainable();
        build(&params)?;
        Ok::<Tensors, Error>(
            params.variables().into_iter().map(|(name, var)| (name, var.as_tensor().detach())).collect(),
        )
    };
    Ok(BTreeMap::from([
        ("text_encoder", drawn(&|params| ClipText::new(params, &config.text_encoder).map(drop))?),
        ("unet", drawn(&|params| UNet2DConditionModel::new(params, &config.unet).map(drop))?),
        ("vae", drawn(&|params| AutoencoderKl::new(params, &config.vae).map(drop))?),
    ]))
}

/// The weights in memory.
pub(super) fn sources(config: &StableDiffusionConfig, seed: u64) -> Result<Sources> {
    let mut components = components(config, seed)?;
    Sources::folder(config, &mut |component| {
        Ok(Arc::new(MemorySource::new(components.remove(component).unwrap_or_default())) as Arc<dyn TensorSource>)
    })
}

/// Writes the built-in model as a folder that diffusers opens as a `StableDiffusionPipeline`.
///
/// # Errors
/// `folder` exists and is not empty; it cannot be written.
pub fn save_tiny(folder: &Path, seed: u64) -> Result<()> {
    if folder.exists() && std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.next().is_some() {
        return Err(Error::file(folder, "exists and is not empty").with_help("name a folder that does not exist yet"));
    }
    let config = config();
    for (component, tensors) in components(&config, seed)? {
        let place = folder.join(component);
        match component {
            // transformers names the class under `architectures`, which the config holds already.
            "text_encoder" => model_folder::write(&place, TRANSFORMERS_FILE, &config.text_encoder, None, &tensors)?,
            "unet" => {
                model_folder::write(&place, DIFFUSERS_FILE, &config.unet, Some("UNet2DConditionModel"), &tensors)?
            }
            _ => model_folder::write(&place, DIFFUSERS_FILE, &config.vae, Some("AutoencoderKL"), &tensors)?,
        }
    }
    ClipTokenizer::tiny().save(&folder.join("tokenizer"))?;
    model_folder::write_index(folder, &config.scheduler, Some(BUILT_IN))
}
