//! Texts that say the same in several languages.

mod user_file;

use super::Split;
use crate::Result;
use conjure_core::rng::Generator;
use std::collections::BTreeMap;
use std::path::Path;

/// What is said in several languages about one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The thing: code points of an emoji or symbol in hexadecimal, joined by `-`; of a user's own file the line's number.
    pub concept: String,
    /// Whether a model may see it while it is trained.
    pub split: Split,
    /// Language to texts: first the name, then keywords.
    pub texts: BTreeMap<String, Vec<String>>,
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

/// Parallel texts.
pub struct Translations {
    entries: Vec<Entry>,
    languages: Vec<String>,
    digest: String,
}

impl Translations {
    /// Opens parallel sentences of the user's: a `.tsv` whose first line gives the languages, or a `.jsonl` with
    /// `{"en": "...", "de": "..."}` a line.
    ///
    /// # Errors
    /// A file that cannot be read, or a line in it that is not as expected.
    pub fn open(path: &Path) -> Result<Self> {
        let (entries, digest) = user_file::read(path)?;
        let mut languages: Vec<String> = entries.iter().flat_map(|entry| entry.texts.keys().cloned()).collect();
        languages.sort_unstable();
        languages.dedup();
        Ok(Self { entries, languages, digest })
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

    /// A training pair of entry `entry`: source text, its language, target text, target language; drawn by `generator` alone.
    ///
    /// # Panics
    /// There is no such entry.
    pub fn draw(&self, entry: usize, generator: &mut dyn Generator) -> Pair {
        let texts: Vec<(&String, &Vec<String>)> = self.entries[entry].texts.iter().collect();
        let u = generator.uniform(2);
        let pick = |u: f32, n: usize| ((u * n as f32) as usize).min(n.saturating_sub(1));
        let from = pick(u[0], texts.len());
        let to = (from + 1 + pick(u[1], texts.len() - 1)) % texts.len();
        let (from, to) = (texts[from], texts[to]);
        Pair { source: from.1[0].clone(), from: from.0.clone(), target: to.1[0].clone(), to: to.0.clone() }
    }

    /// Held-out name pairs of one direction, in the order of the entries.
    pub fn held_out(&self, from: &str, to: &str) -> Vec<Pair> {
        let held = self.entries.iter().filter(|entry| entry.split != Split::Train);
        let pair = |entry: &Entry| {
            Some(Pair {
                source: entry.texts.get(from)?.first()?.clone(),
                from: from.to_owned(),
                target: entry.texts.get(to)?.first()?.clone(),
                to: to.to_owned(),
            })
        };
        held.filter_map(pair).collect()
    }
}
