//! What happens while a text is made, and the text put together from it.

use serde::Serialize;

/// A token that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that may be shown now; it may belong to tokens before, and be empty while something is held back.
    pub text: String,
    /// The logarithm of its probability as the model gave it, before all filters; asked for by
    /// [`super::TextRequest::logprobs`].
    pub logprob: Option<f32>,
    /// Its place among all tokens by probability, from 1; beside [`Self::logprob`].
    pub rank: Option<usize>,
    /// The likeliest tokens and their logarithms of probability.
    pub top: Vec<(u32, f32)>,
    /// Whether it was not chosen but only closes what a grammar has open.
    pub closing: bool,
}

/// Why the text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    End,
    /// A stop string came.
    Stop(String),
    /// As many tokens as asked for.
    Length,
    /// The model's context is full.
    Context,
    /// Nothing more matches the grammar.
    Grammar,
    /// There was no more room, and what the grammar has open could not be closed: the text does not match.
    Open,
    /// The user stopped it.
    Cancelled,
}

impl Finish {
    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Stop(_) => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Grammar => "grammar",
            Self::Open => "open",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How much was done in which time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that had been read before.
    pub reused_tokens: usize,
    /// Those of them that were read now: the others, or fewer if reading was ended.
    pub read_tokens: usize,
    /// Seconds to read them.
    pub prompt_seconds: f64,
    /// Tokens that the model generated.
    pub tokens: usize,
    /// Seconds for them, without reading the prompt.
    pub seconds: f64,
    /// Tokens in the model's memory.
    pub context_used: usize,
    /// Tokens that it can hold.
    pub context: usize,
}

impl Stats {
    /// Tokens of the prompt read per second; 0 if none were.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        per_second(self.read_tokens, self.prompt_seconds)
    }

    /// Tokens generated per second; 0 if none were.
    pub fn tokens_per_second(&self) -> f64 {
        per_second(self.tokens, self.seconds)
    }
}

fn per_second(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// What happens in a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// So many of the prompt's ids are read.
    Prompt {
        /// Read or known from before.
        done: usize,
        /// All.
        of: usize,
    },
    /// A token.
    Token(Token),
    /// The end; no event follows.
    End {
        /// Text that was held back as it might have become a stop string or a character.
        rest: String,
        /// Why.
        finish: Finish,
        /// How fast.
        stats: Stats,
    },
}

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Every id, also one that ended the text.
    pub ids: Vec<u32>,
    /// The text, without a stop string.
    pub text: String,
    /// The tokens, with probabilities if asked for. Empty from beam search.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub finish: Finish,
    /// How fast.
    pub stats: Stats,
}

/// A text put together from its events.
#[derive(Debug, Default)]
pub(super) struct Text {
    text: String,
    tokens: Vec<Token>,
}

impl Text {
    /// Adds what an event tells; the whole text with the last.
    pub fn add(&mut self, event: Event) -> Option<Generated> {
        match event {
            Event::Prompt { .. } => None,
            Event::Token(token) => {
                self.text.push_str(&token.text);
                self.tokens.push(token);
                None
            }
            Event::End { rest, finish, stats } => {
                let Self { mut text, tokens } = std::mem::take(self);
                text.push_str(&rest);
                Some(Generated { ids: tokens.iter().map(|token| token.id).collect(), text, tokens, finish, stats })
            }
        }
    }
}
