//! BERT: "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", Devlin, Chang, Lee & Toutanova
//! 2018, <https://arxiv.org/abs/1810.04805>; as an encoder of sentences "Sentence-BERT: Sentence Embeddings using Siamese
//! BERT-Networks", Reimers & Gurevych 2019, <https://arxiv.org/abs/1908.10084>.
//!
//! | in the paper | here |
//! |---|---|
//! | `L`, `H`, `A`: layers, hidden size, heads | `num_hidden_layers`, `hidden_size`, `num_attention_heads` |
//! | `E`, input embeddings, figure 2 | `embeddings`: the token's, its position's, its segment's |
//! | `T_i`, final hidden vector of token `i` | row `i` of [`EncoderOutput::last_hidden_state`] |
//! | `C`, of the token `[CLS]`, through a layer and tanh | [`EncoderOutput::pooler_output`] |
//! | masked LM, section 3.1 | [`MaskedLanguageHead`], [`masked_language_loss`] |
//! | pooling of Sentence-BERT, section 3 | [`Pooling`] |
//!
//! What differs: nothing is dropped out. RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2019) are this model with other
//! numbers for the positions, which begin after the number of the padding token; MiniLM (Wang et al. 2020) is a small BERT.

use conjure_core::blocks::padding_mask;
use conjure_core::blocks::{Activation, Attention, AttentionConfig, AttentionNames, Embedding, LayerNorm, Linear};
use conjure_core::probe::{Probe, Quantity, offer};
use conjure_core::weights::{Init, Params, Renamed, TensorSource};
use conjure_core::{D, Error, Result, Tensor, ops};
use std::sync::Arc;

mod config;

pub use config::EncoderConfig;

const NAMES: AttentionNames = AttentionNames { q: "self.query", k: "self.key", v: "self.value", out: "output.dense" };

/// The name by which the model asks for what a file calls `stored`; `None` for what the model does not need. Models with a
/// head keep the encoder below `bert.` or `roberta.`; files from TensorFlow call the parameters of norms gamma and beta.
pub fn canonical_key(stored: &str) -> Option<String> {
    const UNUSED: [&str; 4] =
        ["cls.seq_relationship.", "cls.predictions.decoder.", "lm_head.decoder.", "embeddings.position_ids"];
    let name = ["bert.", "roberta."].iter().find_map(|prefix| stored.strip_prefix(prefix)).unwrap_or(stored);
    if UNUSED.iter().any(|start| name.starts_with(start)) {
        return None;
    }
    let norm = |end: &str, ours: &str| name.strip_suffix(end).map(|path| format!("{path}LayerNorm.{ours}"));
    norm("LayerNorm.gamma", "weight").or_else(|| norm("LayerNorm.beta", "bias")).or_else(|| Some(name.to_owned()))
}

/// A file's tensors under the names by which the model asks for them.
///
/// # Errors
/// None with the names of this family.
pub fn renamed(source: Arc<dyn TensorSource>) -> Result<Renamed> {
    Renamed::by(source, canonical_key)
}

#[derive(Clone, Debug)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    path: String,
}

impl Embeddings {
    fn new(params: &Params, config: &EncoderConfig) -> Result<Self> {
        let table = |name: &str, rows| Embedding::new(&params.sub(name), rows, config.hidden_size);
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            layer_norm: LayerNorm::new(&params.sub("LayerNorm"), config.hidden_size, config.layer_norm_eps)?,
            path: params.path().to_owned(),
        })
    }

    fn forward(&self, ids: &Tensor, positions: &Tensor, types: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let x = ops::add(&self.word_embeddings.forward(ids)?, &self.token_type_embeddings.forward(types)?)?;
        let x = ops::add(&x, &self.position_embeddings.forward(positions)?)?; // (batch, time, hidden_size)
        let x = self.layer_norm.forward(&x)?;
        offer(probe, &self.path, Quantity::Activation, &x)?;
        Ok(x)
    }
}

/// Attention and MLP, each followed by a residual connection and a norm: the layer of Vaswani et al. 2017, section 3.1.
#[derive(Clone, Debug)]
struct Layer {
    attention: Attention,
    attention_output_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    hidden_act: Activation,
    path: String,
}

