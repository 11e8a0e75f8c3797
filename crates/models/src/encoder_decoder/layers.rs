//! Figure 1: the encoder on the left and the decoder on the right, each a stack of equal layers.

use super::attention::{Attention, KeysValues, Offsets};
use super::cache::Cache;
use super::positions::{Buckets, RelativePositionBias};
use conjure_core::blocks::{Activation, AttentionNames, LayerNorm, Linear, RmsNorm};
use conjure_core::probe::{Probe, Quantity, offer};
use conjure_core::weights::Params;
use conjure_core::{Result, Tensor, dropout, ops};

/// How a checkpoint names the parts of a layer.
#[derive(Debug)]
pub(super) struct Names {
    layers: &'static str,
    self_attention: &'static str,
    self_attention_norm: &'static str,
    cross_attention: &'static str,
    cross_attention_norm: &'static str,
    projections: AttentionNames,
    /// The first layer of the MLP; with a gate `_0` after it is the gate and `_1` what is gated.
    inner: &'static str,
    outer: &'static str,
    feed_forward_norm: &'static str,
    /// T5 norms before each part and after the last layer, by the root mean square, has no biases and does not scale scores.
    /// Else norms stand after the residual connections.
    is_t5: bool,
}

/// Marian's, in transformers' layout.
pub(super) const TRANSFORMER: Names = Names {
    layers: "layers",
    self_attention: "self_attn",
    self_attention_norm: "self_attn_layer_norm",
    cross_attention: "encoder_attn",
    cross_attention_norm: "encoder_attn_layer_norm",
    projections: AttentionNames::TRANSFORMERS,
    inner: "fc1",
    outer: "fc2",
    feed_forward_norm: "final_layer_norm",
    is_t5: false,
};

/// T5's encoder.
pub(super) const T5_ENCODER: Names = Names {
    layers: "block",
    self_attention: "layer.0.SelfAttention",
    self_attention_norm: "layer.0.layer_norm",
    cross_attention: "layer.1.EncDecAttention",
    cross_attention_norm: "layer.1.layer_norm",
    projections: AttentionNames { q: "q", k: "k", v: "v", out: "o" },
    inner: "layer.1.DenseReluDense.wi",
    outer: "layer.1.DenseReluDense.wo",
    feed_forward_norm: "layer.1.layer_norm",
    is_t5: true,
};

/// T5's decoder.
pub(super) const T5_DECODER: Names = Names {
    inner: "layer.2.DenseReluDense.wi",
    outer: "layer.2.DenseReluDense.wo",
    feed_forward_norm: "layer.2.layer_norm",
    ..T5_ENCODER
};

/// What a stack is made of.
#[derive(Clone, Debug)]
pub(super) struct StackSpec {
    pub names: &'static Names,
    pub layers: usize,
    pub d_model: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub d_ff: usize,
    pub activation: Activation,
    pub gated: bool,
    pub eps: f64,
    /// Whether no token sees a later one, and all attend to the source.
    pub is_decoder: bool,
    pub buckets: Option<Buckets>,
}

