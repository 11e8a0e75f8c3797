//! What a single-file checkpoint is, read from the names and shapes of its tensors.
//!
//! What shapes do not show follows the published models, as in diffusers: a U-Net whose transformers are projected by 1x1
//! convolutions has 8 heads everywhere (SD 1.x), by linear layers heads of 64 features (SD 2.x, SDXL); norms have 32 groups.
//! Whether an SD 2.x model predicts epsilon (2-base) or v (2.1) is not in the file either: it counts as v-prediction, unless
//! it is an inpainting model, of which only an epsilon-predicting one was published.

use super::StableDiffusionConfig;
use super::original_keys::{CLIP_L, CLIP_L_XL, OPEN_CLIP_G, OPEN_CLIP_H, UNET, VAE};
use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::clip_text::ClipTextConfig;
use crate::unet_2d_condition::{PerBlock, UNet2DConditionConfig};
use conjure_core::weights::TensorInfo;
use conjure_core::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

type Infos = BTreeMap<String, TensorInfo>;

/// Dimension `axis` of the tensor `name`.
fn dim(infos: &Infos, name: &str, axis: usize) -> Option<usize> {
    infos.get(name)?.shape.dims().get(axis).copied()
}

fn required(infos: &Infos, name: &str, axis: usize) -> Result<usize> {
    dim(infos, name, axis).ok_or_else(|| {
        Error::request(format!("the checkpoint lacks the tensor {name}, or it is misshapen"))
            .with_help("the file is incomplete, or holds only a part of a Stable Diffusion model")
    })
}

/// How many of `prefix.0.`, `prefix.1.`, ... there are, without a gap.
fn count(infos: &Infos, prefix: &str) -> usize {
    (0..)
        .take_while(|i| {
            let start = format!("{prefix}.{i}.");
            infos.range(start.clone()..).next().is_some_and(|(name, _)| name.starts_with(&start))
        })
        .count()
}

/// The configs of a single-file checkpoint.
pub(super) fn config(infos: &Infos) -> Result<StableDiffusionConfig> {
    let holds = |prefix: &str| infos.range(prefix.to_owned()..).next().is_some_and(|(k, _)| k.starts_with(prefix));
    if !holds(UNET) {
        let help = if holds("lora_unet_") || infos.keys().any(|k| k.contains("lora_")) {
            "this is a LoRA, a small change to a model, and not a model"
        } else if holds("down_blocks.") {
            "this is a U-Net alone; name the whole pipeline's folder, or a file that holds all components"
        } else if holds("decoder.") {
            "this is an autoencoder alone; name the whole pipeline's folder, or a file that holds all components"
        } else {
            "Stable Diffusion 1, 2 and XL can be loaded from single files"
        };
        return Err(
            Error::request(format!("not a Stable Diffusion checkpoint: no tensor begins with {UNET}")).with_help(help)
        );
    }
    if !holds(VAE) {
        return Err(Error::request(format!("the checkpoint has no autoencoder: no tensor begins with {VAE}"))
            .with_help("use a checkpoint that includes one"));
    }
    let xl = holds(CLIP_L_XL);
    let (text_encoder, text_encoder_2) = if xl {
        (clip_l(infos, CLIP_L_XL)?, Some(open_clip(infos, OPEN_CLIP_G, true)?))
    } else if holds(OPEN_CLIP_H) {
        (open_clip(infos, OPEN_CLIP_H, false)?, None)
    } else if holds(CLIP_L) {
        (clip_l(infos, CLIP_L)?, None)
    } else {
        return Err(Error::request("the checkpoint has no text encoder that is known here")
            .with_help("Stable Diffusion 1, 2 and XL base can be loaded from single files"));
    };
    let mut unet = unet(infos)?;
    let second_generation = !xl && holds(OPEN_CLIP_H);
    let v_prediction = second_generation && unet.in_channels == unet.out_channels;
    unet.upcast_attention = v_prediction;
    let sample_size = if xl {
        128
    } else if v_prediction {
        96
    } else {
        64
    };
    unet.sample_size = Some(sample_size.into());
    let config = StableDiffusionConfig {
        text_encoder,
        text_encoder_2,
        unet,
        vae: vae(infos, if xl { 0.13025 } else { 0.18215 })?,
        scheduler: scheduler(xl, v_prediction),
        force_zeros_for_empty_prompt: xl,
    };
    config.check()?;
    Ok(config)
}

