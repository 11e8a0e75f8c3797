//! How likely a model finds each token of a text, from those before it.

mod page;

use crate::generate::text::LanguageModel;
use conjure_core::sampling::text::{log_softmax, rank, top};
use conjure_core::{Error, Result};
use serde::Serialize;

pub use page::html;

/// Most alternatives told for a token.
pub const MAX_TOP: usize = 100;

/// A token that might stand somewhere.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alternative {
    /// Its id.
    pub id: u32,
    /// Its text; bytes that are no whole character as `<0xE5>`.
    pub text: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// A token of the text, and what the model expected in its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenOdds {
    /// Its id.
    pub id: u32,
    /// Its text; bytes that are no whole character as `<0xE5>`.
    pub text: String,
    /// The natural logarithm of its probability; `None` for the first, which nothing comes before.
    pub logprob: Option<f32>,
    /// Its place when all tokens are ordered by probability, from 1; `None` for the first.
    pub rank: Option<usize>,
    /// The likeliest tokens, likeliest first; none for the first.
    pub top: Vec<Alternative>,
}

impl TokenOdds {
    /// How surprised the model is, in bits: `-log2 p`.
    pub fn bits(&self) -> Option<f64> {
        // Not minus zero, where the token was certain.
        self.logprob.map(|logprob| f64::from(-logprob).max(0.0) / std::f64::consts::LN_2)
    }
}

/// A text with the odds of each token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Odds {
    /// One entry for each token: entry `i` is the model's prediction of token `i` from those before it.
    pub tokens: Vec<TokenOdds>,
}

impl Odds {
    /// Reads `ids` and tells the odds of each, with the `alternatives` likeliest tokens.
    ///
    /// # Errors
    /// No ids, or ids beyond the vocabulary; more than the model reads at once; more alternatives than [`MAX_TOP`]; scores
    /// that are no numbers.
    pub fn new(model: &LanguageModel, ids: &[u32], alternatives: usize) -> Result<Self> {
        if alternatives > MAX_TOP {
            return Err(Error::request(format!("{alternatives} alternatives for each token, more than {MAX_TOP}"))
                .with_help("5 are usual"));
        }
        let Some(&first) = ids.first() else {
            return Err(Error::request("there are no tokens to tell the odds of").with_help("give a text"));
        };
        let text = |id| model.token_text(id);
        let mut tokens = vec![TokenOdds { id: first, text: text(first), logprob: None, rank: None, top: Vec::new() }];
        // The scores after the last token are of one that is not there.
        model.scores(&ids[..ids.len() - 1], &mut |at, logits| {
            if logits.iter().any(|l| l.is_nan()) {
                return Err(Error::failure(format!("the model's scores are no numbers after {} tokens", at + 1))
                    .with_help("the weights are damaged, or of a kind that the model was not made for"));
            }
            let logprobs = log_softmax(logits);
            let id = ids[at + 1];
            let alternative = |id: u32| Alternative { id, text: text(id), logprob: logprobs[id as usize] };
            tokens.push(TokenOdds {
                id,
                text: text(id),
                logprob: logprobs.get(id as usize).copied(),
                rank: Some(rank(logits, id)),
                top: top(&logprobs, alternatives).into_iter().map(alternative).collect(),
            });
            Ok(())
        })?;
        Ok(Self { tokens })
    }

    /// The mean surprise of the tokens in bits; `None` if only one is there.
    pub fn mean_bits(&self) -> Option<f64> {
        let bits: Vec<f64> = self.tokens.iter().filter_map(TokenOdds::bits).collect();
        (!bits.is_empty()).then(|| bits.iter().sum::<f64>() / bits.len() as f64)
    }
}
