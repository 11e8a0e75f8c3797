//! What a language model is trained to make small.

use conjure_core::{Error, Result, Tensor, ops};

/// The target of a token that [`loss`] leaves out: padding, or the user's part of a conversation.
pub const IGNORED: u32 = u32::MAX;

/// The mean of `-log P(next token | tokens so far)` over the targets that are not [`IGNORED`]: "Improving Language
/// Understanding by Generative Pre-Training", Radford et al. 2018, equation 1. `logits (batch, time, vocab_size)`,
/// `targets (batch, time)` of type u32: at each place the token that comes after it. Returns a scalar.
///
/// # Errors
/// Shapes do not fit, every target is ignored, a target beyond the vocabulary.
pub fn loss(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (batch, time, vocab_size) = logits.dims3()?;
    if targets.dims() != [batch, time] {
        let (targets, logits) = (targets.dims(), logits.dims());
        return Err(Error::request(format!("targets {targets:?} do not fit logits {logits:?}")));
    }
    let logits = logits.reshape((batch * time, vocab_size))?;
    let targets = targets.flatten_all()?.to_vec1::<u32>()?;
    let (kept, wanted): (Vec<u32>, Vec<u32>) =
        targets.iter().enumerate().filter(|(_, id)| **id != IGNORED).map(|(at, id)| (at as u32, *id)).unzip();
    if kept.is_empty() {
        return Err(Error::request("no token of the batch is left to learn from"));
    }
    let logits = if kept.len() == targets.len() {
        logits
    } else {
        logits.index_select(&Tensor::new(kept, logits.device())?, 0)? // (kept, vocab_size)
    };
    ops::cross_entropy(&logits, &Tensor::new(wanted, logits.device())?, 0.0)
}
