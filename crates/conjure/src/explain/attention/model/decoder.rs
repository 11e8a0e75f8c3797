//! Language models from GPT-2 to Llama and Gemma.

use super::super::{Outcome, Subject};
use super::check_length;
use crate::Result;
use crate::generate::text::LanguageModel;
use conjure_core::probe::Probe;
use conjure_core::{Device, Tensor};
use conjure_models::decoder::ModelType;

/// The names of all decoders.
pub(super) fn known() -> String {
    ModelType::ALL.map(ModelType::name).join(", ")
}

impl Subject for LanguageModel {
    fn family(&self) -> &'static str {
        "decoder: every token sees itself and earlier ones"
    }

    fn layers(&self) -> usize {
        self.decoder().config().layers.len()
    }

    fn heads(&self) -> usize {
        self.decoder().config().num_attention_heads
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer()?.encode(text, true)?;
        check_length(ids.len(), self.context())?;
        Ok(ids)
    }

    fn piece(&self, id: u32) -> String {
        self.token_text(id)
    }

    fn run(&self, ids: &[u32], _: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome> {
        let logits = self.decoder().forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, None, probe)?;
        Ok(Outcome { output: Vec::new(), hidden: None, embedding: None, logits: Some(logits.squeeze(0)?) })
    }
}
