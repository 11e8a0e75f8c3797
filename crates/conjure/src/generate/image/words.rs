//! From words to what the U-Net is told.

use super::request::ImageRequest;
use crate::tokens::ClipTokenizer;
use crate::tokens::prompt::{Chunk, Prompt, apply_weights, ids_tensor};
use conjure_core::probe::NoProbe;
use conjure_core::{Result, Tensor};
use conjure_models::stable_diffusion::{Prompt as Embedded, StableDiffusion};

/// The tokenizers of a model: SDXL has two, which share a vocabulary but not the padding.
pub(crate) struct Tokenizers {
    pub first: ClipTokenizer,
    pub second: Option<ClipTokenizer>,
}

/// The embedded prompt of a request for each picture of the batch; with `guided`, the negative prompt's come before.
/// Prompts longer than the encoders' window take several windows, joined along time.
///
/// # Errors
/// A prompt that is too long; a `clip_skip` beyond the encoder's layers.
pub(super) fn embed(
    model: &StableDiffusion,
    tokenizers: &Tokenizers,
    request: &ImageRequest,
    guided: bool,
) -> Result<Embedded> {
    let prompt = Prompt::parse(&request.prompt)?;
    let negative = Prompt::parse(&request.negative)?;
    // The windows of both encoders. Without guidance the negative prompt is read, so that its faults are told, but unused.
    let pair = |tokenizer: &ClipTokenizer| match guided {
        true => prompt.encode_pair(&negative, tokenizer),
        false => Ok((prompt.encode(tokenizer)?, Vec::new())),
    };
    let first = pair(&tokenizers.first)?;
    let second = tokenizers.second.as_ref().map(pair).transpose()?;
    let positive = windows(model, &first.0, second.as_ref().map(|pair| &pair.0[..]), request.clip_skip)?;
    let positive_batch = repeated(&positive, request.batch)?;
    if !guided {
        return Ok(positive_batch);
    }
    let negative = if request.negative.is_empty() && model.config().force_zeros_for_empty_prompt {
        positive.zeros_like()?
    } else {
        // As in diffusers, clip_skip is the prompt's: the negative prompt keeps all layers.
        windows(model, &first.1, second.as_ref().map(|pair| &pair.1[..]), 0)?
    };
    repeated(&negative, request.batch)?.cat(&positive_batch)
}

/// One text: hidden states `(1, time, features)`, pooled from its first window.
fn windows(model: &StableDiffusion, first: &[Chunk], second: Option<&[Chunk]>, clip_skip: usize) -> Result<Embedded> {
    let ids = ids_tensor(first, model.device())?;
    let ids_2 = second.map(|chunks| ids_tensor(chunks, model.device())).transpose()?;
    let embedded = model.encode_prompt(&ids, ids_2.as_ref(), clip_skip, &mut NoProbe)?;
    let hidden = apply_weights(&embedded.hidden_states, first)?; // (windows, window, features)
    let (windows, window, features) = hidden.dims3()?;
    Ok(Embedded {
        hidden_states: hidden.reshape((1, windows * window, features))?,
        pooled: embedded.pooled.map(|pooled| pooled.narrow(0, 0, 1)).transpose()?,
    })
}

fn repeated(prompt: &Embedded, batch: usize) -> Result<Embedded> {
    let repeat = |x: &Tensor| x.broadcast_as([&[batch], &x.dims()[1..]].concat())?.contiguous();
    Ok(Embedded {
        hidden_states: repeat(&prompt.hidden_states)?,
        pooled: prompt.pooled.as_ref().map(repeat).transpose()?,
    })
}
