//! Language models from texts, conversations and preferences to folders that are opened again.

#![allow(clippy::print_stdout, reason = "the measured figures, seen with --nocapture")]

use crate::language_models::{fixture, opened};
use conjure::Error;
use conjure::generate::image::LoraFile;
use conjure::generate::text::{LanguageModel, Prompt, Sampling, TextRequest};
use conjure::tokens::Tokenizer;
use conjure::train::{Control, Event, Recipe, Resume, Training};
use conjure_core::ops::with_plain;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 4] = [
    "The tide went out before dawn.",
    "A heron walked between the boats.",
    "Anna counted eleven of them.",
    "Far out a light went on and off.",
];

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

fn recipe(objective: &str, texts: &Path, top: &str, settings: &str) -> Recipe {
    let text = format!(
        "objective = \"{objective}\"\nseed = 3\n{top}\n[optimizer]\nlearning_rate = 1e-2\nweight_decay = 0.0\n\
         [schedule]\nshape = \"constant\"\nwarmup = 0\n[report]\nevery = 5\nvalidate = 5\nsamples = 0\n\
         [{objective}]\ntexts = [{texts:?}]\n{settings}\n"
    );
    Recipe::parse(&text, &[]).unwrap()
}

/// Trains; the first and the last value of each figure, of training and validation.
fn train(recipe: Recipe, run: &Path) -> BTreeMap<String, (f64, f64)> {
    let mut figures: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    Training::start(recipe, run)
        .unwrap()
        .run(&mut |event| {
            let (prefix, told) = match event {
                Event::Progress { figures, .. } => ("", figures),
                Event::Validation { figures, .. } => ("held out ", figures),
                _ => return Control::Continue,
            };
            for (name, value) in told {
                figures.entry(format!("{prefix}{name}")).or_insert((value, value)).1 = value;
            }
            Control::Continue
        })
        .unwrap();
    println!("{figures:?}");
    figures
}

const TINY: &str = "model = { model_type = \"llama\", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1, \
                    num_attention_heads = 2, num_key_value_heads = 1, max_position_embeddings = 64, tie_word_embeddings = true }";

fn greedy(model: &LanguageModel, prompt: Prompt) -> String {
    let request = TextRequest {
        max_tokens: Some(40),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        ..TextRequest::new(prompt)
    };
    model.generate(&request, &mut |_| true).unwrap().text
}

/// What was learned by heart is said again by the exported folder.
#[test]
fn a_language_model_learns_documents_by_heart_and_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    for (n, text) in DOCUMENTS.iter().enumerate() {
        write(folder.path(), &format!("texts/{n}.txt"), text);
    }
    let texts = folder.path().join("texts");
    for (name, settings) in [
        ("characters", format!("context = 32\nheld_out = 0.0\nvocabulary = \"characters\"\n{TINY}")),
        (
            "byte pairs",
            "context = 32\nseparate = true\nheld_out = 0.0\nvocabulary_size = 280\nstored = \"f16\"\n\
             model = { model_type = \"gpt2\", n_embd = 32, n_layer = 1, n_head = 2, n_positions = 64 }"
                .to_owned(),
        ),
    ] {
        let run = folder.path().join(name);
        let figures = train(recipe("language_model", &texts, "steps = 150\nbatch = 8", &settings), &run);
        let (first, last) = figures["decoder"];
        // The first tokens of a window cannot be known.
        assert!(first > 2.0 && last < 0.5, "{name}: {first} {last}");
        let model = LanguageModel::open(&run.join("export")).unwrap();
        assert_eq!(model.ends(), [0]);
        let said = greedy(&model, Prompt::Text("Anna counted el".to_owned()));
        assert_eq!(said, "even of them.", "{name}");
    }
}

