//! A user's own parallel sentences: a table with tabs, or an object of JSON in each line.

use super::{Entry, check_language};
use crate::data::emoji::split::of_identity;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

/// All that is read of a file.
const MAX_BYTES: u64 = 1 << 30;
/// A longer line is no sentence.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// An entry takes some 700 bytes beside its texts.
const MAX_ENTRIES: usize = 1_000_000;
const MAX_LANGUAGES: usize = 300;
/// The language whose text decides the split, where there is one.
const CENTRE: &str = "en";
const HELP: &str = "a .tsv has languages in its first line, such as en<tab>de, and as many texts in each other line; a .jsonl \
                    has a line such as {\"en\": \"a cat\", \"de\": \"eine Katze\"} for each sentence";

/// The entries of a file, and its SHA-256.
pub(super) fn read(path: &Path, table: bool) -> Result<(Vec<Entry>, String)> {
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::file(path, "there is no such file"),
        _ => Error::io(path, e),
    })?;
    let mut reader = BufReader::new(file);
    let (mut hasher, mut total, mut line, mut number) = (Sha256::new(), 0_u64, Vec::new(), 0_usize);
    let mut header: Option<Vec<String>> = None;
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        line.clear();
        let length = (&mut reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        let length = length.map_err(|e| Error::io(path, e))? as u64;
        if length == 0 {
            break;
        }
        (number, total) = (number + 1, total + length);
        let at = |message: String| Error::file(path, format!("line {number}: {message}")).with_help(HELP);
        if length > MAX_LINE_BYTES {
            return Err(at(format!("is longer than {} MiB", MAX_LINE_BYTES >> 20)));
        }
        if total > MAX_BYTES {
            return Err(at(format!("the file has more than {} MiB", MAX_BYTES >> 20)));
        }
        hasher.update(&line);
        let text = std::str::from_utf8(&line).map_err(|_| at("is not UTF-8 text".to_owned()))?;
        let text = text.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(text).trim_end_matches(['\r', '\n']);
        if text.trim().is_empty() {
            continue;
        }
        let texts = match (table, &header) {
            (false, _) => object(text).map_err(at)?,
            (true, Some(languages)) => row(text, languages).map_err(at)?,
            (true, None) => {
                header = Some(languages(text).map_err(at)?);
                continue;
            }
        };
        if texts.len() < 2 {
            let found = texts.keys().next().map_or("no language".to_owned(), |only| format!("{only} only"));
            return Err(at(format!("has a text in {found}; needed are two languages or more")));
        }
        if entries.len() == MAX_ENTRIES {
            return Err(at(format!("the file has more than {MAX_ENTRIES} sentences")));
        }
        let deciding = texts.get(CENTRE).or_else(|| texts.values().next()).map_or("", String::as_str);
        entries.push(Entry {
            concept: number.to_string(),
            split: of_identity(&deciding.to_lowercase()),
            texts: texts.into_iter().map(|(language, text)| (language, vec![text])).collect(),
            alternatives: BTreeMap::new(),
        });
    }
    if entries.is_empty() {
        return Err(Error::file(path, "holds no sentences").with_help(HELP));
    }
    Ok((entries, crate::digest::hex(&hasher.finalize())))
}

type Checked<T> = std::result::Result<T, String>;

/// The languages of a table.
fn languages(line: &str) -> Checked<Vec<String>> {
    let languages: Vec<String> = line.split('\t').map(|cell| cell.trim().to_owned()).collect();
    if !(2..=MAX_LANGUAGES).contains(&languages.len()) {
        return Err(format!("names {} languages; needed are 2 to {MAX_LANGUAGES}", languages.len()));
    }
    for (n, language) in languages.iter().enumerate() {
        check_language(language)?;
        if languages[..n].contains(language) {
            return Err(format!("names the language {language} twice"));
        }
    }
    Ok(languages)
}

/// A row of a table. Empty cells are left out.
fn row(line: &str, languages: &[String]) -> Checked<BTreeMap<String, String>> {
    let cells = line.split('\t').count();
    if cells != languages.len() {
        return Err(format!("has {cells} texts; the first line names {} languages", languages.len()));
    }
    let cells =
        languages.iter().zip(line.split('\t')).map(|(language, cell)| (language.clone(), cell.trim().to_owned()));
    Ok(cells.filter(|(_, text)| !text.is_empty()).collect())
}

