//! The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"): what each layer would say comes next, if it were
//! the last. Every layer's output is read through the model's final norm and head.
//!
//! Early layers need not work in the final layer's terms, so that what the lens says of them may mean little (Belrose et al.
//! 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens").

use super::odds::Alternative;
use crate::generate::text::LanguageModel;
use conjure_core::probe::{Quantity, Recorder};
use conjure_core::sampling::text::{log_softmax, rank, top};
use conjure_core::{Device, Error, Result, Tensor};
use serde::Serialize;

/// Longest text: each position has a row of the vocabulary for each layer.
pub const MAX_TOKENS: usize = 2_048;

/// What one layer says comes after a position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// The layer, from 0.
    pub layer: usize,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<Alternative>,
    /// The place, from 1, of the token that the whole model finds likeliest.
    pub rank: usize,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// A position, and what the layers say comes after it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Position {
    /// The token there.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// One entry for each layer, the first layer first.
    pub layers: Vec<View>,
}

/// A text seen through the lens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lens {
    /// One entry for each token.
    pub tokens: Vec<Position>,
}

impl Lens {
    /// Reads `ids` and asks each layer for the `alternatives` likeliest tokens after each.
    ///
    /// # Errors
    /// No ids, or ids beyond the vocabulary; more than [`MAX_TOKENS`] or than the model reads at once; scores that are no
    /// numbers.
    pub fn new(model: &LanguageModel, ids: &[u32], alternatives: usize) -> Result<Self> {
        super::odds::check_alternatives(alternatives)?;
        model.check(ids)?;
        if ids.is_empty() || ids.len() > MAX_TOKENS {
            return Err(Error::request(format!("the text has {} tokens, not 1 to {MAX_TOKENS}", ids.len()))
                .with_help("give a shorter text"));
        }
        let decoder = model.decoder();
        let layers = decoder.config().num_hidden_layers();
        let paths: Vec<String> = (0..layers).map(|layer| format!("model.layers.{layer}")).collect();
        let mut recorder = Recorder::new(|path: &str, quantity| {
            quantity == Quantity::Activation && paths.iter().any(|wanted| wanted == path)
        });
        let row = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?; // (1, time)
        decoder.hidden_states(&row, None, &mut recorder)?;
        if recorder.records.len() != layers {
            return Err(Error::failure(format!("{} of {layers} layers were seen", recorder.records.len())));
        }
        // A layer at a time, and a position at a time, as all scores together would take too much memory. The last layer,
        // which is the model's own voice, comes first.
        let mut expected = Vec::with_capacity(ids.len());
        let mut views: Vec<Vec<View>> = vec![Vec::new(); ids.len()];
        for (layer, (_, _, states)) in recorder.records.iter().enumerate().rev() {
            for (at, views) in views.iter_mut().enumerate() {
                let state = states.narrow(1, at, 1)?.contiguous()?; // (1, 1, hidden_size)
                let logits = decoder.logits(&state)?.flatten_all()?.to_vec1::<f32>()?; // (vocabulary)
                if logits.iter().any(|l| l.is_nan()) {
                    return Err(Error::failure(format!("layer {layer}'s scores are no numbers"))
                        .with_help("the weights are damaged, or of a kind that the model was not made for"));
                }
                let logprobs = log_softmax(&logits);
                if layer + 1 == layers {
                    expected.push(top(&logits, 1)[0]);
                }
                let alternative =
                    |id: u32| Alternative { id, text: model.token_text(id), logprob: logprobs[id as usize] };
                views.push(View {
                    layer,
                    top: top(&logprobs, alternatives).into_iter().map(alternative).collect(),
                    rank: rank(&logits, expected[at]),
                    logprob: logprobs[expected[at] as usize],
                });
            }
        }
        let position = |(&id, mut layers): (&u32, Vec<View>)| {
            layers.reverse();
            Position { id, text: model.token_text(id), layers }
        };
        Ok(Self { tokens: ids.iter().zip(views).map(position).collect() })
    }
}
