//! Language models' tokenizers and chat templates against the reference implementations (`tools/reference/text_tokenizers.py`).

use crate::fuzz_bodies_text as fuzz_bodies;
use conjure::tokens::{ChatTemplate, Date, Message, SentencePiece, Tokenizer};
use conjure_core::weights::gguf::Metadata;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_tokenizers").join(name)
}

fn json_file(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// All of the stream's steps, none of which ends in half a character.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.stream(skip);
    let mut text = String::new();
    for id in ids {
        let step = stream.push(*id).unwrap();
        assert!(!step.ends_with('\u{fffd}'), "{step:?}");
        text.push_str(&step);
    }
    text + &stream.finish().unwrap()
}

#[test]
fn sentencepiece_models_equal_the_reference() {
    let cases = json_file("cases.json");
    let lines = texts(&cases["lines"]);
    assert!(lines.len() > 190);
    for name in ["unigram", "bpe"] {
        let model = SentencePiece::open(fixture(&format!("{name}.model"))).unwrap();
        let cases = &cases[name];
        let expected = ids(&cases["ids"]);
        let decoded = texts(&cases["decoded"]);
        for (n, line) in lines.iter().enumerate() {
            assert_eq!(model.encode(line), expected[n], "{name}: {line:?}");
            assert_eq!(model.decode(&expected[n]), decoded[n], "{name}: {line:?}");
        }
        for (line, pieces) in lines.iter().zip(cases["pieces"].as_array().unwrap()) {
            assert_eq!(model.encode_as_pieces(line), texts(pieces), "{name}: {line:?}");
        }
        for (drawn, text) in ids(&cases["drawn"]).iter().zip(texts(&cases["drawn_decoded"])) {
            assert_eq!(model.decode(drawn), text, "{name}: {drawn:?}");
            let pieces: Vec<&str> = drawn.iter().map(|id| model.pieces()[*id as usize].text.as_str()).collect();
            assert_eq!(model.decode_pieces(&pieces), text, "{name}: {drawn:?}");
        }
    }
}

#[test]
fn tokenizer_json_equals_the_reference() {
    let cases = json_file("cases.json");
    let lines = texts(&cases["lines"]);
    for name in ["byte_level", "word_piece"] {
        let tokenizer = Tokenizer::from_folder(fixture(name)).unwrap();
        let cases = &cases[name];
        let expected = ids(&cases["ids"]);
        let (decoded, shown) = (texts(&cases["decoded"]), texts(&cases["shown"]));
        for (n, line) in lines.iter().enumerate() {
            assert_eq!(tokenizer.encode(line, true).unwrap(), expected[n], "{name}: {line:?}");
            assert_eq!(tokenizer.decode(&expected[n], true).unwrap(), decoded[n], "{name}: {line:?}");
            assert_eq!(tokenizer.decode(&expected[n], false).unwrap(), shown[n], "{name}: {line:?}");
            assert_eq!(streamed(&tokenizer, &expected[n], true), decoded[n], "{name}: {line:?}");
            assert_eq!(streamed(&tokenizer, &expected[n], false), shown[n], "{name}: {line:?}");
        }
    }
}

#[test]
fn a_folder_knows_its_marks_and_its_template() {
    let tokenizer = Tokenizer::from_folder(fixture("byte_level")).unwrap();
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.eos(), [2, 0]);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(200));
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(
        tokenizer.vocabulary_size(),
        json_file("byte_level/tokenizer.json")["added_tokens"][3]["id"].as_u64().unwrap() as usize + 1
    );
    let ids = tokenizer.encode_chat(&[Message::new("system", "s"), Message::new("user", "hello")]).unwrap();
    let text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 3);
    // Single tokens can be looked at even where they are no whole characters.
    let ids = tokenizer.encode(" the 🐱", false).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
    assert_eq!(bytes, " the 🐱".as_bytes());
    assert!(ids.iter().any(|id| tokenizer.token_text(*id).unwrap().starts_with("<0x")));
    assert_eq!(tokenizer.token_text(ids[0]).unwrap(), " the");
    assert_eq!(tokenizer.token(ids[0]).unwrap(), "Ġthe");
    assert_eq!(tokenizer.token(u32::MAX), None);
    let error = Tokenizer::from_folder(fixture("word_piece")).unwrap().encode_chat(&[]).unwrap_err();
    assert_eq!(error.to_string(), "the model has no chat template");
}

