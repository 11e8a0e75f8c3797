//! Bodies of the fuzz targets for tokenizers, prompts and the texts of PNG files, shared with `crates/conjure/tests`: what
//! strangers wrote is refused with an error or can be used. A panic, an endless loop or unbounded memory is a bug.

use conjure::image_file::{Picture, png_recipe, read_recipe};
use conjure::tokens::{ClipTokenizer, Prompt};
use std::path::Path;

/// The files of a tokenizer's folder. The combined file is read first, so the separate ones count only without it.
pub const TOKENIZER_FILES: [&str; 5] =
    ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];

/// [`TOKENIZER_FILES`] in order, separated by a byte that no UTF-8 text has; an empty part is a file that is not there.
pub fn tokenizer(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, part) in TOKENIZER_FILES.iter().zip(data.split(|byte| *byte == 0xff)) {
        if !part.is_empty() {
            std::fs::write(folder.path().join(name), part).expect("written");
        }
    }
    tokenizer_folder(folder.path());
}

/// A tokenizer's folder; whether it could be opened.
pub fn tokenizer_folder(folder: &Path) -> bool {
    match ClipTokenizer::load(folder) {
        Ok(tokenizer) => {
            // A vocabulary need not spell every text, but what it spells fills the window with its own ids.
            if let Ok(ids) = tokenizer.encode_window("A lighthouse, café 夜 <|endoftext|>!") {
                assert_eq!(ids.len(), tokenizer.context_length());
                assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary_size()));
                let _ = tokenizer.decode(&ids);
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// A prompt as somebody typed it; whether it could be encoded.
pub fn prompt(tokenizer: &ClipTokenizer, data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let encoded = Prompt::parse(&text).and_then(|prompt| prompt.encode(tokenizer));
    match encoded {
        Ok(chunks) => {
            assert!(!chunks.is_empty());
            for chunk in chunks {
                assert_eq!((chunk.ids.len(), chunk.weights.len()), (tokenizer.context_length(), chunk.ids.len()));
                assert!(chunk.weights.iter().all(|weight| weight.is_finite()));
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty() && error.exit_code() == 2);
            false
        }
    }
}

/// A whole PNG file; whether its texts could be read. From memory and from disk they are the same.
pub fn png(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("x.png");
    std::fs::write(&path, data).expect("written");
    let texts = png_recipe::texts_from_bytes(data);
    assert_eq!(texts.clone().ok(), png_recipe::read_texts(&path).ok());
    if let Ok(recipe) = read_recipe(&path) {
        assert!(texts.is_ok() && !recipe.parameters().is_empty());
    }
    let _ = Picture::read(&path);
    texts.is_ok()
}

/// One text chunk inside a sound PNG, after a byte that chooses its type: mutations are not lost on the checksum.
pub fn png_text(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    let kind = [b"tEXt", b"zTXt", b"iTXt"][usize::from(*kind) % 3];
    let mut sound = Vec::new();
    png_recipe::encode(&mut sound, &Picture::filled(1, 1, [0; 3]), &[]).expect("encoded into memory");
    // After the signature and the header: 8 + 25 bytes.
    let (start, rest) = sound.split_at(33);
    let mut checksum = flate2::Crc::new();
    checksum.update(kind);
    checksum.update(text);
    let (length, checksum) = ((text.len() as u32).to_be_bytes(), checksum.sum().to_be_bytes());
    png(&[start, &length, kind, text, &checksum, rest].concat());
}
