//! Data sets: made, written, opened again; and what strangers' files can do to them.

use conjure::data::emoji::packages::{NAMES, Package, Packages, STYLES};
use conjure::data::{Dataset, Selection, Skipped, Split, emoji, folder};
use conjure::image_file::Picture;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;

fn save(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn png(path: &Path, width: u32, height: u32, colour: [u8; 4]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbaImage::from_pixel(width, height, image::Rgba(colour)).save(path).unwrap();
}

/// Packages with four emoji, unpacked: names in English and German; noto and twemoji with tables of code points, fluent-emoji
/// without; noto's heart is no drawing.
fn packages(root: &Path) -> Packages {
    let package = |package: &Package, files: &[(&str, Value)]| {
        let folder = root.join("node_modules").join(package.name);
        save(&folder.join("package.json"), json!({ "name": package.name, "version": package.version }).to_string());
        for (name, content) in files {
            save(&folder.join(name), content.to_string());
        }
    };
    let names = |labels: [&str; 6]| {
        json!([
            { "label": labels[0], "hexcode": "1F44D", "tags": ["+1", "good"], "group": 1, "subgroup": 5, "order": 4,
              "skins": [{ "label": "thumbs up: dark skin tone", "hexcode": "1F44D-1F3FF", "group": 1, "order": 5 }] },
            { "label": labels[1], "hexcode": "1F600", "tags": ["cheerful"], "group": 0, "subgroup": 0, "order": 1 },
            { "label": labels[2], "hexcode": "2764", "tags": [labels[2], "love"], "group": 0, "subgroup": 1, "order": 2 },
            { "label": labels[3], "hexcode": "1F3FB", "group": 2, "subgroup": 6, "order": 3 },
            { "label": labels[4], "hexcode": "1F1E6" },
            { "label": labels[5], "hexcode": "1F44E", "group": 1, "subgroup": 5, "order": 6 },
        ])
    };
    let english = ["thumbs up", "grinning face", "red heart", "light skin tone", "regional indicator A", "thumbs down"];
    let german = ["Daumen hoch", "grinsendes Gesicht", "rotes Herz", "helle Haut", "Buchstabe A", "Daumen runter"];
    package(
        &NAMES,
        &[
            ("en/data.json", names(english)),
            ("de/data.json", names(german)),
            (
                "meta/groups.json",
                json!({
                    "groups": { "0": "smileys-emotion", "1": "people-body", "2": "component" },
                    "subgroups": { "0": "face-smiling", "1": "heart", "5": "hand-fingers-closed", "6": "skin-tone" },
                }),
            ),
        ],
    );
    let info = |title: &str, spdx: &str| json!({ "name": title, "author": { "name": "Somebody" }, "license": { "spdx": spdx } });
    // A square of 8 units, left half in the colour.
    let half = |colour: &str| json!({ "body": format!("<path fill=\"{colour}\" d=\"M0 0h4v8H0z\"/>") });
    let style = |name: &str| STYLES.iter().find(|package| package.short_name() == name).unwrap();
    let chars =
        json!({ "1f600": "grinning-face", "2764-fe0f": "red-heart", "1f44d": "thumbs-up", "1f44e": "thumbs-down" });
    let set = |broken: bool| {
        let heart = if broken { json!({ "body": "<path" }) } else { half("#f00") };
        json!({
            "prefix": "x", "width": 8, "height": 8,
            "icons": { "grinning-face": half("#ff0"), "red-heart": heart, "thumbs-up": half("#00f") },
            "aliases": { "thumbs-down": { "parent": "thumbs-up", "hFlip": true } },
        })
    };
    let files = |broken, title, spdx, chars| {
        [("icons.json", set(broken)), ("chars.json", chars), ("info.json", info(title, spdx))]
    };
    package(style("noto"), &files(true, "Noto", "Apache-2.0", chars.clone()));
    package(style("twemoji"), &files(false, "Twitter", "CC-BY-4.0", chars.clone()));
    package(style("fluent-emoji"), &files(false, "Fluent", "MIT", json!({})));
    package(style("fluent-emoji-flat"), &files(false, "Flat", "MIT", chars));
    Packages::Folder(root.to_owned())
}

fn request() -> emoji::Request {
    emoji::Request {
        styles: ["noto", "twemoji", "fluent-emoji"].map(str::to_owned).to_vec(),
        exclude_groups: Vec::new(),
        languages: vec!["de".to_owned()],
        size: 16,
    }
}

fn made(root: &Path) -> std::path::PathBuf {
    let emoji = emoji::make(&request(), &packages(root), &mut |_, _| Ok(())).unwrap();
    emoji.save(&root.join("out")).unwrap();
    root.join("out").join(emoji::FILE_NAME)
}

#[test]
fn emoji_become_a_file_that_describes_itself() {
    let root = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let emoji = emoji::make(&request(), &packages(root.path()), &mut |done, of| {
        seen.push((done, of));
        Ok(())
    });
    let summary = emoji.unwrap().save(&root.path().join("out")).unwrap();
    assert_eq!(seen.last(), Some(&(12, 12)));
    assert_eq!((summary.pictures, summary.concepts, summary.styles["noto"]), (11, 4, 3));
    let failures: Vec<&String> = summary.failures.keys().collect();
    assert_eq!(failures, ["@iconify-json/noto@1.2.9/red-heart"]);

    let set = Dataset::open(root.path().join("out/emoji.zip")).unwrap();
    assert_eq!((set.len(), set.digest()), (11, summary.sha256.as_str()));
    let order: Vec<String> =
        (0..set.len()).map(|i| format!("{} {}", set.record(i).concept, set.record(i).style)).collect();
    assert_eq!(order[..3], ["grinning-face noto", "grinning-face twemoji", "grinning-face fluent-emoji"]);
    let at = |name: &str| order.iter().position(|found| found == name).unwrap();
    let heart = set.record(at("red-heart twemoji"));
    assert_eq!((heart.group.as_str(), heart.subgroup.as_str()), ("smileys-emotion", "heart"));
    assert_eq!((heart.code_points.as_str(), heart.licence.as_str()), ("2764", "CC-BY-4.0"));
    assert_eq!(heart.source, "@iconify-json/twemoji@1.2.5/red-heart");
    assert_eq!((heart.labels["en"].as_str(), heart.labels["de"].as_str()), ("red heart", "rotes Herz"));
    assert_eq!(heart.keywords["de"], ["love"], "a keyword that repeats the name is left out");
    // Lossless, and the second thumb is the first one's mirror image.
    let row = |name: &str| set.rgb(at(name), 4).unwrap().rgb[..12].to_vec();
    let (blue, white) = ([0, 0, 255], [255; 3]);
    assert_eq!(row("thumbs-up twemoji"), [blue, blue, white, white].concat());
    assert_eq!(row("thumbs-down fluent-emoji"), [white, white, blue, blue].concat());

    let styles = Selection { styles: vec!["noto".into()], ..Selection::default() };
    assert_eq!(set.select(&styles).len(), 3);
    let groups = Selection { exclude_groups: vec!["heart".into(), "people-body".into()], ..Selection::default() };
    assert_eq!(set.select(&groups).len(), 3);
    // Both thumbs are one identity, and the fixed rule holds it out.
    let held = Selection { splits: vec![Split::HeldOutConcept], ..Selection::default() };
    let held: Vec<&str> = set.select(&held).into_iter().map(|i| set.record(i).concept.as_str()).collect();
    assert_eq!(held, ["thumbs-up", "thumbs-up", "thumbs-up", "thumbs-down", "thumbs-down", "thumbs-down"]);
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = |root: &Path| std::fs::read(made(root)).unwrap();
    assert!(bytes(one.path()) == bytes(two.path()));
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_what_can() {
    let root = tempfile::tempdir().unwrap();
    let packages = packages(root.path());
    let refused = |change: &dyn Fn(&mut emoji::Request), packages: &Packages| {
        let mut request = request();
        change(&mut request);
        let error = emoji::make(&request, packages, &mut |_, _| Ok(())).err().unwrap();
        format!("{error} / {}", error.help().unwrap_or_default())
    };
    let style = refused(&|r| r.styles.push("cubist".into()), &packages);
    assert!(style.contains("no style cubist") && style.contains("noto-v1"), "{style}");
    let group = refused(&|r| r.exclude_groups.push("cars".into()), &packages);
    assert!(group.contains("no group of emoji cars") && group.contains("people-body"), "{group}");
    assert!(refused(&|r| r.languages.push("xx".into()), &packages).contains("no language xx"));
    assert!(refused(&|r| r.size = 8, &packages).contains("16 to 1024"));
    let missing = refused(&|r| r.styles.push("fxemoji".into()), &packages);
    assert!(missing.contains("iconify-json-fxemoji-1.2.2.tgz") && missing.contains("npm pack"), "{missing}");
    let manifest = root.path().join("node_modules/@iconify-json/noto/package.json");
    save(&manifest, json!({ "version": "9.9.9" }).to_string());
    assert!(refused(&|_| {}, &packages).contains("is version 9.9.9, needed is @iconify-json/noto@1.2.9"));
    let stopped = emoji::make(&request(), &self::packages(root.path()), &mut |_, _| Err(conjure::Error::Cancelled));
    assert!(matches!(stopped, Err(conjure::Error::Cancelled)));
}

#[test]
fn a_damaged_file_is_refused_or_its_picture_named() {
    let root = tempfile::tempdir().unwrap();
    let file = made(root.path());
    let whole = std::fs::read(&file).unwrap();
    let cut = root.path().join("cut.zip");
    for length in (0..whole.len()).step_by(97) {
        save(&cut, &whole[..length]);
        let error = Dataset::open(&cut).err().unwrap();
        assert!(error.to_string().contains("is no whole data set"), "{length} bytes: {error}");
        assert!(error.help().is_some());
    }
    // The first picture's data lie behind its name.
    let name = b"noto/grinning-face.png";
    let at = whole.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 60;
    let mut bent = whole.clone();
    bent[at] ^= 0xff;
    save(&cut, bent);
    let set = Dataset::open(&cut).unwrap();
    let error = set.rgb(0, 16).unwrap_err();
    assert!(error.to_string().contains("noto/grinning-face.png cannot be read"), "{error}");
    assert!(set.rgb(1, 16).is_ok());
    assert!(set.rgb(99, 16).is_err());
    assert!(Dataset::open(root.path().join("none.zip")).err().unwrap().to_string().contains("no such file"));
}

#[test]
fn archives_that_are_no_data_sets_or_lie_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.zip");
    let refused = |entries: &[(&str, &str)]| {
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&file).unwrap());
        for (name, content) in entries {
            archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(content.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        Dataset::open(&file).err().unwrap().to_string()
    };
    assert!(refused(&[("a.txt", "x")]).contains("holds no metadata.jsonl"));
    assert!(refused(&[("metadata.jsonl", "\n")]).contains("holds no pictures"));
    assert!(refused(&[("metadata.jsonl", "{\"file_name\": \"a.png\"}")]).contains("line 1: there is no a.png"));
    assert!(refused(&[("metadata.jsonl", "{}")]).contains("missing field `file_name`"));
    // A table that claims more than deflate can pack: the size in the central directory is forged.
    let text = "{\"file_name\": \"a.png\"}\n".repeat(50);
    refused(&[("metadata.jsonl", &text)]);
    let mut bytes = std::fs::read(&file).unwrap();
    let central = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    bytes[central + 24..central + 28].copy_from_slice(&900_000_000_u32.to_le_bytes());
    save(&file, bytes);
    let error = Dataset::open(&file).err().unwrap().to_string();
    assert!(error.contains("claims 900000000 bytes"), "{error}");
}

#[test]
fn one_broken_picture_among_many_is_named_and_skipped_or_refused() {
    let root = tempfile::tempdir().unwrap();
    for n in 0..30 {
        png(&root.path().join(format!("{n:02}.png")), 6, 4, [n as u8, 0, 0, 255]);
        save(&root.path().join(format!("{n:02}.txt")), format!("picture {n}\n"));
    }
    let (set, skipped) = Dataset::folder(root.path(), true).unwrap();
    assert_eq!((set.len(), skipped.files.len()), (30, 0));
    assert_eq!((set.record(7).labels["en"].as_str(), set.record(7).source.as_str()), ("picture 7", "07.png"));
    assert_eq!(set.rgb(7, 2).unwrap(), Picture::filled(2, 2, [7, 0, 0]));
    let before = set.digest().to_owned();

    let path = root.path().join("13.png");
    let whole = std::fs::read(&path).unwrap();
    save(&path, &whole[..whole.len() / 2]);
    save(&root.path().join("14.txt"), "  \n");
    std::fs::remove_file(root.path().join("15.txt")).unwrap();
    let (set, skipped) = Dataset::folder(root.path(), false).unwrap();
    assert_eq!(set.len(), 27);
    assert_ne!(set.digest(), before);
    let mut reasons: Vec<String> = skipped
        .files
        .iter()
        .map(|(path, reason)| format!("{}: {reason}", path.file_name().unwrap().to_string_lossy()))
        .collect();
    reasons.sort();
    assert!(reasons[0].starts_with("13.png: damaged picture"), "{reasons:?}");
    assert!(reasons[1].starts_with("14.png: its caption is empty"), "{reasons:?}");
    assert!(reasons[2].starts_with("15.png: has no caption"), "{reasons:?}");
    let error = Dataset::folder(root.path(), true).err().unwrap();
    assert!(error.to_string().contains("(and 2 more)") && error.help().unwrap().contains("--strict"), "{error}");
}

/// What is skipped, by its path in the folder, sorted.
fn told(root: &Path, skipped: &Skipped) -> Vec<String> {
    let line = |(path, reason): &(std::path::PathBuf, String)| {
        format!("{}: {reason}", path.strip_prefix(root).unwrap().to_string_lossy())
    };
    let mut lines: Vec<String> = skipped.files.iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn no_picture_and_no_caption_is_passed_over_in_silence() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    png(&root.join("a/good.png"), 2, 2, [9; 4]);
    save(&root.join("a/good.txt"), "good");
    png(&root.join("a-first.PNG"), 2, 2, [9; 4]);
    save(&root.join("a-first.txt"), "first");
    for other in ["README.md", "readme.txt", ".DS_Store", ".hidden.png", "Thumbs.db", "notes.pdf"] {
        save(&root.join(other), "x");
    }
    let (set, skipped) = Dataset::folder(root, true).unwrap();
    assert_eq!((set.record(0).source.as_str(), set.record(1).source.as_str()), ("a-first.PNG", "a/good.png"));
    assert_eq!((set.len(), skipped.files.len()), (2, 0));

    save(&root.join("grey.gif"), "x");
    save(&root.join("grey.txt"), "grey");
    save(&root.join("a/one.BMP"), "x");
    save(&root.join("orphan.txt"), "nobody's");
    let mut expected = vec![
        "a/one.BMP: is not read: pictures end in .png, .jpg, .jpeg or .webp",
        "grey.gif: is not read: pictures end in .png, .jpg, .jpeg or .webp",
    ];
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        save(&root.join(std::ffi::OsStr::from_bytes(b"n\xff\xfe.png")), "x");
        save(&root.join(std::ffi::OsStr::from_bytes(b"n\xff\xfe.txt")), "named oddly");
        expected.push("n\u{fffd}\u{fffd}.png: its name is not UTF-8");
    }
    expected.push("orphan.txt: has no picture: there is none of the same name");
    let (set, skipped) = Dataset::folder(root, false).unwrap();
    assert_eq!((set.len(), told(root, &skipped)), (2, expected.iter().map(|line| (*line).to_owned()).collect()));
    let error = Dataset::folder(root, true).err().unwrap().to_string();
    assert!(error.contains(&format!("(and {} more)", expected.len() - 1)), "{error}");

    // With a table, text files are no captions, and every picture is either listed or told.
    save(&root.join("metadata.jsonl"), "{\"file_name\": \"a/good.png\", \"text\": \"good\"}");
    let (set, skipped) = Dataset::folder(root, false).unwrap();
    let told = told(root, &skipped);
    assert_eq!((set.len(), told[0].as_str()), (1, "a-first.PNG: is not listed in metadata.jsonl"));
    assert!(told.contains(&"grey.gif: is not listed in metadata.jsonl".to_owned()), "{told:?}");
    assert!(!told.iter().any(|line| line.contains(".txt")), "{told:?}");
    let error = Dataset::folder(root, true).err().unwrap().to_string();
    assert!(error.contains("is not listed in metadata.jsonl (and "), "{error}");
}

