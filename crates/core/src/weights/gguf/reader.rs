//! The header's bytes, read in order, every count held against what the file can hold before memory is taken for it.

use super::{MetadataArray, MetadataValue};
use crate::{Error, Result};
use std::fmt::Arguments;
use std::path::Path;

/// The format's own limit on keys, and ours on the names of tensors.
const MAX_NAME: u64 = 65_535;
/// Arrays of arrays of arrays have no use that we know of; a limit on recursion.
const MAX_DEPTH: usize = 4;

/// The header, from the next unread byte on.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    /// `bytes` is the whole file, `path` what errors name; reading begins at `at`, which is inside the file.
    pub fn new(bytes: &'a [u8], at: usize, path: &'a Path) -> Self {
        Self { bytes, at, path }
    }

    /// Where in the file the next unread byte is.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The file says what cannot be.
    pub fn damaged(&self, message: String) -> Error {
        Error::file(self.path, message).with_help("the file is damaged or was not written as GGUF; download it again")
    }

    /// The file ends too early.
    pub fn cut(&self, message: String) -> Error {
        Error::file(self.path, message)
            .with_help("the download looks incomplete; download the file again and compare its size")
    }

    fn take<const N: usize>(&mut self, what: Arguments) -> Result<[u8; N]> {
        let Some((taken, _)) = self.bytes[self.at..].split_first_chunk::<N>() else {
            return Err(self.cut(format!("the file ends inside {what}")));
        };
        self.at += N;
        Ok(*taken)
    }

    /// 32 bits, unsigned.
    pub fn u32(&mut self, what: Arguments) -> Result<u32> {
        self.take(what).map(u32::from_le_bytes)
    }

    /// 64 bits, unsigned.
    pub fn u64(&mut self, what: Arguments) -> Result<u64> {
        self.take(what).map(u64::from_le_bytes)
    }

    /// A number of things that follow, each of which takes at least `least` bytes.
    pub fn count(&mut self, least: usize, what: Arguments) -> Result<usize> {
        let count = self.u64(what)?;
        if count > (self.left() / least) as u64 {
            let left = self.left();
            return Err(
                self.damaged(format!("{what} claims {count} entries, more than the {left} bytes left can hold"))
            );
        }
        Ok(count as usize)
    }

    /// A key, or the name of a tensor.
    pub fn name(&mut self, what: Arguments) -> Result<&'a str> {
        let length = self.u64(what)?;
        if length > MAX_NAME {
            return Err(self.damaged(format!("{what} claims {length} bytes, more than the {MAX_NAME} allowed")));
        }
        self.text(length, what)
    }

    fn string(&mut self, what: Arguments) -> Result<String> {
        let length = self.u64(what)?;
        self.text(length, what).map(str::to_owned)
    }

    fn text(&mut self, length: u64, what: Arguments) -> Result<&'a str> {
        let left = self.left();
        if length > left as u64 {
            return Err(self.damaged(format!("{what} claims {length} bytes, {left} are left in the file")));
        }
        let bytes = &self.bytes[self.at..][..length as usize];
        self.at += bytes.len();
        std::str::from_utf8(bytes)
            .map_err(|e| self.damaged(format!("{what} is not UTF-8: byte {} is out of place", e.valid_up_to())))
    }

    /// The value that belongs to `key`, after its type.
    pub fn value(&mut self, key: &str) -> Result<MetadataValue> {
        let what = format_args!("the value of {key}");
        Ok(match self.u32(format_args!("the type of {key}"))? {
            0 => MetadataValue::U8(self.take(what).map(u8::from_le_bytes)?),
            1 => MetadataValue::I8(self.take(what).map(i8::from_le_bytes)?),
            2 => MetadataValue::U16(self.take(what).map(u16::from_le_bytes)?),
            3 => MetadataValue::I16(self.take(what).map(i16::from_le_bytes)?),
            4 => MetadataValue::U32(self.u32(what)?),
            5 => MetadataValue::I32(self.take(what).map(i32::from_le_bytes)?),
            6 => MetadataValue::F32(self.take(what).map(f32::from_le_bytes)?),
            7 => {
                let [byte] = self.take(what)?;
                MetadataValue::Bool(self.yes(byte, key)?)
            }
            8 => MetadataValue::String(self.string(what)?),
            9 => MetadataValue::Array(self.array(key, 1)?),
            10 => MetadataValue::U64(self.u64(what)?),
            11 => MetadataValue::I64(self.take(what).map(i64::from_le_bytes)?),
            12 => MetadataValue::F64(self.take(what).map(f64::from_le_bytes)?),
            number => return Err(self.unknown_type(key, number)),
        })
    }

    /// An array that belongs to `key`, inside `depth - 1` others.
    fn array(&mut self, key: &str, depth: usize) -> Result<MetadataArray> {
        if depth > MAX_DEPTH {
            return Err(self.damaged(format!("{key} is an array inside {MAX_DEPTH} others, more than is read")));
        }
        let number = self.u32(format_args!("the element type of {key}"))?;
        Ok(match number {
            0 => MetadataArray::U8(self.numbers(key, u8::from_le_bytes)?),
            1 => MetadataArray::I8(self.numbers(key, i8::from_le_bytes)?),
            2 => MetadataArray::U16(self.numbers(key, u16::from_le_bytes)?),
            3 => MetadataArray::I16(self.numbers(key, i16::from_le_bytes)?),
            4 => MetadataArray::U32(self.numbers(key, u32::from_le_bytes)?),
            5 => MetadataArray::I32(self.numbers(key, i32::from_le_bytes)?),
            6 => MetadataArray::F32(self.numbers(key, f32::from_le_bytes)?),
            7 => {
                let bytes = self.numbers(key, u8::from_le_bytes)?;
                MetadataArray::Bool(bytes.into_iter().map(|byte| self.yes(byte, key)).collect::<Result<_>>()?)
            }
            8 => {
                let count = self.count(8, format_args!("the array {key}"))?; // a length each
                let text = |i| self.string(format_args!("element {i} of {key}"));
                MetadataArray::String((0..count).map(text).collect::<Result<_>>()?)
            }
            9 => {
                let count = self.count(12, format_args!("the array {key}"))?; // a type and a length each
                MetadataArray::Array((0..count).map(|_| self.array(key, depth + 1)).collect::<Result<_>>()?)
            }
            10 => MetadataArray::U64(self.numbers(key, u64::from_le_bytes)?),
            11 => MetadataArray::I64(self.numbers(key, i64::from_le_bytes)?),
            12 => MetadataArray::F64(self.numbers(key, f64::from_le_bytes)?),
            number => return Err(self.unknown_type(key, number)),
        })
    }

    fn numbers<const N: usize, T>(&mut self, key: &str, read: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.count(N, format_args!("the array {key}"))?;
        let (elements, _) = self.bytes[self.at..][..count * N].as_chunks::<N>();
        self.at += count * N;
        Ok(elements.iter().map(|bytes| read(*bytes)).collect())
    }

    fn yes(&self, byte: u8, key: &str) -> Result<bool> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.damaged(format!("{key} is neither true nor false but the byte {byte}"))),
        }
    }

    fn unknown_type(&self, key: &str, number: u32) -> Error {
        self.damaged(format!("{key} has the unknown value type {number}; types 0 to 12 are known"))
    }
}
