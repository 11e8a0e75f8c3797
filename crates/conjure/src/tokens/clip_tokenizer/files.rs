//! The files of a tokenizer's folder: read as strangers' data, written as diffusers and transformers expect them.

use super::{CONTEXT_LENGTH, ClipTokenizer, END_OF_TEXT, START_OF_TEXT, Settings, SpecialTokens};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use tokenizers::AddedToken;

/// Vocabularies and merges above this size are refused; CLIP's own take 1 MiB.
const MAX_VOCABULARY_BYTES: u64 = 32 << 20;
/// Settings files above this size are refused.
const MAX_SETTINGS_BYTES: u64 = 1 << 20;

impl ClipTokenizer {
    /// Opens a diffusers `tokenizer/` folder: `tokenizer.json` if there is one, else `vocab.json` and `merges.txt`;
    /// special tokens and `model_max_length` from `tokenizer_config.json` or `special_tokens_map.json` where they are there.
    ///
    /// # Errors
    /// A file that is missing, too large or no tokenizer.
    pub fn load(folder: &Path) -> Result<Self> {
        let combined = folder.join("tokenizer.json");
        let (vocabulary, merges, declared, origin) = if combined.is_file() {
            let text = read_bounded(&combined, MAX_VOCABULARY_BYTES)?;
            let (vocabulary, merges, declared) = parse_tokenizer_json(&text).map_err(|m| Error::file(&combined, m))?;
            (vocabulary, merges, declared, combined)
        } else {
            let path = folder.join("vocab.json");
            if !path.is_file() {
                return Err(Error::file(folder, "no tokenizer: neither tokenizer.json nor vocab.json is there")
                    .with_help(
                        "name the folder that holds vocab.json and merges.txt, as in a diffusers model folder",
                    ));
            }
            let vocabulary = parse_vocabulary(&read_bounded(&path, MAX_VOCABULARY_BYTES)?);
            let vocabulary = vocabulary.map_err(|m| Error::file(&path, m))?;
            let merges_path = folder.join("merges.txt");
            let merges = parse_merges(&read_bounded(&merges_path, MAX_VOCABULARY_BYTES)?);
            (vocabulary, merges.map_err(|m| Error::file(&merges_path, m))?, Vec::new(), path)
        };
        let config_path = folder.join("tokenizer_config.json");
        let map_path = folder.join("special_tokens_map.json");
        let config = read_settings(&config_path)?;
        let map = read_settings(&map_path)?;
        let settings = Settings::parse(&config, &map, declared).map_err(|m| Error::file(&config_path, m))?;
        Self::build(vocabulary, merges, settings).map_err(|m| {
            Error::file(origin, m).with_help("the tokenizer is not CLIP's or its files do not belong together")
        })
    }

    /// Writes the folder that diffusers and transformers open: `vocab.json`, `merges.txt`, `tokenizer.json`,
    /// `tokenizer_config.json` and `special_tokens_map.json`. The folder is made if it is not there.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|e| Error::io(path, e))
        };
        // Ids in order, as the reference writes them: readers that ignore the numbers still see the right sequence.
        let mut by_id: Vec<_> = self.vocabulary.iter().map(|(text, id)| (*id, text)).collect();
        by_id.sort_unstable();
        let entries: Vec<_> = by_id.iter().map(|(id, text)| format!("{}:{id}", Value::from(text.as_str()))).collect();
        write("vocab.json", format!("{{{}}}\n", entries.join(",")))?;
        let merges: String = self.merges.iter().map(|(left, right)| format!("{left} {right}\n")).collect();
        write("merges.txt", format!("#version: 0.2\n{merges}"))?;
        let inner = self.inner.to_string(false).map_err(|e| Error::failure(format!("cannot write tokenizer: {e}")))?;
        write("tokenizer.json", inner)?;
        // Plain strings where the token is matched as it is written, with the flag where it is matched after lower-casing.
        let declare = |text: &str| {
            let normalized = self.added.iter().rev().find(|t| t.content == text).is_some_and(|t| t.normalized);
            if !normalized {
                return Value::from(text);
            }
            json!({ "content": text, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false })
        };
        let special = json!({
            "bos_token": declare(&self.special.start),
            "eos_token": declare(&self.special.end),
            "pad_token": declare(&self.special.padding),
            "unk_token": declare(&self.special.unknown),
        });
        write("special_tokens_map.json", format!("{special:#}\n"))?;
        let mut config = special;
        for token in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(declared) = config[token].as_object_mut() {
                declared.insert("__type".into(), "AddedToken".into());
            }
        }
        config["do_lower_case"] = true.into();
        config["errors"] = "replace".into();
        config["model_max_length"] = self.context_length.into();
        config["tokenizer_class"] = "CLIPTokenizer".into();
        write("tokenizer_config.json", format!("{config:#}\n"))
    }
}

impl Settings {
    fn parse(config: &Value, map: &Value, declared: Vec<DeclaredToken>) -> std::result::Result<Self, String> {
        let mut added = Vec::new();
        let mut role = |name: &str, default: &str| -> std::result::Result<String, String> {
            // Older folders keep null in one file and the token in the other.
            let entry = [&config[name], &map[name]].into_iter().find(|v| !v.is_null());
            let token = match entry {
                None => known(default, &declared),
                Some(Value::String(text)) => known(text, &declared),
                Some(entry) => DeclaredToken::deserialize(entry).map_err(|e| format!("{name}: {e}"))?.added(),
            };
            let text = token.content.clone();
            added.push(token);
            Ok(text)
        };
        let special = SpecialTokens {
            start: role("bos_token", START_OF_TEXT)?,
            end: role("eos_token", END_OF_TEXT)?,
            unknown: role("unk_token", END_OF_TEXT)?,
            padding: role("pad_token", END_OF_TEXT)?,
        };
        let mut ids = BTreeMap::new();
        for token in &declared {
            if !added.iter().any(|a| a.content == token.content) {
                added.push(token.added());
            }
            if let Some(id) = token.id {
                ids.insert(token.content.clone(), id);
            }
        }
        let context_length = match &config["model_max_length"] {
            Value::Null => CONTEXT_LENGTH,
            length => match length.as_f64() {
                Some(length) if length >= 1e9 => CONTEXT_LENGTH,
                Some(length) if length >= 0.0 => length as usize,
                _ => return Err(format!("model_max_length is {length}, not a number of tokens")),
            },
        };
        Ok(Self { special, added, ids, context_length })
    }
}

