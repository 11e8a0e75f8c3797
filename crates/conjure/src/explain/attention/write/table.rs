//! Numbers for other programs.

use super::super::{Explanation, Role, row};
use super::{Selection, select};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

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
/// Too many weights; a layer that was not kept.
pub fn csv(explanation: &Explanation, selection: Selection) -> Result<String> {
    let mut out = String::from("run,attention,layer,head,query,query_token,key,key_token,weight,value_norm\n");
    for (run, attention, n, layer, whole, heads) in select(explanation, selection)? {
        let (queries, keys) = (&run.sequences[attention.queries].tokens, &run.sequences[attention.keys].tokens);
        for head in heads {
            for (i, query) in queries.iter().enumerate() {
                for (j, weight) in row(layer, whole, head, i).weights.iter().enumerate() {
                    let norm = layer.norms.data[head * layer.source + j];
                    let (role, name) = (role(run.role), &attention.name);
                    let (query, key) = (quoted(&query.text), quoted(&keys[j].text));
                    // Writing to a string cannot fail.
                    let _ = writeln!(out, "{role},{name},{n},{head},{i},{query},{j},{key},{weight:.9},{norm}");
                }
            }
        }
    }
    Ok(out)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// The tokens, and per layer and head the weights `[query][key]`, the weighted sums of the values `[query][feature]` and the
/// values' norms; what the model itself recorded agrees with them to rounding.
///
/// # Errors
/// Too many weights; a layer that was not kept.
pub fn json(explanation: &Explanation, selection: Selection) -> Result<String> {
    let mut runs: Vec<Value> = Vec::new();
    for (n, run) in explanation.runs.iter().enumerate() {
        let mut value = json!({
            "role": run.role, "text": run.text, "change": run.change, "sequences": run.sequences,
            "predictions": run.predictions, "output_cosines": run.output_cosines,
            "embedding_cosine": run.embedding_cosine,
        });
        let attentions = run.attentions.iter().map(|attention| {
            json!({
                "name": attention.name, "kind": attention.kind, "queries": attention.queries, "keys": attention.keys,
                "layers": [],
            })
        });
        value["attentions"] = attentions.collect();
        runs.push(value);
        debug_assert_eq!(runs.len(), n + 1);
    }
    for (run, attention, n, layer, whole, heads) in select(explanation, selection)? {
        let place = |x: *const _, all: &[_]| all.iter().position(|other| std::ptr::eq(other, x));
        let r = explanation.runs.iter().position(|other| std::ptr::eq(other, run)).unwrap_or(0);
        let a = place(attention, &run.attentions).unwrap_or(0);
        let mut each = Vec::new();
        for head in heads {
            let rows: Vec<_> = (0..layer.time).map(|i| row(layer, whole, head, i)).collect();
            let norms = &layer.norms.data[head * layer.source..][..layer.source];
            each.push(json!({
                "head": head,
                "weights": rows.iter().map(|row| &row.weights).collect::<Vec<_>>(),
                "sums": rows.iter().map(|row| &row.sum).collect::<Vec<_>>(),
                "value_norms": norms,
            }));
        }
        let layer = json!({
            "layer": n, "path": layer.path, "scale": layer.scale, "soft_cap": layer.soft_cap, "heads": each,
        });
        if let Some(layers) = runs[r]["attentions"][a]["layers"].as_array_mut() {
            layers.push(layer);
        }
    }
    let mut whole = Map::new();
    whole.insert("format".into(), explanation.format.into());
    whole.insert("model".into(), explanation.model.as_str().into());
    whole.insert("family".into(), explanation.family.as_str().into());
    whole.insert("runs".into(), runs.into());
    serde_json::to_string(&whole).map_err(|e| Error::failure(format!("cannot write JSON: {e}")))
}
