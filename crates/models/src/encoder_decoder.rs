//! The Transformer: "Attention Is All You Need", Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>; by config also T5:
//! "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", Raffel et al. 2020,
//! <https://arxiv.org/abs/1910.10683>, and Marian: "Marian: Fast Neural Machine Translation in C++", Junczys-Dowmunt et al.
//! 2018, <https://arxiv.org/abs/1804.00344>.
//!
//! | in the paper | here |
//! |---|---|
//! | `x`, the source; `z`, its representation | `source`; [`Memory`] |
//! | `y`, the target, "shifted right" in figure 1 | `labels`; [`EncoderDecoder::shifted_right`] |
//! | `N`, `d_model`, `d_ff`, `h`, `d_k` | `encoder_layers` and `decoder_layers`, `d_model`, `encoder_ffn_dim`, heads, `head_dim` |
//! | `PE`, section 3.5 | `positions::sinusoidal`; T5's offsets `positions::RelativePositionBias` |
//! | `epsilon_ls`, section 5.4 | `label_smoothing` |
//!
//! The paper's own model is [`MarianConfig::transformer_base`], in the layout in which
//! transformers keeps Marian's models: Marian puts all sines before all cosines, adds a bias to the logits, and has SiLU where
//! the paper has ReLU. T5 norms before each part by the root mean square, has no biases, and knows distances and no positions;
//! its v1.1 has a gated MLP and a matrix of its own for the logits.

use conjure_core::blocks::{Embedding, Linear, padding_mask};
use conjure_core::probe::Probe;
use conjure_core::weights::{Init, Params};
use conjure_core::{Device, Error, Result, Tensor, dropout, ops};

mod attention;
mod cache;
mod config;
mod decoding;
mod layers;
mod positions;

pub use cache::Cache;
pub use config::{EncoderDecoderConfig, MarianConfig, T5Config};
pub use decoding::Decoding;
use layers::{Source, Stack};

/// Most tokens of a target whose positions set no limit.
const LONGEST: usize = 1 << 20;

/// From the decoder's output to logits.
#[derive(Clone, Debug)]
enum Head {
    /// The table of embeddings, and Marian's bias `(1, vocabulary)`.
    Tied { factor: f64, final_logits_bias: Option<Tensor> },
    /// A matrix of its own.
    Own(Linear),
}

/// What the encoder says of a batch of sources.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `(batch, source, d_model)`; what stands at padding means nothing.
    pub states: Tensor,
    /// `(batch, 1, 1, source)`, 0 at a token and negative infinity at padding; `None` without padding.
    pub mask: Option<Tensor>,
}

impl Memory {
    /// These rows of the batch, in this order; a row may come several times, as at the start of a beam search.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select(&self, rows: &[u32]) -> Result<Self> {
        let rows = Tensor::new(rows, self.states.device())?;
        let select = |x: &Tensor| Ok::<_, Error>(x.index_select(&rows, 0)?);
        Ok(Self { states: select(&self.states)?, mask: self.mask.as_ref().map(select).transpose()? })
    }
}

/// The Transformer, Marian or T5.
#[derive(Clone, Debug)]
pub struct EncoderDecoder {
    source_embedding: Embedding,
    target_embedding: Embedding,
    encoder: Stack,
    decoder: Stack,
    head: Head,
    config: EncoderDecoderConfig,
}

