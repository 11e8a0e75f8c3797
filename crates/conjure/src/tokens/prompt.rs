//! Prompts whose words weigh more or less, and prompts longer than the text encoder's window.
//!
//! | written | read as |
//! |---|---|
//! | `(word)` | weight times 1.1 |
//! | `[word]` | weight divided by 1.1 |
//! | `(word:1.3)` | weight times 1.3, in round brackets only |
//! | `((word))`, `(a [b])` | weights multiply |
//! | `\(` `\)` `\[` `\]` `\\` | the character itself |
//! | `BREAK` | the rest begins in a new window |
//!
//! A bracket without its partner is read literally, so `:)` stays what it is. The grammar is the one of AUTOMATIC1111's web
//! interface, which most written prompts follow. A prompt of more tokens than the text encoder's window holds (75, of CLIP's 77
//! positions) is cut into windows, each encoded alone with its own start and end token; their hidden states are joined along
//! time for cross-attention.

use super::ClipTokenizer;
use crate::{Error, Result};
use conjure_core::{DType, Device, Tensor};

/// Round brackets multiply by this, square brackets divide by it.
const EMPHASIS: f64 = 1.1;
/// Weights beyond this are refused: a model turns them into noise, and nested brackets overflow eventually.
const MAX_WEIGHT: f64 = 100.0;
/// Windows that a prompt may take. Attention over more text tokens than this costs more than attention over the picture.
pub const MAX_CHUNKS: usize = 32;
/// Longer prompts are refused before they are tokenized.
const MAX_BYTES: usize = 1 << 20;

/// A prompt, read: stretches of text with their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pieces: Vec<Piece>,
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Words of one weight.
    Text {
        /// The words, brackets and escapes removed.
        text: String,
        /// The product of the weights around them; 1 where there are none.
        weight: f64,
    },
    /// What follows begins in a new window.
    Break,
}

/// One window of a prompt as the text encoder reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Start token, tokens of text, end token, padding: as many as the tokenizer's context length.
    pub ids: Vec<u32>,
    /// A weight for each id; 1 for start, end and padding.
    pub weights: Vec<f32>,
}

/// What a bracket does once it is known whether it has a partner.
#[derive(Clone, Copy)]
enum Bracket {
    Open(f64),
    /// Ends a weight; the text before it ends at this byte, where `:1.3` begins if it is there.
    Close(usize),
    Literal,
}

