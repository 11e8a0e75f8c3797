//! Which tokens may come next, and how a text that must end is closed.

use super::ending::{Endings, NoWay};
use super::limits::{FUEL, MAX_ALTERNATIVES, MAX_PARTS};
use super::refusal::{failure, refusal};
use super::search::{NoEnd, allowed, ends, is_dead_end, search};
use super::{Grammar, TokenBytes, lark};
use conjure_core::{Error, Result};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory, TokenParser};
use serde_json::Value;

/// The stack on which a grammar is compiled, and how much more for each of its parts: `llguidance` goes by recursion
/// from a rule to those in it, which takes some 5 kB, from a schema to what it refers to some 10. Unused, it takes no
/// memory.
const STACK: usize = 8 << 20;
const STACK_OF_PART: usize = 16 << 10;
/// Longest end in tokens. Whoever asks for a few tokens does not want thousands that no model chose.
const MAX_END: usize = 2048;
/// Most alternatives at all places within the tokens that may come next.
const MAX_STEP: usize = 100_000;

/// Tells which tokens may come next.
pub struct Constraint {
    matcher: Matcher,
    tokens: TokenBytes,
    /// Not known for some grammars.
    endings: Option<Endings>,
    text: Vec<u8>,
}

impl Constraint {
    /// At the beginning of a text.
    ///
    /// # Errors
    /// The grammar makes no sense, has parts that are not known, is too large, or matches no text that these tokens can
    /// spell. For a few grammars the last cannot be found out with little work; their texts may fail later.
    pub fn new(grammar: &Grammar, tokens: &TokenBytes) -> Result<Self> {
        let parser = compile(grammar, tokens)?;
        let compiled = parser.parser.grammar().clone();
        let matcher = Matcher::new(Ok(parser));
        begin(matcher.clone()).map_err(|reason| refusal(grammar, &reason))?;
        let endings = Endings::new(&compiled, &tokens.prices());
        let mut constraint = Self { matcher, tokens: tokens.clone(), endings, text: Vec::new() };
        let impossible = constraint.endings.as_ref().is_some_and(Endings::is_impossible);
        if impossible || constraint.end() == Err(NoEnd::Exhausted) {
            let (what, help) = match grammar {
                Grammar::JsonSchema(_) => {
                    ("schema", "no part may need itself without an end, and the model has to know all characters")
                }
                Grammar::Lark(_) => (
                    "grammar",
                    "each rule needs an alternative that comes to an end, of characters that the model knows",
                ),
            };
            return Err(Error::request(format!("the {what} matches no text that this model's tokens can spell"))
                .with_help(help));
        }
        Ok(constraint)
    }

    /// Excludes the tokens that may not come next from `logits (vocabulary)`.
    ///
    /// # Errors
    /// None may: the vocabulary cannot spell what the grammar wants here.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| failure(&error.to_string()))?;
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
        self.matcher.consume_token(id).map_err(|error| failure(&error.to_string()))?;
        let trie = self.tokens.trie();
        if !trie.eos_tokens().contains(&id) {
            self.text.extend_from_slice(trie.token(id));
        }
        Ok(())
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
        self.end().map_err(|_| {
            Error::failure("the text could not be brought to an end that matches the grammar")
                .with_help("allow more tokens with --max-tokens")
        })
    }

    fn end(&mut self) -> std::result::Result<Vec<u32>, NoEnd> {
        if ends(&mut self.matcher.clone()) {
            return Ok(Vec::new());
        }
        for apart in [false, true] {
            let Some(endings) = &mut self.endings else { break };
            let ids = match endings.after(&self.text, apart) {
                Ok(bytes) => self.tokens.spell(&bytes),
                Err(NoWay::Unknown) => None,
                Err(NoWay::TooFar) => return Err(NoEnd::TooFar),
            };
            let Some(ids) = ids else { continue };
            if ids.len() > MAX_END {
                return Err(NoEnd::TooFar);
            }
            let mut matcher = self.matcher.clone();
            if matcher.consume_tokens(&ids).is_ok() && ends(&mut matcher) {
                return Ok(ids);
            }
        }
        search(&self.matcher, &self.tokens)
    }
}

/// Tries whether a text can begin, which is where a grammar that is too large fails.
fn begin(mut matcher: Matcher) -> std::result::Result<(), String> {
    let first = match matcher.compute_mask_or_eos() {
        Ok(mask) => mask.first_bit_set(),
        Err(reason) if is_dead_end(&reason) => None,
        Err(reason) => return Err(reason.to_string()),
    };
    first.map_or(Ok(()), |id| matcher.consume_token(id as u32)).map_err(|reason| reason.to_string())
}