#[test]
fn documents_are_held_out_by_their_hash_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String =
        (0..60).map(|i| format!("{{\"text\": \"{} Number {i}.\"}}\n", DOCUMENTS[i % DOCUMENTS.len()])).collect();
    let texts = write(folder.path(), "texts.jsonl", &lines);
    let settings = format!("context = 24\nheld_out = 0.2\nvocabulary = \"characters\"\n{TINY}");
    let figures =
        train(recipe("language_model", &texts, "steps = 40\nbatch = 8", &settings), &folder.path().join("run"));
    let (first, last) = figures["held out loss"];
    assert!(last < first - 0.3, "{first} {last}");
    let last_of = |name: &str| figures[&format!("held out {name}")].1;
    assert!((last_of("perplexity") / last.exp() - 1.0).abs() < 1e-9);
    // A character is a byte here, and about one in 36 is the end mark, which has none.
    let bits = last / std::f64::consts::LN_2;
    assert!((1.0..1.08).contains(&(last_of("bits_per_byte") / bits)), "{} {bits}", last_of("bits_per_byte"));
}

fn chats() -> String {
    let one = |question: &str, answer: &str| {
        serde_json::json!({ "messages": [
            { "role": "user", "content": question }, { "role": "assistant", "content": answer },
        ]})
    };
    let all = [one("How many boats?", "Eleven."), one("Who walked there?", "A heron."), one("And the light?", "Off.")];
    all.map(|line| format!("{line}\n")).concat()
}

#[test]
fn answers_are_learned_by_heart_with_all_weights_and_with_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let all = write(folder.path(), "chats.jsonl", &chats());
    // What a model of large random weights attends to, small adapters do not change: they learn one answer.
    let one = write(folder.path(), "chat.jsonl", chats().lines().nth(1).unwrap());
    let question = |model: &LanguageModel| {
        let messages = [conjure::tokens::Message::new("user", "Who walked there?")];
        greedy(model, Prompt::Ids(model.tokenizer().unwrap().encode_chat(&messages).unwrap()))
    };
    assert_ne!(question(&opened("llama", &[])), "A heron.");
    let base = fixture("llama");
    // Adapters leave the table of embeddings as it is, which bounds how sure such a model can be.
    for (name, network, texts, sure, more) in
        [("all", "decoder", &all, 0.05, ""), ("lora", "lora", &one, 0.3, "lora = { rank = 8, alpha = 16.0 }")]
    {
        let settings = format!("context = 100\nheld_out = 0.0\nstart = {base:?}\n{more}");
        let run = folder.path().join(name);
        let figures = train(recipe("supervised", texts, "steps = 60\nbatch = 3", &settings), &run);
        let (first, last) = figures[network];
        assert!(first > 1.0 && last < sure, "{name}: {first} {last}");
        let export = run.join("export");
        let model = if network == "lora" {
            assert!(!export.join("model.safetensors").exists());
            LanguageModel::open_with(&base, &[LoraFile { path: export, weight: 1.0 }]).unwrap()
        } else {
            LanguageModel::open(&export).unwrap()
        };
        assert_eq!(question(&model), "A heron.", "{name}");
    }
}

#[test]
fn an_adapter_is_trained_beside_the_quantised_weights_of_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("{}\n", serde_json::json!({ "text": DOCUMENTS[2] }));
    let texts = write(folder.path(), "texts.jsonl", &line.repeat(3));
    let base = fixture("llama.gguf");
    let settings = |more: &str| format!("context = 8\nheld_out = 0.0\nstart = {base:?}\n{more}");
    let run = folder.path().join("run");
    let adapted = settings("lora = { rank = 8, alpha = 16.0 }");
    let figures = train(recipe("language_model", &texts, "steps = 60\nbatch = 4", &adapted), &run);
    let (first, last) = figures["lora"];
    assert!(first > 2.0 && last < 0.8, "{first} {last}");
    let said = |adapters: &[LoraFile]| {
        let model = LanguageModel::open_with(&base, adapters).unwrap();
        with_plain(|| greedy(&model, Prompt::Text("Anna counted".to_owned())))
    };
    assert!(!said(&[]).contains("eleven"));
    assert!(said(&[LoraFile { path: run.join("export"), weight: 1.0 }]).starts_with(" eleven of them"));

    let whole = refused(recipe("language_model", &texts, "steps = 1\nbatch = 1", &settings("")));
    assert!(whole.to_string().ends_with("llama.gguf: holds GGUF weights, which are not trained themselves"), "{whole}");
}