/// A special token given by its text alone: matched as written, unless the file's list of tokens says otherwise.
fn known(text: &str, declared: &[DeclaredToken]) -> AddedToken {
    declared.iter().find(|t| t.content == text).map_or_else(|| AddedToken::from(text, true), DeclaredToken::added)
}

#[derive(Deserialize)]
struct DeclaredToken {
    id: Option<u32>,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

impl DeclaredToken {
    fn added(&self) -> AddedToken {
        AddedToken::from(self.content.as_str(), true)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized)
    }
}

type TokenizerParts = (BTreeMap<String, u32>, Vec<(String, String)>, Vec<DeclaredToken>);

fn parse_tokenizer_json(text: &str) -> std::result::Result<TokenizerParts, String> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
        #[serde(default)]
        added_tokens: Vec<DeclaredToken>,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(rename = "type")]
        kind: Option<String>,
        vocab: BTreeMap<String, u32>,
        merges: Vec<Merge>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair(String, String),
    }
    let file: File = serde_json::from_str(text).map_err(|e| format!("not a byte-pair tokenizer: {e}"))?;
    if let Some(kind) = file.model.kind.filter(|kind| kind != "BPE") {
        return Err(format!("the tokenizer's model is {kind}, CLIP's is BPE"));
    }
    let merges = file.model.merges.into_iter().map(|merge| match merge {
        Merge::Pair(left, right) => Ok((left, right)),
        Merge::Line(line) => merge_line(&line).ok_or_else(|| format!("the merge {line:?} is not two tokens")),
    });
    Ok((file.model.vocab, merges.collect::<std::result::Result<_, _>>()?, file.added_tokens))
}

fn parse_vocabulary(text: &str) -> std::result::Result<BTreeMap<String, u32>, String> {
    serde_json::from_str(text).map_err(|e| format!("not a vocabulary of token texts and ids: {e}"))
}

/// Merges as `merges.txt` holds them: a line of two tokens each, best first, after a version line.
fn parse_merges(text: &str) -> std::result::Result<Vec<(String, String)>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    lines.map(|(n, line)| merge_line(line).ok_or_else(|| format!("line {} is not two tokens", n + 1))).collect()
}

fn merge_line(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    (!left.is_empty() && !right.is_empty() && !right.contains(' ')).then(|| (left.to_owned(), right.to_owned()))
}

fn read_settings(path: &Path) -> Result<Value> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let text = read_bounded(path, MAX_SETTINGS_BYTES)?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not JSON: {e}")))
}

/// Reads a text file of at most `limit` bytes.
fn read_bounded(path: &Path, limit: u64) -> Result<String> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("larger than {} MiB, which no tokenizer is", limit >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| Error::file(path, "not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_and_loads_the_same_tokenizer() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        for tokenizer in [ClipTokenizer::tiny(), ClipTokenizer::tiny().with_padding("!")?] {
            tokenizer.save(folder.path())?;
            let text = "Ünïcode, 漢字 & <|endoftext|> 'tis!";
            let expected = tokenizer.encode_window(text)?;
            assert_eq!(ClipTokenizer::load(folder.path())?.encode_window(text)?, expected);
            std::fs::remove_file(folder.path().join("tokenizer.json")).map_err(|e| Error::io("tokenizer.json", e))?;
            assert_eq!(ClipTokenizer::load(folder.path())?.encode_window(text)?, expected);
        }
        Ok(())
    }

    fn message_for(files: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        ClipTokenizer::load(folder.path()).expect_err("refused").to_string()
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        let vocab = r#"{"a":0,"b":1,"<|startoftext|>":2,"<|endoftext|>":3}"#;
        assert!(message_for(&[]).contains("neither tokenizer.json nor vocab.json"));
        assert!(message_for(&[("vocab.json", vocab)]).contains("merges.txt"));
        assert!(message_for(&[("vocab.json", "[]"), ("merges.txt", "")]).contains("not a vocabulary"));
        let bad_merge = [("vocab.json", vocab), ("merges.txt", "#version: 0.2\na b c\n")];
        assert!(message_for(&bad_merge).contains("line 2 is not two tokens"));
        let unknown_merge = [("vocab.json", vocab), ("merges.txt", "a b\n")];
        assert!(message_for(&unknown_merge).contains(r#"needs the token "ab""#));
        let same_id = [("vocab.json", r#"{"a":0,"<|startoftext|>":0}"#), ("merges.txt", "")];
        assert!(message_for(&same_id).contains("the same id 0"));
        assert!(message_for(&[("vocab.json", "{}"), ("merges.txt", "")]).contains("start token"));
        assert!(
            message_for(&[("tokenizer.json", r#"{"model":{"type":"Unigram","vocab":{},"merges":[]}}"#)])
                .contains("Unigram")
        );
        let config =
            [("vocab.json", vocab), ("merges.txt", ""), ("tokenizer_config.json", r#"{"model_max_length":1}"#)];
        assert!(message_for(&config).contains("context length of 1"));
    }
}
