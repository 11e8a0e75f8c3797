//! Translations are those of transformers' `generate` (`tools/reference/translate.py`).

use conjure::generate::text::Finish;
use conjure::generate::translate::{Event, TranslateRequest, Translator};
use serde_json::Value;
use std::path::{Path, PathBuf};

struct Case {
    folder: PathBuf,
    expected: Value,
    translator: Translator,
}

impl Case {
    fn open(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/translate");
        let text = std::fs::read_to_string(fixtures.join(format!("{name}.json"))).unwrap();
        let folder = fixtures.join(name);
        Self { translator: Translator::open(&folder).unwrap(), expected: serde_json::from_str(&text).unwrap(), folder }
    }

    fn lines(&self) -> Vec<String> {
        serde_json::from_value(self.expected["lines"].clone()).unwrap()
    }

    /// To the language of the fixture.
    fn request(&self) -> TranslateRequest {
        let to = self.expected["to"].as_str().map(str::to_owned);
        TranslateRequest { to, ..TranslateRequest::default() }
    }

    fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        serde_json::from_value(self.expected["made"][name]["ids"].clone()).unwrap()
    }

    #[track_caller]
    fn agrees(&self, name: &str, request: &TranslateRequest) {
        let made = self.translator.translate(&self.lines(), request, &mut |_| true).unwrap();
        let ids: Vec<Vec<u32>> = made.iter().map(|made| made.ids.clone()).collect();
        assert_eq!(ids, self.ids(name), "{name}");
        for (n, made) in made.iter().enumerate() {
            let reference = &self.expected["made"][name];
            assert_eq!(Value::from(made.text.trim()), reference["texts"][n].as_str().unwrap().trim(), "{name} {n}");
            if let Some(score) = reference["scores"][n].as_f64() {
                assert!((made.score - score).abs() < 1e-4, "{name} {n}: {} is not {score}", made.score);
            }
        }
    }
}

const CASES: [&str; 2] = ["marian", "t5"];

#[test]
fn sources_are_those_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let request = case.request();
        let sources: Vec<Vec<u32>> =
            case.lines().iter().map(|line| case.translator.encode(line, &request).unwrap()).collect();
        assert_eq!(serde_json::to_value(sources).unwrap(), case.expected["sources"], "{name}");
    }
}

#[test]
fn greedy_and_beams_are_those_of_the_reference_in_a_padded_batch() {
    for name in CASES {
        let case = Case::open(name);
        let usual = case.request();
        case.agrees("greedy", &TranslateRequest { beams: Some(1), ..usual.clone() });
        case.agrees("default", &usual);
        case.agrees("short", &TranslateRequest { max_tokens: Some(3), ..usual });
    }
}

/// The end that Marian's folder forces at the last token is an end only where the model would have ended there itself.
#[test]
fn a_text_that_was_cut_is_told_from_one_that_ended() {
    use Finish::{End, Length};
    let case = Case::open("marian");
    let whole = case.ids("greedy");
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [15, 1, 1, 3, 3]);
    for (most, finishes) in [(3, [Length, End, End, End, End]), (2, [Length, End, End, Length, Length])] {
        let request = TranslateRequest { beams: Some(1), max_tokens: Some(most), ..case.request() };
        let made = case.translator.translate(&case.lines(), &request, &mut |_| true).unwrap();
        for ((made, whole), finish) in made.iter().zip(&whole).zip(finishes) {
            assert_eq!((&made.finish, made.ids.last()), (&finish, Some(&0)), "{made:?}");
            assert_eq!(made.ids[..made.ids.len() - 1], whole[..made.ids.len() - 1]);
        }
    }
    // A search's text, too; what the search found before the last token ended by itself.
    let request = TranslateRequest { max_tokens: Some(3), ..case.request() };
    let made = case.translator.translate(&case.lines(), &request, &mut |_| true).unwrap();
    assert_eq!((&made[0].finish, made[0].ids.len()), (&Length, 3));
    assert_eq!((&made[2].finish, made[2].ids.len()), (&End, 1));
}

