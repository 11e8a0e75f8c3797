//! Small checkpoints under their authors' key names, as `tools/reference/original_keys.py` wrote them: the same values and
//! the same predictions as under diffusers' names, where diffusers' own conversion puts them.

use crate::fixture;
use conjure_core::probe::NoProbe;
use conjure_core::weights::{self, MemorySource, TensorSource};
use conjure_core::{DType, Device, Tensor};
use conjure_models::autoencoder_kl::AutoencoderKlConfig;
use conjure_models::clip_text::ClipTextConfig;
use conjure_models::stable_diffusion::{Conditions, Sources, StableDiffusion, StableDiffusionConfig};
use conjure_models::unet_2d_condition::{PerBlock, UNet2DConditionConfig};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Opens a packed fixture as the file that it is, `name` without its `.gz`.
fn open(name: &str, folder: &Path) -> Arc<dyn TensorSource> {
    let packed = std::fs::File::open(fixture::path(&format!("original_keys/{name}.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    weights::open(path).unwrap()
}

fn text(preset: ClipTextConfig, hidden_size: usize, projection_dim: usize) -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: 40,
        hidden_size,
        intermediate_size: 96,
        projection_dim,
        num_hidden_layers: 2,
        num_attention_heads: hidden_size / 64,
        max_position_embeddings: 8,
        ..preset
    }
}

fn unet(levels: &[(&str, usize)], layers: usize, context: usize) -> UNet2DConditionConfig {
    let types = |direction: &str| -> Vec<String> {
        levels.iter().map(|(kind, _)| format!("{kind}{direction}Block2D")).collect()
    };
    let mut up = types("Up");
    up.reverse();
    UNet2DConditionConfig {
        down_block_types: types("Down"),
        up_block_types: up,
        block_out_channels: levels.iter().map(|(_, channels)| *channels).collect(),
        layers_per_block: PerBlock::One(layers),
        cross_attention_dim: PerBlock::One(context),
        ..UNet2DConditionConfig::sd15()
    }
}

/// What the file should be taken for: text encoders and U-Net as the fixtures were made.
fn expected(name: &str) -> (ClipTextConfig, Option<ClipTextConfig>, UNet2DConditionConfig) {
    const ATTENDS: &str = "CrossAttn";
    match name {
        "tiny_sd1" => {
            let unet = unet(&[(ATTENDS, 32), (ATTENDS, 32), ("", 64)], 1, 64);
            (text(ClipTextConfig::vit_l_14(), 64, 64), None, unet)
        }
        "tiny_sd2" => {
            let unet = UNet2DConditionConfig {
                attention_head_dim: PerBlock::Many(vec![1, 1]),
                use_linear_projection: true,
                upcast_attention: true,
                sample_size: Some(96.into()),
                ..unet(&[(ATTENDS, 64), ("", 64)], 2, 64)
            };
            (text(ClipTextConfig::open_clip_h_14(), 64, 48), None, unet)
        }
        _ => {
            let unet = UNet2DConditionConfig {
                attention_head_dim: PerBlock::Many(vec![1, 2]),
                transformer_layers_per_block: PerBlock::Many(vec![1, 2]),
                use_linear_projection: true,
                addition_embed_type: Some("text_time".to_owned()),
                addition_time_embed_dim: Some(256),
                projection_class_embeddings_input_dim: Some(6 * 256 + 48),
                sample_size: Some(128.into()),
                ..unet(&[("", 64), (ATTENDS, 128)], 1, 192)
            };
            let second = text(ClipTextConfig::open_clip_big_g_14(), 128, 48);
            (text(ClipTextConfig::vit_l_14(), 64, 64), Some(second), unet)
        }
    }
}

/// One component of the converted tensors, in f32.
fn component(converted: &Arc<dyn TensorSource>, component: &str) -> Arc<dyn TensorSource> {
    let prefix = format!("{component}/");
    let tensors = converted.infos().keys().filter_map(|name| {
        let tensor = converted.load(name, DType::F32, &Device::Cpu).unwrap();
        Some((name.strip_prefix(&prefix)?.to_owned(), tensor))
    });
    Arc::new(MemorySource::new(tensors))
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// What the model predicts for some prompt and latents.
fn prediction(config: &StableDiffusionConfig, sources: &Sources) -> Vec<f32> {
    let model = StableDiffusion::load(config, sources, DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[1u32, 7, 3, 39]], &Device::Cpu).unwrap();
    let second = config.text_encoder_2.as_ref().map(|_| &ids);
    let prompt = model.encode_prompt(&ids, second, 0, &mut NoProbe).unwrap();
    let sizes = second.map(|_| [64.0, 64.0, 0.0, 8.0, 64.0, 64.0]);
    let wave: Vec<f32> = (0..4 * 8 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
    let latents = Tensor::from_vec(wave, (1, 4, 8, 8), &Device::Cpu).unwrap();
    let conditions = Conditions { prompt, sizes, guidance: None, inpainting: None };
    let predicted = model.predict(&latents, 321.0, &conditions, &mut NoProbe).unwrap();
    let mut all = values(&predicted);
    all.extend(values(&model.decode(&predicted, false, &mut NoProbe).unwrap()));
    all
}

fn check(name: &str, ending: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = open(&format!("{name}.{ending}"), folder.path());
    let (config, sources) = Sources::single_file(&file).unwrap();
    let (text_encoder, text_encoder_2, unet) = expected(name);
    assert_eq!((&config.text_encoder, &config.text_encoder_2), (&text_encoder, &text_encoder_2));
    assert_eq!(config.unet, unet);
    assert_eq!(config.vae.block_out_channels, [32, 64]);

    // Every tensor has the values, bit for bit, that diffusers' conversion gives it.
    let converted = open(&format!("{name}.expected.safetensors"), folder.path());
    let mut compared = 0;
    for (part, wanted) in StableDiffusion::outline(&config).unwrap() {
        let (ours, theirs) = (sources.get(part).unwrap(), component(&converted, part));
        assert_eq!(wanted.len(), theirs.infos().len(), "{name}: {part}");
        for spec in wanted {
            let load = |source: &Arc<dyn TensorSource>| source.load(&spec.name, DType::F32, &Device::Cpu).unwrap();
            let (ours, theirs) = (load(&ours), load(&theirs));
            assert_eq!(ours.shape(), &spec.shape, "{name}: {part} {}", spec.name);
            assert_eq!(values(&ours), values(&theirs), "{name}: {part} {}", spec.name);
            compared += 1;
        }
    }
    assert_eq!(compared, converted.infos().len());

    // The model below diffusers' names, with the config stated rather than detected, predicts the same.
    let vae = r#"{"block_out_channels": [32, 64], "norm_num_groups": 32, "layers_per_block": 1, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "scaling_factor": SCALE}"#;
    let scale = if text_encoder_2.is_some() { "0.13025" } else { "0.18215" };
    let stated = StableDiffusionConfig {
        text_encoder,
        text_encoder_2,
        unet,
        vae: AutoencoderKlConfig::from_json(&vae.replace("SCALE", scale)).unwrap(),
        ..config.clone()
    };
    let reference = Sources::folder(&stated, &mut |part| Ok(component(&converted, part))).unwrap();
    let predicted = prediction(&config, &sources);
    assert!(predicted.iter().all(|v| v.is_finite()) && predicted.iter().any(|v| v.abs() > 1e-3));
    assert_eq!(predicted, prediction(&stated, &reference), "{name}");
}

#[test]
fn a_pickled_checkpoint_of_sd1_with_its_training_state() {
    check("tiny_sd1", "ckpt");
}

#[test]
fn sd2_with_fused_projections_of_open_clip() {
    check("tiny_sd2", "safetensors");
}

#[test]
fn sdxl_with_both_text_encoders() {
    check("tiny_sdxl", "safetensors");
}
