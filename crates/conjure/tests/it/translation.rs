//! Texts to translate: made from packages, drawn, measured as sacreBLEU does.

use conjure::data::Split;
use conjure::data::emoji::packages::{ANNOTATIONS, DERIVED_ANNOTATIONS, NAMES, Packages};
use conjure::data::translation::{Translations, make};
use conjure::evaluate::dictionary::Dictionary;
use conjure::evaluate::translation::{Tokenizer, bleu, chrf, held_out};
use conjure_core::rng::Torch;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/translation_scores.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn lines_are_cut_as_sacrebleu_cuts_them() {
    let fixture = fixture();
    let lines = strings(&fixture["lines"]);
    for (name, expected) in fixture["tokenized"].as_object().unwrap() {
        let tokenizer = Tokenizer::named(name).unwrap();
        for (line, expected) in lines.iter().zip(expected.as_array().unwrap()) {
            assert_eq!(tokenizer.words(line), strings(expected), "{name}: {line:?}");
        }
    }
    assert_eq!(
        ["zh-hant", "ja", "th", "de", "ko"].map(|l| Tokenizer::for_language(l).name()),
        ["zh", "char", "char", "13a", "13a"]
    );
}

#[test]
fn corpora_score_as_sacrebleu_scores_them() {
    let fixture = fixture();
    let close = |a: f64, b: &Value| (a - b.as_f64().unwrap()).abs() < 1e-9;
    let corpora = fixture["corpora"].as_array().unwrap();
    assert_eq!(corpora.len(), 23);
    for (n, corpus) in corpora.iter().enumerate() {
        let hypotheses = strings(&corpus["hypotheses"]);
        let references: Vec<Vec<String>> = corpus["references"].as_array().unwrap().iter().map(strings).collect();
        let tokenizer = Tokenizer::named(corpus["tokenizer"].as_str().unwrap()).unwrap();
        let found = bleu(&hypotheses, &references, tokenizer).unwrap();
        assert!(close(found.score, &corpus["bleu"]), "corpus {n}: {} is not {}", found.score, corpus["bleu"]);
        assert!(close(found.brevity_penalty, &corpus["brevity_penalty"]), "corpus {n}");
        assert!(found.precisions.iter().enumerate().all(|(i, p)| close(*p, &corpus["precisions"][i])), "corpus {n}");
        assert_eq!((found.words, found.reference_words), (count(&corpus["words"]), count(&corpus["reference_words"])));
        let characters = chrf(&hypotheses, &references).unwrap();
        assert!(close(characters.score, &corpus["chrf"]), "corpus {n}: {} is not {}", characters.score, corpus["chrf"]);
        let signed = |signature: &Value| signature.as_str().unwrap().rsplit_once(':').unwrap().0.to_owned();
        let ours = |signature: &str| signature.rsplit_once(":conjure-").unwrap().0.to_owned();
        assert_eq!(ours(&found.signature), signed(&corpus["bleu_signature"]));
        assert_eq!(ours(&characters.signature), signed(&corpus["chrf_signature"]));
    }
}

fn count(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let refused = |hypotheses: &[String], references: &[Vec<String>]| {
        let (one, two) = (bleu(hypotheses, references, Tokenizer::Mteval13a), chrf(hypotheses, references));
        assert_eq!(one.as_ref().unwrap_err().to_string(), two.unwrap_err().to_string());
        one.unwrap_err().to_string()
    };
    assert!(refused(&[], &[vec![]]).contains("no translations"));
    assert!(refused(&lines(&["a"]), &[]).contains("no references"));
    assert_eq!(
        refused(&lines(&["a"]), &[lines(&["a"]), lines(&["a", "b"])]),
        "1 translations, and 2 lines in reference 2"
    );
}

