//! Language models from GPT-2 to Llama and Gemma.

use super::super::{Outcome, Subject};
use super::{check_length, piece};
use crate::model_folder;
use crate::tokens::Tokenizer;
use crate::{Error, Result};
use conjure_core::probe::Probe;
use conjure_core::weights::{self, Params, TensorSource};
use conjure_core::{DType, Device, Tensor};
use conjure_models::decoder::{self, Decoder, DecoderConfig, ModelType};
use std::path::Path;
use std::sync::Arc;

/// Whether a `model_type` of `config.json` is a decoder's.
pub(super) fn is_known(name: &str) -> bool {
    ModelType::ALL.iter().any(|known| known.name() == name)
}

/// The names of all decoders.
pub(super) fn known() -> String {
    ModelType::ALL.map(ModelType::name).join(", ")
}

/// A decoder with its tokenizer.
pub(super) struct LanguageModel {
    model: Decoder,
    tokenizer: Tokenizer,
}

impl LanguageModel {
    /// The folder with `config.json`, weights and tokenizer.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = model_folder::config(folder, DecoderConfig::from_json)?;
        Self::new(weights::open(weights::locate(folder)?)?, &config, Tokenizer::from_folder(folder)?)
    }

    /// A GGUF file, which holds everything.
    pub fn open_gguf(path: &Path) -> Result<Self> {
        let source = weights::open(path)?;
        let metadata = source.gguf().ok_or_else(|| Error::file(path, "is no GGUF file"))?;
        let tokenizer = Tokenizer::from_gguf(metadata)?;
        let config = DecoderConfig::from_gguf(source.as_ref())?;
        Self::new(source, &config, tokenizer)
    }

    fn new(source: Arc<dyn TensorSource>, config: &DecoderConfig, tokenizer: Tokenizer) -> Result<Self> {
        let params = Params::load(decoder::canonical(source, config)?, DType::F32, &Device::Cpu);
        Ok(Self { model: Decoder::new(&params, config)?, tokenizer })
    }
}

impl Subject for LanguageModel {
    fn family(&self) -> &'static str {
        "decoder: every token sees itself and earlier ones"
    }

    fn layers(&self) -> usize {
        self.model.config().layers.len()
    }

    fn heads(&self) -> usize {
        self.model.config().num_attention_heads
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, true)?;
        check_length(ids.len(), self.model.config().context())?;
        Ok(ids)
    }

    fn piece(&self, id: u32) -> String {
        piece(&self.tokenizer, id)
    }

    fn run(&self, ids: &[u32], _: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome> {
        let logits = self.model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, None, probe)?;
        Ok(Outcome { output: Vec::new(), hidden: None, embedding: None, logits: Some(logits.squeeze(0)?) })
    }
}
