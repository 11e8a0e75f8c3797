//! The assembly: folders and single files, what fits together and what does not.

use crate::fixture;
use conjure_core::probe::NoProbe;
use conjure_core::weights::{self, Lora, MemorySource, TensorSource};
use conjure_core::{DType, Device, Error, Result, Tensor};
use conjure_models::autoencoder_kl::AutoencoderKlConfig;
use conjure_models::clip_text::ClipTextConfig;
use conjure_models::stable_diffusion::{Conditions, Family, Sources, StableDiffusion, StableDiffusionConfig};
use conjure_models::unet_2d_condition::{PerBlock, UNet2DConditionConfig};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// More than any tensor has rows; see `tools/reference/original_keys.py`.
const STEP: usize = 100_000;

struct Line {
    component: String,
    name: String,
    shape: Vec<usize>,
    original: String,
    original_shape: Vec<usize>,
    first_row: usize,
}

fn lines(name: &str) -> Vec<Line> {
    let mut text = String::new();
    let file = std::fs::File::open(fixture::path(&format!("original_keys/{name}.gz"))).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let shape = |s: &str| s.split(',').filter_map(|d| d.parse().ok()).collect::<Vec<usize>>();
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            Line {
                component: fields[0].to_owned(),
                name: fields[1].to_owned(),
                shape: shape(fields[2]),
                original: fields[3].to_owned(),
                original_shape: shape(fields[4]),
                first_row: fields[5].parse().unwrap(),
            }
        })
        .collect()
}

/// The full-size checkpoint without its memory: each tensor's elements are its number times [`STEP`] plus the row.
fn marked(lines: &[Line]) -> (Vec<String>, Arc<dyn TensorSource>) {
    let shapes: BTreeMap<_, _> = lines.iter().map(|l| (l.original.clone(), l.original_shape.clone())).collect();
    let names: Vec<String> = shapes.keys().cloned().collect();
    let tensors = shapes.into_iter().enumerate().map(|(i, (name, shape))| {
        let rows = shape.first().copied().unwrap_or(1);
        let column: Vec<f64> = (0..rows).map(|row| (i * STEP + row) as f64).collect();
        let mut column_shape = vec![1; shape.len()];
        if let Some(first) = column_shape.first_mut() {
            *first = rows;
        }
        let column = Tensor::from_vec(column, column_shape, &Device::Cpu).unwrap();
        (name, column.broadcast_as(shape).unwrap())
    });
    (names, Arc::new(MemorySource::new(tensors)))
}

/// The first element and the first of the second row, without copying the tensor.
fn corner(t: &Tensor) -> f64 {
    let mut t = t.clone();
    for axis in 0..t.rank() {
        t = t.narrow(axis, 0, 1).unwrap();
    }
    t.flatten_all().unwrap().to_vec1::<f64>().unwrap()[0]
}

const FILES: [&str; 4] = ["sd15", "sd15_inpainting", "sd21", "sdxl_base"];

#[test]
fn every_tensor_of_a_single_file_goes_where_diffusers_puts_it() {
    for file in FILES {
        let lines = lines(file);
        let (names, source) = marked(&lines);
        let (config, sources) = Sources::single_file(&source).unwrap();
        sources.check(&config).unwrap();
        let mut asked: Vec<(String, String)> = Vec::new();
        for (component, specs) in StableDiffusion::outline(&config).unwrap() {
            asked.extend(specs.into_iter().map(|s| (component.to_owned(), s.name)));
        }
        let wanted: Vec<_> = lines.iter().filter(|l| l.component != "unused").collect();
        assert_eq!(asked.len(), wanted.len(), "{file}");
        for line in wanted {
            let source = sources.get(&line.component).unwrap();
            let key = (line.component.clone(), line.name.clone());
            assert!(asked.contains(&key), "{file}: {key:?} was not asked for");
            assert_eq!(source.infos()[&line.name].shape.dims(), line.shape, "{file}: {key:?}");
            let value = corner(&source.load(&line.name, DType::F64, &Device::Cpu).unwrap()) as usize;
            assert_eq!(names[value / STEP], line.original, "{file}: {key:?}");
            assert_eq!(value % STEP, line.first_row, "{file}: {key:?}");
        }
    }
}

