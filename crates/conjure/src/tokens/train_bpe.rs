//! Learns a byte-pair vocabulary in CLIP's layout from texts: Sennrich et al. 2016, "Neural Machine Translation of Rare Words
//! with Subword Units", <https://arxiv.org/abs/1508.07909>, algorithm 1, on bytes as in Radford et al. 2019.
//!
//! Texts are normalised and split into words by the tokenizer that will read them ([`ClipTokenizer`]). Each word is the
//! sequence of its UTF-8 bytes, the last of which ends the word. Again and again the most frequent pair of neighbours
//! becomes one token. The `tokenizers` crate's own trainer is not used: it numbers the symbols at the ends of words in the
//! order of a hash table, so that neither ids nor ties between pairs are the same twice.
//!
//! Ids are CLIP's: 256 byte symbols, their 256 ends of words, a token for each merge, start, end.

use super::ClipTokenizer;
use super::clip_tokenizer::{END_OF_TEXT, START_OF_TEXT, SpecialTokens, byte_symbols};
use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

/// Byte symbols, their ends of words, and the two marks: the size of a vocabulary without merges.
pub const SMALLEST_VOCABULARY: usize = 514;
/// A pair seen once would be learned by heart without making any other text shorter.
const LEAST_COUNT: u64 = 2;

type Pair = (u32, u32);

/// A tokenizer with at most `vocabulary_size` ids whose merges make `texts` short, and windows of `context_length` tokens
/// (`model_max_length` in its files). It has fewer ids where no pair is left that occurs twice. A text given `n` times
/// counts `n` times. Ties go to the pair with the smaller ids, so the same texts in any order give the same tokenizer.
///
/// # Errors
/// A vocabulary smaller than [`SMALLEST_VOCABULARY`], a context length outside `3..=4096`.
pub fn train<T: AsRef<str>>(
    texts: impl IntoIterator<Item = T>,
    vocabulary_size: usize,
    context_length: usize,
) -> Result<ClipTokenizer> {
    if vocabulary_size < SMALLEST_VOCABULARY {
        return Err(Error::request(format!("a vocabulary of {vocabulary_size} tokens cannot spell every text"))
            .with_help(format!("256 bytes, their ends of words and two marks take {SMALLEST_VOCABULARY} tokens")));
    }
    let (mut vocabulary, mut merges) = (Vocabulary::bytes(), Vec::new());
    let mut corpus = Corpus::read(texts)?;
    while vocabulary.texts.len() + 2 < vocabulary_size
        && let Some((left, right)) = corpus.most_frequent_pair()
    {
        let [a, b] = [left, right].map(|id| vocabulary.texts[id as usize].clone());
        let merged = vocabulary.id(format!("{a}{b}"));
        merges.push((a, b));
        corpus.merge((left, right), merged);
    }
    for mark in [START_OF_TEXT, END_OF_TEXT] {
        vocabulary.id(mark.to_owned());
    }
    let ids = vocabulary.ids.into_iter().collect();
    ClipTokenizer::new(ids, merges, SpecialTokens::default(), context_length)
}

/// Tokens by id, and back.
struct Vocabulary {
    texts: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    fn bytes() -> Self {
        let symbols = byte_symbols();
        let plain = symbols.iter().map(char::to_string);
        let ends = symbols.iter().map(|symbol| format!("{symbol}</w>"));
        let texts: Vec<String> = plain.chain(ends).collect();
        let ids = texts.iter().cloned().zip(0..).collect();
        Self { texts, ids }
    }

    /// The token's id; a new one where two merges do not lead to the same token.
    fn id(&mut self, text: String) -> u32 {
        *self.ids.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            self.texts.len() as u32 - 1
        })
    }
}

