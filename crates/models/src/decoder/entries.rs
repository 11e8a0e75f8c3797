//! Reading a `config.json` entry by entry, so that what nobody has asked for is noticed.

use conjure_core::{Error, Result, config};
use serde_json::{Map, Value};

/// The entries that have not been read yet.
pub(super) struct Entries {
    /// How messages name the object that holds them: empty, or `rope_scaling.`.
    place: String,
    map: Map<String, Value>,
}

impl Entries {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let map = serde_json::from_str(text).map_err(|e| Error::request(format!("not a model's config: {e}")))?;
        Ok(Self { place: String::new(), map })
    }

    /// Whether an entry is there that says more than null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether an entry is there, be it null.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The entry as it stands; null counts as absent.
    pub(super) fn value(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn convert<T>(&mut self, key: &str, kind: &str, convert: fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match convert(&value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(Error::request(format!("{}{key} is {}, not {kind}", self.place, short(&value)))),
        }
    }

    pub(super) fn size(&mut self, key: &str) -> Result<Option<usize>> {
        self.convert(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.convert(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.convert(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.convert(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn numbers(&mut self, key: &str) -> Result<Option<Vec<f64>>> {
        self.convert(key, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    pub(super) fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        self.convert(key, "a list of texts", |value| {
            value.as_array()?.iter().map(|one| one.as_str().map(str::to_owned)).collect()
        })
    }

    /// Ids of tokens: one, a list, or none.
    pub(super) fn tokens(&mut self, key: &str) -> Result<Vec<u32>> {
        let found = self.convert(key, "a token's id or a list of them", |value| {
            let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
            match value {
                Value::Array(ids) => ids.iter().map(id).collect::<Option<Vec<_>>>(),
                one => Some(vec![id(one)?]),
            }
        })?;
        Ok(found.unwrap_or_default())
    }

    /// The entries of an object below `key`.
    pub(super) fn below(&mut self, key: &str) -> Result<Option<Self>> {
        let place = format!("{}{key}.", self.place);
        let map = self.convert(key, "an object", |value| value.as_object().cloned())?;
        Ok(map.map(|map| Self { place, map }))
    }

    pub(super) fn required(&mut self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.lacks(key))
    }

    /// The refusal of a config without this entry.
    pub(super) fn lacks(&self, key: &str) -> Error {
        Error::request(format!("the config lacks {}{key}", self.place))
            .with_help("the file looks incomplete; it should be transformers' config.json of the model")
    }

    /// Refuses an entry that says anything but one of `supported`, if it is there.
    pub(super) fn only(&mut self, key: &str, supported: &[Value]) -> Result<()> {
        match self.value(key) {
            Some(value) if !supported.contains(&value) => {
                let known: Vec<_> = supported.iter().map(Value::to_string).collect();
                Err(Error::request(format!("{}{key} is {}, which is not supported", self.place, short(&value)))
                    .with_help(format!("supported: {}", known.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what has not been read, unless it is harmless or says null or false.
    pub(super) fn finish(self, harmless: &[&str]) -> Result<()> {
        for (key, value) in &self.map {
            let known = key.starts_with('_') || harmless.contains(&key.as_str());
            if !known && !value.is_null() && *value != Value::Bool(false) {
                return Err(config::unknown_entry(&format!("{}{key}", self.place), short(value)));
            }
        }
        Ok(())
    }
}

/// The value as JSON, cut where it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
