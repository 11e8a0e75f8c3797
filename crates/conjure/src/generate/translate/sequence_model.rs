//! What reads one sequence of tokens and writes another, whatever it is made of.

use crate::{Error, Result, model_folder};
use conjure_core::probe::NoProbe;
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Tensor, ops};
use conjure_models::encoder_decoder::{self, EncoderDecoder, EncoderDecoderConfig};
use conjure_models::lstm_attention::{self, LstmAttention, LstmAttentionConfig};
use serde_json::Value;
use std::path::Path;

/// A network that translates.
#[derive(Clone, Debug)]
pub enum SequenceModel {
    /// The Transformer, Marian or T5.
    Transformer(EncoderDecoder),
    /// LSTMs with attention.
    Lstm(LstmAttention),
}

/// Targets that grow, a row for each.
#[derive(Debug)]
pub enum Writing {
    /// By a Transformer.
    Transformer(Box<encoder_decoder::Decoding>),
    /// By LSTMs.
    Lstm(Box<lstm_attention::Decoding>),
}

impl Writing {
    /// Logits `(vocabulary)` of each row's next token, after the row's token in `ids` was added.
    ///
    /// # Errors
    /// Not as many tokens as rows, more tokens than the model takes, an id beyond the vocabulary.
    pub fn next_rows(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Transformer(decoding) => decoding.next_rows(ids),
            Self::Lstm(decoding) => decoding.next_rows(ids),
        }
    }

    /// Goes on with these rows, in this order.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        match self {
            Self::Transformer(decoding) => decoding.select(rows),
            Self::Lstm(decoding) => decoding.select(rows),
        }
    }
}

/// Which config a folder has.
enum Config {
    Transformer(EncoderDecoderConfig),
    Lstm(LstmAttentionConfig),
}

impl Config {
    fn from_json(text: &str) -> Result<Self> {
        let kind = serde_json::from_str::<Value>(text).ok();
        match kind.as_ref().and_then(|value| value.get("model_type")?.as_str()) {
            Some("lstm_attention") => Ok(Self::Lstm(LstmAttentionConfig::from_json(text)?)),
            Some("marian" | "t5" | "mt5") | None => Ok(Self::Transformer(EncoderDecoderConfig::from_json(text)?)),
            Some(other) => {
                Err(Error::request(format!("model_type is \"{other}\", which is no translator that is known"))
                    .with_help("known are marian, t5, mt5 and our own lstm_attention"))
            }
        }
    }
}

impl SequenceModel {
    /// The model in a folder, in f32 on the CPU.
    ///
    /// # Errors
    /// Config or weights are missing or damaged, or do not fit together.
    pub fn open(folder: &Path) -> Result<Self> {
        let (config, params) = model_folder::open(folder, Config::from_json, &Device::Cpu)?;
        Self::new(&params, &config)
    }

