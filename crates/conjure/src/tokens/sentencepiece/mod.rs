//! SentencePiece: Kudo and Richardson 2018, <https://arxiv.org/abs/1808.06226>; ids and texts equal to the reference
//! implementation's, <https://github.com/google/sentencepiece>.
//!
//! | module | question it answers |
//! |---|---|
//! | `model_file` | what is in `tokenizer.model`, `spiece.model`, `source.spm`? |
//! | `normalizer` | which text are pieces looked for in? |
//! | `unigram` | which pieces are the most probable? |
//! | `bpe` | which pieces grow out of the characters? |
//!
//! A model is not turned into one of the `tokenizers` crate: that crate reads the character map differently, adds scores in
//! another precision and orders merges of equal score differently, so that some texts would get other ids.

mod bpe;
pub(in crate::tokens) mod model_file;
mod normalizer;
pub(in crate::tokens) mod prefixes;
mod unigram;

use crate::{Error, Result};
pub(super) use normalizer::MAX_REPLACEMENT;
pub use normalizer::NormalizerOptions;
use normalizer::{Normalizer, SPACE};
use prefixes::Prefixes;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use unigram::Unigram;

/// Model files above this size are refused; the largest vocabularies take 5 MB.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// Bytes of the text and the piece that stands for them.
type Segment = (Range<usize>, u32);

/// How pieces are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The most probable segmentation.
    Unigram,
    /// Merges from single characters, best score first.
    Bpe,
}

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// Part of texts.
    Normal,
    /// Stands for what no piece spells.
    Unknown,
    /// A mark such as `</s>`, never found in a text.
    Control,
    /// Found as a whole wherever a text has it.
    UserDefined,
    /// Never used.
    Unused,
    /// One byte of a character that has no piece, written `<0x0A>`.
    Byte,
}

impl PieceKind {
    /// By the number in SentencePiece's and in GGUF's files.
    pub fn from_number(number: u64) -> Option<Self> {
        const KINDS: [PieceKind; 6] = [
            PieceKind::Normal,
            PieceKind::Unknown,
            PieceKind::Control,
            PieceKind::UserDefined,
            PieceKind::Unused,
            PieceKind::Byte,
        ];
        KINDS.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
    }
}

/// An entry of the vocabulary; its place is its id.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its text, with `▁` for a space.
    pub text: String,
    /// Its log probability, or in a BPE model its rank: higher is merged earlier.
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// Everything that makes a model.
#[derive(Clone, Debug)]
pub struct Description {
    /// How pieces are chosen.
    pub algorithm: Algorithm,
    /// The vocabulary in the order of ids.
    pub pieces: Vec<Piece>,
    /// Whether a character without a piece becomes its bytes.
    pub byte_fallback: bool,
    /// What the unknown piece is decoded to.
    pub unknown_surface: String,
    /// What is done to a text first.
    pub normalizer: NormalizerOptions,
    /// What is done to a decoded text.
    pub denormalizer: Option<NormalizerOptions>,
    /// Whether user-defined pieces are kept whole, in the text and against merging. GGUF's readers instead take them out of the
    /// text before.
    pub keep_user_defined: bool,
}

/// A SentencePiece model, ready to encode and decode.
#[derive(Clone)]
pub struct SentencePiece {
    algorithm: Algorithm,
    pieces: Vec<Piece>,
    /// Pieces that texts grow into; control marks, bytes and the unknown piece are in `reserved`.
    mergeable: HashMap<String, u32>,
    reserved: HashMap<String, u32>,
    unknown: u32,
    unknown_surface: String,
    /// The piece of every byte.
    bytes: Option<Box<[u32; 256]>>,
    unigram: Option<Unigram>,
    keep: Prefixes,
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
}

impl std::fmt::Debug for SentencePiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SentencePiece")
            .field("algorithm", &self.algorithm)
            .field("pieces", &self.pieces.len())
            .field("byte_fallback", &self.bytes.is_some())
            .finish_non_exhaustive()
    }
}