#[test]
fn preferences_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let base = fixture("llama");
    for more in ["", "lora = { rank = 4, targets = [\"q_proj\", \"v_proj\", \"up_proj\"] }\nlabel_smoothing = 0.1"] {
        let settings = format!("context = 100\nheld_out = 0.0\nstart = {base:?}\n{more}");
        let run = folder.path().join(if more.is_empty() { "all" } else { "lora" });
        let figures = train(recipe("preference", &fixture("pairs.jsonl"), "steps = 15\nbatch = 3", &settings), &run);
        // The first stretch already learns; the last knows every pair.
        assert!(figures["margin"].1 > 1.0 && figures["margin"].1 > figures["margin"].0, "{figures:?}");
        assert_eq!(figures["accuracy"].1, 1.0);
    }
}

/// Everything that a run leaves but the time it took.
fn left_by(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for part in ["checkpoints", "export"] {
        for entry in std::fs::read_dir(folder.join(part)).unwrap() {
            let path = entry.unwrap().path();
            files.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(path).unwrap());
        }
    }
    files
}

#[test]
fn runs_that_are_interrupted_end_as_if_they_were_not() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, base) = (DOCUMENTS.map(|text| format!("{{\"text\": \"{text}\"}}\n")).concat(), fixture("llama"));
    let texts = write(folder.path(), "texts.jsonl", &lines);
    let chats = write(folder.path(), "chats.jsonl", &chats());
    let start = format!("context = 100\nheld_out = 0.3\nstart = {base:?}\nlora = {{ rank = 2 }}");
    let own = format!("context = 12\nvocabulary_size = 270\nheld_out = 0.3\n{TINY}");
    for (objective, texts, settings) in [
        ("language_model", &texts, &own),
        ("supervised", &chats, &start),
        ("preference", &fixture("pairs.jsonl"), &start),
    ] {
        let top = "steps = 6\nbatch = 2\naccumulate = 2\n[checkpoint]\nevery = 2";
        let recipe = || recipe(objective, texts, top, settings);
        let whole = folder.path().join(format!("{objective} whole"));
        train(recipe(), &whole);
        let broken = folder.path().join(format!("{objective} broken"));
        let outcome = Training::start(recipe(), &broken).unwrap().run(&mut |event| match event {
            Event::Update { step: 4, .. } => Control::Stop,
            _ => Control::Continue,
        });
        assert!(matches!(outcome, Err(Error::Cancelled)));
        let (mut training, notes) = Training::resume(&broken, &Resume::default()).unwrap();
        assert_eq!((training.step(), notes.len()), (4, 0), "{notes:?}");
        training.run(&mut |_| Control::Continue).unwrap();
        let (whole, broken) = (left_by(&whole), left_by(&broken));
        assert_eq!(whole.keys().collect::<Vec<_>>(), broken.keys().collect::<Vec<_>>());
        for (name, bytes) in &whole {
            assert!(bytes == &broken[name], "{objective}: {} differs", name.display());
        }
    }
}

fn refused(recipe: Recipe) -> Error {
    let folder = tempfile::tempdir().unwrap();
    Training::start(recipe, &folder.path().join("run")).err().expect("refused")
}

