//! The picture encoder against transformers.

use crate::fixture::{self, Fixture};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::{Init, MemorySource, Params};
use conjure_core::{DType, Device, Tensor};
use conjure_models::clip_text::{self, ClipText, ClipTextConfig};
use conjure_models::clip_vision::{self, ClipVision, ClipVisionConfig};
use std::collections::BTreeSet;
use std::sync::Arc;

const CASES: [&str; 2] = ["quick_gelu", "projection"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    config: ClipVisionConfig,
    fixture: Fixture,
    weights: Vec<(String, Tensor)>,
    pixels: Tensor,
}

impl Case {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("clip_vision/{name}.json"))).unwrap();
        let fixture = Fixture::open(&format!("clip_vision/{name}.safetensors"));
        let weights = fixture
            .below("weights")
            .into_iter()
            .filter_map(|(key, tensor)| Some((clip_vision::canonical_key(&key)?, tensor)))
            .collect();
        let pixels = fixture.get("inputs.pixels").unwrap();
        Self { config: ClipVisionConfig::from_json(&text).unwrap(), fixture, weights, pixels }
    }

    fn model(&self) -> ClipVision {
        let source = Arc::new(MemorySource::new(self.weights.clone()));
        ClipVision::new(&Params::load(source, DType::F32, &Device::Cpu), &self.config).unwrap()
    }

    #[track_caller]
    fn agrees(&self, got: &Tensor, output: &str) {
        let error = fixture::relative_error(got, &self.fixture.get(&format!("outputs.{output}")).unwrap());
        assert!(error < TOLERANCE, "{output}: {error}");
    }
}

#[test]
fn outputs_equal_those_of_transformers() {
    for name in CASES {
        let case = Case::open(name);
        let output = case.model().forward(&case.pixels, &mut NoProbe).unwrap();
        assert_eq!(output.hidden_states.len(), case.config.num_hidden_layers + 1);
        for (n, state) in output.hidden_states.iter().enumerate() {
            case.agrees(state, &format!("hidden_states.{n}"));
        }
        match &output.image_embeds {
            Some(embeds) => case.agrees(embeds, "image_embeds"),
            None => case.agrees(&output.pooled_output, "pooled_output"),
        }
        assert_eq!(output.image_embeds.is_some(), name == "projection");
    }
}

#[test]
fn the_model_asks_for_exactly_the_keys_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::outline();
        ClipVision::new(&params, &case.config).unwrap();
        let stored: BTreeSet<_> = case.weights.iter().map(|(key, t)| (key.clone(), t.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored);
    }
}

#[test]
fn a_probe_sees_the_attention_and_changes_no_bit() {
    let case = Case::open("quick_gelu");
    let model = case.model();
    let mut recorder = Recorder::new(|_: &str, quantity| quantity == Quantity::AttentionProbabilities);
    let seen = model.forward(&case.pixels, &mut recorder).unwrap();
    let unseen = model.forward(&case.pixels, &mut NoProbe).unwrap();
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(&seen.pooled_output), bits(&unseen.pooled_output));
    let paths: Vec<_> = recorder.records.iter().map(|(path, _, _)| path.as_str()).collect();
    assert_eq!(paths, [0, 1, 2].map(|n| format!("vision_model.encoder.layers.{n}.self_attn")));
    case.agrees(&recorder.records[1].2, "probabilities.1");
}

/// transformers' `CLIPModel` is both towers and a scalar below one root; their configs lie inside its own.
struct BothTowers {
    fixture: Fixture,
    text: ClipTextConfig,
    vision: ClipVisionConfig,
}

impl BothTowers {
    fn open() -> Self {
        let text = std::fs::read_to_string(fixture::path("clip_vision/both_towers.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut text = ClipTextConfig::from_json(&config["text_config"].to_string()).unwrap();
        let mut vision = ClipVisionConfig::from_json(&config["vision_config"].to_string()).unwrap();
        text.architectures = vec!["CLIPTextModelWithProjection".to_owned()];
        vision.architectures = vec!["CLIPVisionModelWithProjection".to_owned()];
        Self { fixture: Fixture::open("clip_vision/both_towers.safetensors"), text, vision }
    }

    fn loss(&self, params: &Params) -> Tensor {
        let text = ClipText::new(params, &self.text).unwrap();
        let vision = ClipVision::new(params, &self.vision).unwrap();
        let logit_scale = params.get("logit_scale", (), Init::Constant(2.6592)).unwrap();
        let ids = self.fixture.get("inputs.ids").unwrap().to_dtype(DType::U32).unwrap();
        let text = text.forward(&ids, &mut NoProbe).unwrap().text_embeds.unwrap();
        let pixels = self.fixture.get("inputs.pixels").unwrap();
        let image = vision.forward(&pixels, &mut NoProbe).unwrap().image_embeds.unwrap();
        clip_text::contrastive_loss(&text, &image, &logit_scale).unwrap()
    }
}

#[test]
fn both_towers_together_are_the_clip_model_of_transformers() {
    let both = BothTowers::open();
    let params = Params::load(both.fixture.source("weights"), DType::F32, &Device::Cpu);
    let loss = both.loss(&params);
    let error = fixture::relative_error(&loss, &both.fixture.get("outputs.loss").unwrap());
    assert!(error < TOLERANCE, "{error}");
    let stored: BTreeSet<_> =
        both.fixture.below("weights").into_iter().map(|(key, t)| (key, t.dims().to_vec())).collect();
    assert_eq!(fixture::asked(&params.asked()), stored);
}

#[test]
fn every_parameter_of_both_towers_gets_a_gradient() {
    let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
    let gradients = BothTowers::open().loss(&params).backward().unwrap();
    for (name, variable) in params.variables() {
        let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        // The same offset on every key of a head cancels in the softmax: its gradient is rounding error.
        let least = if name.ends_with("k_proj.bias") { 0.0 } else { 1e-9 };
        assert!(size.is_finite() && size >= least, "{name}: {size}");
    }
}

#[test]
fn pictures_of_another_size_are_refused() {
    let case = Case::open("quick_gelu");
    let pixels = Tensor::zeros((1, 3, 12, 16), DType::F32, &Device::Cpu).unwrap();
    let error = case.model().forward(&pixels, &mut NoProbe).unwrap_err();
    assert_eq!(error.to_string(), "the picture encoder got 3 channels of 12x16, not 3 of 12x12");
}
