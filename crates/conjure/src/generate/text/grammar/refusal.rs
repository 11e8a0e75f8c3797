//! What `llguidance` says of a grammar, in words for its author.

use super::Grammar;
use super::limits::{FUEL, MAX_ALTERNATIVES, MAX_NESTING};
use conjure_core::Error;

/// A grammar that is not taken for this reason.
pub fn refusal(grammar: &Grammar, reason: &str) -> Error {
    let is_schema = matches!(grammar, Grammar::JsonSchema(_));
    let what = if is_schema { "the schema" } else { "the grammar" };
    let line = one_line(reason);
    let has = |words: &[&str]| words.iter().any(|words| reason.contains(words));
    let smaller = "ask for fewer or shorter alternatives, patterns and repetitions";
    let (why, help) = if has(&["Current row has", "Too many items"]) {
        (format!("more than {MAX_ALTERNATIVES} alternatives are open at one place"), smaller)
    } else if has(&["number of symbols", "u16::MAX", "CSymIdx", "schema too large"]) {
        ("it has more parts than the matcher takes, some 65000".to_owned(), smaller)
    } else if has(&[
        "configuration (grammar) too big",
        "lexer_fuel",
        "fuel exhausted",
        "too many expressions",
        "too many states",
    ]) {
        (format!("its texts and patterns take more than {FUEL} steps to prepare"), smaller)
    } else if has(&["too deeply nested"]) {
        (format!("it is nested deeper than {MAX_NESTING} parentheses"), "give the inner parts names of their own")
    } else if reason.starts_with("panic") {
        ("the matcher fails at it".to_owned(), "leave out parts of it to find which it cannot take")
    } else if let Some(keys) = line.strip_prefix("Unimplemented keys: ") {
        let keys = keys.trim_matches(['[', ']']);
        (format!("it has {keys}, to which a text cannot be held"), "leave that out, and check the text afterwards")
    } else if let Some(format) = line.strip_prefix("Unknown format: ") {
        (
            format!("the format {format} is not known"),
            "known are date-time, date, time, duration, email, hostname, ipv4, ipv6, uuid and uri",
        )
    } else if has(&["regex parse error:"]) {
        (line, "patterns are those of Rust's regex crate: without look-around and references back")
    } else if has(&["$ref's"]) {
        (line, "put what it refers to into the schema, under $defs, and write #/$defs/NAME")
    } else if has(&["nsatisfiable", "schema is false"]) {
        (line, "no text can match: see whether one part forbids what another asks for")
    } else if is_schema {
        (line, "schemas are those of draft 2020-12")
    } else {
        (line, "it is read as Lark with the rule start, or as GBNF with the rule root where it has ::=")
    };
    Error::request(format!("{what} cannot be used: {why}")).with_help(help)
}

/// A text that cannot go on for this reason.
pub fn failure(reason: &str) -> Error {
    let line = one_line(reason);
    let help = if line.contains("items") || line.contains("lexer error") {
        "too much is possible here at once: simplify the grammar"
    } else {
        "the model's tokens may not be able to spell what it asks for"
    };
    Error::failure(format!("the grammar cannot go on here: {line}")).with_help(help)
}

/// Reasons come with the place in the grammar drawn below, and those of regular expressions with the pattern above.
fn one_line(reason: &str) -> String {
    let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("no reason given").trim_end_matches('.');
    let line = match first.strip_suffix("regex parse error:") {
        Some(before) => {
            let pattern = lines.next().unwrap_or_default();
            let error = lines.find_map(|line| line.strip_prefix("error: ")).unwrap_or("it is none");
            // Lark has the pattern before it.
            if before.is_empty() {
                format!("the pattern {}: {error}", short(pattern))
            } else {
                format!("{}: {error}", short(before.trim_end_matches([':', ' '])))
            }
        }
        None => first.to_owned(),
    };
    line.chars().take(300).collect()
}

fn short(text: &str) -> String {
    let cut: String = text.chars().take(100).collect();
    if cut.len() < text.len() { cut + "..." } else { cut }
}