/// The scheduler configs that the models were published with, in which they agree but for sampler and prediction.
fn scheduler(xl: bool, v_prediction: bool) -> Value {
    let class = if xl {
        "EulerDiscreteScheduler"
    } else if v_prediction {
        "DDIMScheduler"
    } else {
        "PNDMScheduler"
    };
    json!({
        "_class_name": class,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": false,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "prediction_type": if v_prediction { "v_prediction" } else { "epsilon" },
    })
}

fn unet(infos: &Infos) -> Result<UNet2DConditionConfig> {
    let key = |rest: &str| format!("{UNET}{rest}");
    let place = |i: usize, rest: &str| key(&format!("input_blocks.{i}.{rest}"));
    let inputs = count(infos, &key("input_blocks"));
    let last_place =
        inputs.checked_sub(1).filter(|n| *n > 0).ok_or_else(|| Error::request("the U-Net has no layers"))?;
    let is_downsampler = |i: usize| infos.contains_key(&place(i, "0.op.weight"));
    let levels = 1 + (1..inputs).filter(|i| is_downsampler(*i)).count();
    // Each resolution but the last has its residual blocks and a downsampler.
    let layers = (1..inputs).find(|i| is_downsampler(*i)).map_or(last_place, |i| i - 1);
    if inputs != levels * (layers + 1) || layers == 0 {
        return Err(Error::request(format!(
            "the U-Net's {inputs} input blocks do not divide into {levels} resolutions"
        ))
        .with_help("this is no U-Net of Stable Diffusion 1, 2 or XL"));
    }
    let mut channels = Vec::with_capacity(levels);
    let mut depth = Vec::with_capacity(levels);
    let (mut down, mut up) = (Vec::with_capacity(levels), Vec::with_capacity(levels));
    for level in 0..levels {
        let first = 1 + level * (layers + 1);
        channels.push(required(infos, &place(first, "0.out_layers.3.weight"), 0)?);
        let blocks = count(infos, &place(first, "1.transformer_blocks"));
        let attends = blocks > 0;
        depth.push(blocks);
        down.push(if attends { "CrossAttnDownBlock2D" } else { "DownBlock2D" }.to_owned());
        let first_up = key(&format!("output_blocks.{}.1.transformer_blocks", level * (layers + 1)));
        up.push(if count(infos, &first_up) > 0 { "CrossAttnUpBlock2D" } else { "UpBlock2D" }.to_owned());
    }
    // A resolution without transformers of its own says nothing of depth; the middle's depth is the last entry's.
    let middle = count(infos, &key("middle_block.1.transformer_blocks"));
    if let Some(last) = depth.last_mut() {
        *last = middle.max(1);
    }
    for d in &mut depth {
        *d = (*d).max(1);
    }
    let context = required(infos, &key("middle_block.1.transformer_blocks.0.attn2.to_k.weight"), 1)?;
    let proj_in = infos.get(&key("middle_block.1.proj_in.weight"));
    let linear = proj_in.is_some_and(|info| info.shape.rank() == 2);
    let heads = if linear { PerBlock::Many(channels.iter().map(|c| c / 64).collect()) } else { PerBlock::One(8) };
    let sizes_and_pooled = dim(infos, &key("label_emb.0.0.weight"), 1);
    let depth = match depth.iter().all(|d| *d == depth[0]) {
        true => PerBlock::One(depth[0]),
        false => PerBlock::Many(depth),
    };
    let config = UNet2DConditionConfig {
        in_channels: required(infos, &place(0, "0.weight"), 1)?,
        out_channels: required(infos, &key("out.2.weight"), 0)?,
        down_block_types: down,
        up_block_types: up,
        block_out_channels: channels,
        layers_per_block: PerBlock::One(layers),
        cross_attention_dim: PerBlock::One(context),
        transformer_layers_per_block: depth,
        attention_head_dim: heads,
        use_linear_projection: linear,
        addition_embed_type: sizes_and_pooled.map(|_| "text_time".to_owned()),
        addition_time_embed_dim: sizes_and_pooled.map(|_| 256),
        projection_class_embeddings_input_dim: sizes_and_pooled,
        time_cond_proj_dim: dim(infos, &key("time_embed.cond_proj.weight"), 1),
        ..UNet2DConditionConfig::default()
    };
    config.check()?;
    Ok(config)
}

