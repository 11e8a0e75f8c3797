//! What a transformers folder says about its tokenizer: which file holds the vocabulary, which tokens are marks, which ids end
//! an answer, how conversations are written.

use super::chat_template::{ChatTemplate, MAX_TEMPLATE_BYTES};
use super::files::{read_json, read_text};
use super::marian::Marian;
use super::sentencepiece::prefixes::Prefixes;
use super::sentencepiece::{PieceKind, SentencePiece};
use super::tokenizer::{Engine, Tokenizer};
use super::tokenizer_json::MAX_ID;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The largest vocabularies in JSON take 35 MB.
const MAX_VOCABULARY_BYTES: u64 = 256 << 20;
/// Settings with thousands of added tokens take 3 MB.
const MAX_SETTINGS_BYTES: u64 = 64 << 20;
/// Where a SentencePiece model may be.
const PIECE_FILES: [&str; 4] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm"];
/// The marks that have a name in the settings.
const MARKS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
/// Sentinels that T5 has beside its pieces where the settings do not say how many.
const T5_SENTINELS: u64 = 100;

/// The settings files of a folder.
struct Settings {
    config: Value,
    map: Value,
    generation: Value,
    model: Value,
    added: Value,
}

impl Settings {
    /// A mark's text: a string, or an object with a `content`.
    fn mark(&self, name: &str) -> Option<&str> {
        [&self.config, &self.map].into_iter().find_map(|file| {
            let value = file.get(name)?;
            value.as_str().or_else(|| value.get("content")?.as_str())
        })
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name)?.as_bool()
    }

    /// The ids that end an answer: a number or a list in the generation's and the model's settings, then the named mark.
    fn ends(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = Vec::new();
        for file in [&self.generation, &self.model] {
            match file.get("eos_token_id") {
                Some(Value::Array(list)) => ids.extend(list.iter().filter_map(Value::as_u64)),
                Some(value) => ids.extend(value.as_u64()),
                None => {}
            }
        }
        let named = self.mark("eos_token").and_then(|text| tokenizer.token_id(text));
        // Ids past the vocabulary, common in the settings of toy models, can never be drawn.
        let known = ids.into_iter().filter(|id| *id < tokenizer.size as u64).map(|id| id as u32).chain(named);
        let mut out = Vec::new();
        for id in known {
            if !out.contains(&id) {
                out.push(id);
            }
        }
        out
    }

    fn begin(&self, tokenizer: &Tokenizer) -> Option<u32> {
        if let Some(text) = self.mark("bos_token") {
            return tokenizer.token_id(text);
        }
        let id = [&self.generation, &self.model].into_iter().find_map(|file| file.get("bos_token_id")?.as_u64());
        id.filter(|id| *id < tokenizer.size as u64).map(|id| id as u32)
    }

    /// Who made the tokenizer, such as `Llama`, by its class or else by the kind of the model.
    fn family(&self) -> String {
        let class = self.config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let class = class.trim_end_matches("Fast").trim_end_matches("Tokenizer");
        if !class.is_empty() && class != "PreTrained" {
            return class.to_owned();
        }
        let kind = self.model.get("model_type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "llama" | "mistral" | "mixtral" => "Llama".into(),
            "gemma" | "gemma2" | "gemma3" | "gemma3_text" => "Gemma".into(),
            "t5" | "mt5" | "umt5" => "T5".into(),
            "marian" => "Marian".into(),
            other => other.to_owned(),
        }
    }

    /// Tokens beside the model's pieces, by id.
    fn added(&self) -> std::result::Result<BTreeMap<u32, (String, bool)>, String> {
        let mut out: BTreeMap<u32, (String, bool)> = BTreeMap::new();
        let mut texts = BTreeSet::new();
        let mut add = |id: Option<u64>, text: Option<&str>, special: bool| {
            let (Some(id), Some(text)) = (id, text) else {
                return Err("an added token has no id or no content".to_owned());
            };
            if id > MAX_ID || text.is_empty() || text.len() > 4096 {
                return Err(format!("the added token {text:?} has the id {id}"));
            }
            match out.insert(id as u32, (text.to_owned(), special)) {
                Some((other, _)) if other != text => {
                    return Err(format!("the added tokens {other:?} and {text:?} have the same id {id}"));
                }
                Some(_) => {}
                None if !texts.insert(text.to_owned()) => return Err(format!("the token {text:?} is added twice")),
                None => {}
            }
            Ok(())
        };
        if let Some(tokens) = self.config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in tokens {
                let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
                add(id.parse().ok(), token.get("content").and_then(Value::as_str), special)?;
            }
        }
        if let Some(tokens) = self.added.as_object() {
            for (text, id) in tokens {
                let known = self.config.get("added_tokens_decoder").and_then(|tokens| tokens.get(id.to_string()));
                if known.is_none() {
                    add(id.as_u64(), Some(text), false)?;
                }
            }
        }
        Ok(out)
    }

    /// The chat template, by the precedence of transformers: a file of its own, the one called `default`, the only one.
    fn chat_template(&self, folder: &Path) -> Result<Option<ChatTemplate>> {
        let file = folder.join("chat_template.jinja");
        let config = folder.join("tokenizer_config.json");
        let (source, path) = if file.is_file() {
            (Some(read_text(&file, MAX_TEMPLATE_BYTES as u64)?), file)
        } else {
            let legacy = read_json(&folder.join("chat_template.json"), MAX_SETTINGS_BYTES)?;
            let source = match self.config.get("chat_template").or_else(|| legacy.get("chat_template")) {
                Some(Value::Array(named)) => named
                    .iter()
                    .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                    .and_then(|entry| entry.get("template")?.as_str())
                    .map(str::to_owned),
                Some(value) => value.as_str().map(str::to_owned),
                None => None,
            };
            (source, config)
        };
        let marks: Vec<(&str, &str)> = MARKS.iter().filter_map(|name| Some((*name, self.mark(name)?))).collect();
        let template = source.map(|source| ChatTemplate::new(&source, &marks)).transpose();
        template.map_err(|error| {
            let help = error.help().unwrap_or_default().to_owned();
            Error::file(path, error.to_string()).with_help(help)
        })
    }
}

