//! The configs of encoder-decoders: Marian's, which is also that of the paper's own model, and T5's.

use super::layers::{StackSpec, T5_DECODER, T5_ENCODER, TRANSFORMER};
use super::positions::Buckets;
use conjure_core::blocks::Activation;
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A `config.json` of an encoder-decoder.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EncoderDecoderConfig {
    /// `model_type` `marian`: the Transformer of 2017, and the translators that Marian trained.
    Marian(MarianConfig),
    /// `model_type` `t5` or `mt5`.
    T5(T5Config),
}

/// Marian's config, in transformers' words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MarianConfig {
    /// `MarianMTModel`.
    pub architectures: Vec<String>,
    /// `marian`.
    pub model_type: String,
    /// Tokens of the source language, and of the target language unless `decoder_vocab_size` says otherwise.
    pub vocab_size: usize,
    /// Tokens of the target language.
    pub decoder_vocab_size: Option<usize>,
    /// Features of the residual stream.
    pub d_model: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Heads of the encoder; divides `d_model`.
    pub encoder_attention_heads: usize,
    /// Features between the two layers of the encoder's MLP.
    pub encoder_ffn_dim: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Heads of the decoder; divides `d_model`.
    pub decoder_attention_heads: usize,
    /// Features between the two layers of the decoder's MLP.
    pub decoder_ffn_dim: usize,
    /// Activation of the MLP.
    pub activation_function: Activation,
    /// Most tokens of a source or a target.
    pub max_position_embeddings: usize,
    /// Whether embeddings are multiplied by the square root of `d_model`.
    pub scale_embedding: bool,
    /// Whether source and target have one table of embeddings.
    pub share_encoder_decoder_embeddings: bool,
    /// Token with which every target begins.
    pub decoder_start_token_id: u32,
    /// Token that fills texts up.
    pub pad_token_id: u32,
    /// Token with which every text ends.
    pub eos_token_id: u32,
    /// Entries without influence on the architecture, kept for writing the file back.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// T5's config, in transformers' words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// `T5ForConditionalGeneration`.
    pub architectures: Vec<String>,
    /// `t5` or `mt5`.
    pub model_type: String,
    /// Tokens.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub d_model: usize,
    /// Features of a head.
    pub d_kv: usize,
    /// Features between the two layers of the MLP.
    pub d_ff: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder; those of the encoder unless given.
    pub num_decoder_layers: Option<usize>,
    /// Heads.
    pub num_heads: usize,
    /// Rows of the table of relative positions.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions have one row.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in every norm.
    pub layer_norm_epsilon: f64,
    /// `relu`, or `gated-gelu` (T5 v1.1) or another activation, with or without gate.
    pub feed_forward_proj: String,
    /// Whether the table of embeddings also makes the logits. Files from transformers 5 say so of every model, and mean
    /// `scale_decoder_outputs`.
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is divided by the square root of `d_model`, as the first T5's is, whose table of embeddings
    /// makes the logits; `tie_word_embeddings` unless given. Else the logits have a matrix of their own, if the file has one.
    pub scale_decoder_outputs: Option<bool>,
    /// Token with which every target begins; that of padding unless given.
    pub decoder_start_token_id: Option<u32>,
    /// Token that fills texts up.
    pub pad_token_id: u32,
    /// Token with which every text ends.
    pub eos_token_id: u32,
    /// Entries without influence on the architecture, kept for writing the file back.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Entries that concern training, the tokenizer, how text is generated, or the file, whatever their value.
const HARMLESS: [&str; 41] = [
    "transformers_version",
    "torch_dtype",
    "dtype",
    "dropout",
    "dropout_rate",
    "attention_dropout",
    "activation_dropout",
    "classif_dropout",
    "classifier_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
    "init_std",
    "initializer_factor",
    "is_encoder_decoder",
    "use_cache",
    "gradient_checkpointing",
    "bos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "num_beams",
    "num_return_sequences",
    "max_length",
    "min_length",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
    "do_sample",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "num_hidden_layers",
    "output_past",
    "n_positions",
    "task_specific_params",
    "prefix",
    "tokenizer_class",
    // Both follow from feed_forward_proj.
    "is_gated_act",
    "dense_act_fn",
    // Marian's logits come from the decoder's table of embeddings, always.
    "tie_word_embeddings",
];