/// Packages with a few emoji and symbols in three languages, unpacked. Thumbs up and down are one identity, which the fixed
/// rule holds out.
fn packages(root: &Path) -> Packages {
    let save = |package: &str, file: &str, content: String| {
        let path = root.join("node_modules").join(package).join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for package in [&NAMES, &ANNOTATIONS, &DERIVED_ANNOTATIONS] {
        save(package.name, "package.json", json!({ "version": package.version }).to_string());
        save(package.name, "LICENSE", format!("the licence of {}", package.name));
    }
    let emoji = |labels: [&str; 3], tags: [&str; 2]| {
        json!([
            { "label": labels[0], "hexcode": "1F44D", "tags": [], "group": 1 },
            { "label": labels[1], "hexcode": "1F431", "tags": tags, "group": 1 },
            { "label": "regional indicator A", "hexcode": "1F1E6" },
            { "label": labels[2], "hexcode": "1F1EB-1F1F7", "tags": ["FR"], "group": 2 },
        ])
    };
    save(NAMES.name, "en/data.json", emoji(["thumbs up", "cat face", "flag: France"], ["cat", "pet"]).to_string());
    save(
        NAMES.name,
        "de/data.json",
        emoji(["Daumen hoch", "Katzengesicht", "Flagge: Frankreich"], ["katze", "haustier"]).to_string(),
    );
    let annotations = |package: &str, key: &str, language: &str, content: Value| {
        let text = json!({ key: { "identity": { "language": language }, "annotations": content } }).to_string();
        save(package, &format!("{key}/{language}/annotations.json"), text);
    };
    let said = |texts: [[&str; 3]; 4]| {
        let one = |[name, a, b]: [&str; 3]| json!({ "default": [a, b], "tts": [name] });
        json!({ "🐱": one(texts[0]), "🐈": one(texts[1]), "🐕": one(texts[2]), "👎": one(texts[3]), "👍🏽": one(texts[3]) })
    };
    let english =
        [["cat face", "cat", "pet"], ["cat", "pet", "animal"], ["dog", "pet", "animal"], ["thumbs down", "hand", "no"]];
    let german = [
        ["Kopf einer Katze", "Haustier", "Katze"],
        ["Katze", "Tier", "Haustier"],
        ["Hund", "Haustier", "Tier"],
        ["Daumen runter", "Hand", "nein"],
    ];
    let norwegian = [
        ["katteansikt", "katt", "dyr"],
        ["katt", "dyr", "husdyr"],
        ["hund", "dyr", "husdyr"],
        ["tommel ned", "hånd", "nei"],
    ];
    annotations(ANNOTATIONS.name, "annotations", "en", said(english));
    annotations(ANNOTATIONS.name, "annotations", "de", said(german));
    annotations(ANNOTATIONS.name, "annotations", "no", said(norwegian));
    let flags = |name: &str, euro: &str| json!({ "🇫🇷": { "default": ["x"], "tts": [name] }, "€": { "tts": [euro] }, "₿": { "tts": ["↑↑↑"] } });
    annotations(DERIVED_ANNOTATIONS.name, "annotationsDerived", "en", flags("flag: France", "Euro"));
    annotations(DERIVED_ANNOTATIONS.name, "annotationsDerived", "de", flags("Flagge: Frankreich", "Euro"));
    annotations(DERIVED_ANNOTATIONS.name, "annotationsDerived", "no", flags("flagg: Frankrike", "euro"));
    Packages::Folder(root.to_owned())
}

fn languages(languages: &[&str]) -> Vec<String> {
    languages.iter().map(|language| (*language).to_owned()).collect()
}

#[test]
fn names_of_all_packages_become_one_file_that_describes_itself() {
    let root = tempfile::tempdir().unwrap();
    let made = make::make(&languages(&["en", "de", "nb"]), &packages(root.path())).unwrap();
    let mut seen = Vec::new();
    let summary = made.save(&root.path().join("one"), &mut |done, of| {
        seen.push((done, of));
        Ok(())
    });
    let summary = summary.unwrap();
    assert_eq!(seen, [(0, 3), (3, 3)]);
    let set = Translations::open(&root.path().join("one").join(make::FILE_NAME)).unwrap();
    assert_eq!((set.languages(), set.digest()), (&languages(&["de", "en", "nb"])[..], summary.sha256.as_str()));
    let concepts: Vec<&str> = set.entries().iter().map(|entry| entry.concept.as_str()).collect();
    let expected = ["1f1eb-1f1f7", "1f1eb-1f1f7/region", "1f408", "1f415", "1f431", "1f44d", "1f44e", "20ac"];
    assert_eq!(concepts, expected, "no skin tones, no parts of flags, no placeholders");
    let entry = |concept: &str| set.entries().iter().find(|entry| entry.concept == concept).unwrap();
    let cat = entry("1f431");
    assert_eq!(cat.names("de"), ["Katzengesicht", "Kopf einer Katze"], "both names where they differ");
    assert_eq!(cat.keywords("de"), ["Haustier", "Katze"], "once, written as CLDR does");
    assert_eq!((cat.names("en"), cat.names("nb")), (&["cat face".to_owned()][..], &["katteansikt".to_owned()][..]));
    assert_eq!(entry("1f1eb-1f1f7/region").texts["nb"], ["Frankrike"]);
    assert_eq!(entry("1f1eb-1f1f7").keywords("en"), ["x"], "a country's code is no word");
    assert_eq!(entry("20ac").texts["nb"], ["euro"]);
    let held: Vec<&str> =
        set.entries().iter().filter(|e| e.split != Split::Train).map(|e| e.concept.as_str()).collect();
    assert_eq!(held, ["1f44d", "1f44e"]);
    assert_eq!((summary.entries, summary.held_out, summary.flags), (8, 2, 2));
    assert_eq!(
        (summary.languages["nb"].entries, summary.languages["nb"].names, summary.languages["de"].names),
        (7, 7, 9)
    );
    assert_eq!(summary.sources[2]["version"], DERIVED_ANNOTATIONS.version);

    let archive = std::fs::File::open(root.path().join("one").join(make::FILE_NAME)).unwrap();
    let mut archive = zip::ZipArchive::new(archive).unwrap();
    let licence = std::io::read_to_string(archive.by_name("licences/cldr-annotations-full.txt").unwrap()).unwrap();
    assert_eq!(licence, "the licence of cldr-annotations-full");
    let description = std::io::read_to_string(archive.by_name("dataset.json").unwrap()).unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    assert_eq!((&description["entries"], &description["sources"][0]["licence"]), (&json!(8), &json!("MIT")));

    made.save(&root.path().join("two"), &mut |_, _| Ok(())).unwrap();
    let bytes = |folder: &str| std::fs::read(root.path().join(folder).join(make::FILE_NAME)).unwrap();
    assert!(bytes("one") == bytes("two"), "the same request gives the same bytes");
    let stopped = made.save(&root.path().join("three"), &mut |_, _| Err(conjure::Error::Cancelled));
    assert!(matches!(stopped, Err(conjure::Error::Cancelled)));
}

#[test]
fn no_pair_that_is_drawn_is_held_out() {
    let root = tempfile::tempdir().unwrap();
    make::make(&languages(&["en", "de", "nb"]), &packages(root.path()))
        .unwrap()
        .save(root.path(), &mut |_, _| Ok(()))
        .unwrap();
    let set = Translations::open(&root.path().join(make::FILE_NAME)).unwrap();
    let mut held = BTreeSet::new();
    for from in set.languages() {
        for to in set.languages().iter().filter(|to| *to != from) {
            held.extend(set.held_out(from, to).into_iter().map(|pair| (pair.from, pair.source, pair.to, pair.target)));
        }
    }
    assert_eq!(held.len(), 8, "thumbs up in two languages, thumbs down in three");
    let mut generator = Torch::new(1);
    for (n, _) in set.entries().iter().enumerate().filter(|(_, entry)| entry.split == Split::Train) {
        for _ in 0..300 {
            let pair = set.draw(n, 0.0, &mut generator);
            assert!(!pair.source.to_lowercase().contains("thumb") && !pair.target.to_lowercase().contains("daumen"));
            assert!(!held.contains(&(pair.from, pair.source, pair.to, pair.target)));
        }
    }
}

#[test]
fn the_dictionary_is_measured_on_held_out_names() {
    let root = tempfile::tempdir().unwrap();
    make::make(&languages(&["en", "de"]), &packages(root.path()))
        .unwrap()
        .save(root.path(), &mut |_, _| Ok(()))
        .unwrap();
    let set = Translations::open(&root.path().join(make::FILE_NAME)).unwrap();
    let dictionary = Dictionary::learn(&set, "en", "de").unwrap();
    assert_eq!(dictionary.translate("flag: France"), "Flagge: Frankreich");
    assert_eq!(dictionary.translate("cat"), "Katze");
    let scores = held_out(&set, "en", "de", &mut |text| Ok(dictionary.translate(text))).unwrap();
    assert_eq!((scores.names, scores.exact), (2, 0.0));
    let perfect = held_out(&set, "en", "de", &mut |text| {
        Ok(text.replace("thumbs up", "Daumen hoch").replace("thumbs down", "Daumen runter"))
    });
    let perfect = perfect.unwrap();
    assert_eq!((perfect.exact, perfect.chrf.score), (1.0, 100.0));
    assert!(held_out(&set, "en", "nb", &mut |text| Ok(text.to_owned())).is_err());
}

#[test]
fn requests_and_packages_that_cannot_be_used_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let packages = packages(root.path());
    let refused = |asked: &[&str]| {
        let error = make::make(&languages(asked), &packages).err().unwrap();
        format!("{error} / {}", error.help().unwrap_or_default())
    };
    let unknown = refused(&["en", "xx"]);
    assert!(unknown.contains("no package has the language xx") && unknown.contains("zh-hant"), "{unknown}");
    assert!(refused(&["en", "EN"]).contains("1 languages are asked for"));
    assert!(refused(&["en", "../../etc"]).contains("is no language tag"));
    let file = root.path().join("node_modules").join(ANNOTATIONS.name).join("annotations/de/annotations.json");
    std::fs::write(&file, "{\"annotations\": {\"annotations\": []}}").unwrap();
    assert!(refused(&["en", "de"]).contains("annotations/de/annotations.json is not as expected"));
    std::fs::write(&file, "{}").unwrap();
    assert!(refused(&["en", "de"]).contains("it has no \"annotations\""));
    std::fs::remove_file(root.path().join("node_modules").join(NAMES.name).join("LICENSE")).unwrap();
    assert!(refused(&["en", "de"]).contains("holds no LICENSE"));
}
