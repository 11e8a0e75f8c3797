//! Damaged copies of valid files: every reader answers with a value or an error, never with a panic.

use conjure::image_file::{Picture, png_recipe};
use conjure::tokens::{ClipTokenizer, Prompt};
use conjure_core::rng::{Generator, keyed};
use std::path::Path;

/// `count` damaged copies of `bytes`: a few bytes changed, a stretch cut out or doubled, the end missing.
fn damaged(bytes: &[u8], name: &str, count: usize) -> Vec<Vec<u8>> {
    let mut random = keyed(7, name);
    let mut below = move |n: usize| (random.uniform(1)[0] * n as f32) as usize % n.max(1);
    let copies = (0..count).map(|_| {
        let mut copy = bytes.to_vec();
        match below(4) {
            0 => copy.truncate(below(bytes.len())),
            1 => drop(copy.drain(below(bytes.len())..).take(below(64)).collect::<Vec<_>>()),
            2 => {
                let from = below(bytes.len());
                let stretch = bytes[from..(from + below(64)).min(bytes.len())].to_vec();
                copy.splice(from..from, stretch);
            }
            _ => (0..1 + below(8)).for_each(|_| copy[below(bytes.len())] = below(256) as u8),
        }
        copy
    });
    copies.collect()
}

#[test]
fn tokenizer_files() {
    let saved = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip_tokenizer");
    ClipTokenizer::load(&fixture).unwrap().save(saved.path()).unwrap();
    let (mut opened, mut refused) = (0, 0);
    let mut attempt = || match ClipTokenizer::load(saved.path()) {
        Ok(tokenizer) => {
            let _ = tokenizer.encode_window("A lighthouse, café 夜 <|endoftext|>!");
            opened += 1;
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            refused += 1;
        }
    };
    // The combined file is read first, so it goes before the separate ones are damaged.
    for name in ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
        let path = saved.path().join(name);
        let valid = std::fs::read(&path).unwrap();
        for copy in damaged(&valid, name, 60) {
            std::fs::write(&path, copy).unwrap();
            attempt();
        }
        if name == "tokenizer.json" {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::write(&path, valid).unwrap();
        }
    }
    assert!(opened > 0 && refused > 100, "{opened} opened, {refused} refused");
}

#[test]
fn png_files() {
    let texts = [("parameters", "a cat\nSteps: 20".to_owned()), ("conjure", "{\"prompt\":\"夜\"}".to_owned())];
    let mut png = Vec::new();
    png_recipe::encode(&mut png, &Picture::filled(9, 7, [1, 2, 3]), &texts).unwrap();
    assert_eq!(png_recipe::texts_from_bytes(&png).unwrap().len(), 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.png");
    let mut refused = 0;
    for copy in damaged(&png, "png", 300) {
        refused += usize::from(png_recipe::texts_from_bytes(&copy).is_err());
        std::fs::write(&path, copy).unwrap();
        let _ = Picture::read(&path);
    }
    assert!(refused > 100, "{refused} refused");
}

#[test]
fn prompts() {
    let prompt = r"a (red:1.3) [cat], ((x) y:0.5) BREAK \(literal\) 夜 :) (a [b) <|endoftext|>";
    let tokenizer = ClipTokenizer::tiny();
    for copy in damaged(prompt.as_bytes(), "prompt", 500) {
        if let Ok(prompt) = Prompt::parse(&String::from_utf8_lossy(&copy)) {
            assert!(!prompt.encode(&tokenizer).unwrap().is_empty());
        }
    }
}