impl SentencePiece {
    /// Opens a model file.
    ///
    /// # Errors
    /// Unreadable, larger than 128 MiB, or not a sound unigram or BPE model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(&super::files::read(path, MAX_FILE_BYTES)?, path)
    }

    /// The same from memory; `path` is what errors name.
    ///
    /// # Errors
    /// As for [`SentencePiece::open`].
    pub fn from_bytes(bytes: &[u8], path: impl AsRef<Path>) -> Result<Self> {
        let read = model_file::parse(bytes).and_then(Self::build);
        read.map_err(|message| {
            Error::file(path, format!("no SentencePiece model: {message}"))
                .with_help("the file is damaged or was not written by SentencePiece; download it again")
        })
    }

    /// A model of these parts.
    ///
    /// # Errors
    /// No piece for the unknown or two; an empty piece, one twice; scores that are no numbers; a byte without a piece although
    /// bytes stand for unknown characters; a character map that is damaged.
    pub fn new(description: Description) -> Result<Self> {
        Self::build(description).map_err(Error::request)
    }

    pub(super) fn build(description: Description) -> std::result::Result<Self, String> {
        let Description { algorithm, pieces, byte_fallback, unknown_surface, normalizer, denormalizer, .. } =
            description;
        if pieces.is_empty() {
            return Err("it has no pieces".into());
        }
        if pieces.len() > model_file::MAX_PIECES {
            return Err(format!("it has {} pieces, more than {}", pieces.len(), model_file::MAX_PIECES));
        }
        let mut mergeable = HashMap::with_capacity(pieces.len());
        let mut reserved = HashMap::new();
        let mut unknown = None;
        let mut bytes = [None; 256];
        for (piece, id) in pieces.iter().zip(0u32..) {
            let Piece { text, score, kind } = piece;
            if text.is_empty() {
                return Err(format!("piece {id} has no text"));
            }
            if text.len() > model_file::MAX_PIECE_BYTES {
                return Err(format!("piece {id} has {} bytes, more than {}", text.len(), model_file::MAX_PIECE_BYTES));
            }
            if !score.is_finite() {
                return Err(format!("piece {id}, {text:?}, has the score {score}"));
            }
            let list = match kind {
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => &mut mergeable,
                PieceKind::Unknown | PieceKind::Control | PieceKind::Byte => &mut reserved,
            };
            if let Some(other) = list.insert(text.clone(), id) {
                return Err(format!("the pieces {other} and {id} have the same text {text:?}"));
            }
            match kind {
                PieceKind::Unknown => {
                    if let Some(other) = unknown.replace(id) {
                        return Err(format!("the pieces {other} and {id} both stand for the unknown"));
                    }
                }
                PieceKind::Byte => {
                    let byte = byte_of(text).ok_or_else(|| format!("piece {id}, {text:?}, is no byte"))?;
                    bytes[usize::from(byte)] = Some(id);
                }
                _ => {}
            }
        }
        let unknown = unknown.ok_or("no piece stands for the unknown")?;
        let bytes = if byte_fallback {
            let mut all = Box::new([0; 256]);
            for (byte, (slot, id)) in all.iter_mut().zip(bytes).enumerate() {
                *slot = id.ok_or_else(|| format!("the piece <0x{byte:02X}> is missing although bytes stand in"))?;
            }
            Some(all)
        } else {
            None
        };
        let kept = |piece: &&Piece| description.keep_user_defined && piece.kind == PieceKind::UserDefined;
        let keep = Prefixes::new(pieces.iter().filter(kept).map(|piece| (piece.text.as_str(), 0)));
        Ok(Self {
            algorithm,
            unigram: (algorithm == Algorithm::Unigram).then(|| Unigram::new(&pieces)),
            normalizer: Normalizer::new(normalizer, keep.clone())?,
            denormalizer: denormalizer.map(|options| Normalizer::new(options, Prefixes::default())).transpose()?,
            pieces,
            mergeable,
            reserved,
            unknown,
            unknown_surface,
            bytes,
            keep,
        })
    }

    /// The vocabulary in the order of ids.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The id of what no piece spells.
    pub fn unknown(&self) -> u32 {
        self.unknown
    }

    /// The id of the piece with exactly this text.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.reserved.get(piece).or_else(|| self.mergeable.get(piece)).copied()
    }

    /// The ids of a text. Marks such as `</s>` are not recognised in it; they are text like any other.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_part(text, true)
    }

    /// The same for a text that goes on from another: without `start` no space is added before it.
    pub fn encode_part(&self, text: &str, start: bool) -> Vec<u32> {
        let normalized = self.normalizer.normalize(text, start);
        let mut ids = Vec::with_capacity(normalized.len() / 3);
        for (range, id) in self.segments(&normalized) {
            match &self.bytes {
                Some(bytes) if id == self.unknown => {
                    ids.extend(normalized[range].bytes().map(|byte| bytes[usize::from(byte)]));
                }
                _ => ids.push(id),
            }
        }
        ids
    }

    /// The pieces of a text as texts. Characters without a piece come as they are, a run of them at once.
    pub fn encode_as_pieces(&self, text: &str) -> Vec<String> {
        let normalized = self.normalizer.normalize(text, true);
        let mut out = Vec::new();
        for (range, id) in self.segments(&normalized) {
            match &self.bytes {
                Some(_) if id == self.unknown => {
                    out.extend(normalized[range].bytes().map(|byte| format!("<0x{byte:02X}>")));
                }
                _ => out.push(normalized[range].to_owned()),
            }
        }
        out
    }

    /// Segments, with unknown ones that follow each other joined.
    fn segments(&self, normalized: &str) -> Vec<Segment> {
        let id = |piece: &str| self.id(piece).unwrap_or(self.unknown);
        let segments = match &self.unigram {
            Some(unigram) => unigram.segments(normalized, &self.pieces, self.unknown),
            None => bpe::segments(normalized, &self.pieces, &self.mergeable, &self.keep, id),
        };
        let mut joined: Vec<Segment> = Vec::with_capacity(segments.len());
        for (range, id) in segments {
            match joined.last_mut() {
                Some((last, other)) if id == self.unknown && *other == self.unknown => last.end = range.end,
                _ => joined.push((range, id)),
            }
        }
        joined
    }

    /// The text of ids. Marks vanish, bytes that are no UTF-8 become U+FFFD, ids that the model lacks are passed over.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_part(ids, true)
    }

    /// The same for ids that go on from others: without `start` a space at the start stays.
    pub fn decode_part(&self, ids: &[u32], start: bool) -> String {
        let pieces = ids.iter().filter_map(|id| Some((*id, self.pieces.get(*id as usize)?.text.as_str())));
        self.decode_all(pieces.collect(), start)
    }

    /// The text of pieces given as texts; those that the model lacks stand for themselves.
    pub fn decode_pieces(&self, pieces: &[&str]) -> String {
        self.decode_all(pieces.iter().map(|piece| (self.id(piece).unwrap_or(self.unknown), *piece)).collect(), true)
    }

    fn decode_all(&self, pieces: Vec<(u32, &str)>, start: bool) -> String {
        let options = &self.normalizer.options;
        let strips = options.add_dummy_prefix || options.remove_extra_whitespaces;
        let mut text = String::new();
        let mut waiting = Vec::new();
        // Whether a space at the start of the next piece is the one that encoding added.
        let mut at_start = start;
        let mut stripped = false;
        for (id, piece) in pieces {
            let piece_kind = self.pieces.get(id as usize).map_or(PieceKind::Unknown, |piece| piece.kind);
            if piece_kind == PieceKind::Byte {
                waiting.extend(byte_of(piece));
                continue;
            }
            push_bytes(&mut text, &mut waiting);
            if stripped || !text.is_empty() {
                at_start = false;
            }
            stripped = false;
            match piece_kind {
                PieceKind::Control => {}
                PieceKind::Unknown if self.pieces.get(id as usize).is_some_and(|known| known.text == piece) => {
                    text.push_str(&self.unknown_surface);
                }
                PieceKind::Unknown => text.push_str(piece),
                _ => {
                    let rest = if at_start && strips { piece.strip_prefix(SPACE) } else { None };
                    // Where spaces are removed anyway, all of them at the start go.
                    stripped = rest.is_some() && !options.remove_extra_whitespaces;
                    text.push_str(&spaced(rest.unwrap_or(piece)));
                }
            }
        }
        push_bytes(&mut text, &mut waiting);
        match &self.denormalizer {
            Some(denormalizer) => denormalizer.normalize(&text, true),
            None => text,
        }
    }
}

