//! Multi-head attention (Vaswani et al. 2017, section 3.2.2) with the parameter names of diffusers or transformers.

use super::Linear;
use crate::ops::{self, AttentionSpec};
use crate::probe::{Probe, Quantity, SeenAttention, offer};
use crate::weights::Params;
use crate::{Result, Tensor};

/// Shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionConfig {
    /// Features of the queries' input and of the output.
    pub query_dim: usize,
    /// Features of the keys' and values' input; equal to `query_dim` in self-attention.
    pub context_dim: usize,
    /// Heads.
    pub heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Whether `to_q`, `to_k`, `to_v` have a bias.
    pub bias: bool,
}

/// How a checkpoint names the four projections below the layer's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionNames {
    /// Of the queries.
    pub q: &'static str,
    /// Of the keys.
    pub k: &'static str,
    /// Of the values.
    pub v: &'static str,
    /// Of the output.
    pub out: &'static str,
}

impl AttentionNames {
    /// As diffusers writes them.
    pub const DIFFUSERS: Self = Self { q: "to_q", k: "to_k", v: "to_v", out: "to_out.0" };
    /// As transformers writes most models, CLIP among them.
    pub const TRANSFORMERS: Self = Self { q: "q_proj", k: "k_proj", v: "v_proj", out: "out_proj" };
}

/// [`ops::attention`] before a probe's eyes: `q (batch, heads, t, head_dim)`, `k (batch, kv_heads, s, head_dim)`, `v (batch,
/// kv_heads, s, value_dim)`: `(batch, heads, t, value_dim)`. Every attention of every model goes through here, so that all can
/// be explained alike. `to_out` is the projection of the merged heads, `path` the layer's.
///
/// # Errors
/// The shapes do not fit each other; those of the probe.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: AttentionSpec<'_>,
    to_out: &dyn Fn(&Tensor) -> Result<Tensor>,
    path: &str,
    probe: &mut dyn Probe,
) -> Result<Tensor> {
    // Probes are shown numbers, however a cache keeps them; the output's bits are the same.
    let looked_at = [Quantity::Key, Quantity::Value, Quantity::AttentionProbabilities, Quantity::Attention]
        .into_iter()
        .any(|quantity| probe.wants(path, quantity));
    let wide = if looked_at { Some((ops::widened(k, q)?, ops::widened(v, q)?)) } else { None };
    let (k, v) = wide.as_ref().map_or((k, v), |(k, v)| (k, v));
    offer(probe, path, Quantity::Query, q)?;
    for (quantity, value) in [(Quantity::Key, k), (Quantity::Value, v)] {
        if probe.wants(path, quantity) {
            // A cache's memory is written again; what a probe has seen must stay.
            probe.observe(path, quantity, &value.copy()?)?;
        }
    }
    let what_if = probe.what_if(path);
    let hidden = what_if.as_ref().map(|change| change.mask(q, k, spec.mask)).transpose()?.flatten();
    let spec = AttentionSpec { mask: hidden.as_ref().or(spec.mask), ..spec };
    if probe.wants(path, Quantity::AttentionProbabilities) {
        let probabilities = ops::attention_probabilities(q, k, spec)?;
        probe.observe(path, Quantity::AttentionProbabilities, &probabilities)?;
    }
    let y = ops::attention(q, k, v, spec)?; // (batch, heads, t, value_dim)
    if probe.wants(path, Quantity::Attention) {
        probe.observe_attention(path, &SeenAttention { q, k, v, spec, y: &y, to_out })?;
    }
    match what_if {
        Some(change) => change.silence(&y),
        None => Ok(y),
    }
}

/// Multi-head self- or cross-attention.
#[derive(Clone, Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    config: AttentionConfig,
    causal: bool,
    path: String,
}

impl Attention {
    /// The layer below `params`, with diffusers' names.
    pub fn new(params: &Params, config: AttentionConfig) -> Result<Self> {
        Self::with_names(params, config, AttentionNames::DIFFUSERS)
    }

    /// The layer below `params`, with the projections named by `names`.
    pub fn with_names(params: &Params, config: AttentionConfig, names: AttentionNames) -> Result<Self> {
        let inner = config.heads * config.head_dim;
        Ok(Self {
            to_q: Linear::new(&params.sub(names.q), config.query_dim, inner, config.bias)?,
            to_k: Linear::new(&params.sub(names.k), config.context_dim, inner, config.bias)?,
            to_v: Linear::new(&params.sub(names.v), config.context_dim, inner, config.bias)?,
            to_out: Linear::new(&params.sub(names.out), inner, config.query_dim, true)?,
            config,
            causal: false,
            path: params.path().to_owned(),
        })
    }

    /// The same layer, in which no position sees a later one.
    pub fn causal(self) -> Self {
        Self { causal: true, ..self }
    }

    /// `x (batch, time, query_dim)` attends to `context (batch, source, context_dim)`, or to itself:
    /// `(batch, time, query_dim)`. `mask` is additive, broadcastable to `(batch, heads, time, source)`.
    pub fn forward(
        &self,
        x: &Tensor,
        context: Option<&Tensor>,
        mask: Option<&Tensor>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let context = context.unwrap_or(x);
        let q = self.split_heads(&self.to_q.forward(x)?)?; // (batch, heads, time, head_dim)
        let k = self.split_heads(&self.to_k.forward(context)?)?; // (batch, heads, source, head_dim)
        let v = self.split_heads(&self.to_v.forward(context)?)?; // (batch, heads, source, head_dim)
        let spec = AttentionSpec { mask, causal: self.causal, ..AttentionSpec::new(self.config.head_dim) };
        let y = attend(&q, &k, &v, spec, &|y| self.to_out.forward(y), &self.path, probe)?; // (batch, heads, time, head_dim)
        let (batch, heads, time, head_dim) = y.dims4()?;
        let y = y.transpose(1, 2)?.reshape((batch, time, heads * head_dim))?;
        self.to_out.forward(&y)
    }

    fn split_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        Ok(x.reshape((batch, time, self.config.heads, self.config.head_dim))?.transpose(1, 2)?)
    }
}
