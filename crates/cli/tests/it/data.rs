//! `conjure data ...`.

use crate::command::Desk;
use serde_json::Value;

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
    desk.conjure(&["data", "folder", "pictures", "--strict"]).failed(2, &["c.png", "--strict"]);
    desk.conjure(&["data", "folder", "pictures", "--out", "none/set.zip"]).failed(2, &["does not exist"]);
    std::fs::create_dir(desk.path("empty")).unwrap();
    desk.conjure(&["data", "folder", "empty"]).failed(2, &["holds no pictures", "metadata.jsonl"]);
    desk.conjure(&["data", "folder", "nowhere"]).failed(1, &["nowhere"]);
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
