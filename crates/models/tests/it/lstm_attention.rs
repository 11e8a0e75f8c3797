//! LSTMs with attention against the equations in PyTorch (`tools/reference/lstm_attention.py`).

use crate::fixture::{self, Fixture};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::{MemorySource, Params};
use conjure_core::{DType, Device, Tensor, dropout, rng};
use conjure_models::encoder_decoder::label_smoothed_loss;
use conjure_models::lstm_attention::{Decoding, LstmAttention, LstmAttentionConfig};
use std::collections::BTreeMap;
use std::sync::Arc;

const TOLERANCE: f64 = 1e-5;

struct Case {
    fixture: Fixture,
    config: LstmAttentionConfig,
}

impl Case {
    fn open() -> Self {
        let text = std::fs::read_to_string(fixture::path("lstm_attention/lstm_attention.json")).unwrap();
        Self {
            fixture: Fixture::open("lstm_attention/lstm_attention.safetensors"),
            config: LstmAttentionConfig::from_json(&text).unwrap(),
        }
    }

    fn params(&self) -> Params {
        Params::load(self.fixture.source("weights"), DType::F32, &Device::Cpu)
    }

    fn model(&self) -> LstmAttention {
        LstmAttention::new(&self.params(), &self.config).unwrap()
    }

    fn input(&self, name: &str) -> Tensor {
        self.fixture.get(&format!("inputs.{name}")).unwrap().to_dtype(DType::U32).unwrap()
    }

    #[track_caller]
    fn agrees(&self, got: &Tensor, name: &str) {
        let error = fixture::relative_error(got, &self.fixture.get(name).unwrap());
        assert!(error < TOLERANCE, "{name}: {error}");
    }
}

