//! Text that is held to a JSON schema or a grammar.
//!
//! The matching is `llguidance`'s (Moskal et al.): an Earley parser over a lexer of derivatives, which walks the trie of the
//! vocabulary's bytes and tells in some 50 microseconds which tokens may come next. Six small crates without native code.
//! Here is what surrounds it: what users may give, checks before work, and how a text that must end is closed.

use super::gbnf;
use conjure_core::{Error, Result};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;
use std::sync::Arc;

/// Largest file of a schema or grammar in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Deepest nesting of parentheses and brackets in a grammar.
pub(super) const MAX_NESTING: usize = 200;
/// Longest token in bytes that takes part; longer ones, which some vocabularies have for runs of spaces, are not allowed
/// in constrained text.
const MAX_TOKEN: usize = 128;
/// How many tokens an end may take, tried one after the other, and how many beginnings are looked at for each.
const LENGTHS: [usize; 4] = [32, 128, 512, 2048];
const MAX_SEARCH: usize = 2_500;
/// Ways to go on that are tried at each of them.
const BRANCHES: usize = 8;
/// What usually closes something, best first; then what usually is the least that can stand somewhere.
const CLOSERS: &[u8] = b"\"}])>;.\n0a1, -:x";

/// What a text has to match, whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that this schema describes, written on one line with `", "` and `": "`, unless the schema's own entry
    /// `x-guidance` says otherwise.
    JsonSchema(Value),
    /// A grammar in Lark's notation, as `llguidance` reads it; it begins with the rule `start`.
    Lark(String),
}

impl Grammar {
    /// A JSON schema from its text.
    ///
    /// # Errors
    /// The text is no JSON, or not an object or a truth value.
    pub fn json_schema(text: &str) -> Result<Self> {
        let mut schema: Value = serde_json::from_str(text)
            .map_err(|e| Error::request(format!("the schema is no JSON: {e}")).with_help("check it near that place"))?;
        match &mut schema {
            Value::Object(entries) => {
                // Where spaces are free, small models write nothing else.
                entries.entry("x-guidance").or_insert_with(
                    || json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " }),
                );
            }
            Value::Bool(_) => {}
            _ => {
                return Err(Error::request("the schema is neither an object nor true or false")
                    .with_help("such as {\"type\": \"object\", \"properties\": {\"name\": {\"type\": \"string\"}}}"));
            }
        }
        Ok(Self::JsonSchema(schema))
    }

    /// A grammar from its text: GBNF where its rules are defined by `::=`, Lark otherwise.
    ///
    /// # Errors
    /// The text is empty or nested too deep; GBNF that is none.
    pub fn parse(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Err(Error::request("the grammar is empty").with_help("such as: start: \"yes\" | \"no\""));
        }
        // Those within texts count too: they are usually closed as well.
        let mut depth = 0_usize;
        for c in text.chars() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_NESTING {
                return Err(Error::request(format!("the grammar is nested deeper than {MAX_NESTING}"))
                    .with_help("give the inner parts names of their own"));
            }
        }
        Ok(Self::Lark(if gbnf::is_gbnf(text) { gbnf::to_lark(text)? } else { text.to_owned() }))
    }

    /// A JSON schema from a file.
    ///
    /// # Errors
    /// The file is missing or too large; those of [`Grammar::json_schema`].
    pub fn open_json_schema(path: &Path) -> Result<Self> {
        Self::json_schema(&read(path)?).map_err(|error| in_file(path, error))
    }

    /// A grammar from a file.
    ///
    /// # Errors
    /// The file is missing or too large; those of [`Grammar::parse`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(&read(path)?).map_err(|error| in_file(path, error))
    }
}

fn read(path: &Path) -> Result<String> {
    let size = match path.metadata() {
        Ok(data) if data.is_dir() => return Err(Error::file(path, "is a folder").with_help("name a file")),
        Ok(data) => data.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::file(path, "there is no such file").with_help("check the name"));
        }
        Err(error) => return Err(Error::io(path, error)),
    };
    if size > MAX_FILE {
        return Err(
            Error::file(path, format!("has {size} bytes, more than {MAX_FILE}")).with_help("give a smaller one")
        );
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|_| Error::file(path, "is not text in UTF-8").with_help("save it as UTF-8"))
}

fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Request { message, help } => Error::File { path: path.to_path_buf(), message, help },
        other => other,
    }
}

/// What the tokens of a vocabulary look like in bytes, prepared for matching. Made once for a model.
#[derive(Clone)]
pub struct TokenBytes {
    env: TokEnv,
    /// The token of each single byte, if there is one.
    single: Arc<[Option<u32>]>,
}

