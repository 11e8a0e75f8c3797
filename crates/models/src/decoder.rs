//! Language models that read from left to right, from GPT-2 to Gemma 3: one architecture, a config that says what each family
//! does its own way.
//!
//! The base is "LLaMA: Open and Efficient Foundation Language Models", Touvron et al. 2023, <https://arxiv.org/abs/2302.13971>,
//! section 2.2, which lists what it changed in "Attention Is All You Need", Vaswani et al. 2017,
//! <https://arxiv.org/abs/1706.03762>. [`ModelType`] names each family's paper.
//!
//! | in Vaswani et al. | here |
//! |---|---|
//! | `d_model`, `d_ff` | `hidden_size`, `intermediate_size` |
//! | `h`, `d_k = d_v` | `num_attention_heads`, `head_dim` |
//! | `W_Q`, `W_K`, `W_V`, `W_O` | `q_proj`, `k_proj`, `v_proj`, `o_proj` |
//! | positional encoding | [`Positions`]: learned, rotary (Su et al. 2021), ALiBi (Press et al. 2021) |
//! | `N` | layers |
//!
//! | what differs | where |
//! |---|---|
//! | norms before what they norm (Xiong et al. 2020) | all; Gemma 2 and 3 after it as well |
//! | attention and MLP side by side | GPT-NeoX, PaLM |
//! | heads that share keys and values (Shazeer 2019; Ainslie et al. 2023) | `num_key_value_heads` |
//! | attention to the last `window` tokens only (Beltagy et al. 2020) | Mistral, Phi-3; every other layer of Gemma 2, five of six in Gemma 3 |
//! | queries and keys normalised per head (Henry et al. 2020) | Qwen 3, Gemma 3 |
//! | soft caps on scores and logits | Gemma 2 |
//! | layers without positions | SmolLM 3 |
//!
//! Tensors have Llama's names, for which Llama, Mistral, Qwen, SmolLM and Gemma need no renaming; [`canonical`] shows the
//! checkpoints of GPT-2, GPT-NeoX, MPT and Phi-3 under them.

mod adapters;
mod config;
mod entries;
mod from_json;
mod gguf;
mod keys;
mod loss;
mod presets;
mod rope_entries;
mod to_json;

pub use adapters::{Factors, LayerFactors, adapter_targets, from_adapter, to_adapter};
pub use config::{BlockKind, DecoderConfig, LayerConfig, ModelType, NormKind, Positions};
pub use loss::{IGNORED, loss};

