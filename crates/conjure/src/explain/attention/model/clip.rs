//! CLIP's text encoder.

use super::super::{Outcome, Subject};
use super::check_length;
use crate::Result;
use crate::model_folder;
use crate::tokens::ClipTokenizer;
use conjure_core::probe::Probe;
use conjure_core::{Device, Tensor};
use conjure_models::clip_text::ClipText;
use std::path::Path;

/// CLIP's text encoder.
pub(super) struct Clip {
    model: ClipText,
    tokenizer: ClipTokenizer,
}

impl Clip {
    /// The folder with `config.json` and weights; the tokenizer is there, or in the folder `tokenizer` beside it.
    pub fn open(folder: &Path) -> Result<Self> {
        let (config, params) = model_folder::open_clip_text(folder, &Device::Cpu)?;
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
        check_length(ids.len(), self.model.config().max_position_embeddings)?;
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

    fn run(&self, ids: &[u32], _: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome> {
        let output = self.model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, probe)?;
        let embedding = output.text_embeds.unwrap_or(output.pooled_output);
        Ok(Outcome {
            output: Vec::new(),
            hidden: Some(output.last_hidden_state.squeeze(0)?),
            embedding: Some(embedding.squeeze(0)?),
            logits: None,
        })
    }
}