/// Has `llguidance` compile a grammar.
fn compile(grammar: &Grammar, tokens: &TokenBytes) -> Result<TokenParser> {
    let parts = match grammar {
        Grammar::JsonSchema(schema) => objects(schema),
        Grammar::Lark(text) => lark::check(text)?,
    };
    // Larger schemas are refused.
    let stack = STACK + STACK_OF_PART * parts.min(MAX_PARTS);
    let make = || {
        let top = match grammar {
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let mut factory = ParserFactory::new_simple(tokens.env()).map_err(|error| format!("{error:#}"))?;
        *factory.quiet().limits_mut() = ParserLimits {
            max_items_in_row: MAX_ALTERNATIVES,
            step_max_items: MAX_STEP,
            initial_lexer_fuel: FUEL,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        factory.create_parser(top).map_err(|error| error.to_string())
    };
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(stack).spawn_scoped(scope, make);
        let thread = thread.map_err(|error| Error::failure(format!("no thread for the grammar: {error}")))?;
        Ok::<_, Error>(thread.join().unwrap_or_else(|_| Err("panic".to_owned())))
    })?;
    made.map_err(|reason| refusal(grammar, &reason))
}

/// How many objects are in a value, itself included.
fn objects(value: &Value) -> usize {
    let mut left = vec![value];
    let mut count = 0;
    while let Some(value) = left.pop() {
        match value {
            Value::Object(entries) => {
                count += 1;
                left.extend(entries.values());
            }
            Value::Array(items) => left.extend(items),
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::rng::keyed;
    use conjure_core::sampling::text::{draw, uniform};
    use serde_json::json;

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
        assert_eq!(lark("start: other"), "the grammar cannot be used: at 1(8): unknown name: \"other\"");
        assert!(
            lark("start: /a(?=b)/").ends_with(": look-around, including look-ahead and look-behind, is not supported")
        );
        // It never ends, and it needs letters that no token has.
        let nothing = "the grammar matches no text that this model's tokens can spell";
        assert_eq!(lark("start: \"a\" start"), nothing);
        assert_eq!(lark("start: \"\u{e4}\""), nothing);
        assert_eq!(lark("start: \"a\" \"\u{e4}\""), nothing);
        let schema = |text: &str| refused(Grammar::json_schema(text));
        let none = "the schema matches no text that this model's tokens can spell";
        assert!(schema("{\"type\": ").starts_with("the schema is no JSON"));
        assert_eq!(schema("3"), "the schema is neither an object nor true or false");
        assert_eq!(schema("{\"type\": \"colour\"}"), "the schema cannot be used: Invalid type: colour");
        assert!(schema("false").starts_with("the schema cannot be used: "));
        assert!(schema(r#"{"type": "string", "minLength": 5, "maxLength": 2}"#).contains("schema cannot be used"));
        assert!(schema(r#"{"$ref": "http://example.com/a.json"}"#).starts_with("the schema cannot be used: "));
        assert_eq!(schema(r##"{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}"##), none);
        assert_eq!(schema(r##"{"$ref":"#"}"##), none);
        for (text, why) in [
            (r#"{"if": {}, "then": {}}"#, "it has \"if\", \"then\", to which a text cannot be held"),
            (r#"{"uniqueItems": true}"#, "it has \"uniqueItems\", to which a text cannot be held"),
            (r#"{"type": "string", "format": "regex"}"#, "the format regex is not known"),
            (
                r#"{"type": "string", "pattern": "(?=a)b"}"#,
                "the pattern (?=a)b: look-around, including look-ahead and look-behind, is not supported",
            ),
        ] {
            assert_eq!(schema(text), format!("the schema cannot be used: {why}"));
        }
    }

    #[test]
    fn what_is_too_large_is_told_with_the_limit() {
        let (tokens, ..) = tokens();
        let refused = |grammar: Grammar| Constraint::new(&grammar, &tokens).map(drop).unwrap_err();
        let alternatives = |count| {
            let all: Vec<String> = (0..count).map(|n| format!("\"w{n}\"")).collect();
            Grammar::parse(&format!("root ::= {}", all.join(" | "))).unwrap()
        };
        assert!(Constraint::new(&alternatives(3000), &tokens).is_ok());
        let error = refused(alternatives(5001));
        assert_eq!(error.to_string(), "the grammar cannot be used: more than 5000 alternatives are open at one place");
        let costly: String = (0..1200).map(|n| format!("A{n}: A{} \"c\"?\n", n + 1)).collect();
        let costly = Grammar::parse(&format!("start: A0\n{costly}A1200: \"a\"")).unwrap();
        let error = refused(costly);
        assert!(
            error.to_string().ends_with("its texts and patterns take more than 1000000 steps to prepare"),
            "{error}"
        );
        // A part of which the matcher panics.
        let error = refused(Grammar::Lark(format!("start: %json {}", json!({"minLength": "\u{e4}".repeat(99)}))));
        assert!(!error.to_string().contains("panic"), "{error}");
    }

    /// Rules lead to each other by recursion, and each end takes thousands of tokens.
    #[test]
    fn long_chains_and_long_texts_work() {
        let chain: String = (0..4000).map(|n| format!("r{n} ::= r{}\n", n + 1)).collect();
        let chain = Grammar::parse(&format!("root ::= r0\n{chain}r4000 ::= \"a\"")).unwrap();
        assert_eq!(random(&chain, 1, 0), "a");
        let references: serde_json::Map<String, Value> =
            (0..4000).map(|n| (n.to_string(), json!({"$ref": format!("#/$defs/{}", n + 1)}))).collect();
        let mut schema = json!({"$ref": "#/$defs/0", "$defs": references});
        schema["$defs"]["4000"] = json!({"const": 7});
        assert_eq!(random(&Grammar::json_schema(&schema.to_string()).unwrap(), 1, 0), "7");
        assert_eq!(random(&Grammar::parse("root ::= [0-9]{5000}").unwrap(), 1, 6000).len(), 5000);
        assert_eq!(random(&Grammar::parse("root ::= [0-9]{2000}").unwrap(), 1, 7).len(), 2000);
        let schema = json!({"type": "string", "const": "x".repeat(3000)}).to_string();
        assert_eq!(random(&Grammar::json_schema(&schema).unwrap(), 1, 1000).len(), 3002);
        let (tokens, ..) = tokens();
        for grammar in [
            Grammar::json_schema(r#"{"type": "string", "minLength": 4000}"#),
            Grammar::json_schema(r#"{"type": "array", "minItems": 2000, "items": {"type": "integer"}}"#),
            Grammar::parse("root ::= (\"a\"{100}){100}"),
            Grammar::parse("root ::= ((\"a\"{30}){30}){30}"),
            // No text matches, as A takes every a, but that is not found out.
            Grammar::parse("start: A B\nA: /a+/\nB: /ab/"),
        ] {
            let error = Constraint::new(&grammar.unwrap(), &tokens).unwrap().close().unwrap_err();
            assert_eq!(error.to_string(), "the text could not be brought to an end that matches the grammar");
        }
    }

    #[test]
    fn an_end_is_found_however_it_is_spelled() {
        let format = |format: &str| Grammar::json_schema(&json!({"type": "string", "format": format}).to_string());
        let many = json!({"type": "array", "minItems": 300, "items": {"type": "integer"}}).to_string();
        let one_of = r#"{"oneOf": [{"type": "string", "maxLength": 4}, {"type": "string", "minLength": 2}]}"#;
        for (grammar, end) in [
            (format("email"), "\"0@0\""),
            (format("duration"), "\"P0D\""),
            (format("date-time"), "\"0000-01-01T00:00:00Z\""),
            (Grammar::json_schema(one_of), "\"\""),
            (Grammar::json_schema(&many), &format!("[{}0]", "0, ".repeat(299))),
            (Grammar::parse("root ::= [a-z]+ \"@\" [a-z]+ \".\" [a-z]{2,}"), "a@a.aa"),
            (Grammar::parse("start: NAME NAME\nNAME: /[a-z]+/\n%ignore \" \""), "a a"),
            // These are searched token by token.
            (Grammar::parse("start: a \"!\"\na[stop=\"x\"]: /[b-d]{2}/"), "bbx!"),
            (Grammar::parse("start: \"a\" <[3]> \"b\""), "a#b"),
        ] {
            let grammar = grammar.unwrap();
            assert_eq!(random(&grammar, 1, 0), end);
            for seed in 1..6 {
                let text = random(&grammar, seed, 2 * seed as usize);
                let kept = end.bytes().filter(|&b| b"@!.PT[".contains(&b)).all(|b| text.as_bytes().contains(&b));
                assert!(kept, "{text} is not like {end}");
            }
        }
        // What fits first leads to no end.
        let lost = Grammar::parse("start: \"(\" lost | \"[\" \"!\"\nlost: \"x\" lost").unwrap();
        assert_eq!(random(&lost, 1, 0), "[!");
        let uri = random(&format("uri").unwrap(), 1, 0);
        assert!(uri.len() == 4 && uri.ends_with(":\""), "{uri}");
    }
}