/// [`Tokenizer::from_folder`].
pub(super) fn open(folder: &Path) -> Result<Tokenizer> {
    let settings = |name: &str| read_json(&folder.join(name), MAX_SETTINGS_BYTES);
    let settings = Settings {
        config: settings("tokenizer_config.json")?,
        map: settings("special_tokens_map.json")?,
        generation: settings("generation_config.json")?,
        model: settings("config.json")?,
        added: settings("added_tokens.json")?,
    };
    let combined = folder.join("tokenizer.json");
    let mut tokenizer = if combined.is_file() {
        Tokenizer::from_json(&read_text(&combined, MAX_VOCABULARY_BYTES)?, &combined)?
    } else if let Some(name) = PIECE_FILES.iter().find(|name| folder.join(name).is_file()) {
        from_pieces(folder, &folder.join(name), &settings)?
    } else {
        return Err(Error::file(
            folder,
            format!("no tokenizer: neither tokenizer.json nor {} is there", PIECE_FILES.join(", ")),
        )
        .with_help("name the folder that holds the model's tokenizer.json, or a GGUF file, which carries its own"));
    };
    tokenizer.bos = settings.begin(&tokenizer).or(tokenizer.bos);
    let ends = settings.ends(&tokenizer);
    if !ends.is_empty() {
        tokenizer.eos = ends;
    }
    tokenizer.chat_template = settings.chat_template(folder)?;
    Ok(tokenizer)
}

/// A folder with a SentencePiece model only. What transformers puts around texts is in the code of its tokenizer classes, so
/// the class must be known.
fn from_pieces(folder: &Path, path: &Path, settings: &Settings) -> Result<Tokenizer> {
    let family = settings.family();
    if path.ends_with("source.spm") || family == "Marian" {
        return Marian::open(folder);
    }
    let model = SentencePiece::open(path)?;
    let wrong = |message: String| Error::file(path, message);
    let size = model.pieces().len() as u32;
    let mut added =
        settings.added().map_err(|m| wrong(m).with_help("tokenizer_config.json and added_tokens.json disagree"))?;
    let (begins, ends) = match family.as_str() {
        "Llama" | "CodeLlama" | "Gemma" => (true, false),
        "T5" | "MT5" => {
            let sentinels =
                settings.config.get("extra_ids").and_then(Value::as_u64).unwrap_or(T5_SENTINELS).min(1000) as u32;
            if added.keys().all(|id| *id < size) {
                added.extend((0..sentinels).map(|n| (size + sentinels - 1 - n, (format!("<extra_id_{n}>"), true))));
            }
            (false, true)
        }
        "" => (false, false),
        other => {
            return Err(Error::file(
                folder,
                format!(
                    "what a {other} tokenizer puts around its {} is not known",
                    path.file_name().unwrap_or_default().display()
                ),
            )
            .with_help(
                "save the tokenizer as tokenizer.json: AutoTokenizer.from_pretrained(model).save_pretrained(folder)",
            ));
        }
    };
    let mut tokenizer = Tokenizer::from_sentencepiece(model);
    if let Engine::Pieces(pieces) = &mut tokenizer.engine {
        let own: Vec<(String, u32)> = (0u32..)
            .zip(pieces.model.pieces())
            .filter(|(_, piece)| piece.kind == PieceKind::Control)
            .map(|(id, piece)| (piece.text.clone(), id))
            .collect();
        // A text that a piece of the model has already keeps the piece's id.
        let beside = added.iter().filter(|(id, (text, _))| pieces.model.id(text) != Some(**id));
        let added: BTreeMap<u32, String> = beside.map(|(id, (text, _))| (*id, text.clone())).collect();
        if let Some((id, text)) = added.iter().find(|(id, _)| **id < size) {
            return Err(wrong(format!(
                "tokenizer_config.json gives the id {id} to {text:?}, but the model has another piece there"
            ))
            .with_help("the files do not belong together; download the folder again"));
        }
        pieces.found = Prefixes::new(
            own.iter()
                .map(|(text, id)| (text.as_str(), *id))
                .chain(added.iter().map(|(id, text)| (text.as_str(), *id))),
        );
        tokenizer.size = added.keys().next_back().map_or(size, |id| size.max(id + 1)) as usize;
        pieces.added = added;
        pieces.space_after_mark = settings.flag("legacy") != Some(false);
    }
    tokenizer.special.extend(added.iter().filter(|(_, (_, special))| *special).map(|(id, _)| *id));
    let mark =
        |name: &str, default: Option<u32>| settings.mark(name).and_then(|text| tokenizer.token_id(text)).or(default);
    let bos = mark("bos_token", tokenizer.bos).filter(|_| settings.flag("add_bos_token").unwrap_or(begins));
    let eos =
        mark("eos_token", tokenizer.eos.first().copied()).filter(|_| settings.flag("add_eos_token").unwrap_or(ends));
    tokenizer.around = Some((bos.into_iter().collect(), eos.into_iter().collect()));
    Ok(tokenizer)
}