fn check_other(other: &BTreeMap<String, Value>, expected: &[(&str, Value)]) -> Result<()> {
    for (key, value) in other {
        let harmless = key.starts_with('_') || HARMLESS.contains(&key.as_str());
        let as_built = expected.iter().any(|(name, fixed)| name == key && fixed == value);
        if !harmless && !as_built && !value.is_null() && *value != Value::Bool(false) {
            return Err(config::unknown_entry(key, value));
        }
    }
    Ok(())
}

fn check_sizes(sizes: &[(&str, usize)], layers: &[(&str, usize)]) -> Result<()> {
    sizes.iter().try_for_each(|(name, value)| config::check_size(name, *value, MAX_FEATURES))?;
    layers.iter().try_for_each(|(name, value)| config::check_size(name, *value, MAX_LAYERS))
}

fn check_tokens(tokens: &[(&str, u32)], vocabulary: usize) -> Result<()> {
    match tokens.iter().find(|(_, token)| *token as usize >= vocabulary) {
        None => Ok(()),
        Some((name, token)) => {
            Err(Error::request(format!("{name} is {token}, beyond the {vocabulary} tokens of the vocabulary")))
        }
    }
}

impl Default for MarianConfig {
    /// transformers' defaults.
    fn default() -> Self {
        Self {
            architectures: vec!["MarianMTModel".to_owned()],
            model_type: "marian".to_owned(),
            vocab_size: 58101,
            decoder_vocab_size: None,
            d_model: 1024,
            encoder_layers: 12,
            encoder_attention_heads: 16,
            encoder_ffn_dim: 4096,
            decoder_layers: 12,
            decoder_attention_heads: 16,
            decoder_ffn_dim: 4096,
            activation_function: Activation::Gelu,
            max_position_embeddings: 1024,
            scale_embedding: false,
            share_encoder_decoder_embeddings: true,
            decoder_start_token_id: 58100,
            pad_token_id: 58100,
            eos_token_id: 0,
            other: BTreeMap::new(),
        }
    }
}

impl MarianConfig {
    /// The base model of the paper, table 3, with a vocabulary of 37,000 tokens, whose last is the padding.
    pub fn transformer_base() -> Self {
        Self {
            vocab_size: 37000,
            decoder_start_token_id: 36999,
            pad_token_id: 36999,
            activation_function: Activation::Relu,
            ..Self::opus_mt()
        }
    }

    /// The big model of the paper, table 3.
    pub fn transformer_big() -> Self {
        Self {
            d_model: 1024,
            encoder_attention_heads: 16,
            decoder_attention_heads: 16,
            encoder_ffn_dim: 4096,
            decoder_ffn_dim: 4096,
            ..Self::transformer_base()
        }
    }

    /// The size of Helsinki-NLP's OPUS-MT models (Tiedemann & Thottingal 2020); of English to German.
    pub fn opus_mt() -> Self {
        Self {
            d_model: 512,
            encoder_layers: 6,
            encoder_attention_heads: 8,
            encoder_ffn_dim: 2048,
            decoder_layers: 6,
            decoder_attention_heads: 8,
            decoder_ffn_dim: 2048,
            activation_function: Activation::Silu,
            max_position_embeddings: 512,
            scale_embedding: true,
            ..Self::default()
        }
    }

    /// Tokens of the target language.
    pub fn target_vocabulary(&self) -> usize {
        self.decoder_vocab_size.unwrap_or(self.vocab_size)
    }

    fn check(&self) -> Result<()> {
        check_other(
            &self.other,
            &[("static_position_embeddings", Value::Bool(true)), ("extra_pos_embeddings", Value::from(0))],
        )?;
        check_sizes(
            &[
                ("vocab_size", self.vocab_size),
                ("decoder_vocab_size", self.target_vocabulary()),
                ("d_model", self.d_model),
                ("encoder_attention_heads", self.encoder_attention_heads),
                ("decoder_attention_heads", self.decoder_attention_heads),
                ("encoder_ffn_dim", self.encoder_ffn_dim),
                ("decoder_ffn_dim", self.decoder_ffn_dim),
                ("max_position_embeddings", self.max_position_embeddings),
            ],
            &[("encoder_layers", self.encoder_layers), ("decoder_layers", self.decoder_layers)],
        )?;
        for (name, heads) in [
            ("encoder_attention_heads", self.encoder_attention_heads),
            ("decoder_attention_heads", self.decoder_attention_heads),
        ] {
            if !self.d_model.is_multiple_of(heads) {
                return Err(Error::request(format!("d_model {} is not a multiple of {name} {heads}", self.d_model)));
            }
        }
        if self.share_encoder_decoder_embeddings && self.target_vocabulary() != self.vocab_size {
            return Err(Error::request(format!(
                "source and target share one table of embeddings, but vocab_size is {} and decoder_vocab_size {}",
                self.vocab_size,
                self.target_vocabulary()
            )));
        }
        check_tokens(
            &[
                ("decoder_start_token_id", self.decoder_start_token_id),
                ("pad_token_id", self.pad_token_id),
                ("eos_token_id", self.eos_token_id),
            ],
            self.target_vocabulary(),
        )
    }
}

