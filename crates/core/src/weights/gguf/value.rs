//! Values in a GGUF header.

use std::fmt::{self, Display};

/// A value in a GGUF header.
#[derive(Clone, Debug, PartialEq)]
pub enum MetadataValue {
    /// 8 bits, unsigned.
    U8(u8),
    /// 8 bits, signed.
    I8(i8),
    /// 16 bits, unsigned.
    U16(u16),
    /// 16 bits, signed.
    I16(i16),
    /// 32 bits, unsigned.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 32 bits, floating point.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type.
    Array(MetadataArray),
    /// 64 bits, unsigned.
    U64(u64),
    /// 64 bits, signed.
    I64(i64),
    /// 64 bits, floating point.
    F64(f64),
}

/// An array in a GGUF header, stored as its elements are: a vocabulary of 262,144 tokens is that many strings and no more.
#[derive(Clone, Debug, PartialEq)]
pub enum MetadataArray {
    /// 8 bits, unsigned.
    U8(Vec<u8>),
    /// 8 bits, signed.
    I8(Vec<i8>),
    /// 16 bits, unsigned.
    U16(Vec<u16>),
    /// 16 bits, signed.
    I16(Vec<i16>),
    /// 32 bits, unsigned.
    U32(Vec<u32>),
    /// 32 bits, signed.
    I32(Vec<i32>),
    /// 32 bits, floating point.
    F32(Vec<f32>),
    /// Yes or no.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    String(Vec<String>),
    /// Arrays of arrays.
    Array(Vec<MetadataArray>),
    /// 64 bits, unsigned.
    U64(Vec<u64>),
    /// 64 bits, signed.
    I64(Vec<i64>),
    /// 64 bits, floating point.
    F64(Vec<f64>),
}

impl MetadataValue {
    /// The number, if it is a whole one; wide enough for every integer type.
    pub(super) fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(n) => n.into(),
            Self::I8(n) => n.into(),
            Self::U16(n) => n.into(),
            Self::I16(n) => n.into(),
            Self::U32(n) => n.into(),
            Self::I32(n) => n.into(),
            Self::U64(n) => n.into(),
            Self::I64(n) => n.into(),
            _ => return None,
        })
    }
}

impl MetadataArray {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Array(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements, for messages.
    fn element(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F64(_) => "f64",
        }
    }

    /// Every element converted, if this is an array of whole numbers and all of them fit.
    pub(super) fn integers<T>(&self, convert: impl Fn(i128) -> Option<T>) -> Option<Vec<T>> {
        fn all<N: Copy + Into<i128>, T>(numbers: &[N], convert: impl Fn(i128) -> Option<T>) -> Option<Vec<T>> {
            numbers.iter().map(|&n| convert(n.into())).collect()
        }
        match self {
            Self::U8(numbers) => all(numbers, convert),
            Self::I8(numbers) => all(numbers, convert),
            Self::U16(numbers) => all(numbers, convert),
            Self::I16(numbers) => all(numbers, convert),
            Self::U32(numbers) => all(numbers, convert),
            Self::I32(numbers) => all(numbers, convert),
            Self::U64(numbers) => all(numbers, convert),
            Self::I64(numbers) => all(numbers, convert),
            _ => None,
        }
    }
}

/// The value, long texts and arrays cut short.
impl Display for MetadataValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(n) => write!(f, "{n}"),
            Self::I8(n) => write!(f, "{n}"),
            Self::U16(n) => write!(f, "{n}"),
            Self::I16(n) => write!(f, "{n}"),
            Self::U32(n) => write!(f, "{n}"),
            Self::I32(n) => write!(f, "{n}"),
            Self::F32(n) => write!(f, "{n}"),
            Self::Bool(yes) => write!(f, "{yes}"),
            Self::String(text) => match text.char_indices().nth(60) {
                Some((end, _)) => write!(f, "{:?} and {} more bytes", &text[..end], text.len() - end),
                None => write!(f, "{text:?}"),
            },
            Self::Array(array) => write!(f, "an array of {} x {}", array.len(), array.element()),
            Self::U64(n) => write!(f, "{n}"),
            Self::I64(n) => write!(f, "{n}"),
            Self::F64(n) => write!(f, "{n}"),
        }
    }
}

impl From<&str> for MetadataValue {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for MetadataValue {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<u32> for MetadataValue {
    fn from(number: u32) -> Self {
        Self::U32(number)
    }
}

impl From<f32> for MetadataValue {
    fn from(number: f32) -> Self {
        Self::F32(number)
    }
}

impl From<bool> for MetadataValue {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

impl From<Vec<String>> for MetadataValue {
    fn from(texts: Vec<String>) -> Self {
        Self::Array(MetadataArray::String(texts))
    }
}

impl From<Vec<f32>> for MetadataValue {
    fn from(numbers: Vec<f32>) -> Self {
        Self::Array(MetadataArray::F32(numbers))
    }
}

impl From<Vec<i32>> for MetadataValue {
    fn from(numbers: Vec<i32>) -> Self {
        Self::Array(MetadataArray::I32(numbers))
    }
}