/// What `generation_config.json` says of the search.
#[test]
fn searches_end_as_the_folder_says() {
    for name in CASES {
        for (setting, entries) in [
            ("first", r#""num_beams": 3, "length_penalty": 2.0, "early_stopping": true"#),
            ("never", r#""num_beams": 4, "length_penalty": 0.7, "early_stopping": "never""#),
        ] {
            let case = Case::open(name);
            let folder = tempfile::tempdir().unwrap();
            for file in std::fs::read_dir(&case.folder).unwrap().map(|file| file.unwrap().path()) {
                std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
            }
            let path = folder.path().join("generation_config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            let mut settings: Value = serde_json::from_str(&text).unwrap();
            let changes: Value = serde_json::from_str(&format!("{{{entries}}}")).unwrap();
            for (key, value) in changes.as_object().unwrap() {
                settings[key] = value.clone();
            }
            std::fs::write(&path, settings.to_string()).unwrap();
            // The task's own settings would come first.
            let config = folder.path().join("config.json");
            let text = std::fs::read_to_string(&config).unwrap();
            let mut value: Value = serde_json::from_str(&text).unwrap();
            if let Some(tasks) = value.get_mut("task_specific_params").and_then(Value::as_object_mut) {
                for task in tasks.values_mut().filter_map(Value::as_object_mut) {
                    task.retain(|key, _| key == "prefix" || key == "max_length");
                }
                std::fs::write(&config, value.to_string()).unwrap();
            }
            let case = Case { translator: Translator::open(folder.path()).unwrap(), ..case };
            case.agrees(setting, &case.request());
        }
    }
}

#[test]
fn pieces_and_lines_come_while_it_is_written() {
    let case = Case::open("marian");
    let request = TranslateRequest { beams: Some(1), ..case.request() };
    let lines = ["a cat", "", "The lamp."];
    let mut written = vec![String::new(); 3];
    let mut finished = Vec::new();
    let made = case
        .translator
        .translate(&lines, &request, &mut |event| {
            match event {
                Event::Piece { line, text } => written[*line].push_str(text),
                Event::Step { .. } => {}
                Event::Line { line, translation } => {
                    // The rest is what was held back.
                    assert!(translation.text.starts_with(written[*line].as_str()), "{translation:?} {written:?}");
                    finished.push(*line);
                }
            }
            true
        })
        .unwrap();
    finished.sort_unstable();
    assert_eq!(finished, [0, 1, 2]);
    assert_eq!((made[1].text.as_str(), made[1].ids.len()), ("", 0));
    assert_eq!(made[0].ids, case.ids("greedy")[2]);
    assert_eq!(made[2].ids, case.ids("greedy")[0]);
    // Asked to stop at once: what is written is kept, and told apart.
    let stopped =
        case.translator.translate(&lines, &request, &mut |event| matches!(event, Event::Line { .. })).unwrap();
    assert_eq!((&stopped[2].finish, stopped[2].ids.len()), (&Finish::Cancelled, 1));
}

#[test]
fn what_a_model_does_not_know_is_refused_with_what_it_knows() {
    let marian = Case::open("marian").translator;
    let refusal = |translator: &Translator, from: Option<&str>, to: Option<&str>, text: &str| {
        let request = TranslateRequest {
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            ..TranslateRequest::default()
        };
        let error = translator.translate(&[text], &request, &mut |_| true).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        (error.to_string(), error.help().unwrap_or_default().to_owned())
    };
    let (message, help) = refusal(&marian, None, Some("it"), "a cat");
    assert_eq!(message, "the model does not know the target language \"it\"");
    assert_eq!(help, "it knows de, fr, zh_Hant");
    let long = "a cat ".repeat(100);
    let (message, help) = refusal(&marian, None, Some("de"), &long);
    assert!(
        message.starts_with("the text has ") && message.ends_with("tokens, the model reads 64 at once"),
        "{message}"
    );
    assert_eq!(help, "give it sentence by sentence; conjure translate --file reads one a line");
    let request = TranslateRequest { to: Some("de".into()), ..TranslateRequest::default() };
    let error = marian.translate(&["a cat", long.as_str()], &request, &mut |_| true).unwrap_err();
    assert!(error.to_string().starts_with("line 2: the text has "), "{error}");
    let error =
        marian.translate(&["a cat"], &TranslateRequest { max_tokens: Some(65), ..request }, &mut |_| true).unwrap_err();
    assert_eq!(error.to_string(), "65 tokens are asked for, the model writes 64 at most");

    let t5 = Case::open("t5").translator;
    assert_eq!(refusal(&t5, None, Some("ro"), "a cat").0, "to ro, but from which language?");
    assert!(refusal(&t5, Some("en"), Some("xx"), "a cat").1.starts_with("it knows ar, bg, "));
}

/// `log p` of what was written is what the search summed up.
#[test]
fn probabilities_of_targets_are_those_of_writing_them() {
    let case = Case::open("marian");
    let request = case.request();
    let made = case.translator.translate(&case.lines(), &request, &mut |_| true).unwrap();
    let ended = made.iter().filter(|made| made.finish == Finish::End && made.ids.len() < 15);
    let mut seen = 0;
    for made in ended {
        let pairs = [(made.source_ids.clone(), made.ids.clone())];
        let (sum, count) = case.translator.model().log_probability(&pairs).unwrap();
        assert!((sum / count as f64 - made.score).abs() < 1e-4, "{sum} {count} {}", made.score);
        seen += 1;
    }
    assert!(seen > 0, "no text ended by itself");
}
