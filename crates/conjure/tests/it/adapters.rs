//! LoRAs and learned tokens against diffusers: what `tools/reference/adapters.py` computed with the same files.

#![allow(clippy::print_stdout, reason = "the measured figures, seen with --nocapture")]

use conjure::generate::image::{Adapters, Control, ImageRequest, LoraFile, Pipeline};
use conjure::tokens::{ClipTokenizer, LearnedToken};
use conjure_core::probe::NoProbe;
use conjure_core::weights::{self, Lora, LoraLayout, TensorSource};
use conjure_core::{DType, Device, Tensor};
use conjure_models::stable_diffusion::{Conditions, Prompt, Sources, StableDiffusion, StableDiffusionConfig};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest difference allowed, relative to the largest value of the reference.
const TOLERANCE: f64 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

struct Reference {
    cases: Value,
    expected: Arc<dyn TensorSource>,
}

impl Reference {
    fn load() -> Self {
        let text = std::fs::read_to_string(fixture("adapters/cases.json")).unwrap();
        let expected = weights::open(fixture("adapters/expected.safetensors")).unwrap();
        Self { cases: serde_json::from_str(&text).unwrap(), expected }
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.expected.load(name, DType::F32, &Device::Cpu).unwrap()
    }
}

fn model() -> (StableDiffusionConfig, Sources) {
    let folder = fixture("stable_diffusion");
    let config = StableDiffusionConfig::from_folder(&mut |name| Ok(std::fs::read_to_string(folder.join(name)).ok()));
    let config = config.unwrap();
    let sources = Sources::folder(&config, &mut |component| weights::open(folder.join(component))).unwrap();
    (config, sources)
}

