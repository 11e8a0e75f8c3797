//! An explanation as a page, as numbers and as a drawing.

mod page;
mod svg;
mod table;

pub use page::html;
pub use svg::svg;
pub use table::{csv, json};

pub(super) use svg::check_tokens;

use super::{Attention, Explanation, Layer, Run, Whole};
use crate::{Error, Result};
use std::ops::Range;

/// What of an explanation is written; everything unless given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only this layer.
    pub layer: Option<usize>,
    /// Only this head.
    pub head: Option<usize>,
}

/// Tables with more weights than this are refused: as CSV they have a gigabyte.
pub const MAX_WEIGHTS: usize = 20_000_000;

/// What is selected of an explanation.
pub struct Selected<'a> {
    explanation: &'a Explanation,
    parts: Vec<Part<'a>>,
}

/// The heads of a layer.
struct Part<'a> {
    run: &'a Run,
    attention: &'a Attention,
    /// The layer's number.
    number: usize,
    layer: &'a Layer,
    whole: &'a Whole,
    heads: Range<usize>,
}

/// Selects what is to be written as a table.
///
/// # Errors
/// More weights than [`MAX_WEIGHTS`]; a layer that was not kept.
pub fn select(explanation: &Explanation, selection: Selection) -> Result<Selected<'_>> {
    let mut parts = Vec::new();
    let mut weights = 0usize;
    for run in &explanation.runs {
        for attention in &run.attentions {
            for (number, layer) in attention.layers.iter().enumerate() {
                if selection.layer.is_some_and(|wanted| wanted != number) {
                    continue;
                }
                let Some(whole) = &layer.whole else { return Err(not_kept(number)) };
                let heads = selection.head.map_or(0..layer.heads, |head| head..(head + 1).min(layer.heads));
                weights = weights.saturating_add(heads.len() * layer.time * layer.source);
                parts.push(Part { run, attention, number, layer, whole, heads });
            }
        }
    }
    check_weights(weights, selection)?;
    Ok(Selected { explanation, parts })
}

/// Refuses to write this many weights.
pub(super) fn check_weights(weights: usize, selection: Selection) -> Result<()> {
    if weights <= MAX_WEIGHTS {
        return Ok(());
    }
    let help = match selection {
        Selection { layer: Some(_), head: Some(_) } => "shorten the text",
        _ => "choose one head with --layer and --head, or shorten the text",
    };
    Err(Error::request(format!("these are {weights} weights; at most {MAX_WEIGHTS} are written")).with_help(help))
}

/// The refusal of a layer whose numbers had no room.
pub(super) fn not_kept(layer: usize) -> Error {
    Error::request(format!("layer {layer} was not kept: the text is too long for all layers"))
        .with_help("choose one with --layer, or make room with --budget")
}
