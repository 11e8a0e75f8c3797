//! Parallel texts as one file.
//!
//! A zip archive of `translation.jsonl`, an entry in each line, `dataset.json`, which describes the whole, and the texts of
//! the licences. The same content gives the same bytes.

use super::{Entry, check_language};
use crate::data::archive::{self, DAMAGED, DESCRIPTION};
use crate::image_file::write_atomically;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Write};
use std::path::Path;
use zip::{ZipArchive, ZipWriter};

/// The entries.
const TABLE: &str = "translation.jsonl";
/// A longer table is refused.
const MAX_TABLE_BYTES: u64 = 256 << 20;
const MAX_ENTRIES: usize = 200_000;
const MAX_LANGUAGES: usize = 300;
/// Texts of one language in one entry.
const MAX_TEXTS: usize = 256;
const MAX_TEXT_BYTES: usize = 1 << 14;

/// Writes entries, with the description of the whole and the licences' texts by their file names.
pub(super) fn write(path: &Path, description: &Value, entries: &[Entry], licences: &[(String, String)]) -> Result<()> {
    let mut lines = String::new();
    for entry in entries {
        lines += &serde_json::to_string(entry).map_err(|e| Error::failure(format!("{}: {e}", entry.concept)))?;
        lines.push('\n');
    }
    let description = format!("{description:#}\n");
    let files = [(DESCRIPTION, description.as_str()), (TABLE, &lines)];
    let licences = licences.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    write_atomically(path, |file| {
        let mut archive = ZipWriter::new_stream(file);
        for (name, content) in files.into_iter().chain(licences) {
            archive.start_file(name, archive::deflated())?;
            archive.write_all(content.as_bytes())?;
        }
        archive.finish()?;
        Ok(())
    })
}

/// The entries of a file, and its SHA-256.
pub(super) fn read(path: &Path) -> Result<(Vec<Entry>, String)> {
    let explain = |m: String| Error::file(path, m).with_help(DAMAGED);
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::file(path, "there is no such file"),
        _ => Error::io(path, e),
    })?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|_| {
        Error::file(path, "is neither a .tsv or .jsonl of sentences nor a file that `conjure data translation` wrote")
            .with_help("make one with `conjure data translation --out DIR`, or give sentences of your own")
    })?;
    let index = archive.index_for_name(TABLE).ok_or_else(|| explain(format!("holds no {TABLE}")))?;
    let table = archive::entry(&mut archive, index, MAX_TABLE_BYTES).map_err(|m| explain(format!("{TABLE} {m}")))?;
    let table = String::from_utf8(table).map_err(|_| explain(format!("{TABLE} is not UTF-8 text")))?;
    let mut entries = Vec::new();
    let mut languages = BTreeSet::new();
    for (n, line) in table.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |m: String| explain(format!("{TABLE}, line {}: {m}", n + 1));
        let entry: Entry = serde_json::from_str(line).map_err(|e| at(e.to_string()))?;
        check(&entry).map_err(at)?;
        languages.extend(entry.texts.keys().cloned());
        if languages.len() > MAX_LANGUAGES || entries.len() == MAX_ENTRIES {
            return Err(at(format!("more than {MAX_LANGUAGES} languages or {MAX_ENTRIES} entries")));
        }
        entries.push(entry);
    }
    if entries.is_empty() {
        return Err(explain(format!("{TABLE} is empty")));
    }
    Ok((entries, crate::digest::model_digest(path)?))
}

