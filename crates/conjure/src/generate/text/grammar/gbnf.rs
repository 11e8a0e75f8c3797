//! GBNF, the grammars of llama.cpp, told in the Lark notation that the matcher reads.

use super::limits::MAX_NESTING;
use conjure_core::{Error, Result};
use std::collections::HashMap;
use std::fmt::Write as _;

/// Whether the text is GBNF: its rules are defined by `::=`.
pub fn is_gbnf(text: &str) -> bool {
    text.lines().any(|line| !line.trim_start().starts_with(['#', '/']) && line.contains("::="))
}

/// The same grammar in Lark's notation. The rule `root` becomes `start`, the others `g_NAME` with each character but
/// small letters and digits as its number.
///
/// # Errors
/// Names the line and what is not GBNF; rules that are missing or there twice.
pub fn to_lark(text: &str) -> Result<String> {
    let mut reader = Reader {
        rest: text.chars().collect(),
        at: 0,
        line: 1,
        depth: 0,
        defined: HashMap::new(),
        used: Vec::new(),
        out: String::new(),
    };
    reader.rules()?;
    let missing = reader.used.iter().find(|(name, _)| !reader.defined.contains_key(name));
    if let Some((name, line)) = missing {
        return Err(Error::request(format!("the grammar's line {line}: there is no rule {name}"))
            .with_help(format!("define it by {name} ::= ..., or put it in quotes where its letters are meant")));
    }
    if !reader.defined.contains_key("root") {
        return Err(Error::request("the grammar has no rule root").with_help("it is the rule for the whole text"));
    }
    Ok(reader.out)
}

struct Reader {
    rest: Vec<char>,
    at: usize,
    line: usize,
    /// Open parentheses.
    depth: usize,
    /// The line of each rule.
    defined: HashMap<String, usize>,
    /// Names in rules, and their lines.
    used: Vec<(String, usize)>,
    out: String,
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

    fn rules(&mut self) -> Result<()> {
        loop {
            self.space(true);
            if self.peek().is_none() {
                return Ok(());
            }
            let name = self.name().ok_or_else(|| self.error("a rule's name is missing"))?;
            let line = self.line;
            self.space(false);
            for expected in "::=".chars() {
                if self.take() != Some(expected) {
                    return Err(self.error(format!("{name} is not followed by ::=")));
                }
            }
            if let Some(first) = self.defined.insert(name.clone(), line) {
                return Err(self.error(format!("the rule {name} is there already, in line {first}")));
            }
            let _ = write!(self.out, "{}: ", lark_name(&name));
            self.alternatives()?;
            self.out.push('\n');
        }
    }

