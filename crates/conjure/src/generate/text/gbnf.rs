//! GBNF, the grammars of llama.cpp, told in the Lark notation that the matcher reads.

use conjure_core::{Error, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Longest regular expression that a grammar becomes.
const MAX_EXPRESSION: usize = 16_384;

/// Whether the text is GBNF: its rules are defined by `::=`.
pub fn is_gbnf(text: &str) -> bool {
    text.lines().any(|line| !line.trim_start().starts_with(['#', '/']) && line.contains("::="))
}

/// The same grammar in Lark's notation.
///
/// Lark's matcher reads texts and classes greedily, each as far as it goes, so that `[a-z]* "end"` would never see its end. A
/// grammar whose rules do not refer to themselves is therefore told as one regular expression, which has no such bounds. In
/// others the rule `root` becomes `start`, and the others `g_NAME` with each character but small letters and digits as its
/// number: their neighbours should begin with characters that the item before cannot have.
///
/// # Errors
/// Names the line and what is not GBNF.
pub fn to_lark(text: &str) -> Result<String> {
    let mut reader = Reader { rest: text.chars().collect(), at: 0, line: 1, depth: 0 };
    let rules = reader.rules()?;
    if let Some(root) = rules.iter().find(|(name, _)| name == "root") {
        let by_name: BTreeMap<&str, &Alternatives> = rules.iter().map(|(name, rule)| (name.as_str(), rule)).collect();
        let mut expression = String::new();
        // Redefined rules are for the matcher to refuse.
        if by_name.len() == rules.len()
            && write_expression(&root.1, &by_name, &mut vec!["root"], &mut expression).is_some_and(|empty| !empty)
        {
            return Ok(format!("start: /{expression}/\n"));
        }
    }
    let mut lark = String::new();
    for (name, rule) in &rules {
        let _ = write!(lark, "{}: ", lark_name(name));
        write_lark(rule, &mut lark);
        lark.push('\n');
    }
    Ok(lark)
}

/// What a rule or a group in parentheses may be: sequences of items.
type Alternatives = Vec<Vec<Item>>;

enum Item {
    Text(String),
    /// What stands between the brackets of a regular expression.
    Class(String),
    AnyCharacter,
    Rule(String),
    Group(Alternatives),
    /// With `*`, `+`, `?` or `{2,5}`.
    Repeated(Box<Item>, String),
}

fn write_lark(alternatives: &Alternatives, out: &mut String) {
    for (n, items) in alternatives.iter().enumerate() {
        out.push_str(if n > 0 { "| " } else { "" });
        out.push_str(if items.is_empty() { "\"\" " } else { "" });
        for item in items {
            write_lark_item(item, out);
            out.push(' ');
        }
    }
}

fn write_lark_item(item: &Item, out: &mut String) {
    match item {
        Item::Text(text) => out.push_str(&serde_json::Value::String(text.clone()).to_string()),
        Item::Class(class) => {
            let _ = write!(out, "/[{class}]/");
        }
        Item::AnyCharacter => out.push_str("/[\\s\\S]/"),
        Item::Rule(name) => out.push_str(&lark_name(name)),
        Item::Group(alternatives) => {
            out.push_str("( ");
            write_lark(alternatives, out);
            out.push(')');
        }
        Item::Repeated(item, times) => {
            write_lark_item(item, out);
            out.push_str(times);
        }
    }
}

/// Writes a regular expression. Whether it matches the empty text; `None` if a rule refers to itself or is not there, or the
/// expression becomes too long. `within` are the rules that are being written.
fn write_expression<'a>(
    alternatives: &'a Alternatives,
    rules: &BTreeMap<&'a str, &'a Alternatives>,
    within: &mut Vec<&'a str>,
    out: &mut String,
) -> Option<bool> {
    let mut any_empty = false;
    out.push_str("(?:");
    for (n, items) in alternatives.iter().enumerate() {
        out.push_str(if n > 0 { "|" } else { "" });
        let mut empty = true;
        for item in items {
            empty &= write_expression_item(item, rules, within, out)?;
        }
        any_empty |= empty;
    }
    out.push(')');
    (out.len() <= MAX_EXPRESSION).then_some(any_empty)
}

fn write_expression_item<'a>(
    item: &'a Item,
    rules: &BTreeMap<&'a str, &'a Alternatives>,
    within: &mut Vec<&'a str>,
    out: &mut String,
) -> Option<bool> {
    match item {
        Item::Text(text) => {
            out.push_str("(?:");
            for c in text.chars() {
                let _ = write!(out, "\\x{{{:x}}}", u32::from(c));
            }
            out.push(')');
            Some(text.is_empty())
        }
        Item::Class(class) => {
            let _ = write!(out, "[{class}]");
            Some(false)
        }
        Item::AnyCharacter => {
            out.push_str("[\\s\\S]");
            Some(false)
        }
        Item::Rule(name) => {
            if within.contains(&name.as_str()) || within.len() > super::grammar::MAX_NESTING {
                return None;
            }
            within.push(name);
            let empty = write_expression(rules.get(name.as_str())?, rules, within, out)?;
            within.pop();
            Some(empty)
        }
        Item::Group(alternatives) => write_expression(alternatives, rules, within, out),
        Item::Repeated(item, times) => {
            let empty = write_expression_item(item, rules, within, out)?;
            out.push_str(times);
            Some(empty || times.starts_with(['*', '?']) || times.starts_with("{0"))
        }
    }
}

