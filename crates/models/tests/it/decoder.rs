//! Language models against transformers.

use crate::fixture::{self, Fixture};
use conjure_core::blocks::{KeptAs, KvCache};
use conjure_core::probe::{NoProbe, Probe, Quantity, Recorder};
use conjure_core::weights::{MemorySource, Params};
use conjure_core::{DType, Device, Tensor};
use conjure_models::decoder::{self, Decoder, DecoderConfig, IGNORED, ModelType};
use std::sync::Arc;

const CASES: [&str; 20] = [
    "gpt2",
    "gpt_neox",
    "gpt_neox_sequential",
    "palm",
    "mpt",
    "llama",
    "llama_linear",
    "llama_dynamic",
    "llama_llama3",
    "llama_yarn",
    "llama_yarn_mscale",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3_longrope",
];
const TOLERANCE: f64 = 1e-4;
const TIME: usize = 26;

struct Case {
    name: &'static str,
    config: DecoderConfig,
    fixture: Fixture,
    ids: Tensor,
}

impl Case {
    fn open(name: &'static str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("decoder/{name}.json"))).unwrap();
        let fixture = Fixture::open(&format!("decoder/{name}.safetensors"));
        let ids = fixture.get("inputs.ids").unwrap().to_dtype(DType::U32).unwrap();
        let config = DecoderConfig::from_json(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name, config, fixture, ids }
    }

    fn model(&self) -> Decoder {
        let source = decoder::canonical(self.fixture.source("weights"), &self.config).unwrap();
        Decoder::new(&Params::load(source, DType::F32, &Device::Cpu), &self.config).unwrap()
    }

    fn output(&self, name: &str) -> Tensor {
        self.fixture.get(&format!("outputs.{name}")).unwrap()
    }

    #[track_caller]
    fn agrees(&self, got: &Tensor, output: &str) {
        let error = fixture::relative_error(got, &self.output(output));
        assert!(error < TOLERANCE, "{} {output}: {error}", self.name);
    }

