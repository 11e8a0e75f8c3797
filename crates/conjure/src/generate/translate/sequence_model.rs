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

    /// The model that the text of a `config.json` describes, with weights by the names of transformers, or ours for LSTMs.
    ///
    /// # Errors
    /// A config that is damaged or of another kind of model; weights that are missing or do not fit.
    pub fn from_json(params: &Params, config: &str) -> Result<Self> {
        Self::new(params, &Config::from_json(config)?)
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

    /// Pairs whose loss is computed at once: few enough that the longest does not make all long, and for LSTMs and on GPUs
    /// enough that the calls are worth it.
    fn at_once(&self) -> usize {
        match self {
            _ if !self.device().is_cpu() => 256,
            Self::Transformer(_) => 16,
            Self::Lstm(_) => 32,
        }
    }

    /// The mean cross-entropy of the targets' tokens, with smoothed labels, each pair being `(source, target)`: a scalar, through
    /// which gradients flow. Pairs of like length are read at once: names of two and of forty tokens in one batch would be
    /// mostly padding.
    ///
    /// # Errors
    /// No pairs; those of [`SequenceModel::forward`].
    pub fn loss(&self, pairs: &[(Vec<u32>, Vec<u32>)], label_smoothing: f64) -> Result<Tensor> {
        let mut sorted: Vec<&(Vec<u32>, Vec<u32>)> = pairs.iter().collect();
        sorted.sort_by_key(|(source, target)| source.len() + target.len());
        let tokens =
            |pairs: &[&(Vec<u32>, Vec<u32>)]| pairs.iter().map(|(_, target)| target.len()).sum::<usize>() as f64;
        let all = tokens(&sorted);
        let share =
            |pairs: &[&(Vec<u32>, Vec<u32>)]| Ok((self.loss_at_once(pairs, label_smoothing)? * (tokens(pairs) / all))?);
        let sum = |sum: Result<Tensor>, part: Result<Tensor>| Ok((sum? + part?)?);
        let losses = sorted.chunks(self.at_once()).map(share);
        losses.reduce(sum).unwrap_or_else(|| Err(Error::request("there are no pairs to take the loss of")))
    }

    /// [`SequenceModel::loss`] of pairs that are all filled up to the longest.
    fn loss_at_once(&self, pairs: &[&(Vec<u32>, Vec<u32>)], label_smoothing: f64) -> Result<Tensor> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn models(params: &Params) -> [SequenceModel; 2] {
        let marian = json!({
            "architectures": ["MarianMTModel"], "model_type": "marian", "vocab_size": 40, "d_model": 16,
            "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
            "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1, "is_encoder_decoder": true,
            "share_encoder_decoder_embeddings": true, "tie_word_embeddings": true,
        });
        let lstm = json!({
            "vocab_size": 40, "embedding_size": 16, "hidden_size": 16, "num_layers": 1, "max_position_embeddings": 64,
            "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1,
        });
        let marian = EncoderDecoderConfig::from_json(&marian.to_string()).unwrap();
        let lstm = LstmAttentionConfig::from_json(&lstm.to_string()).unwrap();
        [
            SequenceModel::Transformer(EncoderDecoder::new(&params.sub("marian"), &marian).unwrap()),
            SequenceModel::Lstm(LstmAttention::new(&params.sub("lstm"), &lstm).unwrap()),
        ]
    }

    /// To 1e-5, the gradients relative to their largest number.
    #[test]
    fn pairs_of_like_length_together_have_the_loss_and_gradients_of_all_at_once() {
        let params = Params::seeded(4, DType::F32, &Device::Cpu).trainable();
        let models = models(&params);
        let text =
            |n: usize, length: usize| (0..length).map(|i| (2 + (7 * n + 5 * i) % 38) as u32).collect::<Vec<u32>>();
        let pairs: Vec<_> = (0..72).map(|n| (text(n, 1 + n * 5 % 23), text(n + 1, 1 + n * 3 % 17))).collect();
        let all: Vec<_> = pairs.iter().collect();
        for model in models {
            let (ours, plain) = (model.loss(&pairs, 0.1).unwrap(), model.loss_at_once(&all, 0.1).unwrap());
            let number = |loss: &Tensor| loss.to_scalar::<f32>().unwrap();
            assert!((number(&ours) - number(&plain)).abs() < 1e-5, "{ours} {plain}");
            let (ours, plain) = (ours.backward().unwrap(), plain.backward().unwrap());
            let mut compared = 0;
            for (name, variable) in params.variables() {
                let (Some(a), Some(b)) = (ours.get(&variable), plain.get(&variable)) else { continue };
                let most =
                    |x: &Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
                assert!(most(&(a - b).unwrap()) <= 1e-5 * most(b).max(1e-2), "{name}");
                compared += 1;
            }
            assert!(compared > 10, "{compared}");
        }
    }

    #[test]
    fn no_pairs_have_no_loss() {
        let [model, _] = models(&Params::seeded(4, DType::F32, &Device::Cpu));
        assert!(model.loss(&[], 0.1).unwrap_err().to_string().contains("no pairs"));
    }
}
