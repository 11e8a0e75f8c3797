//! `conjure explain`.

use crate::command::Desk;
use std::path::Path;

const SENTENCE: &str = "The lamp could not be packed into the suitcase because it was too large";

fn emoji() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji").display().to_string()
}

#[test]
fn a_page_and_its_numbers_are_written() {
    let desk = Desk::new();
    let small = SENTENCE.replace("large", "small");
    let mut args = vec!["explain", "attention", SENTENCE, "--out", "a.html", "--compare", &small];
    args.extend(["--mask", "suitcase", "--ablate", "1.2,3.0", "--layer", "1", "--head", "2"]);
    args.extend(["--csv", "a.csv", "--json", "a.json", "--svg", "a.svg", "--model"]);
    let model = emoji();
    args.push(&model);
    let outcome = desk.conjure(&args).succeeded();
    assert_eq!(outcome.stdout, "a.html\na.csv\na.json\na.svg\n");
    assert!(outcome.stderr.contains("differ from the model's own by at most"), "{}", outcome.stderr);
    assert_eq!(desk.files(), ["a.csv", "a.html", "a.json", "a.svg"]);
    let page = std::fs::read_to_string(desk.path("a.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    let numbers: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(desk.path("a.json")).unwrap()).unwrap();
    assert_eq!(numbers["runs"].as_array().unwrap().len(), 3);
    assert_eq!(numbers["runs"][0]["attentions"][0]["layers"][0]["layer"], 1);
}

#[test]
fn what_cannot_be_shown_is_refused_before_anything_is_written() {
    let desk = Desk::new();
    let model = emoji();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/super_resolution").display().to_string();
    for (args, words) in [
        (
            &["x", "--model", &model, "--ablate", "5.3"][..],
            &["there is no layer 5", "help: layers are counted from 0"][..],
        ),
        (&["x", "--model", &model, "--mask", "y"], &["no word \"y\" to mask", "help: the tokens spell"]),
        (&["x", "--model", &model, "--out", "a", "--svg", "a"], &["two results would be written to a"]),
        (&["x", "--model", &model, "--out", "a", "--csv", "./a"], &["two results would be written to ./a"]),
        (&["x", "--model", &model, "--out", "none/a"], &["none"]),
        (&["x", "--model", "none"], &["none/config.json: not found", "help: "]),
        (&["x", "--model", &tiny], &["whose attention cannot be shown", "help: "]),
        (&["", "--model", &model], &["the text is empty"]),
        (&["x", "--model", &model, "--compare", ""], &["the text is empty"]),
        (&["x", "--model", &model, "--layer", "99"], &["there is no layer 99: the model has 4"]),
        (&["x", "--model", &model, "--head", "99"], &["there is no head 99: the model has 4"]),
        (&["x", "--model", &model, "--to", "de"], &["languages are for translators"]),
        (
            &["x", "--csv", "x.png"],
            &["x.png: --csv writes CSV, not PNG", "help: name it x.csv; explain attention --svg draws"],
        ),
        (&["x", "--svg", "x.PNG"], &["x.PNG: --svg writes SVG, not PNG", "help: name it x.svg; "]),
        (
            &["x", "--json", "x.csv"],
            &["x.csv: --json writes JSON", "name it x.json; explain attention --csv writes CSV"],
        ),
        (&["x", "--out", "x.svg"], &["x.svg: --out writes HTML", "name it x.html; explain attention --svg writes SVG"]),
    ] {
        desk.conjure(&[&["explain", "attention"], args].concat()).failed(2, words);
        assert!(desk.files().is_empty(), "{args:?}");
    }
}

/// A page and tables under names that say nothing else.
#[test]
fn names_that_say_no_format_are_taken() {
    let desk = Desk::new();
    let model = emoji();
    let args =
        ["explain", "attention", "it", "--model", &model, "--out", "page.htm", "--csv", "w.txt", "--svg", "draw"];
    desk.conjure(&args).succeeded();
    assert_eq!(desk.files(), ["draw", "page.htm", "w.txt"]);
    let html = ["explain", "odds", "x", "--html", "x.json"];
    desk.conjure(&html).failed(2, &["x.json: --html writes HTML, not JSON", "help: name it x.html; "]);
}