#[test]
fn documents_that_are_too_short_are_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let code = folder.path().join("code");
    std::fs::create_dir(&code).unwrap();
    write(&code, "a.py", &DOCUMENTS.concat());
    let warnings = |settings: &str| {
        let run = tempfile::tempdir().unwrap();
        let recipe =
            recipe("language_model", &code, "steps = 1\nbatch = 1", &format!("context = 8\n{settings}\n{TINY}"));
        let mut told = Vec::new();
        let mut training = Training::start(recipe, &run.path().join("run")).unwrap();
        training
            .run(&mut |event| {
                if let Event::Warning(warning) = event {
                    told.push(warning.replace(&code.display().to_string(), "F"));
                }
                Control::Continue
            })
            .unwrap();
        told
    };
    let characters = "held_out = 0.0\nvocabulary = \"characters\"";
    assert_eq!(warnings(characters), [""; 0]);
    write(&code, "__init__.py", "");
    assert_eq!(warnings(characters), ["F/__init__.py was left out, as it has fewer than 2 tokens"]);
    write(&code, "one.py", "x");
    let told = "2 documents were left out, as they have fewer than 2 tokens; the first is F/__init__.py";
    assert_eq!(warnings(characters), [told]);
    let pairs = warnings("held_out = 0.0\nvocabulary_size = 400000");
    assert!(pairs[1].ends_with(" tokens and not 400000: no other pair occurs twice"), "{pairs:?}");
}

#[test]
fn texts_that_cannot_be_learned_from_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let told = |texts: &Path, settings: &str| {
        let error = refused(recipe("language_model", texts, "steps = 1\nbatch = 1", settings));
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string().replace(&folder.path().display().to_string(), "F")
    };
    let characters = format!("context = 8\nheld_out = 0.0\nvocabulary = \"characters\"\n{TINY}");
    let good = write(folder.path(), "good.txt", &DOCUMENTS.concat());
    let short = write(folder.path(), "short.jsonl", "{\"text\": \"x\"}\n{\"text\": \"\"}\n");
    assert_eq!(told(&short, &characters), "the texts to train on have 0 tokens, a window 8 and one");
    let keyless = write(folder.path(), "keyless.jsonl", "{\"text\": \"long enough\"}\n{\"body\": \"x\"}\n");
    assert_eq!(told(&keyless, &characters), "F/keyless.jsonl: line 2: lacks \"text\"");
    std::fs::write(folder.path().join("bytes.txt"), b"abc\xff").unwrap();
    assert_eq!(told(&folder.path().join("bytes.txt"), &characters), "F/bytes.txt: byte 3 is not UTF-8");
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    assert_eq!(told(&folder.path().join("empty"), &characters), "F/empty: the folder holds no texts");
    let small = write(folder.path(), "small.txt", "ab");
    assert_eq!(told(&small, &characters), "the texts to train on have 3 tokens, a window 8 and one");
    assert!(told(&good, "held_out = 0.0").contains("the recipe describes no model"));
    assert!(told(&good, &format!("held_out = 2.0\n{TINY}")).contains("held_out is 2"));
    assert!(told(&good, &format!("lora = {{}}\n{TINY}")).contains("lora is trained beside a finished model"));
    assert!(told(&good, &format!("vocabulary_size = 100\n{TINY}")).contains("100 byte pairs"));
    assert!(told(&good, &format!("start = {:?}\n{TINY}", fixture("llama"))).contains("its own model"));
    let wide = format!("context = 500\nheld_out = 0.0\nstart = {:?}", fixture("llama"));
    assert!(told(&good, &wide).contains("context is 500; the model reads 2 to 128"));
    let bad = "held_out = 0.0\nmodel = { model_type = \"llama\", hidden_size = 30, num_attention_heads = 4 }";
    assert!(told(&good, bad).starts_with("model: "), "{}", told(&good, bad));
}

