//! Translators trained for some steps on some dozen sentences: they learn them by heart, and what they export translates.

use conjure::generate::text::Finish;
use conjure::generate::translate::{TranslateRequest, Translator};
use conjure::train::{Control, Event, Recipe, Training};
use std::collections::BTreeMap;
use std::path::Path;

const THINGS: [(&str, &str); 8] = [
    ("cat", "Katze"),
    ("house", "Haus"),
    ("tree", "Baum"),
    ("fish", "Fisch"),
    ("moon", "Mond"),
    ("boat", "Boot"),
    ("ball", "Ball"),
    ("hat", "Hut"),
];
const COLOURS: [(&str, &str); 7] = [
    ("red", "rot"),
    ("green", "grün"),
    ("blue", "blau"),
    ("old", "alt"),
    ("new", "neu"),
    ("big", "groß"),
    ("small", "klein"),
];

/// `red cat`, and in a German of our own `Katze rot`.
fn sentences() -> Vec<(String, String)> {
    let one = |(thing, colour): (&(&str, &str), &(&str, &str))| {
        (format!("{} {}", colour.0, thing.0), format!("{} {}", thing.1, colour.1))
    };
    COLOURS.iter().flat_map(|colour| THINGS.iter().map(move |thing| (thing, colour))).map(one).collect()
}

/// Trains as the recipe says; held out are `red cat`, `new cat` and `big house`, by their hashes; the last figures of training and validation.
fn train(folder: &Path, own: &str) -> [BTreeMap<String, f64>; 2] {
    let lines: String = sentences().iter().map(|(en, de)| format!("{en}\t{de}\n")).collect();
    let file = folder.join("sentences.tsv");
    std::fs::write(&file, format!("en\tde\n{lines}")).unwrap();
    let recipe = format!("objective = \"translation\"\nbatch = 16\n{own}");
    let recipe = Recipe::parse(&recipe, &[format!("data.file={:?}", file.display().to_string())]).unwrap();
    let mut last = [BTreeMap::new(), BTreeMap::new()];
    let mut training = Training::start(recipe, &folder.join("run")).unwrap();
    training
        .run(&mut |event| {
            match event {
                Event::Progress { figures, .. } => last[0] = figures.into_iter().collect(),
                Event::Validation { figures, .. } => last[1] = figures.into_iter().collect(),
                _ => {}
            }
            Control::Continue
        })
        .unwrap();
    last
}

fn translated(translator: &Translator, lines: &[String], to: &str, beams: usize) -> Vec<String> {
    let request = TranslateRequest { to: Some(to.into()), beams: Some(beams), ..TranslateRequest::default() };
    let made = translator.translate(lines, &request, &mut |_| true).unwrap();
    assert!(made.iter().all(|made| made.finish == Finish::End && made.score < 0.0));
    made.into_iter().map(|made| made.text).collect()
}

/// Both directions, greedy and by a search, with a few mistakes allowed.
fn knows_all(export: &Path) {
    let translator = Translator::open(export).unwrap();
    let (english, german): (Vec<String>, Vec<String>) = sentences().into_iter().unzip();
    for (from, expected, to) in [(&english, &german, "de"), (&german, &english, "en")] {
        for beams in [1, 3] {
            let made = translated(&translator, from, to, beams);
            let right = made.iter().zip(expected).filter(|(made, expected)| made == expected).count();
            assert!(right + 6 >= expected.len(), "to {to} with {beams} beams: {made:?}");
        }
    }
    let error = translator.translate(&["red cat"], &TranslateRequest::default(), &mut |_| true).unwrap_err();
    assert_eq!(error.help().unwrap(), "name one with --to; the model knows de, en");
    // What is likely is found likely.
    let request = TranslateRequest { to: Some("de".into()), ..TranslateRequest::default() };
    let perplexity = |target: &str| {
        let (sum, count) = translator.log_probability(&[("blue fish", target)], &request).unwrap();
        (-sum / count as f64).exp()
    };
    assert!(perplexity("Fisch blau") < 2.0 && perplexity("Boot alt") > 10.0);
}

const TRANSFORMER: &str = r#"
    steps = 250
    [optimizer]
    learning_rate = 6e-3
    [report]
    every = 50
    validate = 250
    [translation]
    vocabulary = 340
    dropout = 0.0
    label_smoothing = 0.1
    max_tokens = 24
    [translation.model]
    d_model = 32
    encoder_layers = 1
    decoder_layers = 1
    encoder_ffn_dim = 64
    decoder_ffn_dim = 64
    max_position_embeddings = 32