#[test]
fn folders_without_anything_to_learn_from_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let refused = || {
        let error = Dataset::folder(root.path(), false).err().unwrap();
        assert!(error.help().is_some_and(|help| help.contains("metadata.jsonl")));
        error.to_string()
    };
    assert!(refused().contains("holds no pictures"));
    png(&root.path().join("a.png"), 2, 2, [0; 4]);
    assert!(refused().contains("captions are missing: none of its 1 pictures has one"));
    save(&root.path().join("a.txt"), "a square");
    save(&root.path().join("a.png"), "no picture");
    assert!(refused().contains("no picture can be used"));
    for (name, message) in
        [("none", "there is no such folder"), ("a.png", "is a file, and a folder of pictures is needed")]
    {
        let error = Dataset::folder(root.path().join(name), false).err().unwrap();
        assert!(error.to_string().ends_with(&format!("{name}: {message}")), "{error}");
        assert!(error.help().unwrap().contains("data.file") && error.exit_code() == 2, "{error:?}");
    }
}

#[test]
fn a_table_of_captions_stays_inside_its_folder() {
    let root = tempfile::tempdir().unwrap();
    png(&root.path().join("secret.png"), 2, 2, [1, 2, 3, 255]);
    let inner = root.path().join("set");
    png(&inner.join("more/half.png"), 2, 2, [255, 0, 0, 102]);
    let table = |lines: &str| {
        save(&inner.join("metadata.jsonl"), lines);
        Dataset::folder(&inner, false).map(|(set, _)| set)
    };
    let set = table("{\"file_name\": \"more/half.png\", \"text\": \"half red\", \"other\": 1}\n\n").unwrap();
    assert_eq!(set.record(0).labels["en"], "half red");
    // 255 * 0.4 + 255 * 0.6 and 0 * 0.4 + 255 * 0.6.
    assert_eq!(set.rgb(0, 1).unwrap().rgb, [255, 153, 153], "transparent pixels are put on white");
    let refused = |name: &str| {
        let error = table(&json!({ "file_name": name, "text": "x" }).to_string()).err().unwrap();
        error.to_string()
    };
    let absolute = root.path().join("secret.png");
    for name in ["../secret.png", "more/../../secret.png", absolute.to_str().unwrap(), "", "..\\secret.png"] {
        assert!(refused(name).contains("is not a file of the folder"), "{name}");
    }
    let error = table("{\"file_name\": \"more/half.png\"}").err().unwrap().to_string();
    assert!(error.contains("line 1: more/half.png has no text"), "{error}");
}