impl TokenBytes {
    /// From the bytes of each token in the order of ids, empty for special tokens, which never stand in constrained text;
    /// `ends` are the ids that end a text.
    pub fn new(tokens: &[Vec<u8>], ends: &[u32]) -> Self {
        let words: Vec<Vec<u8>> =
            tokens.iter().map(|bytes| if bytes.len() > MAX_TOKEN { Vec::new() } else { bytes.clone() }).collect();
        let mut single = vec![None; 256];
        for (id, word) in words.iter().enumerate().rev() {
            if let [byte] = word[..] {
                single[usize::from(byte)] = Some(id as u32);
            }
        }
        let ends: Vec<u32> = ends.iter().copied().filter(|&id| (id as usize) < words.len()).collect();
        let first = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, first), &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
        Self { env: Arc::new(ApproximateTokEnv::new(trie)), single: single.into() }
    }
}

/// Tells which tokens may come next.
pub struct Constraint {
    matcher: Matcher,
    tokens: TokenBytes,
}

/// A beginning that the search for an end came to.
struct Beginning {
    matcher: Matcher,
    length: usize,
    /// The beginning that it continues, and by which token.
    from: Option<(usize, u32)>,
}

/// How a search ended that found no end.
enum NoEnd {
    /// Every text was tried.
    Exhausted,
    /// There are more and longer ones.
    TooFar,
}

