//! Models whose attention can be shown, and how they are opened.

mod clip;
mod decoder;
mod encoder;
mod encoder_decoder;

use super::Token;
use crate::generate::text::LanguageModel;
use crate::model_folder;
use crate::tokens::Tokenizer;
use crate::{Error, Result};
use conjure_core::probe::Probe;
use conjure_core::{D, Tensor};
use conjure_models::decoder::ModelType;
use serde_json::Value;
use std::path::Path;

/// What a model says of a text, beside what a probe sees.
pub struct Outcome {
    /// The output that the model wrote or was given, with the token that begins it; empty unless the model reads one
    /// sequence and writes another.
    pub output: Vec<u32>,
    /// What became of the input's tokens, `(time, hidden)`; the last activation that the probe saw unless given.
    pub hidden: Option<Tensor>,
    /// What stands for the whole text, `(features)`; only of models that embed texts.
    pub embedding: Option<Tensor>,
    /// Of the next token at each position of the last sequence, `(time, vocabulary)`; only of models that write.
    pub logits: Option<Tensor>,
}

/// A model that can be run on a text before a probe.
pub trait Subject {
    /// The family, in words.
    fn family(&self) -> &'static str;

    /// Layers.
    fn layers(&self) -> usize;

    /// Layers that the input goes through.
    fn input_layers(&self) -> usize {
        self.layers()
    }

    /// Kinds of attention: 3 where the model reads one sequence and writes another.
    fn kinds(&self) -> usize {
        1
    }

    /// Heads of a layer.
    fn heads(&self) -> usize;

    /// The language that it was to be told, and that it is neither told nor known to have.
    fn unheard(&self) -> Option<&str> {
        None
    }

    /// The text's tokens, with those that the model wants around it.
    ///
    /// # Errors
    /// More tokens than the model reads.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// What a token spells, with the spaces before or after it. Tokens that spell nothing give their own name.
    fn piece(&self, id: u32) -> String;

    /// Runs the model on one text. A model that reads one sequence and writes another is shown as it writes `output`, or what
    /// it finds itself.
    ///
    /// # Errors
    /// Those of the model and the probe.
    fn run(&self, ids: &[u32], output: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome>;
}

/// A token for the reader.
pub(super) fn token(subject: &dyn Subject, id: u32) -> Token {
    let piece = subject.piece(id);
    let trimmed = piece.trim();
    let text = match (trimmed, piece.as_str()) {
        ("", "") => format!("[{id}]"),
        ("", space) => space.replace('\n', "⏎").replace('\t', "⇥").replace(' ', "␣"),
        (text, _) => text.to_owned(),
    };
    Token { id, text }
}

/// The model types in `config.json` that can be shown, beside those of decoders.
const KNOWN: &str = "clip_text_model, bert, roberta, xlm-roberta, marian, t5, mt5";

/// The model at `path`: a transformers folder with its tokenizer, or a GGUF file; or a folder for pictures, whose text encoder
/// is meant.
///
/// # Errors
/// Nothing there that Conjure knows, a damaged file.
pub fn open(path: &Path) -> Result<Box<dyn Subject>> {
    open_for(path, None, None)
}

/// As [`open`], with the languages that a translator is to be told; without them a text may name its own, as `>>de<< a cat`
/// does.
///
/// # Errors
/// As [`open`]; languages for a model that does not translate.
pub fn open_for(path: &Path, from: Option<&str>, to: Option<&str>) -> Result<Box<dyn Subject>> {
    // Before the weights are read.
    let untold = || {
        if from.is_none() && to.is_none() {
            return Ok(());
        }
        Err(Error::request("languages are for translators; this model has one sequence")
            .with_help("leave out --from and --to, or name a translator with --model"))
    };
    if path.is_file() {
        untold()?;
        return Ok(Box::new(LanguageModel::open(path)?));
    }
    let below = path.join("text_encoder");
    let folder = if below.join("config.json").is_file() { below } else { path.to_path_buf() };
    let config_path = folder.join("config.json");
    let text = model_folder::read_text(&config_path)?.ok_or_else(|| {
        Error::file(&config_path, "not found").with_help("name the folder of a text model, such as models/emoji")
    })?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| Error::file(&config_path, format!("is not JSON: {e}")))?;
    match config["model_type"].as_str() {
        Some("clip_text_model") => {
            untold()?;
            Ok(Box::new(clip::Clip::open(&folder)?))
        }
        Some("bert" | "roberta" | "xlm-roberta") => {
            untold()?;
            Ok(Box::new(encoder::Bert::open(&folder)?))
        }
        Some("marian" | "t5" | "mt5") => Ok(Box::new(encoder_decoder::Translator::open(&folder, from, to)?)),
        Some(kind) if ModelType::named(kind).is_some() => {
            untold()?;
            Ok(Box::new(LanguageModel::open(&folder)?))
        }
        kind => {
            let kind = kind.map_or_else(|| "no model_type".to_owned(), |kind| format!("model_type {kind:?}"));
            Err(Error::file(&config_path, format!("states {kind}, whose attention cannot be shown"))
                .with_help(format!("attention is shown of {KNOWN}, {}, and of GGUF files", decoder::known())))
        }
    }
}

/// What a token spells in a text, with the space before it.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.token_text(id).unwrap_or_default()
}

/// Refuses more tokens than a model reads.
fn check_length(tokens: usize, most: usize) -> Result<()> {
    if tokens <= most {
        return Ok(());
    }
    Err(Error::request(format!("the text has {tokens} tokens; the model reads {most}"))
        .with_help("shorten the text, or choose a model with a longer context"))
}

/// The cosines of the rows of two tensors of the same shape `(..., features)`.
pub(super) fn cosines(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    let dot = |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok((a * b)?.sum(D::Minus1)?) };
    let norm = (dot(a, a)? * dot(b, b)?)?.sqrt()?;
    Ok((dot(a, b)? / norm)?.flatten_all()?.to_vec1()?)
}
