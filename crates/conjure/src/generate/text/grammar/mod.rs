//! Text that is held to a JSON schema or a grammar.
//!
//! The matching is `llguidance`'s (Moskal et al.): an Earley parser over a lexer of derivatives, which walks the trie
//! of the vocabulary's bytes and tells in some 50 microseconds which tokens may come next. Six small crates without
//! native code. Here is what surrounds it: what users may give, checks before work, and how a text that must end is
//! closed.
//!
//! | file | question it answers |
//! |---|---|
//! | `constraint` | which tokens may come next, and how is a text closed that must end? |
//! | `tokens` | what are the tokens of a vocabulary in bytes? |
//! | `ending` | what is the shortest end of a text? |
//! | `search` | and where that is not known? |
//! | `gbnf` | what do the grammars of llama.cpp mean? |
//! | `limits` | how large may a grammar be? |
//! | `lark` | what is refused before `llguidance` reads a grammar? |
//! | `refusal` | what does `llguidance` mean when it refuses one? |

mod constraint;
mod ending;
mod gbnf;
mod lark;
mod limits;
mod refusal;
mod search;
mod tokens;

use conjure_core::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

pub use constraint::Constraint;
pub use tokens::TokenBytes;

/// Largest file of a schema or grammar in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What a text has to match, whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that this schema describes, written on one line with `", "` and `": "`, unless the schema's own entry
    /// `x-guidance` says otherwise. `oneOf` is taken as `anyOf`.
    JsonSchema(Value),
    /// A grammar in Lark's notation, as `llguidance` reads it; it begins with the rule `start`.
    Lark(String),
}

impl Grammar {
    /// A JSON schema from its text.
    ///
    /// # Errors
    /// The text is no JSON, or not an object or a truth value.
    pub fn json_schema(text: &str) -> Result<Self> {
        let mut schema: Value = serde_json::from_str(text)
            .map_err(|e| Error::request(format!("the schema is no JSON: {e}")).with_help("check it near that place"))?;
        match &mut schema {
            Value::Object(entries) => {
                // Where spaces are free, small models write nothing else.
                let ours = || json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
                if let Value::Object(options) = entries.entry("x-guidance").or_insert_with(ours) {
                    // Which of them fits, and no other, is not to be known before the text is there.
                    options.entry("coerce_one_of").or_insert(true.into());
                }
            }
            Value::Bool(_) => {}
            _ => {
                return Err(Error::request("the schema is neither an object nor true or false")
                    .with_help("such as {\"type\": \"object\", \"properties\": {\"name\": {\"type\": \"string\"}}}"));
            }
        }
        Ok(Self::JsonSchema(schema))
    }

    /// A grammar from its text: GBNF where its rules are defined by `::=`, Lark otherwise.
    ///
    /// # Errors
    /// The text is empty, nested too deep, has too many rules or asks for special tokens; GBNF that is none.
    pub fn parse(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Err(Error::request("the grammar is empty").with_help("such as: start: \"yes\" | \"no\""));
        }
        let lark = if gbnf::is_gbnf(text) { gbnf::to_lark(text)? } else { text.to_owned() };
        lark::check(&lark)?;
        Ok(Self::Lark(lark))
    }

    /// A JSON schema from a file.
    ///
    /// # Errors
    /// The file is missing or too large; those of [`Grammar::json_schema`].
    pub fn open_json_schema(path: &Path) -> Result<Self> {
        Self::json_schema(&read(path)?).map_err(|error| in_file(path, error))
    }

    /// A grammar from a file.
    ///
    /// # Errors
    /// The file is missing or too large; those of [`Grammar::parse`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(&read(path)?).map_err(|error| in_file(path, error))
    }
}

fn read(path: &Path) -> Result<String> {
    let size = match path.metadata() {
        Ok(data) if data.is_dir() => return Err(Error::file(path, "is a folder").with_help("name a file")),
        Ok(data) => data.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::file(path, "there is no such file").with_help("check the name"));
        }
        Err(error) => return Err(Error::io(path, error)),
    };
    if size > MAX_FILE {
        return Err(
            Error::file(path, format!("has {size} bytes, more than {MAX_FILE}")).with_help("give a smaller one")
        );
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|_| Error::file(path, "is not text in UTF-8").with_help("save it as UTF-8"))
}

fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Request { message, help } => Error::File { path: path.to_path_buf(), message, help },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_say_how_they_are_written() {
        let options = |schema: &str| match Grammar::json_schema(schema).unwrap() {
            Grammar::JsonSchema(value) => value["x-guidance"].clone(),
            Grammar::Lark(text) => panic!("{text}"),
        };
        let ours = json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true
        });
        assert_eq!(options("{}"), ours);
        let theirs = r#"{"x-guidance": {"item_separator": ","}}"#;
        assert_eq!(options(theirs), json!({"item_separator": ",", "coerce_one_of": true}));
        assert_eq!(Grammar::json_schema("true").unwrap(), Grammar::JsonSchema(true.into()));
    }

    #[test]
    fn files_are_read_with_care() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.lark");
        let refused = |path: &Path| Grammar::open(path).unwrap_err().to_string();
        assert!(refused(&path).ends_with("there is no such file"));
        assert!(refused(folder.path()).ends_with("is a folder"));
        std::fs::write(&path, b"start: \"\xff\"").unwrap();
        assert!(refused(&path).ends_with("is not text in UTF-8"));
        std::fs::write(&path, "x".repeat(1 << 21)).unwrap();
        assert!(refused(&path).contains("has 2097152 bytes"));
        std::fs::write(&path, "root ::= [").unwrap();
        assert!(refused(&path).contains("g.lark: the grammar's line 1"));
    }
}