/// An object of JSON. Empty texts are left out.
fn object(line: &str) -> Checked<BTreeMap<String, String>> {
    let texts: BTreeMap<String, String> = serde_json::from_str(line).map_err(|e| format!("is not as expected: {e}"))?;
    if texts.len() > MAX_LANGUAGES {
        return Err(format!("has texts in {} languages; the limit is {MAX_LANGUAGES}", texts.len()));
    }
    texts.keys().try_for_each(|language| check_language(language))?;
    let texts = texts.into_iter().map(|(language, text)| (language, text.trim().to_owned()));
    Ok(texts.filter(|(_, text)| !text.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Split;
    use crate::data::translation::Translations;

    fn opened(name: &str, content: impl AsRef<[u8]>) -> Result<Translations> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        Translations::open(&path)
    }

    fn refused(name: &str, content: impl AsRef<[u8]>) -> String {
        let error = opened(name, content).err().expect("refused");
        assert!(error.help().is_some() && error.exit_code() == 2, "{error}");
        error.to_string().rsplit_once(&format!("{name}: ")).expect("the file's name").1.to_owned()
    }

    #[test]
    fn tables_and_objects_hold_the_same() {
        let table = opened("a.tsv", "\u{feff}en\tde\tfr\r\na cat\teine Katze\tun chat\r\n\n a dog \t\tun chien\n")
            .expect("read");
        let lines = "{\"de\": \"eine Katze\", \"en\": \"a cat\", \"fr\": \"un chat\"}\n\n\n\
                     {\"en\": \"a dog\", \"fr\": \"un chien\", \"de\": \" \"}";
        let objects = opened("a.JSONL", lines).expect("read");
        assert_eq!(table.languages(), ["de", "en", "fr"]);
        let texts = |set: &Translations| set.entries().iter().map(|e| (e.split, e.texts.clone())).collect::<Vec<_>>();
        assert_eq!(texts(&table), texts(&objects));
        assert_eq!(
            table.entries()[1].texts,
            [("en", "a dog"), ("fr", "un chien")].map(|(l, t)| (l.to_owned(), vec![t.to_owned()])).into()
        );
        assert_eq!(table.entries().iter().map(|e| e.concept.as_str()).collect::<Vec<_>>(), ["2", "4"]);
        assert_ne!(table.digest(), objects.digest());
    }

    #[test]
    fn a_twentieth_is_held_out_and_the_same_sentence_falls_on_one_side() {
        let lines: String =
            (0..2000).map(|n| format!("{{\"en\": \"Sentence {}\", \"de\": \"Satz {n}\"}}\n", n / 2)).collect();
        let set = opened("a.jsonl", lines).expect("read");
        let held = set.entries().iter().filter(|e| e.split == Split::HeldOutConcept).count();
        // Twice a binomial number with n = 1000 and p = 0.05: standard deviation 14.
        assert!(held.abs_diff(100) < 56, "{held}");
        assert!(set.entries().chunks(2).all(|two| two[0].split == two[1].split));
        assert_eq!(set.held_out("en", "de").len(), held);
    }

    #[test]
    fn what_is_not_as_expected_is_refused_by_its_line() {
        assert_eq!(refused("a.tsv", "en\tde\na\tb\tc\n"), "line 2: has 3 texts; the first line names 2 languages");
        assert_eq!(refused("a.tsv", "en\tde\n\na\n"), "line 3: has 1 texts; the first line names 2 languages");
        assert_eq!(
            refused("a.tsv", "en\tde\na\t \n"),
            "line 2: has a text in en only; needed are two languages or more"
        );
        assert_eq!(refused("a.tsv", "en\tde\ten\n"), "line 1: names the language en twice");
        assert_eq!(refused("a.tsv", "a sentence\n"), "line 1: names 1 languages; needed are 2 to 300");
        assert!(refused("a.tsv", "en\t../de\n").contains("line 1: \"../de\" is no language tag"));
        assert!(refused("a.tsv", "de\t".repeat(400)).contains("names 401 languages"));
        assert_eq!(refused("a.tsv", b"en\tde\na\t\xff\n"), "line 2: is not UTF-8 text");
        assert_eq!(refused("a.tsv", "en\tde\n"), "holds no sentences");
        assert_eq!(refused("a.tsv", ""), "holds no sentences");
        assert_eq!(refused("a.jsonl", "\n \n"), "holds no sentences");
        assert!(
            refused("a.jsonl", "{\"en\": \"a\", \"de\": \"b\"}\n{\"en\": 5}").starts_with("line 2: is not as expected")
        );
        assert!(refused("a.jsonl", "[\"a\"]").starts_with("line 1: is not as expected"));
        assert!(refused("a.jsonl", "{\"en\": \"a\"}").contains("in en only"));
        assert!(refused("a.jsonl", "{\"en\": \"a\", \"d e\": \"b\"}").contains("no language tag"));
        assert!(refused("a.jsonl", " ".repeat((1 << 20) + 2)).contains("line 1: is longer than 1 MiB"));
        assert!(
            Translations::open(Path::new("nowhere.tsv")).err().expect("missing").to_string().contains("no such file")
        );
    }
}
