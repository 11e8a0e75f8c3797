//! Texts that say the same in several languages: names and keywords of emoji, flags and symbols in some 30 languages, or a
//! user's own parallel sentences.
//!
//! | module | question it answers |
//! |---|---|
//! | `sources` | what do the packages call things in each language? |
//! | [`make`] | what becomes an entry, what is left out, what is kept from the model? |
//! | `file` | how do the entries travel as one file, and how is a stranger's file read safely? |
//! | `user_file` | how are a user's own sentences read? |
//! | `alignment` | which word says what another says, if only wholes are known to say the same? |
//! | `keywords` | which keyword of one language goes with which of another? |
//! | `draw` | which pair does a translator see next? |

pub(crate) mod alignment;
mod draw;
mod file;
pub(crate) mod keywords;
pub mod make;
mod sources;
mod user_file;

use super::Split;
use crate::{Error, Result};
use keywords::KeywordPairs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

/// What is said in several languages about one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The thing: code points of an emoji or symbol in hexadecimal, joined by `-`, with `/region` behind them for what a
    /// flag stands for; of a user's own file the line's number.
    pub concept: String,
    /// Whether a model may see it while it is trained.
    pub split: Split,
    /// Language to texts, in two languages or more: first the name, then further names, then keywords. Never empty lists.
    pub texts: BTreeMap<String, Vec<String>>,
    /// Language to the number of further names, where there are any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alternatives: BTreeMap<String, usize>,
}

impl Entry {
    /// What it is called in a language: the name, then other names. Empty where it has none.
    pub fn names(&self, language: &str) -> &[String] {
        self.split_at(language).0
    }

    /// What else is said about it in a language.
    pub fn keywords(&self, language: &str) -> &[String] {
        self.split_at(language).1
    }

    fn split_at(&self, language: &str) -> (&[String], &[String]) {
        let texts = self.texts.get(language).map_or(&[][..], Vec::as_slice);
        texts.split_at((1 + self.alternatives.get(language).unwrap_or(&0)).min(texts.len()))
    }
}

/// A text and its translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What is to be translated.
    pub source: String,
    /// Its language.
    pub from: String,
    /// The translation.
    pub target: String,
    /// Its language.
    pub to: String,
}

/// What the texts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Names and keywords.
    Names,
    /// Whole sentences.
    Sentences,
}

/// Parallel texts.
pub struct Translations {
    entries: Vec<Entry>,
    /// Those that are trained on.
    trained: Vec<usize>,
    languages: Vec<String>,
    digest: String,
    kind: Kind,
    /// Keyword pairs of languages `i < j`, found when they are first wanted: at `j (j - 1) / 2 + i`.
    keyword_pairs: Vec<OnceLock<KeywordPairs>>,
}

impl Translations {
    /// Opens the file that `conjure data translation` writes, or parallel sentences of the user's: a `.tsv` whose first line
    /// gives the languages and every other line a text in each (or nothing between the tabs), or a `.jsonl` with
    /// `{"en": "...", "de": "..."}` a line. Of sentences, 5 in 100 are held out, by a hash of the English text or, without
    /// one, of the first language's.
    ///
    /// # Errors
    /// A file that cannot be read, or a line in it that is not as expected; more than 1 GiB, a million lines, 1 MiB in a line
    /// or 300 languages; nothing to train on.
    pub fn open(path: &Path) -> Result<Self> {
        let is = |extension: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
        let (entries, digest, kind) = if is("tsv") || is("jsonl") {
            let (entries, digest) = user_file::read(path, is("tsv"))?;
            (entries, digest, Kind::Sentences)
        } else {
            let (entries, digest) = file::read(path)?;
            (entries, digest, Kind::Names)
        };
        Self::new(entries, digest, kind).map_err(|message| {
            Error::file(path, message).with_help("give texts in two languages or more, of enough things to train on")
        })
    }

    fn new(entries: Vec<Entry>, digest: String, kind: Kind) -> std::result::Result<Self, String> {
        let languages: BTreeSet<&String> = entries.iter().flat_map(|entry| entry.texts.keys()).collect();
        let languages: Vec<String> = languages.into_iter().cloned().collect();
        let trained: Vec<usize> = (0..entries.len()).filter(|&i| entries[i].split == Split::Train).collect();
        if trained.is_empty() {
            return Err("holds nothing to train on".to_owned());
        }
        let pairs = languages.len() * languages.len().saturating_sub(1) / 2;
        let keyword_pairs = std::iter::repeat_with(OnceLock::new).take(pairs).collect();
        Ok(Self { entries, trained, languages, digest, kind, keyword_pairs })
    }

    /// All entries, those that are held out among them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The languages that occur, sorted.
    pub fn languages(&self) -> &[String] {
        &self.languages
    }

    /// SHA-256 of the file, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Held-out name pairs of one direction, in the order of the entries.
    pub fn held_out(&self, from: &str, to: &str) -> Vec<Pair> {
        self.named(from, to, |split| split != Split::Train)
    }

    /// Name pairs of one direction that are trained on, in the order of the entries.
    pub fn trained_on(&self, from: &str, to: &str) -> Vec<Pair> {
        self.named(from, to, |split| split == Split::Train)
    }

    fn named(&self, from: &str, to: &str, wanted: impl Fn(Split) -> bool) -> Vec<Pair> {
        let pair = |entry: &Entry| {
            Some(Pair {
                source: entry.names(from).first()?.clone(),
                from: from.to_owned(),
                target: entry.names(to).first()?.clone(),
                to: to.to_owned(),
            })
        };
        self.entries.iter().filter(|entry| wanted(entry.split)).filter_map(pair).collect()
    }

    /// Pairs of keywords that surely say the same, in lower case, sorted; learned from the entries that are trained on. None
    /// where a language is not there.
    pub fn keyword_pairs(&self, from: &str, to: &str) -> Vec<(String, String)> {
        self.pairs_of(from, to).map_or_else(Vec::new, |(pairs, turned)| pairs.all(turned))
    }

    /// The keyword pairs of two languages, and whether they are listed from `to` to `from`.
    fn pairs_of(&self, from: &str, to: &str) -> Option<(&KeywordPairs, bool)> {
        let number = |language: &str| self.languages.binary_search_by(|l| l.as_str().cmp(language)).ok();
        let (a, b) = (number(from)?, number(to)?);
        let (i, j) = (a.min(b), a.max(b));
        let slot = self.keyword_pairs.get((i != j).then_some(j * j.saturating_sub(1) / 2 + i)?)?;
        let learn = || KeywordPairs::new(&self.entries, &self.languages[i], &self.languages[j]);
        Some((slot.get_or_init(learn), a > b))
    }
}

/// Checks a language tag: letters, digits and `-`, as BCP 47 has them.
fn check_language(tag: &str) -> std::result::Result<(), String> {
    let good = (2..=35).contains(&tag.len())
        && tag.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()));
    if good { Ok(()) } else { Err(format!("{tag:?} is no language tag, such as de or zh-hant")) }
}
