//! Marian and T5 against transformers (`tools/reference/encoder_decoder.py`).

use crate::fixture::{self, Fixture};
use crate::training;
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::{MemorySource, Params};
use conjure_core::{DType, Device, Tensor, dropout, rng};
use conjure_models::encoder_decoder::{
    Decoding, EncoderDecoder, EncoderDecoderConfig, MarianConfig, Memory, T5Config, label_smoothed_loss,
};
use std::collections::BTreeSet;
use std::sync::Arc;

const CASES: [&str; 4] = ["marian", "marian_apart", "t5", "t5_v1_1"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    config: EncoderDecoderConfig,
    fixture: Fixture,
}

impl Case {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("encoder_decoder/{name}.json"))).unwrap();
        Self {
            config: EncoderDecoderConfig::from_json(&text).unwrap(),
            fixture: Fixture::open(&format!("encoder_decoder/{name}.safetensors")),
        }
    }

    fn model(&self) -> EncoderDecoder {
        let source = Arc::new(MemorySource::new(self.fixture.below("weights")));
        EncoderDecoder::new(&Params::load(source, DType::F32, &Device::Cpu), &self.config).unwrap()
    }

    fn input(&self, name: &str) -> Tensor {
        self.fixture.get(&format!("inputs.{name}")).unwrap().to_dtype(DType::U32).unwrap()
    }

    fn encode(&self, model: &EncoderDecoder) -> Memory {
        model.encode(&self.input("ids"), Some(&self.input("mask")), &mut NoProbe).unwrap()
    }

    /// What the decoder reads to guess the labels.
    fn target(&self, model: &EncoderDecoder) -> Tensor {
        model.shifted_right(&self.input("labels")).unwrap()
    }

    /// Zero where the source is padding, as the fixture has it.
    fn visible(&self, x: &Tensor) -> Tensor {
        let shape: Vec<usize> = match x.rank() {
            3 => vec![3, 17, 1],
            _ => vec![3, 1, 17, 1],
        };
        x.broadcast_mul(&self.input("mask").to_dtype(DType::F32).unwrap().reshape(shape).unwrap()).unwrap()
    }

    #[track_caller]
    fn agrees(&self, got: &Tensor, output: &str) {
        let error = fixture::relative_error(got, &self.fixture.get(&format!("outputs.{output}")).unwrap());
        assert!(error < TOLERANCE, "{output}: {error}");
    }
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn logits_and_losses_equal_those_of_transformers() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        case.agrees(&case.visible(&case.encode(&model).states), "memory");
        let (labels, counted) = (case.input("labels"), case.input("counted"));
        let logits = model.forward(&case.input("ids"), Some(&case.input("mask")), &labels, &mut NoProbe).unwrap();
        case.agrees(&logits, "logits");
        case.agrees(&label_smoothed_loss(&logits, &labels, Some(&counted), 0.0).unwrap(), "loss");
        case.agrees(&label_smoothed_loss(&logits, &labels, Some(&counted), 0.1).unwrap(), "smoothed_loss");
    }
}

#[test]
fn only_training_drops_values() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        let logits = || model.forward(&case.input("ids"), None, &case.input("labels"), &mut NoProbe).unwrap();
        let dropped = |key| bits(&dropout::with(0.2, rng::keyed(1, key), logits));
        let whole = bits(&logits());
        assert_ne!(dropped("a"), whole, "{name}");
        assert_eq!(dropped("a"), dropped("a"));
        assert_ne!(dropped("a"), dropped("b"));
        assert_eq!(bits(&logits()), whole);
    }
}

#[test]
fn decoding_with_a_cache_equals_that_of_transformers() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        let (memory, target) = (case.encode(&model), case.target(&model));
        // Token by token, and in pieces after a step back.
        for pieces in [vec![1; 15], vec![4, 1, 7, 3]] {
            let mut cache = model.cache();
            if pieces.len() < 15 {
                model
                    .decode(&case.input("ids").narrow(1, 0, 5).unwrap(), &memory, Some(&mut cache), &mut NoProbe)
                    .unwrap();
                cache.truncate(0).unwrap();
            }
            let mut logits = Vec::new();
            for count in pieces {
                let ids = target.narrow(1, cache.len(), count).unwrap();
                logits.push(model.decode(&ids, &memory, Some(&mut cache), &mut NoProbe).unwrap());
            }
            case.agrees(&Tensor::cat(&logits, 1).unwrap(), "cached_logits");
            assert_eq!(cache.len(), 15);
        }
    }
}

