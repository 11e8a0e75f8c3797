//! CLIP's tokenizer against transformers' on a small trained vocabulary (`tools/reference/clip_tokenizer.py`).

use conjure::tokens::{ClipTokenizer, Prompt};
use std::path::Path;

#[derive(serde::Deserialize)]
struct Cases {
    lines: Vec<String>,
    #[serde(rename = "<|endoftext|>")]
    padded_with_end: Vec<Vec<u32>>,
    #[serde(rename = "!")]
    padded_with_mark: Vec<Vec<u32>>,
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip_tokenizer")
}

fn cases() -> Cases {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn ids_equal_transformers_with_both_paddings() {
    let cases = cases();
    assert!(cases.lines.len() > 70);
    let end = ClipTokenizer::load(&folder()).unwrap();
    let mark = end.with_padding("!").unwrap();
    for (n, line) in cases.lines.iter().enumerate() {
        assert_eq!(end.encode_window(line).unwrap(), cases.padded_with_end[n], "{line:?}");
        assert_eq!(mark.encode_window(line).unwrap(), cases.padded_with_mark[n], "{line:?}");
    }
}

#[test]
fn a_saved_folder_gives_the_same_ids_with_and_without_the_combined_file() {
    let cases = cases();
    let original = ClipTokenizer::load(&folder()).unwrap().with_padding("!").unwrap();
    let saved = tempfile::tempdir().unwrap();
    original.save(saved.path()).unwrap();
    for combined in [true, false] {
        if !combined {
            std::fs::remove_file(saved.path().join("tokenizer.json")).unwrap();
        }
        let again = ClipTokenizer::load(saved.path()).unwrap();
        for (line, expected) in cases.lines.iter().zip(&cases.padded_with_mark) {
            assert_eq!(&again.encode_window(line).unwrap(), expected, "{line:?}");
        }
    }
}

#[test]
fn a_plain_prompt_is_one_window_as_diffusers_reads_it() {
    let cases = cases();
    let tokenizer = ClipTokenizer::load(&folder()).unwrap();
    for (line, expected) in cases.lines.iter().zip(&cases.padded_with_end) {
        let chunks = Prompt::literal(line).encode(&tokenizer).unwrap();
        assert!(chunks.iter().all(|chunk| chunk.is_plain()));
        assert_eq!(&chunks[0].ids, expected, "{line:?}");
    }
}
