//! Numbers for other programs, computed as they are written: a text of some length has more of them than memory has room for.

use super::super::{Attention, Role, Row, Run, row};
use super::{Part, Selected};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use std::cell::RefCell;
use std::io::{Result, Write};

fn role(role: Role) -> &'static str {
    match role {
        Role::Original => "original",
        Role::Compared => "compared",
        Role::Changed => "changed",
    }
}

/// One line per weight: `run,attention,layer,head,query,query_token,key,key_token,weight,value_norm`. The norm is that of the
/// key's value after the head's part of the output projection; weight times norm is Kobayashi's measure.
///
/// # Errors
/// Those of `out`.
pub fn csv(selected: &Selected<'_>, out: &mut dyn Write) -> Result<()> {
    out.write_all(b"run,attention,layer,head,query,query_token,key,key_token,weight,value_norm\n")?;
    for part in &selected.parts {
        let Part { run, attention, layer, .. } = part;
        let quoted_tokens = |n: usize| run.sequences[n].tokens.iter().map(|token| quoted(&token.text));
        let keys: Vec<String> = quoted_tokens(attention.keys).collect();
        for head in part.heads.clone() {
            for (i, query) in quoted_tokens(attention.queries).enumerate() {
                let start = format!("{},{},{},{head},{i},{query}", role(run.role), attention.name, part.number);
                for (j, weight) in part.row(head, i).weights.iter().enumerate() {
                    let norm = layer.norms.data[head * layer.source + j];
                    writeln!(out, "{start},{j},{},{weight:.9},{norm}", keys[j])?;
                }
            }
        }
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// The tokens, and per layer and head the weights `[query][key]`, the weighted sums of the values `[query][feature]` and the
/// values' norms; what the model itself recorded agrees with them to rounding.
///
/// # Errors
/// Those of `out`.
pub fn json(selected: &Selected<'_>, out: &mut dyn Write) -> Result<()> {
    Ok(serde_json::to_writer(out, selected)?)
}

/// A list whose entries are made when their turn comes.
struct Each<F>(F);

impl<I: Iterator<Item: Serialize>, F: Fn() -> I> Serialize for Each<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

impl Serialize for Selected<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let all = self.explanation;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("format", all.format)?;
        map.serialize_entry("model", &all.model)?;
        map.serialize_entry("family", &all.family)?;
        map.serialize_entry("runs", &Each(|| all.runs.iter().map(|run| Numbers { run, parts: &self.parts })))?;
        map.end()
    }
}

/// A run with its numbers.
struct Numbers<'a> {
    run: &'a Run,
    parts: &'a [Part<'a>],
}

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Self { run, parts } = *self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &run.role)?;
        map.serialize_entry("text", &run.text)?;
        map.serialize_entry("change", &run.change)?;
        map.serialize_entry("sequences", &run.sequences)?;
        map.serialize_entry("predictions", &run.predictions)?;
        map.serialize_entry("output_cosines", &run.output_cosines)?;
        map.serialize_entry("embedding_cosine", &run.embedding_cosine)?;
        let of_kind = |attention| Kinds { attention, parts };
        map.serialize_entry("attentions", &Each(|| run.attentions.iter().map(of_kind)))?;
        map.end()
    }
}

/// A kind of attention with its numbers.
struct Kinds<'a> {
    attention: &'a Attention,
    parts: &'a [Part<'a>],
}

impl Serialize for Kinds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Self { attention, parts } = *self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &attention.name)?;
        map.serialize_entry("kind", &attention.kind)?;
        map.serialize_entry("queries", &attention.queries)?;
        map.serialize_entry("keys", &attention.keys)?;
        let own = |part: &&Part<'_>| std::ptr::eq(part.attention, attention);
        map.serialize_entry("layers", &Each(|| parts.iter().filter(own)))?;
        map.end()
    }
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let layer = self.layer;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("layer", &self.number)?;
        map.serialize_entry("path", &layer.path)?;
        map.serialize_entry("scale", &layer.scale)?;
        map.serialize_entry("soft_cap", &layer.soft_cap)?;
        map.serialize_entry("heads", &Each(|| self.heads.clone().map(|head| OneHead { part: self, head })))?;
        map.end()
    }
}

/// A head with its numbers.
struct OneHead<'a> {
    part: &'a Part<'a>,
    head: usize,
}

impl Serialize for OneHead<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Self { part, head } = *self;
        let source = part.layer.source;
        // A row has both, and its weights go first.
        let sums = RefCell::new(Vec::with_capacity(part.layer.time));
        let weights = |i| {
            let Row { weights, sum, .. } = part.row(head, i);
            sums.borrow_mut().push(sum);
            weights
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("head", &head)?;
        map.serialize_entry("weights", &Each(|| (0..part.layer.time).map(weights)))?;
        map.serialize_entry("sums", &sums.into_inner())?;
        map.serialize_entry("value_norms", &part.layer.norms.data[head * source..][..source])?;
        map.end()
    }
}

impl Part<'_> {
    fn row(&self, head: usize, i: usize) -> Row {
        row(self.layer, self.whole, head, i)
    }
}