/// kohya's scripts name SDXL's U-Net by the original names and number its text encoders from 1; for 1.x and 2.x they take
/// diffusers' names. Every layer is found by both, and no two layers by one name.
#[test]
fn every_layer_of_a_full_size_model_is_found_in_lora_files() {
    for (file, second) in [("sd15", false), ("sd21", false), ("sdxl_base", true)] {
        let lines = lines(file);
        let (config, _) = Sources::single_file(&marked(&lines).1).unwrap();
        let targets = StableDiffusion::lora_targets(&config).unwrap();
        for original in [false, true] {
            let mut tensors = Vec::new();
            let mut expected = Vec::new();
            for line in lines.iter().filter(|l| l.shape.len() >= 2 && l.component != "vae") {
                let (prefix, name) = match line.component.as_str() {
                    "unet" if original => ("unet", line.original.strip_prefix("model.diffusion_model.").unwrap()),
                    "text_encoder" => (if second { "te1" } else { "te" }, line.name.as_str()),
                    "text_encoder_2" => ("te2", line.name.as_str()),
                    "unet" => ("unet", line.name.as_str()),
                    _ => continue,
                };
                let Some(layer) = name.strip_suffix(".weight") else { continue };
                let layer = format!("lora_{prefix}_{}", layer.replace('.', "_"));
                let factor = |shape: Vec<usize>| {
                    Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap().broadcast_as(shape).unwrap()
                };
                let mut down = line.shape.clone();
                down[0] = 1;
                tensors.push((format!("{layer}.lora_down.weight"), factor(down)));
                tensors.push((format!("{layer}.lora_up.weight"), factor(vec![line.shape[0], 1])));
                expected.push((line.component.clone(), line.name.clone()));
            }
            let lora = Lora::new(Arc::new(MemorySource::new(tensors)), &BTreeMap::new(), file, &targets).unwrap();
            let found: Vec<_> = lora.parameters().map(|(c, p)| (c.to_owned(), p.to_owned())).collect();
            expected.sort();
            assert!(found.len() > 200, "{file}: {}", found.len());
            assert_eq!(found, expected, "{file}");
        }
    }
}

#[test]
fn single_files_show_what_they_are() {
    let detect = |file: &str| Sources::single_file(&marked(&lines(file)).1).unwrap().0;

    let sd1 = detect("sd15");
    assert_eq!(sd1.family(), Family::StableDiffusion1);
    assert_eq!(sd1.unet, UNet2DConditionConfig::sd15());
    assert_eq!(sd1.text_encoder, ClipTextConfig::vit_l_14());
    assert_eq!(sd1.scheduler["prediction_type"], "epsilon");
    assert!(!sd1.is_inpainting());

    let inpainting = detect("sd15_inpainting");
    assert_eq!(inpainting.unet, UNet2DConditionConfig { in_channels: 9, ..UNet2DConditionConfig::sd15() });
    assert!(inpainting.is_inpainting());

    let sd2 = detect("sd21");
    assert_eq!(sd2.family(), Family::StableDiffusion2);
    assert_eq!(sd2.unet, UNet2DConditionConfig::sd21());
    assert_eq!(sd2.text_encoder, ClipTextConfig::open_clip_h_14()); // 23 of the 24 layers in the file
    assert_eq!(sd2.scheduler["prediction_type"], "v_prediction");

    let xl = detect("sdxl_base");
    assert_eq!(xl.family(), Family::StableDiffusionXl);
    assert_eq!(xl.unet, UNet2DConditionConfig::sdxl_base());
    assert_eq!(xl.text_encoder, ClipTextConfig::vit_l_14());
    assert_eq!(xl.text_encoder_2, Some(ClipTextConfig::open_clip_big_g_14()));
    assert!(xl.force_zeros_for_empty_prompt);

    for (config, vae) in [
        (sd1, AutoencoderKlConfig::stable_diffusion()),
        (sd2, AutoencoderKlConfig::stable_diffusion()),
        (xl, AutoencoderKlConfig::stable_diffusion_xl()),
    ] {
        assert_eq!(config.vae.block_out_channels, vae.block_out_channels);
        assert_eq!(config.vae.scaling_factor, vae.scaling_factor);
        assert_eq!(config.vae.layers_per_block, vae.layers_per_block);
    }
}

#[test]
fn a_text_encoder_whose_names_lost_a_level_is_found() {
    let mut lines = lines("sd15");
    for line in &mut lines {
        line.original =
            line.original.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.");
    }
    let (names, source) = marked(&lines);
    let (config, sources) = Sources::single_file(&source).unwrap();
    sources.check(&config).unwrap();
    let text = sources.get("text_encoder").unwrap();
    let value = corner(&text.load("text_model.final_layer_norm.bias", DType::F64, &Device::Cpu).unwrap());
    assert_eq!(names[value as usize / STEP], "cond_stage_model.transformer.final_layer_norm.bias");
}

