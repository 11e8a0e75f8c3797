//! `conjure translate` and `conjure evaluate translation` on the smallest translators.

use crate::command::{Desk, Outcome};
use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

const REFUSED: i32 = 2;

/// A folder of the library's tests.
fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conjure/tests/fixtures/translate").join(name).display().to_string()
}

/// What transformers made of the fixture's lines.
fn expected(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap()).unwrap()
}

#[track_caller]
fn json(outcome: Outcome) -> Value {
    let outcome = outcome.succeeded();
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.stdout))
}

#[test]
fn a_text_is_translated_as_the_reference_does() {
    let desk = Desk::new();
    let marian = fixture("marian");
    let expected = expected("marian");
    let made = json(desk.conjure(&["translate", "a cat", "--to", "fr", "-m", &marian, "--json"]));
    assert_eq!((&made["model"], &made["to"]), (&Value::from("marian"), &Value::from("fr")));
    let only = &made["translations"][0];
    assert_eq!(only["tokens"], expected["made"]["default"]["ids"][2]);
    assert_eq!(only["source_tokens"], expected["sources"][2]);
    let score = expected["made"]["default"]["scores"][2].as_f64().unwrap();
    assert!((only["score"].as_f64().unwrap() - score).abs() < 1e-4);
    let greedy = desk.conjure(&["translate", "a cat", "--to", "fr", "-m", &marian, "--beams", "1"]).succeeded();
    let text = expected["made"]["greedy"]["texts"][2].as_str().unwrap();
    assert_eq!(greedy.stdout.trim(), text.trim());
    assert_eq!(greedy.stdout.lines().count(), 1);
}

#[test]
fn lines_come_in_their_order_from_a_file_and_from_stdin() {
    let desk = Desk::new();
    let marian = fixture("marian");
    let expected = expected("marian");
    let lines: Vec<String> = serde_json::from_value(expected["lines"].clone()).unwrap();
    let text = lines.join("\n") + "\n";
    std::fs::write(desk.path("lines.txt"), &text).unwrap();
    let args = ["translate", "--to", "fr", "-m", &marian];
    let from_file = desk.conjure(&[&args[..], &["--file", "lines.txt"]].concat()).succeeded();
    let texts = expected["made"]["default"]["texts"].as_array().unwrap();
    let wanted: Vec<&str> = texts.iter().map(|text| text.as_str().unwrap().trim()).collect();
    let got: Vec<&str> = from_file.stdout.lines().map(str::trim).collect();
    assert_eq!(got, wanted);

    let mut command = desk.command();
    command.args(args).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert_eq!(Outcome::of(child.wait_with_output().unwrap()).succeeded().stdout, from_file.stdout);
}

#[test]
fn what_cannot_be_translated_is_refused_with_a_remedy() {
    let desk = Desk::new();
    let (marian, t5) = (fixture("marian"), fixture("t5"));
    let refused = |args: &[&str], model: &str| {
        let outcome = desk.conjure(&[&["translate"], args, &["-m", model]].concat());
        assert_eq!(outcome.code, Some(REFUSED), "{args:?}: {}", outcome.stderr);
        outcome.stderr
    };
    let stderr = refused(&["a cat", "--to", "it"], &marian);
    assert!(
        stderr.contains("does not know the target language \"it\"") && stderr.contains("it knows de, fr, zh_Hant"),
        "{stderr}"
    );
    assert!(refused(&["a cat"], &marian).contains("name one with --to"));
    assert!(refused(&[&"a cat ".repeat(90), "--to", "de"], &marian).contains("tokens, the model reads 64 at once"));
    assert!(refused(&["a cat", "--to", "de", "--beams", "0"], &marian).contains("beams 0 is outside 1 to 64"));
    assert!(refused(&["a cat", "--to", "de", "--max-tokens", "0"], &marian).contains("max tokens 0"));
    assert!(refused(&[" ", "--to", "de"], &marian).contains("there is no text to translate"));
    assert!(refused(&["a cat", "--to", "fr"], &t5).contains("with --from"));
    assert!(refused(&["a cat"], "nowhere").contains("nowhere"));
    let outcome =
        desk.command().args(["translate", "a cat"]).env("CONJURE_MODELS", desk.path("none")).output().unwrap();
    let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(stderr.contains("CONJURE_MODELS is ") && stderr.contains("there is no such folder"), "{stderr}");
    let stderr = desk.conjure(&["translate", "a cat"]).stderr;
    // Beside a program whose translator was taken away it would be said how to train one.
    assert!(stderr.contains("name one with --to; the model knows ar, bn, "), "{stderr}");
}

