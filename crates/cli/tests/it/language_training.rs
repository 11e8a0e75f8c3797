//! From texts to an adapter that `conjure text` uses, and `conjure evaluate perplexity`, by the program itself.

use crate::command::Desk;
use serde_json::Value;
use std::fs;

const REFUSED: i32 = 2;
/// A model of random weights that says something else after every token.
const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../conjure/tests/fixtures/language_model/llama");
const RECIPE: &str = r#"
objective = "language_model"
steps = 60
batch = 4
optimizer = { learning_rate = 2e-2, weight_decay = 0.0 }
schedule = { shape = "constant", warmup = 0 }
report = { every = 10, validate = 0, samples = 30 }
[language_model]
texts = ["texts"]
context = 20
held_out = 0.0
prompts = ["the heron and", ""]
lora = { rank = 8, alpha = 16.0 }
"#;

#[test]
fn an_adapter_is_trained_measured_and_used() {
    let desk = Desk::new();
    fs::create_dir(desk.path("texts")).unwrap();
    fs::write(desk.path("texts/a.txt"), "the heron and the tide went over the then and there").unwrap();
    fs::write(desk.path("b.txt"), "another hand on the other").unwrap();
    fs::write(desk.path("lm.toml"), RECIPE).unwrap();
    let trained = desk
        .conjure(&["train", "lm.toml", "--out", "run", "--set", &format!("language_model.start={BASE:?}")])
        .succeeded();
    assert_eq!(trained.stdout.trim(), "run/export");

    // What it writes on the way is kept, and is what the adapter writes afterwards.
    let sample = |step: u32| fs::read_to_string(desk.path(&format!("run/samples/step-{step:08}.txt"))).unwrap();
    let args = ["text", "the heron and", "-m", BASE, "--lora", "run/export", "--seed", "0", "--max-tokens", "100"];
    let said = desk.conjure(&args).succeeded().stdout;
    let last = sample(60);
    let written = last.strip_prefix("--- the heron and\n").unwrap();
    assert!(said.trim().contains(written[..20].trim()), "{said:?} {written:?}");
    assert!(last.contains("\n\n--- \n") && sample(30) != last, "{last}");

    let measure = |more: &[&str]| -> Value {
        let args = ["evaluate", "perplexity", "texts/a.txt", "b.txt", "-m", BASE, "--context", "40", "--json"];
        let outcome = desk.conjure(&[&args, more].concat()).succeeded();
        serde_json::from_str(&outcome.stdout).unwrap()
    };
    let (plain, adapted) = (measure(&[]), measure(&["--lora", "run/export"]));
    assert_eq!((&plain["context"], &plain["stride"], &plain["model"]), (&40.into(), &20.into(), &"llama".into()));
    assert_eq!(plain["texts"][1]["name"], "b.txt");
    let perplexity = |value: &Value| value["perplexity"].as_f64().unwrap();
    let (before, after) = (perplexity(&plain["texts"][0]), perplexity(&adapted["texts"][0]));
    assert!(before > 100.0 && after < 10.0, "{before} {after}");
    assert_eq!(measure(&["--lora", "run/export:0"])["all"]["nll"], plain["all"]["nll"]);
    for key in ["tokens", "scored", "bytes", "read"] {
        let count = |place: &Value| place[key].as_u64().unwrap();
        assert_eq!(count(&plain["all"]), count(&plain["texts"][0]) + count(&plain["texts"][1]), "{key}");
    }

    let readable = desk.conjure(&["evaluate", "perplexity", "b.txt", "-m", BASE]).succeeded();
    assert!(readable.stdout.starts_with("perplexity ") && readable.stdout.contains("bits/byte"), "{}", readable.stdout);
    assert!(readable.stderr.contains("windows of 128 tokens, 64 further each time"), "{}", readable.stderr);

    // A byte order mark is no part of a text.
    fs::write(desk.path("mark.txt"), "\u{feff}another hand on the other").unwrap();
    let marked = desk.conjure(&["evaluate", "perplexity", "mark.txt", "-m", BASE]).succeeded().stdout;
    assert_eq!(marked.replace("mark.txt", "b.txt"), readable.stdout);

    let say = |more: &[&str]| {
        let args = ["text", "the heron and", "-m", BASE, "--temperature", "0", "--max-tokens", "12"];
        desk.conjure(&[&args, more].concat()).succeeded().stdout
    };
    assert_ne!(say(&["--lora", "run/export"]), say(&[]));
    assert_eq!(say(&["--lora", "run/export:0"]), say(&[]));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let desk = Desk::new();
    desk.conjure(&["models", "tiny", "--kind", "text", "--out", "tiny", "--seed", "3"]).succeeded();
    fs::write(desk.path("a.txt"), "the heron").unwrap();
    fs::write(desk.path("bytes.txt"), b"ab\xff").unwrap();
    let refused = |args: &[&str], words: &[&str]| {
        desk.conjure(&[&["evaluate", "perplexity"], args].concat()).failed(REFUSED, words);
    };
    refused(&["a.txt"], &["no model is named"]);
    refused(&["none.txt", "-m", "tiny"], &["none.txt"]);
    refused(&["bytes.txt", "-m", "tiny"], &["bytes.txt: line 1 is not UTF-8", "help:"]);
    refused(&[".", "-m", "tiny"], &[".: is a folder", "help:"]);
    refused(&["-", "a.txt", "-", "-m", "tiny"], &["- is given twice", "help:"]);
    #[cfg(unix)]
    refused(&["/dev/null", "-m", "tiny"], &["/dev/null: has 0 tokens"]);
    refused(&["a.txt", "-m", "tiny", "--context", "257"], &["the model reads 2 to 256"]);
    refused(&["a.txt", "-m", "tiny", "--stride", "0"], &["a stride of 0"]);
    fs::remove_file(desk.path("tiny/tokenizer.json")).unwrap();
    refused(&["a.txt", "-m", "tiny"], &["has no tokenizer", "help: put its tokenizer.json beside the weights"]);
    refused(&["a.txt", "-m", "tiny", "--lora", "a.txt"], &["adapter_config.json: not found"]);
}