/// `▁` read as a space.
pub(super) fn spaced(piece: &str) -> Cow<'_, str> {
    if piece.contains(SPACE) { Cow::Owned(piece.replace(SPACE, " ")) } else { Cow::Borrowed(piece) }
}

/// The byte that `<0x0A>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = digits.bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c));
    (digits.len() == 2 && upper).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Appends bytes as UTF-8, one U+FFFD for every byte that fits nowhere.
fn push_bytes(text: &mut String, bytes: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('\u{fffd}', chunk.invalid().len()));
    }
    bytes.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
        Piece { text: text.into(), score, kind }
    }

    fn description(algorithm: Algorithm, pieces: Vec<Piece>) -> Description {
        Description {
            algorithm,
            pieces: [vec![piece("<unk>", 0.0, PieceKind::Unknown)], pieces].concat(),
            byte_fallback: false,
            unknown_surface: " ? ".into(),
            normalizer: NormalizerOptions { add_dummy_prefix: false, ..NormalizerOptions::default() },
            denormalizer: None,
            keep_user_defined: true,
        }
    }

    #[test]
    fn merges_of_one_score_go_from_the_left_and_unused_pieces_are_taken_apart() -> Result<()> {
        use PieceKind::{Normal, Unused};
        let pieces = vec![piece("a", -9.0, Normal), piece("aa", -1.0, Normal), piece("aaa", -2.0, Normal)];
        let model = SentencePiece::new(description(Algorithm::Bpe, pieces.clone()))?;
        assert_eq!(model.encode("aaaaa"), [2, 3]);
        let pieces = vec![pieces[0].clone(), piece("aa", -1.0, Unused), pieces[2].clone()];
        let model = SentencePiece::new(description(Algorithm::Bpe, pieces))?;
        assert_eq!(model.encode("aaaaa"), [1, 1, 3]);
        Ok(())
    }

    #[test]
    fn models_that_lie_are_refused() {
        use PieceKind::{Byte, Normal, Unknown};
        let message = |pieces: Vec<Piece>, change: &dyn Fn(&mut Description)| {
            let mut description = description(Algorithm::Unigram, pieces);
            change(&mut description);
            SentencePiece::new(description).expect_err("refused").to_string()
        };
        let map = |bytes: &'static [u8]| move |d: &mut Description| d.normalizer.charsmap = bytes.to_vec();
        for (expected, error) in [
            ("it has no pieces", message(vec![], &|d| d.pieces.clear())),
            ("no piece stands for the unknown", message(vec![], &|d| d.pieces[0].kind = Normal)),
            ("both stand for the unknown", message(vec![piece("x", 0.0, Unknown)], &|_| {})),
            ("have the same text \"x\"", message(vec![piece("x", 0.0, Normal), piece("x", 0.0, Normal)], &|_| {})),
            ("piece 1 has no text", message(vec![piece("", 0.0, Normal)], &|_| {})),
            ("has the score NaN", message(vec![piece("x", f32::NAN, Normal)], &|_| {})),
            ("is no byte", message(vec![piece("<0xG0>", 0.0, Byte)], &|_| {})),
            ("<0x00> is missing", message(vec![], &|d| d.byte_fallback = true)),
            ("fewer than four bytes", message(vec![], &map(&[1]))),
            ("claims 4294967295 bytes, 1 are there", message(vec![], &map(&[255, 255, 255, 255, 0]))),
            ("not a multiple of four", message(vec![], &map(&[1, 0, 0, 0, 0]))),
            ("texts are not UTF-8", message(vec![], &map(&[0, 0, 0, 0, 255]))),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        for (bytes, expected) in [
            (&b""[..], "it has no pieces"),
            (b"\x0a", "it ends in the middle of a number"),
            (b"\x0a\x7f", "a field claims 127 bytes, 0 are left"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "more than ten bytes"),
            (b"\x0b", "unknown wire type 3"),
            (b"\x00\x00", "the number 0"),
            (b"\x08\x01", "a piece is not stored as bytes"),
            (b"\x0a\x03\x0a\x01\xff", "piece 0: its text is not UTF-8"),
            (b"\x0a\x02\x18\x09", "piece 0: its type 9 is unknown"),
            (b"\x12\x02\x18\x03", "its model type is `word`"),
            (b"\x12\x02\x18\x09", "its model type 9 is unknown"),
        ] {
            let error = SentencePiece::from_bytes(bytes, "m.model").expect_err("refused");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.help().is_some());
        }
    }

    #[test]
    fn a_character_map_that_points_nowhere_changes_nothing() -> Result<()> {
        // One unit whose children would lie far outside of the array.
        let mut lying = description(Algorithm::Unigram, vec![piece("a", -1.0, PieceKind::Normal)]);
        lying.normalizer.charsmap = [&[4, 0, 0, 0][..], &0xffff_fe00_u32.to_le_bytes(), b"x\0"].concat();
        assert_eq!(SentencePiece::new(lying)?.encode("aa b"), [1, 1, 0]);
        Ok(())
    }
}