#[test]
fn what_is_no_checkpoint_or_half_of_one_is_refused() {
    let source = |lines: Vec<Line>| marked(&lines).1;
    let refusal = |source: Arc<dyn TensorSource>| Sources::single_file(&source).err().unwrap();
    let one = |name: &str| {
        let zero = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        Arc::new(MemorySource::new([(name.to_owned(), zero)])) as Arc<dyn TensorSource>
    };
    assert!(refusal(one("lora_unet_down.lora_up.weight")).help().unwrap().contains("LoRA"));
    assert!(refusal(one("down_blocks.0.resnets.0.conv1.weight")).help().unwrap().contains("U-Net alone"));
    let without = |part: &str| source(lines("sd15").into_iter().filter(|l| !l.original.starts_with(part)).collect());
    assert!(refusal(without("first_stage_model.")).to_string().contains("no autoencoder"));
    assert!(refusal(without("cond_stage_model.")).to_string().contains("no text encoder"));

    // One tensor lost, one of another shape: both are named before anything is read.
    let mut broken = lines("sd15");
    broken.retain(|l| l.name != "up_blocks.2.resnets.1.conv2.bias");
    broken.iter_mut().find(|l| l.name == "mid_block.resnets.0.norm1.weight").unwrap().original_shape = vec![7];
    let (config, sources) = Sources::single_file(&source(broken)).unwrap();
    let error = sources.check(&config).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let message = error.to_string();
    assert!(message.starts_with("unet: the weights do not fit the model"), "{message}");
    assert!(message.contains("up_blocks.2.resnets.1.conv2.bias"), "{message}");
    assert!(message.contains("mid_block.resnets.0.norm1.weight: [7] in the file, [1280] in the model"), "{message}");
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../conjure/tests/fixtures/stable_diffusion")
}

/// The tiny folder's configs after `change(path, text)`.
fn read_changed(change: impl Fn(&str, String) -> Option<String>) -> Result<StableDiffusionConfig> {
    StableDiffusionConfig::from_folder(&mut |path| {
        let text = std::fs::read_to_string(folder().join(path)).map_err(|e| Error::io(path, e))?;
        Ok(change(path, text))
    })
}

