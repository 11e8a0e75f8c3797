//! Explaining is observing: a [`Probe`] is handed into `forward` and sees what flows through the model.
//!
//! A model computes the same bits with and without a probe: what only a probe needs (attention probabilities, which the
//! fused kernel never stores) is computed beside the result, and only when [`Probe::wants`] says so. The one exception is
//! asked for by name: [`Probe::what_if`] hides keys and switches heads off, to see what they were good for.

use crate::ops::{self, AttentionSpec};
use crate::{Error, Result, Tensor};

/// What kind of value a probe is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantity {
    /// Queries, `(batch, heads, time, head_dim)`.
    Query,
    /// Keys, `(batch, kv_heads, source, head_dim)`.
    Key,
    /// Values, `(batch, kv_heads, source, head_dim)`.
    Value,
    /// Attention probabilities, `(batch, heads, time, source)`; rows sum to 1.
    AttentionProbabilities,
    /// An attention as a whole, by [`Probe::observe_attention`].
    Attention,
    /// A layer's output; its shape is the layer's own.
    Activation,
    /// A gate of a recurrent cell.
    Gate,
    /// The current noisy latent of a sampler.
    Latent,
    /// The sample that the model predicts from the current latent.
    PredictedSample,
}

/// One attention: what entered the product, and what came out.
pub struct SeenAttention<'a> {
    /// Queries after rotation and normalisation, `(batch, heads, time, head_dim)`.
    pub q: &'a Tensor,
    /// Keys, likewise, `(batch, kv_heads, source, head_dim)`.
    pub k: &'a Tensor,
    /// Values, `(batch, kv_heads, source, value_dim)`.
    pub v: &'a Tensor,
    /// Scale and masks, with what [`Probe::what_if`] hid.
    pub spec: AttentionSpec<'a>,
    /// The weighted sums as the model computed them, `(batch, heads, time, value_dim)`.
    pub y: &'a Tensor,
    /// The output projection, `(batch, time, heads * value_dim)` to `(batch, time, features)`.
    pub to_out: &'a dyn Fn(&Tensor) -> Result<Tensor>,
}

impl SeenAttention<'_> {
    /// The probabilities that the values were weighted with, `(batch, heads, time, source)`; computed when asked for.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn probabilities(&self) -> Result<Tensor> {
        ops::attention_probabilities(self.q, self.k, self.spec)
    }
}

/// What a probe wants to be different in one attention.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WhatIf {
    /// Positions of the source that no other position sees.
    pub hidden_keys: Vec<usize>,
    /// Whether a hidden position still sees itself, as it must in self-attention: it may have nothing else to see.
    pub own_position_stays: bool,
    /// Heads whose weighted sums are zero.
    pub silent_heads: Vec<usize>,
}

impl WhatIf {
    /// The additive mask `(1, 1, time, source)` that hides the keys, on top of `mask`; `None` if nothing is hidden.
    ///
    /// # Errors
    /// A position beyond `source`.
    pub fn mask(&self, q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Result<Option<Tensor>> {
        let (t, s) = (q.dim(2)?, k.dim(2)?);
        if self.hidden_keys.is_empty() {
            return Ok(None);
        }
        if let Some(key) = self.hidden_keys.iter().find(|key| **key >= s) {
            return Err(Error::request(format!("position {key} cannot be hidden: there are {s}")));
        }
        let mut hidden = vec![0f32; t * s];
        for i in 0..t {
            for &j in &self.hidden_keys {
                // Where keys were cached, the queries are the last of the source.
                if !(self.own_position_stays && j + t == i + s) {
                    hidden[i * s + j] = f32::NEG_INFINITY;
                }
            }
        }
        let hidden = Tensor::from_vec(hidden, (1, 1, t, s), q.device())?.to_dtype(q.dtype())?;
        Ok(Some(match mask {
            Some(mask) => hidden.broadcast_add(&mask.detach())?,
            None => hidden,
        }))
    }

    /// `y (batch, heads, time, value_dim)` with the silent heads at zero.
    ///
    /// # Errors
    /// A head that there is not.
    pub fn silence(&self, y: &Tensor) -> Result<Tensor> {
        let heads = y.dim(1)?;
        if self.silent_heads.is_empty() {
            return Ok(y.clone());
        }
        if let Some(head) = self.silent_heads.iter().find(|head| **head >= heads) {
            return Err(Error::request(format!("head {head} cannot be switched off: there are {heads}"))
                .with_help(format!("heads are counted from 0: the last is {}", heads.saturating_sub(1))));
        }
        let keep: Vec<f32> = (0..heads).map(|h| if self.silent_heads.contains(&h) { 0.0 } else { 1.0 }).collect();
        Ok(y.broadcast_mul(&Tensor::from_vec(keep, (1, heads, 1, 1), y.device())?.to_dtype(y.dtype())?)?)
    }
}

/// Sees values by the path of the module that made them; the path is the prefix of the module's checkpoint keys, such as
/// `down_blocks.0.attentions.1.transformer_blocks.0.attn2`.
pub trait Probe {
    /// Whether this value is wanted. Asked first, so that what nobody wants is never computed.
    fn wants(&self, path: &str, quantity: Quantity) -> bool;

    /// Takes a value that was wanted.
    ///
    /// # Errors
    /// An error stops the forward pass and is returned from it.
    fn observe(&mut self, path: &str, quantity: Quantity, value: &Tensor) -> Result<()>;

    /// Takes an attention, if [`Quantity::Attention`] was wanted there.
    ///
    /// # Errors
    /// An error stops the forward pass and is returned from it.
    fn observe_attention(&mut self, _path: &str, _seen: &SeenAttention<'_>) -> Result<()> {
        Ok(())
    }

    /// What shall be different in the attention at `path`; `None` leaves its bits alone.
    fn what_if(&self, _path: &str) -> Option<WhatIf> {
        None
    }
}

/// Hands `value`, which was computed anyway, to the probe if it is wanted.
///
/// # Errors
/// Those of [`Probe::observe`].
pub fn offer(probe: &mut dyn Probe, path: &str, quantity: Quantity, value: &Tensor) -> Result<()> {
    if probe.wants(path, quantity) { probe.observe(path, quantity, value) } else { Ok(()) }
}

/// The probe that wants nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    fn wants(&self, _: &str, _: Quantity) -> bool {
        false
    }

    fn observe(&mut self, _: &str, _: Quantity, _: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// Records every wanted value, in the order in which the model made them.
pub struct Recorder<F> {
    wanted: F,
    /// What was observed: module path, quantity, value.
    pub records: Vec<(String, Quantity, Tensor)>,
}

impl<F: Fn(&str, Quantity) -> bool> Recorder<F> {
    /// A recorder of the values for which `wanted(path, quantity)` is true.
    pub fn new(wanted: F) -> Self {
        Self { wanted, records: Vec::new() }
    }
}

impl<F: Fn(&str, Quantity) -> bool> Probe for Recorder<F> {
    fn wants(&self, path: &str, quantity: Quantity) -> bool {
        (self.wanted)(path, quantity)
    }

    fn observe(&mut self, path: &str, quantity: Quantity, value: &Tensor) -> Result<()> {
        self.records.push((path.to_owned(), quantity, value.detach()));
        Ok(())
    }
}
