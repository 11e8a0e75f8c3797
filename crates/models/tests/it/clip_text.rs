//! The text encoder against transformers.

use crate::fixture::{self, Fixture};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::{MemorySource, Params};
use conjure_core::{DType, Device, Tensor};
use conjure_models::clip_text::{self, ClipText, ClipTextConfig};
use std::collections::BTreeSet;
use std::sync::Arc;

const CASES: [&str; 3] = ["quick_gelu", "legacy_eos", "projection"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    config: ClipTextConfig,
    fixture: Fixture,
    weights: Vec<(String, Tensor)>,
    ids: Tensor,
}

impl Case {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("clip_text/{name}.json"))).unwrap();
        let fixture = Fixture::open(&format!("clip_text/{name}.safetensors"));
        let weights = fixture
            .below("weights")
            .into_iter()
            .filter_map(|(key, tensor)| Some((clip_text::canonical_key(&key)?, tensor)))
            .collect();
        let ids = fixture.get("inputs.ids").unwrap().to_dtype(DType::U32).unwrap();
        Self { config: ClipTextConfig::from_json(&text).unwrap(), fixture, weights, ids }
    }

    fn model(&self) -> ClipText {
        let source = Arc::new(MemorySource::new(self.weights.clone()));
        ClipText::new(&Params::load(source, DType::F32, &Device::Cpu), &self.config).unwrap()
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
        let model = case.model();
        let output = model.forward(&case.ids, &mut NoProbe).unwrap();
        assert_eq!(output.hidden_states.len(), case.config.num_hidden_layers + 1);
        for (n, state) in output.hidden_states.iter().enumerate() {
            case.agrees(state, &format!("hidden_states.{n}"));
        }
        case.agrees(&output.last_hidden_state, "last_hidden_state");
        match &output.text_embeds {
            Some(embeds) => case.agrees(embeds, "text_embeds"),
            None => case.agrees(&output.pooled_output, "pooled_output"),
        }
        assert_eq!(output.text_embeds.is_some(), name == "projection");
        // clip_skip 1 of Stable Diffusion, and SDXL's penultimate layer.
        case.agrees(&model.features(&output, 1, true).unwrap(), "penultimate_normed");
        case.agrees(&model.features(&output, 1, false).unwrap(), "penultimate");
        case.agrees(&model.features(&output, 0, true).unwrap(), "last_hidden_state");
    }
}

#[test]
fn the_model_asks_for_exactly_the_keys_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::outline();
        ClipText::new(&params, &case.config).unwrap();
        let stored: BTreeSet<_> = case.weights.iter().map(|(key, t)| (key.clone(), t.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored);
    }
}

#[test]
fn a_probe_sees_the_attention_and_changes_no_bit() {
    let case = Case::open("quick_gelu");
    let model = case.model();
    let mut recorder = Recorder::new(|_: &str, quantity| quantity == Quantity::AttentionProbabilities);
    let seen = model.forward(&case.ids, &mut recorder).unwrap();
    let unseen = model.forward(&case.ids, &mut NoProbe).unwrap();
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(&seen.last_hidden_state), bits(&unseen.last_hidden_state));
    let paths: Vec<_> = recorder.records.iter().map(|(path, _, _)| path.as_str()).collect();
    assert_eq!(paths, [0, 1, 2].map(|n| format!("text_model.encoder.layers.{n}.self_attn")));
    case.agrees(&recorder.records[1].2, "probabilities.1");
}

#[test]
fn the_loss_equals_that_of_transformers() {
    let case = Case::open("projection");
    let text = case.model().forward(&case.ids, &mut NoProbe).unwrap().text_embeds.unwrap();
    let input = |name: &str| case.fixture.get(&format!("inputs.{name}")).unwrap();
    let loss = clip_text::contrastive_loss(&text, &input("image_embeds"), &input("logit_scale")).unwrap();
    case.agrees(&loss, "loss");
}

#[test]
fn every_parameter_gets_a_gradient() {
    let case = Case::open("projection");
    let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
    let model = ClipText::new(&params, &case.config).unwrap();
    let text = model.forward(&case.ids, &mut NoProbe).unwrap().text_embeds.unwrap();
    let input = |name: &str| case.fixture.get(&format!("inputs.{name}")).unwrap();
    let loss = clip_text::contrastive_loss(&text, &input("image_embeds"), &input("logit_scale")).unwrap();
    let gradients = loss.backward().unwrap();
    for (name, variable) in params.variables() {
        let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        // The same offset on every key of a head cancels in the softmax: its gradient is rounding error.
        let least = if name.ends_with("k_proj.bias") { 0.0 } else { 1e-9 };
        assert!(size.is_finite() && size >= least, "{name}: {size}");
    }
}

#[test]
fn bad_tokens_are_refused() {
    let case = Case::open("quick_gelu");
    let model = case.model();
    let refused = |ids: Tensor| model.forward(&ids, &mut NoProbe).unwrap_err().to_string();
    let ids = |row: Vec<u32>| Tensor::new(vec![row], &Device::Cpu).unwrap();
    assert_eq!(refused(ids(vec![3; 12])), "12 tokens are more than the 11 positions of the text encoder");
    assert_eq!(refused(ids(vec![3, 60])), "token 60 is beyond the 60 tokens that the text encoder knows");
    assert_eq!(refused(Tensor::zeros((1, 0), DType::U32, &Device::Cpu).unwrap()), "the text encoder got no token");
    let output = model.forward(&case.ids, &mut NoProbe).unwrap();
    let error = model.features(&output, 4, true).unwrap_err();
    assert_eq!(error.to_string(), "cannot skip 4 layers of a text encoder with 3");
}