#[test]
fn streams_give_the_whole_text_and_never_half_a_character() {
    let cases = json_file("cases.json");
    for name in ["unigram", "bpe"] {
        let tokenizer = Tokenizer::from_sentencepiece(SentencePiece::open(fixture(&format!("{name}.model"))).unwrap());
        let all = ids(&cases[name]["ids"]).into_iter().chain(ids(&cases[name]["drawn"]));
        for ids in all {
            for skip in [false, true] {
                assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap(), "{name}: {ids:?}");
            }
        }
    }
    // An unfinished character is held back until the end, then shown as such.
    let tokenizer = Tokenizer::from_folder(fixture("byte_level")).unwrap();
    let cat = tokenizer.encode("x🐱", false).unwrap();
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(cat[0]).unwrap(), "x");
    assert_eq!(stream.push(cat[1]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    // Marks that decode to nothing cost nothing.
    let mut stream = tokenizer.stream(true);
    for _ in 0..1000 {
        assert_eq!(stream.push(2).unwrap(), "");
    }
    assert_eq!(stream.push(cat[0]).unwrap(), "x");
}

/// The header of a GGUF file with the vocabulary of `byte_level`.
fn gguf() -> Metadata {
    let file = json_file("byte_level/tokenizer.json");
    let mut tokens: Vec<(u64, String, i32)> = Vec::new();
    for (text, id) in file["model"]["vocab"].as_object().unwrap() {
        tokens.push((id.as_u64().unwrap(), text.clone(), if id.as_u64() < Some(3) { 3 } else { 1 }));
    }
    tokens.push((file["added_tokens"][3]["id"].as_u64().unwrap(), "<keep me>".into(), 4));
    tokens.sort();
    let merges = file["model"]["merges"].as_array().unwrap().iter().map(|merge| texts(merge).join(" "));
    let mut metadata = Metadata::new("toy.gguf");
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "qwen2");
    metadata.insert("tokenizer.ggml.tokens", tokens.iter().map(|(_, text, _)| text.clone()).collect::<Vec<_>>());
    metadata.insert("tokenizer.ggml.token_type", tokens.iter().map(|(_, _, kind)| *kind).collect::<Vec<_>>());
    metadata.insert("tokenizer.ggml.merges", merges.collect::<Vec<_>>());
    metadata.insert("tokenizer.ggml.bos_token_id", 0_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 0_u32);
    metadata.insert("tokenizer.ggml.add_bos_token", true);
    metadata.insert("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}");
    metadata
}

#[test]
fn a_gguf_vocabulary_equals_the_same_tokenizer_json() {
    let cases = json_file("cases.json");
    let tokenizer = Tokenizer::from_gguf(&gguf()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[0, 2][..]));
    for (line, expected) in texts(&cases["lines"]).iter().zip(ids(&cases["byte_level"]["ids"])) {
        // GGUF does not say that a token takes the white space after it.
        if !line.contains("<keep me> ") {
            assert_eq!(tokenizer.encode(line, true).unwrap(), expected, "{line:?}");
        }
    }
    let ids = tokenizer.encode_chat(&[Message::new("user", "hello")]).unwrap();
    assert_eq!(ids[0], 0);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello");
}