#[test]
fn greedy_steps_write_what_transformers_writes() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        let expected = case.fixture.get("outputs.greedy").unwrap().to_dtype(DType::U32).unwrap();
        let expected = expected.to_vec2::<u32>().unwrap();
        let best = |logits: &Vec<f32>| (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        // All rows at once; the last token is not asked for, because transformers may force it.
        let mut decoding = Decoding::new(&model, case.encode(&model));
        let mut written: Vec<Vec<u32>> = vec![vec![case.config.decoder_start_token_id()]; 3];
        while written[0].len() < expected[0].len() - 1 {
            let last: Vec<u32> = written.iter().map(|row| *row.last().unwrap()).collect();
            let logits = decoding.next_rows(&last).unwrap();
            written.iter_mut().zip(&logits).for_each(|(row, logits)| row.push(best(logits)));
        }
        for (row, expected) in written.iter().zip(&expected) {
            assert_eq!(row, &expected[..row.len()], "{name}");
        }
        // One row, its beginning given at once, after a detour.
        let mut one = Decoding::new(&model, case.encode(&model).select(&[1]).unwrap());
        one.next(&[written[1][0], 5, 6, 7]).unwrap();
        one.rewind(1).unwrap();
        let logits = one.next(&written[1][1..6]).unwrap();
        assert_eq!((best(&logits), one.len()), (written[1][6], 6), "{name}");
        assert_eq!(logits.len(), one.vocabulary());
    }
}

#[test]
fn rows_of_a_beam_are_chosen() {
    let case = Case::open("t5");
    let model = case.model();
    let mut beams = Decoding::new(&model, case.encode(&model));
    beams.next_rows(&[0, 0, 0]).unwrap();
    beams.next_rows(&[4, 5, 6]).unwrap();
    beams.select(&[2, 0, 2, 2]).unwrap();
    let chosen = beams.next_rows(&[7, 8, 9, 7]).unwrap();
    for (row, path) in [(2, [0, 6, 7]), (0, [0, 4, 8]), (2, [0, 6, 9]), (2, [0, 6, 7])].iter().enumerate() {
        let mut alone = Decoding::new(&model, case.encode(&model).select(&[path.0]).unwrap());
        let logits = alone.next(&path.1).unwrap();
        let error = logits.iter().zip(&chosen[row]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-5, "row {row}: {error}");
    }
    let error = beams.select(&[4]).unwrap_err();
    assert!(error.to_string().contains('4'), "{error}");
}

#[test]
fn the_model_asks_for_exactly_the_keys_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::outline();
        EncoderDecoder::new(&params, &case.config).unwrap();
        let stored: BTreeSet<_> =
            case.fixture.below("weights").into_iter().map(|(key, t)| (key, t.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored, "{name}");
    }
}

#[test]
fn a_probe_sees_all_three_attentions_and_changes_no_bit() {
    for name in ["marian", "t5"] {
        let case = Case::open(name);
        let model = case.model();
        let labels = case.input("labels");
        let mut recorder = Recorder::new(|_: &str, quantity| quantity == Quantity::AttentionProbabilities);
        let (ids, mask) = (case.input("ids"), case.input("mask"));
        let seen = model.forward(&ids, Some(&mask), &labels, &mut recorder).unwrap();
        let unseen = model.forward(&ids, Some(&mask), &labels, &mut NoProbe).unwrap();
        assert_eq!(bits(&seen), bits(&unseen));
        let paths: Vec<_> = recorder.records.iter().map(|(path, _, _)| path.as_str()).collect();
        let [encoder, own, cross] = match name {
            "marian" => [
                "model.encoder.layers.#.self_attn",
                "model.decoder.layers.#.self_attn",
                "model.decoder.layers.#.encoder_attn",
            ],
            _ => [
                "encoder.block.#.layer.0.SelfAttention",
                "decoder.block.#.layer.0.SelfAttention",
                "decoder.block.#.layer.1.EncDecAttention",
            ],
        };
        let expected = [(encoder, 0), (encoder, 1), (own, 0), (cross, 0), (own, 1), (cross, 1)];
        assert_eq!(paths, expected.map(|(path, n)| path.replace('#', &n.to_string())));
        case.agrees(&case.visible(&recorder.records[1].2), "encoder_probabilities.1");
        case.agrees(&recorder.records[4].2, "decoder_probabilities.1");
        case.agrees(&recorder.records[5].2, "cross_probabilities.1");
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::seeded(3, DType::F32, &Device::Cpu).trainable();
        let model = EncoderDecoder::new(&params, &case.config).unwrap();
        let (labels, counted) = (case.input("labels"), case.input("counted"));
        let logits = model.forward(&case.input("ids"), Some(&case.input("mask")), &labels, &mut NoProbe).unwrap();
        let gradients = label_smoothed_loss(&logits, &labels, Some(&counted), 0.1).unwrap().backward().unwrap();
        for (key, variable) in params.variables() {
            let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name}: {key} has no gradient"));
            let size = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            // The same offset on every key of a head cancels in the softmax: its gradient is rounding error.
            let least = if key.ends_with("k_proj.bias") { 0.0 } else { 1e-9 };
            assert!(size.is_finite() && size >= least, "{name}: {key}: {size}");
        }
    }
}

