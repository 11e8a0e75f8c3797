//! BERT and its relatives against transformers (`tools/reference/encoder.py`).

use crate::fixture::{self, Fixture};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::{MemorySource, Params, TensorSource};
use conjure_core::{DType, Device, Tensor};
use conjure_models::encoder::{
    self, Encoder, EncoderConfig, EncoderOutput, MaskedLanguageHead, Pooling, masked_language_loss, normalised,
};
use std::collections::BTreeSet;
use std::sync::Arc;

const CASES: [&str; 4] = ["bert", "bert_masked", "roberta_masked", "xlm_roberta"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    config: EncoderConfig,
    fixture: Fixture,
}

impl Case {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("encoder/{name}.json"))).unwrap();
        Self {
            config: EncoderConfig::from_json(&text).unwrap(),
            fixture: Fixture::open(&format!("encoder/{name}.safetensors")),
        }
    }

    fn source(&self) -> Arc<dyn TensorSource> {
        Arc::new(encoder::renamed(self.fixture.source("weights")).unwrap())
    }

    fn params(&self) -> Params {
        Params::load(self.source(), DType::F32, &Device::Cpu)
    }

    fn model(&self) -> Encoder {
        Encoder::new(&self.params(), &self.config).unwrap()
    }

    fn input(&self, name: &str) -> Tensor {
        self.fixture.get(&format!("inputs.{name}")).unwrap().to_dtype(DType::U32).unwrap()
    }

    fn forward(&self, model: &Encoder) -> EncoderOutput {
        let [ids, types, mask] = ["ids", "types", "mask"].map(|name| self.input(name));
        model.forward(&ids, Some(&types), Some(&mask), &mut NoProbe).unwrap()
    }

    /// Zero where the text is padding, as the fixture has it.
    fn visible(&self, x: &Tensor) -> Tensor {
        x.broadcast_mul(&self.input("mask").to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap()).unwrap()
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
        let output = case.forward(&model);
        assert_eq!(output.hidden_states.len(), case.config.num_hidden_layers + 1);
        for (n, state) in output.hidden_states.iter().enumerate() {
            case.agrees(&case.visible(state), &format!("hidden_states.{n}"));
        }
        if let Some(pooled) = &output.pooler_output {
            case.agrees(pooled, "pooler_output");
            let mask = case.input("mask");
            let pool = |pooling: Pooling| pooling.pool(&output.last_hidden_state, &mask).unwrap();
            case.agrees(&pool(Pooling::ClsToken), "cls");
            case.agrees(&pool(Pooling::MaxTokens), "max");
            case.agrees(&pool(Pooling::MeanTokens), "mean");
            case.agrees(&normalised(&pool(Pooling::MeanTokens)).unwrap(), "normalised");
        } else {
            let head = MaskedLanguageHead::new(&case.params(), &case.config).unwrap();
            let logits = head.forward(&model, &output.last_hidden_state).unwrap();
            case.agrees(&case.visible(&logits), "logits");
            let loss = masked_language_loss(&logits, &case.input("labels"), &case.input("chosen")).unwrap();
            case.agrees(&loss, "loss");
        }
        assert_eq!(output.pooler_output.is_none(), name.ends_with("masked"));
    }
}

#[test]
fn padding_changes_nothing() {
    let case = Case::open("bert");
    let model = case.model();
    let batch = case.forward(&model).last_hidden_state;
    for (row, tokens) in [(0, 9), (1, 5), (2, 1)] {
        let part = |name: &str| case.input(name).narrow(0, row, 1).unwrap().narrow(1, 0, tokens).unwrap();
        let types = part("types");
        let alone = model.forward(&part("ids"), Some(&types), None, &mut NoProbe).unwrap().last_hidden_state;
        let together = batch.narrow(0, row, 1).unwrap().narrow(1, 0, tokens).unwrap();
        let error = fixture::relative_error(&alone, &together);
        assert!(error < 1e-6, "row {row}: {error}");
    }
}

#[test]
fn the_model_asks_for_exactly_the_keys_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::outline();
        Encoder::new(&params, &case.config).unwrap();
        if name.ends_with("masked") {
            MaskedLanguageHead::new(&params, &case.config).unwrap();
        }
        let source = case.source();
        let stored: BTreeSet<_> =
            source.infos().iter().map(|(key, i)| (key.clone(), i.shape.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored, "{name}");
    }
}