use conjure_core::blocks::{
    Activation, Embedding, GatedMlp, KvCache, LayerNorm, Linear, RmsNorm, RopeConfig, RopeScaling, RotaryEmbedding,
    attend,
};
use conjure_core::ops::AttentionSpec;
use conjure_core::probe::{Probe, Quantity, offer};
use conjure_core::weights::{ParameterSpec, Params, TensorSource};
use conjure_core::{DType, Device, Error, Result, Tensor, ops};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A norm of the config's kind.
#[derive(Clone, Debug)]
enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn new(params: &Params, features: usize, config: &DecoderConfig) -> Result<Self> {
        let eps = config.norm_eps;
        Ok(match config.norm {
            NormKind::Layer => Self::Layer(LayerNorm::new(params, features, eps)?),
            NormKind::LayerWithoutBias => Self::Layer(LayerNorm::without_bias(params, features, eps)?),
            NormKind::Rms => Self::Rms(RmsNorm::new(params, features, eps)?),
            NormKind::RmsOffset => Self::Rms(RmsNorm::with_offset(params, features, eps)?),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// What one forward pass has for all layers.
struct Pass<'a> {
    /// Tokens that were read before.
    past: usize,
    /// The angles of this pass's positions, for each of the config's rotations.
    ropes: Vec<RotaryEmbedding>,
    /// What is added to the scores: ALiBi's penalties `(1, heads, 1, source)`, or what hides texts from each other.
    mask: Option<Tensor>,
    cache: Option<&'a mut KvCache>,
}

/// Self-attention: each token sees itself and the earlier ones, or the last of them.
#[derive(Clone, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of queries and keys, over the features of a head.
    qk_norm: Option<(Norm, Norm)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f64,
    soft_cap: Option<f64>,
    layer: LayerConfig,
    index: usize,
    path: String,
}

impl Attention {
    fn new(params: &Params, config: &DecoderConfig, index: usize) -> Result<Self> {
        let DecoderConfig { hidden_size, num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } =
            *config;
        let bias = config.attention_bias;
        let qk_norm = if config.qk_norm {
            let norm = |name: &str| Norm::new(&params.sub(name), head_dim, config);
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        Ok(Self {
            q_proj: Linear::new(&params.sub("q_proj"), hidden_size, heads * head_dim, bias)?,
            k_proj: Linear::new(&params.sub("k_proj"), hidden_size, kv_heads * head_dim, bias)?,
            v_proj: Linear::new(&params.sub("v_proj"), hidden_size, kv_heads * head_dim, bias)?,
            o_proj: Linear::new(&params.sub("o_proj"), heads * head_dim, hidden_size, config.attention_output_bias)?,
            qk_norm,
            heads,
            kv_heads,
            head_dim,
            scale: config.attention_scale,
            soft_cap: config.attention_soft_cap,
            layer: config.layers[index],
            index,
            path: params.path().to_owned(),
        })
    }

    /// `passes` has one for the whole batch, or one for each of its texts.
    fn forward(&self, x: &Tensor, passes: &mut [Pass<'_>], probe: &mut dyn Probe) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let split = |x: Tensor, heads: usize| x.reshape((batch, time, heads, self.head_dim));
        // 1. Queries, keys and values of the new tokens.
        let mut q = split(self.q_proj.forward(x)?, self.heads)?; // (batch, time, heads, head_dim)
        let mut k = split(self.k_proj.forward(x)?, self.kv_heads)?; // (batch, time, kv_heads, head_dim)
        let v = split(self.v_proj.forward(x)?, self.kv_heads)?; // (batch, time, kv_heads, head_dim)
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = (q.transpose(1, 2)?, k.transpose(1, 2)?); // (batch, heads or kv_heads, time, head_dim)
        let v = v.transpose(1, 2)?; // (batch, kv_heads, time, head_dim)
        let y = match passes {
            [pass] => self.attend(q, k, v, pass, probe)?, // (batch, heads, time, head_dim)
            passes => {
                let text = |(n, pass): (usize, &mut Pass<'_>)| {
                    self.attend(q.narrow(0, n, 1)?, k.narrow(0, n, 1)?, v.narrow(0, n, 1)?, pass, probe)
                };
                Tensor::cat(&passes.iter_mut().enumerate().map(text).collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        // 5. Heads side by side, and mixed.
        let y = y.transpose(1, 2)?.reshape((batch, time, self.heads * self.head_dim))?;
        self.o_proj.forward(&y) // (batch, time, hidden_size)
    }

    /// Queries `q (batch, heads, time, head_dim)`, keys `k` and values `v (batch, kv_heads, time, head_dim)` of texts that stand
    /// at the same place: `(batch, heads, time, head_dim)`.
    fn attend(
        &self,
        mut q: Tensor,
        mut k: Tensor,
        mut v: Tensor,
        pass: &mut Pass<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        // 2. Rotated by where they stand.
        if let Some(rope) = self.layer.rope.and_then(|rope| pass.ropes.get(rope)) {
            (q, k) = (rope.rotate(&q)?, rope.rotate(&k)?);
        }
        // 3. The keys and values of earlier tokens in front.
        if let Some(cache) = &mut pass.cache {
            (k, v) = cache.append(self.index, &k, &v)?; // (batch, kv_heads, source, head_dim)
            if self.is_watched(probe) {
                // The cache's memory is written again, and may hold fewer bits: what a probe has seen stays as it was.
                (k, v) = (ops::widened(&k.copy()?, &q)?, ops::widened(&v.copy()?, &q)?);
            }
        }
        // 4. Attention.
        let spec = AttentionSpec {
            scale: self.scale,
            causal: true,
            window: self.layer.window,
            soft_cap: self.soft_cap,
            mask: pass.mask.as_ref(),
        };
        let to_out = |y: &Tensor| self.o_proj.forward(y);
        attend(&q, &k, &v, spec, &to_out, &self.path, probe)
    }

    /// Whether a probe looks at keys and values, or changes what is done with them.
    fn is_watched(&self, probe: &dyn Probe) -> bool {
        let all = [Quantity::Key, Quantity::Value, Quantity::AttentionProbabilities, Quantity::Attention];
        all.into_iter().any(|quantity| probe.wants(&self.path, quantity)) || probe.what_if(&self.path).is_some()
    }
}

/// The layer that works on each token by itself.
#[derive(Clone, Debug)]
enum Mlp {
    Gated(GatedMlp),
    Plain { up_proj: Linear, down_proj: Linear, act: Activation },
}

impl Mlp {
    fn new(params: &Params, config: &DecoderConfig) -> Result<Self> {
        let DecoderConfig { hidden_size, intermediate_size, mlp_bias: bias, hidden_act: act, .. } = *config;
        if config.gated_mlp {
            return Ok(Self::Gated(GatedMlp::new(params, hidden_size, intermediate_size, bias, act)?));
        }
        Ok(Self::Plain {
            up_proj: Linear::new(&params.sub("up_proj"), hidden_size, intermediate_size, bias)?,
            down_proj: Linear::new(&params.sub("down_proj"), intermediate_size, hidden_size, bias)?,
            act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated(mlp) => mlp.forward(x),
            Self::Plain { up_proj, down_proj, act } => {
                let h = act.forward(&up_proj.forward(x)?)?; // (batch, time, intermediate_size)
                down_proj.forward(&h) // (batch, time, hidden_size)
            }
        }
    }
}

/// Attention and MLP with their norms, put together as the config's [`BlockKind`] says.
#[derive(Clone, Debug)]
enum Residual {
    Sequential { post_attention_layernorm: Norm },
    Sandwich { post_attention_layernorm: Norm, pre_feedforward_layernorm: Norm, post_feedforward_layernorm: Norm },
    Parallel { post_attention_layernorm: Norm },
    ParallelOneNorm,
}

#[derive(Clone, Debug)]
struct Layer {
    input_layernorm: Norm,
    self_attn: Attention,
    mlp: Mlp,
    residual: Residual,
    path: String,
}

impl Layer {
    fn new(params: &Params, config: &DecoderConfig, index: usize) -> Result<Self> {
        let norm = |name: &str| Norm::new(&params.sub(name), config.hidden_size, config);
        let residual = match config.block {
            BlockKind::Sequential => {
                Residual::Sequential { post_attention_layernorm: norm("post_attention_layernorm")? }
            }
            BlockKind::Sandwich => Residual::Sandwich {
                post_attention_layernorm: norm("post_attention_layernorm")?,
                pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
                post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            },
            BlockKind::Parallel => Residual::Parallel { post_attention_layernorm: norm("post_attention_layernorm")? },
            BlockKind::ParallelOneNorm => Residual::ParallelOneNorm,
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(&params.sub("self_attn"), config, index)?,
            mlp: Mlp::new(&params.sub("mlp"), config)?,
            residual,
            path: params.path().to_owned(),
        })
    }

    /// `x (batch, time, hidden_size)`, shape unchanged.
    fn forward(&self, x: &Tensor, passes: &mut [Pass<'_>], probe: &mut dyn Probe) -> Result<Tensor> {
        let normed = self.input_layernorm.forward(x)?;
        let attended = self.self_attn.forward(&normed, passes, probe)?;
        let y = match &self.residual {
            Residual::Sequential { post_attention_layernorm } => {
                let x = ops::add(x, &attended)?;
                ops::add(&x, &self.mlp.forward(&post_attention_layernorm.forward(&x)?)?)?
            }
            Residual::Sandwich { post_attention_layernorm, pre_feedforward_layernorm, post_feedforward_layernorm } => {
                let x = ops::add(x, &post_attention_layernorm.forward(&attended)?)?;
                let h = self.mlp.forward(&pre_feedforward_layernorm.forward(&x)?)?;
                ops::add(&x, &post_feedforward_layernorm.forward(&h)?)?
            }
            Residual::Parallel { post_attention_layernorm } => {
                let h = self.mlp.forward(&post_attention_layernorm.forward(x)?)?;
                ops::add(x, &ops::add(&attended, &h)?)?
            }
            Residual::ParallelOneNorm => ops::add(x, &ops::add(&attended, &self.mlp.forward(&normed)?)?)?,
        };
        offer(probe, &self.path, Quantity::Activation, &y)?;
        Ok(y) // (batch, time, hidden_size)
    }
}

/// A language model.
#[derive(Clone, Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    embed_positions: Option<Embedding>,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None` where the embedding's table makes the logits.
    lm_head: Option<Linear>,
    config: DecoderConfig,
    dtype: DType,
    device: Device,
}

/// What a decoder of this config asks for, without memory for it.
///
/// # Errors
/// A config that cannot be built.
pub fn asked(config: &DecoderConfig) -> Result<Vec<ParameterSpec>> {
    let params = Params::outline();
    Decoder::new(&params, config)?;
    Ok(params.asked())
}

/// The checkpoint `source`, with the key names of the config's family in transformers, under the names that [`Decoder::new`]
/// asks for. Files of the inner model alone, whose keys lack the outer name (`model.`, `transformer.`), are seen the same. A
/// GGUF file is seen through llama.cpp's names; its config is [`DecoderConfig::from_gguf`].
///
/// # Errors
/// A config that cannot be built, a stored tensor of another shape than it speaks of, or a tensor in a GGUF file that belongs
/// to none of its parts.
pub fn canonical(source: Arc<dyn TensorSource>, config: &DecoderConfig) -> Result<Arc<dyn TensorSource>> {
    let wanted = asked(config)?;
    let renamed = match source.gguf() {
        Some(_) => gguf::renamed(source, config, &wanted)?,
        None => keys::renamed(source, config, &wanted)?,
    };
    Ok(Arc::new(renamed))
}

/// The way back from [`canonical`]: the tensors of a decoder, by the names that [`Decoder::new`] asks for, under the names and
/// in the layout that transformers stores the config's family in. [`DecoderConfig::to_json`] makes the config beside them.
///
/// # Errors
/// Parts that are stored as one tensor do not fit each other.
pub fn stored(tensors: &BTreeMap<String, Tensor>, config: &DecoderConfig) -> Result<BTreeMap<String, Tensor>> {
    keys::stored(tensors, config)
}

impl Decoder {
    /// The model with the keys `model.*` and, unless tied, `lm_head.weight` below `params`; see [`canonical`] for a
    /// checkpoint with its family's own names.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &DecoderConfig) -> Result<Self> {
        config.check()?;
        let DecoderConfig { vocab_size, hidden_size, max_position_embeddings, .. } = *config;
        let model = params.sub("model");
        let embed_positions = if config.positions == Positions::Learned {
            Some(Embedding::new(&model.sub("embed_positions"), max_position_embeddings, hidden_size)?)
        } else {
            None
        };
        let layers = model.sub("layers");
        let lm_head = if config.tie_word_embeddings {
            None
        } else {
            Some(Linear::new(&params.sub("lm_head"), hidden_size, vocab_size, false)?)
        };
        Ok(Self {
            embed_tokens: Embedding::new(&model.sub("embed_tokens"), vocab_size, hidden_size)?,
            embed_positions,
            layers: (0..config.layers.len()).map(|n| Layer::new(&layers.sub(n), config, n)).collect::<Result<_>>()?,
            norm: Norm::new(&model.sub("norm"), hidden_size, config)?,
            lm_head,
            config: config.clone(),
            dtype: params.dtype(),
            device: params.device().clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// An empty cache for texts of at most `context` tokens; [`DecoderConfig::context`] is what the model is made for.
    ///
    /// A model with LongRoPE reads with its long angles where `context` is more than the positions it was first trained on,
    /// however short the text is: one text must not be read with both.
    pub fn new_cache(&self, context: usize) -> KvCache {
        let most = match self.config.positions {
            Positions::Learned => self.config.max_position_embeddings,
            _ => usize::MAX,
        };
        KvCache::new(self.config.layers.iter().map(|layer| layer.window), context.min(most))
    }

    /// Logits of the token after each of `ids (batch, time)`, of type u32: `(batch, time, vocab_size)`. With a cache, `ids`
    /// go on where it ends, and are in it afterwards.
    ///
    /// The probe sees each layer's attention at `model.layers.N.self_attn` (queries and keys rotated, keys and values with
    /// those of the cache), its output at `model.layers.N`, the embeddings at `model.embed_tokens`, and what the head gets at
    /// `model.norm`.
    ///
    /// # Errors
    /// No token, a token beyond the vocabulary, more tokens than the cache or a table of positions has room for.
    pub fn forward(&self, ids: &Tensor, cache: Option<&mut KvCache>, probe: &mut dyn Probe) -> Result<Tensor> {
        let x = self.hidden_states(ids, cache, probe)?; // (batch, time, hidden_size)
        self.head(&x, probe) // (batch, time, vocab_size)
    }

    /// As [`Self::forward`], of the last token alone: `(batch, vocab_size)`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_last(&self, ids: &Tensor, cache: Option<&mut KvCache>, probe: &mut dyn Probe) -> Result<Tensor> {
        let x = self.hidden_states(ids, cache, probe)?; // (batch, time, hidden_size)
        let last = x.narrow(1, x.dim(1)? - 1, 1)?.contiguous()?; // (batch, 1, hidden_size)
        Ok(self.head(&last, probe)?.squeeze(1)?) // (batch, vocab_size)
    }

    /// As [`Self::forward_last`] for several texts of different length, each with a cache of its own that is at least one token
    /// behind: `ids` holds the next token of each. All weights are read once for all of them. `(texts, vocab_size)`, what each
    /// text would get alone but for roundings: in f32 within 1e-5 of the largest.
    ///
    /// # Errors
    /// Not as many ids as caches, and those of [`Self::forward`]; no cache has changed then but that memory was taken.
    pub fn forward_texts(&self, ids: &[u32], caches: &mut [&mut KvCache], probe: &mut dyn Probe) -> Result<Tensor> {
        if ids.len() != caches.len() {
            let (ids, caches) = (ids.len(), caches.len());
            return Err(Error::request(format!("{ids} tokens for {caches} texts")));
        }
        let ids = Tensor::new(ids, &self.device)?.unsqueeze(1)?; // (texts, 1)
        for cache in caches.iter() {
            self.check_ids(&ids, cache.len(), Some(&**cache))?;
        }
        let passes =
            caches.iter_mut().map(|cache| self.pass(cache.len(), 1, Some(&mut **cache))).collect::<Result<_>>()?;
        let x = self.through_layers(&ids, passes, probe)?; // (texts, 1, hidden_size)
        Ok(self.head(&x, probe)?.squeeze(1)?) // (texts, vocab_size)
    }

    /// The residual stream after the last layer, before the final norm: `(batch, time, hidden_size)`; the rest as in
    /// [`Self::forward`].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn hidden_states(&self, ids: &Tensor, cache: Option<&mut KvCache>, probe: &mut dyn Probe) -> Result<Tensor> {
        let (_, time) = ids.dims2()?;
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        self.check_ids(ids, past, cache.as_deref())?;
        self.through_layers(ids, vec![self.pass(past, time, cache)?], probe)
    }

    /// As [`Self::hidden_states`] of several texts in a row, none of which sees the others: `texts (batch, time)`, of type
    /// u32, numbers the text that each token belongs to. Positions go on from text to text.
    ///
    /// # Errors
    /// As [`Self::hidden_states`]; the shapes differ.
    pub fn hidden_states_apart(&self, ids: &Tensor, texts: &Tensor) -> Result<Tensor> {
        if texts.dims() != ids.dims() {
            let (texts, ids) = (texts.dims(), ids.dims());
            return Err(Error::request(format!("texts {texts:?} do not fit ids {ids:?}")));
        }
        let same = texts.unsqueeze(2)?.broadcast_eq(&texts.unsqueeze(1)?)?; // (batch, time, time)
        let nothing = Tensor::zeros(same.shape(), self.dtype, &self.device)?;
        let hidden = Tensor::new(f32::NEG_INFINITY, &self.device)?.to_dtype(self.dtype)?.broadcast_as(same.shape())?;
        let mask = same.where_cond(&nothing, &hidden)?.unsqueeze(1)?; // (batch, 1, time, time)
        self.check_ids(ids, 0, None)?;
        let mut pass = self.pass(0, ids.dim(1)?, None)?;
        pass.mask = Some(match pass.mask {
            Some(penalties) => penalties.broadcast_add(&mask)?, // (batch, heads, time, time)
            None => mask,
        });
        self.through_layers(ids, vec![pass], &mut conjure_core::probe::NoProbe)
    }

    fn through_layers(&self, ids: &Tensor, mut passes: Vec<Pass<'_>>, probe: &mut dyn Probe) -> Result<Tensor> {
        let (_, time) = ids.dims2()?;
        // 1. Embeddings of tokens and, in GPT-2, of positions.
        let mut x = self.embed_tokens.forward(ids)?; // (batch, time, hidden_size)
        if self.config.embedding_scale != 1.0 {
            x = (x * self.config.embedding_scale)?;
        }
        if let Some(positions) = &self.embed_positions {
            let places = passes.iter().flat_map(|pass| (pass.past..pass.past + time).map(|place| place as u32));
            let places = Tensor::from_vec(places.collect(), (passes.len(), time), ids.device())?;
            x = x.broadcast_add(&positions.forward(&places)?)?; // (batch, time, hidden_size)
        }
        offer(probe, "model.embed_tokens", Quantity::Activation, &x)?;
        // 2. Through the layers, which know where the tokens stand.
        for layer in &self.layers {
            x = layer.forward(&x, &mut passes, probe)?; // (batch, time, hidden_size)
        }
        for cache in passes.into_iter().filter_map(|pass| pass.cache) {
            cache.advance(time);
        }
        Ok(x)
    }

    /// Logits of hidden states `x (batch, time, hidden_size)` of any layer, through the final norm:
    /// `(batch, time, vocab_size)`. Of an inner layer, this is the logit lens (nostalgebraist 2020).
    ///
    /// # Errors
    /// The shape does not fit.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.head(x, &mut conjure_core::probe::NoProbe)
    }

    fn head(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        // 3. The final norm.
        let x = self.norm.forward(x)?; // (batch, time, hidden_size)
        offer(probe, "model.norm", Quantity::Activation, &x)?;
        // 4. A score for each token of the vocabulary.
        let mut logits = match &self.lm_head {
            Some(lm_head) => lm_head.forward(&x)?,
            None => self.embed_tokens.logits(&x)?,
        }; // (batch, time, vocab_size)
        if self.config.logit_scale != 1.0 {
            logits = (logits * self.config.logit_scale)?;
        }
        if let Some(cap) = self.config.logit_soft_cap {
            logits = ((logits / cap)?.tanh()? * cap)?;
        }
        Ok(logits)
    }

    fn pass<'a>(&self, past: usize, time: usize, cache: Option<&'a mut KvCache>) -> Result<Pass<'a>> {
        let rotation = |rope: &RopeConfig| {
            // Which angles a text gets must not change while it grows.
            let length = match (&rope.scaling, &cache) {
                (RopeScaling::LongRope { .. }, Some(cache)) => cache.context(),
                _ => past + time,
            };
            RotaryEmbedding::new(rope, past, time, length, &self.device)
        };
        let ropes = self.config.ropes.iter().map(rotation).collect::<Result<_>>()?;
        let mask = match self.config.positions {
            Positions::Alibi { max_bias } => Some(self.penalties(max_bias, past + time)?),
            _ => None,
        };
        Ok(Pass { past, ropes, mask, cache })
    }

    /// ALiBi (Press et al. 2021, section 3): a slope for each head times how far behind the last token a key is. (What a row
    /// has in common softmax does not see, so that one row does for all queries.) `(1, heads, 1, source)`.
    fn penalties(&self, max_bias: f64, source: usize) -> Result<Tensor> {
        let heads = self.config.num_attention_heads;
        // The geometric series for a power of two; others take every second slope of the next power's after it.
        let power = heads.next_power_of_two();
        let slope = |n: usize| (-max_bias * n as f64 / power as f64).exp2();
        let slopes: Vec<f64> = if power == heads {
            (1..=heads).map(slope).collect()
        } else {
            (2..=power).step_by(2).chain((1..=power).step_by(2)).map(slope).take(heads).collect()
        };
        let penalties: Vec<f32> = slopes
            .iter()
            .flat_map(|slope| (0..source).map(move |j| (slope * (j as f64 + 1.0 - source as f64)) as f32))
            .collect();
        Ok(Tensor::from_vec(penalties, (1, heads, 1, source), &self.device)?.to_dtype(self.dtype)?)
    }

    fn check_ids(&self, ids: &Tensor, past: usize, cache: Option<&KvCache>) -> Result<()> {
        let (vocab_size, most) = (self.config.vocab_size, self.config.max_position_embeddings);
        let time = ids.dim(1)?;
        if ids.elem_count() == 0 {
            return Err(Error::request("the language model got no token"));
        }
        if let Some(cache) = cache {
            cache.check_room(time)?;
        }
        if self.embed_positions.is_some() && past + time > most {
            return Err(Error::request(format!(
                "{} tokens are more than the {most} positions of the model",
                past + time
            ))
            .with_help("shorten the text, or read it in parts"));
        }
        if let Some(id) = ids.flatten_all()?.to_vec1::<u32>()?.into_iter().find(|id| *id as usize >= vocab_size) {
            return Err(Error::request(format!("token {id} is beyond the {vocab_size} tokens that the model knows"))
                .with_help("the tokenizer does not belong to this model"));
        }
        Ok(())
    }
}
