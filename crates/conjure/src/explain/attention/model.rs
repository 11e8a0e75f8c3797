//! Models whose attention can be shown, and how they are opened.

use super::Token;
use crate::model_folder;
use crate::tokens::ClipTokenizer;
use crate::{Error, Result};
use conjure_core::probe::Probe;
use conjure_core::{D, Device, Tensor};
use conjure_models::clip_text::{ClipText, ClipTextConfig};
use serde_json::Value;
use std::path::Path;

/// What a model says of a text, beside what a probe sees.
pub struct Outcome {
    /// The last layer's output, `(time, hidden)`.
    pub hidden: Tensor,
    /// What stands for the whole text, `(features)`; only of models that embed texts.
    pub embedding: Option<Tensor>,
    /// Of the next token at each position, `(time, vocabulary)`; only of models that continue texts.
    pub logits: Option<Tensor>,
}

/// A model that can be run on a text before a probe.
pub trait Subject {
    /// The family, in words.
    fn family(&self) -> &'static str;

    /// Layers.
    fn layers(&self) -> usize;

    /// Heads of a layer.
    fn heads(&self) -> usize;

    /// The text's tokens, with those that the model wants around it.
    ///
    /// # Errors
    /// More tokens than the model reads.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// What a token spells, with the spaces before or after it. Tokens that spell nothing give their own name.
    fn piece(&self, id: u32) -> String;

    /// Runs the model on one text.
    ///
    /// # Errors
    /// Those of the model and the probe.
    fn run(&self, ids: &[u32], probe: &mut dyn Probe) -> Result<Outcome>;
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

/// The model at `path`: a folder of a text encoder of CLIP, by itself or below a folder for pictures.
///
/// # Errors
/// Nothing there that Conjure knows, a damaged file.
pub fn open(path: &Path) -> Result<Box<dyn Subject>> {
    let below = path.join("text_encoder");
    let folder = if below.join("config.json").is_file() { below } else { path.to_path_buf() };
    let config_path = folder.join("config.json");
    let text = model_folder::read_text(&config_path)?.ok_or_else(|| {
        Error::file(&config_path, "not found").with_help("name the folder of a text model, such as models/emoji")
    })?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| Error::file(&config_path, format!("is not JSON: {e}")))?;
    match config["model_type"].as_str() {
        Some("clip_text_model") => Ok(Box::new(Clip::open(&folder)?)),
        kind => {
            let kind = kind.map_or_else(|| "no model_type".to_owned(), |kind| format!("model_type {kind:?}"));
            Err(Error::file(&config_path, format!("states {kind}, whose attention cannot be shown"))
                .with_help("attention is shown of clip_text_model"))
        }
    }
}

struct Clip {
    model: ClipText,
    tokenizer: ClipTokenizer,
}

impl Clip {
    fn open(folder: &Path) -> Result<Self> {
        let (config, params) = model_folder::open(folder, ClipTextConfig::from_json)?;
        let beside = folder.parent().map(|parent| parent.join("tokenizer")).filter(|place| place.is_dir());
        let tokenizer = ClipTokenizer::load(beside.as_deref().unwrap_or(folder))?;
        Ok(Self { model: ClipText::new(&params, &config)?, tokenizer })
    }
}

impl Subject for Clip {
    fn family(&self) -> &'static str {
        "CLIP's text encoder"
    }

    fn layers(&self) -> usize {
        self.model.config().num_hidden_layers
    }

    fn heads(&self) -> usize {
        self.model.config().num_attention_heads
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // No padding: nobody looks at it, and it looks at everything.
        let mut ids = vec![self.tokenizer.start_id()];
        ids.extend(self.tokenizer.encode(text)?);
        ids.push(self.tokenizer.end_id());
        let most = self.model.config().max_position_embeddings;
        if ids.len() > most {
            return Err(Error::request(format!("the text has {} tokens; the model reads {most}", ids.len()))
                .with_help("shorten the text, or choose a model with a longer context"));
        }
        Ok(ids)
    }

    fn piece(&self, id: u32) -> String {
        let name = self.tokenizer.token(id).unwrap_or_default();
        let special = id == self.tokenizer.start_id() || id == self.tokenizer.end_id();
        match self.tokenizer.decode(&[id]) {
            Ok(text) if !special && !text.is_empty() => {
                if name.ends_with("</w>") {
                    text + " "
                } else {
                    text
                }
            }
            _ => name,
        }
    }

    fn run(&self, ids: &[u32], probe: &mut dyn Probe) -> Result<Outcome> {
        let output = self.model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, probe)?;
        let embedding = output.text_embeds.unwrap_or(output.pooled_output);
        Ok(Outcome {
            hidden: output.last_hidden_state.squeeze(0)?,
            embedding: Some(embedding.squeeze(0)?),
            logits: None,
        })
    }
}

/// The cosines of the rows of two tensors of the same shape `(..., features)`.
pub(super) fn cosines(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    let dot = |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok((a * b)?.sum(D::Minus1)?) };
    let norm = (dot(a, a)? * dot(b, b)?)?.sqrt()?;
    Ok((dot(a, b)? / norm)?.flatten_all()?.to_vec1()?)
}
