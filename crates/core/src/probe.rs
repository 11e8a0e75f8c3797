//! Explaining is observing: a [`Probe`] is handed into `forward` and sees what flows through the model.
//!
//! A model computes the same bits with and without a probe: what only a probe needs (attention probabilities, which the
//! fused kernel never stores) is computed beside the result, and only when [`Probe::wants`] says so.

use crate::{Result, Tensor};

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
    /// A layer's output; its shape is the layer's own.
    Activation,
    /// A gate of a recurrent cell.
    Gate,
    /// The current noisy latent of a sampler.
    Latent,
    /// The sample that the model predicts from the current latent.
    PredictedSample,
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
