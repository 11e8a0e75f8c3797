//! Training a vocabulary against a naive training in Python, and its ids against transformers' CLIPTokenizer
//! (`tools/reference/train_bpe.py`).

use conjure::tokens::{ClipTokenizer, Prompt, train_bpe};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(serde::Deserialize)]
struct Fixture {
    captions: Vec<String>,
    vocabulary_size: usize,
    context_length: usize,
    vocabulary: BTreeMap<String, u32>,
    merges: Vec<String>,
    lines: Vec<String>,
    windows: Vec<Vec<u32>>,
}

fn fixture() -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/train_bpe.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn trained(fixture: &Fixture) -> ClipTokenizer {
    train_bpe::train(&fixture.captions, fixture.vocabulary_size, fixture.context_length).unwrap()
}

#[test]
fn merges_and_vocabulary_equal_the_naive_training() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    trained(&fixture).save(folder.path()).unwrap();
    let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let merges: Vec<String> = read("merges.txt").lines().skip(1).map(str::to_owned).collect();
    assert_eq!(merges, fixture.merges);
    let vocabulary: BTreeMap<String, u32> = serde_json::from_str(&read("vocab.json")).unwrap();
    assert_eq!(vocabulary, fixture.vocabulary);
    let config: serde_json::Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
    assert_eq!(config["model_max_length"], 32);
}

#[test]
fn windows_equal_transformers_in_every_script_also_after_saving() {
    let fixture = fixture();
    let trained = trained(&fixture);
    let folder = tempfile::tempdir().unwrap();
    trained.save(folder.path()).unwrap();
    let loaded = ClipTokenizer::load(folder.path()).unwrap();
    assert_eq!(fixture.lines.len(), 17);
    for (line, expected) in fixture.lines.iter().zip(&fixture.windows) {
        for tokenizer in [&trained, &loaded] {
            assert_eq!(&tokenizer.encode_window(line).unwrap(), expected, "{line:?}");
        }
    }
}

#[test]
fn prompts_are_cut_into_windows_of_the_trained_length() {
    let fixture = fixture();
    let trained = trained(&fixture);
    let text = "red ".repeat(31);
    let chunks = Prompt::parse(&text).unwrap().encode(&trained).unwrap();
    assert_eq!(chunks.len(), 2, "30 tokens of text fit into a window of 32");
    assert_eq!(chunks[0].ids, trained.encode_window(&text).unwrap());
    assert_eq!(chunks[1].ids, trained.encode_window("red").unwrap());
    assert_eq!(chunks[0].weights.len(), 32);
}