#[test]
fn gguf_vocabularies_that_lie_are_refused() {
    let refused = |change: &dyn Fn(&mut Metadata)| {
        let mut metadata = gguf();
        change(&mut metadata);
        let error = Tokenizer::from_gguf(&metadata).expect_err("refused");
        assert!(error.help().is_some(), "{error}");
        error.to_string()
    };
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (expected, error) in [
        ("lacks the key tokenizer.ggml.model", Tokenizer::from_gguf(&Metadata::new("m.gguf")).unwrap_err().to_string()),
        ("the tokenizer model \"rwkv\" is unknown", refused(&|m| drop(m.insert("tokenizer.ggml.model", "rwkv")))),
        (
            "the pre-tokenizer \"quux\" is unknown; known are default, gpt-2,",
            refused(&|m| drop(m.insert("tokenizer.ggml.pre", "quux"))),
        ),
        ("tokens have 2 types", refused(&|m| drop(m.insert("tokenizer.ggml.token_type", vec![1, 1])))),
        ("tokens have 1 scores", refused(&|m| drop(m.insert("tokenizer.ggml.scores", vec![1.0_f32])))),
        (
            "needs the token \"Quux\", which is missing",
            refused(&|m| drop(m.insert("tokenizer.ggml.merges", strings(&["Quux a"])))),
        ),
        ("merge 0 is \"ab\"", refused(&|m| drop(m.insert("tokenizer.ggml.merges", strings(&["ab"]))))),
        (
            "bos_token_id is 4000000000, but the vocabulary has",
            refused(&|m| drop(m.insert("tokenizer.ggml.bos_token_id", 4_000_000_000_u32))),
        ),
        (
            "eos_token_id is missing",
            refused(&|m| {
                *m = {
                    let mut other = Metadata::new("toy.gguf");
                    for (key, value) in m.iter().filter(|(key, _)| !key.ends_with("eos_token_id")) {
                        other.insert(key, value.clone());
                    }
                    other
                };
                m.insert("tokenizer.ggml.add_eos_token", true);
            }),
        ),
        (
            "have the same text \"a\"",
            refused(&|m| {
                m.insert("tokenizer.ggml.tokens", strings(&["a", "b", "a"]));
                m.insert("tokenizer.ggml.token_type", vec![1, 1, 1]);
            }),
        ),
        (
            "has the unknown type 9",
            refused(&|m| {
                m.insert("tokenizer.ggml.tokens", strings(&["a"]));
                m.insert("tokenizer.ggml.token_type", vec![9]);
            }),
        ),
        ("line 1: syntax error", refused(&|m| drop(m.insert("tokenizer.chat_template", "{% for %}")))),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn chat_templates_equal_jinja() {
    let file = json_file("templates.json");
    for case in file["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let marks = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let template = ChatTemplate::new(file["sources"][name].as_str().unwrap(), &marks).unwrap();
        let text = template.render(&messages, case["prompt"].as_bool().unwrap()).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn chat_templates_refuse_fail_and_end() {
    let file = json_file("templates.json");
    let render = |source: &str, roles: &[&str]| {
        let messages: Vec<Message> = roles.iter().map(|role| Message::new(*role, "x")).collect();
        ChatTemplate::new(source, &[("bos_token", "<s>")]).unwrap().render(&messages, true)
    };
    let source = |name: &str| file["sources"][name].as_str().unwrap();
    let error = render(source("gemma"), &["user", "user"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model's chat template refuses the conversation: Conversation roles must alternate user/assistant/user/assistant/..."
    );
    assert_eq!(error.exit_code(), 2);
    let error = render(source("mistral"), &["user", "tool"]).unwrap_err();
    assert!(error.to_string().ends_with("Only user and assistant roles are supported, got \"tool\""), "{error}");
    for endless in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for a in range(99999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for a in range(99999) %}{% set b = 'x' * 99999 %}{% endfor %}",
        "{% set a = range(1000) | list %}{% for i in range(90000) %}{% set b = a %}{% endfor %}",
    ] {
        let error = render(endless, &["user"]).unwrap_err();
        assert!(error.to_string().contains("does not end: stopped after"), "{error}");
        assert!(error.help().is_some());
    }
    assert!(render("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", &[]).is_err());
    let doubled = "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    let error = render(doubled, &[]).unwrap_err();
    assert!(error.to_string().contains("the chat template failed: "), "{error}");
    // Variables that hold themselves, lists that are too deep to print, and lists that would be longer than any memory.
    for (hostile, what) in [
        ("{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}", "hold a namespace"),
        ("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x | string }}", "hold a namespace"),
        ("{% set ns = namespace() %}{% set ns.x = {'a': ns} %}{{ ns }}", "hold a namespace"),
        ("{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}", "too deep"),
        (
            "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns }}",
            "too much",
        ),
        ("{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "too much"),
        ("{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x * 2 %}{% endfor %}", "too much"),
        (
            "{% macro f(x, n) %}{% if n > 0 %}{{ f(x + x, n - 1) }}{% else %}{{ x | length }}{% endif %}{% endmacro %}\
             {{ f([1], 60) }}",
            "too much",
        ),
        (
            "{% for a in [[1]] recursive %}{{ loop([a + a]) if loop.depth < 60 else a | length }}{% endfor %}",
            "too much",
        ),
    ] {
        let error = render(hostile, &["user"]).unwrap_err().to_string();
        assert!(error.contains("the chat template failed: ") && error.contains(what), "{hostile}: {error}");
    }
    let deep = format!("{{% set x = 1 %}}{}{{{{ x }}}}", "{% set x = [x] %}".repeat(50_000));
    assert!(render(&deep, &["user"]).unwrap_err().to_string().contains("too deep"));
    // What honest templates do.
    for (template, text) in [
        (
            "{% set ns = namespace(a=[], n=0) %}{% for m in messages %}{% set ns.a = ns.a + [m] %}{% set ns.n = ns.n + 1 %}\
          {% endfor %}{{ ns.a | length }} {{ ns.a[0].role }} {{ ns.n }}",
            "2 user 2",
        ),
        (
            "{% set a, b = messages[1:], messages[0]['role'] if messages else 'none' %}{{ a[0].role }} {{ b }}",
            "system user",
        ),
        ("{%- set x = namespace(on=false) -%}{%- set y = x -%}{% set y.on = not x.on %}{{ x.on }}", "True"),
        ("{% macro f(a, b=2) -%} {{ a }}{{ b }} {%- endmacro %}{{ f('x') }}{{ f('y', b=3) }}", "x2y3"),
        ("{% set x %}a = b{% endset %}{{ x }}{% set t = 1, 2 %}{{ t }}", "a = b(1, 2)"),
        ("{% for a in [[1], [2]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "12"),
    ] {
        assert_eq!(render(template, &["user", "system"]).unwrap(), text, "{template}");
    }
    let error = render("a\n{{ messages[0].quux.quux }}", &["user"]).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
    let error = ChatTemplate::new("{% if %}", &[]).unwrap_err();
    assert!(error.to_string().contains("not readable: line 1"), "{error}");
    assert!(ChatTemplate::new(&" ".repeat(2 << 20), &[]).is_err());
}

#[test]
fn dates_are_told_when_given_or_needed() {
    let template = ChatTemplate::new("{{ strftime_now('%A, %d %B %Y; %-d.%m.%y %b %a %F %H:%M %%') }}", &[]).unwrap();
    let own = "{% if strftime_now is defined %}{{ strftime_now('%F') }}{% else %}its own{% endif %}";
    let own = ChatTemplate::new(own, &[]).unwrap();
    assert_eq!(own.render(&[], false).unwrap(), "its own");
    assert_eq!(own.with_date(Date { year: 2024, month: 7, day: 6 }).render(&[], false).unwrap(), "2024-07-06");
    // Without a day of its own, today's; at midnight it may be the next.
    let today = |template: &ChatTemplate| template.clone().with_date(Date::today()).render(&[], false).unwrap();
    let (before, needed) = (today(&template), template.render(&[], false).unwrap());
    assert!(needed == before || needed == today(&template), "{needed}");
    let day = |year, month, day| template.clone().with_date(Date { year, month, day }).render(&[], false).unwrap();
    assert_eq!(day(2024, 7, 6), "Saturday, 06 July 2024; 6.07.24 Jul Sat 2024-07-06 00:00 %");
    assert!(day(2000, 2, 29).starts_with("Tuesday"));
    assert!(day(1999, 12, 31).starts_with("Friday"));
    assert!(Date::today().year >= 2025);
}

/// A small SentencePiece folder of the given class, and its other settings.
fn pieces_folder(class: &str, mut settings: Value) -> conjure::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("unigram.model"), folder.path().join("spiece.model")).unwrap();
    settings["tokenizer_class"] = json!(class);
    std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    Tokenizer::from_folder(folder.path())
}

#[test]
fn a_folder_with_a_sentencepiece_model_only_depends_on_its_class() {
    let model = SentencePiece::open(fixture("unigram.model")).unwrap();
    let size = model.pieces().len() as u32;
    let text = "the lamp";
    let plain = model.encode(text);
    let llama = pieces_folder("LlamaTokenizer", json!({"bos_token": "<s>", "eos_token": "</s>"})).unwrap();
    assert_eq!(llama.encode(text, true).unwrap(), [&[1], plain.as_slice()].concat());
    assert_eq!(llama.encode("<s>the lamp", false).unwrap(), [&[1], plain.as_slice()].concat());
    assert_eq!(llama.decode(&llama.encode(text, true).unwrap(), false).unwrap(), "<s> the lamp");
    let t5 = pieces_folder("T5TokenizerFast", json!({"extra_ids": 3})).unwrap();
    assert_eq!(t5.vocabulary_size() as u32, size + 3);
    assert_eq!(t5.encode("the<extra_id_0> lamp<extra_id_2>", true).unwrap().last(), Some(&2));
    assert_eq!(t5.token_id("<extra_id_0>"), Some(size + 2));
    assert_eq!(t5.encode("<extra_id_2>", false).unwrap(), [size]);
    let added = json!({"added_tokens_decoder": {"1": {"content": "<s>", "special": true}, (size.to_string()): {"content": "<new>", "special": false}}});
    let with_more = pieces_folder("LlamaTokenizer", added).unwrap();
    assert_eq!(with_more.encode("a<new>", false).unwrap().last(), Some(&size));
    assert_eq!(with_more.token_text(size).unwrap(), "<new>");
    for (class, settings, expected) in [
        ("XLMRobertaTokenizer", json!({}), "what a XLMRoberta tokenizer puts around its spiece.model is not known"),
        ("LlamaTokenizer", json!({"added_tokens_decoder": {"5": {"content": "<new>"}}}), "gives the id 5 to \"<new>\""),
        ("LlamaTokenizer", json!({"added_tokens_decoder": {"99999999": {"content": "<new>"}}}), "has the id 99999999"),
        ("LlamaTokenizer", json!({"added_tokens_decoder": {"x": {"content": "<new>"}}}), "has no id"),
    ] {
        let error = pieces_folder(class, settings).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.help().is_some());
    }
    let error = Tokenizer::from_folder(std::env::temp_dir().join("no such folder")).unwrap_err();
    assert!(error.to_string().contains("no tokenizer: neither tokenizer.json nor tokenizer.model"), "{error}");
}

#[test]
fn a_marian_folder_equals_transformers() {
    let cases = json_file("marian.json");
    let folder = tempfile::tempdir().unwrap();
    for name in ["source.spm", "target.spm"] {
        std::fs::copy(fixture("unigram.model"), folder.path().join(name)).unwrap();
    }
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(error.to_string().contains("vocab.json: it is missing beside source.spm"), "{error}");
    let vocabulary = folder.path().join("vocab.json");
    for (content, expected) in [
        (json!({"a": 1, "b": 1}), "the tokens \"a\" and \"b\" have the same id 1"),
        (json!({"a": -1}), "the token \"a\" has the id -1"),
        (json!({"</s>": 0}), "the token \"<unk>\" is missing"),
    ] {
        std::fs::write(&vocabulary, content.to_string()).unwrap();
        let error = Tokenizer::from_folder(folder.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    std::fs::write(&vocabulary, cases["vocabulary"].to_string()).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, &[0][..]));
    assert_eq!(tokenizer.vocabulary_size(), cases["vocabulary"].as_object().unwrap().len());
    let decoded = texts(&cases["decoded"]);
    for (n, (line, expected)) in texts(&cases["lines"]).iter().zip(ids(&cases["ids"])).enumerate() {
        assert_eq!(tokenizer.encode(line, true).unwrap(), expected, "{line:?}");
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), decoded[n], "{line:?}");
        assert_eq!(streamed(&tokenizer, &expected, true).trim_end(), decoded[n], "{line:?}");
    }
}

#[test]
fn tokenizer_files_that_lie_are_refused() {
    let valid = json_file("byte_level/tokenizer.json");
    let refused = |pointer: &str, value: Value| {
        let mut file = valid.clone();
        match file.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                file.pointer_mut(parent).unwrap()[key] = value;
            }
        }
        let error = Tokenizer::from_json(&file.to_string(), "t.json").expect_err(pointer);
        assert!(error.help().is_some());
        error.to_string()
    };
    let template =
        |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    for (expected, error) in [
        ("it has no model", refused("/model", json!(null))),
        ("model type \"Quux\" is unknown", refused("/model/type", json!("Quux"))),
        ("vocab does not suit", refused("/model/type", json!("Unigram"))),
        ("have the same id 5", refused("/model/vocab/quux", json!(5))),
        ("has the id 4294967295, more than", refused("/model/vocab/quux", json!(u32::MAX))),
        ("has the id -1", refused("/model/vocab/quux", json!(-1))),
        ("needs the token \"quux\", which is missing", refused("/model/merges", json!(["quux a"]))),
        ("needs the token \"a!\", which is missing", refused("/model/merges", json!([["a", "!"]]))),
        ("merge 0 is no pair", refused("/model/merges", json!(["a b c"]))),
        ("lacks the prefix", refused("/model/continuing_subword_prefix", json!("##"))),
        ("is added twice", refused("/added_tokens/1/content", json!("<|endoftext|>"))),
        ("but its place gives it the id", refused("/added_tokens/3/id", json!(99_999))),
        ("is white space itself", refused("/added_tokens/3/content", json!(" "))),
        ("more than 4096", refused("/added_tokens/3/content", json!("x".repeat(5000)))),
        ("unknown type \"Quux\"", refused("/decoder", json!({"type": "Quux"}))),
        ("no normalizers", refused("/normalizer", json!({"type": "Sequence"}))),
        (
            "normalizer has more than 64 parts",
            refused("/normalizer", json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 65]})),
        ),
        (
            "4097 times as long",
            refused("/normalizer", json!({"type": "Replace", "pattern": {"String": "a"}, "content": "x".repeat(4097)})),
        ),
        (
            "a pattern is empty",
            refused("/normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"})),
        ),
        ("is not base64", refused("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "?"}))),
        (
            "character map is damaged",
            refused("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "////fwAAAAA="})),
        ),
        ("has the length 0", refused("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
        (
            "cuts the end of tokens",
            refused("/decoder", json!({"type": "Strip", "content": "x", "start": 0, "stop": 1})),
        ),
        (
            "which is not declared",
            refused("/post_processor", template(json!([{"SpecialToken": {"id": "x", "type_id": 0}}]))),
        ),
        (
            "which is not declared",
            refused("/post_processor", template(json!([{"Sequence": {"id": "B", "type_id": 0}}]))),
        ),
        (
            "which is no token",
            refused("/post_processor", json!({"type": "BertProcessing", "sep": ["quux", 1], "cls": ["quux", 2]})),
        ),
        ("not readable as JSON", Tokenizer::from_json("{", "t.json").unwrap_err().to_string()),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    // What is only a setting of training or of batches does not change what a text is.
    let mut file = valid.clone();
    file["truncation"] = json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    file["model"]["dropout"] = json!(0.9);
    let changed = Tokenizer::from_json(&file.to_string(), "t.json").unwrap();
    let original = Tokenizer::from_json(&valid.to_string(), "t.json").unwrap();
    let text = "The lighthouse keeper lit the lamp";
    assert_eq!(changed.encode(text, true).unwrap(), original.encode(text, true).unwrap());
}

#[test]
fn folders_with_broken_settings_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("byte_level/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    for (name, content, expected) in [
        ("tokenizer_config.json", &b"[1]"[..], "tokenizer_config.json: not a JSON object"),
        ("generation_config.json", b"{", "generation_config.json: not readable as JSON"),
        ("chat_template.jinja", b"{% if %}", "chat_template.jinja: the chat template is not readable: line 1"),
        ("special_tokens_map.json", b"\xff", "special_tokens_map.json: byte 0 is not UTF-8"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = Tokenizer::from_folder(folder.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.help().is_some());
        std::fs::remove_file(path).unwrap();
    }
    // Ids that no token has are no end; the named mark is one.
    std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": [99999, -1, "x"], "bos_token_id": 99999}"#)
        .unwrap();
    std::fs::write(folder.path().join("special_tokens_map.json"), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ eos_token }}").unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, &[2][..]));
    assert_eq!(tokenizer.encode_chat(&[]).unwrap(), [2]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        for (name, open) in [
            ("unigram.model", fuzz_bodies::sentencepiece as fn(&[u8]) -> bool),
            ("bpe.model", fuzz_bodies::sentencepiece),
            ("byte_level/tokenizer.json", fuzz_bodies::tokenizer_json),
            ("word_piece/tokenizer.json", fuzz_bodies::tokenizer_json),
        ] {
            let mut bytes = std::fs::read(fixture(name)).unwrap();
            for (at, value) in &flips {
                let at = at.index(bytes.len());
                // JSON stays text, so that damage gets past the first check.
                bytes[at] = if name.ends_with("json") { b' ' + value % 95 } else { *value };
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            open(&bytes);
        }
    }

    #[test]
    fn any_text_can_be_encoded(text in "\\PC{0,40}") {
        for name in ["unigram", "bpe"] {
            let model = SentencePiece::open(fixture(&format!("{name}.model"))).unwrap();
            let ids = model.encode(&text);
            prop_assert!(ids.iter().all(|id| (*id as usize) < model.pieces().len()));
            prop_assert_eq!(model.encode_as_pieces(&text).len(), ids.len());
        }
        let tokenizer = Tokenizer::from_gguf(&gguf()).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn any_template_ends(source in "(\\{[{%]-? ?(for x in messages|if x|endfor|endif|set x = x|x|messages|[a-z|()'0-9+*~ ]{0,9}) ?-?[%}]\\}|[a-z ]{0,3}){1,8}") {
        fuzz_bodies::chat_template(source.as_bytes());
    }
}

/// What goes on with a text begins with the space that a text of its own does without.
#[test]
fn a_stream_after_other_ids_keeps_the_first_space() {
    let tokenizer = Tokenizer::from_sentencepiece(SentencePiece::open(fixture("unigram.model")).unwrap());
    let ids = tokenizer.encode("the lamp is red", false).unwrap();
    let first = (1..ids.len()).find(|n| tokenizer.decode(&ids[..*n], true).unwrap() == "the").unwrap();
    let text = |mut stream: conjure::tokens::DecodeStream| {
        let mut text: String = ids[first..].iter().map(|id| stream.push(*id).unwrap()).collect();
        text.push_str(&stream.finish().unwrap());
        text
    };
    assert_eq!(text(tokenizer.stream_after(&ids[..first], true).unwrap()), " lamp is red");
    assert_eq!(text(tokenizer.stream(true)), "lamp is red");
}