impl Layer {
    fn new(params: &Params, config: &EncoderConfig) -> Result<Self> {
        let EncoderConfig { hidden_size, intermediate_size, num_attention_heads: heads, .. } = *config;
        let shape = AttentionConfig {
            query_dim: hidden_size,
            context_dim: hidden_size,
            heads,
            head_dim: hidden_size / heads,
            bias: true,
        };
        let norm = |path: &str| LayerNorm::new(&params.sub(path), hidden_size, config.layer_norm_eps);
        Ok(Self {
            attention: Attention::with_names(&params.sub("attention"), shape, NAMES)?,
            attention_output_norm: norm("attention.output.LayerNorm")?,
            intermediate: Linear::new(&params.sub("intermediate.dense"), hidden_size, intermediate_size, true)?,
            output: Linear::new(&params.sub("output.dense"), intermediate_size, hidden_size, true)?,
            output_norm: norm("output.LayerNorm")?,
            hidden_act: config.hidden_act,
            path: params.path().to_owned(),
        })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, probe: &mut dyn Probe) -> Result<Tensor> {
        let attended = self.attention.forward(x, None, mask, probe)?; // (batch, time, hidden_size)
        let x = self.attention_output_norm.forward(&ops::add(&attended, x)?)?;
        let h = self.hidden_act.forward(&self.intermediate.forward(&x)?)?; // (batch, time, intermediate_size)
        let x = self.output_norm.forward(&ops::add(&self.output.forward(&h)?, &x)?)?; // (batch, time, hidden_size)
        offer(probe, &self.path, Quantity::Activation, &x)?;
        Ok(x)
    }
}

/// What the encoder says of a batch of texts.
#[derive(Clone, Debug)]
pub struct EncoderOutput {
    /// The embeddings, then the output of each layer: `num_hidden_layers + 1` tensors `(batch, time, hidden_size)`.
    pub hidden_states: Vec<Tensor>,
    /// The last layer's output, `(batch, time, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// Of the first token, through the pooler, `(batch, hidden_size)`; only where the model has a pooler.
    pub pooler_output: Option<Tensor>,
}

/// BERT, RoBERTa or XLM-R.
#[derive(Clone, Debug)]
pub struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    pooler: Option<Linear>,
    config: EncoderConfig,
}

impl Encoder {
    /// The encoder with the keys `embeddings.*`, `encoder.layer.N.*` and, where the config and the file have one,
    /// `pooler.dense.*` below `params`; see [`renamed`] for files with other names.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &EncoderConfig) -> Result<Self> {
        config.check()?;
        let layers = params.sub("encoder").sub("layer");
        let pooler = params.sub("pooler").sub("dense");
        let has_pooler = config.has_pooler() && pooler.contains("weight");
        Ok(Self {
            embeddings: Embeddings::new(&params.sub("embeddings"), config)?,
            layers: (0..config.num_hidden_layers).map(|n| Layer::new(&layers.sub(n), config)).collect::<Result<_>>()?,
            pooler: has_pooler
                .then(|| Linear::new(&pooler, config.hidden_size, config.hidden_size, true))
                .transpose()?,
            config: config.clone(),
        })
    }

    /// The config that the encoder was built from.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Encodes `ids (batch, time)` of type u32. `types (batch, time)` are the segments, 0 everywhere unless given; `mask
    /// (batch, time)` is 1 at tokens and 0 at padding, 1 everywhere unless given. What stands at padding in the output means
    /// nothing. The probe sees the embeddings at `embeddings`, each layer's attention at `encoder.layer.N.attention` and its
    /// output at `encoder.layer.N`.
    ///
    /// # Errors
    /// No token, more tokens than positions, an id or a segment beyond its table, a mask of another shape.
    pub fn forward(
        &self,
        ids: &Tensor,
        types: Option<&Tensor>,
        mask: Option<&Tensor>,
        probe: &mut dyn Probe,
    ) -> Result<EncoderOutput> {
        let rows = ids.to_vec2::<u32>()?; // (batch, time)
        self.check(&rows, ids.dims(), types, mask)?;
        let device = ids.device();
        // 1. Embeddings of tokens, positions and segments, and their norm.
        let positions: Vec<u32> = rows.iter().flat_map(|row| self.config.positions(row)).collect();
        let positions = Tensor::from_vec(positions, ids.shape(), device)?;
        let types = types.map_or_else(|| ids.zeros_like(), |types| Ok(types.clone()))?;
        let mut x = self.embeddings.forward(ids, &positions, &types, probe)?; // (batch, time, hidden_size)
        // 2. No token attends to padding.
        let mask = mask.map(|mask| padding_mask(mask, x.dtype())).transpose()?.flatten(); // (batch, 1, 1, time)
        // 3. The layers.
        let mut hidden_states = vec![x.clone()];
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref(), probe)?;
            hidden_states.push(x.clone());
        }
        // 4. The first token stands for the whole.
        let pooler_output = match &self.pooler {
            Some(pooler) => Some(pooler.forward(&x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?.tanh()?), // (batch, hidden_size)
            None => None,
        };
        Ok(EncoderOutput { hidden_states, last_hidden_state: x, pooler_output })
    }

    fn check(&self, rows: &[Vec<u32>], dims: &[usize], types: Option<&Tensor>, mask: Option<&Tensor>) -> Result<()> {
        let EncoderConfig { vocab_size, type_vocab_size, .. } = self.config;
        if dims.contains(&0) {
            return Err(Error::request("the encoder got no token"));
        }
        let (time, most) = (dims[1], self.config.max_tokens());
        if time > most {
            return Err(Error::request(format!("{time} tokens are more than the {most} positions of the encoder"))
                .with_help(format!("encode a longer text in pieces of {most} tokens")));
        }
        if let Some(id) = rows.iter().flatten().find(|id| **id as usize >= vocab_size) {
            return Err(Error::request(format!("token {id} is beyond the {vocab_size} tokens that the encoder knows"))
                .with_help("the tokenizer does not belong to this encoder"));
        }
        for (name, tensor) in [("tensor of segments", types), ("mask", mask)] {
            if let Some(tensor) = tensor
                && tensor.dims() != dims
            {
                let shape = tensor.dims();
                return Err(Error::request(format!("the {name} has shape {shape:?}, the tokens {dims:?}")));
            }
        }
        if let Some(types) = types
            && let Some(kind) =
                types.to_vec2::<u32>()?.into_iter().flatten().find(|kind| *kind as usize >= type_vocab_size)
        {
            return Err(Error::request(format!(
                "segment {kind} is beyond the {type_vocab_size} that the encoder knows"
            )));
        }
        Ok(())
    }
}

