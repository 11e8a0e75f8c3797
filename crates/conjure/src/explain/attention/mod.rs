//! A Transformer's attention as one page that needs no network: "Attention Is All You Need", Vaswani et al. 2017,
//! <https://arxiv.org/abs/1706.03762>, sections 3.2.1 and 3.2.2.
//!
//! A [`Subject`] is a model that can be run on a text before a probe. [`explain`] runs it, on a second text or with words
//! hidden and heads switched off as well, and returns an [`Explanation`]: q, k and v of the layers, so that whoever reads it
//! can compute every number again, and what the model itself came to, so that it can be compared. [`html`] and
//! [`svg`] write it, and [`json`] and [`csv`] what [`select`] selects of it.

mod bias;
mod data;
mod model;
mod recompute;
mod record;
mod request;
mod word;
mod write;

pub use bias::Bias;
pub use data::{
    Array, Attention, Candidate, Change, Explanation, Focus, Kind, Layer, Prediction, Recorded, Role, Run, Sequence,
    Thumbnails, Token, Whole,
};
pub use model::{Outcome, Subject, open, open_for};
pub use recompute::{Agreement, Row, agreement, row, weights};
pub use request::{Request, explain};
pub use write::{MAX_WEIGHTS, Selected, Selection, csv, html, json, select, svg};