impl Prompt {
    /// Reads a prompt with weights.
    ///
    /// # Errors
    /// A prompt of more than 1 MiB; a weight beyond ±100.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_BYTES {
            return Err(too_long(&format!("has {} bytes, the limit is {MAX_BYTES}", text.len())));
        }
        let brackets = match_brackets(text);
        let mut pieces = Vec::new();
        let mut weights = vec![1.0];
        let mut current = String::new();
        let mut brackets = brackets.into_iter().peekable();
        let mut chars = text.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            let bracket = brackets.next_if(|(position, ..)| *position == at);
            let weight = *weights.last().unwrap_or(&1.0);
            match (bracket.map(|(_, kind)| kind), c) {
                (Some(Bracket::Open(factor)), _) => {
                    push_text(&mut pieces, &mut current, weight);
                    weights.push(weight * factor);
                    if !(weight * factor).abs().le(&MAX_WEIGHT) {
                        return Err(Error::request(format!(
                            "a part of the prompt has the weight {:.4e}, the limit is ±{MAX_WEIGHT}",
                            weight * factor
                        ))
                        .with_help(
                            "use fewer nested brackets or a smaller number; weights between 0.5 and 1.5 work best",
                        ));
                    }
                }
                (Some(Bracket::Close(text_end)), _) => {
                    // The number of `:1.3` has been copied by now: take it off again.
                    current.truncate(current.len().saturating_sub(at - text_end));
                    push_text(&mut pieces, &mut current, weight);
                    weights.pop();
                }
                (_, '\\') if chars.peek().is_some_and(|(_, next)| r"()[]\".contains(*next)) => {
                    current.extend(chars.next().map(|(_, next)| next));
                }
                _ => current.push(c),
            }
        }
        push_text(&mut pieces, &mut current, 1.0);
        Ok(Self { pieces })
    }

    /// Takes a prompt as it stands: no weights, no breaks.
    pub fn literal(text: &str) -> Self {
        Self { pieces: vec![Piece::Text { text: text.to_owned(), weight: 1.0 }] }
    }

    /// The words alone, without weights and breaks: what a reader who knows neither is told.
    pub fn words(&self) -> String {
        let texts = self.pieces.iter().map(|piece| match piece {
            Piece::Text { text, .. } => text.as_str(),
            Piece::Break => " ",
        });
        texts.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The parts in the order in which they are read.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Tokenizes the prompt into windows; at least one, even for an empty prompt. For a prompt without weights and breaks
    /// that fits one window, its ids are those of [`ClipTokenizer::encode_window`].
    ///
    /// # Errors
    /// A prompt of more than [`MAX_CHUNKS`] windows, with its number of tokens.
    pub fn encode(&self, tokenizer: &ClipTokenizer) -> Result<Vec<Chunk>> {
        let per_chunk = tokenizer.context_length() - 2;
        let mut chunks: Vec<Vec<(u32, f32)>> = vec![Vec::new()];
        let mut tokens = 0;
        for piece in &self.pieces {
            match piece {
                Piece::Break => chunks.push(Vec::new()),
                Piece::Text { text, weight } => {
                    if text.len() > MAX_BYTES {
                        return Err(too_long(&format!("has {} bytes, the limit is {MAX_BYTES}", text.len())));
                    }
                    for id in tokenizer.encode(text)? {
                        if chunks.last().is_none_or(|chunk| chunk.len() == per_chunk) {
                            chunks.push(Vec::with_capacity(per_chunk));
                        }
                        if let Some(chunk) = chunks.last_mut() {
                            chunk.push((id, *weight as f32));
                        }
                        tokens += 1;
                    }
                }
            }
        }
        if chunks.len() > MAX_CHUNKS {
            let limit = MAX_CHUNKS * per_chunk;
            return Err(too_long(&format!(
                "has {tokens} tokens in {} windows, the limit is {limit} tokens in {MAX_CHUNKS} windows of {per_chunk}",
                chunks.len()
            )));
        }
        Ok(chunks.into_iter().map(|tokens| Chunk::new(tokenizer, &tokens)).collect())
    }

    /// Tokenizes a prompt and its negative into the same number of windows: the shorter one gets empty windows, as both
    /// halves of classifier-free guidance go through the U-Net in one batch.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_pair(&self, negative: &Self, tokenizer: &ClipTokenizer) -> Result<(Vec<Chunk>, Vec<Chunk>)> {
        let mut positive = self.encode(tokenizer)?;
        let mut negative = negative.encode(tokenizer)?;
        let chunks = positive.len().max(negative.len());
        positive.resize_with(chunks, || Chunk::new(tokenizer, &[]));
        negative.resize_with(chunks, || Chunk::new(tokenizer, &[]));
        Ok((positive, negative))
    }
}

fn too_long(fact: &str) -> Error {
    Error::request(format!("the prompt {fact}")).with_help("shorten the prompt; its first words matter most")
}

impl Chunk {
    fn new(tokenizer: &ClipTokenizer, tokens: &[(u32, f32)]) -> Self {
        let length = tokenizer.context_length();
        let mut ids = vec![tokenizer.start_id()];
        let mut weights = vec![1.0];
        ids.extend(tokens.iter().map(|(id, _)| id));
        weights.extend(tokens.iter().map(|(_, weight)| weight));
        ids.push(tokenizer.end_id());
        ids.resize(length, tokenizer.padding_id());
        weights.resize(length, 1.0);
        Self { ids, weights }
    }

    /// Whether every weight is 1.
    pub fn is_plain(&self) -> bool {
        self.weights.iter().all(|weight| *weight == 1.0)
    }
}

/// The ids of windows for the text encoder: `(chunks, context_length)`, `u32`.
///
/// # Errors
/// Windows of different lengths.
pub fn ids_tensor(chunks: &[Chunk], device: &Device) -> Result<Tensor> {
    let ids: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.ids.iter().copied()).collect();
    Ok(Tensor::from_vec(ids, (chunks.len(), chunks.first().map_or(0, |chunk| chunk.ids.len())), device)?)
}