/// What every reader of entries relies on.
fn check(entry: &Entry) -> std::result::Result<(), String> {
    if entry.texts.len() < 2 {
        return Err("has texts in fewer than two languages".to_owned());
    }
    for (language, texts) in &entry.texts {
        check_language(language)?;
        if !(1..=MAX_TEXTS).contains(&texts.len()) {
            return Err(format!("has {} texts in {language}; the limit is {MAX_TEXTS}", texts.len()));
        }
        if texts.iter().any(|text| text.trim().is_empty() || text.len() > MAX_TEXT_BYTES) {
            return Err(format!("has a text in {language} that is empty or longer than {MAX_TEXT_BYTES} bytes"));
        }
    }
    match entry.alternatives.iter().find(|(language, n)| entry.texts.get(*language).is_none_or(|t| **n >= t.len())) {
        Some((language, n)) => Err(format!("claims {n} more names in {language} than it has")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zip(table: &str, name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.zip");
        let mut archive = ZipWriter::new(File::create(&path).expect("made"));
        archive.start_file(name, archive::deflated()).expect("started");
        archive.write_all(table.as_bytes()).expect("written");
        archive.finish().expect("finished");
        (folder, path)
    }

    fn refused(table: &str) -> String {
        let (_folder, path) = zip(table, TABLE);
        let error = read(&path).expect_err("refused");
        assert!(error.help().is_some(), "{error}");
        error.to_string().rsplit_once("x.zip: ").expect("the file's name").1.to_owned()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let entry = Entry {
            concept: "1f431".to_owned(),
            texts: [("de".to_owned(), texts(&["Katze", "Kater"])), ("en".to_owned(), texts(&["cat"]))].into(),
            alternatives: [("de".to_owned(), 1)].into(),
            ..Entry::default()
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (one, two) = (folder.path().join("one.zip"), folder.path().join("two.zip"));
        let licences = [("licences/x.txt".to_owned(), "as you like".to_owned())];
        for path in [&one, &two] {
            write(path, &json!({ "format": "x" }), std::slice::from_ref(&entry), &licences).expect("written");
        }
        let bytes = std::fs::read(&one).expect("read");
        assert_eq!(bytes, std::fs::read(&two).expect("read"));
        assert_eq!(read(&one).expect("read").0, [entry]);
        for length in (0..bytes.len()).step_by(31) {
            std::fs::write(&two, &bytes[..length]).expect("written");
            assert!(read(&two).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn files_that_are_none_or_lie_are_refused() {
        let line =
            |texts: &str, more: &str| format!("\n{{\"concept\":\"1\",\"split\":\"train\",\"texts\":{texts}{more}}}");
        assert_eq!(refused("\n"), "translation.jsonl is empty");
        assert!(refused("{}").starts_with("translation.jsonl, line 1: missing field"));
        assert!(refused(&line("{\"en\":[\"a\"]}", "")).ends_with("line 2: has texts in fewer than two languages"));
        assert!(
            refused(&line("{\"en\":[\"a\"],\"de\":[]}", "")).ends_with("line 2: has 0 texts in de; the limit is 256")
        );
        assert!(refused(&line("{\"en\":[\"a\"],\"de\":[\" \"]}", "")).contains("a text in de that is empty"));
        assert!(refused(&line("{\"en\":[\"a\"],\"d/e\":[\"b\"]}", "")).contains("no language tag"));
        let claim = ",\"alternatives\":{\"en\":18446744073709551615}";
        assert!(refused(&line("{\"en\":[\"a\"],\"de\":[\"b\"]}", claim)).contains("more names in en than it has"));
        assert!(refused(&line("{\"en\":[\"a\"],\"de\":[\"b\"]}", ",\"more\":1")).contains("unknown field"));
        let (_folder, path) = zip("x", "other.txt");
        assert!(read(&path).expect_err("refused").to_string().contains("holds no translation.jsonl"));
        std::fs::write(&path, "en\tde").expect("written");
        assert!(read(&path).expect_err("refused").to_string().contains("is neither a .tsv or .jsonl"));
        // A table that claims more than deflate can pack: the size in the central directory is forged.
        let (_folder, path) = zip(&line("{\"en\":[\"a\"],\"de\":[\"b\"]}", ""), TABLE);
        let mut bytes = std::fs::read(&path).expect("read");
        let central = bytes.windows(4).position(|window| window == b"PK\x01\x02").expect("a directory");
        bytes[central + 24..central + 28].copy_from_slice(&200_000_000_u32.to_le_bytes());
        std::fs::write(&path, bytes).expect("written");
        assert!(read(&path).expect_err("refused").to_string().contains("claims 200000000 bytes"));
    }
}