    /// Alternatives up to the end of the rule, or to the parenthesis that closes them.
    fn alternatives(&mut self) -> Result<()> {
        self.space(true);
        let mut empty = true;
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
                        if empty {
                            self.out.push_str("\"\" ");
                        }
                        return if self.peek() == Some(')') && self.depth == 0 {
                            Err(self.error("a parenthesis closes that none opened"))
                        } else {
                            Ok(())
                        };
                    }
                }
                Some('|') => {
                    self.take();
                    self.out.push_str(if empty { "\"\" | " } else { "| " });
                    empty = true;
                    self.space(true);
                }
                Some(_) => {
                    self.item()?;
                    self.repetition()?;
                    empty = false;
                }
            }
        }
    }

    fn item(&mut self) -> Result<()> {
        match self.peek() {
            Some('"') => {
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
                let _ = write!(self.out, "{} ", serde_json::Value::String(text));
            }
            Some('[') => self.class()?,
            Some('.') => {
                self.take();
                self.out.push_str("/[\\s\\S]/ ");
            }
            Some('(') => {
                if self.depth >= MAX_NESTING {
                    return Err(self
                        .error(format!("parentheses are nested deeper than {MAX_NESTING}"))
                        .with_help("give the inner parts names of their own"));
                }
                self.take();
                self.depth += 1;
                self.out.push_str("( ");
                self.alternatives()?;
                if self.take() != Some(')') {
                    return Err(self.error("a parenthesis is not closed"));
                }
                self.depth -= 1;
                self.out.push_str(") ");
            }
            Some(c) => {
                let name = self.name().ok_or_else(|| self.error(format!("{c:?} is not expected here")))?;
                let _ = write!(self.out, "{} ", lark_name(&name));
                self.used.push((name, self.line));
            }
            None => {}
        }
        Ok(())
    }

    /// `[a-z]` or `[^"\\]`, as a regular expression of numbers.
    fn class(&mut self) -> Result<()> {
        self.take();
        self.out.push_str("/[");
        if self.peek() == Some('^') {
            self.take();
            self.out.push('^');
        }
        let mut count = 0;
        while self.peek() != Some(']') {
            if matches!(self.peek(), None | Some('\n')) {
                return Err(self.error("a class is not closed by ]"));
            }
            let first = self.character()?;
            let _ = write!(self.out, "\\x{{{:x}}}", u32::from(first));
            let range = self.peek() == Some('-') && self.rest.get(self.at + 1).is_some_and(|&c| c != ']');
            if range {
                self.take();
                let last = self.character()?;
                if last < first {
                    return Err(self.error(format!("the range {first:?} to {last:?} is empty")));
                }
                let _ = write!(self.out, "-\\x{{{:x}}}", u32::from(last));
            }
            count += 1;
        }
        self.take();
        if count == 0 {
            return Err(self.error("a class is empty"));
        }
        self.out.push_str("]/ ");
        Ok(())
    }

    fn repetition(&mut self) -> Result<()> {
        match self.peek() {
            Some(c @ ('*' | '+' | '?')) => {
                self.take();
                // Behind the item, without the space.
                self.out.pop();
                self.out.push(c);
                self.out.push(' ');
            }
            Some('{') => {
                self.take();
                let from = self.at;
                while self.peek().is_some_and(|c| c.is_ascii_digit() || matches!(c, ',' | ' ')) {
                    self.take();
                }
                let range: String = self.rest[from..self.at].iter().filter(|c| **c != ' ').collect();
                if self.take() != Some('}') {
                    return Err(self.error("a number of repetitions is not closed by }"));
                }
                let (least, most) = range.split_once(',').unwrap_or((&range, &range));
                let number = |text: &str, open| if text.is_empty() { Some(open) } else { text.parse::<i32>().ok() };
                let fits = number(least, 0).zip(number(most, i32::MAX)).is_some_and(|(l, m)| l <= m && m > 0);
                if !fits || range.is_empty() {
                    return Err(self.error(format!("{{{range}}} is no number of repetitions")));
                }
                self.out.pop();
                let _ = write!(self.out, "{{{range}}} ");
            }
            _ => {}
        }
        Ok(())
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
                    | \"b\"?\nx ::= | \"c\"";
        assert!(is_gbnf(text));
        assert_eq!(
            to_lark(text).unwrap(),
            "start: \"a\\n\\\"\" g_item_45_1* ( g_x | /[^\\x{61}-\\x{7a}\\x{5d}]/ | \"\" )+ \n\
             g_item_45_1: /[\\x{30}-\\x{39}]/{2,5} | /[\\s\\S]/ | \"b\"? \n\
             g_x: \"\" | \"c\" \n"
        );
        assert!(!is_gbnf("start: \"a\"\n// x ::= y\n"));
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
            ("root ::= \"a\"\n\nx ::= \"b\"{3,1}", "line 3: {3,1} is no number of repetitions"),
            ("root ::= \"a\"{}", "line 1: {} is no number of repetitions"),
            ("root ::= \"a\"{99999999999}", "line 1: {99999999999} is no number of repetitions"),
            ("root ::= \"a\" |\n  Other-1", "line 2: there is no rule Other-1"),
            ("root ::= \"a\"\nx ::= root\nroot ::= \"b\"", "line 3: the rule root is there already, in line 1"),
            ("main ::= \"a\"", "the grammar has no rule root"),
        ] {
            let error = to_lark(text).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
        let nested = |depth| to_lark(&format!("root ::= {}\"a\"{}", "(".repeat(depth), ")".repeat(depth)));
        assert!(nested(MAX_NESTING).is_ok());
        assert!(nested(100_000).unwrap_err().to_string().ends_with("deeper than 28"));
    }
}