/// The offsets of relative positions have a gradient of their own path: it is that of finite differences.
#[test]
fn relative_positions_learn() {
    let case = Case::open("t5");
    let key = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let labels = case.input("labels");
    let loss_of = |params: &Params| {
        let model = EncoderDecoder::new(params, &case.config).unwrap();
        let logits = model.forward(&case.input("ids"), None, &labels, &mut NoProbe).unwrap();
        label_smoothed_loss(&logits, &labels, None, 0.0).unwrap()
    };
    let weights = case.fixture.below("weights");
    let params = Params::load(Arc::new(MemorySource::new(weights.clone())), DType::F32, &Device::Cpu).trainable();
    let loss = loss_of(&params);
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(&params.variables()[key]).unwrap().to_vec2::<f32>().unwrap();
    let nudged = |bucket: usize, head: usize, by: f32| {
        let mut weights = weights.clone();
        let mut table = weights[key].to_vec2::<f32>().unwrap();
        table[bucket][head] += by;
        weights.insert(key.to_owned(), Tensor::new(table, &Device::Cpu).unwrap());
        let params = Params::load(Arc::new(MemorySource::new(weights)), DType::F32, &Device::Cpu);
        loss_of(&params).to_scalar::<f32>().unwrap()
    };
    for (bucket, head) in [(0, 0), (1, 2), (5, 1)] {
        let expected = (nudged(bucket, head, 0.05) - nudged(bucket, head, -0.05)) / 0.1;
        let got = gradient[bucket][head];
        assert!((got - expected).abs() < 1e-3 + 0.02 * expected.abs(), "{bucket} {head}: {got} {expected}");
    }
}

#[test]
fn a_tiny_transformer_learns_to_copy() {
    let config = EncoderDecoderConfig::Marian(MarianConfig {
        vocab_size: 12,
        d_model: 16,
        encoder_layers: 1,
        encoder_attention_heads: 2,
        encoder_ffn_dim: 32,
        decoder_layers: 1,
        decoder_attention_heads: 2,
        decoder_ffn_dim: 32,
        decoder_start_token_id: 11,
        pad_token_id: 11,
        ..MarianConfig::transformer_base()
    });
    let params = Params::seeded(5, DType::F32, &Device::Cpu).trainable();
    let model = EncoderDecoder::new(&params, &config).unwrap();
    let source = Tensor::new(&[[1u32, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 0]], &Device::Cpu).unwrap();
    let losses = training::descend_adamw(&params, 1e-2, 40, || {
        let logits = model.forward(&source, None, &source, &mut NoProbe).unwrap();
        label_smoothed_loss(&logits, &source, None, 0.0).unwrap()
    });
    assert!(losses[40] < 0.1 * losses[0], "{losses:?}");
}

#[test]
fn parameters_of_the_public_models_are_counted() {
    for (config, parameters) in [
        (EncoderDecoderConfig::Marian(MarianConfig::transformer_base()), 63_119_496),
        (EncoderDecoderConfig::Marian(MarianConfig::opus_mt()), 73_944_309),
        (EncoderDecoderConfig::T5(T5Config::t5_small()), 60_506_624),
        (EncoderDecoderConfig::T5(T5Config::t5_base()), 222_903_552),
        (EncoderDecoderConfig::T5(T5Config::t5_v1_1_small()), 76_961_152),
    ] {
        let params = Params::outline();
        EncoderDecoder::new(&params, &config).unwrap();
        let count: usize = params.asked().iter().map(|p| p.shape.elem_count()).sum();
        assert_eq!(count, parameters);
    }
}

