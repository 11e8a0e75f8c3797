//! `conjure data ...`.

use crate::command::Desk;
use serde_json::{Value, json};

fn picture(desk: &Desk, name: &str, caption: &str) {
    let folder = desk.path("pictures");
    std::fs::create_dir_all(&folder).unwrap();
    image::RgbImage::from_pixel(8, 8, image::Rgb([200, 30, 30])).save(folder.join(name)).unwrap();
    std::fs::write(folder.join(name).with_extension("txt"), caption).unwrap();
}

#[test]
fn a_folder_is_checked_and_packed() {
    let desk = Desk::new();
    picture(&desk, "a.png", "a red square");
    picture(&desk, "b.png", "another one");
    std::fs::write(desk.path("pictures/c.png"), "broken").unwrap();
    std::fs::write(desk.path("pictures/c.txt"), "broken").unwrap();
    let outcome = desk.conjure(&["data", "folder", "pictures", "--out", "set.zip"]).succeeded();
    assert_eq!(outcome.stdout, "2 pictures with captions, 1 skipped\nset.zip\n");
    assert!(outcome.stderr.contains("skipped: pictures/c.png: not a picture"), "{}", outcome.stderr);
    let json = desk.conjure(&["data", "folder", "pictures", "--json"]).succeeded().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["pictures"], &json["skipped"][0]["file"]), (&2.into(), &"pictures/c.png".into()));
    let picture = std::fs::read(desk.path("pictures/a.png")).unwrap();
    desk.conjure(&["data", "folder", "pictures", "--out", "pictures/a.png"]).failed(2, &["lies among", "help:"]);
    std::fs::copy(desk.path("pictures/a.png"), desk.path("mine.png")).unwrap();
    desk.conjure(&["data", "folder", "pictures", "--out", "mine.png"]).failed(2, &["is not replaced", "help:"]);
    assert!([desk.path("pictures/a.png"), desk.path("mine.png")].iter().all(|p| std::fs::read(p).unwrap() == picture));
    desk.conjure(&["data", "folder", "pictures", "--out", "set.zip"]).succeeded();
    desk.conjure(&["data", "folder", "pictures", "--strict"]).failed(2, &["c.png", "--strict"]);
    desk.conjure(&["data", "folder", "pictures", "--out", "none/set.zip"]).failed(2, &["does not exist"]);
    std::fs::create_dir(desk.path("empty")).unwrap();
    desk.conjure(&["data", "folder", "empty"]).failed(2, &["holds no pictures", "metadata.jsonl"]);
    desk.conjure(&["data", "folder", "nowhere"]).failed(2, &["nowhere: there is no such folder", "help:"]);
    desk.conjure(&["data", "folder", "set.zip"]).failed(2, &["set.zip: is a file, and a folder", "data.file"]);
}

#[test]
fn emoji_need_their_packages() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("packages")).unwrap();
    desk.conjure(&["data", "emoji", "--from", "packages", "--out", "set"])
        .failed(2, &["emojibase-data-17.0.0.tgz", "npm pack emojibase-data@17.0.0"]);
    std::fs::write(desk.path("packages/emojibase-data-17.0.0.tgz"), "another content").unwrap();
    desk.conjure(&["data", "emoji", "--from", "packages", "--out", "set"]).failed(2, &["SHA-512", "62f81be405a81d58"]);
    let mut offline = desk.command();
    offline.args(["data", "emoji", "--out", "set"]).env("PATH", "").env("XDG_CACHE_HOME", desk.path("cache"));
    crate::command::Outcome::of(offline.output().unwrap()).failed(1, &["npm", "is not installed", "--from DIR"]);
    desk.conjure(&["data", "emoji", "--out", "set", "--styles", "cubist"]).failed(2, &["cubist", "noto"]);
    assert!(!desk.path("set").exists());
}

#[test]
fn folders_that_cannot_be_written_are_refused_before_work() {
    let desk = Desk::new();
    std::fs::write(desk.path("file"), "kept").unwrap();
    // The packages, the judge and the data are not there either: nobody has come to look for them.
    let judge = ["evaluate", "pictures", "model", "--judge", "judge", "--data", "data.zip"];
    for command in [&["data", "emoji", "--from", "none"][..], &["data", "translation", "--from", "none"], &judge] {
        let out = |place: &str| desk.conjure(&[command, &["--out", place]].concat());
        out("file").failed(2, &["file: is a file, and a folder is needed", "help:"]);
        out("file/inner").failed(2, &["file: is a file, and a folder is needed", "help:"]);
        #[cfg(target_os = "linux")]
        out("/proc/d2").failed(2, &["/proc/d2: cannot be written", "help: choose a place"]);
    }
    assert_eq!(desk.files(), ["file"]);
    assert_eq!(std::fs::read(desk.path("file")).unwrap(), b"kept");
}