"#;

const LSTM: &str = r#"
    steps = 150
    [optimizer]
    learning_rate = 1e-2
    [report]
    every = 50
    validate = 150
    [translation]
    architecture = "lstm"
    vocabulary = 340
    dropout = 0.0
    max_tokens = 24
    [translation.model]
    embedding_size = 48
    hidden_size = 48
    num_layers = 1
    max_position_embeddings = 32
"#;

#[test]
fn a_transformer_learns_sentences_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    let [training, validation] = train(folder.path(), TRANSFORMER);
    // With smoothing the loss cannot go below the labels' own uncertainty, 0.1 ln(340 / 0.1) + 0.9 ln(1 / 0.9) or so.
    assert!(training["translator"] < 1.2, "{training:?}");
    assert!(validation["loss"] < 1.0 && validation["chrf"] > 60.0, "{validation:?}");
    let export = folder.path().join("run/export");
    knows_all(&export);
    let files =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert!(files.iter().all(|file| export.join(file).is_file()));
    let samples = std::fs::read_to_string(folder.path().join("run/samples/step-00000250.txt")).unwrap();
    let lines: Vec<&str> = samples.lines().collect();
    let right =
        lines.chunks(3).filter(|of| of[1].trim().strip_prefix("written: ") == of[2].trim().strip_prefix("wanted:  "));
    assert!(lines[0].contains(" > ") && right.count() > 0, "{samples}");
    goes_on(&export, folder.path());
}

/// Trained on from an export, which says what the model is: it stays as good, and learns to copy.
fn goes_on(export: &Path, folder: &Path) {
    let recipe = format!(
        r#"
        steps = 120
        [optimizer]
        learning_rate = 3e-3
        [report]
        every = 40
        validate = 120
        [translation]
        start = {:?}
        copied = 0.3
        dropout = 0.0
        max_tokens = 24
        "#,
        export.display().to_string()
    );
    let other = folder.join("goes_on");
    std::fs::create_dir(&other).unwrap();
    let [training, _] = train(&other, &recipe);
    assert!(training["translator"] < 1.2, "{training:?}");
    let export = other.join("run/export");
    knows_all(&export);
    let translator = Translator::open(&export).unwrap();
    let german: Vec<String> = sentences().into_iter().map(|(_, german)| german).collect();
    let copied = translated(&translator, &german, "de", 1);
    let right = copied.iter().zip(&german).filter(|(copied, german)| copied == german).count();
    assert!(right + 6 >= german.len(), "{copied:?}");
}

#[test]
fn lstms_learn_sentences_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    let [training, _] = train(folder.path(), LSTM);
    assert!(training["translator"] < 1.2, "{training:?}");
    knows_all(&folder.path().join("run/export"));
}

#[test]
fn settings_that_cannot_be_trained_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sentences.tsv");
    std::fs::write(&file, "en\tde\nred cat\tKatze rot\nold fish\tFisch alt\n").unwrap();
    let refusal = |change: &str| {
        let data = format!("data.file={:?}", file.display().to_string());
        let recipe = format!("objective = \"translation\"\nbatch = 2\n{TRANSFORMER}");
        let recipe = Recipe::parse(&recipe, &[data, change.to_owned()]).unwrap();
        Training::start(recipe, &folder.path().join("run")).err().unwrap().to_string()
    };
    assert_eq!(refusal("translation.label_smoothing=1.0"), "label_smoothing is 1, not from 0 to below 1");
    assert_eq!(refusal("translation.dropout=-0.5"), "dropout is -0.5, not from 0 to below 1");
    assert_eq!(refusal("translation.max_tokens=64"), "max_tokens is 64, but max_position_embeddings 32");
    assert_eq!(
        refusal("translation.model.vocab_size=9"),
        "translation.model.vocab_size comes of the data's vocabulary"
    );
    assert_eq!(refusal("translation.model.d_model=30"), "d_model 30 is not a multiple of encoder_attention_heads 4");
    assert!(refusal("translation.model.layers=3").contains("layers"));
    assert!(refusal("translation.vocabulary=100").contains("100 tokens has no room"));
    assert_eq!(refusal("translation.copied=1.0"), "copied is 1, not from 0 to below 1");
    assert_eq!(refusal("translation.start=\"nowhere\""), "translation.start brings its own model");
}