/// The distinct words as sequences of ids, and which pairs occur where.
struct Corpus {
    /// A word's tokens so far, and how often the texts contain it.
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    /// The words that contain a pair, or did before another pair was merged.
    occurrences: HashMap<Pair, HashSet<usize>>,
    /// Pairs by count, smaller ids first; an entry whose count is no longer true is corrected when it comes up.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl Corpus {
    fn read<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self> {
        let splitter = ClipTokenizer::tiny();
        let mut distinct: BTreeMap<String, u64> = BTreeMap::new();
        for text in texts {
            for word in splitter.words(text.as_ref())? {
                *distinct.entry(word).or_default() += 1;
            }
        }
        let ids: HashMap<char, u32> = byte_symbols().into_iter().zip(0..).collect();
        let words = distinct.into_iter().map(|(word, count)| {
            let mut tokens: Vec<u32> = word.chars().filter_map(|symbol| ids.get(&symbol).copied()).collect();
            if let Some(last) = tokens.last_mut() {
                *last += 256;
            }
            (tokens, count)
        });
        let mut corpus = Self {
            words: words.collect(),
            counts: HashMap::new(),
            occurrences: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (n, (tokens, count)) in corpus.words.iter().enumerate() {
            for pair in tokens.windows(2).map(|pair| (pair[0], pair[1])) {
                *corpus.counts.entry(pair).or_default() += count;
                corpus.occurrences.entry(pair).or_default().insert(n);
            }
        }
        corpus.queue = corpus.counts.iter().map(|(pair, count)| (*count, Reverse(*pair))).collect();
        Ok(corpus)
    }

    fn most_frequent_pair(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now < LEAST_COUNT {
                continue;
            }
            if now == count {
                return Some(pair);
            }
            self.queue.push((now, Reverse(pair)));
        }
        None
    }

    /// Replaces `pair` by `merged` wherever it occurs; where occurrences overlap, the left one counts.
    fn merge(&mut self, pair: Pair, merged: u32) {
        let mut grown = HashSet::new();
        for n in self.occurrences.remove(&pair).unwrap_or_default() {
            let (tokens, count) = &mut self.words[n];
            for old in tokens.windows(2).map(|pair| (pair[0], pair[1])) {
                if let Some(total) = self.counts.get_mut(&old) {
                    *total -= *count;
                }
            }
            let mut at = 0;
            let mut shorter = Vec::with_capacity(tokens.len());
            while at < tokens.len() {
                let found = tokens[at..].starts_with(&[pair.0, pair.1]);
                shorter.push(if found { merged } else { tokens[at] });
                at += if found { 2 } else { 1 };
            }
            *tokens = shorter;
            for new in tokens.windows(2).map(|pair| (pair[0], pair[1])) {
                *self.counts.entry(new).or_default() += *count;
                if new.0 == merged || new.1 == merged {
                    self.occurrences.entry(new).or_default().insert(n);
                    grown.insert(new);
                }
            }
        }
        self.counts.remove(&pair);
        self.queue.extend(grown.into_iter().map(|new| (self.counts[&new], Reverse(new))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(texts: &[&str], size: usize) -> ClipTokenizer {
        train(texts, size, 32).expect("a tokenizer")
    }

    #[test]
    fn frequent_pairs_become_tokens() -> Result<()> {
        // "low" three times, "lower" twice: l o is seen 5 times, then lo w</w> 3 times, lo w twice.
        let tokenizer = trained(&["low lower low", "LOWER", "low"], 514 + 3);
        assert_eq!(tokenizer.vocabulary_size(), 517);
        let tokens: Vec<_> = (512..517).map(|id| tokenizer.token(id).unwrap_or_default()).collect();
        assert_eq!(tokens, ["lo", "low</w>", "er</w>", START_OF_TEXT, END_OF_TEXT]);
        assert_eq!(tokenizer.encode("low")?, [513]);
        let window = tokenizer.encode_window("low")?;
        assert_eq!((window.len(), &window[..4]), (32, &[515, 513, 516, 516][..]));
        Ok(())
    }

    #[test]
    fn pairs_seen_once_are_not_learned_and_the_order_of_texts_does_not_matter() -> Result<()> {
        assert_eq!(trained(&["abc"], 600).vocabulary_size(), 514);
        assert_eq!(trained(&["ababc x", "y"], 600).vocabulary_size(), 514 + 1);
        let texts = ["red heart", "ein rotes Herz", "un cœur rouge", "赤いハート", "लाल दिल", "หัวใจสีแดง", "red hearts"];
        let mut reversed = texts;
        reversed.reverse();
        let [a, b] = [texts, reversed].map(|texts| trained(&texts, 560));
        for text in texts {
            assert_eq!(a.encode(text)?, b.encode(text)?);
        }
        Ok(())
    }

    #[test]
    fn overlapping_pairs_merge_from_the_left() -> Result<()> {
        // aaaa</w> three times: the pair a a is seen twice in a word of 5 letters as a a | a a | a.
        let tokenizer = trained(&["aaaaa aaaaa"], 515);
        assert_eq!(tokenizer.encode("aaaaa")?.len(), 3);
        Ok(())
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let message = |size, length| train(["a"], size, length).expect_err("refused").to_string();
        assert!(message(513, 32).contains("a vocabulary of 513 tokens"));
        assert!(message(600, 2).contains("context length of 2"));
    }
}
