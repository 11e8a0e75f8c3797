//! CLIP's byte-level byte-pair encoding: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
//! Supervision", <https://arxiv.org/abs/2103.00020>, with the merges of Sennrich et al. 2016,
//! <https://arxiv.org/abs/1508.07909>.
//!
//! Text is brought to Unicode NFC, runs of white space become one space, letters become lower case; words, single digits
//! and runs of punctuation are then split and merged byte by byte, the last byte of each carrying `</w>`. This is what
//! transformers' `CLIPTokenizer` does. Files are read as data: like transformers, only the vocabulary, the merges and the
//! added tokens are taken from `tokenizer.json`, and the pipeline around them is built here, so that a tokenizer file
//! cannot bring along patterns of its own.

mod files;

use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior, Tokenizer,
};

/// Marks the start of a text in CLIP's vocabulary.
pub const START_OF_TEXT: &str = "<|startoftext|>";
/// Marks the end of a text in CLIP's vocabulary.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Tokens that CLIP's text encoder reads at once, start and end marks included.
pub const CONTEXT_LENGTH: usize = 77;

/// Context lengths above this one are refused; transformers writes 1e30 for "unknown", which means [`CONTEXT_LENGTH`].
const MAX_CONTEXT_LENGTH: usize = 4096;

const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The tokens with a special meaning, by their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Put before each text.
    pub start: String,
    /// Put after each text.
    pub end: String,
    /// Stands for what the vocabulary cannot spell.
    pub unknown: String,
    /// Fills a text up to the context length: the end token in Stable Diffusion 1.x, `!` in 2.x.
    pub padding: String,
}

impl Default for SpecialTokens {
    fn default() -> Self {
        Self {
            start: START_OF_TEXT.into(),
            end: END_OF_TEXT.into(),
            unknown: END_OF_TEXT.into(),
            padding: END_OF_TEXT.into(),
        }
    }
}

/// CLIP's tokenizer: text to ids and back.
pub struct ClipTokenizer {
    inner: Tokenizer,
    vocabulary: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    special: SpecialTokens,
    /// Tokens found before any splitting, in the order in which they are declared; a later entry for the same text wins.
    added: Vec<AddedToken>,
    start: u32,
    end: u32,
    padding: u32,
    context_length: usize,
    /// How many ids a learned token stands for, by its first id.
    learned: BTreeMap<u32, u32>,
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClipTokenizer")
            .field("vocabulary", &self.vocabulary.len())
            .field("merges", &self.merges.len())
            .field("special", &self.special)
            .field("context_length", &self.context_length)
            .finish()
    }
}

impl ClipTokenizer {
    /// A tokenizer of this vocabulary (token text to id) and these merges, best first.
    ///
    /// # Errors
    /// A special token that the vocabulary lacks, two tokens with one id, a merge of unknown tokens, a context length
    /// outside `3..=4096`.
    pub fn new(
        vocabulary: BTreeMap<String, u32>,
        merges: Vec<(String, String)>,
        special: SpecialTokens,
        context_length: usize,
    ) -> Result<Self> {
        let added = [&special.start, &special.end, &special.unknown, &special.padding];
        let added = added.map(|text| AddedToken::from(text.as_str(), true)).to_vec();
        Self::build(vocabulary, merges, Settings { special, added, ids: BTreeMap::new(), context_length })
            .map_err(Error::request)
    }

    /// The smallest tokenizer in CLIP's layout: 256 byte symbols, their `</w>` forms, start and end token; 514 ids and no
    /// merges. Every text becomes its UTF-8 bytes. It belongs to tiny models that are made at random.
    pub fn tiny() -> Self {
        let mut vocabulary = BTreeMap::new();
        for (id, symbol) in byte_symbols().into_iter().enumerate() {
            vocabulary.insert(symbol.to_string(), id as u32);
            vocabulary.insert(format!("{symbol}</w>"), id as u32 + 256);
        }
        vocabulary.insert(START_OF_TEXT.into(), 512);
        vocabulary.insert(END_OF_TEXT.into(), 513);
        Self::new(vocabulary, Vec::new(), SpecialTokens::default(), CONTEXT_LENGTH)
            .expect("256 symbols, their ends and two marks are a vocabulary")
    }