#[test]
fn a_bad_line_of_a_table_is_told_with_its_number() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    png(&root.join("a.png"), 2, 2, [9; 4]);
    png(&root.join("b.png"), 2, 2, [9; 4]);
    let lines = [
        "\u{feff}{\"file_name\": \"a.png\", \"text\": \"first\"}",
        "{\"file_name\": \"c.png\"}",
        "{\"file_name\": \"c.png\", \"text\": \" \"}",
        "",
        "{bad",
        "{\"file_name\": \"../c.png\", \"text\": \"elsewhere\"}",
        "{\"file_name\": \"a.png\", \"text\": \"second\"}",
        "{\"file_name\": \"b.png\", \"text\": \"last\"}\r",
    ];
    let mut text = lines.join("\n").into_bytes();
    text.extend(b"\n\xff\xfe\n");
    save(&root.join("metadata.jsonl"), text);
    let (set, skipped) = Dataset::folder(root, false).unwrap();
    assert_eq!((set.len(), set.record(0).labels["en"].as_str(), set.record(1).source.as_str()), (2, "first", "b.png"));
    let expected = [
        "line 2: c.png has no text",
        "line 3: c.png has no text",
        "line 5: key must be a string at column 2",
        "line 6: file_name \"../c.png\" is not a file of the folder",
        "line 7: a.png is named already in line 1",
        "line 9: is not UTF-8",
    ];
    assert_eq!(told(root, &skipped), expected.map(|line| format!("metadata.jsonl: {line}")));
    let error = Dataset::folder(root, true).err().unwrap();
    assert!(error.to_string().ends_with("metadata.jsonl: line 2: c.png has no text (and 5 more)"), "{error}");
    assert!(error.help().unwrap().starts_with("repair or remove that line"), "{error:?}");

    // The mark that some editors write is no part of a caption either.
    std::fs::remove_file(root.join("metadata.jsonl")).unwrap();
    save(&root.join("a.txt"), "\u{feff}marked\n");
    let (set, _) = Dataset::folder(root, false).unwrap();
    assert_eq!(set.record(0).labels["en"], "marked");
}

