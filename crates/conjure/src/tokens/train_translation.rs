//! Learns the vocabulary of a translator from the texts of all its languages: Sennrich et al. 2016, "Neural Machine Translation
//! of Rare Words with Subword Units", <https://arxiv.org/abs/1508.07909>. The `tokenizers` crate learns the merges; what makes a
//! `tokenizer.json` of them is here.
//!
//! Words begin with `▁`, punctuation stands alone, and characters that are too rare for the vocabulary are spelt in bytes. Ids
//! are in Marian's order: `</s>`, `<unk>`, the languages' tokens `>>de<<`, 256 bytes, characters, merges, and `<pad>` last.
//!
//! The crate's unigram trainer is not used: it begins from tables whose order differs from run to run. Its trainer of byte pairs
//! numbers characters by their code and breaks ties by ids, so that the same texts in any order give the same vocabulary; only
//! where it would drop rare characters is its choice open, which is therefore made here.

use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::{NormalizedString, Normalizer as _, PreTokenizedString, PreTokenizer as _, Trainer as _};
use tokenizers::{NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizerWrapper};

/// Ends every text.
pub const END: &str = "</s>";
/// Stands for nothing, as bytes spell every text; transformers wants one.
pub const UNKNOWN: &str = "<unk>";
/// Fills texts up and begins targets.
pub const PADDING: &str = "<pad>";
/// Stands for a space.
const SPACE: &str = "\u{2581}";
/// A character or pair seen once would be learned by heart.
const LEAST_COUNT: usize = 2;
/// The largest share of the vocabulary that characters take.
const CHARACTERS: f64 = 0.4;

/// The token that says what to translate to.
pub fn language_token(language: &str) -> String {
    format!(">>{language}<<")
}

/// The stages before the model, as `tokenizer.json` describes them.
struct Stages {
    normalizer: Value,
    pre_tokenizer: Value,
}

impl Stages {
    fn new() -> Self {
        Self {
            normalizer: json!({ "type": "Sequence", "normalizers": [
                { "type": "NFKC" },
                { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
                { "type": "Strip", "strip_left": true, "strip_right": true },
            ]}),
            pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": true },
                { "type": "Punctuation", "behavior": "Isolated" },
            ]}),
        }
    }
}

/// The text of a `tokenizer.json` with at most `size` tokens, a token for each of `languages` among them, learned from `texts`.
/// A text given `n` times counts `n` times.
///
/// # Errors
/// A size that leaves no room for characters and merges.
pub fn train<T: AsRef<str> + Send + Sync>(texts: &[T], languages: &[String], size: usize) -> Result<String> {
    let mut fixed = vec![END.to_owned(), UNKNOWN.to_owned()];
    fixed.extend(languages.iter().map(|language| language_token(language)));
    let marks = fixed.len();
    fixed.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    let least = fixed.len() + 1 + 64;
    if size < least {
        return Err(Error::request(format!("a vocabulary of {size} tokens has no room for words")).with_help(format!(
            "bytes, marks and {} languages take {}; 8000 to 16000 are usual",
            languages.len(),
            least - 64
        )));
    }
    let room = size - fixed.len() - 1;
    let stages = Stages::new();
    let learned = learn(texts, &stages, room).map_err(|e| Error::failure(format!("learning the vocabulary: {e}")))?;
    let mut tokens = fixed;
    tokens.extend(learned.tokens);
    tokens.push(PADDING.to_owned());
    let vocabulary: BTreeMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": tokens[id], "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let added: Vec<Value> = (0..marks).chain([tokens.len() - 1]).map(special).collect();
    let end = json!({ "SpecialToken": { "id": END, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": stages.normalizer,
        "pre_tokenizer": stages.pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text("A"), end],
            "pair": [text("A"), text("B"), end],
            "special_tokens": { END: { "id": END, "ids": [0], "tokens": [END] } },
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": SPACE }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ]},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": learned.merges,
        },
    });
    serde_json::to_string_pretty(&tokenizer).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))
}

struct Learned {
    /// Characters by code, then what the merges make, in their order.
    tokens: Vec<String>,
    merges: Value,
}