    /// The same tokenizer with another padding token, such as `!` for Stable Diffusion 2.x.
    ///
    /// As in transformers, text that spells the padding token becomes that token.
    ///
    /// # Errors
    /// A token that the vocabulary lacks.
    pub fn with_padding(&self, token: &str) -> Result<Self> {
        let special = SpecialTokens { padding: token.into(), ..self.special.clone() };
        let mut added = self.added.clone();
        added.retain(|t| t.content != self.special.padding || self.special.padding == self.special.end);
        added.push(AddedToken::from(token, true));
        let settings = Settings { special, added, ids: BTreeMap::new(), context_length: self.context_length };
        let rebuilt = Self::build(self.vocabulary.clone(), self.merges.clone(), settings).map_err(Error::request)?;
        Ok(Self { learned: self.learned.clone(), ..rebuilt })
    }

    /// The same tokenizer with a token that was learned by textual inversion (Gal et al. 2022,
    /// <https://arxiv.org/abs/2208.01618>): wherever a text spells it, in any case, it becomes `vectors` ids from `first_id`
    /// on. A token of letters at both ends is found only as a whole word.
    ///
    /// # Errors
    /// No text, no vectors; a token that the vocabulary has already; ids that it uses.
    pub fn with_learned(&self, token: &str, first_id: u32, vectors: usize) -> Result<Self> {
        if token.trim().is_empty() || vectors == 0 {
            return Err(Error::request(format!("a learned token {token:?} of {vectors} vectors means nothing")));
        }
        if self.vocabulary.contains_key(token) {
            return Err(Error::request(format!("the tokenizer already has a token {token:?}"))
                .with_help("rename the token: it is the key in the file, or the file's name"));
        }
        let last = u32::try_from(vectors - 1).ok().and_then(|more| first_id.checked_add(more));
        let free = (first_id as usize) >= self.vocabulary_size();
        let Some(last) = last.filter(|_| free) else {
            return Err(Error::request(format!("the ids from {first_id} on are not free for {token:?}")));
        };
        let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let whole_word = letter(token.chars().next()) && letter(token.chars().next_back());
        let mut added = self.added.clone();
        added.push(AddedToken::from(token, true).normalized(true).single_word(whole_word));
        let settings = Settings {
            special: self.special.clone(),
            added,
            ids: BTreeMap::from([(token.to_owned(), first_id)]),
            context_length: self.context_length,
        };
        let rebuilt = Self::build(self.vocabulary.clone(), self.merges.clone(), settings).map_err(Error::request)?;
        let mut learned = self.learned.clone();
        learned.insert(first_id, last - first_id + 1);
        Ok(Self { learned, ..rebuilt })
    }

