//! One head as a drawing: lines between words as in tensor2tensor, and the heat map beside them.

use super::super::{Explanation, weights};
use super::page::escape;
use super::{Part, Selection, select};
use crate::{Error, Result};
use std::fmt::Write as _;

/// Longer texts make drawings that nothing opens.
const MAX_TOKENS: usize = 300;
/// Weights below are not drawn.
const FAINT: f64 = 0.005;
const LINE: usize = 20;
const COLUMN: usize = 130;
const GAP: usize = 180;
const CELL: usize = 16;

/// Refuses to draw this many tokens.
pub(in super::super) fn check_tokens(tokens: usize) -> Result<()> {
    if tokens <= MAX_TOKENS {
        return Ok(());
    }
    Err(Error::request(format!("a drawing of {tokens} tokens is too large; at most {MAX_TOKENS}"))
        .with_help("shorten the text, or use the page, which draws what is visible"))
}

/// The chosen head of the first kind of attention of the original; that which is shown first unless given.
///
/// # Errors
/// A text of more than 300 tokens; a layer that was not kept.
pub fn svg(explanation: &Explanation, selection: Selection) -> Result<String> {
    let focus = explanation.focus;
    let selection = Selection {
        layer: Some(selection.layer.unwrap_or(focus.layer)),
        head: Some(selection.head.unwrap_or(focus.head)),
    };
    let selected = select(explanation, selection)?;
    let Some(Part { run, attention, number, layer, whole, heads }) = selected.parts.first() else {
        return Err(Error::failure("the model has no attention to draw"));
    };
    let head = heads.start;
    let (queries, keys) = (&run.sequences[attention.queries].tokens, &run.sequences[attention.keys].tokens);
    let longest = queries.len().max(keys.len());
    check_tokens(longest)?;
    let rows = weights(layer, whole, head);
    let top = 40;
    let heat_x = 2 * COLUMN + GAP + 40 + COLUMN;
    let heat_y = top + COLUMN;
    let width = heat_x + keys.len() * CELL + 20;
    let height = (top + longest * LINE).max(heat_y + queries.len() * CELL) + 20;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"14\">Layer {number}, Head {head}, Attention: {}</text>\n",
        escape(&attention.name)
    );
    // Writing to a string cannot fail.
    let middle = |n: usize| top + n * LINE + LINE / 2;
    for (i, row) in rows.iter().enumerate() {
        for (j, weight) in row.iter().enumerate().filter(|(_, weight)| **weight >= FAINT) {
            let (x1, x2) = (COLUMN + 5, COLUMN + GAP - 5);
            let (y1, y2) = (middle(i), middle(j));
            let _ = writeln!(
                out,
                "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"#1f6feb\" stroke-width=\"2\" \
                 stroke-opacity=\"{weight:.3}\"/>"
            );
        }
    }
    let mut text = |x: usize, y: usize, anchor: &str, more: &str, text: &str| {
        let text = escape(text);
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\"{more}>{text}</text>");
    };
    for (i, token) in queries.iter().enumerate() {
        text(COLUMN, middle(i) + 4, "end", "", &token.text);
        text(heat_x - 6, heat_y + i * CELL + 12, "end", "", &token.text);
    }
    for (j, token) in keys.iter().enumerate() {
        text(COLUMN + GAP, middle(j) + 4, "start", "", &token.text);
        let (x, y) = (heat_x + j * CELL + 12, heat_y - 6);
        text(x, y, "start", &format!(" transform=\"rotate(-90 {x} {y})\""), &token.text);
    }
    for (i, row) in rows.iter().enumerate() {
        for (j, weight) in row.iter().enumerate().filter(|(_, weight)| **weight >= FAINT) {
            let (x, y) = (heat_x + j * CELL, heat_y + i * CELL);
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"#1f6feb\" \
                 fill-opacity=\"{weight:.3}\"><title>{} to {}: {weight:.4}</title></rect>",
                escape(&queries[i].text),
                escape(&keys[j].text)
            );
        }
    }
    out.push_str("</svg>\n");
    Ok(out)
}
