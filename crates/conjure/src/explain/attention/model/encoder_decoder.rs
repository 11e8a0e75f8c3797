//! The 2017 Transformer and its relatives: they read one sequence and write another.

use super::super::{Outcome, Subject};
use super::piece;
use crate::generate::translate::{SequenceModel, TranslateRequest, Translator as Writer};
use crate::{Error, Result};
use conjure_core::probe::Probe;
use conjure_core::{Device, Tensor};
use conjure_models::encoder_decoder::{EncoderDecoder, EncoderDecoderConfig};
use std::path::Path;

/// A translator that is told its languages as in a translation.
pub(super) struct Translator {
    model: EncoderDecoder,
    writer: Writer,
    request: TranslateRequest,
    unheard: Option<String>,
}

impl Translator {
    /// The folder with `config.json`, weights and tokenizer.
    pub fn open(folder: &Path, from: Option<&str>, to: Option<&str>) -> Result<Self> {
        let writer = Writer::open(folder)?;
        let SequenceModel::Transformer(model) = writer.model() else {
            return Err(Error::file(folder, "is no Transformer"));
        };
        let request = TranslateRequest {
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            beams: Some(1),
            ..TranslateRequest::default()
        };
        let unheard = writer.languages().unheard(from, to).map(str::to_owned);
        Ok(Self { model: model.clone(), unheard, writer, request })
    }

    /// The most probable token after each, until the end, as `conjure translate --beams 1` writes it; with the token that begins
    /// every target.
    fn write(&self, ids: &[u32]) -> Result<Vec<u32>> {
        let mut request = self.request.clone();
        if request.to.is_none() && self.writer.languages().told(None, None).is_err() {
            // The text itself names the language; what is asked for is then the same for all.
            request.to = self.writer.languages().targets().first().map(|&first| first.to_owned());
        }
        let config = self.model.config();
        let written = self.writer.translate_ids(&[ids.to_vec()], &request, &mut |_| true)?;
        let tokens = written.into_iter().flat_map(|translation| translation.ids);
        let tokens = tokens.take_while(|id| *id != config.eos_token_id());
        Ok(std::iter::once(config.decoder_start_token_id()).chain(tokens).collect())
    }
}

impl Subject for Translator {
    fn family(&self) -> &'static str {
        "encoder-decoder: the output is what the model wrote, the most probable token each time"
    }

    fn layers(&self) -> usize {
        match self.model.config() {
            EncoderDecoderConfig::Marian(config) => config.encoder_layers.max(config.decoder_layers),
            EncoderDecoderConfig::T5(config) => config.num_layers.max(config.num_decoder_layers.unwrap_or(0)),
        }
    }

    fn input_layers(&self) -> usize {
        match self.model.config() {
            EncoderDecoderConfig::Marian(config) => config.encoder_layers,
            EncoderDecoderConfig::T5(config) => config.num_layers,
        }
    }

    fn unheard(&self) -> Option<&str> {
        self.unheard.as_deref()
    }

    fn kinds(&self) -> usize {
        3
    }

    fn heads(&self) -> usize {
        match self.model.config() {
            EncoderDecoderConfig::Marian(config) => config.encoder_attention_heads.min(config.decoder_attention_heads),
            EncoderDecoderConfig::T5(config) => config.num_heads,
        }
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if self.request.to.is_none() && text.trim_start().starts_with(">>") {
            return self.writer.encode_source(text);
        }
        self.writer.encode(text, &self.request)
    }

    fn piece(&self, id: u32) -> String {
        piece(self.writer.tokenizer(), id)
    }

    fn run(&self, ids: &[u32], output: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome> {
        let output = match output {
            Some(output) => output.to_vec(),
            None => self.write(ids)?,
        };
        let source = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?; // (1, source)
        let memory = self.model.encode(&source, None, probe)?; // (1, source, d_model)
        let target = Tensor::new(output.as_slice(), &Device::Cpu)?.unsqueeze(0)?; // (1, time)
        let logits = self.model.decode(&target, &memory, None, probe)?.squeeze(0)?; // (time, vocabulary)
        Ok(Outcome { output, hidden: Some(memory.states.squeeze(0)?), embedding: None, logits: Some(logits) })
    }
}
