//! What a GGUF file says about its model: keys and typed values.

use super::{MetadataArray, MetadataValue};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The keys and values of a GGUF header. Every reading method tells apart a key that is not there (`None`) from a value that
/// is not of the wanted type (an error that names file, key and value).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, MetadataValue>,
}

impl Metadata {
    /// No values; `path` is the file that errors name.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_path_buf(), values: BTreeMap::new() }
    }

    /// Sets a value and returns the one that the key had before.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<MetadataValue>) -> Option<MetadataValue> {
        self.values.insert(key.into(), value.into())
    }

    /// The file that errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key, whatever its type.
    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.values.get(key)
    }

    /// Keys and values in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetadataValue)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A value that must be there: `metadata.require("general.architecture", Metadata::string)`.
    ///
    /// # Errors
    /// No such key, or what `read` says.
    pub fn require<'a, T>(&'a self, key: &str, read: impl FnOnce(&'a Self, &str) -> Result<Option<T>>) -> Result<T> {
        read(self, key)?.ok_or_else(|| {
            Error::file(&self.path, format!("the GGUF header lacks the key {key}"))
                .with_help("the file was written by an older or another program; get a newer conversion of this model")
        })
    }

    /// `general.architecture`, such as `llama`: the prefix of the keys that describe the model.
    ///
    /// # Errors
    /// Absent or not text.
    pub fn architecture(&self) -> Result<&str> {
        self.require("general.architecture", Self::string)
    }

    /// Text.
    ///
    /// # Errors
    /// Another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "text", |value| match value {
            MetadataValue::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number that is not negative and fits, stored in any integer type.
    ///
    /// # Errors
    /// Another type, a negative or too large number.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number that is not negative", |value| usize::try_from(value.integer()?).ok())
    }

    /// A whole number from 0 to `u32::MAX`, stored in any integer type.
    ///
    /// # Errors
    /// Another type, a negative or too large number.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.read(key, "a whole number from 0 to 4294967295", |value| u32::try_from(value.integer()?).ok())
    }

    /// A number, stored in any numeric type.
    ///
    /// # Errors
    /// Another type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.read(key, "a number", |value| match value {
            MetadataValue::F32(number) => Some(*number),
            MetadataValue::F64(number) => Some(*number as f32),
            _ => value.integer().map(|number| number as f32),
        })
    }

    /// Yes or no.
    ///
    /// # Errors
    /// Another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", |value| match value {
            MetadataValue::Bool(yes) => Some(*yes),
            _ => None,
        })
    }

    /// An array of texts: a vocabulary, merges, chat template names.
    ///
    /// # Errors
    /// Another type.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.read(key, "an array of texts", |value| match value {
            MetadataValue::Array(MetadataArray::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of numbers, stored in any numeric type.
    ///
    /// # Errors
    /// Another type.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.read(key, "an array of numbers", |value| match value {
            MetadataValue::Array(MetadataArray::F32(numbers)) => Some(numbers.clone()),
            MetadataValue::Array(MetadataArray::F64(numbers)) => Some(numbers.iter().map(|n| *n as f32).collect()),
            MetadataValue::Array(array) => array.integers(|n| Some(n as f32)),
            _ => None,
        })
    }

    /// An array of whole numbers, stored in any integer type: token types.
    ///
    /// # Errors
    /// Another type, a number that does not fit.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.read(key, "an array of 32-bit whole numbers", |value| match value {
            MetadataValue::Array(MetadataArray::I32(numbers)) => Some(numbers.clone()),
            MetadataValue::Array(array) => array.integers(|n| i32::try_from(n).ok()),
            _ => None,
        })
    }

    /// An array of whole numbers that are not negative, stored in any integer type: a size for each layer.
    ///
    /// # Errors
    /// Another type, a number that does not fit.
    pub fn usizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.read(key, "an array of whole numbers that are not negative", |value| match value {
            MetadataValue::Array(array) => array.integers(|n| usize::try_from(n).ok()),
            _ => None,
        })
    }

    /// An array of yes and no: which layers have a sliding window.
    ///
    /// # Errors
    /// Another type.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.read(key, "an array of true and false", |value| match value {
            MetadataValue::Array(MetadataArray::Bool(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of bytes: a precompiled table of a tokenizer's normaliser.
    ///
    /// # Errors
    /// Another type.
    pub fn bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        self.read(key, "an array of bytes", |value| match value {
            MetadataValue::Array(MetadataArray::U8(bytes)) => Some(bytes.as_slice()),
            _ => None,
        })
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| {
            Error::file(&self.path, format!("the GGUF header's {key} is {value}, expected {wanted}")).with_help(
                "the file is damaged or was written by another program; get another conversion of this model",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("general.architecture", "llama");
        metadata.insert("n", 7_u32);
        metadata.insert("big", MetadataValue::U64(u64::MAX));
        metadata.insert("negative", MetadataValue::I64(-1));
        metadata.insert("wide", MetadataValue::F64(0.5));
        metadata.insert("yes", true);
        metadata.insert("tokens", vec!["a".to_owned(), "b".to_owned()]);
        metadata.insert("scores", vec![0.5_f32, -1.0]);
        metadata.insert("types", MetadataValue::Array(MetadataArray::U8(vec![1, 3])));
        metadata
    }

    #[test]
    fn values_are_read_in_any_type_that_holds_them() {
        let metadata = sample();
        assert_eq!(metadata.architecture().unwrap(), "llama");
        assert_eq!(metadata.usize("n").unwrap(), Some(7));
        assert_eq!(metadata.f32("n").unwrap(), Some(7.0));
        assert_eq!(metadata.f32("wide").unwrap(), Some(0.5));
        assert_eq!(metadata.bool("yes").unwrap(), Some(true));
        assert_eq!(metadata.strings("tokens").unwrap().unwrap().len(), 2);
        assert_eq!(metadata.f32s("scores").unwrap(), Some(vec![0.5, -1.0]));
        assert_eq!(metadata.i32s("types").unwrap(), Some(vec![1, 3]));
        assert_eq!(metadata.usizes("types").unwrap(), Some(vec![1, 3]));
        assert_eq!(metadata.bytes("types").unwrap(), Some(&[1_u8, 3][..]));
        assert_eq!(metadata.u32("absent").unwrap(), None);
        assert_eq!(metadata.require("n", Metadata::u32).unwrap(), 7);
    }

    #[test]
    fn values_of_another_type_are_refused_by_file_key_and_value() {
        let metadata = sample();
        let long = "x".repeat(100);
        let mut other = Metadata::new("m.gguf");
        other.insert("long", long.as_str());
        for (error, expected) in [
            (metadata.string("n").err(), "m.gguf: the GGUF header's n is 7, expected text"),
            (metadata.u32("big").err(), "big is 18446744073709551615, expected a whole number from 0 to 4294967295"),
            (metadata.usize("negative").err(), "negative is -1, expected a whole number that is not negative"),
            (metadata.bool("n").err(), "n is 7, expected true or false"),
            (metadata.strings("scores").err(), "scores is an array of 2 x f32, expected an array of texts"),
            (
                metadata.i32s("tokens").err(),
                "tokens is an array of 2 x string, expected an array of 32-bit whole numbers",
            ),
            (metadata.f32("general.architecture").err(), "is \"llama\", expected a number"),
            (other.bool("long").err(), " and 40 more bytes, expected true or false"),
            (metadata.require("absent", Metadata::u32).err(), "m.gguf: the GGUF header lacks the key absent"),
        ] {
            let error = error.expect("accepted");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.help().is_some());
        }
    }
}