    fn targets(&self) -> Tensor {
        let targets = self.fixture.get("inputs.targets").unwrap().to_dtype(DType::I64).unwrap();
        let rows: Vec<Vec<u32>> = targets
            .to_vec2::<i64>()
            .unwrap()
            .into_iter()
            .map(|row| row.into_iter().map(|id| u32::try_from(id).unwrap_or(IGNORED)).collect())
            .collect();
        Tensor::new(rows, &Device::Cpu).unwrap()
    }
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Logits of `ids` from number `first` on, read in parts of these lengths.
fn read(model: &Decoder, cache: &mut KvCache, ids: &Tensor, parts: &[usize]) -> Tensor {
    let mut all = Vec::new();
    for part in parts {
        let ids = ids.narrow(1, cache.len(), *part).unwrap();
        all.push(model.forward(&ids, Some(cache), &mut NoProbe).unwrap());
    }
    Tensor::cat(&all, 1).unwrap()
}

#[test]
fn outputs_equal_those_of_transformers() {
    for case in CASES.map(Case::open) {
        let model = case.model();
        let mut recorder = Recorder::new(|path: &str, quantity| {
            (path == "model.embed_tokens" || path == "model.layers.0") && quantity == Quantity::Activation
                || path == "model.layers.1.self_attn" && quantity == Quantity::AttentionProbabilities
        });
        let logits = model.forward(&case.ids, None, &mut recorder).unwrap();
        let seen: Vec<_> = recorder.records.iter().map(|(path, _, _)| path.as_str()).collect();
        assert_eq!(seen, ["model.embed_tokens", "model.layers.0", "model.layers.1.self_attn"]);
        for ((_, _, value), output) in
            recorder.records.iter().zip(["hidden_states.0", "hidden_states.1", "probabilities.1"])
        {
            case.agrees(value, output);
        }
        case.agrees(&logits, "logits");
        let last = model.forward_last(&case.ids, None, &mut NoProbe).unwrap();
        let want = logits.narrow(1, TIME - 1, 1).unwrap().squeeze(1).unwrap();
        assert!(fixture::relative_error(&last, &want) < 1e-5);
    }
}

#[test]
fn continuations_equal_those_of_transformers() {
    for case in CASES.map(Case::open) {
        let model = case.model();
        let mut parts = vec![11];
        parts.resize(1 + TIME - 11, 1);
        let logits = read(&model, &mut model.new_cache(TIME), &case.ids, &parts);
        case.agrees(&logits, "cached_logits");
        if case.name != "llama_dynamic" {
            // Its angles depend on how long the text is when a part is read.
            let mut cache = model.new_cache(100);
            let logits = read(&model, &mut cache, &case.ids, &[3, 1, 9, 2, 11]);
            assert_eq!(cache.len(), TIME);
            case.agrees(&logits, "logits");
        }
    }
}

#[test]
fn caches_of_fewer_bits_change_logits_by_their_rounding() {
    for case in CASES.map(Case::open) {
        let model = case.model();
        let mut parts = vec![11];
        parts.resize(1 + TIME - 11, 1);
        let mut floats = model.new_cache(TIME);
        read(&model, &mut floats, &case.ids, &parts);
        for (kept, worst) in [(KeptAs::Half, 5e-3), (KeptAs::EightBits, 8e-2)] {
            let mut cache = model.new_cache(TIME).keeping(kept);
            let logits = read(&model, &mut cache, &case.ids, &parts);
            let error = fixture::relative_error(&logits, &case.output("cached_logits"));
            assert!(error > 1e-7 && error < worst, "{} {kept:?}: {error}", case.name);
            match kept {
                KeptAs::Half => assert_eq!(2 * cache.bytes(), floats.bytes()),
                // A factor for every 32 numbers, or for the few that a head has.
                _ => assert!(
                    cache.bytes() <= floats.bytes() / 4 + floats.bytes() / 8 && cache.bytes() > floats.bytes() / 4
                ),
            }
        }
    }
}

#[test]
fn a_cache_goes_back_and_on_as_if_nothing_had_happened() {
    for case in CASES.map(Case::open) {
        let model = case.model();
        let other = case.ids.flip(&[1]).unwrap().contiguous().unwrap();
        let ids = Tensor::cat(&[&case.ids.narrow(1, 0, 13).unwrap(), &other.narrow(1, 0, 13).unwrap()], 1).unwrap();
        let mut cache = model.new_cache(TIME);
        read(&model, &mut cache, &case.ids, &[13, 13]);
        cache.truncate(13).unwrap();
        let gone_back = read(&model, &mut cache, &ids, &[7, 1, 5]);
        let fresh = read(&model, &mut model.new_cache(TIME), &ids, &[13, 7, 1, 5]).narrow(1, 13, 13).unwrap();
        assert!(fixture::relative_error(&gone_back, &fresh) < 1e-6, "{}", case.name);
    }
}

#[test]
fn texts_of_different_length_go_on_together_as_each_would_alone() {
    for case in CASES.map(Case::open) {
        let model = case.model();
        let ids = case.ids.to_vec2::<u32>().unwrap()[0].clone();
        let row = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let begun = |length: usize| {
            let mut cache = model.new_cache(TIME);
            model.forward_last(&row(&ids[..length]), Some(&mut cache), &mut NoProbe).unwrap();
            cache
        };
        let lengths = [3, 17, 8];
        let mut caches: Vec<KvCache> = lengths.into_iter().map(begun).collect();
        // Two tokens, so that the second sees the first in the cache.
        for step in 0..2 {
            let next: Vec<u32> = lengths.iter().map(|length| ids[length + step]).collect();
            let mut together: Vec<&mut KvCache> = caches.iter_mut().collect();
            let logits = model.forward_texts(&next, &mut together, &mut NoProbe).unwrap();
            for (n, length) in lengths.into_iter().enumerate() {
                let mut alone = begun(length);
                for at in 0..step {
                    model.forward_last(&row(&[ids[length + at]]), Some(&mut alone), &mut NoProbe).unwrap();
                }
                let alone = model.forward_last(&row(&[next[n]]), Some(&mut alone), &mut NoProbe).unwrap();
                let error = fixture::relative_error(&logits.narrow(0, n, 1).unwrap(), &alone);
                assert!(error < 1e-5, "{} text {n} step {step}: {error}", case.name);
            }
        }
        assert_eq!(caches.iter().map(KvCache::len).collect::<Vec<_>>(), [5, 19, 10]);
        // A text without room stops all before anything changes.
        let (mut full, mut other) = (model.new_cache(2), begun(3));
        model.forward_last(&row(&ids[..2]), Some(&mut full), &mut NoProbe).unwrap();
        let error = model.forward_texts(&[1, 1], &mut [&mut other, &mut full], &mut NoProbe).unwrap_err();
        assert_eq!(error.to_string(), "3 tokens do not fit into a context of 2");
        assert_eq!(other.len(), 3);
        assert!(model.forward_texts(&[1], &mut [&mut other, &mut full], &mut NoProbe).is_err());
    }
}

#[test]
fn a_text_longer_than_the_windows_memory_reads_the_same_in_parts() {
    let case = Case::open("gemma3");
    let model = case.model();
    let ids: Vec<u32> = (0..1200u32).map(|n| 3 + n * n % 58).collect();
    let ids = Tensor::from_vec(ids, (1, 1200), &Device::Cpu).unwrap();
    let whole = model.forward(&ids, None, &mut NoProbe).unwrap();
    let mut cache = model.new_cache(1200);
    let mut parts = vec![700, 1, 1, 300];
    parts.resize(4 + 198, 1);
    let logits = read(&model, &mut cache, &ids, &parts);
    let error = fixture::relative_error(&logits, &whole);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn the_model_asks_for_all_that_the_reference_stores() {
    for case in CASES.map(Case::open) {
        let asked = decoder::asked(&case.config).unwrap();
        fixture::asked(&asked); // Each once.
        let count: usize = asked.iter().map(|spec| spec.shape.elem_count()).sum();
        let stored = case.fixture.below("weights");
        assert_eq!(count, stored.values().map(Tensor::elem_count).sum::<usize>(), "{}", case.name);
        // Files of the inner model alone, and names that need no change.
        let inner = ["model.", "transformer.", "gpt_neox."];
        let bare = stored.iter().map(|(name, tensor)| {
            let bare = inner.iter().find_map(|start| name.strip_prefix(start)).unwrap_or(name);
            (bare.to_owned(), tensor.clone())
        });
        let source = decoder::canonical(Arc::new(MemorySource::new(bare)), &case.config).unwrap();
        assert_eq!(source.infos().len(), asked.len(), "{}", case.name);
        let renamed = [ModelType::Gpt2, ModelType::GptNeox, ModelType::Mpt, ModelType::Phi3];
        if !renamed.contains(&case.config.model_type) {
            assert!(asked.iter().all(|spec| stored.contains_key(&spec.name)), "{}", case.name);
        }
    }
}

#[test]
fn what_is_written_is_what_was_read() {
    for case in CASES.map(Case::open) {
        let text = case.config.to_json().unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(DecoderConfig::from_json(&text).unwrap(), case.config, "{}", case.name);
        let source = decoder::canonical(case.fixture.source("weights"), &case.config).unwrap();
        let load = |name: &String| (name.clone(), source.load(name, DType::F32, &Device::Cpu).unwrap());
        let stored = decoder::stored(&source.infos().keys().map(load).collect(), &case.config).unwrap();
        let original = case.fixture.below("weights");
        assert!(stored.keys().eq(original.keys()), "{}", case.name);
        for (name, tensor) in &stored {
            assert_eq!(tensor.dims(), original[name].dims(), "{}: {name}", case.name);
            assert_eq!(bits(tensor), bits(&original[name]), "{}: {name}", case.name);
        }
    }
    for config in [DecoderConfig::gpt2(), DecoderConfig::smollm2_135m(), DecoderConfig::gemma_3_270m()] {
        assert_eq!(DecoderConfig::from_json(&config.to_json().unwrap()).unwrap(), config);
    }
    let odd = DecoderConfig { qk_norm: true, ..DecoderConfig::llama_2_7b() };
    let error = odd.to_json().unwrap_err().to_string();
    assert_eq!(error, "a config of model_type \"llama\" has no words for all of this model");
}

#[test]
fn a_probe_changes_no_bit() {
    for case in ["gpt2", "gemma3"].map(Case::open) {
        let model = case.model();
        let mut recorder = Recorder::new(|_: &str, _| true);
        let seen = model.forward(&case.ids, None, &mut recorder).unwrap();
        let unseen = model.forward(&case.ids, None, &mut NoProbe).unwrap();
        assert_eq!(bits(&seen), bits(&unseen));
        // Of a last token with a cache, it sees the keys of the whole text.
        let mut cache = model.new_cache(TIME);
        read(&model, &mut cache, &case.ids, &[TIME - 1]);
        let mut recorder = Recorder::new(|_: &str, quantity| quantity == Quantity::AttentionProbabilities);
        let last = case.ids.narrow(1, TIME - 1, 1).unwrap();
        model.forward(&last, Some(&mut cache), &mut recorder).unwrap();
        let heads = case.config.num_attention_heads;
        for ((path, _, probabilities), layer) in recorder.records.iter().zip(&case.config.layers) {
            assert_eq!(probabilities.dims(), [2, heads, 1, layer.window.unwrap_or(TIME)], "{path}");
        }
        // And changes no bit, whatever the cache keeps.
        for kept in [KeptAs::Given, KeptAs::Half, KeptAs::EightBits] {
            let all = |probe: &mut dyn Probe| {
                let mut cache = model.new_cache(TIME).keeping(kept);
                read(&model, &mut cache, &case.ids, &[TIME - 1]);
                bits(&model.forward(&last, Some(&mut cache), probe).unwrap())
            };
            assert_eq!(all(&mut Recorder::new(|_: &str, _| true)), all(&mut NoProbe));
        }
        // The lens of the last layer is the prediction.
        let hidden = model.hidden_states(&case.ids, None, &mut NoProbe).unwrap();
        assert_eq!(bits(&model.logits(&hidden).unwrap()), bits(&unseen));
    }
}

#[test]
fn losses_equal_those_of_transformers_and_every_parameter_gets_a_gradient() {
    for case in CASES.map(Case::open) {
        let loss =
            |model: &Decoder| decoder::loss(&model.forward(&case.ids, None, &mut NoProbe).unwrap(), &case.targets());
        case.agrees(&loss(&case.model()).unwrap(), "loss");
        let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
        let model = Decoder::new(&params, &case.config).unwrap();
        let gradients = loss(&model).unwrap().backward().unwrap();
        for (name, variable) in params.variables() {
            let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{}: {name} has no gradient", case.name));
            let size = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            // The same offset on every key of a head cancels in the softmax where nothing rotates it.
            let cancels = name.ends_with("k_proj.bias") && case.config.ropes.is_empty();
            assert!(size.is_finite() && (cancels || size > 1e-9), "{}: {name}: {size}", case.name);
        }
    }
}

/// A text behind another is read as by itself: where positions count distances, and but for roundings.
#[test]
fn texts_in_a_row_do_not_see_each_other() {
    for case in ["llama", "mistral", "gemma2", "mpt"].map(Case::open) {
        let model = case.model();
        let texts: Vec<u32> = (0..TIME).map(|at| u32::from(at >= 9) + u32::from(at >= 20)).collect();
        let texts = Tensor::new(vec![texts.clone(), texts], &Device::Cpu).unwrap();
        let apart = model.hidden_states_apart(&case.ids, &texts).unwrap();
        for (from, count) in [(0, 9), (9, 11), (20, 6)] {
            let ids = case.ids.narrow(1, from, count).unwrap();
            let alone = model.hidden_states(&ids, None, &mut NoProbe).unwrap();
            let error = fixture::relative_error(&apart.narrow(1, from, count).unwrap(), &alone);
            assert!(error < 1e-4, "{} from {from}: {error}", case.name);
        }
        let whole = model.hidden_states(&case.ids, None, &mut NoProbe).unwrap();
        assert!(fixture::relative_error(&apart, &whole) > 1e-2, "{}", case.name);
        let short = texts.narrow(1, 0, 5).unwrap();
        assert!(model.hidden_states_apart(&case.ids, &short).is_err());
    }
}

/// `tools/reference/decoder_gradients.py`.
#[test]
fn gradients_equal_those_of_transformers() {
    for case in ["llama", "gpt2"].map(Case::open) {
        let source = decoder::canonical(case.fixture.source("weights"), &case.config).unwrap();
        let params = Params::load(source, DType::F32, &Device::Cpu).trainable();
        let model = Decoder::new(&params, &case.config).unwrap();
        let logits = model.forward(&case.ids, None, &mut NoProbe).unwrap();
        let gradients = decoder::loss(&logits, &case.targets()).unwrap().backward().unwrap();
        let wanted = Fixture::open(&format!("decoder/{}_gradients.safetensors", case.name));
        let wanted = decoder::canonical(wanted.source("gradients"), &case.config).unwrap();
        let variables = params.variables();
        // A tensor whose gradient is nearly nothing is compared with the largest of all.
        let size = |x: &Tensor| f64::from(x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
        let pairs: Vec<(&String, Tensor, &Tensor)> = variables
            .iter()
            .map(|(name, variable)| {
                (name, wanted.load(name, DType::F32, &Device::Cpu).unwrap(), gradients.get(variable).unwrap())
            })
            .collect();
        let largest = pairs.iter().map(|(_, want, _)| size(want)).fold(0.0, f64::max);
        for (name, want, got) in &pairs {
            let error = size(&(want - *got).unwrap()) / size(want).max(1e-3 * largest);
            assert!(error < TOLERANCE, "{}: {name}: {error}", case.name);
        }
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let case = Case::open("gpt2");
    let model = case.model();
    let ids = |row: Vec<u32>| Tensor::new(vec![row], &Device::Cpu).unwrap();
    let refused = |ids: Tensor, cache| model.forward(&ids, cache, &mut NoProbe).unwrap_err().to_string();
    assert_eq!(refused(ids(vec![3; 41]), None), "41 tokens are more than the 40 positions of the model");
    assert_eq!(refused(ids(vec![3, 61]), None), "token 61 is beyond the 61 tokens that the model knows");
    assert_eq!(
        refused(Tensor::zeros((1, 0), DType::U32, &Device::Cpu).unwrap(), None),
        "the language model got no token"
    );
    let mut cache = model.new_cache(1000);
    assert_eq!(cache.context(), 40);
    read(&model, &mut cache, &case.ids, &[26]);
    assert_eq!(refused(ids(vec![3; 15]), Some(&mut cache)), "41 tokens do not fit into a context of 40");
    assert_eq!(cache.len(), 26);
    let logits = Tensor::zeros((1, 2, 61), DType::F32, &Device::Cpu).unwrap();
    let error = decoder::loss(&logits, &ids(vec![IGNORED; 2])).unwrap_err().to_string();
    assert_eq!(error, "no token of the batch is left to learn from");
    assert!(decoder::loss(&logits, &ids(vec![1])).is_err());
    assert!(decoder::loss(&logits, &ids(vec![1, 61])).is_err());
}