#[derive(Clone, Debug)]
enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn new(params: &Params, spec: &StackSpec) -> Result<Self> {
        Ok(if spec.names.is_t5 {
            Self::Rms(RmsNorm::new(params, spec.d_model, spec.eps)?)
        } else {
            Self::Layer(LayerNorm::new(params, spec.d_model, spec.eps)?)
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// A part of a layer with its residual connection and norm: `LayerNorm(x + Sublayer(x))` in the paper, section 3.1, and
/// `x + Sublayer(LayerNorm(x))` in T5.
#[derive(Clone, Debug)]
struct Sublayer<P> {
    part: P,
    norm: Norm,
    norm_first: bool,
}

impl<P> Sublayer<P> {
    fn new(part: P, params: &Params, spec: &StackSpec) -> Result<Self> {
        Ok(Self { part, norm: Norm::new(params, spec)?, norm_first: spec.names.is_t5 })
    }

    fn around(&self, x: &Tensor, work: impl FnOnce(&P, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        // Dropout as in section 5.4.
        if self.norm_first {
            ops::add(x, &dropout::apply(&work(&self.part, &self.norm.forward(x)?)?)?)
        } else {
            self.norm.forward(&ops::add(x, &dropout::apply(&work(&self.part, x)?)?)?)
        }
    }
}

/// Section 3.3, with any activation and with or without a gate.
#[derive(Clone, Debug)]
struct FeedForward {
    inner: Linear,
    gate: Option<Linear>,
    outer: Linear,
    activation: Activation,
}

impl FeedForward {
    fn new(params: &Params, spec: &StackSpec) -> Result<Self> {
        let bias = !spec.names.is_t5;
        let name = spec.names.inner;
        let inner = |name: String| Linear::new(&params.sub(name), spec.d_model, spec.d_ff, bias);
        let (gate, inner) = if spec.gated {
            (Some(inner(format!("{name}_0"))?), inner(format!("{name}_1"))?)
        } else {
            (None, inner(name.to_owned())?)
        };
        let outer = Linear::new(&params.sub(spec.names.outer), spec.d_ff, spec.d_model, bias)?;
        Ok(Self { inner, gate, outer, activation: spec.activation })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.inner.forward(x)?; // (batch, time, d_ff)
        let h = match &self.gate {
            Some(gate) => (self.activation.forward(&gate.forward(x)?)? * h)?,
            None => self.activation.forward(&h)?,
        };
        self.outer.forward(&h) // (batch, time, d_model)
    }
}

#[derive(Clone, Debug)]
struct Layer {
    self_attention: Sublayer<Attention>,
    cross_attention: Option<Sublayer<Attention>>,
    feed_forward: Sublayer<FeedForward>,
    path: String,
}

impl Layer {
    fn new(params: &Params, spec: &StackSpec) -> Result<Self> {
        let names = spec.names;
        let attention = |path: &str, norm: &str| {
            let shape = (spec.d_model, spec.heads, spec.head_dim);
            let part = Attention::new(&params.sub(path), names.projections, shape, !names.is_t5, !names.is_t5)?;
            Sublayer::new(part, &params.sub(norm), spec)
        };
        Ok(Self {
            self_attention: attention(names.self_attention, names.self_attention_norm)?,
            cross_attention: spec
                .is_decoder
                .then(|| attention(names.cross_attention, names.cross_attention_norm))
                .transpose()?,
            feed_forward: Sublayer::new(FeedForward::new(params, spec)?, &params.sub(names.feed_forward_norm), spec)?,
            path: params.path().to_owned(),
        })
    }
}

/// What the decoder attends to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// `(batch, source, d_model)`.
    pub states: &'a Tensor,
    /// `(batch, 1, 1, source)`, added to the scores.
    pub mask: Option<&'a Tensor>,
}

/// The encoder, or the decoder.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    layers: Vec<Layer>,
    relative: Option<RelativePositionBias>,
    final_norm: Option<Norm>,
    causal: bool,
}

impl Stack {
    /// The stack below `params`.
    pub fn new(params: &Params, spec: &StackSpec) -> Result<Self> {
        let layers = params.sub(spec.names.layers);
        let relative = match spec.buckets {
            Some(buckets) => {
                let first = layers.sub(0).sub(spec.names.self_attention); // all layers share the first one's table
                Some(RelativePositionBias::new(&first, buckets, spec.heads, !spec.is_decoder)?)
            }
            None => None,
        };
        Ok(Self {
            layers: (0..spec.layers).map(|n| Layer::new(&layers.sub(n), spec)).collect::<Result<_>>()?,
            relative,
            final_norm: spec.names.is_t5.then(|| Norm::new(&params.sub("final_layer_norm"), spec)).transpose()?,
            causal: spec.is_decoder,
        })
    }

    /// Layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// `x (batch, time, d_model)`, shape unchanged. `mask` is added to the scores of self-attention. With a cache, `x` is what
    /// follows the tokens in it.
    pub fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        source: Option<Source<'_>>,
        mut cache: Option<&mut Cache>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let (time, before) = (x.dim(1)?, cache.as_ref().map_or(0, |cache| cache.len()));
        let bias = match &self.relative {
            Some(relative) => Some(relative.forward(before..before + time, x.device())?), // (1, heads, time, before + time)
            None => None,
        };
        let own = Offsets { bias: bias.as_ref(), mask, causal: self.causal };
        let mut x = x.clone();
        for (n, layer) in self.layers.iter().enumerate() {
            // 1. Self-attention; in the decoder to the tokens so far.
            x = layer.self_attention.around(&x, |attention, x| {
                let new = attention.keys_values(x)?;
                let all = match cache.as_deref_mut() {
                    Some(cache) => cache.append(n, new)?,
                    None => new,
                };
                attention.forward(x, &all, own, probe)
            })?;
            // 2. Attention to the source.
            if let (Some(cross_attention), Some(source)) = (&layer.cross_attention, source) {
                x = cross_attention.around(&x, |attention, x| {
                    let of_source = || attention.keys_values(source.states);
                    let keys_values: KeysValues = match cache.as_deref_mut() {
                        Some(cache) => cache.source(n, of_source)?,
                        None => of_source()?,
                    };
                    attention.forward(x, &keys_values, Offsets { mask: source.mask, ..Offsets::default() }, probe)
                })?;
            }
            // 3. Each position for itself.
            x = layer.feed_forward.around(&x, FeedForward::forward)?;
            offer(probe, &layer.path, Quantity::Activation, &x)?;
        }
        if let Some(cache) = cache {
            cache.advance(time);
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}
