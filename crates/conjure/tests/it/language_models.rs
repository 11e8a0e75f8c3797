//! Perplexity and adapters of language models against transformers and PEFT (`tools/reference/language_models.py`).

#![allow(clippy::print_stdout, reason = "the measured figures, seen with --nocapture")]

use conjure::evaluate::perplexity::{Perplexity, Windows, perplexity, tokenisation};
use conjure::generate::image::LoraFile;
use conjure::generate::text::{KeptAs, LanguageModel, NextToken as _};
use conjure::{Error, Result};
use conjure_core::ops::with_plain;
use conjure_core::probe::NoProbe;
use conjure_core::weights::{Safetensors, TensorSource as _};
use conjure_core::{DType, Device, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language_model").join(name)
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("expected.json")).unwrap()).unwrap()
}

fn stored(name: &str) -> Tensor {
    Safetensors::open(fixture("expected.safetensors")).unwrap().load(name, DType::F32, &Device::Cpu).unwrap()
}

pub fn opened(name: &str, adapters: &[(&str, f64)]) -> LanguageModel {
    let adapters: Vec<LoraFile> =
        adapters.iter().map(|(path, weight)| LoraFile { path: fixture(path), weight: *weight }).collect();
    LanguageModel::open_with(&fixture(name), &adapters).unwrap()
}

fn logits(model: &LanguageModel, ids: &str) -> Tensor {
    let ids = stored(ids).to_dtype(DType::U32).unwrap();
    model.decoder().forward(&ids, None, &mut NoProbe).unwrap()
}