    fn build(
        mut vocabulary: BTreeMap<String, u32>,
        merges: Vec<(String, String)>,
        settings: Settings,
    ) -> std::result::Result<Self, String> {
        let Settings { special, added, ids, context_length } = settings;
        if !(3..=MAX_CONTEXT_LENGTH).contains(&context_length) {
            return Err(format!("a context length of {context_length} tokens is outside 3..={MAX_CONTEXT_LENGTH}"));
        }
        for (text, id) in ids {
            vocabulary.entry(text).or_insert(id);
        }
        let mut texts = HashMap::with_capacity(vocabulary.len());
        for (text, id) in &vocabulary {
            if let Some(other) = texts.insert(*id, text) {
                return Err(format!("the tokens {other:?} and {text:?} have the same id {id}"));
            }
        }
        // The crate joins the halves of a merge in a buffer as long as the longest token: check before it does.
        for (left, right) in &merges {
            for token in [left.clone(), right.clone(), format!("{left}{right}")] {
                if !vocabulary.contains_key(&token) {
                    return Err(format!("the merge \"{left} {right}\" needs the token {token:?}, which is missing"));
                }
            }
        }
        let id = |role: &str, text: &str| {
            vocabulary.get(text).copied().ok_or_else(|| format!("the {role} token {text:?} is not in the vocabulary"))
        };
        let (start, end) = (id("start", &special.start)?, id("end", &special.end)?);
        let padding = id("padding", &special.padding)?;
        id("unknown", &special.unknown)?;

        let crate_error = |e: tokenizers::Error| e.to_string();
        let model = BPE::builder()
            .vocab_and_merges(vocabulary.clone().into_iter().collect::<Vocab>(), merges.clone())
            .end_of_word_suffix("</w>".into())
            .unk_token(special.unknown.clone())
            .build()
            .map_err(crate_error)?;
        let mut inner = Tokenizer::new(model);
        let one_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(crate_error)?;
        inner
            .with_normalizer(Some(Normalizers::new(vec![NFC.into(), one_space.into(), Lowercase.into()])))
            .map_err(crate_error)?;
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true);
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![
            words.map_err(crate_error)?.into(),
            ByteLevel::new(false, true, true).into(),
        ])));
        inner.with_decoder(Some(ByteLevel::default()));
        // Not used to encode here, but written into tokenizer.json for other readers.
        inner.with_post_processor(Some(
            RobertaProcessing::new((special.end.clone(), end), (special.start.clone(), start))
                .trim_offsets(false)
                .add_prefix_space(false),
        ));
        inner.add_special_tokens(added.clone()).map_err(crate_error)?;
        Ok(Self {
            inner,
            vocabulary,
            merges,
            special,
            added,
            start,
            end,
            padding,
            context_length,
            learned: BTreeMap::new(),
        })
    }

    /// The ids of a text, without start, end and padding.
    ///
    /// # Errors
    /// A vocabulary without the text's bytes and without a token for the unknown.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::failure(format!("the text cannot be tokenized: {e}")))?;
        let ids = encoding.get_ids();
        if self.learned.is_empty() {
            return Ok(ids.to_vec());
        }
        Ok(ids.iter().flat_map(|id| *id..id + self.learned.get(id).copied().unwrap_or(1)).collect())
    }

    /// The words into which a text is split before merging, their bytes as [`byte_symbols`]; marks of start and end that
    /// the text spells out are left out.
    pub(super) fn words(&self, text: &str) -> Result<Vec<String>> {
        let failed = |e: tokenizers::Error| Error::failure(format!("the text cannot be split into words: {e}"));
        let mut text = NormalizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut text).map_err(failed)?;
        }
        let mut split = PreTokenizedString::from(text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split).map_err(failed)?;
        }
        let words =
            split.get_splits(OffsetReferential::Normalized, OffsetType::None).into_iter().map(|(word, ..)| word);
        Ok(words.filter(|word| *word != self.special.start && *word != self.special.end).map(str::to_owned).collect())
    }

    /// The ids of a text in one window: start, the text cut to fit, end, padding; [`Self::context_length`] ids.
    ///
    /// This is what diffusers feeds to the text encoder for a prompt without weights.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_window(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        ids.truncate(self.context_length - 2);
        ids.insert(0, self.start);
        ids.push(self.end);
        ids.resize(self.context_length, self.padding);
        Ok(ids)
    }

    /// A text with these ids; start, end and padding tokens are left out, and so is the original's case and spacing.
    ///
    /// # Errors
    /// None for ids of this tokenizer; unknown ids are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, true).map_err(|e| Error::failure(format!("cannot decode: {e}")))?;
        Ok(text.replace("</w>", " ").trim().to_owned())
    }

    /// The token with this id as it stands in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of the start token.
    pub fn start_id(&self) -> u32 {
        self.start
    }

    /// The id of the end token.
    pub fn end_id(&self) -> u32 {
        self.end
    }

    /// The id of the padding token.
    pub fn padding_id(&self) -> u32 {
        self.padding
    }

    /// Tokens in one window, start and end included.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// One more than the largest id: the rows that a text encoder's embedding must have.
    pub fn vocabulary_size(&self) -> usize {
        let ends = self.vocabulary.values().map(|id| id + self.learned.get(id).copied().unwrap_or(1));
        ends.max().unwrap_or(0) as usize
    }
}

