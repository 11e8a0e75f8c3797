//! How well a language model predicts a text.
//!
//! A window slides over the text, as in <https://huggingface.co/docs/transformers/perplexity>: it reads `context` tokens and
//! moves on by `stride`. In each window those tokens count that no window before has scored, so that every token counts once,
//! with at least `context - stride` tokens before it. (That page weighs a window by one token less than it scores; here every
//! token weighs the same.) The first token of the text, and with `stride = context` that of each window, has nothing before it
//! and does not count.

use crate::generate::text::LanguageModel;
use crate::{Error, Result};
use serde::Serialize;
use std::time::Instant;

/// Positions whose scores are computed at once.
const SCORED: usize = 64;
/// The window where none is asked for, or what the model reads if that is less.
pub const USUAL_CONTEXT: usize = 1024;

/// How a text is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Windows {
    /// Tokens that are read at once.
    pub context: usize,
    /// Tokens by which a window moves on; `1..=context`.
    pub stride: usize,
}

impl Windows {
    /// As asked for; by default [`USUAL_CONTEXT`] and half of the context.
    ///
    /// # Errors
    /// More than the model reads at once, fewer than two tokens; a stride of 0 or more than the context.
    pub fn new(model: &LanguageModel, context: Option<usize>, stride: Option<usize>) -> Result<Self> {
        let most = model.context();
        let context = context.unwrap_or_else(|| USUAL_CONTEXT.min(most));
        if !(2..=most).contains(&context) {
            return Err(Error::request(format!("a window of {context} tokens: the model reads 2 to {most} at once")));
        }
        let stride = stride.unwrap_or((context / 2).max(1));
        if !(1..=context).contains(&stride) {
            return Err(Error::request(format!("a stride of {stride} tokens leaves some out or never ends"))
                .with_help(format!("1 to the window's {context}; less is slower and kinder to the model")));
        }
        Ok(Self { context, stride })
    }
}

/// What was measured on one text or on several together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Name of the text.
    pub name: String,
    /// Tokens of the text, those that the tokenizer puts around it included.
    pub tokens: usize,
    /// Tokens that count.
    pub scored: usize,
    /// Bytes of text that these stand for; marks have none.
    pub bytes: usize,
    /// Sum of `-ln p` over the tokens that count.
    pub nll: f64,
    /// `exp(nll / scored)`. Models with different tokenizers cannot be compared by it.
    pub perplexity: f64,
    /// `nll / ln 2 / bytes`. Models with different tokenizers can be compared by it.
    pub bits_per_byte: f64,
    /// Tokens that were read, many of them more than once.
    pub read: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Tokens read in a second.
    pub tokens_per_second: f64,
}

impl Perplexity {
    fn new(name: String, [tokens, scored, bytes, read]: [usize; 4], nll: f64, seconds: f64) -> Self {
        Self {
            name,
            tokens,
            scored,
            bytes,
            nll,
            perplexity: (nll / scored as f64).exp(),
            bits_per_byte: nll / std::f64::consts::LN_2 / bytes as f64,
            read,
            seconds,
            tokens_per_second: read as f64 / seconds.max(1e-9),
        }
    }

    /// Several texts as one.
    pub fn together(all: &[Self]) -> Self {
        let sum = |of: fn(&Self) -> usize| all.iter().map(of).sum();
        let counts = [sum(|p| p.tokens), sum(|p| p.scored), sum(|p| p.bytes), sum(|p| p.read)];
        let (nll, seconds) = (all.iter().map(|p| p.nll).sum(), all.iter().map(|p| p.seconds).sum());
        Self::new("all".to_owned(), counts, nll, seconds)
    }
}

/// How the texts became tokens, in words.
pub fn tokenisation(model: &LanguageModel) -> Result<String> {
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode("a", true)?;
    let own = tokenizer.encode("a", false)?;
    let begins = ids.len() > own.len() && ids.first() != own.first();
    let around = match (begins, ids.len() > own.len()) {
        (true, _) => "each text after the token that begins a text",
        (false, true) => "with what the tokenizer puts around a text",
        _ => "nothing added to the text",
    };
    Ok(format!("the model's own tokenizer of {} tokens, {around}", tokenizer.vocabulary_size()))
}

/// Measures `text`, called `name` in the result. `go_on` is told the tokens done of all, and ends the work by `false`.
///
/// # Errors
/// No tokenizer, fewer than two tokens; [`Error::Cancelled`]; scores that are no numbers.
pub fn perplexity(
    model: &LanguageModel,
    name: &str,
    text: &str,
    windows: Windows,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Perplexity> {
    let began = Instant::now();
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode(text, true)?;
    if ids.len() < 2 {
        return Err(Error::file(name, format!("has {} tokens; perplexity needs 2 or more", ids.len())));
    }
    let length = |id: u32| match tokenizer.is_special(id) {
        true => 0,
        false => tokenizer.token_bytes(id).map_or(0, |bytes| bytes.len()),
    };
    let (mut nll, mut scored, mut bytes, mut read) = (0.0, 0, 0, 0);
    let (mut begin, mut previous) = (0, 0);
    loop {
        let end = (begin + windows.context).min(ids.len());
        // The first token of a window has nothing before it.
        let first = previous.max(begin + 1);
        read += end - begin;
        if first < end {
            nll += surprise(model, &ids[begin..end], first - begin)?;
            scored += end - first;
            bytes += ids[first..end].iter().map(|id| length(*id)).sum::<usize>();
        }
        if !go_on(end, ids.len()) {
            return Err(Error::Cancelled);
        }
        if end == ids.len() {
            break;
        }
        previous = end;
        begin += windows.stride;
    }
    if bytes == 0 {
        return Err(Error::file(name, "has no token that stands for text"));
    }
    Ok(Perplexity::new(name.to_owned(), [ids.len(), scored, bytes, read], nll, began.elapsed().as_secs_f64()))
}

/// The sum of `-ln p` of the tokens of a window from number `first` on, at least 1.
fn surprise(model: &LanguageModel, ids: &[u32], first: usize) -> Result<f64> {
    let hidden = model.hidden_states(ids)?; // (1, time, hidden_size)
    let mut sum = 0.0;
    for from in (first..ids.len()).step_by(SCORED) {
        let count = SCORED.min(ids.len() - from);
        let some = hidden.narrow(1, from - 1, count)?.contiguous()?; // (1, count, hidden_size)
        let logits = model.decoder().logits(&some)?.squeeze(0)?.to_vec2::<f32>()?;
        for (logits, id) in logits.iter().zip(&ids[from..]) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            sum += total.ln() - f64::from(logits.get(*id as usize).copied().unwrap_or(f32::NAN) - largest);
        }
    }
    if sum.is_nan() {
        return Err(Error::failure("the model's scores are no numbers")
            .with_help("the weights are damaged, or of a kind that the model was not made for"));
    }
    Ok(sum)
}