#[test]
fn a_folder_loads_and_both_halves_of_guidance_share_a_batch() {
    let config = read_changed(|_, text| Some(text)).unwrap();
    let sources = Sources::folder(&config, &mut |component| weights::open(folder().join(component))).unwrap();
    let model = StableDiffusion::load(&config, &sources, DType::F32, &Device::Cpu).unwrap();
    let ids = |id: u32| Tensor::full(id, (1, 77), &Device::Cpu).unwrap();
    let positive = model.encode_prompt(&ids(5), None, 0, &mut NoProbe).unwrap();
    let negative = model.encode_prompt(&ids(6), None, 0, &mut NoProbe).unwrap();
    let wave: Vec<f32> = (0..4 * 8 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
    let latents = Tensor::from_vec(wave, (1, 4, 8, 8), &Device::Cpu).unwrap();
    let predict = |prompt| {
        let conditions = Conditions { prompt, sizes: None, guidance: None, inpainting: None };
        model.predict(&latents, 321.0, &conditions, &mut NoProbe).unwrap()
    };
    let both = predict(negative.cat(&positive).unwrap());
    assert_eq!(both.dims(), [2, 4, 8, 8]);
    for (i, prompt) in [negative, positive].into_iter().enumerate() {
        assert!(fixture::relative_error(&both.narrow(0, i, 1).unwrap(), &predict(prompt)) < 1e-5);
    }
    let difference = fixture::relative_error(&both.narrow(0, 0, 1).unwrap(), &both.narrow(0, 1, 1).unwrap());
    assert!(difference > 1e-3, "the prompt changes nothing");

    let picture = model.decode(&latents, false, &mut NoProbe).unwrap();
    let factor = config.vae.downscale();
    assert_eq!(picture.dims(), [1, 3, 8 * factor, 8 * factor]);
    let mean = model.encode(&picture, None, false, &mut NoProbe).unwrap();
    let zero = model.encode(&picture, Some(&latents.zeros_like().unwrap()), false, &mut NoProbe).unwrap();
    assert_eq!(mean.dims(), [1, 4, 8, 8]);
    assert!(fixture::relative_error(&zero, &mean) < 1e-6);
}

#[test]
fn components_that_do_not_fit_are_refused_with_both_configs_named() {
    let edit = |file: &'static str, key: &'static str, value: serde_json::Value| {
        let error = read_changed(|path, text| {
            if path != file {
                return Some(text);
            }
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json[key] = value.clone();
            Some(json.to_string())
        })
        .unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let message = edit("unet/config.json", "cross_attention_dim", 48.into());
    assert!(
        message.starts_with("unet/config.json: cross_attention_dim is 48 but text_encoder/config.json"),
        "{message}"
    );
    let message = edit("unet/config.json", "in_channels", 5.into());
    assert!(message.contains("in_channels is 5 but vae/config.json has latent_channels 4"), "{message}");
    let message = edit("unet/config.json", "block_out_channels", vec![32].into());
    assert!(message.contains("block_out_channels has 1 entries"), "{message}");
    let message = edit("model_index.json", "_class_name", "FluxPipeline".into());
    assert!(message.contains("FluxPipeline"), "{message}");

    for missing in ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"] {
        let error = read_changed(|path, text| (path != missing).then_some(text)).unwrap_err();
        assert_eq!(error.to_string(), format!("{missing}: not found"));
    }
}

/// SDXL in small.
fn tiny_xl() -> StableDiffusionConfig {
    let text = |hidden_size: usize, projection: bool| ClipTextConfig {
        architectures: vec![if projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }.to_owned()],
        vocab_size: 30,
        hidden_size,
        intermediate_size: 16,
        projection_dim: 6,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        max_position_embeddings: 8,
        ..ClipTextConfig::default()
    };
    let vae = r#"{"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "scaling_factor": 0.13025}"#;
    StableDiffusionConfig {
        text_encoder: text(8, false),
        text_encoder_2: Some(text(12, true)),
        unet: UNet2DConditionConfig {
            cross_attention_dim: PerBlock::One(20),
            addition_embed_type: Some("text_time".to_owned()),
            addition_time_embed_dim: Some(4),
            projection_class_embeddings_input_dim: Some(6 * 4 + 6),
            ..UNet2DConditionConfig::tiny()
        },
        vae: AutoencoderKlConfig::from_json(vae).unwrap(),
        scheduler: serde_json::json!({}),
        force_zeros_for_empty_prompt: true,
    }
}

#[test]
fn two_text_encoders_are_joined() {
    let config = tiny_xl();
    let model = StableDiffusion::seeded(&config, 7, DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[1u32, 2, 3, 29]], &Device::Cpu).unwrap();
    let prompt = model.encode_prompt(&ids, Some(&ids), 0, &mut NoProbe).unwrap();
    assert_eq!(prompt.hidden_states.dims(), [1, 4, 20]);
    assert_eq!(prompt.pooled.as_ref().unwrap().dims(), [1, 6]);
    assert!(model.encode_prompt(&ids, None, 0, &mut NoProbe).is_err());

    let latents = Tensor::ones((1, 4, 8, 8), DType::F32, &Device::Cpu).unwrap();
    let predict = |sizes: Option<[f32; 6]>| {
        let prompt = prompt.zeros_like().unwrap().cat(&prompt).unwrap();
        let conditions = Conditions { prompt, sizes, guidance: None, inpainting: None };
        model.predict(&latents, 10.0, &conditions, &mut NoProbe)
    };
    let small = predict(Some([64.0, 64.0, 0.0, 0.0, 64.0, 64.0])).unwrap();
    let cropped = predict(Some([64.0, 64.0, 32.0, 0.0, 64.0, 64.0])).unwrap();
    assert_eq!(small.dims(), [2, 4, 8, 8]);
    assert!(fixture::relative_error(&small, &cropped) > 1e-5, "the crop changes nothing");
    assert!(predict(None).unwrap_err().to_string().contains("sizes"));

    let mut other = config.clone();
    other.unet.projection_class_embeddings_input_dim = Some(31);
    assert!(other.check().unwrap_err().to_string().contains("make 30"));
    other.text_encoder_2 = None;
    other.unet.cross_attention_dim = PerBlock::One(8);
    assert!(other.check().unwrap_err().to_string().contains("no second text encoder"));
}
