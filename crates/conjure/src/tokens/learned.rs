//! Learns a language model's vocabulary from texts, as a `tokenizer.json`: byte pairs (Sennrich et al. 2016,
//! <https://arxiv.org/abs/1508.07909>, on bytes as in Radford et al. 2019) by the `tokenizers` crate's trainer, or characters.
//!
//! The same texts in the same order give the same file. (The trainer breaks ties between pairs by their ids, and numbers the
//! alphabet by its code points; only the ends of words, which are not used here, it numbers by chance.)

use super::tokenizer_json::guarded;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, Trainer as _};

/// The mark that ends a document; its id is 0.
pub const END: &str = "<|endoftext|>";
/// What stands for a character that was not among those learned.
pub const UNKNOWN: &str = "<|unknown|>";
/// Bytes and the mark: the least vocabulary of byte pairs.
pub const SMALLEST: usize = 257;
/// Ids of the largest vocabulary that is learned.
pub const LARGEST: usize = 1 << 20;

/// A vocabulary of `size` tokens of bytes and merges; smaller where no pair is left that occurs twice. It can spell any text.
///
/// # Errors
/// A size out of range; the first error among the texts.
pub fn byte_pairs(texts: impl Iterator<Item = Result<String>> + Send, size: usize) -> Result<String> {
    if !(SMALLEST..=LARGEST).contains(&size) {
        return Err(Error::request(format!("a vocabulary of {size} byte pairs is not possible"))
            .with_help(format!("256 bytes and a mark are {SMALLEST} tokens; {LARGEST} is the most")));
    }
    let mut trainer = BpeTrainer::builder()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .build();
    let splitter = ByteLevel::new(false, true, true);
    let failure = Mutex::new(None);
    let good = texts.map_while(|text| match text {
        Ok(text) => Some(text),
        Err(error) => {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            None
        }
    });
    let model = guarded(|| {
        let words = |text: &str| {
            let mut words = PreTokenizedString::from(text);
            splitter.pre_tokenize(&mut words)?;
            let splits = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
            Ok(splits.into_iter().map(|(word, _, _)| word.to_owned()).collect())
        };
        trainer.feed(good, words).map_err(|e| e.to_string())?;
        let mut model = BPE::default();
        trainer.train(&mut model).map_err(|e| e.to_string())?;
        serde_json::to_value(&model).map_err(|e| e.to_string())
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let model = model.map_err(|e| Error::failure(format!("the vocabulary cannot be learned: {e}")))?;
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    Ok(file(&[(0, END)], bytes.clone(), bytes, model))
}

/// A vocabulary of the characters of the texts, in the order of their code points. Others become [`UNKNOWN`].
///
/// # Errors
/// No characters; the first error among the texts.
pub fn characters(texts: impl Iterator<Item = Result<String>>) -> Result<String> {
    let mut known: BTreeSet<char> = BTreeSet::new();
    for text in texts {
        known.extend(text?.chars());
    }
    if known.is_empty() {
        return Err(Error::request("the texts hold no character to learn"));
    }
    let marks = [END, UNKNOWN].map(str::to_owned);
    let tokens = marks.into_iter().chain(known.into_iter().map(String::from));
    let vocabulary: BTreeMap<String, usize> = tokens.zip(0..).collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": UNKNOWN,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": false,
        "vocab": vocabulary,
        "merges": [],
    });
    Ok(file(&[(0, END), (1, UNKNOWN)], Value::Null, json!({ "type": "Fuse" }), model))
}

fn file(marks: &[(usize, &str)], pre_tokenizer: Value, decoder: Value, model: Value) -> String {
    let added: Vec<Value> = marks
        .iter()
        .map(|(id, mark)| {
            json!({
                "id": id, "content": mark, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let whole = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": decoder,
        "model": model,
    });
    format!("{whole:#}\n")
}

/// The `tokenizer_config.json` beside a learned vocabulary, for a model that reads `context` tokens at once.
pub fn settings(context: usize) -> String {
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": context,
        "clean_up_tokenization_spaces": false,
    });
    format!("{settings:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Tokenizer;

    const TEXTS: [&str; 3] = ["the cat sat on the mat", "the other cat, the hat\n", "naïve Äpfel 猫"];

    fn texts() -> impl Iterator<Item = Result<String>> + Send {
        TEXTS.iter().map(|text| Ok((*text).to_owned()))
    }

    fn round_trips(tokenizer: &Tokenizer, text: &str) -> bool {
        tokenizer.decode(&tokenizer.encode(text, true).unwrap(), false).unwrap() == text
    }

    #[test]
    fn byte_pairs_are_learned_alike_each_time_and_spell_every_text() {
        let first = byte_pairs(texts(), 262).unwrap();
        for _ in 0..3 {
            assert!(byte_pairs(texts(), 262).unwrap() == first);
        }
        let tokenizer = Tokenizer::from_json(&first, "x").unwrap();
        assert_eq!(tokenizer.vocabulary_size(), 262);
        assert_eq!(tokenizer.token_id(END), Some(0));
        // Both occur five times: the smaller ids come first.
        assert_eq!([257, 258].map(|id| tokenizer.token(id).unwrap()), ["at", "he"]);
        assert_eq!(tokenizer.encode("athe", true).unwrap()[0], 257);
        assert_eq!(tokenizer.encode("a<|endoftext|>", true).unwrap()[1], 0);
        for text in TEXTS.iter().chain(&["Ωmega \u{1f600} unseen", ""]) {
            assert!(round_trips(&tokenizer, text), "{text}");
        }
        // No pair is left that occurs twice.
        let all = Tokenizer::from_json(&byte_pairs(texts(), 5000).unwrap(), "x").unwrap();
        assert!((262..400).contains(&all.vocabulary_size()), "{}", all.vocabulary_size());
    }

    #[test]
    fn characters_are_learned_and_others_are_unknown() {
        let text = characters(texts()).unwrap();
        let tokenizer = Tokenizer::from_json(&text, "x").unwrap();
        let distinct: BTreeSet<char> = TEXTS.iter().flat_map(|text| text.chars()).collect();
        assert_eq!(tokenizer.vocabulary_size(), distinct.len() + 2);
        for text in TEXTS {
            assert!(round_trips(&tokenizer, text), "{text}");
            assert_eq!(tokenizer.encode(text, true).unwrap().len(), text.chars().count());
        }
        assert_eq!(tokenizer.encode("tzt", true).unwrap()[1], tokenizer.token_id(UNKNOWN).unwrap());
    }

    #[test]
    fn errors_among_the_texts_are_passed_on() {
        let broken = || [Ok("abc".to_owned()), Err(Error::request("line 3: no text"))].into_iter();
        assert_eq!(byte_pairs(broken(), 300).unwrap_err().to_string(), "line 3: no text");
        assert_eq!(characters(broken()).unwrap_err().to_string(), "line 3: no text");
        assert!(byte_pairs(texts(), 256).unwrap_err().to_string().contains("256 byte pairs"));
        assert!(characters(std::iter::empty()).unwrap_err().to_string().contains("no character"));
    }
}