#[test]
fn bad_inputs_are_refused() {
    let case = Case::open("marian");
    let model = case.model();
    let ids = |row: Vec<u32>| Tensor::new(vec![row], &Device::Cpu).unwrap();
    let refused = |row: Vec<u32>| model.encode(&ids(row), None, &mut NoProbe).unwrap_err().to_string();
    assert_eq!(refused(vec![3; 33]), "33 tokens of the source are more than the model's 32 positions");
    assert_eq!(refused(vec![3, 50]), "token 50 of the source is beyond the 50 tokens that the model knows");
    assert_eq!(refused(vec![]), "the source has no token");
    let error = model.encode(&ids(vec![3, 4]), Some(&ids(vec![1])), &mut NoProbe).unwrap_err();
    assert_eq!(error.to_string(), "the mask has shape [1, 1], the source [1, 2]");
    let memory = case.encode(&model);
    let error = model.decode(&ids(vec![49]), &memory, None, &mut NoProbe).unwrap_err();
    assert_eq!(error.to_string(), "1 targets do not fit 3 sources");
    let mut one = Decoding::new(&model, memory.select(&[0]).unwrap());
    one.next(&[49; 30]).unwrap();
    let error = one.next(&[5; 3]).unwrap_err();
    assert_eq!(error.to_string(), "33 tokens of the target are more than the model's 32 positions");
    assert_eq!((one.len(), one.context()), (30, 32));
    one.next(&[5; 2]).unwrap();
    let labels = ids(vec![1, 2]);
    let logits = Tensor::zeros((1, 2, 50), DType::F32, &Device::Cpu).unwrap();
    let error = label_smoothed_loss(&logits, &labels, Some(&ids(vec![0, 0])), 0.1).unwrap_err();
    assert_eq!(error.to_string(), "0 of 2 labels count");
}

#[test]
fn what_changes_the_architecture_is_refused() {
    for (text, said) in [
        (r#"{"model_type": "bart"}"#, "model_type is \"bart\", which is no encoder-decoder that is known"),
        ("{}", "model_type is missing"),
        (r#"{"model_type": "marian", "normalize_before": true}"#, "unknown entry normalize_before (true)"),
        (r#"{"model_type": "marian", "d_model": 100}"#, "d_model 100 is not a multiple of encoder_attention_heads 16"),
        (r#"{"model_type": "marian", "decoder_vocab_size": 7}"#, "source and target share one table of embeddings"),
        (r#"{"model_type": "marian", "pad_token_id": 99999}"#, "pad_token_id is 99999, beyond the 58101 tokens"),
        (r#"{"model_type": "t5", "feed_forward_proj": "gated-maxout"}"#, "feed_forward_proj is \"gated-maxout\""),
        (r#"{"model_type": "t5", "num_layers": 1000000}"#, "num_layers is 1000000; at most 128"),
        (r#"{"model_type": "t5", "relative_attention_num_buckets": 2}"#, "relative_attention_num_buckets 2 and"),
        (
            r#"{"model_type": "t5", "num_heads": 1048576, "d_kv": 1048576}"#,
            "num_heads x d_kv is 1099511627776; at most",
        ),
    ] {
        let error = EncoderDecoderConfig::from_json(text).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
    // As in opus-mt-en-de's config.json, shortened, and t5-v1_1-small's.
    for (text, expected) in [
        (
            r#"{"_num_labels": 3, "activation_function": "swish", "add_bias_logits": false, "add_final_layer_norm": false,
                "architectures": ["MarianMTModel"], "bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0,
                "d_model": 512, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0,
                "decoder_layers": 6, "decoder_start_token_id": 58100, "dropout": 0.1, "encoder_attention_heads": 8,
                "encoder_ffn_dim": 2048, "encoder_layers": 6, "eos_token_id": 0, "id2label": {"0": "LABEL_0"},
                "init_std": 0.02, "is_encoder_decoder": true, "max_length": 512, "max_position_embeddings": 512,
                "model_type": "marian", "normalize_before": false, "normalize_embedding": false, "num_beams": 6,
                "num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": true,
                "static_position_embeddings": true, "vocab_size": 58101}"#,
            EncoderDecoderConfig::Marian(MarianConfig::opus_mt()),
        ),
        (
            r#"{"architectures": ["T5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
                "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
                "initializer_factor": 1.0, "is_encoder_decoder": true, "layer_norm_epsilon": 1e-06, "model_type": "t5",
                "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "output_past": true, "pad_token_id": 0,
                "relative_attention_num_buckets": 32, "tie_word_embeddings": false, "vocab_size": 32128}"#,
            EncoderDecoderConfig::T5(T5Config {
                decoder_start_token_id: Some(0),
                num_decoder_layers: Some(8),
                ..T5Config::t5_v1_1_small()
            }),
        ),
    ] {
        let config = EncoderDecoderConfig::from_json(text).unwrap();
        let again = EncoderDecoderConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        let without_other = match config {
            EncoderDecoderConfig::Marian(c) => EncoderDecoderConfig::Marian(MarianConfig { other: [].into(), ..c }),
            EncoderDecoderConfig::T5(c) => EncoderDecoderConfig::T5(T5Config { other: [].into(), ..c }),
        };
        assert_eq!(without_other, expected);
    }
}
