//! What becomes an entry, what is left out, what is kept from the model.
//!
//! - Emoji, flags, currencies, punctuation, arrows, mathematical and other symbols that CLDR or emojibase name are entries.
//! - Variants of skin are left out: each repeats its emoji's name and one of five words, 2,000 times in all. The five tones
//!   are entries themselves. Variants of gender, hair and direction stay: in many languages they are other words.
//! - A flag is two entries: "flag: France", and "France" alone, which is what people ask for. So the set has the names of some
//!   260 countries and regions in every language.
//! - Names that differ between the packages are kept, the second as a further name; what differs in case only is one name.

use super::file;
use super::sources::{Said, Sources, is_flag, regions};
use super::{Entry, Translations, check_language, keywords::fold};
use crate::data::Split;
use crate::data::emoji::packages::Packages;
use crate::data::emoji::split::of_concept;
use crate::image_file::write_atomically;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// The data set's file in the folder that [`Made::save`] writes.
pub const FILE_NAME: &str = "translation.zip";

/// The languages that are taken when none are asked for: those of the pictures' names without the regional variants, and the
/// four most spoken others of Europe and the Near East that CLDR has in full.
pub const LANGUAGES: [&str; 30] = [
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "hi", "hu", "it", "ja", "ko", "lt", "ms", "nb",
    "nl", "pl", "pt", "ru", "sv", "th", "tr", "uk", "vi", "zh", "zh-hant",
];

/// More languages are not asked for in earnest.
const MAX_LANGUAGES: usize = 100;
/// Entries that share their names in so many languages are one thing to a translator.
const SHARED_NAMES: usize = 2;
/// Pairs of languages between two reports of progress.
const PORTION: usize = 16;
/// How the split is made, for the description.
const RULE: &str = "held-out-concept where the emoji data hold the concept out in every style: h(concept) < 0.05 of the \
    identity of its code points without variation selectors, skin tones, gender and direction; and where an entry has the \
    names of a held-out one in two languages or more; train otherwise";

/// Entries in memory, not yet written.
pub struct Made {
    entries: Vec<Entry>,
    description: Value,
    licences: Vec<(String, String)>,
}

/// Reads the packages. Entries are in the order of their code points. `languages` as BCP 47 tags; none means [`LANGUAGES`].
///
/// # Errors
/// An unknown language or fewer than two; packages that are missing or damaged.
pub fn make(languages: &[String], packages: &Packages) -> Result<Made> {
    let mut languages = match languages {
        [] => LANGUAGES.map(str::to_owned).to_vec(),
        some => some.iter().map(|language| language.to_ascii_lowercase()).collect(),
    };
    languages.sort_unstable();
    languages.dedup();
    if !(2..=MAX_LANGUAGES).contains(&languages.len()) {
        return Err(Error::request(format!("{} languages are asked for", languages.len()))
            .with_help(format!("ask for 2 to {MAX_LANGUAGES}, such as en,de")));
    }
    for language in &languages {
        check_language(language)
            .map_err(|m| Error::request(m).with_help(format!("known are {}", LANGUAGES.join(", "))))?;
    }
    let sources = Sources::open(packages)?;
    let read: Vec<_> = languages.par_iter().map(|language| sources.texts(language)).collect::<Result<_>>()?;
    let mut concepts: BTreeMap<String, BTreeMap<&str, Said>> = BTreeMap::new();
    for (language, texts) in languages.iter().zip(read) {
        for (code_points, region) in regions(&texts) {
            let said = Said { names: vec![region], keywords: Vec::new() };
            concepts.entry(format!("{code_points}/region")).or_default().insert(language, said);
        }
        for (code_points, said) in texts {
            concepts.entry(code_points).or_default().insert(language, said);
        }
    }
    let said = concepts.into_iter().filter(|(_, said)| said.len() >= 2);
    let mut entries: Vec<Entry> = said.map(|(concept, said)| entry(concept, said)).collect();
    hold_out_namesakes(&mut entries);
    if !entries.iter().any(|entry| entry.split == Split::Train) {
        return Err(Error::request("nothing has names in two of the languages").with_help("ask for more languages"));
    }
    let description = json!({
        "format": "conjure translations 1",
        "entries": entries.len(),
        "languages": languages,
        "sources": sources.descriptions,
        "split": RULE,
    });
    Ok(Made { entries, description, licences: sources.licences })
}

fn entry(concept: String, said: BTreeMap<&str, Said>) -> Entry {
    let code_points = concept.split('/').next().unwrap_or_default();
    let mut entry = Entry { split: of_concept(code_points), ..Entry::default() };
    for (language, said) in said {
        if said.names.len() > 1 {
            entry.alternatives.insert(language.to_owned(), said.names.len() - 1);
        }
        entry.texts.insert(language.to_owned(), said.names.into_iter().chain(said.keywords).collect());
    }
    entry.concept = concept;
    entry
}