impl Constraint {
    /// At the beginning of a text.
    ///
    /// # Errors
    /// The grammar makes no sense, has parts that are not known, or matches no text that these tokens can spell.
    pub fn new(grammar: &Grammar, tokens: &TokenBytes) -> Result<Self> {
        let top = match grammar {
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let factory = ParserFactory::new_simple(&tokens.env).and_then(|mut factory| {
            factory.quiet().limits_mut().verbose_errors = false;
            factory.create_parser(top)
        });
        let parser = factory.map_err(|error| {
            let what = match grammar {
                Grammar::JsonSchema(_) => "the schema",
                Grammar::Lark(_) => "the grammar",
            };
            Error::request(format!("{what} cannot be used: {}", first_line(&error))).with_help(match grammar {
                Grammar::JsonSchema(_) => "schemas of draft 2020-12 without remote references are known",
                Grammar::Lark(_) => {
                    "it is read as Lark with the rule start, or as GBNF with the rule root where it has ::="
                }
            })
        })?;
        let mut constraint = Self { matcher: Matcher::new(Ok(parser)), tokens: tokens.clone() };
        constraint.close().map_err(|_| {
            Error::request("the grammar matches no text that this model's tokens can spell")
                .with_help("each rule needs an alternative that comes to an end, of characters that the model knows")
        })?;
        Ok(constraint)
    }

    /// Excludes the tokens that may not come next from `logits (vocabulary)`.
    ///
    /// # Errors
    /// None may: the vocabulary cannot spell what the grammar wants here.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| failure(&error))?;
        for (id, l) in logits.iter_mut().enumerate() {
            if !allowed(&mask, id) {
                *l = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// It may not come here.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        self.matcher.consume_token(id).map_err(|error| failure(&error))
    }

    /// Whether the text matches and nothing more can.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Tokens that bring the text to an end that matches, few if not the fewest: none where it matches already. The
    /// constraint itself stays where it is.
    ///
    /// # Errors
    /// No end was found near.
    pub fn close(&mut self) -> Result<Vec<u32>> {
        let missing = || {
            Error::failure("the text could not be brought to an end that matches the grammar")
                .with_help("allow more tokens with --max-tokens")
        };
        let mut start = self.matcher.clone();
        if ends(&mut start) {
            return Ok(Vec::new());
        }
        for length in LENGTHS {
            match self.search(start.clone(), length) {
                Ok(ids) => return Ok(ids),
                Err(NoEnd::Exhausted) => break,
                Err(NoEnd::TooFar) => {}
            }
        }
        Err(missing())
    }

    /// An end of at most `most` tokens. The way that is likeliest to lead to one is followed first, as far as it goes; then
    /// those that leave it at one place, the last place first, and so on.
    fn search(&self, start: Matcher, most: usize) -> std::result::Result<Vec<u32>, NoEnd> {
        let mut beginnings: Vec<Beginning> = Vec::new();
        // The least unlikely first, of those the longest, of those the one found first.
        let mut queue = BinaryHeap::new();
        let mut cut = false;
        let mut next = Some((0, Beginning { matcher: start, length: 0, from: None }));
        while let Some((unlikely, mut beginning)) = next.take() {
            let at = beginnings.len();
            if beginning.length < most {
                for (place, id) in self.ways_on(&mut beginning.matcher).into_iter().enumerate() {
                    queue.push(Reverse((unlikely + place, most - beginning.length, at, id)));
                }
            } else {
                cut = true;
            }
            beginnings.push(beginning);
            while let Some(Reverse((unlikely, _, at, id))) = queue.pop() {
                let mut matcher = beginnings[at].matcher.clone();
                if matcher.consume_token(id).is_err() {
                    continue;
                }
                if ends(&mut matcher) {
                    let mut ids = vec![id];
                    let mut at = at;
                    while let Some((before, id)) = beginnings[at].from {
                        ids.push(id);
                        at = before;
                    }
                    ids.reverse();
                    return Ok(ids);
                }
                if beginnings.len() >= MAX_SEARCH {
                    return Err(NoEnd::TooFar);
                }
                let length = beginnings[at].length + 1;
                next = Some((unlikely, Beginning { matcher, length, from: Some((at, id)) }));
                break;
            }
        }
        Err(if cut { NoEnd::TooFar } else { NoEnd::Exhausted })
    }

    /// Some of the tokens that may come next, those that are likely to lead to an end first.
    fn ways_on(&self, matcher: &mut Matcher) -> Vec<u32> {
        let Ok(mask) = matcher.compute_mask() else { return Vec::new() };
        let trie = self.tokens.env.tok_trie();
        let mut ways: Vec<u32> = Vec::with_capacity(BRANCHES);
        let text = |id: &u32| !trie.token(*id).is_empty();
        // Where only one text can follow, its longest token.
        let forced = matcher.clone().compute_ff_bytes();
        if !forced.is_empty() {
            let longest = trie.all_prefixes(&forced).into_iter().filter(|&id| allowed(&mask, id as usize)).filter(text);
            if let Some(id) = longest.max_by_key(|&id| trie.token(id).len()) {
                return vec![id];
            }
        }
        let closers = CLOSERS.iter().filter_map(|&byte| self.tokens.single[usize::from(byte)]);
        ways.extend(closers.filter(|&id| allowed(&mask, id as usize)).take(BRANCHES));
        if ways.len() < BRANCHES {
            let mut others: Vec<u32> = Vec::new();
            mask.iter_set_entries(|id| others.push(id as u32));
            others.retain(|id| text(id) && !ways.contains(id));
            others.sort_by_key(|&id| (trie.token(id).len(), id));
            ways.extend(others.into_iter().take(BRANCHES - ways.len()));
        }
        ways
    }
}

/// Whether the text may end here.
fn ends(matcher: &mut Matcher) -> bool {
    !matcher.is_error() && (matcher.is_stopped() || matcher.is_accepting().unwrap_or(false))
}

fn allowed(mask: &SimpleVob, id: usize) -> bool {
    id < mask.len() && mask.get(id)
}

fn failure(error: &impl std::fmt::Display) -> Error {
    Error::failure(format!("the grammar cannot go on here: {}", first_line(error)))
        .with_help("the model's tokens may not be able to spell what it asks for")
}

/// Errors of the matcher carry its whole state; the first line says what is wrong.
fn first_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    line.trim().trim_end_matches('.').chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::rng::keyed;
    use conjure_core::sampling::text::{draw, uniform};

    /// Printable ASCII and line end one by one, some longer tokens, and an end.
    fn tokens() -> (TokenBytes, Vec<String>, u32) {
        let mut words: Vec<String> = (32..127_u8).chain([10]).map(|b| char::from(b).to_string()).collect();
        words.extend(["\"name\"", "true", "{\"", "\": ", " the", "123", "\"}"].map(str::to_owned));
        words.push(String::new());
        let bytes: Vec<Vec<u8>> = words.iter().map(|word| word.clone().into_bytes()).collect();
        let end = words.len() as u32 - 1;
        (TokenBytes::new(&bytes, &[end]), words, end)
    }

    /// A text of at most `most` random tokens that match, then closed.
    fn random(grammar: &Grammar, seed: u64, most: usize) -> String {
        let (tokens, words, end) = tokens();
        let mut constraint = Constraint::new(grammar, &tokens).unwrap();
        let mut generator = keyed(seed, "text");
        let mut text = String::new();
        for _ in 0..most {
            let mut logits = vec![0.0; words.len()];
            constraint.mask(&mut logits).unwrap();
            let id = draw(&logits, uniform(&mut generator)).unwrap();
            constraint.accept(id).unwrap();
            if id == end {
                return text;
            }
            text.push_str(&words[id as usize]);
            if constraint.is_complete() {
                return text;
            }
        }
        constraint.close().unwrap().iter().for_each(|&id| text.push_str(&words[id as usize]));
        text
    }

    const PERSON: &str = r##"{
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "tags": { "type": "array", "items": { "enum": ["a", "bc"] } },
            "parent": { "$ref": "#" }
        },
        "required": ["name", "age"],
        "additionalProperties": false
    }"##;

    #[test]
    fn whatever_is_drawn_the_json_is_valid_wherever_it_has_to_end() {
        let grammar = Grammar::json_schema(PERSON).unwrap();
        for (seed, most) in [(1, 400), (2, 60), (3, 25), (4, 12), (5, 3), (6, 1), (7, 0)] {
            let text = random(&grammar, seed, most);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(value["name"].as_str().unwrap().chars().count() <= 12, "{text}");
            assert!((0..=150).contains(&value["age"].as_i64().unwrap()), "{text}");
            let known = ["name", "age", "tags", "parent"];
            assert!(value.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{text}");
        }
        assert_eq!(random(&grammar, 1, 0), r#"{"name": "", "age": 0}"#);
    }

    #[test]
    fn any_json_matches_the_schema_true() {
        for seed in 0..5 {
            let text = random(&Grammar::json_schema("{}").unwrap(), seed, 30);
            // A `Value` has no number with an exponent of many digits, which is valid JSON.
            serde_json::from_str::<serde::de::IgnoredAny>(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
    }

    #[test]
    fn grammars_in_both_notations_hold_the_text() {
        let lark = Grammar::parse("start: \"yes\" | \"no\" | count\ncount: /[0-9]{3}/ \" times\"").unwrap();
        let gbnf = Grammar::parse("root ::= \"yes\" | \"no\" | count\ncount ::= [0-9]{3} \" times\"").unwrap();
        for grammar in [lark, gbnf] {
            for seed in 0..10 {
                let text = random(&grammar, seed, seed as usize);
                let count = text.strip_suffix(" times").is_some_and(|n| n.len() == 3 && n.parse::<u32>().is_ok());
                assert!(text == "yes" || text == "no" || count, "{text}");
            }
        }
        // Nested: as many closed as opened.
        let nested = Grammar::parse("root ::= \"(\" root \")\" | \"x\" ws\nws ::= | \" \" ws").unwrap();
        for seed in 0..5 {
            let text = random(&nested, seed, 9);
            let depth = text.chars().take_while(|&c| c == '(').count();
            assert_eq!(text.replace(' ', ""), format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
        }
    }

    #[test]
    fn what_cannot_match_is_refused_before_work() {
        let (tokens, ..) = tokens();
        let refused = |grammar: Result<Grammar>| {
            let error = grammar.and_then(|g| Constraint::new(&g, &tokens).map(drop)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.help().is_some() && error.to_string().lines().count() == 1, "{error}");
            error.to_string()
        };
        let lark = |text: &str| refused(Grammar::parse(text));
        assert_eq!(lark(" \n"), "the grammar is empty");
        assert!(lark("start: \"a").starts_with("the grammar cannot be used: "));
        assert!(lark("begin: \"a\"").starts_with("the grammar cannot be used: "));
        assert!(lark("start: other").starts_with("the grammar cannot be used: "));
        // It never ends, and it needs letters that no token has.
        assert!(lark("start: \"a\" start").contains("matches no text"));
        assert!(lark("start: \"\u{e4}\"").contains("matches no text"));
        assert!(lark(&format!("start: {}", "(".repeat(100_000))).contains("nested deeper"));
        let schema = |text: &str| refused(Grammar::json_schema(text));
        assert!(schema("{\"type\": ").starts_with("the schema is no JSON"));
        assert_eq!(schema("3"), "the schema is neither an object nor true or false");
        assert!(schema("{\"type\": \"colour\"}").starts_with("the schema cannot be used: "));
        assert!(schema("false").starts_with("the schema cannot be used: "));
        assert!(schema(r#"{"type": "string", "minLength": 5, "maxLength": 2}"#).contains("schema cannot be used"));
        assert!(schema(r#"{"$ref": "http://example.com/a.json"}"#).starts_with("the schema cannot be used: "));
        assert!(
            schema(r##"{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}"##)
                .contains("matches no text")
        );
    }

    #[test]
    fn files_are_read_with_care() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.lark");
        let refused = |path: &Path| Grammar::open(path).unwrap_err().to_string();
        assert!(refused(&path).ends_with("there is no such file"));
        assert!(refused(folder.path()).ends_with("is a folder"));
        std::fs::write(&path, b"start: \"\xff\"").unwrap();
        assert!(refused(&path).ends_with("is not text in UTF-8"));
        std::fs::write(&path, "x".repeat(1 << 21)).unwrap();
        assert!(refused(&path).contains("has 2097152 bytes"));
        std::fs::write(&path, "root ::= [").unwrap();
        assert!(refused(&path).contains("g.lark: the grammar's line 1"));
    }
}