/// How the hidden states of a text become one vector: Reimers & Gurevych 2019, section 3, by sentence-transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    ClsToken,
    /// The mean over the tokens.
    MeanTokens,
    /// The largest value of each feature over the tokens.
    MaxTokens,
}

impl Pooling {
    /// `states (batch, time, hidden_size)` and `mask (batch, time)` of type u32, 1 at tokens and 0 at padding:
    /// `(batch, hidden_size)`.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn pool(self, states: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let tokens = mask.to_dtype(states.dtype())?.unsqueeze(2)?; // (batch, time, 1)
        Ok(match self {
            Self::ClsToken => states.narrow(1, 0, 1)?.squeeze(1)?,
            Self::MeanTokens => states.broadcast_mul(&tokens)?.sum(1)?.broadcast_div(&tokens.sum(1)?)?,
            Self::MaxTokens => {
                let hidden = tokens.affine(f64::from(f32::MAX), -f64::from(f32::MAX))?; // 0 at tokens, lowest at padding
                states.broadcast_add(&hidden)?.max(1)?
            }
        })
    }
}

/// Rows of `x (batch, features)` brought to length 1 in the Euclidean norm; rows of zeros stay so.
pub fn normalised(x: &Tensor) -> Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
    Ok(x.broadcast_div(&length)?)
}

/// The head that guesses words behind masks, section 3.1: a layer, a norm, and the table of word embeddings.
#[derive(Clone, Debug)]
pub struct MaskedLanguageHead {
    dense: Linear,
    layer_norm: LayerNorm,
    bias: Tensor,
    act: Activation,
}

impl MaskedLanguageHead {
    /// The head with the keys `cls.predictions.*` of BERT or `lm_head.*` of RoBERTa below `params`.
    ///
    /// # Errors
    /// A missing or misshapen parameter.
    pub fn new(params: &Params, config: &EncoderConfig) -> Result<Self> {
        let (head, transform, norm, act) = if config.is_roberta() {
            (params.sub("lm_head"), params.sub("lm_head"), "layer_norm", Activation::Gelu)
        } else {
            let head = params.sub("cls.predictions");
            (head.clone(), head.sub("transform"), "LayerNorm", config.hidden_act)
        };
        Ok(Self {
            dense: Linear::new(&transform.sub("dense"), config.hidden_size, config.hidden_size, true)?,
            layer_norm: LayerNorm::new(&transform.sub(norm), config.hidden_size, config.layer_norm_eps)?,
            bias: head.get("bias", config.vocab_size, Init::Constant(0.0))?,
            act,
        })
    }

    /// Logits of every word at every position of `states (batch, time, hidden_size)`: `(batch, time, vocab_size)`.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn forward(&self, encoder: &Encoder, states: &Tensor) -> Result<Tensor> {
        let h = self.layer_norm.forward(&self.act.forward(&self.dense.forward(states)?)?)?; // (batch, time, hidden_size)
        ops::linear(&h, encoder.embeddings.word_embeddings.weight(), Some(&self.bias))
    }
}

/// Section 3.1, task 1: the mean cross-entropy of `logits (batch, time, vocab_size)` and the words `labels (batch, time)` of
/// type u32 where `chosen (batch, time)` is 1, a scalar. The other positions count for nothing.
///
/// # Errors
/// Nothing is chosen; shapes do not fit.
pub fn masked_language_loss(logits: &Tensor, labels: &Tensor, chosen: &Tensor) -> Result<Tensor> {
    let chosen = chosen.flatten_all()?.to_vec1::<u32>()?;
    let places: Vec<u32> = (0..).zip(chosen).filter(|(_, chosen)| *chosen == 1).map(|(place, _)| place).collect();
    if places.is_empty() {
        return Err(Error::request("no token is chosen to be guessed"));
    }
    let places = Tensor::new(places, logits.device())?;
    let logits = logits.flatten_to(1)?.index_select(&places, 0)?; // (chosen, vocab_size)
    ops::cross_entropy(&logits, &labels.flatten_all()?.index_select(&places, 0)?, 0.0)
}
