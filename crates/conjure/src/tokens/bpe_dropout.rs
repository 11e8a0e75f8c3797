//! A word in other pieces each time it is read: "BPE-Dropout: Simple and Effective Subword Regularization", Provilkov et al.
//! 2020, <https://arxiv.org/abs/1910.13267>. A model that sees `heart` as `he art` and `h ear t` as well shall learn what the
//! pieces mean, for words that it never sees.

use crate::{Error, Result};
use conjure_core::rng::Generator;
use serde::Deserialize;
use std::collections::HashMap;

/// The merges of a vocabulary of byte pairs, by ids.
pub struct BpeDropout {
    /// What two neighbours become, and the merge's place in the list: the earliest is made first.
    merges: HashMap<(u32, u32), (usize, u32)>,
    /// The two that a token was made of.
    parts: HashMap<u32, (u32, u32)>,
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

impl BpeDropout {
    /// The merges in the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// It describes no byte pairs, or merges of tokens that the vocabulary lacks.
    pub fn from_json(text: &str) -> Result<Self> {
        let TokenizerJson { model: Model { vocab, merges: list } } = serde_json::from_str(text)
            .map_err(|e| Error::failure(format!("tokenizer.json describes no merges of byte pairs: {e}")))?;
        let id = |token: &str| {
            let known = vocab.get(token).copied();
            known.ok_or_else(|| Error::failure(format!("tokenizer.json merges \"{token}\", which is no token")))
        };
        let (mut merges, mut parts) = (HashMap::new(), HashMap::new());
        for (place, (left, right)) in list.iter().enumerate() {
            let (pair, merged) = ((id(left)?, id(right)?), id(&format!("{left}{right}"))?);
            merges.entry(pair).or_insert((place, merged));
            parts.entry(merged).or_insert(pair);
        }
        Ok(Self { merges, parts })
    }

    /// The tokens of the same text when each merge that could be made next is left out with probability `rate`, anew at each
    /// step (algorithm 1 of the paper). With `rate` 0 they are those of the tokenizer; tokens that no merge made stay.
    pub fn apply(&self, ids: &[u32], rate: f64, generator: &mut dyn Generator) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(2 * ids.len());
        ids.iter().for_each(|id| self.take_apart(*id, &mut tokens));
        loop {
            let possible: Vec<(usize, usize, u32)> = tokens
                .windows(2)
                .enumerate()
                .filter_map(|(at, pair)| {
                    self.merges.get(&(pair[0], pair[1])).map(|(place, merged)| (*place, at, *merged))
                })
                .collect();
            let kept = generator.uniform(possible.len()).into_iter().map(|u| f64::from(u) >= rate);
            let Some((_, at, merged)) = possible.iter().zip(kept).filter(|(_, kept)| *kept).map(|(next, _)| next).min()
            else {
                return tokens;
            };
            tokens[*at] = *merged;
            tokens.remove(at + 1);
        }
    }

    /// The characters or bytes of a token.
    fn take_apart(&self, id: u32, into: &mut Vec<u32>) {
        match self.parts.get(&id) {
            // Parts come earlier in the list than what is made of them.
            Some((left, right)) => {
                self.take_apart(*left, into);
                self.take_apart(*right, into);
            }
            None => into.push(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{Tokenizer, train_translation};
    use conjure_core::rng::Torch;
    use std::collections::BTreeSet;

    const TEXTS: [&str; 6] = [
        "grinning face",
        "grinning cat, face",
        "the cat's face",
        "猫の顔",
        "lachendes Gesicht (12:30)",
        "Ünbekannt → 猫",
    ];

    fn made() -> (Tokenizer, BpeDropout) {
        let texts: Vec<&str> = TEXTS.iter().copied().cycle().take(60).collect();
        let json = train_translation::train(&texts, &["de".to_owned(), "en".to_owned()], 460).unwrap();
        (Tokenizer::from_json(&json, "tokenizer.json").unwrap(), BpeDropout::from_json(&json).unwrap())
    }

    /// Nothing left out: the pieces of the tokenizers crate.
    #[test]
    fn without_dropout_the_tokens_are_the_tokenizers() {
        let (tokenizer, dropout) = made();
        for text in TEXTS {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(dropout.apply(&ids, 0.0, &mut Torch::new(1)), ids, "{text}");
        }
    }

    #[test]
    fn a_text_in_other_pieces_says_the_same() {
        let (tokenizer, dropout) = made();
        let mut generator = Torch::new(5);
        for text in TEXTS {
            let ids = tokenizer.encode(text, true).unwrap();
            let drawn: Vec<Vec<u32>> = (0..50).map(|_| dropout.apply(&ids, 0.3, &mut generator)).collect();
            for other in &drawn {
                assert_eq!(tokenizer.decode(other, true).unwrap(), text);
                assert_eq!(other.last(), ids.last(), "the end stays one token");
            }
            assert!(drawn.iter().collect::<BTreeSet<_>>().len() > 3, "{text} is read in different ways");
        }
        // All merges left out: characters, spaces being their words'.
        let ids = tokenizer.encode("cat face", false).unwrap();
        let letters = dropout.apply(&ids, 1.0, &mut generator);
        let shown: Vec<String> = letters.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(shown, ["▁", "c", "a", "t", "▁", "f", "a", "c", "e"]);
    }

    /// `ab` of one merge stays whole unless that merge is left out.
    #[test]
    fn each_merge_is_left_out_at_its_rate() {
        let json = r#"{"model": {"vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3}, "merges": [["a", "b"], ["ab", "b"]]}}"#;
        let dropout = BpeDropout::from_json(json).unwrap();
        let mut generator = Torch::new(9);
        let drawn: Vec<Vec<u32>> = (0..4000).map(|_| dropout.apply(&[3], 0.25, &mut generator)).collect();
        let share = |tokens: &[u32]| drawn.iter().filter(|drawn| *drawn == tokens).count() as f64 / 4000.0;
        // Binomial: standard deviations below 0.008.
        assert!((share(&[0, 1, 1]) - 0.25).abs() < 0.03);
        assert!((share(&[2, 1]) - 0.75 * 0.25).abs() < 0.03);
        assert!((share(&[3]) - 0.75 * 0.75).abs() < 0.03);
        assert_eq!(dropout.apply(&[3, 7], 0.0, &mut Torch::new(1)), [3, 7], "others stay as they are");
    }

    #[test]
    fn what_is_no_vocabulary_of_byte_pairs_is_refused() {
        let told = |text: &str| BpeDropout::from_json(text).err().unwrap().to_string();
        assert!(told("{}").starts_with("tokenizer.json describes no merges of byte pairs"));
        let lacking = r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}"#;
        assert_eq!(told(lacking), "tokenizer.json merges \"ab\", which is no token");
    }
}