fn learn<T: AsRef<str> + Send + Sync>(texts: &[T], stages: &Stages, room: usize) -> tokenizers::Result<Learned> {
    let normalizer: NormalizerWrapper = serde_json::from_value(stages.normalizer.clone())?;
    let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(stages.pre_tokenizer.clone())?;
    let words = |text: &str| -> tokenizers::Result<Vec<String>> {
        let mut text = NormalizedString::from(text);
        normalizer.normalize(&mut text)?;
        let mut parts = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut parts)?;
        let parts = parts.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(parts.into_iter().map(|(word, ..)| word.to_owned()).collect())
    };
    // The characters that the vocabulary has: the most frequent, at ties those with the smaller code.
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for text in texts {
        words(text.as_ref())?.iter().flat_map(|word| word.chars()).for_each(|c| *counts.entry(c).or_default() += 1);
    }
    let mut frequent: Vec<(char, usize)> = counts.into_iter().filter(|(_, count)| *count >= LEAST_COUNT).collect();
    frequent.sort_by(|(a, m), (b, n)| n.cmp(m).then(a.cmp(b)));
    frequent.truncate((room as f64 * CHARACTERS) as usize);
    let known: HashSet<char> = frequent.into_iter().map(|(c, _)| c).collect();

    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(room)
        .min_frequency(LEAST_COUNT as u64)
        .max_token_length(Some(24))
        .build();
    trainer.feed(texts.iter(), |text| {
        // Nothing is merged across a rare character.
        let parts = |word: String| -> Vec<String> {
            word.split(|c| !known.contains(&c)).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        Ok(words(text)?.into_iter().flat_map(parts).collect())
    })?;
    let mut model = BPE::default();
    trainer.train(&mut model)?;
    let model = serde_json::to_value(&model)?;
    let vocabulary = model.get("vocab").and_then(Value::as_object).into_iter().flatten();
    let mut tokens: Vec<(u64, String)> =
        vocabulary.map(|(token, id)| (id.as_u64().unwrap_or(u64::MAX), token.clone())).collect();
    tokens.sort_unstable();
    Ok(Learned { tokens: tokens.into_iter().map(|(_, token)| token).collect(), merges: model["merges"].clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Tokenizer;

    fn texts() -> Vec<String> {
        let said = [
            "grinning face",
            "lachendes Gesicht",
            "grinning cat",
            "lachende Katze",
            "face: grinning",
            "ニヤリ",
            "ニヤリ",
        ];
        said.iter().cycle().take(60).map(|text| (*text).to_owned()).collect()
    }

    fn languages() -> Vec<String> {
        ["de", "en", "ja"].map(str::to_owned).to_vec()
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_json(&train(&texts(), &languages(), 400).unwrap(), "tokenizer.json").unwrap()
    }

    #[test]
    fn texts_come_back_and_frequent_words_are_one_token() {
        let tokenizer = tokenizer();
        for text in ["grinning face", "face: grinning", "ニヤリ", "Ünbekannt 猫", "a  b"] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(*ids.last().unwrap(), 0, "every text ends");
            let shown = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), shown);
        }
        assert_eq!(tokenizer.encode("grinning face", true).unwrap().len(), 3);
        let spelt = tokenizer.encode("猫", false).unwrap();
        let bytes: Vec<String> = spelt.iter().skip(1).map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(bytes, ["<0xE7>", "<0x8C>", "<0xAB>"], "{spelt:?}");
    }

    #[test]
    fn marks_stand_where_marian_has_them() {
        let tokenizer = tokenizer();
        let id = |token: &str| tokenizer.token_id(token).unwrap();
        assert_eq!(
            [id("</s>"), id("<unk>"), id(">>de<<"), id(">>en<<"), id(">>ja<<"), id("<0x00>")],
            [0, 1, 2, 3, 4, 5]
        );
        assert_eq!(id("<pad>") as usize, tokenizer.vocabulary_size() - 1);
        assert!(tokenizer.vocabulary_size() <= 400);
        // The language's token may stand in the text, with or without a space.
        let whole = tokenizer.encode(">>de<< grinning face", true).unwrap();
        let prepended = [&[2], tokenizer.encode("grinning face", true).unwrap().as_slice()].concat();
        assert_eq!(whole, prepended);
        assert_eq!(tokenizer.encode(">>de<<grinning face", true).unwrap(), whole);
    }

    #[test]
    fn the_same_texts_in_any_order_give_the_same_file() {
        let mut other = texts();
        other.reverse();
        assert_eq!(train(&texts(), &languages(), 330).unwrap(), train(&other, &languages(), 330).unwrap());
        let error = train(&texts(), &languages(), 300).unwrap_err();
        assert_eq!(error.to_string(), "a vocabulary of 300 tokens has no room for words");
    }
}