/// Applies the weights of `chunks` to what the text encoder made of them, `hidden (chunks, context_length, hidden_size)`;
/// the same shape comes back.
///
/// Each token's hidden state is multiplied by its weight; then the window is scaled so that its mean over all tokens and
/// features is what it was before. This is the `original` emphasis mode of AUTOMATIC1111's web interface, window by window.
/// Windows whose weights are all 1 come back bit for bit.
///
/// # Errors
/// A number of windows or tokens that is not that of `hidden`.
pub fn apply_weights(hidden: &Tensor, chunks: &[Chunk]) -> Result<Tensor> {
    let (batch, length, _) = hidden.dims3()?;
    if batch != chunks.len() || chunks.iter().any(|chunk| chunk.weights.len() != length) {
        let lengths: Vec<_> = chunks.iter().map(|chunk| chunk.weights.len()).collect();
        return Err(Error::request(format!(
            "hidden states of {batch} windows of {length} tokens, weights of {lengths:?}"
        )));
    }
    if chunks.iter().all(Chunk::is_plain) {
        return Ok(hidden.clone());
    }
    let mut rows = Vec::with_capacity(batch);
    for (n, chunk) in chunks.iter().enumerate() {
        let row = hidden.narrow(0, n, 1)?; // (1, length, hidden_size)
        if chunk.is_plain() {
            rows.push(row);
            continue;
        }
        // In f32 whatever the encoder's type: the mean is a sum of tens of thousands of numbers of both signs.
        let wide = row.to_dtype(DType::F32)?;
        let weights = Tensor::from_slice(&chunk.weights, (1, length, 1), hidden.device())?;
        let weighted = wide.broadcast_mul(&weights)?;
        let mean = wide.mean_all()?.to_scalar::<f32>()?;
        let ratio = f64::from(mean) / f64::from(weighted.mean_all()?.to_scalar::<f32>()?);
        // A mean of zero cannot be restored by scaling.
        let restored = if ratio.is_finite() { (weighted * ratio)? } else { weighted };
        rows.push(restored.to_dtype(hidden.dtype())?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}

/// Every unescaped bracket of the text by position, partners found; linear in the text's length.
fn match_brackets(text: &str) -> Vec<(usize, Bracket)> {
    let mut found: Vec<(usize, Bracket)> = Vec::new();
    // Open brackets without a partner so far, as indices into `found`, and how many of them are round and square.
    let mut open: Vec<(usize, char)> = Vec::new();
    let (mut round, mut square) = (0, 0);
    let mut escaped = false;
    let mut last_bracket_end = 0;
    for (at, c) in text.char_indices() {
        if std::mem::take(&mut escaped) && r"()[]\".contains(c) {
            last_bracket_end = at + 1;
            continue;
        }
        match c {
            '\\' => escaped = true,
            '(' | '[' => {
                open.push((found.len(), c));
                *(if c == '(' { &mut round } else { &mut square }) += 1;
                found.push((at, Bracket::Literal));
                last_bracket_end = at + 1;
            }
            ')' | ']' => {
                let (partner, count) = if c == ')' { ('(', round) } else { ('[', square) };
                let mut close = Bracket::Literal;
                // Brackets of the other kind that were opened in between stay literal.
                while count > 0
                    && let Some((index, kind)) = open.pop()
                {
                    *(if kind == '(' { &mut round } else { &mut square }) -= 1;
                    if kind == partner {
                        let number = (c == ')').then(|| weight_suffix(&text[last_bracket_end..at])).flatten();
                        let (factor, length) = number.unwrap_or((if c == ')' { EMPHASIS } else { 1.0 / EMPHASIS }, 0));
                        found[index].1 = Bracket::Open(factor);
                        close = Bracket::Close(at - length);
                        break;
                    }
                }
                found.push((at, close));
                last_bracket_end = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// `:1.3` at the end of `text`: its number, and its length in bytes.
fn weight_suffix(text: &str) -> Option<(f64, usize)> {
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-') || c.is_whitespace();
    let before = text.trim_end_matches(is_number);
    if !before.ends_with(':') {
        return None;
    }
    let number = text[before.len()..].trim().parse().ok()?;
    Some((number, text.len() - before.len() + 1))
}

/// Adds `current` to the pieces, split at the word `BREAK`, and empties it.
fn push_text(pieces: &mut Vec<Piece>, current: &mut String, weight: f64) {
    let text = std::mem::take(current);
    let mut start = 0;
    for (at, word) in text.match_indices("BREAK") {
        let letter = |c: char| c.is_alphanumeric() || c == '_';
        let joined = text[..at].ends_with(letter) || text[at + word.len()..].starts_with(letter);
        if !joined {
            push_words(pieces, &text[start..at], weight);
            pieces.push(Piece::Break);
            start = at + word.len();
        }
    }
    push_words(pieces, &text[start..], weight);
}

fn push_words(pieces: &mut Vec<Piece>, text: &str, weight: f64) {
    if text.is_empty() {
        return;
    }
    // Neighbours of one weight are one piece, so that brackets which change nothing do not change how words are split.
    match pieces.last_mut() {
        Some(Piece::Text { text: last, weight: same }) if *same == weight => last.push_str(text),
        _ => pieces.push(Piece::Text { text: text.to_owned(), weight }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(String, f64)> {
        let pieces = Prompt::parse(text).expect("a prompt").pieces;
        pieces
            .into_iter()
            .map(|piece| match piece {
                Piece::Text { text, weight } => (text, (weight * 1e6).round() / 1e6),
                Piece::Break => ("BREAK".into(), 0.0),
            })
            .collect()
    }

    fn pieces(expected: &[(&str, f64)]) -> Vec<(String, f64)> {
        expected.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect()
    }

    #[test]
    fn weights_are_read() {
        assert_eq!(read("a cat"), pieces(&[("a cat", 1.0)]));
        assert_eq!(read("a (red) cat"), pieces(&[("a ", 1.0), ("red", 1.1), (" cat", 1.0)]));
        assert_eq!(read("a (red:1.3) cat"), pieces(&[("a ", 1.0), ("red", 1.3), (" cat", 1.0)]));
        assert_eq!(read("(red : .5 )"), pieces(&[("red ", 0.5)]));
        assert_eq!(read("(red:-1)"), pieces(&[("red", -1.0)]));
        assert_eq!(read("[red]"), pieces(&[("red", 0.909_091)]));
        assert_eq!(read("((a) b:2)"), pieces(&[("a", 2.2), (" b", 2.0)]));
        assert_eq!(read("(a [b])"), pieces(&[("a ", 1.1), ("b", 1.0)]));
        assert_eq!(read("([a:3]:2)"), pieces(&[("a:3", 1.818_182)]));
        assert_eq!(read("(a:1.2.3)"), pieces(&[("a:1.2.3", 1.1)]));
        assert_eq!(read("(at 10:30 o'clock)"), pieces(&[("at 10:30 o'clock", 1.1)]));
    }

    #[test]
    fn brackets_without_partner_and_escapes_are_literal() {
        assert_eq!(read("smile :)"), pieces(&[("smile :)", 1.0)]));
        assert_eq!(read("a (b"), pieces(&[("a (b", 1.0)]));
        assert_eq!(read("(a [b:1.5)"), pieces(&[("a [b", 1.5)]));
        assert_eq!(read("(a]b)"), pieces(&[("a]b", 1.1)]));
        assert_eq!(read(r"a \(b\) \[c\] \\ \d"), pieces(&[(r"a (b) [c] \ \d", 1.0)]));
        assert_eq!(read(r"(a\):1.5)"), pieces(&[("a)", 1.5)]));
        assert_eq!(read(r"\\(a)"), pieces(&[(r"\", 1.0), ("a", 1.1)]));
        assert_eq!(read("()"), pieces(&[]));
    }

    #[test]
    fn words_are_told_without_weights_and_breaks() {
        let words = |text: &str| Prompt::parse(text).unwrap().words();
        assert_eq!(words(r"a (red:1.3), heart BREAK[on]  \(white\)"), "a red, heart on (white)");
        assert_eq!(words(" () "), "");
    }

    #[test]
    fn break_begins_a_new_window() -> Result<()> {
        assert_eq!(read("a BREAK b"), pieces(&[("a ", 1.0), ("BREAK", 0.0), (" b", 1.0)]));
        assert_eq!(read("BREAKFAST break DAYBREAK"), pieces(&[("BREAKFAST break DAYBREAK", 1.0)]));
        let tiny = ClipTokenizer::tiny();
        let chunks = Prompt::parse("(a BREAK b:2)")?.encode(&tiny)?;
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0].ids, tiny.encode_window("a")?);
        assert_eq!(chunks[1].ids, tiny.encode_window("b")?);
        assert_eq!(chunks[1].weights[..3], [1.0, 2.0, 1.0]);
        Ok(())
    }

    #[test]
    fn long_prompts_take_several_windows_and_pairs_the_same_number() -> Result<()> {
        let tiny = ClipTokenizer::tiny();
        let prompt = Prompt::parse(&"x ".repeat(76))?;
        let chunks = prompt.encode(&tiny)?;
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0].ids, tiny.encode_window(&"x ".repeat(75))?);
        assert_eq!(chunks[1].ids, tiny.encode_window("x")?);
        let (positive, negative) = prompt.encode_pair(&Prompt::parse("")?, &tiny)?;
        assert_eq!((positive.len(), negative.len()), (2, 2));
        assert_eq!(negative[1].ids, tiny.encode_window("")?);
        // 75 tokens fill a window without opening the next.
        assert_eq!(Prompt::parse(&"x ".repeat(75))?.encode(&tiny)?.len(), 1);
        Ok(())
    }

    #[test]
    fn absurd_prompts_give_one_clear_error() {
        let tiny = ClipTokenizer::tiny();
        let message = |text: &str| Prompt::parse(text).and_then(|p| p.encode(&tiny)).expect_err("refused").to_string();
        let long = message(&"x".repeat(100_000));
        assert!(long.contains("100000 tokens in 1334 windows") && long.contains("limit is 2400 tokens"), "{long}");
        assert!(message(&"BREAK ".repeat(40)).contains("41 windows"));
        assert!(message(&"x".repeat(2 << 20)).contains("2097152 bytes"));
        assert!(message(&format!("{}a{}", "(".repeat(90_000), ")".repeat(90_000))).contains("weight"));
        assert!(message("(a:1000)").contains("the limit is ±100"));
    }

    #[test]
    fn weights_scale_hidden_states_and_keep_the_mean() -> Result<()> {
        let values: Vec<f32> = (0..2 * 77 * 3).map(|i| (i as f32 * 0.7).sin() + 0.1).collect();
        let hidden = Tensor::from_vec(values, (2, 77, 3), &Device::Cpu)?;
        let tiny = ClipTokenizer::tiny();
        let chunks = Prompt::parse("plain BREAK a (b:1.5)")?.encode(&tiny)?;
        let weighted = apply_weights(&hidden, &chunks)?;
        let (before, after) = (hidden.to_vec3::<f32>()?, weighted.to_vec3::<f32>()?);
        assert_eq!(before[0], after[0], "a window without weights is untouched");
        let ratio = after[1][0][0] / before[1][0][0];
        assert!((after[1][2][1] / before[1][2][1] - 1.5 * ratio).abs() < 1e-5);
        let mean = |window: &[Vec<f32>]| window.iter().flatten().sum::<f32>() / (77.0 * 3.0);
        assert!((mean(&before[1]) - mean(&after[1])).abs() < 1e-5);
        let plain = Prompt::parse("a (b:1.0)")?.encode(&tiny)?;
        let same = apply_weights(&hidden.narrow(0, 0, 1)?, &plain)?;
        assert_eq!(same.to_vec3::<f32>()?[0], before[0]);
        assert!(apply_weights(&hidden, &plain).is_err());
        Ok(())
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in r"[()\[\]\\:.0-9a-zé BREAK+-]{0,200}") {
            if let Ok(prompt) = Prompt::parse(&text) {
                let _ = prompt.encode(&ClipTokenizer::tiny());
            }
        }

        #[test]
        fn weights_multiply(factors in prop::collection::vec(1u32..20, 0..4)) {
            let mut text = "word".to_owned();
            let mut product = 1.0;
            for factor in factors {
                let factor = f64::from(factor) / 10.0;
                text = format!("({text}:{factor})");
                product *= factor;
            }
            let prompt = Prompt::parse(&text)?;
            prop_assert_eq!(prompt.pieces().len(), 1);
            if let Piece::Text { text, weight } = &prompt.pieces()[0] {
                prop_assert_eq!(text, "word");
                prop_assert!((weight - product).abs() < 1e-9);
            }
        }

        #[test]
        fn text_without_syntax_is_one_piece(text in "[a-z ,.:0-9é]{1,80}") {
            let prompt = Prompt::parse(&text)?;
            prop_assert_eq!(prompt, Prompt::literal(&text));
        }
    }
}