    fn new(params: &Params, config: &Config) -> Result<Self> {
        Ok(match config {
            Config::Transformer(config) => Self::Transformer(EncoderDecoder::new(params, config)?),
            Config::Lstm(config) => Self::Lstm(LstmAttention::new(params, config)?),
        })
    }

    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Transformer(model) => match model.config() {
                EncoderDecoderConfig::Marian(_) => "marian",
                EncoderDecoderConfig::T5(_) => "t5",
            },
            Self::Lstm(_) => "lstm_attention",
        }
    }

    /// Tokens that the encoder reads.
    pub fn source_vocabulary(&self) -> usize {
        match self {
            Self::Transformer(model) => model.config().source_vocabulary(),
            Self::Lstm(model) => model.config().vocab_size,
        }
    }

    /// Tokens that the decoder writes.
    pub fn target_vocabulary(&self) -> usize {
        match self {
            Self::Transformer(model) => model.config().target_vocabulary(),
            Self::Lstm(model) => model.config().vocab_size,
        }
    }

    /// Most tokens of a source or a target, if there is a limit.
    pub fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Transformer(model) => model.config().max_tokens(),
            Self::Lstm(model) => Some(model.config().max_position_embeddings),
        }
    }

    /// Token with which every target begins.
    pub fn decoder_start_token_id(&self) -> u32 {
        match self {
            Self::Transformer(model) => model.config().decoder_start_token_id(),
            Self::Lstm(model) => model.config().decoder_start_token_id,
        }
    }

    /// Token with which every text ends.
    pub fn eos_token_id(&self) -> u32 {
        match self {
            Self::Transformer(model) => model.config().eos_token_id(),
            Self::Lstm(model) => model.config().eos_token_id,
        }
    }

    /// Token that fills texts up.
    pub fn pad_token_id(&self) -> u32 {
        match self {
            Self::Transformer(model) => model.config().pad_token_id(),
            Self::Lstm(model) => model.config().pad_token_id,
        }
    }

    /// Reads sources, none of them empty, to write a target for each.
    ///
    /// # Errors
    /// A source that is too long or has an id beyond the vocabulary.
    pub fn write(&self, sources: &[&[u32]]) -> Result<Writing> {
        let (ids, mask) = padded(sources, self.pad_token_id(), self.device())?;
        Ok(match self {
            Self::Transformer(model) => {
                let memory = model.encode(&ids, Some(&mask), &mut NoProbe)?;
                Writing::Transformer(Box::new(encoder_decoder::Decoding::new(model, memory)))
            }
            Self::Lstm(model) => {
                let memory = model.encode(&ids, Some(&mask), &mut NoProbe)?;
                Writing::Lstm(Box::new(lstm_attention::Decoding::new(model, memory)?))
            }
        })
    }

    /// Teacher forcing: logits `(batch, time, vocabulary)` of `labels (batch, time)`, each given the source and the labels
    /// before it.
    ///
    /// # Errors
    /// Texts that are too long, ids beyond the vocabulary.
    pub fn forward(&self, source: &Tensor, mask: &Tensor, labels: &Tensor) -> Result<Tensor> {
        match self {
            Self::Transformer(model) => model.forward(source, Some(mask), labels, &mut NoProbe),
            Self::Lstm(model) => model.forward(source, Some(mask), labels, &mut NoProbe),
        }
    }

    /// The mean cross-entropy of the targets' tokens, with smoothed labels, each pair being `(source, target)`: a scalar, through
    /// which gradients flow.
    ///
    /// # Errors
    /// Those of [`SequenceModel::forward`].
    pub fn loss(&self, pairs: &[(Vec<u32>, Vec<u32>)], label_smoothing: f64) -> Result<Tensor> {
        let device = self.device();
        let sources: Vec<&[u32]> = pairs.iter().map(|(source, _)| source.as_slice()).collect();
        let targets: Vec<&[u32]> = pairs.iter().map(|(_, target)| target.as_slice()).collect();
        let (source, mask) = padded(&sources, self.pad_token_id(), device)?;
        let (labels, _) = padded(&targets, self.pad_token_id(), device)?;
        let time = labels.dim(1)? as u32;
        let places = targets.iter().zip(0u32..).flat_map(|(target, row)| row * time..row * time + target.len() as u32);
        let places = Tensor::new(places.collect::<Vec<u32>>(), device)?; // (n), those of tokens
        let logits = match self {
            Self::Transformer(model) => model.forward_at(&source, Some(&mask), &labels, &places, &mut NoProbe)?,
            Self::Lstm(model) => model.forward_at(&source, Some(&mask), &labels, &places, &mut NoProbe)?,
        }; // (n, vocabulary)
        ops::cross_entropy(&logits, &Tensor::new(targets.concat(), device)?, label_smoothing)
    }

    /// The sum of the logarithms of the probabilities of all targets' tokens, each pair being `(source, target)`, and their
    /// number.
    ///
    /// # Errors
    /// Those of [`SequenceModel::forward`].
    pub fn log_probability(&self, pairs: &[(Vec<u32>, Vec<u32>)]) -> Result<(f64, usize)> {
        let device = self.device();
        let sources: Vec<&[u32]> = pairs.iter().map(|(source, _)| source.as_slice()).collect();
        let targets: Vec<&[u32]> = pairs.iter().map(|(_, target)| target.as_slice()).collect();
        let (source, mask) = padded(&sources, self.pad_token_id(), device)?;
        let (labels, counted) = padded(&targets, self.pad_token_id(), device)?;
        let logits = self.forward(&source, &mask, &labels)?.detach(); // (batch, time, vocabulary)
        let logprobs = ops::log_softmax(&logits)?.gather(&labels.unsqueeze(2)?, 2)?.squeeze(2)?; // (batch, time)
        let sum = (logprobs * counted.to_dtype(DType::F32)?)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        Ok((sum, targets.iter().map(|target| target.len()).sum()))
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        match self {
            Self::Transformer(model) => model.device(),
            Self::Lstm(model) => model.device(),
        }
    }
}

/// Rows of tokens, none of them empty, filled up at their ends: ids and mask `(rows, longest)` of type u32, the mask 1 at
/// tokens.
///
/// # Errors
/// No rows, or an empty one.
pub fn padded(rows: &[&[u32]], pad: u32, device: &Device) -> Result<(Tensor, Tensor)> {
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    if rows.iter().any(|row| row.is_empty()) || longest == 0 {
        return Err(Error::request("there is no token to read").with_help("give a text"));
    }
    let ids = rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(pad, longest - row.len())));
    let mask = rows.iter().flat_map(|row| (0..longest).map(|place| u32::from(place < row.len())));
    let shape = (rows.len(), longest);
    Ok((
        Tensor::from_vec(ids.collect::<Vec<_>>(), shape, device)?,
        Tensor::from_vec(mask.collect::<Vec<_>>(), shape, device)?,
    ))
}