impl EncoderDecoder {
    /// The model with the keys of transformers' `MarianMTModel` or `T5ForConditionalGeneration` below `params`.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &EncoderDecoderConfig) -> Result<Self> {
        config.check()?;
        let d_model = config.d_model();
        let table = |params: &Params, name: &str, rows| Embedding::new(&params.sub(name), rows, d_model);
        let (stacks, source_embedding, target_embedding, head) = match config {
            EncoderDecoderConfig::Marian(c) => {
                let model = params.sub("model");
                let (source, target) = if c.share_encoder_decoder_embeddings {
                    let shared = table(&model, "shared", c.vocab_size)?;
                    (shared.clone(), shared)
                } else {
                    let source = table(&model, "encoder.embed_tokens", c.vocab_size)?;
                    (source, table(&model, "decoder.embed_tokens", c.target_vocabulary())?)
                };
                let bias = params.get("final_logits_bias", (1, c.target_vocabulary()), Init::Constant(0.0))?;
                (model, source, target, Head::Tied { factor: 1.0, final_logits_bias: Some(bias) })
            }
            EncoderDecoderConfig::T5(c) => {
                let shared = table(params, "shared", c.vocab_size)?;
                let lm_head = params.sub("lm_head");
                let head = if c.scales_outputs() {
                    Head::Tied { factor: 1.0 / (d_model as f64).sqrt(), final_logits_bias: None }
                } else if lm_head.contains("weight") {
                    Head::Own(Linear::new(&lm_head, d_model, c.vocab_size, false)?)
                } else {
                    Head::Tied { factor: 1.0, final_logits_bias: None }
                };
                (params.clone(), shared.clone(), shared, head)
            }
        };
        Ok(Self {
            source_embedding,
            target_embedding,
            encoder: Stack::new(&stacks.sub("encoder"), &config.encoder()?)?,
            decoder: Stack::new(&stacks.sub("decoder"), &config.decoder()?)?,
            head,
            config: config.clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &EncoderDecoderConfig {
        &self.config
    }

    /// Where the model computes.
    pub fn device(&self) -> &Device {
        self.source_embedding.weight().device()
    }

    /// Encodes `source (batch, source)` of type u32. `mask (batch, source)` is 1 at tokens and 0 at padding, 1 everywhere
    /// unless given. The probe sees each layer's attention at the path of its keys, such as
    /// `model.encoder.layers.N.self_attn` or `encoder.block.N.layer.0.SelfAttention`, and its output at the layer's path.
    ///
    /// # Errors
    /// No token, more tokens than positions, an id beyond the vocabulary, a mask of another shape.
    pub fn encode(&self, source: &Tensor, mask: Option<&Tensor>, probe: &mut dyn Probe) -> Result<Memory> {
        self.check("source", source, self.config.source_vocabulary(), 0)?;
        if let Some(mask) = mask
            && mask.dims() != source.dims()
        {
            let (mask, source) = (mask.dims(), source.dims());
            return Err(Error::request(format!("the mask has shape {mask:?}, the source {source:?}")));
        }
        let x = self.embed(&self.source_embedding, source, 0)?; // (batch, source, d_model)
        let mask = mask.map(|mask| padding_mask(mask, x.dtype())).transpose()?.flatten(); // (batch, 1, 1, source)
        let states = self.encoder.forward(&x, mask.as_ref(), None, None, probe)?; // (batch, source, d_model)
        Ok(Memory { states, mask })
    }

    /// Logits of the token after each of `ids (batch, time)` of type u32: `(batch, time, vocabulary)`. The first id of a
    /// target is `decoder_start_token_id`. With a cache, which belongs to one memory, `ids` are what follows the tokens in it,
    /// and no gradient flows through it. The probe sees attention to the target at paths such as
    /// `model.decoder.layers.N.self_attn` and to the source at `model.decoder.layers.N.encoder_attn`.
    ///
    /// # Errors
    /// No token, more tokens than positions, an id beyond the vocabulary, a memory or a cache of another batch.
    pub fn decode(
        &self,
        ids: &Tensor,
        memory: &Memory,
        cache: Option<&mut Cache>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        self.logits(&self.decoder_states(ids, memory, cache, probe)?)
    }

    /// As [`EncoderDecoder::decode`], of the last of `ids` alone: `(batch, vocabulary)`.
    ///
    /// # Errors
    /// Those of [`EncoderDecoder::decode`].
    pub fn decode_last(
        &self,
        ids: &Tensor,
        memory: &Memory,
        cache: Option<&mut Cache>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let states = self.decoder_states(ids, memory, cache, probe)?; // (batch, time, d_model)
        self.logits(&states.narrow(1, states.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?)
    }

    /// Teacher forcing: logits `(batch, time, vocabulary)` of `labels (batch, time)`, each given the source and the labels
    /// before it.
    ///
    /// # Errors
    /// Those of [`EncoderDecoder::encode`] and [`EncoderDecoder::decode`].
    pub fn forward(
        &self,
        source: &Tensor,
        source_mask: Option<&Tensor>,
        labels: &Tensor,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        // 1. The encoder reads the source.
        let memory = self.encode(source, source_mask, probe)?; // (batch, source, d_model)
        // 2. The decoder guesses each label from those before it.
        self.decode(&self.shifted_right(labels)?, &memory, None, probe) // (batch, time, vocabulary)
    }

    /// As [`EncoderDecoder::forward`], of the labels at `places (n)` of type u32 alone, counted row by row: `(n, vocabulary)`.
    /// Logits of padding, which are most of the work where texts are short, are not computed.
    ///
    /// # Errors
    /// Those of [`EncoderDecoder::forward`]; a place beyond the labels.
    pub fn forward_at(
        &self,
        source: &Tensor,
        source_mask: Option<&Tensor>,
        labels: &Tensor,
        places: &Tensor,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let memory = self.encode(source, source_mask, probe)?; // (batch, source, d_model)
        let states = self.decoder_states(&self.shifted_right(labels)?, &memory, None, probe)?; // (batch, time, d_model)
        self.logits(&states.flatten(0, 1)?.index_select(places, 0)?) // (n, vocabulary)
    }

    /// What the decoder reads in order to guess `labels (batch, time)`: `decoder_start_token_id`, then all labels but the
    /// last: `(batch, time)`.
    pub fn shifted_right(&self, labels: &Tensor) -> Result<Tensor> {
        let (batch, time) = labels.dims2()?;
        let start = Tensor::full(self.config.decoder_start_token_id(), (batch, time.min(1)), labels.device())?;
        Ok(Tensor::cat(&[&start, &labels.narrow(1, 0, time.saturating_sub(1))?], 1)?)
    }

    /// An empty cache for targets of one memory.
    pub fn cache(&self) -> Cache {
        Cache::new(self.decoder.len(), self.config.max_tokens().unwrap_or(LONGEST))
    }

    fn decoder_states(
        &self,
        ids: &Tensor,
        memory: &Memory,
        cache: Option<&mut Cache>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let before = cache.as_ref().map_or(0, |cache| cache.len());
        self.check("target", ids, self.config.target_vocabulary(), before)?;
        let (batch, sources) = (ids.dim(0)?, memory.states.dim(0)?);
        if batch != sources {
            return Err(Error::request(format!("{batch} targets do not fit {sources} sources")));
        }
        let x = self.embed(&self.target_embedding, ids, before)?; // (batch, time, d_model)
        let source = Source { states: &memory.states, mask: memory.mask.as_ref() };
        self.decoder.forward(&x, None, Some(source), cache, probe) // (batch, time, d_model)
    }

    /// Section 3.4 and 3.5: `ids (batch, time)` that follow `before` others: `(batch, time, d_model)`, with dropout as in section
    /// 5.4.
    fn embed(&self, table: &Embedding, ids: &Tensor, before: usize) -> Result<Tensor> {
        let x = table.forward(ids)?;
        let EncoderDecoderConfig::Marian(config) = &self.config else { return dropout::apply(&x) };
        let x = if config.scale_embedding { (x * (config.d_model as f64).sqrt())? } else { x };
        let positions = positions::sinusoidal(before..before + ids.dim(1)?, config.d_model, x.device())?;
        dropout::apply(&x.broadcast_add(&positions.to_dtype(x.dtype())?)?)
    }

    /// `states (..., d_model)`: `(..., vocabulary)`.
    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        match &self.head {
            Head::Own(head) => head.forward(states),
            Head::Tied { factor, final_logits_bias } => {
                let states = if *factor == 1.0 { states.clone() } else { (states * *factor)? };
                match final_logits_bias {
                    Some(bias) => ops::linear(&states, self.target_embedding.weight(), Some(&bias.squeeze(0)?)),
                    None => self.target_embedding.logits(&states),
                }
            }
        }
    }

    fn check(&self, what: &str, ids: &Tensor, vocabulary: usize, before: usize) -> Result<()> {
        let rows = ids.to_vec2::<u32>()?;
        let time = ids.dim(1)?;
        if rows.is_empty() || time == 0 {
            return Err(Error::request(format!("the {what} has no token")));
        }
        let (all, most) = (before.saturating_add(time), self.config.max_tokens().unwrap_or(LONGEST));
        if all > most {
            return Err(Error::request(format!(
                "{all} tokens of the {what} are more than the model's {most} positions"
            ))
            .with_help("give the model a shorter piece of the text at a time"));
        }
        if let Some(id) = rows.iter().flatten().find(|id| **id as usize >= vocabulary) {
            return Err(Error::request(format!(
                "token {id} of the {what} is beyond the {vocabulary} tokens that the model knows"
            ))
            .with_help("the tokenizer does not belong to this model"));
        }
        Ok(())
    }
}

/// Section 5.4: the mean cross-entropy of `logits (batch, time, vocabulary)` and `labels (batch, time)` of type u32, with
/// labels smoothed as in Szegedy et al. 2016, <https://arxiv.org/abs/1512.00567>, section 7:
/// `q'(k) = (1 - epsilon) [k = label] + epsilon / vocabulary`. A scalar. Labels where `counted (batch, time)` of type u32 is 0,
/// which are padding, do not count; without it all do.
///
/// # Errors
/// No label counts, shapes do not fit, a label beyond the vocabulary, `label_smoothing` not in `[0, 1)`.
pub fn label_smoothed_loss(
    logits: &Tensor,
    labels: &Tensor,
    counted: Option<&Tensor>,
    label_smoothing: f64,
) -> Result<Tensor> {
    let (logits, labels) = (logits.flatten_to(1)?, labels.flatten_all()?); // (batch * time, vocabulary), (batch * time)
    let Some(counted) = counted else { return ops::cross_entropy(&logits, &labels, label_smoothing) };
    let counted = counted.flatten_all()?.to_vec1::<u32>()?;
    let places: Vec<u32> = (0..).zip(&counted).filter(|(_, counted)| **counted != 0).map(|(place, _)| place).collect();
    if counted.len() != labels.elem_count() || places.is_empty() {
        return Err(Error::request(format!("{} of {} labels count", places.len(), labels.elem_count()))
            .with_help("every batch needs a label that is not padding"));
    }
    if places.len() == counted.len() {
        return ops::cross_entropy(&logits, &labels, label_smoothing);
    }
    let places = Tensor::new(places, logits.device())?;
    ops::cross_entropy(&logits.index_select(&places, 0)?, &labels.index_select(&places, 0)?, label_smoothing)
}