/// The 256 characters that stand for the 256 bytes, in CLIP's order of ids: printable Latin-1 stands for itself and comes
/// first, the other bytes follow as the characters from U+0100 on.
pub fn byte_symbols() -> Vec<char> {
    let printable = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff).map(char::from);
    let others = (0..256 - printable.clone().count() as u32).filter_map(|n| char::from_u32(256 + n));
    printable.clone().chain(others).collect()
}

/// What a tokenizer is built of beside its vocabulary and merges.
struct Settings {
    special: SpecialTokens,
    added: Vec<AddedToken>,
    /// Ids of added tokens that the vocabulary may lack.
    ids: BTreeMap<String, u32>,
    context_length: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_spells_bytes() -> Result<()> {
        let tiny = ClipTokenizer::tiny();
        assert_eq!(tiny.vocabulary_size(), 514);
        // 'a' is the 65th printable byte after '!': id 64; the last byte of a word carries </w>: + 256.
        assert_eq!(tiny.encode("Ab a")?, [64, 65 + 256, 64 + 256]);
        // U+00E9 is C3 A9 in UTF-8; both stand for themselves: 94 + 12 + (0xC3 - 0xAE) and 94 + (0xA9 - 0xA1).
        assert_eq!(tiny.encode("é")?, [94 + 12 + 0xc3 - 0xae, 94 + 8 + 256]);
        let window = tiny.encode_window("ab")?;
        assert_eq!(window.len(), 77);
        assert_eq!(window[..4], [512, 64, 65 + 256, 513]);
        assert!(window[4..].iter().all(|id| *id == 513));
        assert_eq!(tiny.decode(&window)?, "ab");
        Ok(())
    }

    #[test]
    fn windows_are_cut_to_the_context() -> Result<()> {
        let tiny = ClipTokenizer::tiny();
        let window = tiny.encode_window(&"x ".repeat(500))?;
        assert_eq!(window.len(), 77);
        assert_eq!((window[0], window[76]), (512, 513));
        assert!(window[1..76].iter().all(|id| *id == 87 + 256));
        Ok(())
    }

    #[test]
    fn padding_can_be_an_exclamation_mark() -> Result<()> {
        let tiny = ClipTokenizer::tiny().with_padding("!")?;
        assert_eq!(tiny.padding_id(), 0);
        // As in transformers, an exclamation mark in the text is the padding token too.
        assert_eq!(tiny.encode_window("a!")?[..5], [512, 64 + 256, 0, 513, 0]);
        assert!(ClipTokenizer::tiny().with_padding("[PAD]").is_err());
        Ok(())
    }

    #[test]
    fn learned_tokens_take_their_ids_wherever_they_are_spelled() -> Result<()> {
        let tiny = ClipTokenizer::tiny();
        let learned = tiny.with_learned("<cat>", 514, 1)?.with_learned("My-Style", 515, 3)?;
        assert_eq!(learned.vocabulary_size(), 518);
        assert_eq!(learned.encode("a<cat>b")?, [64 + 256, 514, 65 + 256]);
        assert_eq!(learned.encode("a my-style")?, [64 + 256, 515, 516, 517]);
        // Within a longer word it is no word.
        assert_eq!(learned.encode("my-styles")?, tiny.encode("my-styles")?);
        assert_eq!(learned.with_padding("!")?.encode("<cat> my-style")?, [514, 515, 516, 517]);
        for (token, id, vectors) in
            [("<cat>", 518, 1), ("new", 517, 1), (" ", 518, 1), ("new", 518, 0), ("x", u32::MAX, 2)]
        {
            assert!(learned.with_learned(token, id, vectors).is_err(), "{token}");
        }
        Ok(())
    }
}
