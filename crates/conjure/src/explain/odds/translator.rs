//! The odds of a target when an encoder-decoder reads a source.

use super::{Odds, TokenOdds};
use crate::generate::text::Prompt;
use crate::generate::text::generation::check_ids;
use crate::generate::translate::{Languages, SequenceModel};
use crate::model_folder;
use crate::tokens::Tokenizer;
use conjure_core::probe::NoProbe;
use conjure_core::weights::{self, Params};
use conjure_core::{DType, Device, Error, Result, Tensor};
use conjure_models::encoder_decoder::{EncoderDecoder, EncoderDecoderConfig};
use std::path::Path;

/// Target positions whose scores are held at once.
const SCORED: usize = 64;

/// An encoder-decoder with its tokenizer, if it has one.
pub(super) struct Translator {
    model: EncoderDecoder,
    /// With the languages that the model can be told.
    tokenizer: Option<(Tokenizer, Languages)>,
}

impl Translator {
    pub fn open(folder: &Path) -> Result<Self> {
        let config = model_folder::config(folder, EncoderDecoderConfig::from_json)?;
        let has = |name: &str| folder.join(name).is_file();
        let tokenizer = ["tokenizer.json", "spiece.model", "source.spm"].into_iter().any(has);
        let source = weights::open(weights::locate(folder)?)?;
        let model = EncoderDecoder::new(&Params::load(source, DType::F32, &Device::Cpu), &config)?;
        let tokenizer = tokenizer
            .then(|| {
                let tokenizer = Tokenizer::from_folder(folder)?;
                let languages = Languages::read(folder, &SequenceModel::Transformer(model.clone()), &tokenizer)?;
                Ok::<_, Error>((tokenizer, languages))
            })
            .transpose()?;
        Ok(Self { model, tokenizer })
    }

    /// `cut` cuts a text into tokens, as one of the source or of the target language.
    fn encode(
        &self,
        prompt: &Prompt,
        vocabulary: usize,
        cut: impl Fn(&Tokenizer, &Languages, &str) -> Result<Vec<u32>>,
    ) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Ids(ids) => ids.clone(),
            Prompt::Text(text) => {
                let (tokenizer, languages) = self.tokenizer.as_ref().ok_or_else(|| {
                    Error::request("the model's folder has no tokenizer")
                        .with_help("give token ids with --tokens and --target-tokens")
                })?;
                cut(tokenizer, languages, text)?
            }
        };
        if ids.is_empty() {
            return Err(Error::request("source or target has no tokens").with_help("give a text"));
        }
        check_ids(&ids, vocabulary)?;
        match self.model.config().max_tokens() {
            Some(most) if ids.len() > most => {
                Err(Error::request(format!("the text has {} tokens, the model reads {most} at once", ids.len()))
                    .with_help("shorten it, or choose a model with a longer context"))
            }
            _ => Ok(ids),
        }
    }

    /// Entry `i` is the prediction of target token `i` from the source and the target's tokens before it. A text's target
    /// ends with the token that ends an answer. The model is told the languages as in a translation, unless the source says
    /// itself what is to be done, as `>>de<< a cat` does.
    pub fn odds(
        &self,
        source: &Prompt,
        target: &Prompt,
        (from, to): (Option<&str>, Option<&str>),
        alternatives: usize,
    ) -> Result<Odds> {
        let config = self.model.config();
        let source = self.encode(source, config.source_vocabulary(), |tokenizer, languages, text| {
            if to.is_none() && text.trim_start().starts_with(">>") {
                return tokenizer.encode(text, true);
            }
            let told = languages.told(from, to)?;
            let ids = tokenizer.encode(&format!("{}{text}", told.prefix), true)?;
            Ok(told.token.into_iter().chain(ids).collect())
        })?;
        let target =
            self.encode(target, config.target_vocabulary(), |tokenizer, _, text| tokenizer.encode_target(text, true))?;
        let text = |id| self.tokenizer.as_ref().and_then(|(t, _)| t.token_text(id)).unwrap_or_default();
        let row = |ids: &[u32]| -> Result<Tensor> { Ok(Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?) };
        let memory = self.model.encode(&row(&source)?, None, &mut NoProbe)?; // (1, source, d_model)
        let read: Vec<u32> =
            std::iter::once(config.decoder_start_token_id()).chain(target.iter().copied()).take(target.len()).collect();
        let mut cache = self.model.cache();
        let mut tokens = Vec::with_capacity(target.len());
        for (ids, read) in target.chunks(SCORED).zip(read.chunks(SCORED)) {
            let logits = self.model.decode(&row(read)?, &memory, Some(&mut cache), &mut NoProbe)?; // (1, time, vocabulary)
            for (&id, logits) in ids.iter().zip(logits.squeeze(0)?.to_vec2::<f32>()?) {
                tokens.push(TokenOdds::new(id, &logits, alternatives, &text)?);
            }
        }
        let languages = self.tokenizer.as_ref().map(|(_, languages)| languages);
        let unheard = languages.and_then(|languages| languages.unheard(from, to)).map(str::to_owned);
        Ok(Odds { tokens, unheard })
    }
}