fn distance(got: &Tensor, expected: &Tensor) -> f64 {
    let max = |x: Tensor| f64::from(x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
    max((got - expected).unwrap()) / max(expected.clone())
}

/// Hidden states of the reference's prompt, and the U-Net's prediction for it.
fn evaluate(reference: &Reference, loras: &[(Arc<Lora>, f64)]) -> (Tensor, Tensor) {
    let (config, sources) = model();
    let model = StableDiffusion::load(&config, &sources.with_loras(loras), DType::F32, &Device::Cpu).unwrap();
    let ids = reference.tensor("ids").to_dtype(DType::U32).unwrap();
    let prompt = model.encode_prompt(&ids, None, 0, &mut NoProbe).unwrap();
    let conditions = Conditions { prompt: prompt.clone(), sizes: None, guidance: None, inpainting: None };
    let timestep = reference.cases["timestep"].as_f64().unwrap();
    let prediction = model.predict(&reference.tensor("latents"), timestep, &conditions, &mut NoProbe).unwrap();
    let Prompt { hidden_states, .. } = prompt;
    (hidden_states, prediction)
}

fn open(name: &str) -> Arc<Lora> {
    let targets = StableDiffusion::lora_targets(&model().0).unwrap();
    Arc::new(Lora::open(fixture("adapters").join(format!("{name}.safetensors")), &targets).unwrap())
}

#[test]
fn merged_loras_compute_what_diffusers_computes() {
    let reference = Reference::load();
    let cases = reference.cases["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 5);
    for (case, weights) in cases {
        let loras: Vec<_> =
            weights.as_object().unwrap().iter().map(|(name, w)| (open(name), w.as_f64().unwrap())).collect();
        let (hidden, prediction) = evaluate(&reference, &loras);
        let hidden = distance(&hidden, &reference.tensor(&format!("{case}.hidden")));
        let off = distance(&prediction, &reference.tensor(&format!("{case}.prediction")));
        let moved = distance(&prediction, &reference.tensor("plain.prediction"));
        println!("{case:12} hidden {hidden:.1e} prediction {off:.1e}, moved by {moved:.2}");
        assert!(hidden < TOLERANCE && off < TOLERANCE, "{case}: {hidden:e} {off:e}");
        // The bar is one that the unchanged model does not reach.
        assert!(moved > 100.0 * TOLERANCE, "{case}: {moved:e}");
    }
}

/// A file that was read and written in either layout has the same effect.
#[test]
fn saved_loras_compute_the_same() {
    let reference = Reference::load();
    let targets = StableDiffusion::lora_targets(&model().0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["diffusers", "kohya", "processors"] {
        for layout in LoraLayout::ALL {
            let path = folder.path().join(format!("{name}-{}.safetensors", layout.name()));
            open(name).save(&path, layout, DType::F32, &BTreeMap::new()).unwrap();
            let again = Arc::new(Lora::open(&path, &targets).unwrap());
            let (_, prediction) = evaluate(&reference, &[(again, 1.0)]);
            let off = distance(&prediction, &reference.tensor(&format!("{name}.prediction")));
            assert!(off < TOLERANCE, "{name} as {}: {off:e}", layout.name());
        }
    }
}

#[test]
fn learned_tokens_are_read_and_used_as_by_diffusers() {
    let reference = Reference::load();
    let (mut config, sources) = model();
    let mut tokenizer = ClipTokenizer::load(&fixture("stable_diffusion/tokenizer")).unwrap();
    let mut rows = Vec::new();
    for file in ["one_vector.safetensors", "spiky.pt"] {
        for learned in LearnedToken::read(&fixture("adapters").join(file), &[16]).unwrap() {
            tokenizer =
                tokenizer.with_learned(&learned.token, config.text_encoder.vocab_size as u32, learned.len()).unwrap();
            config.text_encoder.vocab_size += learned.len();
            rows.push(learned.vectors[0].clone());
        }
    }
    let ids = tokenizer.encode_window(reference.cases["prompt"].as_str().unwrap()).unwrap();
    let expected = reference.tensor("embedding.ids").flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(ids.iter().map(|id| *id as f32).collect::<Vec<_>>(), expected);
    let sources = sources.with_token_rows("text_encoder", Tensor::cat(&rows, 0).unwrap()).unwrap();
    let model = StableDiffusion::load(&config, &sources, DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let hidden = model.encode_prompt(&ids, None, 0, &mut NoProbe).unwrap().hidden_states;
    let off = distance(&hidden, &reference.tensor("embedding.hidden"));
    println!("hidden {off:.1e}");
    assert!(off < TOLERANCE, "{off:e}");
}

#[test]
fn both_formats_hold_the_same_vectors() {
    let read = |file: &str| {
        let tokens = LearnedToken::read(&fixture("adapters").join(file), &[16]).unwrap();
        assert_eq!(tokens.len(), 1);
        (tokens[0].token.clone(), tokens[0].vectors[0].to_vec2::<f32>().unwrap())
    };
    assert_eq!(read("spiky.pt"), read("spiky.safetensors"));
    assert_eq!(read("spiky.pt").1.len(), 3);
    assert_eq!(read("one_vector.bin"), read("one_vector.safetensors"));
    assert_eq!(read("one_vector.bin").0, "<cat-toy>");
}

/// A picture made with adapters carries them, and is made again by what it carries.
#[test]
fn a_recipe_brings_its_adapters_back() {
    let folder = fixture("stable_diffusion");
    let adapters = Adapters {
        loras: vec![
            LoraFile { path: fixture("adapters/kohya.safetensors"), weight: 0.5 },
            LoraFile { path: fixture("adapters/diffusers.safetensors"), weight: -0.25 },
        ],
        embeddings: vec![fixture("adapters/spiky.pt")],
    };
    let request = ImageRequest { prompt: "a spiky heart".into(), seed: Some(3), steps: 2, ..ImageRequest::default() };
    let make = |pipeline: &Pipeline| pipeline.generate(&request, &mut |_| Control::Continue).unwrap().outputs.remove(0);
    let plain = make(&Pipeline::open(&folder, None).unwrap());
    let changed = make(&Pipeline::open(&folder, None).unwrap().with_adapters(&adapters).unwrap());
    assert!(plain.picture.rgb != changed.picture.rgb);
    let recorded = Adapters::from_recipe(&changed.recipe).unwrap();
    assert_eq!(recorded, adapters);
    let again = make(&Pipeline::open(&folder, None).unwrap().with_adapters(&recorded).unwrap());
    assert!(again.picture.rgb == changed.picture.rgb);
}

#[test]
fn adapters_for_another_model_are_refused() {
    let refused = |adapters: Adapters| {
        let error = Pipeline::tiny(0).unwrap().with_adapters(&adapters).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        format!("{error}; {}", error.help().unwrap())
    };
    let lora = |name: &str| LoraFile { path: fixture("adapters").join(name), weight: 1.0 };
    let misfit = refused(Adapters { loras: vec![lora("kohya.safetensors")], embeddings: vec![] });
    assert!(misfit.contains("kohya.safetensors: "), "{misfit}");
    assert!(misfit.ends_with("it seems to be made for sd_v1"), "{misfit}");
    let wide = refused(Adapters { loras: vec![], embeddings: vec![fixture("adapters/spiky.pt")] });
    assert!(wide.contains("* has vectors of 16 features, the text encoder's have 32"), "{wide}");
    let none = refused(Adapters { loras: vec![lora("spiky.safetensors")], embeddings: vec![] });
    assert!(none.contains("is not a LoRA: it holds emb_params"), "{none}");
}
