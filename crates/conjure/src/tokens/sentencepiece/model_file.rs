//! The file that SentencePiece writes: one protocol-buffer message, `ModelProto` of
//! <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>.
//!
//! The few fields that matter are read by hand: a protocol buffer is a list of (field number, wire type, value), and a reader
//! that borrows from the file cannot be made to take more memory than the file has.

use super::{Algorithm, Description, NormalizerOptions, Piece, PieceKind};

/// More pieces than any vocabulary has.
pub(super) const MAX_PIECES: usize = 1 << 22;
/// Bytes of one piece. Real pieces have a few dozen.
pub(super) const MAX_PIECE_BYTES: usize = 4096;

/// A field's value, still undecoded.
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn bytes(self, what: &str) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(format!("{what} is not stored as bytes")),
        }
    }

    fn text(self, what: &str) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| format!("{what} is not UTF-8"))
    }

    fn float(self, what: &str) -> Result<f32, String> {
        match self {
            Self::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(format!("{what} is not stored as a 32-bit number")),
        }
    }

    fn integer(self, what: &str) -> Result<u64, String> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(format!("{what} is not stored as an integer")),
        }
    }

    fn flag(self, what: &str) -> Result<bool, String> {
        self.integer(what).map(|value| value != 0)
    }
}

/// Walks over the fields of one message.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some((byte, rest)) = self.0.split_first() else {
                return Err("it ends in the middle of a number".into());
            };
            self.0 = rest;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number has more than ten bytes".into())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let available = self.0.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((taken, rest)) = self.0.split_at_checked(length) else {
            return Err(format!("a field claims {length} bytes, {available} are left"));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(bytes.try_into().map(u32::from_le_bytes).unwrap_or_default())
            }
            other => return Err(format!("a field has the unknown wire type {other}")),
        };
        match key >> 3 {
            0 => Err("a field has the number 0".into()),
            number => Ok(Some((number, value))),
        }
    }
}

/// Reads a whole model.
pub(in crate::tokens) fn parse(bytes: &[u8]) -> Result<Description, String> {
    let mut description = Description {
        algorithm: Algorithm::Unigram,
        pieces: Vec::new(),
        byte_fallback: false,
        unknown_surface: " \u{2047} ".into(),
        normalizer: NormalizerOptions::default(),
        denormalizer: None,
        keep_user_defined: true,
    };
    let mut message = Message(bytes);
    while let Some((number, value)) = message.next()? {
        match number {
            1 => {
                if description.pieces.len() == MAX_PIECES {
                    return Err(format!("it has more than {MAX_PIECES} pieces"));
                }
                let id = description.pieces.len();
                description.pieces.push(piece(value.bytes("a piece")?).map_err(|m| format!("piece {id}: {m}"))?);
            }
            2 => trainer(value.bytes("the trainer's settings")?, &mut description)?,
            3 => normalizer(value.bytes("the normalizer")?, &mut description.normalizer)?,
            5 => {
                let mut options = NormalizerOptions {
                    add_dummy_prefix: false,
                    remove_extra_whitespaces: false,
                    escape_whitespaces: false,
                    ..NormalizerOptions::default()
                };
                normalizer(value.bytes("the denormalizer")?, &mut options)?;
                description.denormalizer = (!options.charsmap.is_empty()).then_some(options);
            }
            _ => {}
        }
    }
    Ok(description)
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut message = Message(bytes);
    while let Some((number, value)) = message.next()? {
        match number {
            1 => {
                let text = value.text("its text")?;
                if text.len() > MAX_PIECE_BYTES {
                    return Err(format!("its text has {} bytes, more than {MAX_PIECE_BYTES}", text.len()));
                }
                piece.text = text.to_owned();
            }
            2 => piece.score = value.float("its score")?,
            3 => {
                let kind = value.integer("its type")?;
                piece.kind = PieceKind::from_number(kind).ok_or_else(|| format!("its type {kind} is unknown"))?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

fn trainer(bytes: &[u8], description: &mut Description) -> Result<(), String> {
    let mut message = Message(bytes);
    while let Some((number, value)) = message.next()? {
        match number {
            3 => {
                description.algorithm = match value.integer("the model type")? {
                    1 => Algorithm::Unigram,
                    2 => Algorithm::Bpe,
                    3 => return Err("its model type is `word`; unigram and bpe are known".into()),
                    4 => return Err("its model type is `char`; unigram and bpe are known".into()),
                    other => return Err(format!("its model type {other} is unknown; unigram and bpe are known")),
                }
            }
            24 => description.normalizer.whitespace_as_suffix = value.flag("treat_whitespace_as_suffix")?,
            35 => description.byte_fallback = value.flag("byte_fallback")?,
            44 => description.unknown_surface = value.text("unk_surface")?.to_owned(),
            _ => {}
        }
    }
    Ok(())
}

fn normalizer(bytes: &[u8], options: &mut NormalizerOptions) -> Result<(), String> {
    let mut message = Message(bytes);
    while let Some((number, value)) = message.next()? {
        match number {
            2 => options.charsmap = value.bytes("the character map")?.to_vec(),
            3 => options.add_dummy_prefix = value.flag("add_dummy_prefix")?,
            4 => options.remove_extra_whitespaces = value.flag("remove_extra_whitespaces")?,
            5 => options.escape_whitespaces = value.flag("escape_whitespaces")?,
            _ => {}
        }
    }
    Ok(())
}