struct Reader {
    rest: Vec<char>,
    at: usize,
    line: usize,
    /// Open parentheses.
    depth: usize,
}

impl Reader {
    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::request(format!("the grammar's line {}: {what}", self.line)).with_help(
            "a rule is NAME ::= ALTERNATIVE | ...; of \"text\", [a-z], names, ( ), and *, +, ?, {2,5} after them",
        )
    }

    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        self.line += usize::from(c == '\n');
        Some(c)
    }

    /// Passes spaces and comments, and line ends if asked.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.take();
                    }
                }
                '\n' if !lines => return,
                c if c.is_whitespace() => {
                    self.take();
                }
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let from = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            self.take();
        }
        (self.at > from).then(|| self.rest[from..self.at].iter().collect())
    }

    fn rules(&mut self) -> Result<Vec<(String, Alternatives)>> {
        let mut rules = Vec::new();
        loop {
            self.space(true);
            if self.peek().is_none() {
                return Ok(rules);
            }
            let name = self.name().ok_or_else(|| self.error("a rule's name is missing"))?;
            self.space(false);
            for expected in "::=".chars() {
                if self.take() != Some(expected) {
                    return Err(self.error(format!("{name} is not followed by ::=")));
                }
            }
            rules.push((name, self.alternatives()?));
        }
    }

    /// Alternatives up to the end of the rule, or to the parenthesis that closes them.
    fn alternatives(&mut self) -> Result<Alternatives> {
        self.space(true);
        let mut done: Alternatives = Vec::new();
        let mut items = Vec::new();
        loop {
            // Between items a line's end ends the rule, but not within parentheses.
            self.space(self.depth > 0);
            match self.peek() {
                None | Some('\n') if self.depth > 0 => return Err(self.error("a parenthesis is not closed")),
                None | Some('\n' | ')') => {
                    // A line that begins with | goes on with the rule.
                    let mark = (self.at, self.line);
                    self.space(true);
                    if self.peek() != Some('|') || self.depth > 0 {
                        (self.at, self.line) = mark;
                        done.push(items);
                        return if self.peek() == Some(')') && self.depth == 0 {
                            Err(self.error("a parenthesis closes that none opened"))
                        } else {
                            Ok(done)
                        };
                    }
                }
                Some('|') => {
                    self.take();
                    done.push(std::mem::take(&mut items));
                    self.space(true);
                }
                Some(c) => {
                    let item = self.item(c)?;
                    items.push(self.repeated(item)?);
                }
            }
        }
    }

    /// The item that begins with this character.
    fn item(&mut self, first: char) -> Result<Item> {
        match first {
            '"' => {
                self.take();
                let mut text = String::new();
                loop {
                    match self.peek() {
                        None | Some('\n') => return Err(self.error("a text is not closed by \"")),
                        Some('"') => break,
                        Some(_) => text.push(self.character()?),
                    }
                }
                self.take();
                Ok(Item::Text(text))
            }
            '[' => self.class(),
            '.' => {
                self.take();
                Ok(Item::AnyCharacter)
            }
            '(' => {
                if self.depth >= super::grammar::MAX_NESTING {
                    return Err(self.error("parentheses are nested too deep"));
                }
                self.take();
                self.depth += 1;
                let alternatives = self.alternatives()?;
                if self.take() != Some(')') {
                    return Err(self.error("a parenthesis is not closed"));
                }
                self.depth -= 1;
                Ok(Item::Group(alternatives))
            }
            c => self.name().map(Item::Rule).ok_or_else(|| self.error(format!("{c:?} is not expected here"))),
        }
    }

    /// `[a-z]` or `[^"\\]`, as a regular expression of numbers.
    fn class(&mut self) -> Result<Item> {
        self.take();
        let mut class = String::new();
        if self.peek() == Some('^') {
            self.take();
            class.push('^');
        }
        let mut count = 0;
        while self.peek() != Some(']') {
            if matches!(self.peek(), None | Some('\n')) {
                return Err(self.error("a class is not closed by ]"));
            }
            let first = self.character()?;
            let _ = write!(class, "\\x{{{:x}}}", u32::from(first));
            let range = self.peek() == Some('-') && self.rest.get(self.at + 1).is_some_and(|&c| c != ']');
            if range {
                self.take();
                let last = self.character()?;
                if last < first {
                    return Err(self.error(format!("the range {first:?} to {last:?} is empty")));
                }
                let _ = write!(class, "-\\x{{{:x}}}", u32::from(last));
            }
            count += 1;
        }
        self.take();
        if count == 0 {
            return Err(self.error("a class is empty"));
        }
        Ok(Item::Class(class))
    }

    /// The item with the number of repetitions behind it, if there is one.
    fn repeated(&mut self, item: Item) -> Result<Item> {
        match self.peek() {
            Some(c @ ('*' | '+' | '?')) => {
                self.take();
                Ok(Item::Repeated(Box::new(item), c.to_string()))
            }
            Some('{') => {
                self.take();
                let mut times = String::from("{");
                loop {
                    match self.take() {
                        Some(',') if times == "{" => times.push_str("0,"),
                        Some(c) if c.is_ascii_digit() || c == ',' => times.push(c),
                        Some(' ') => {}
                        Some('}') => break,
                        _ => return Err(self.error("a number of repetitions is not closed by }")),
                    }
                }
                times.push('}');
                Ok(Item::Repeated(Box::new(item), times))
            }
            _ => Ok(item),
        }
    }

    fn character(&mut self) -> Result<char> {
        let c = self.take().ok_or_else(|| self.error("the grammar ends within a text"))?;
        if c != '\\' {
            return Ok(c);
        }
        let escape = self.take().ok_or_else(|| self.error("the grammar ends within a text"))?;
        let digits = match escape {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '"' | '\\' | '[' | ']' | '-' | '^' | '/' => return Ok(escape),
            other => return Err(self.error(format!("\\{other} is no known character"))),
        };
        let mut number = 0;
        for _ in 0..digits {
            let digit = self.take().and_then(|c| c.to_digit(16));
            number = number * 16 + digit.ok_or_else(|| self.error(format!("\\{escape} wants {digits} hex digits")))?;
        }
        char::from_u32(number).ok_or_else(|| self.error(format!("{number:x} is no character")))
    }
}

