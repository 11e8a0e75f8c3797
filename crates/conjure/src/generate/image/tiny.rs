//! The smallest Stable Diffusion: the real architecture at toy size, with random weights. It runs in a second, and is what
//! the program does without a model.

use super::open::BUILT_IN;
use crate::image_file::write::write_atomically;
use crate::tokens::ClipTokenizer;
use conjure_core::weights::{self, MemorySource, Params, TensorSource};
use conjure_core::{DType, Device, Error, Result, Tensor};
use conjure_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use conjure_models::clip_text::{ClipText, ClipTextConfig};
use conjure_models::stable_diffusion::{Sources, StableDiffusionConfig};
use conjure_models::unet_2d_condition::{UNet2DConditionConfig, UNet2DConditionModel};
use serde_json::{Value, json};
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
        // transformers names the class under `architectures`, which the config holds already.
        let (mut entries, class, file) = match component {
            "text_encoder" => (json!(config.text_encoder), None, "model.safetensors"),
            "unet" => (json!(config.unet), Some("UNet2DConditionModel"), "diffusion_pytorch_model.safetensors"),
            _ => (json!(config.vae), Some("AutoencoderKL"), "diffusion_pytorch_model.safetensors"),
        };
        if let Some(class) = class {
            entries["_class_name"] = json!(class);
        }
        let place = folder.join(component);
        std::fs::create_dir_all(&place).map_err(|e| Error::io(&place, e))?;
        write_json(&place.join("config.json"), &entries)?;
        weights::save(place.join(file), &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
    }
    ClipTokenizer::tiny().save(&folder.join("tokenizer"))?;
    let scheduler = folder.join("scheduler");
    std::fs::create_dir_all(&scheduler).map_err(|e| Error::io(&scheduler, e))?;
    write_json(&scheduler.join("scheduler_config.json"), &config.scheduler)?;
    write_json(
        &folder.join("model_index.json"),
        &json!({
            "_class_name": "StableDiffusionPipeline",
            "_name_or_path": BUILT_IN,
            "feature_extractor": [null, null],
            "image_encoder": [null, null],
            "requires_safety_checker": false,
            "safety_checker": [null, null],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }),
    )
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))?;
    write_atomically(path, |file| writeln!(file, "{text}"))
}
