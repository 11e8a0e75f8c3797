//! What templates make of values: JSON of them, and variables that hold them.
//!
//! Lists of `minijinja` are put together lazily, and may hold each other. What a variable holds is therefore looked through when
//! it is set: of variables that each hold the last one twice, a few make a list that is longer than any memory, and whoever prints
//! it, or one that holds itself, would not come to an end.

use minijinja::value::ValueKind;
use minijinja::{ErrorKind, Value};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// What `tojson` may write.
const MAX_JSON_BYTES: usize = 16 << 20;
/// Lists within lists.
const MAX_DEPTH: usize = 64;
/// Items of one variable, lists within lists included.
const MAX_ITEMS: u64 = 1 << 20;
/// Items that are looked at for all variables that one conversation sets.
pub(super) const MAX_LOOKED_AT: u64 = 1 << 25;

type Result<T> = std::result::Result<T, minijinja::Error>;

fn wrong<T>(message: &str) -> Result<T> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// The value that a variable, or with `in_namespace` an attribute of a namespace, is set to: `value`, with a lazy list put
/// together. `left` counts down the items that may still be looked at.
///
/// # Errors
/// Too many items, too deep, or a namespace that might come to hold itself.
pub(super) fn kept(value: &Value, in_namespace: bool, left: &AtomicU64) -> Result<Value> {
    let may = left.load(Ordering::Relaxed).min(MAX_ITEMS);
    let mut look = Look { in_namespace, items: may };
    let value = look.through(value, 0);
    left.fetch_sub(may - look.items, Ordering::Relaxed);
    value
}

struct Look {
    in_namespace: bool,
    /// Items that may still be looked at.
    items: u64,
}

impl Look {
    fn through(&mut self, value: &Value, depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return wrong("a variable would hold lists that are too deep");
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = Vec::new();
                for item in value.try_iter()? {
                    self.count()?;
                    self.through(&item, depth + 1)?;
                    items.push(item);
                }
                Ok(if value.is_tuple() { value.clone() } else { Value::from(items) })
            }
            ValueKind::Map => {
                if self.in_namespace && is_namespace(value) {
                    return wrong("a namespace would hold a namespace");
                }
                for key in value.try_iter()? {
                    self.count()?;
                    self.through(&value.get_item(&key)?, depth + 1)?;
                }
                Ok(value.clone())
            }
            _ => Ok(value.clone()),
        }
    }

    fn count(&mut self) -> Result<()> {
        match self.items.checked_sub(1) {
            Some(items) => self.items = items,
            None => return wrong("variables would hold too much"),
        }
        Ok(())
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Python's `json.dumps(value, ensure_ascii=False)`.
pub(super) fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<()> {
    if depth > MAX_DEPTH || out.len() > MAX_JSON_BYTES {
        return wrong("tojson: the value is too deep or too long");
    }
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Undefined => return wrong("tojson: the value is not defined"),
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let _ = write!(out, "{value}");
        }
        ValueKind::Map => {
            out.push('{');
            let mut empty = true;
            for key in value.try_iter()? {
                out.push_str(if empty { "" } else { between });
                line(out, depth + 1);
                let name = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                out.push_str(&quoted(&name));
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { between });
                line(out, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(out, depth);
            }
            out.push(']');
        }
        _ => match value.as_str() {
            Some(text) => out.push_str(&quoted(text)),
            None => out.push_str(&quoted(&value.to_string())),
        },
    }
    Ok(())
}
