//! The odds of tokens are those of transformers' logits, which the models' fixtures hold.

use conjure::explain::odds::{Odds, Target, of_model};
use conjure::generate::text::{LanguageModel, Prompt, Sampling, TextRequest};
use conjure::tokens::Tokenizer;
use conjure_core::weights::{self, TensorSource};
use conjure_core::{DType, Device};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A recorded model as a folder.
struct Recorded {
    folder: tempfile::TempDir,
    source: Arc<dyn TensorSource>,
}

impl Recorded {
    fn open(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures");
        let source = weights::open(fixtures.join(format!("{name}.safetensors"))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixtures.join(format!("{name}.json")), folder.path().join("config.json")).unwrap();
        let load = |key: &String| {
            let tensor = source.load(key, DType::F32, &Device::Cpu).unwrap();
            Some((key.strip_prefix("weights.")?.to_owned(), tensor))
        };
        let tensors: BTreeMap<_, _> =
            source.infos().keys().filter(|key| key.starts_with("weights.")).filter_map(load).collect();
        weights::save(folder.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        Self { folder, source }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The first row of ids.
    fn ids(&self, name: &str) -> Vec<u32> {
        let ids = self.source.load(name, DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        ids[0].iter().map(|&id| id as u32).collect()
    }

    /// Logarithms of probabilities of the first row, `(time, vocabulary)`.
    fn logprobs(&self) -> Vec<Vec<f64>> {
        let logits = self.source.load("outputs.logits", DType::F32, &Device::Cpu).unwrap().to_vec3::<f32>().unwrap();
        let log_softmax = |row: &Vec<f32>| {
            let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            row.iter().map(|&l| f64::from(l) - total.ln()).collect()
        };
        logits[0].iter().map(log_softmax).collect()
    }
}

/// Compares an entry with what the reference says of its place.
fn compare(entry: &conjure::explain::odds::TokenOdds, reference: &[f64]) {
    let own = reference[entry.id as usize];
    assert!((f64::from(entry.logprob.unwrap()) - own).abs() < 1e-4, "{entry:?} {own}");
    let above = reference.iter().filter(|&&lp| lp > own + 1e-4).count();
    let near = reference.iter().filter(|&&lp| (lp - own).abs() <= 1e-4).count();
    assert!((above + 1..=above + near).contains(&entry.rank.unwrap()), "{entry:?}");
    let mut sorted: Vec<f64> = reference.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(entry.top.len(), 4);
    for (place, alternative) in entry.top.iter().enumerate() {
        assert!((f64::from(alternative.logprob) - sorted[place]).abs() < 1e-4);
        assert!((f64::from(alternative.logprob) - reference[alternative.id as usize]).abs() < 1e-4);
    }
}

#[test]
fn a_decoders_odds_are_those_of_its_logits() {
    for name in ["decoder/llama", "decoder/gpt2", "decoder/gemma3"] {
        let recorded = Recorded::open(name);
        let ids = recorded.ids("inputs.ids");
        let odds = of_model(&recorded.path(), &Prompt::Ids(ids.clone()), &Target::default(), 4).unwrap();
        assert_eq!(odds.tokens.iter().map(|t| t.id).collect::<Vec<_>>(), ids);
        assert_eq!((odds.tokens[0].logprob, odds.tokens[0].rank), (None, None));
        for (entry, reference) in odds.tokens[1..].iter().zip(recorded.logprobs()) {
            compare(entry, &reference);
        }
    }
}

#[test]
fn an_encoder_decoders_odds_are_of_its_target() {
    for name in ["encoder_decoder/marian", "encoder_decoder/t5"] {
        let recorded = Recorded::open(name);
        let mask = recorded.ids("inputs.mask");
        assert!(mask.iter().all(|&there| there == 1), "{name}: the first source is not padded");
        let (source, labels) = (Prompt::Ids(recorded.ids("inputs.ids")), recorded.ids("inputs.labels"));
        let odds = of_model(&recorded.path(), &source, &told(&Prompt::Ids(labels.clone())), 4).unwrap();
        assert_eq!(odds.tokens.len(), labels.len());
        for (entry, reference) in odds.tokens.iter().zip(recorded.logprobs()) {
            compare(entry, &reference);
        }
        let refused = of_model(&recorded.path(), &source, &Target::default(), 4).unwrap_err();
        assert!(refused.help().unwrap().contains("--target"), "{refused}");
    }
    let decoder = Recorded::open("decoder/llama");
    let prompt = Prompt::Ids(vec![1, 2]);
    let refused = |target: &Target<'_>| of_model(&decoder.path(), &prompt, target, 4).unwrap_err().to_string();
    assert_eq!(refused(&told(&prompt)), "the model goes on with a text, and has no source and target");
    // Not a word of --target, which would be refused as well.
    let languages = "languages are for translators; this model goes on with a text";
    assert_eq!(refused(&Target { to: Some("de"), ..Target::default() }), languages);
    assert_eq!(refused(&Target { from: Some("en"), ..told(&prompt) }), languages);
    let empty = of_model(&decoder.path(), &Prompt::Text(String::new()), &Target::default(), 4).unwrap_err();
    assert_eq!((empty.to_string().as_str(), empty.exit_code()), ("the text is empty", 2));
}

/// A target for a model that is told no languages.
fn told(text: &Prompt) -> Target<'_> {
    Target { text: Some(text), ..Target::default() }
}

/// The translator that comes with Conjure is told the language as when it translates.
#[test]
fn a_translator_is_told_the_targets_language() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/translator");
    let (source, text) = (Prompt::Text("red heart".into()), Prompt::Text("rotes Herz".into()));
    let odds = |source: &Prompt, to| of_model(&folder, source, &Target { to, ..told(&text) }, 1);
    let german = odds(&source, Some("de")).unwrap();
    assert_eq!(german, odds(&Prompt::Text(">>de<< red heart".into()), None).unwrap());
    assert_ne!(german, odds(&source, Some("fr")).unwrap());
    let from =
        |from| of_model(&folder, &source, &Target { from: Some(from), to: Some("de"), ..told(&text) }, 1).unwrap();
    assert_eq!((from("en").unheard, from("xx").unheard), (None, Some("xx".to_owned())));
    assert_eq!(from("xx").tokens, german.tokens);
    for to in [None, Some("tlh")] {
        let error = odds(&source, to).unwrap_err();
        assert!(error.help().unwrap().contains("ar, bn, cs"), "{error}");
    }
}

/// Source and target have a tokenizer each: both texts are cut as the fixture's translator cuts them.
#[test]
fn a_target_given_as_text_is_cut_by_the_targets_tokenizer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/translate/marian");
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    let text = "the cat has a small table";
    let (cut, as_source) = (tokenizer.encode_target(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
    assert_ne!(cut, as_source, "the fixture cannot tell the two tokenizers apart");
    let target = Prompt::Text(text.into());
    let to_german = Target { to: Some("de"), ..told(&target) };
    let odds = of_model(&folder, &Prompt::Text(text.into()), &to_german, 1).unwrap();
    assert_eq!(odds.tokens.iter().map(|token| token.id).collect::<Vec<_>>(), cut);
    let as_source = tokenizer.token_id(">>de<<").into_iter().chain(as_source).collect();
    let same = of_model(&folder, &Prompt::Ids(as_source), &told(&Prompt::Ids(cut)), 1).unwrap();
    assert_eq!(odds, same);
}

#[test]
fn greedy_text_is_what_the_odds_call_likeliest() {
    // A layer with a sliding window, and one without.
    for name in ["decoder/llama", "decoder/mistral"] {
        let recorded = Recorded::open(name);
        let model = LanguageModel::open(&recorded.path()).unwrap();
        let prompt = recorded.ids("inputs.ids")[..7].to_vec();
        let mut request = TextRequest::new(Prompt::Ids(prompt.clone()));
        (request.sampling, request.max_tokens) = (Sampling::greedy(), Some(12));
        let made = model.generate(&request, &mut |_| true).unwrap();
        let all = [prompt.clone(), made.ids.clone()].concat();
        let odds = Odds::new(&model, &all, 1).unwrap();
        assert!(odds.tokens[prompt.len()..].iter().all(|token| token.rank == Some(1)), "{name}: {odds:?}");
    }
}