fn vae(infos: &Infos, scaling_factor: f64) -> Result<AutoencoderKlConfig> {
    let key = |rest: &str| format!("{VAE}{rest}");
    let levels = count(infos, &key("encoder.down"));
    let mut channels = Vec::with_capacity(levels);
    for level in 0..levels {
        channels.push(required(infos, &key(&format!("encoder.down.{level}.block.0.conv1.weight")), 0)?);
    }
    let config = json!({
        "in_channels": required(infos, &key("encoder.conv_in.weight"), 1)?,
        "out_channels": required(infos, &key("decoder.conv_out.weight"), 0)?,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "block_out_channels": channels,
        "layers_per_block": count(infos, &key("encoder.down.0.block")),
        "latent_channels": required(infos, &key("decoder.conv_in.weight"), 1)?,
        "norm_num_groups": 32,
        "scaling_factor": scaling_factor,
    });
    AutoencoderKlConfig::from_json(&config.to_string())
}

/// Some merged checkpoints lost the level `text_model.` below the text encoder's prefix.
pub(super) fn clip_level<'a>(mut stored: impl Iterator<Item = &'a String>, prefix: &str) -> &'static str {
    let lost = format!("{prefix}embeddings.");
    if stored.any(|name| name.starts_with(&lost)) { "" } else { "text_model." }
}

fn clip_l(infos: &Infos, prefix: &str) -> Result<ClipTextConfig> {
    let level = clip_level(infos.keys(), prefix);
    let key = |rest: &str| format!("{prefix}{level}{rest}");
    let hidden_size = required(infos, &key("embeddings.token_embedding.weight"), 1)?;
    Ok(ClipTextConfig {
        vocab_size: required(infos, &key("embeddings.token_embedding.weight"), 0)?,
        max_position_embeddings: required(infos, &key("embeddings.position_embedding.weight"), 0)?,
        hidden_size,
        projection_dim: hidden_size,
        intermediate_size: required(infos, &key("encoder.layers.0.mlp.fc1.weight"), 0)?,
        num_hidden_layers: count(infos, &key("encoder.layers")),
        num_attention_heads: hidden_size / 64,
        ..ClipTextConfig::vit_l_14()
    })
}

/// SD 2.x was trained on the penultimate layer's output and diffusers leaves the last layer out; SDXL keeps it, because it
/// needs the pooled output as well.
fn open_clip(infos: &Infos, prefix: &str, keeps_last_layer: bool) -> Result<ClipTextConfig> {
    let key = |rest: &str| format!("{prefix}{rest}");
    let hidden_size = required(infos, &key("token_embedding.weight"), 1)?;
    let layers = count(infos, &key("transformer.resblocks"));
    let preset = if keeps_last_layer { ClipTextConfig::open_clip_big_g_14() } else { ClipTextConfig::open_clip_h_14() };
    let projection = dim(infos, &key("text_projection"), 1).unwrap_or(hidden_size);
    Ok(ClipTextConfig {
        vocab_size: required(infos, &key("token_embedding.weight"), 0)?,
        max_position_embeddings: required(infos, &key("positional_embedding"), 0)?,
        hidden_size,
        projection_dim: projection,
        intermediate_size: required(infos, &key("transformer.resblocks.0.mlp.c_fc.weight"), 0)?,
        // Some files leave the unused last layer out already.
        num_hidden_layers: if keeps_last_layer { layers } else { layers.min(preset.num_hidden_layers) },
        num_attention_heads: hidden_size / 64,
        ..preset
    })
}