#[test]
fn a_model_without_pooler_and_old_names_are_read() {
    let case = Case::open("bert");
    let old = |(name, tensor): (String, Tensor)| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        (!name.starts_with("pooler.")).then(|| (format!("bert.{name}"), tensor))
    };
    let stored = case.fixture.below("weights").into_iter().filter_map(old);
    let positions = Tensor::zeros((1, 16), DType::I64, &Device::Cpu).unwrap();
    let more = [("bert.embeddings.position_ids".to_owned(), positions)];
    let source = encoder::renamed(Arc::new(MemorySource::new(stored.chain(more)))).unwrap();
    assert!(!source.infos().contains_key("embeddings.position_ids"));
    let model = Encoder::new(&Params::load(Arc::new(source), DType::F32, &Device::Cpu), &case.config).unwrap();
    let output = case.forward(&model);
    assert!(output.pooler_output.is_none());
    case.agrees(&case.visible(&output.last_hidden_state), "hidden_states.3");
}

#[test]
fn a_probe_sees_attention_and_states_and_changes_no_bit() {
    let case = Case::open("bert");
    let model = case.model();
    let mut recorder = Recorder::new(|_: &str, _| true);
    let [ids, types, mask] = ["ids", "types", "mask"].map(|name| case.input(name));
    let seen = model.forward(&ids, Some(&types), Some(&mask), &mut recorder).unwrap();
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(&seen.last_hidden_state), bits(&case.forward(&model).last_hidden_state));
    let of = |wanted: Quantity| recorder.records.iter().filter(move |(_, quantity, _)| *quantity == wanted);
    let mask = case.input("mask").to_dtype(DType::F32).unwrap().reshape((3, 1, 9, 1)).unwrap();
    for (n, (path, _, probabilities)) in of(Quantity::AttentionProbabilities).enumerate() {
        assert_eq!(path, &format!("encoder.layer.{n}.attention"));
        case.agrees(&probabilities.broadcast_mul(&mask).unwrap(), &format!("probabilities.{n}"));
    }
    let states: Vec<_> = of(Quantity::Activation).map(|(path, _, _)| path.as_str()).collect();
    assert_eq!(states, ["embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2"]);
    for (n, (_, _, state)) in of(Quantity::Activation).enumerate() {
        assert_eq!(bits(state), bits(&seen.hidden_states[n]));
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for name in ["bert", "roberta_masked"] {
        let case = Case::open(name);
        let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
        let model = Encoder::new(&params, &case.config).unwrap();
        let head = MaskedLanguageHead::new(&params, &case.config).unwrap();
        let output = case.forward(&model);
        let logits = head.forward(&model, &output.last_hidden_state).unwrap();
        let chosen = case.input("mask");
        let mut loss = masked_language_loss(&logits, &case.input("ids"), &chosen).unwrap();
        if let Some(pooled) = &output.pooler_output {
            loss = (loss + pooled.sqr().unwrap().mean_all().unwrap()).unwrap();
        }
        let gradients = loss.backward().unwrap();
        for (name, variable) in params.variables() {
            let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            // The same offset on every key of a head cancels in the softmax: its gradient is rounding error.
            let least = if name.ends_with("key.bias") { 0.0 } else { 1e-9 };
            assert!(size.is_finite() && size >= least, "{name}: {size}");
        }
    }
}

#[test]
fn bad_inputs_are_refused() {
    let case = Case::open("bert");
    let model = case.model();
    let ids = |row: Vec<u32>| Tensor::new(vec![row], &Device::Cpu).unwrap();
    let refused = |row: Vec<u32>, types: Option<Vec<u32>>, mask: Option<Vec<u32>>| {
        let (types, mask) = (types.map(ids), mask.map(ids));
        model.forward(&ids(row), types.as_ref(), mask.as_ref(), &mut NoProbe).unwrap_err().to_string()
    };
    assert_eq!(refused(vec![3; 17], None, None), "17 tokens are more than the 16 positions of the encoder");
    assert_eq!(refused(vec![3, 60], None, None), "token 60 is beyond the 60 tokens that the encoder knows");
    assert_eq!(refused(vec![], None, None), "the encoder got no token");
    assert_eq!(refused(vec![3, 4], Some(vec![0, 2]), None), "segment 2 is beyond the 2 that the encoder knows");
    assert_eq!(refused(vec![3, 4], None, Some(vec![1])), "the mask has shape [1, 1], the tokens [1, 2]");
    assert_eq!(refused(vec![3, 4], None, Some(vec![0, 0])), "the mask of text 0 marks no token");
    assert_eq!(refused(vec![3, 4], None, Some(vec![1, 7])), "a mask of padding holds 7, not only 0 and 1");
    let logits = Tensor::zeros((1, 2, 60), DType::F32, &Device::Cpu).unwrap();
    let error = masked_language_loss(&logits, &ids(vec![3, 4]), &ids(vec![0, 0])).unwrap_err().to_string();
    assert_eq!(error, "no token is chosen to be guessed");
}
