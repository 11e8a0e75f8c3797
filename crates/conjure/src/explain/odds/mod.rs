//! How likely a model finds each token of a text, from those before it.

mod page;
mod translator;

use crate::generate::text::{LanguageModel, Prompt};
use crate::model_folder;
use conjure_core::sampling::text::{log_softmax, rank, top};
use conjure_core::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use translator::Translator;

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
    /// The natural logarithm of its probability; `None` for a decoder's first token, which nothing comes before.
    pub logprob: Option<f32>,
    /// Its place when all tokens are ordered by probability, from 1; `None` where there is no probability.
    pub rank: Option<usize>,
    /// The likeliest tokens, likeliest first; none where there is no probability.
    pub top: Vec<Alternative>,
}

impl TokenOdds {
    /// How surprised the model is, in bits: `-log2 p`.
    pub fn bits(&self) -> Option<f64> {
        // Not minus zero, where the token was certain.
        self.logprob.map(|logprob| f64::from(-logprob).max(0.0) / std::f64::consts::LN_2)
    }

    /// The first token of a text, which nothing was expected of.
    fn first(id: u32, text: String) -> Self {
        Self { id, text, logprob: None, rank: None, top: Vec::new() }
    }

    /// The token `id` where the model gave these `logits (vocabulary)`; `text` writes tokens.
    fn new(id: u32, logits: &[f32], alternatives: usize, text: &dyn Fn(u32) -> String) -> Result<Self> {
        if logits.iter().any(|l| l.is_nan()) {
            return Err(Error::failure("the model's scores are no numbers")
                .with_help("the weights are damaged, or of a kind that the model was not made for"));
        }
        let logprobs = log_softmax(logits);
        let alternative = |id: u32| Alternative { id, text: text(id), logprob: logprobs[id as usize] };
        Ok(Self {
            id,
            text: text(id),
            logprob: logprobs.get(id as usize).copied(),
            rank: Some(rank(logits, id)),
            top: top(&logprobs, alternatives).into_iter().map(alternative).collect(),
        })
    }
}

/// A text with the odds of each token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Odds {
    /// One entry for each token: entry `i` is the model's prediction of token `i` from those before it, and from the source
    /// where the model has one.
    pub tokens: Vec<TokenOdds>,
    /// The language that a translator was to be told, and that it is neither told nor known to have.
    #[serde(skip)]
    pub unheard: Option<String>,
}

impl Odds {
    /// Reads `ids` and tells the odds of each, with the `alternatives` likeliest tokens.
    ///
    /// # Errors
    /// No ids, or ids beyond the vocabulary; more than the model reads at once; more alternatives than [`MAX_TOP`]; scores
    /// that are no numbers.
    pub fn new(model: &LanguageModel, ids: &[u32], alternatives: usize) -> Result<Self> {
        check_alternatives(alternatives)?;
        let Some(&first) = ids.first() else {
            return Err(Error::request("there are no tokens to tell the odds of").with_help("give a text"));
        };
        model.check(ids)?;
        let text = |id| model.token_text(id);
        let mut tokens = vec![TokenOdds::first(first, text(first))];
        // The scores after the last token are of one that is not there.
        model.scores(&ids[..ids.len() - 1], &mut |at, logits| {
            tokens.push(TokenOdds::new(ids[at + 1], logits, alternatives, &text)?);
            Ok(())
        })?;
        Ok(Self { tokens, unheard: None })
    }

    /// The mean surprise of the tokens in bits; `None` if only one is there.
    pub fn mean_bits(&self) -> Option<f64> {
        let bits: Vec<f64> = self.tokens.iter().filter_map(TokenOdds::bits).collect();
        (!bits.is_empty()).then(|| bits.iter().sum::<f64>() / bits.len() as f64)
    }
}

pub(super) fn check_alternatives(alternatives: usize) -> Result<()> {
    if alternatives > MAX_TOP {
        return Err(Error::request(format!("{alternatives} alternatives for each token, more than {MAX_TOP}"))
            .with_help("5 are usual"));
    }
    Ok(())
}

/// What an encoder-decoder might write for a text; nothing of it is for a decoder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target<'a> {
    /// The words, or their tokens.
    pub text: Option<&'a Prompt>,
    /// The language of what it reads, where the model is told that.
    pub from: Option<&'a str>,
    /// The language of the target, where the model is told that.
    pub to: Option<&'a str>,
}

/// The odds of `text`, read by the decoder in a folder or GGUF file; or, where the folder holds an encoder-decoder, those of
/// `target` when it reads `text`.
///
/// # Errors
/// An empty text; a target or a language for a decoder, or no target for an encoder-decoder; a language that it does not know,
/// or none where it is told one; those of [`LanguageModel::open`] and [`Odds::new`].
pub fn of_model(path: &Path, text: &Prompt, target: &Target<'_>, alternatives: usize) -> Result<Odds> {
    check_alternatives(alternatives)?;
    super::check_text(text)?;
    let config = if path.is_dir() { model_folder::read_text(&path.join("config.json"))? } else { None };
    // What else is wrong with the config is told by those who read all of it.
    let config: Value = config.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    if config["is_encoder_decoder"] == true || matches!(config["model_type"].as_str(), Some("marian" | "t5")) {
        let written = target.text.ok_or_else(|| {
            Error::request("the model reads one text and writes another, and the other is missing")
                .with_help("name it with --target TEXT or --target-tokens IDS")
        })?;
        return Translator::open(path)?.odds(text, written, (target.from, target.to), alternatives);
    }
    if target.from.is_some() || target.to.is_some() {
        return Err(Error::request("languages are for translators; this model goes on with a text")
            .with_help("leave out --from and --to, or name a translator with --model"));
    }
    if target.text.is_some() {
        return Err(Error::request("the model goes on with a text, and has no source and target")
            .with_help("leave out --target, or choose an encoder-decoder"));
    }
    let model = LanguageModel::open(path)?;
    Odds::new(&model, &model.encode(text)?, alternatives)
}
