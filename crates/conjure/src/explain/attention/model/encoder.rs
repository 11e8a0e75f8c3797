//! BERT and its relatives.

use super::super::{Outcome, Subject};
use super::{check_length, piece};
use crate::Result;
use crate::model_folder;
use crate::tokens::Tokenizer;
use conjure_core::probe::Probe;
use conjure_core::weights::{self, Params};
use conjure_core::{DType, Device, Tensor};
use conjure_models::encoder::{self, Encoder, EncoderConfig};
use std::path::Path;

/// An encoder with its tokenizer.
pub(super) struct Bert {
    model: Encoder,
    tokenizer: Tokenizer,
}

impl Bert {
    /// The folder with `config.json`, weights and tokenizer.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = model_folder::config(folder, EncoderConfig::from_json)?;
        let source = encoder::renamed(weights::open(weights::locate(folder)?)?)?;
        let params = Params::load(std::sync::Arc::new(source), DType::F32, &Device::Cpu);
        Ok(Self { model: Encoder::new(&params, &config)?, tokenizer: Tokenizer::from_folder(folder)? })
    }
}

impl Subject for Bert {
    fn family(&self) -> &'static str {
        "encoder: every token sees every other"
    }

    fn layers(&self) -> usize {
        self.model.config().num_hidden_layers
    }

    fn heads(&self) -> usize {
        self.model.config().num_attention_heads
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, true)?;
        check_length(ids.len(), self.model.config().max_tokens())?;
        Ok(ids)
    }

    fn piece(&self, id: u32) -> String {
        piece(&self.tokenizer, id)
    }

    fn run(&self, ids: &[u32], _: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome> {
        let output = self.model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, None, None, probe)?;
        let hidden = output.last_hidden_state.squeeze(0)?; // (time, hidden)
        // Sentence encoders say a text by the mean of its tokens (Reimers & Gurevych 2019, section 3).
        Ok(Outcome { output: Vec::new(), embedding: Some(hidden.mean(0)?), hidden: Some(hidden), logits: None })
    }
}