impl Default for T5Config {
    /// transformers' defaults, which are T5 small's.
    fn default() -> Self {
        Self {
            architectures: vec!["T5ForConditionalGeneration".to_owned()],
            model_type: "t5".to_owned(),
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            decoder_start_token_id: None,
            pad_token_id: 0,
            eos_token_id: 1,
            other: BTreeMap::new(),
        }
    }
}

impl T5Config {
    /// T5 small.
    pub fn t5_small() -> Self {
        Self::default()
    }

    /// T5 base.
    pub fn t5_base() -> Self {
        Self { d_model: 768, d_ff: 3072, num_layers: 12, num_heads: 12, ..Self::default() }
    }

    /// T5 v1.1 small, and Flan-T5 small.
    pub fn t5_v1_1_small() -> Self {
        Self {
            d_ff: 1024,
            num_layers: 8,
            num_heads: 6,
            feed_forward_proj: "gated-gelu".to_owned(),
            tie_word_embeddings: false,
            ..Self::default()
        }
    }

    /// Whether the decoder's output is divided by the square root of `d_model` before the table of embeddings makes logits of
    /// it. mT5 never does.
    pub fn scales_outputs(&self) -> bool {
        self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings && self.model_type != "mt5")
    }

    /// The activation of the MLP, and whether it is a gate (Shazeer 2020, "GLU Variants Improve Transformer").
    fn feed_forward(&self) -> Result<(Activation, bool)> {
        let (name, gated) = match self.feed_forward_proj.strip_prefix("gated-") {
            // "gated-gelu" was written before there were two kinds of GELU, and means the approximate one.
            Some("gelu") => ("gelu_new", true),
            Some(name) => (name, true),
            None => (self.feed_forward_proj.as_str(), false),
        };
        let activation = Activation::from_name(name).ok_or_else(|| {
            Error::request(format!("feed_forward_proj is \"{}\", which is not known", self.feed_forward_proj))
                .with_help("known are relu, gelu and silu, and the same with gated- before them")
        })?;
        Ok((activation, gated))
    }

    fn check(&self) -> Result<()> {
        check_other(&self.other, &[])?;
        let decoder_layers = self.num_decoder_layers.unwrap_or(self.num_layers);
        check_sizes(
            &[
                ("vocab_size", self.vocab_size),
                ("d_model", self.d_model),
                ("d_kv", self.d_kv),
                ("d_ff", self.d_ff),
                ("num_heads", self.num_heads),
                ("num_heads x d_kv", self.num_heads.saturating_mul(self.d_kv)),
                ("relative_attention_num_buckets", self.relative_attention_num_buckets),
                ("relative_attention_max_distance", self.relative_attention_max_distance),
            ],
            &[("num_layers", self.num_layers), ("num_decoder_layers", decoder_layers)],
        )?;
        Buckets::new(self.relative_attention_num_buckets, self.relative_attention_max_distance)?;
        self.feed_forward()?;
        check_tokens(
            &[
                ("decoder_start_token_id", self.decoder_start_token_id.unwrap_or(self.pad_token_id)),
                ("pad_token_id", self.pad_token_id),
                ("eos_token_id", self.eos_token_id),
            ],
            self.vocab_size,
        )
    }
}

