//! The files by which sentence-transformers describes how a text's vector is made.

use crate::{Error, Result, model_folder};
use conjure_models::encoder::Pooling;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};

/// A longer list of modules is no sentence encoder's.
const MOST: usize = 16;

/// What the files say.
#[derive(Debug, PartialEq)]
pub(super) struct Modules {
    /// The encoder's folder.
    pub transformer: PathBuf,
    pub pooling: Pooling,
    /// Whether vectors are brought to length 1.
    pub normalise: bool,
    /// Whether texts are lower-cased before the tokenizer sees them.
    pub lower_case: bool,
    /// Tokens that are read, as `sentence_bert_config.json` says.
    pub max_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Settings {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

impl Modules {
    /// Reads `modules.json` and the configs that it points to; without it, the mean of a bare encoder.
    ///
    /// # Errors
    /// A damaged file, a module that is not known, or modules in another order.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut all = Self {
            transformer: folder.to_owned(),
            pooling: Pooling::MeanTokens,
            normalise: false,
            lower_case: false,
            max_tokens: None,
        };
        let path = folder.join("modules.json");
        if let Some(modules) = read::<Vec<Module>>(&path)? {
            if modules.len() > MOST {
                return Err(Error::file(&path, format!("lists {} modules; at most {MOST} are read", modules.len())));
            }
            let kinds: Vec<&str> = modules.iter().map(|m| m.kind.rsplit('.').next().unwrap_or(&m.kind)).collect();
            match kinds.as_slice() {
                ["Transformer", "Pooling"] => {}
                ["Transformer", "Pooling", "Normalize"] => all.normalise = true,
                _ => {
                    return Err(Error::file(&path, format!("the modules are {}", kinds.join(", ")))
                        .with_help("supported are Transformer and Pooling, with or without Normalize after them"));
                }
            }
            all.transformer = below(folder, &modules[0].path, &path)?;
            all.pooling = pooling(&below(folder, &modules[1].path, &path)?.join("config.json"))?;
        }
        let settings = all.transformer.join("sentence_bert_config.json");
        if let Some(Settings { max_seq_length, do_lower_case }) = read(&settings)? {
            (all.max_tokens, all.lower_case) = (max_seq_length, do_lower_case.unwrap_or(false));
        }
        Ok(all)
    }
}

/// The folder `inner` in `folder`; a file from a stranger may point nowhere else.
fn below(folder: &Path, inner: &str, path: &Path) -> Result<PathBuf> {
    if Path::new(inner).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Ok(folder.join(inner));
    }
    Err(Error::file(path, format!("the path {inner:?} of a module leads out of the folder")))
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let Some(text) = model_folder::read_text(path)? else { return Ok(None) };
    let wrong = |e| Error::file(path, format!("is not as sentence-transformers writes it: {e}"));
    serde_json::from_str(&text).map(Some).map_err(wrong)
}

/// How `1_Pooling/config.json` pools: a switch for each kind, or its name.
fn pooling(path: &Path) -> Result<Pooling> {
    let config: Map<String, Value> = read(path)?.ok_or_else(|| Error::file(path, "not found"))?;
    let modes: Vec<&str> = match config.get("pooling_mode").and_then(Value::as_str) {
        Some(mode) => vec![mode],
        None => config
            .iter()
            .filter(|(_, value)| **value == Value::Bool(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .collect(),
    };
    match modes.as_slice() {
        ["mean_tokens" | "mean"] => Ok(Pooling::MeanTokens),
        ["cls_token" | "cls"] => Ok(Pooling::ClsToken),
        ["max_tokens" | "max"] => Ok(Pooling::MaxTokens),
        _ => Err(Error::file(path, format!("the pooling is {:?}", modes.join(" and ")))
            .with_help("supported are mean_tokens, cls_token and max_tokens, one at a time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(modules: &str, pooling: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("modules.json"), modules).unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        std::fs::write(folder.path().join("1_Pooling/config.json"), pooling).unwrap();
        folder
    }

    fn modules(kinds: &[(&str, &str)]) -> String {
        let module = |(kind, path): &(&str, &str)| serde_json::json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
        Value::from(kinds.iter().map(module).collect::<Vec<_>>()).to_string()
    }

    #[test]
    fn a_published_folder_is_read() {
        let text = modules(&[("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]);
        let pooling = r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false}"#;
        let folder = folder(&text, pooling);
        let settings = r#"{"max_seq_length": 256, "do_lower_case": false}"#;
        std::fs::write(folder.path().join("sentence_bert_config.json"), settings).unwrap();
        let expected = Modules {
            transformer: folder.path().join(""),
            pooling: Pooling::MeanTokens,
            normalise: true,
            lower_case: false,
            max_tokens: Some(256),
        };
        assert_eq!(Modules::read(folder.path()).unwrap(), expected);
        let bare = tempfile::tempdir().unwrap();
        let bare = Modules::read(bare.path()).unwrap();
        assert_eq!((bare.normalise, bare.max_tokens), (false, None));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let usual = modules(&[("Transformer", ""), ("Pooling", "1_Pooling")]);
        for (modules, pooling, said) in [
            (modules(&[("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]), "{}", "the modules are"),
            (modules(&[("Transformer", ".."), ("Pooling", "1_Pooling")]), "{}", "leads out of the folder"),
            (modules(&[("Transformer", "/etc"), ("Pooling", "1_Pooling")]), "{}", "leads out of the folder"),
            ("{}".to_owned(), "{}", "is not as sentence-transformers writes it"),
            (usual.clone(), r#"{"pooling_mode": "lasttoken"}"#, "the pooling is \"lasttoken\""),
            (usual.clone(), r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#, "the pooling is"),
            (usual, "{}", "the pooling is \"\""),
        ] {
            let folder = folder(&modules, pooling);
            let error = Modules::read(folder.path()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