/// The largest difference over the largest value.
fn error(got: &Tensor, want: &Tensor) -> f64 {
    let largest = |x: &Tensor| f64::from(x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
    largest(&(got - want).unwrap()) / largest(want)
}

#[test]
fn perplexities_equal_those_of_transformers() {
    let model = opened("llama", &[]);
    let text = std::fs::read_to_string(fixture("text.txt")).unwrap();
    let expected = expected();
    assert_eq!(tokenisation(&model).unwrap(), "the model's own tokenizer of 320 tokens, nothing added to the text");
    for case in expected["perplexity"].as_array().unwrap() {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let windows = Windows::new(&model, Some(size("context")), Some(size("stride"))).unwrap();
        let mut seen = Vec::new();
        let got = perplexity(&model, "text", &text, windows, &mut |done, all| {
            seen.push((done, all));
            true
        })
        .unwrap();
        let want = case["perplexity"].as_f64().unwrap();
        println!("{windows:?}: {} {want}", got.perplexity);
        assert!((got.perplexity / want - 1.0).abs() < 1e-4, "{windows:?}: {} {want}", got.perplexity);
        assert!((got.nll / case["nll"].as_f64().unwrap() - 1.0).abs() < 1e-5);
        assert_eq!((got.tokens, got.scored), (expected["tokens"].as_u64().unwrap() as usize, size("scored")));
        assert_eq!(seen.last(), Some(&(got.tokens, got.tokens)));
        if windows.stride < windows.context {
            // All bytes but the first token's.
            let first = model.tokenizer().unwrap().encode(&text, true).unwrap()[0];
            let bytes = text.len() - model.tokenizer().unwrap().token_bytes(first).unwrap().len();
            assert_eq!(got.bytes, bytes);
            let bits = got.nll / std::f64::consts::LN_2 / bytes as f64;
            assert!((got.bits_per_byte - bits).abs() < 1e-12);
        }
        let twice = Perplexity::together(&[got.clone(), got.clone()]);
        assert!((twice.perplexity / got.perplexity - 1.0).abs() < 1e-12 && twice.tokens == 2 * got.tokens);
    }
}

#[test]
fn texts_and_windows_that_cannot_be_measured_are_refused() {
    let model = opened("llama", &[]);
    let told = |outcome: Result<Windows>| outcome.unwrap_err().to_string();
    assert!(told(Windows::new(&model, Some(129), None)).contains("2 to 128"));
    assert!(told(Windows::new(&model, Some(1), None)).contains("a window of 1 tokens"));
    assert!(told(Windows::new(&model, Some(64), Some(65))).contains("a stride of 65 tokens"));
    assert!(told(Windows::new(&model, Some(64), Some(0))).contains("a stride of 0 tokens"));
    let windows = Windows::new(&model, None, None).unwrap();
    assert_eq!((windows.context, windows.stride), (128, 64));
    let refused = |text: &str| perplexity(&model, "x.txt", text, windows, &mut |_, _| true).unwrap_err().to_string();
    assert_eq!(refused(""), "x.txt: has 0 tokens; perplexity needs 2 or more");
    assert_eq!(refused("<|endoftext|><|im_end|>"), "x.txt: has no token that stands for text");
    let stopped = perplexity(&model, "x", "some words", windows, &mut |_, _| false);
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn adapters_of_peft_change_a_model_as_they_do_there() {
    for name in ["llama", "gpt2"] {
        let (ids, adapter) = (format!("{name}.ids"), format!("{name}_adapter"));
        let want = stored(&format!("{name}.logits"));
        let plain = logits(&opened(name, &[]), &ids);
        let adapted = logits(&opened(name, &[(&adapter, 1.0)]), &ids);
        println!("{name}: {} without {}", error(&adapted, &want), error(&plain, &want));
        assert!(error(&adapted, &want) < 1e-4);
        assert!(error(&plain, &want) > 0.05, "the adapter changes something");
        assert!(error(&logits(&opened(name, &[(&adapter, 0.0)]), &ids), &plain) < 1e-6);
        // Weights add up, and the file is as good as its folder.
        let file = format!("{adapter}/adapter_model.safetensors");
        let twice = logits(&opened(name, &[(&adapter, 0.25), (&file, 0.75)]), &ids);
        assert!(error(&twice, &want) < 1e-4);
    }
}

/// A quantised weight stays as it is, and the factors work beside it. (The fast products of quantised weights round what they
/// are multiplied with to 8 bits, which shows in this model; the plain ones do not.)
#[test]
fn adapters_work_beside_quantised_weights() {
    let (want, want_plain) = (stored("llama.quantized_adapted"), stored("llama.quantized"));
    let once: &[(&str, f64)] = &[("llama_adapter", 1.0)];
    let twice: &[(&str, f64)] = &[("llama_adapter", 0.5), ("llama_adapter", 0.5)];
    for (adapters, want) in [(&[][..], &want_plain), (once, &want), (twice, &want)] {
        let model = opened("llama.gguf", adapters);
        let exact = error(&with_plain(|| logits(&model, "llama.ids")), want);
        let fast = error(&logits(&model, "llama.ids"), want);
        println!("{adapters:?}: plain {exact}, fast {fast}");
        assert!(exact < 1e-4 && fast < 0.15, "{exact} {fast}");
    }
    assert!(error(&want_plain, &want) > 0.5, "the adapter changes something");
}

#[test]
fn keys_and_values_are_kept_in_half_for_gguf_files_alone() {
    for (name, usual, other) in [("llama.gguf", KeptAs::Half, KeptAs::Given), ("llama", KeptAs::Given, KeptAs::Half)] {
        // A second reading sees what was kept of the first.
        let read = |model: LanguageModel| {
            let mut session = model.session(None).unwrap();
            session.next(&[5, 6, 7, 8]).unwrap();
            session.next(&[9]).unwrap()
        };
        let logits = read(opened(name, &[]));
        assert_eq!(logits, read(opened(name, &[]).with_cache(usual)), "{name}");
        assert_ne!(logits, read(opened(name, &[]).with_cache(other)), "{name}");
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let told = |model: &str, path: &Path| {
        let adapters = [LoraFile { path: path.to_owned(), weight: 1.0 }];
        LanguageModel::open_with(&fixture(model), &adapters).err().unwrap().to_string()
    };
    assert!(told("gpt2", &fixture("llama_adapter")).contains("changes layers that the model lacks"));
    assert!(told("llama", &fixture("none")).contains("not found"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("llama_adapter/adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    assert!(told("llama", folder.path()).contains("adapter_config.json: not found"));
    let settings = |text: &str| {
        std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
        told("llama", folder.path())
    };
    assert!(settings("{").contains("not readable as JSON"));
    assert!(settings("{\"peft_type\": \"IA3\"}").contains("kind IA3"));
    assert!(settings("{\"peft_type\": \"LORA\", \"use_dora\": true}").contains("is a DoRA"));
    assert!(settings("{\"peft_type\": \"LORA\", \"bias\": \"all\"}").contains("bias is \"all\""));
}