#[test]
fn a_packed_folder_is_the_same_data_set() {
    let root = tempfile::tempdir().unwrap();
    let pictures = root.path().join("pictures");
    png(&pictures.join("a.png"), 5, 3, [10, 200, 30, 255]);
    save(&pictures.join("a.txt"), "green");
    png(&pictures.join("deep/b.png"), 4, 4, [200, 10, 30, 255]);
    save(&pictures.join("deep/b.txt"), "red");
    let file = root.path().join("set.zip");
    let (packed, skipped) = folder::pack(&pictures, true, &file).unwrap();
    let (loose, _) = Dataset::folder(&pictures, true).unwrap();
    assert_eq!((packed.len(), loose.len(), skipped.files.len()), (2, 2, 0));
    for i in 0..2 {
        assert_eq!(packed.record(i), loose.record(i));
        assert_eq!(packed.rgb(i, 3).unwrap(), loose.rgb(i, 3).unwrap());
    }
}

#[test]
fn packing_replaces_older_data_sets_only() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let pictures = root.join("pictures");
    png(&pictures.join("a.png"), 2, 2, [10, 200, 30, 255]);
    save(&pictures.join("a.txt"), "green");
    let refused = |file: &Path| {
        let before = std::fs::read(file).ok();
        let error = folder::pack(&pictures, true, file).err().unwrap();
        assert_eq!(std::fs::read(file).ok(), before);
        assert!(error.help().is_some() && error.exit_code() == 2, "{error:?}");
        error.to_string()
    };
    for among in ["a.png", "a.txt", "b.JPG", "metadata.jsonl", "../pictures/c.gif"] {
        assert!(refused(&pictures.join(among)).contains("lies among the pictures"), "{among}");
    }
    save(&root.join("mine.png"), "mine");
    assert!(
        refused(&root.join("mine.png"))
            .ends_with("mine.png: is a file that is no data set of conjure's, and is not replaced")
    );
    // Other programs' data sets, and our own of another kind, have a dataset.json as well.
    let others = [
        ("thesis.txt", "mine"),
        ("dataset.json", "{\"labels\": []}"),
        ("dataset.json", "{\"format\": \"conjure translations 1\"}"),
    ];
    for (name, content) in others {
        let mut archive = zip::ZipWriter::new(std::fs::File::create(root.join("other.zip")).unwrap());
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut archive, content.as_bytes()).unwrap();
        archive.finish().unwrap();
        assert!(refused(&root.join("other.zip")).contains("is not replaced"), "{content}");
    }

    // A place in the folder that is never taken for a picture will do, and so will an older data set.
    let file = pictures.join("set.zip");
    let (first, _) = folder::pack(&pictures, true, &file).unwrap();
    save(&pictures.join("a.txt"), "very green");
    let (second, _) = folder::pack(&pictures, true, &file).unwrap();
    assert_ne!(first.digest(), second.digest());
    assert_eq!(second.record(0).labels["en"], "very green");
}