fn lark_name(name: &str) -> String {
    if name == "root" {
        return "start".to_owned();
    }
    let mut lark = String::from("g_");
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' => lark.push(c),
            other => {
                let _ = write!(lark, "_{}_", u32::from(other));
            }
        }
    }
    lark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_construct_has_its_like() {
        let text = "# a comment\nroot ::= \"a\\n\\\"\" item-1* (x | [^a-z\\]] | )+ # more\nitem-1 ::=\n  [0-9]{2,5} |\n  .\n  \
                    | \"b\"?\nx ::= | \"c\" x{,2}";
        assert!(is_gbnf(text));
        assert_eq!(
            to_lark(text).unwrap(),
            "start: \"a\\n\\\"\" g_item_45_1* ( g_x | /[^\\x{61}-\\x{7a}\\x{5d}]/ | \"\" )+ \n\
             g_item_45_1: /[\\x{30}-\\x{39}]/{2,5} | /[\\s\\S]/ | \"b\"? \n\
             g_x: \"\" | \"c\" g_x{0,2} \n"
        );
        assert!(!is_gbnf("start: \"a\"\n// x ::= y\n"));
    }

    #[test]
    fn rules_that_do_not_refer_to_themselves_become_one_expression() {
        assert_eq!(
            to_lark("root ::= [a-z]* x\nx ::= \"e/\" | (\"n\" | )+ .").unwrap(),
            "start: /(?:[\\x{61}-\\x{7a}]*(?:(?:\\x{65}\\x{2f})|(?:(?:\\x{6e})|)+[\\s\\S]))/\n"
        );
        // Of those that may be empty, that are too long or lack a rule, the matcher is told the rules.
        let doubling: String = (0..20).map(|n| format!("x{n} ::= x{} x{}\n", n + 1, n + 1)).collect();
        for text in ["root ::= \"a\"*", "root ::= y", &format!("root ::= x0\n{doubling}x20 ::= \"a\"")] {
            assert!(!to_lark(text).unwrap().contains("(?:"), "{text}");
        }
    }

    #[test]
    fn what_is_no_gbnf_is_told_with_its_line() {
        for (text, words) in [
            ("root ::= \"a", "line 1: a text is not closed by \""),
            ("root ::= x\n\nx ::= [a", "line 3: a class is not closed by ]"),
            ("root ::= (\"a\"", "line 1: a parenthesis is not closed"),
            ("root ::= \"a\")", "line 1: a parenthesis closes that none opened"),
            ("root ::= [z-a]", "line 1: the range 'z' to 'a' is empty"),
            ("root ::= \"\\q\"", "line 1: \\q is no known character"),
            ("root ::= \"\\ud800\"", "line 1: d800 is no character"),
            ("root = \"a\" ::= ", "line 1: root is not followed by ::="),
            ("root ::= !", "line 1: '!' is not expected here"),
            ("root ::= \"a\"{2", "repetitions is not closed"),
        ] {
            let error = to_lark(text).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert!(to_lark(&format!("root ::= {}", "(".repeat(100_000))).is_err());
    }
}