fn row(x: &Tensor, row: usize) -> Vec<f32> {
    x.get(row).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn logits_loss_and_gradients_are_those_of_the_equations() {
    let case = Case::open();
    let params = case.params().trainable();
    let model = LstmAttention::new(&params, &case.config).unwrap();
    let (ids, mask, labels) = (case.input("ids"), case.input("mask"), case.input("labels"));
    let logits = model.forward(&ids, Some(&mask), &labels, &mut NoProbe).unwrap();
    case.agrees(&logits, "outputs.logits");
    let loss = label_smoothed_loss(&logits, &labels, None, 0.1).unwrap();
    case.agrees(&loss, "outputs.loss");
    let places = Tensor::new(&[3u32, 16], &Device::Cpu).unwrap();
    let some = model.forward_at(&ids, Some(&mask), &labels, &places, &mut NoProbe).unwrap();
    for (n, [row, time]) in [[0, 3], [2, 4]].into_iter().enumerate() {
        let whole = logits.get(row).unwrap().get(time).unwrap();
        assert!(fixture::relative_error(&some.get(n).unwrap(), &whole) < TOLERANCE);
    }
    let gradients = loss.backward().unwrap();
    let variables = params.variables();
    assert_eq!(variables.len(), case.fixture.below("weights").len());
    for (name, variable) in variables {
        let gradient = gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
        case.agrees(gradient, &format!("gradients.{name}"));
    }
}

#[test]
fn only_training_drops_values() {
    let case = Case::open();
    let model = case.model();
    let logits = || {
        let x = model.forward(&case.input("ids"), None, &case.input("labels"), &mut NoProbe).unwrap();
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let dropped = |key| dropout::with(0.2, rng::keyed(1, key), logits);
    let whole = logits();
    assert_ne!(dropped("a"), whole);
    assert_eq!(dropped("a"), dropped("a"));
    assert_eq!(logits(), whole);
}

#[test]
fn one_table_on_both_sides_is_scaled_on_both() {
    let case = Case::open();
    let tied = LstmAttentionConfig { embedding_size: 12, tie_word_embeddings: true, ..case.config.clone() };
    let params = Params::seeded(5, DType::F32, &Device::Cpu).trainable();
    let model = LstmAttention::new(&params, &tied).unwrap();
    let mut weights: BTreeMap<String, Tensor> =
        params.variables().into_iter().map(|(name, variable)| (name, variable.as_detached_tensor())).collect();
    weights.insert("out.weight".into(), (&weights["embed.weight"] * 12f64.sqrt()).unwrap());
    let apart = LstmAttentionConfig { tie_word_embeddings: false, ..tied };
    let params = Params::load(Arc::new(MemorySource::new(weights)), DType::F32, &Device::Cpu);
    let other = LstmAttention::new(&params, &apart).unwrap();
    let (ids, mask, labels) = (case.input("ids"), case.input("mask"), case.input("labels"));
    let logits = |model: &LstmAttention| model.forward(&ids, Some(&mask), &labels, &mut NoProbe).unwrap();
    assert!(fixture::relative_error(&logits(&model), &logits(&other)) < TOLERANCE);
}

#[test]
fn token_by_token_is_the_same_and_rows_can_be_chosen() {
    let case = Case::open();
    let model = case.model();
    let labels = case.input("labels");
    let memory = model.encode(&case.input("ids"), Some(&case.input("mask")), &mut NoProbe).unwrap();
    let whole = case.fixture.get("outputs.logits").unwrap();
    let mut decoding = Decoding::new(&model, memory).unwrap();
    assert!(decoding.is_empty());
    let mut read = vec![case.config.decoder_start_token_id; 3];
    for time in 0..6 {
        let logits = decoding.next_rows(&read).unwrap();
        for (n, logits) in logits.iter().enumerate() {
            let want = row(&whole.narrow(1, time, 1).unwrap(), n);
            assert!(logits.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "row {n} at {time}");
        }
        read = labels.narrow(1, time, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        if time == 2 {
            // The same in another order, and back.
            decoding.select(&[2, 0, 1]).unwrap();
            decoding.select(&[1, 2, 0]).unwrap();
        }
    }
    assert_eq!(decoding.len(), 6);
    assert!(decoding.select(&[3]).is_err());
}

#[test]
fn a_probe_sees_where_the_decoder_looks_and_its_gates() {
    let case = Case::open();
    let model = case.model();
    let mut probe = Recorder::new(|path, quantity| {
        (path == "attention" && quantity == Quantity::AttentionProbabilities)
            || (path == "decoder.l1" && quantity == Quantity::Gate)
    });
    let (ids, mask) = (case.input("ids"), case.input("mask"));
    let seen = model.forward(&ids, Some(&mask), &case.input("labels"), &mut probe).unwrap();
    let plain = model.forward(&ids, Some(&mask), &case.input("labels"), &mut NoProbe).unwrap();
    let bits = |x: &Tensor| -> Vec<u32> { (0..3).flat_map(|n| row(x, n)).map(f32::to_bits).collect() };
    assert_eq!(bits(&seen), bits(&plain));
    assert_eq!(probe.records.len(), 12, "two of each of six steps");
    let (path, _, last) = &probe.records[11];
    assert_eq!((path.as_str(), last.dims()), ("attention", &[3, 1, 1, 8][..]));
    case.agrees(&last.squeeze(1).unwrap().squeeze(1).unwrap(), "outputs.last_probabilities");
    assert_eq!(probe.records[10].2.dims(), [3, 4, 12]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = Case::open().model();
    let ids = |n: usize, id: u32| Tensor::full(id, (1, n), &Device::Cpu).unwrap();
    let refusal = |ids: &Tensor| model.encode(ids, None, &mut NoProbe).unwrap_err().to_string();
    assert_eq!(refusal(&ids(33, 1)), "33 tokens of the source are more than the 32 that the model takes");
    assert_eq!(refusal(&ids(3, 40)), "token 40 of the source is beyond the 40 tokens that the model knows");
    let memory = model.encode(&ids(3, 1), None, &mut NoProbe).unwrap();
    let two = Tensor::zeros((2, 1), DType::U32, &Device::Cpu).unwrap();
    assert_eq!(model.decode(&two, &memory, &mut NoProbe).unwrap_err().to_string(), "2 targets do not fit 1 sources");
}