impl EncoderDecoderConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a value of the wrong type, another family, or an architecture that cannot be built: also every key that we
    /// do not know and that is not null or false.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |e: serde_json::Error| Error::request(format!("not a config of an encoder-decoder: {e}"));
        let value: Value = serde_json::from_str(text).map_err(wrong)?;
        let config = match value.get("model_type").and_then(Value::as_str) {
            Some("marian") => Self::Marian(serde_json::from_value(value).map_err(wrong)?),
            Some("t5" | "mt5") => Self::T5(serde_json::from_value(value).map_err(wrong)?),
            other => {
                let named = other.map_or("missing".to_owned(), |name| format!("\"{name}\""));
                return Err(Error::request(format!(
                    "model_type is {named}, which is no encoder-decoder that is known"
                ))
                .with_help("known are marian, t5 and mt5"));
            }
        };
        config.check()?;
        Ok(config)
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit, or are not supported.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Marian(config) => config.check(),
            Self::T5(config) => config.check(),
        }
    }

    /// Tokens that the encoder reads.
    pub fn source_vocabulary(&self) -> usize {
        match self {
            Self::Marian(config) => config.vocab_size,
            Self::T5(config) => config.vocab_size,
        }
    }

    /// Tokens that the decoder writes.
    pub fn target_vocabulary(&self) -> usize {
        match self {
            Self::Marian(config) => config.target_vocabulary(),
            Self::T5(config) => config.vocab_size,
        }
    }

    /// Features of the residual stream.
    pub fn d_model(&self) -> usize {
        match self {
            Self::Marian(config) => config.d_model,
            Self::T5(config) => config.d_model,
        }
    }

    /// Most tokens of a source or a target; T5's relative positions set no limit.
    pub fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Marian(config) => Some(config.max_position_embeddings),
            Self::T5(_) => None,
        }
    }

    /// Token with which every target begins; it is no part of the answer.
    pub fn decoder_start_token_id(&self) -> u32 {
        match self {
            Self::Marian(config) => config.decoder_start_token_id,
            Self::T5(config) => config.decoder_start_token_id.unwrap_or(config.pad_token_id),
        }
    }

    /// Token that fills texts up.
    pub fn pad_token_id(&self) -> u32 {
        match self {
            Self::Marian(config) => config.pad_token_id,
            Self::T5(config) => config.pad_token_id,
        }
    }

    /// Token with which every text ends.
    pub fn eos_token_id(&self) -> u32 {
        match self {
            Self::Marian(config) => config.eos_token_id,
            Self::T5(config) => config.eos_token_id,
        }
    }

    /// What the encoder's layers are made of.
    pub(super) fn encoder(&self) -> Result<StackSpec> {
        Ok(match self {
            Self::Marian(c) => StackSpec {
                layers: c.encoder_layers,
                heads: c.encoder_attention_heads,
                d_ff: c.encoder_ffn_dim,
                ..c.stack(c.encoder_attention_heads)
            },
            Self::T5(c) => StackSpec { names: &T5_ENCODER, layers: c.num_layers, ..c.stack()? },
        })
    }

    /// What the decoder's layers are made of.
    pub(super) fn decoder(&self) -> Result<StackSpec> {
        Ok(match self {
            Self::Marian(c) => StackSpec {
                layers: c.decoder_layers,
                heads: c.decoder_attention_heads,
                d_ff: c.decoder_ffn_dim,
                is_decoder: true,
                ..c.stack(c.decoder_attention_heads)
            },
            Self::T5(c) => StackSpec {
                names: &T5_DECODER,
                layers: c.num_decoder_layers.unwrap_or(c.num_layers),
                is_decoder: true,
                ..c.stack()?
            },
        })
    }
}

impl MarianConfig {
    fn stack(&self, heads: usize) -> StackSpec {
        StackSpec {
            names: &TRANSFORMER,
            layers: 0,
            d_model: self.d_model,
            heads,
            head_dim: self.d_model / heads,
            d_ff: 0,
            activation: self.activation_function,
            gated: false,
            eps: 1e-5,
            is_decoder: false,
            buckets: None,
        }
    }
}

impl T5Config {
    fn stack(&self) -> Result<StackSpec> {
        let (activation, gated) = self.feed_forward()?;
        Ok(StackSpec {
            names: &T5_ENCODER,
            layers: 0,
            d_model: self.d_model,
            heads: self.num_heads,
            head_dim: self.d_kv,
            d_ff: self.d_ff,
            activation,
            gated,
            eps: self.layer_norm_epsilon,
            is_decoder: false,
            buckets: Some(Buckets::new(self.relative_attention_num_buckets, self.relative_attention_max_distance)?),
        })
    }
}