#[test]
fn conversations_and_pairs_that_cannot_be_learned_from_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let base = fixture("llama");
    let told = |objective: &str, lines: &str, more: &str| {
        let texts = write(folder.path(), "x.jsonl", lines);
        let settings = format!("context = 100\nheld_out = 0.0\nstart = {base:?}\n{more}");
        let error = refused(recipe(objective, &texts, "steps = 1\nbatch = 1", &settings));
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string().replace(&folder.path().display().to_string(), "F")
    };
    let chat = |lines: &str| told("supervised", lines, "");
    assert_eq!(chat("{\"message\": []}"), "F/x.jsonl: line 1: lacks \"messages\"");
    assert_eq!(chat("{\"messages\": []}"), "F/x.jsonl: line 1: \"messages\" is empty");
    assert_eq!(chat("\n{\"messages\": [{\"role\": \"user\"}]}"), "F/x.jsonl: line 2: message 1 lacks \"content\"");
    let question = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}";
    assert_eq!(chat(question), "F/x.jsonl: line 1: no message has the role \"assistant\"");
    let long = format!("{{\"messages\": [{{\"role\": \"assistant\", \"content\": \"{}\"}}]}}", "word ".repeat(100));
    assert_eq!(chat(&long), "no conversation is left to learn from");
    let pair = |lines: &str| told("preference", lines, "");
    assert_eq!(pair("{\"prompt\": \"a\", \"chosen\": \"b\"}"), "F/x.jsonl: line 1: lacks \"rejected\"");
    assert_eq!(pair("{\"chosen\": \"b\", \"rejected\": \"c\"}"), "F/x.jsonl: line 1: lacks \"prompt\"");
    let same = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}";
    assert_eq!(pair(same), "F/x.jsonl: line 1: \"chosen\" and \"rejected\" are the same");
    let good = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}";
    assert!(told("preference", good, "beta = 0.0").contains("beta is 0"));
    assert!(told("preference", good, "label_smoothing = 0.5").contains("label_smoothing is 0.5"));
    assert!(told("preference", good, "lora = { rank = 0 }").contains("rank 0"));
    assert!(told("preference", good, "lora = { targets = [\"c_attn\"] }").contains("\"c_attn\" is no layer"));
    let no_model = refused(recipe("supervised", &folder.path().join("x.jsonl"), "steps = 1\nbatch = 1", ""));
    assert!(no_model.to_string().contains("names no model"), "{no_model}");
}

/// The committed recipes can be read, and ask for what there is.
#[test]
fn the_recipes_begin_with_the_users_own_texts() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..40).map(|i| format!("{} {i}\n", DOCUMENTS[i % 4])).collect();
    let texts = write(folder.path(), "text.txt", &text);
    let chats = write(folder.path(), "chats.jsonl", &chats());
    let base = fixture("llama");
    for (name, objective, texts, more) in [
        ("language_model", "language_model", &texts, vec!["language_model.document_bytes=1024".to_owned()]),
        (
            "language_model_lora",
            "language_model",
            &texts,
            vec![format!("language_model.start={base:?}"), "language_model.context=64".to_owned()],
        ),
        (
            "supervised",
            "supervised",
            &chats,
            vec![format!("supervised.start={base:?}"), "supervised.context=100".to_owned()],
        ),
        (
            "preference",
            "preference",
            &fixture("pairs.jsonl"),
            vec![format!("preference.start={base:?}"), "preference.context=100".to_owned()],
        ),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/{name}.toml"));
        let mut changes =
            vec![format!("{objective}.texts=[{texts:?}]"), "steps=1".to_owned(), "accumulate=1".to_owned()];
        changes.extend(["batch=2".to_owned(), format!("{objective}.held_out=0.1")]);
        changes.extend(more);
        let recipe = Recipe::read(&path, &changes).unwrap();
        let run = folder.path().join(name);
        Training::start(recipe, &run).unwrap().run(&mut |_| Control::Continue).unwrap();
        assert!(run.join("export").read_dir().unwrap().count() >= 2, "{name}");
    }
    let tokenizer = Tokenizer::from_folder(folder.path().join("language_model/export")).unwrap();
    assert!(tokenizer.vocabulary_size() < 60, "characters");
}
