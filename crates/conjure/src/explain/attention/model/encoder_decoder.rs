//! The 2017 Transformer and its relatives: they read one sequence and write another.

use super::super::{Outcome, Subject};
use super::{check_length, piece};
use crate::Result;
use crate::model_folder;
use crate::tokens::Tokenizer;
use conjure_core::probe::{NoProbe, Probe};
use conjure_core::{Device, Tensor};
use conjure_models::encoder_decoder::{Decoding, EncoderDecoder, EncoderDecoderConfig, Memory};
use std::path::Path;

/// The longest output that is written when none is given.
const LONGEST_OUTPUT: usize = 64;

/// A translator with its tokenizer.
pub(super) struct Translator {
    model: EncoderDecoder,
    tokenizer: Tokenizer,
}

impl Translator {
    /// The folder with `config.json`, weights and tokenizer.
    pub fn open(folder: &Path) -> Result<Self> {
        let (config, params) = model_folder::open(folder, EncoderDecoderConfig::from_json)?;
        Ok(Self { model: EncoderDecoder::new(&params, &config)?, tokenizer: Tokenizer::from_folder(folder)? })
    }

    /// The most probable token after each, until the end.
    fn write(&self, memory: &Memory) -> Result<Vec<u32>> {
        let config = self.model.config();
        let mut decoding = Decoding::new(&self.model, memory.clone());
        let mut output = vec![config.decoder_start_token_id()];
        while output.len() < LONGEST_OUTPUT.min(decoding.context()) {
            let logits = decoding.next(&output[output.len() - 1..])?;
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as u32;
            if best == config.eos_token_id() {
                break;
            }
            output.push(best);
        }
        Ok(output)
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
        let ids = self.tokenizer.encode(text, true)?;
        check_length(ids.len(), self.model.config().max_tokens().unwrap_or(usize::MAX))?;
        Ok(ids)
    }

    fn piece(&self, id: u32) -> String {
        piece(&self.tokenizer, id)
    }

    fn run(&self, ids: &[u32], output: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome> {
        let source = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?; // (1, source)
        let output = match output {
            Some(output) => output.to_vec(),
            None => self.write(&self.model.encode(&source, None, &mut NoProbe)?)?,
        };
        let memory = self.model.encode(&source, None, probe)?; // (1, source, d_model)
        let target = Tensor::new(output.as_slice(), &Device::Cpu)?.unsqueeze(0)?; // (1, time)
        let logits = self.model.decode(&target, &memory, None, probe)?.squeeze(0)?; // (time, vocabulary)
        Ok(Outcome { output, hidden: Some(memory.states.squeeze(0)?), embedding: None, logits: Some(logits) })
    }
}