/// Packages of three things in two languages, unpacked.
fn packages_of_names(desk: &Desk) {
    let save = |package: &str, file: &str, content: String| {
        let path = desk.path("packages/node_modules").join(package).join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for (package, version) in
        [("emojibase-data", "17.0.0"), ("cldr-annotations-full", "48.2.0"), ("cldr-annotations-derived-full", "48.2.0")]
    {
        save(package, "package.json", json!({ "version": version }).to_string());
        save(package, "LICENSE", "free".to_owned());
    }
    for (language, cat, up) in [("en", "cat", "thumbs up"), ("de", "Katze", "Daumen hoch")] {
        let emoji = json!([
            { "label": cat, "hexcode": "1F408", "tags": [], "group": 1 },
            { "label": up, "hexcode": "1F44D", "tags": [], "group": 1 },
        ]);
        save("emojibase-data", &format!("{language}/data.json"), emoji.to_string());
        let euro = json!({ "annotations": { "annotations": { "€": { "default": [], "tts": ["Euro"] } } } });
        save("cldr-annotations-full", &format!("annotations/{language}/annotations.json"), euro.to_string());
    }
}

#[test]
fn translations_are_made_from_packages_and_measured() {
    let desk = Desk::new();
    packages_of_names(&desk);
    let make = ["data", "translation", "--from", "packages", "--out", "set", "--languages", "en,de"];
    let made = desk.conjure(&make).succeeded().stdout;
    assert!(
        made.starts_with(
            "set/translation.zip\n3 entries in 2 languages, 1 held out; 6 names, 0 keywords, 0 keyword pairs"
        ),
        "{made}"
    );
    let json = desk.conjure(&[&make[..], &["--json"]].concat()).succeeded().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["summary"]["languages"]["de"]["names"], &json["summary"]["sources"][1]["licence"]),
        (&3.into(), &"Unicode-3.0".into())
    );
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(desk.path("set/summary.json")).unwrap()).unwrap();
    assert_eq!(kept, json["summary"]);

    let table =
        desk.conjure(&["evaluate", "dictionary", "set/translation.zip", "--pairs", "en:de,de:en"]).succeeded().stdout;
    assert!(table.lines().nth(2).unwrap().starts_with("en       de           1    0.0"), "{table}");
    // Those are the usual directions that it has, and they may be written with a hyphen.
    let dictionary = ["evaluate", "dictionary", "set/translation.zip"];
    assert_eq!(desk.conjure(&dictionary).succeeded().stdout, table);
    assert_eq!(desk.conjure(&[&dictionary[..], &["--pairs", "en-de,de-en"]].concat()).succeeded().stdout, table);
    desk.conjure(&[&dictionary[..], &["--pairs", "en:en"]].concat())
        .failed(2, &["\"en:en\": a language is not translated into itself", "help: name two languages"]);
    // Where there is none of the usual ones, English with each other language.
    let sentences: String = (0..100).map(|n| format!("cat {n}\tkot {n}\n")).collect();
    std::fs::write(desk.path("own.tsv"), format!("en\tpl\n{sentences}")).unwrap();
    let table = desk.conjure(&["evaluate", "dictionary", "own.tsv"]).succeeded().stdout;
    let rows: Vec<Vec<&str>> = table.lines().skip(2).map(|line| line.split_whitespace().take(2).collect()).collect();
    assert_eq!(rows, [["en", "pl"], ["pl", "en"]]);
    desk.conjure(&["evaluate", "dictionary", "set/translation.zip", "--pairs", "en:fr"]).failed(2, &["fr", "de, en"]);

    desk.conjure(&[&make[..7], &["en,xx"]].concat()).failed(2, &["no package has the language xx", "zh-hant"]);
    std::fs::remove_dir_all(desk.path("packages/node_modules/cldr-annotations-full")).unwrap();
    desk.conjure(&make).failed(2, &["cldr-annotations-full-48.2.0.tgz", "npm pack cldr-annotations-full@48.2.0"]);
}

#[test]
fn translations_are_compared_with_references() {
    let desk = Desk::new();
    std::fs::write(desk.path("ours.txt"), "the cat sat on a mat\n").unwrap();
    std::fs::write(desk.path("one.txt"), "the cat is on the mat\n").unwrap();
    std::fs::write(desk.path("two.txt"), "the cat sat on a mat\n").unwrap();
    let printed = desk.conjure(&["evaluate", "bleu", "ours.txt", "one.txt"]).succeeded().stdout;
    // sacreBLEU 2.6.0: 19.304869754804482 and 37.03545302214975.
    assert!(
        printed.starts_with("BLEU    19.30  nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:conjure-"),
        "{printed}"
    );
    assert!(
        printed.contains("\nchrF2   37.04  nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:conjure-"),
        "{printed}"
    );
    let json =
        desk.conjure(&["eval", "bleu", "ours.txt", "one.txt", "two.txt", "--tokenize", "char", "--json"]).succeeded();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let signature = json["bleu"]["signature"].as_str().unwrap();
    assert!(signature.starts_with("nrefs:2|") && signature.contains("tok:char"), "{signature}");
    assert!((json["bleu"]["score"].as_f64().unwrap() - 100.0).abs() < 1e-9);
    std::fs::write(desk.path("two.txt"), "the cat\nsat on a mat\n").unwrap();
    desk.conjure(&["eval", "bleu", "ours.txt", "two.txt"]).failed(2, &["1 translations, and 2 lines in reference 1"]);
    desk.conjure(&["eval", "bleu", "-", "-"]).failed(2, &["- is given twice"]);
    desk.conjure(&["eval", "bleu", "ours.txt", "none.txt"]).failed(2, &["none.txt"]);
}