/// In at most 25 MB, into each of its languages; and what its card says of a name that it was trained on.
#[test]
fn the_translator_that_comes_with_conjure_translates() {
    let desk = Desk::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/translator");
    let bytes: u64 = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 25_000_000, "{bytes}");
    for (to, wanted) in [("de", "rotes Herz"), ("fr", "cœur rouge"), ("ja", "赤いハート")] {
        assert_eq!(desk.conjure(&["translate", "red heart", "--to", to]).succeeded().stdout.trim(), wanted);
    }
    let back = desk.conjure(&["translate", "rotes Herz", "--to", "en", "--from", "de", "--beams", "1"]).succeeded();
    assert_eq!((back.stdout.trim(), back.stderr.as_str()), ("red heart", ""));
    let cut = ["translate", "red heart", "--to", "de", "--max-tokens", "2"];
    let outcome = desk.conjure(&cut).succeeded();
    assert_eq!(outcome.stdout, "rot\n");
    assert!(outcome.stderr.contains("ended after 2 tokens; --max-tokens sets another number"), "{}", outcome.stderr);
    assert_eq!(json(desk.conjure(&[&cut[..], &["--json"]].concat()))["translations"][0]["finish"], "length");
    // The same note wherever a language is named.
    let folder = folder.display().to_string();
    for command in [
        &["translate", "red heart"][..],
        &["explain", "odds", "red heart", "--target", "a", "--model", &folder],
        &["explain", "attention", "red heart", "--model", &folder],
    ] {
        let note = "note: the model's folder does not say that it translates xx";
        for (from, told) in [("xx", true), ("en", false)] {
            let outcome = desk.conjure(&[command, &["--from", from, "--to", "de"]].concat()).succeeded();
            assert_eq!(outcome.stderr.contains(note), told, "{command:?} {}", outcome.stderr);
        }
    }
    let unknown = desk.conjure(&["translate", "red heart", "--to", "tlh"]);
    assert_eq!(unknown.code, Some(REFUSED));
    assert!(unknown.stderr.contains("it knows ar, bn, cs, da, de, el, en, "), "{}", unknown.stderr);
}

/// Trains a tiny translator, looks at it with the other commands, and compares it with a dictionary.
#[test]
fn a_translator_of_ours_is_evaluated_and_explained() {
    let desk = Desk::new();
    let things =
        ["cat Katze", "house Haus", "tree Baum", "fish Fisch", "moon Mond", "boat Boot", "ball Ball", "hat Hut"];
    let colours = ["red rot", "green grün", "blue blau", "old alt", "new neu", "big groß", "small klein"];
    let mut table = "en\tde\n".to_owned();
    for (thing, ding) in things.iter().filter_map(|pair| pair.split_once(' ')) {
        for (colour, farbe) in colours.iter().filter_map(|pair| pair.split_once(' ')) {
            table += &format!("{colour} {thing}\t{ding} {farbe}\n");
        }
    }
    std::fs::write(desk.path("pairs.tsv"), table).unwrap();
    let recipe = r#"
        objective = "translation"
        steps = 250
        batch = 16
        [data]
        file = "pairs.tsv"
        [optimizer]
        learning_rate = 6e-3
        [translation]
        vocabulary = 340
        max_tokens = 24
        [translation.model]
        d_model = 32
        encoder_layers = 1
        decoder_layers = 1
        encoder_ffn_dim = 64
        decoder_ffn_dim = 64
        max_position_embeddings = 32
    "#;
    std::fs::write(desk.path("tiny.toml"), recipe).unwrap();
    desk.conjure(&["train", "tiny.toml", "--out", "run"]).succeeded();
    let export = "run/export";

    let outcome = ["evaluate", "translation", export, "--data", "pairs.tsv", "--pairs", "en-de,de-en", "--beams", "1"];
    let report = json(desk.conjure(&[&outcome[..], &["--dictionary", "--json"]].concat()));
    let directions = report["models"][0]["directions"].as_array().unwrap();
    assert_eq!(directions.len(), 2);
    assert_eq!((&directions[1]["from"], &directions[1]["to"]), (&Value::from("de"), &Value::from("en")));
    assert!(
        directions.iter().all(|d| d["chrf"].as_f64().unwrap() > 50.0 && d["perplexity"].as_f64().unwrap() < 5.0),
        "{report}"
    );
    assert_eq!(report["models"][1]["model"], "dictionary");
    assert_eq!(report["models"][1]["directions"][0]["perplexity"], Value::Null);
    let table = desk.conjure(&[&outcome[..], &["--limit", "1"]].concat()).succeeded().stdout;
    assert!(table.contains("en-de (1)") && table.lines().last().unwrap().starts_with("mean"), "{table}");
    let refused = desk.conjure(&["evaluate", "translation", export, "--data", "pairs.tsv", "--pairs", "en-fr"]);
    assert_eq!(refused.code, Some(REFUSED));
    assert!(refused.stderr.contains("write FROM-TO with two of de, en"), "{}", refused.stderr);

    // Before work begins, whichever direction it is.
    let marian = fixture("marian");
    let refused = desk.conjure(&["evaluate", "translation", &marian, "--data", "pairs.tsv", "--pairs", "en-de,de-en"]);
    assert_eq!(refused.code, Some(REFUSED));
    assert!(
        refused.stderr.contains("marian: the model does not know the target language \"en\""),
        "{}",
        refused.stderr
    );
    assert!(!refused.stderr.contains("step"), "{}", refused.stderr);

    // The other commands read the folder too, with the language's token in the text.
    let odds = ["explain", "odds", ">>de<< red cat", "--target", "Katze rot", "-m", export, "--json"];
    let odds = json(desk.conjure(&odds));
    let tokens = odds["tokens"].as_array().unwrap();
    assert!(tokens.len() >= 3);
    assert_eq!(tokens.last().unwrap()["text"], "</s>");
    let sum: f64 = tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).sum();
    assert!(sum < 0.0);
    desk.conjure(&["explain", "attention", "red cat", "--to", "de", "--model", export, "--json", "attention.json"])
        .succeeded();
    let seen: Value = serde_json::from_str(&std::fs::read_to_string(desk.path("attention.json")).unwrap()).unwrap();
    assert!(seen.to_string().contains(">>de<<"));
}
