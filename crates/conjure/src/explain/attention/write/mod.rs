//! An explanation as a page, as numbers and as a drawing.

mod page;
mod svg;
mod table;

pub use page::html;
pub use svg::svg;
pub use table::{csv, json};

use super::{Attention, Explanation, Layer, Run, Whole};
use crate::{Error, Result};

/// What of an explanation is written; everything unless given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only this layer.
    pub layer: Option<usize>,
    /// Only this head.
    pub head: Option<usize>,
}

/// Tables with more numbers than this are refused.
const MAX_NUMBERS: usize = 20_000_000;

/// Everything that is selected: run, attention, its layer and that layer's number, and the heads.
type Selected<'a> = Vec<(&'a Run, &'a Attention, usize, &'a Layer, &'a Whole, std::ops::Range<usize>)>;

fn select(explanation: &Explanation, selection: Selection) -> Result<Selected<'_>> {
    let mut selected = Vec::new();
    let mut numbers = 0usize;
    for run in &explanation.runs {
        for attention in &run.attentions {
            for (n, layer) in attention.layers.iter().enumerate() {
                if selection.layer.is_some_and(|wanted| wanted != n) {
                    continue;
                }
                let Some(whole) = &layer.whole else {
                    return Err(Error::request(format!("layer {n} was not kept: the text is too long for all layers"))
                        .with_help("choose one with --layer"));
                };
                let heads = selection.head.map_or(0..layer.heads, |head| head..(head + 1).min(layer.heads));
                numbers = numbers.saturating_add(heads.len() * layer.time * layer.source);
                selected.push((run, attention, n, layer, whole, heads));
            }
        }
    }
    if numbers > MAX_NUMBERS {
        return Err(Error::request(format!("these are {numbers} weights; at most {MAX_NUMBERS} are written"))
            .with_help("choose with --layer and --head"));
    }
    Ok(selected)
}
