//! What is looked at in a grammar in Lark's notation before `llguidance` reads it.

use super::limits::{MAX_NESTING, MAX_PARTS};
use conjure_core::{Error, Result};

/// How many rules and parentheses a grammar has; refuses what would be too much, and special tokens, which `llguidance`
/// would look for in vain.
///
/// # Errors
/// Names the limit, or the token.
pub fn check(grammar: &str) -> Result<usize> {
    let mut rest = grammar;
    let (mut depth, mut parts) = (0_usize, 0);
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '"' => behind(after, '"'),
            '#' => behind_line(after),
            '/' if after.starts_with('/') => behind_line(after),
            '/' => behind(after, '/'),
            '<' => match special_token(after) {
                Some(name) => {
                    return Err(Error::request(format!(
                        "the grammar asks for the special token <{name}>, which has no text"
                    ))
                    .with_help(format!(
                        "put it in quotes where the text \"<{name}>\" is meant, or give the token's id, such as <[7]>"
                    )));
                }
                None => after,
            },
            ':' => {
                parts += usize::from(!after.starts_with(':'));
                after.trim_start_matches(':')
            }
            '(' => {
                parts += 1;
                depth += 1;
                after
            }
            ')' => {
                depth = depth.saturating_sub(1);
                after
            }
            _ => after,
        };
        if depth > MAX_NESTING {
            return Err(Error::request(format!("the grammar is nested deeper than {MAX_NESTING} parentheses"))
                .with_help("give the inner parts names of their own"));
        }
    }
    if parts > MAX_PARTS {
        return Err(Error::request(format!("the grammar has {parts} rules and parentheses, more than {MAX_PARTS}"))
            .with_help("give a smaller one"));
    }
    Ok(parts)
}

/// What follows the text or regular expression that ends with this character.
fn behind(text: &str, end: char) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == end && !escaped {
            return &text[at + 1..];
        }
        escaped = c == '\\' && !escaped;
    }
    ""
}

fn behind_line(text: &str) -> &str {
    text.find('\n').map_or("", |at| &text[at..])
}

/// The name of a special token, not the ids of tokens as in `<[1-9]>`.
fn special_token(text: &str) -> Option<&str> {
    let (name, _) = text.split_once('>')?;
    let named = !name.is_empty() && !name.starts_with('[') && !name.contains(|c: char| c == '<' || c.is_whitespace());
    named.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_parentheses_are_counted_where_they_are_some() {
        let text = "start: (a | \"(:\\\"(\") /[(:\\/]/ // ( :\n# (\na: p::0x0 <[1-3]> \"<tool>\" \"\u{e4}\"\n";
        assert_eq!(check(text).unwrap(), 3);
        assert_eq!(check("start: \"a").unwrap(), 1);
        let error = |text: &str| check(text).unwrap_err().to_string();
        assert_eq!(error("start: \"a\" <tool>"), "the grammar asks for the special token <tool>, which has no text");
        assert_eq!(error(&"(".repeat(100_000)), "the grammar is nested deeper than 28 parentheses");
        assert_eq!(error(&"a: b\n".repeat(20_001)), "the grammar has 20001 rules and parentheses, more than 20000");
    }
}
