//! What SentencePiece does to a text before it looks for pieces: `src/normalizer.cc` of the reference.
//!
//! The map from characters to characters is a double array (Aoe 1989) followed by replacement texts; the longest entry that the
//! rest of the text begins with is replaced. The `tokenizers` crate reads the same map, but takes the *shortest* entry of a
//! grapheme, which is not what the reference does for combining characters; hence this reader.

use super::prefixes::Prefixes;

/// Stands for a space inside pieces.
pub(super) const SPACE: &str = "\u{2581}";
/// Bytes that an entry of a character map reads at most, and puts in their place at most. Real ones have a few dozen; a file
/// that claims more would make a text grow without bound.
const MAX_ENTRY: usize = 256;
pub(in crate::tokens) const MAX_REPLACEMENT: usize = 4096;

/// How a model wants its text.
#[derive(Clone, Debug)]
pub struct NormalizerOptions {
    /// The compiled map, empty where characters stay as they are: its size in bytes (u32), that many bytes of double array,
    /// replacement texts that end with a zero byte each.
    pub charsmap: Vec<u8>,
    /// Put a space before the text, so that a word at the start is the same piece as elsewhere.
    pub add_dummy_prefix: bool,
    /// Drop spaces at both ends and all but one of those in a row.
    pub remove_extra_whitespaces: bool,
    /// Write `▁` for a space.
    pub escape_whitespaces: bool,
    /// The added space comes last.
    pub whitespace_as_suffix: bool,
}

impl Default for NormalizerOptions {
    fn default() -> Self {
        Self {
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            whitespace_as_suffix: false,
        }
    }
}

/// The same, ready for use.
#[derive(Clone, Debug)]
pub(super) struct Normalizer {
    pub(super) options: NormalizerOptions,
    units: Vec<u32>,
    replacements: String,
    /// Texts that stay as they are.
    keep: Prefixes,
}

impl Normalizer {
    pub(super) fn new(mut options: NormalizerOptions, keep: Prefixes) -> Result<Self, String> {
        let map = std::mem::take(&mut options.charsmap);
        let (mut units, mut replacements) = (Vec::new(), String::new());
        if !map.is_empty() {
            let (size, rest) = map.split_first_chunk::<4>().ok_or("the character map has fewer than four bytes")?;
            let size = u32::from_le_bytes(*size) as usize;
            let (array, texts) = rest
                .split_at_checked(size)
                .ok_or_else(|| format!("the character map claims {size} bytes, {} are there", rest.len()))?;
            if !size.is_multiple_of(4) {
                return Err(format!("the character map's array has {size} bytes, not a multiple of four"));
            }
            let (chunks, _) = array.as_chunks::<4>();
            units = chunks.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
            replacements =
                std::str::from_utf8(texts).map_err(|_| "the character map's texts are not UTF-8")?.to_owned();
            if replacements.split('\0').any(|text| text.len() > MAX_REPLACEMENT) {
                return Err(format!("the character map has a text of more than {MAX_REPLACEMENT} bytes"));
            }
        }
        Ok(Self { options, units, replacements, keep })
    }

    /// What the longest entry at the start of `text` becomes, and how many bytes it takes.
    fn entry(&self, text: &str) -> Option<(&str, usize)> {
        let label = |unit: u32| unit & 0x8000_00ff;
        let offset = |unit: u32| ((unit >> 10) << ((unit & 0x200) >> 6)) as usize;
        let mut position = offset(*self.units.first()?);
        let mut longest = None;
        for (at, byte) in text.bytes().enumerate().take(MAX_ENTRY) {
            position ^= usize::from(byte);
            let Some(unit) = self.units.get(position).copied().filter(|unit| label(*unit) == u32::from(byte)) else {
                break;
            };
            position ^= offset(unit);
            if unit & 0x100 != 0 {
                let value = self.units.get(position).map_or(usize::MAX, |unit| (unit & 0x7fff_ffff) as usize);
                longest = Some((at + 1, value));
            }
        }
        // A sound map has whole characters on both sides; whatever else a file claims is passed over.
        let (length, value) = longest.filter(|(length, _)| text.is_char_boundary(*length))?;
        let replacement = self.replacements.get(value..)?;
        Some((replacement.split('\0').next().unwrap_or_default(), length))
    }

    /// The start of `text` after normalisation, and how many bytes of `text` that took. `text` is not empty.
    fn step<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some((length, _)) = self.keep.longest(text) {
            return (&text[..length], length);
        }
        self.entry(text).unwrap_or_else(|| {
            let length = text.chars().next().map_or(text.len(), char::len_utf8);
            (&text[..length], length)
        })
    }

    /// The text in which pieces are looked for. Without `prefix` no space is added, whatever the options say.
    pub(super) fn normalize(&self, mut text: &str, prefix: bool) -> String {
        let options = &self.options;
        let space = if options.escape_whitespaces { SPACE } else { " " };
        if options.remove_extra_whitespaces {
            while !text.is_empty() {
                let (piece, length) = self.step(text);
                if piece != " " {
                    break;
                }
                text = &text[length..];
            }
        }
        let mut out = String::with_capacity(text.len() + text.len() / 2);
        if text.is_empty() {
            return out;
        }
        let add_space = prefix && options.add_dummy_prefix;
        if add_space && !options.whitespace_as_suffix {
            out.push_str(space);
        }
        let mut after_space = options.remove_extra_whitespaces;
        while !text.is_empty() {
            let (mut piece, length) = self.step(text);
            if after_space {
                piece = piece.trim_start_matches(' ');
            }
            if !piece.is_empty() {
                for part in piece.split_inclusive(' ') {
                    match part.strip_suffix(' ') {
                        Some(word) => {
                            out.push_str(word);
                            out.push_str(space);
                        }
                        None => out.push_str(part),
                    }
                }
                after_space = piece.ends_with(' ');
            }
            text = &text[length..];
            after_space &= options.remove_extra_whitespaces;
        }
        if options.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        if add_space && options.whitespace_as_suffix {
            out.push_str(space);
        }
        out
    }
}