/// Holds out what has the names of something held out, until nothing is left that a translator could know them from.
fn hold_out_namesakes(entries: &mut [Entry]) {
    let names = |entry: &Entry| -> BTreeSet<(String, String)> {
        let of = |language: &String| {
            entry.names(language).iter().map(|name| (language.clone(), fold(name))).collect::<Vec<_>>()
        };
        entry.texts.keys().flat_map(of).collect()
    };
    let all: Vec<BTreeSet<(String, String)>> = entries.iter().map(names).collect();
    let mut users: HashMap<&(String, String), Vec<usize>> = HashMap::new();
    for (n, names) in all.iter().enumerate() {
        names.iter().for_each(|name| users.entry(name).or_default().push(n));
    }
    let mut waiting: Vec<usize> = (0..entries.len()).filter(|&n| entries[n].split != Split::Train).collect();
    while let Some(held) = waiting.pop() {
        let mut shared: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
        for name in &all[held] {
            for &other in users.get(name).into_iter().flatten() {
                shared.entry(other).or_default().insert(&name.0);
            }
        }
        for (other, languages) in shared {
            if entries[other].split == Split::Train && languages.len() >= SHARED_NAMES {
                entries[other].split = Split::HeldOutConcept;
                waiting.push(other);
            }
        }
    }
}

/// What is said in one language.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LanguageSummary {
    /// Entries that have a name in it.
    pub entries: usize,
    /// Names, further ones among them.
    pub names: usize,
    /// Keywords.
    pub keywords: usize,
    /// Keyword pairs with English that surely say the same; of English itself, all of its pairs.
    pub keyword_pairs: usize,
}

/// Counts over the texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// All entries.
    pub entries: usize,
    /// Those that are held out.
    pub held_out: usize,
    /// Entries that are flags, or what flags stand for.
    pub flags: usize,
    /// Names in all languages.
    pub names: usize,
    /// Keywords in all languages.
    pub keywords: usize,
    /// Keyword pairs that surely say the same, over all pairs of languages.
    pub keyword_pairs: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Counts for each language.
    pub languages: BTreeMap<String, LanguageSummary>,
    /// Packages, versions, licences.
    pub sources: Vec<Value>,
}

impl Made {
    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes `translation.zip` and `summary.json` into a folder, which is made if needed, and reads the file back.
    /// `progress(done, of)` is called with the pairs of languages whose keyword pairs are counted for the summary, and may stop
    /// the work with an error.
    ///
    /// # Errors
    /// The folder cannot be written to; an error of `progress`.
    pub fn save(&self, folder: &Path, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Summary> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let path = folder.join(FILE_NAME);
        file::write(&path, &self.description, &self.entries, &self.licences)?;
        let summary = self.summary(&path, progress)?;
        let text = serde_json::to_string_pretty(&summary).map_err(|e| Error::failure(format!("the summary: {e}")))?;
        write_atomically(&folder.join("summary.json"), |file| writeln!(file, "{text}"))?;
        Ok(summary)
    }

    fn summary(&self, path: &Path, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Summary> {
        let set = Translations::open(path)?;
        let mut summary = Summary {
            entries: set.entries.len(),
            held_out: set.entries.len() - set.trained.len(),
            flags: set.entries.iter().filter(|e| is_flag(e.concept.trim_end_matches("/region"))).count(),
            bytes: std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len(),
            sha256: set.digest.clone(),
            sources: self.description["sources"].as_array().cloned().unwrap_or_default(),
            ..Summary::default()
        };
        for entry in &set.entries {
            for language in entry.texts.keys() {
                let counts = summary.languages.entry(language.clone()).or_default();
                counts.entries += 1;
                counts.names += entry.names(language).len();
                counts.keywords += entry.keywords(language).len();
            }
        }
        let languages = set.languages();
        let both: Vec<(usize, usize)> = (0..languages.len()).flat_map(|j| (0..j).map(move |i| (i, j))).collect();
        for (n, portion) in both.chunks(PORTION).enumerate() {
            progress(n * PORTION, both.len())?;
            let count = |&(i, j): &(usize, usize)| {
                let pairs = set.pairs_of(&languages[i], &languages[j]).map_or(0, |(pairs, _)| pairs.len());
                (&languages[i], &languages[j], pairs)
            };
            for (a, b, pairs) in portion.par_iter().map(count).collect::<Vec<_>>() {
                summary.keyword_pairs += pairs;
                if a == "en" || b == "en" {
                    for language in [a, b] {
                        summary.languages.entry(language.clone()).or_default().keyword_pairs += pairs;
                    }
                }
            }
        }
        progress(both.len(), both.len())?;
        summary.names = summary.languages.values().map(|counts| counts.names).sum();
        summary.keywords = summary.languages.values().map(|counts| counts.keywords).sum();
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(concept: &str, split: Split, en: &str, de: &str, fr: &str) -> Entry {
        let texts = [("en", en), ("de", de), ("fr", fr)].map(|(l, text)| (l.to_owned(), vec![text.to_owned()]));
        Entry { concept: concept.to_owned(), split, texts: texts.into(), ..Entry::default() }
    }

    #[test]
    fn namesakes_of_what_is_held_out_are_held_out() {
        let (train, held) = (Split::Train, Split::HeldOutConcept);
        let mut entries = [
            named("1", held, "cross", "Kreuz", "croix"),
            named("2", train, "Cross", "kreuz", "crucifix"), // as 1 in two languages
            named("3", train, "x", "kreuz", "crucifix"),     // as 2 in two, though as 1 in one only
            named("4", train, "cross", "Querschnitt", "coupe"), // as 1 in one language
            named("5", train, "cat", "Katze", "chat"),
        ];
        hold_out_namesakes(&mut entries);
        assert_eq!(entries.each_ref().map(|e| e.split), [held, held, held, train, train]);
    }
}
