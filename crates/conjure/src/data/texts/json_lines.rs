//! A .jsonl file, read line by line: a JSON object on each.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// Bytes of a line. A longer one is no JSON line, but another kind of file.
const MAX_LINE: u64 = 64 << 20;

/// The objects of a file one after the other, with the numbers of their lines from 1 on; blank lines are passed over.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    reader: BufReader<File>,
    line: usize,
    failed: bool,
}

impl JsonLines {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), line: 0, failed: false })
    }

    fn read(&mut self) -> Result<Option<(usize, Map<String, Value>)>> {
        loop {
            let mut bytes = Vec::new();
            let mut limited = self.reader.by_ref().take(MAX_LINE + 1);
            let count = limited.read_until(b'\n', &mut bytes).map_err(|e| Error::io(&self.path, e))?;
            if count == 0 {
                return Ok(None);
            }
            self.line += 1;
            let wrong = |message: String| Error::file(&self.path, format!("line {}: {message}", self.line));
            if bytes.len() as u64 > MAX_LINE {
                return Err(wrong(format!("longer than {} MiB", MAX_LINE >> 20))
                    .with_help("a .jsonl file holds a JSON object on each line"));
            }
            let text = std::str::from_utf8(&bytes).map_err(|e| {
                wrong(format!("byte {} is not UTF-8", e.valid_up_to())).with_help("convert it, for example with iconv")
            })?;
            if text.trim().is_empty() {
                continue;
            }
            let value = serde_json::from_str(text).map_err(|e| {
                wrong(format!("not readable as JSON: {e}"))
                    .with_help("a .jsonl file holds a JSON object on each line, with no comma after it")
            })?;
            return match value {
                Value::Object(object) => Ok(Some((self.line, object))),
                other => Err(wrong(format!("{} instead of an object", kind(&other)))
                    .with_help("each line looks like {\"key\": value, ...}")),
            };
        }
    }
}

impl Iterator for JsonLines {
    type Item = Result<(usize, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.read();
        self.failed = read.is_err();
        read.transpose()
    }
}

/// What a JSON value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The text under `key` of the object on line `line` of the file `path`.
///
/// # Errors
/// No such key, or something else than a text there: names the line, the key and which keys there are.
pub fn text<'a>(path: &Path, line: usize, object: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(Error::file(path, format!("line {line}: \"{key}\" is {} instead of a text", kind(other)))),
        None => Err(lacks(path, line, object, key)),
    }
}

/// The error about a key that line `line` lacks.
pub fn lacks(path: &Path, line: usize, object: &Map<String, Value>, key: &str) -> Error {
    let known: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
    let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
    Error::file(path, format!("line {line}: lacks \"{key}\"")).with_help(format!("the line has {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Vec<(usize, Map<String, Value>)>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, content).unwrap();
        JsonLines::open(&path)?.collect()
    }

    #[test]
    fn objects_come_with_their_lines() {
        let read = read(b"{\"text\": \"a\"}\n\n  \r\n{\"text\": \"b\"}\r\n{}").unwrap();
        assert_eq!(read.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 4, 5]);
        assert_eq!(text(Path::new("x"), 4, &read[1].1, "text").unwrap(), "b");
    }

    #[test]
    fn errors_name_line_and_cause() {
        let refused = |content: &[u8]| {
            let error = read(content).unwrap_err().to_string();
            error.rsplit_once("x.jsonl: ").unwrap().1.to_owned()
        };
        assert!(refused(b"{}\n{\"a\": }\n").starts_with("line 2: not readable as JSON"));
        assert_eq!(refused(b"{}\n\n[1]\n"), "line 3: a list instead of an object");
        assert_eq!(refused(b"{\"a\": \"\xff\"}"), "line 1: byte 7 is not UTF-8");
        let object: Map<String, Value> = serde_json::from_str(r#"{"txt": "a", "n": 3}"#).unwrap();
        let error = text(Path::new("x.jsonl"), 7, &object, "text").unwrap_err();
        assert_eq!(error.to_string(), "x.jsonl: line 7: lacks \"text\"");
        assert_eq!(error.help(), Some("the line has txt, n"));
        let error = text(Path::new("x.jsonl"), 7, &object, "n").unwrap_err();
        assert_eq!(error.to_string(), "x.jsonl: line 7: \"n\" is a number instead of a text");
    }

    #[test]
    fn nothing_comes_after_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, "oh\n{}\n").unwrap();
        let mut lines = JsonLines::open(&path).unwrap();
        assert!(lines.next().unwrap().is_err());
        assert!(lines.next().is_none());
    }
}
