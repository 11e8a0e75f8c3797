//! What is changed in a template before it is read: transformers' own tags, and what variables are set to.

/// The filter through which values go before a variable holds them.
pub(super) const KEPT: &str = "conjure_kept";
/// The same for attributes of namespaces.
pub(super) const KEPT_IN_NAMESPACE: &str = "conjure_kept_in_namespace";

/// The template with `{% generation %}`, by which transformers marks the assistant's words and which writes nothing, as a
/// condition that holds, and with values sent through the filters: of `{% set name = value %}`, and of what macros, callers and
/// recursive loops are given. Lines stay where they are; what is not understood stays as it is, for the parser to complain.
pub(super) fn prepared(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, at) = rest.split_at(start);
        out.push_str(before);
        rest = at;
        let length = match at.get(..2) {
            Some("{#") => at[2..].find("#}").map(|end| end + 4),
            Some("{{") => closed(at, "}}"),
            Some("{%") => closed(at, "%}"),
            _ => Some(1),
        };
        let Some(length) = length else { break };
        let (tag, after) = at.split_at(length);
        rest = after;
        if !tag.starts_with("{%") {
            out.push_str(tag);
            continue;
        }
        let inner = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        let name = inner.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        let told = inner[name.len()..].trim_start();
        match name {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            "set" => out.push_str(&checked(tag).unwrap_or_else(|| tag.to_owned())),
            "macro" => out.push_str(&with_checks(tag, told.split_once('(').map(|(_, list)| list))),
            "call" => out.push_str(&with_checks(tag, told.strip_prefix('('))),
            "for" if told.ends_with("recursive") => {
                let targets: Vec<&str> = told.split_whitespace().take_while(|word| *word != "in").collect();
                out.push_str(&with_checks(tag, Some(&targets.join(" ").replace(['(', ')'], " "))));
            }
            "raw" => {
                out.push_str(tag);
                let end = rest.find("endraw").unwrap_or(rest.len());
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

/// Bytes up to the end of `close`, in a tag that begins with two others: not the one in a string, nor in brackets, where `}}` ends
/// two of them.
fn closed(tag: &str, close: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (place, c) in outside_strings(tag).skip(2) {
        if depth == 0 && tag[place..].starts_with(close) {
            return Some(place + close.len());
        }
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Characters that stand in no string, with their places.
fn outside_strings(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut quote, mut escaped) = (None, false);
    text.char_indices().filter(move |(_, c)| match quote {
        Some(_) if escaped => {
            escaped = false;
            false
        }
        Some(open) => {
            escaped = *c == '\\';
            quote = (*c != open).then_some(open);
            false
        }
        None => {
            quote = matches!(c, '"' | '\'').then_some(*c);
            quote.is_none()
        }
    })
}

/// `{% set target = value %}` with the value sent through a filter; nothing for a block that is set.
fn checked(tag: &str) -> Option<String> {
    let (target, value) = tag.split_once('=')?;
    let end = value.len() - 2;
    let (value, close) = value.split_at(end - usize::from(value[..end].ends_with(['-', '+'])));
    // A block may have filters with arguments.
    if target.contains(['|', '"', '\'']) || value.trim().is_empty() {
        return None;
    }
    let filter = if target.contains('.') { KEPT_IN_NAMESPACE } else { KEPT };
    Some(format!("{target}= ({value}) | {filter} {close}"))
}

/// The tag, and behind it the variables that it makes, by `list` up to a parenthesis that closes it, sent through the filter.
fn with_checks(tag: &str, list: Option<&str>) -> String {
    let mut out = tag.to_owned();
    let (open, close) = if tag.ends_with("-%}") { ("{%-", "-%}") } else { ("{%", "%}") };
    let list = list.unwrap_or_default();
    let (mut depth, mut start) = (0, 0);
    let mut ends = Vec::new();
    for (place, c) in outside_strings(list) {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => {
                ends.push((start, place));
                start = list.len();
                break;
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                ends.push((start, place));
                start = place + 1;
            }
            _ => {}
        }
    }
    ends.push((start, list.len()));
    for (start, end) in ends {
        let variable = list[start..end].split('=').next().unwrap_or_default().trim();
        if !variable.is_empty() && variable.chars().all(|c| c.is_alphanumeric() || c == '_') {
            out.push_str(&format!("{open} set {variable} = {variable} | {KEPT} {close}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::prepared;

    #[test]
    fn generation_tags_become_conditions_that_hold() {
        for (source, read) in [
            ("{% generation %}a{%- endgeneration -%}", "{% if true %}a{%- endif -%}"),
            ("{%%}x", "{%%}x"),
            // A tag that is not closed, and one whose end another might take for its own.
            ("{% generation", "{% generation"),
            ("{%}{% generation %}", "{%}{% generation %}"),
            ("a{%}", "a{%}"),
        ] {
            assert_eq!(prepared(source), read);
        }
    }

    #[test]
    fn what_variables_are_set_to_is_looked_at() {
        for (source, read) in [
            ("{% set generation = 1 %}", "{% set generation = ( 1 ) | conjure_kept %}"),
            ("{%- set ns.a=b['%}'] -%}x", "{%- set ns.a= (b['%}'] ) | conjure_kept_in_namespace -%}x"),
            ("{% set a, b = 1, 2 %}", "{% set a, b = ( 1, 2 ) | conjure_kept %}"),
            ("{% set a = b == c %}", "{% set a = ( b == c ) | conjure_kept %}"),
            // Blocks, and what is no tag.
            ("{% set a %}b = c{% endset %}", "{% set a %}b = c{% endset %}"),
            ("{% set a | replace('x', y='=') %}b{% endset %}", "{% set a | replace('x', y='=') %}b{% endset %}"),
            ("{# {% set a = 1 %} #}{", "{# {% set a = 1 %} #}{"),
            ("{% raw %}{% set a = 1 %}{% endraw %}", "{% raw %}{% set a = 1 %}{% endraw %}"),
            ("{{ '{% set a = 1 %}' }}{ { é", "{{ '{% set a = 1 %}' }}{ { é"),
            ("{% if settings = 1 %}", "{% if settings = 1 %}"),
            ("{% set a = %}", "{% set a = %}"),
            (
                "{% macro f(a, b=(1, ')'), c) -%} x",
                "{% macro f(a, b=(1, ')'), c) -%}{%- set a = a | conjure_kept -%}{%- set b = b | conjure_kept -%}\
                 {%- set c = c | conjure_kept -%} x",
            ),
            ("{% macro f() %}", "{% macro f() %}"),
            ("{% call(a) f(b) %}", "{% call(a) f(b) %}{% set a = a | conjure_kept %}"),
            ("{% call f(b) %}", "{% call f(b) %}"),
            ("{% for a in b recursive %}", "{% for a in b recursive %}{% set a = a | conjure_kept %}"),
            ("{% for (a)\nin b recursive %}", "{% for (a)\nin b recursive %}{% set a = a | conjure_kept %}"),
            // What would begin a raw part stands in the string after a dictionary in a dictionary.
            (
                "{{ {'a': {'b': 1}} ~ '{% raw %}' }}{% set a = 1 %}",
                "{{ {'a': {'b': 1}} ~ '{% raw %}' }}{% set a = ( 1 ) | conjure_kept %}",
            ),
            ("{% for a in b %}", "{% for a in b %}"),
        ] {
            assert_eq!(prepared(source), read);
        }
    }
}
