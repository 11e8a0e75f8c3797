//! Which keyword of one language says the same as a keyword of another.
//!
//! An entry lists keywords of each language in no common order: "cat, pet" beside "Haustier, Katze". Over all entries that
//! are trained on, IBM model 1 finds which go together; only pairs that both directions are sure of are used.

use super::Entry;
use super::alignment::{Parallel, sure_pairs};
use crate::data::Split;
use std::collections::{HashMap, HashSet};

/// The least geometric mean of the two probabilities. Measured on keywords that are also names, which the names translate:
/// of pairs of English and German 79 in 100 say what the names say, of English and Japanese 68, of German and French 73
/// (synonyms count as wrong); from 0.3 on 75, 62 and 66; Dice coefficients, from 0.5 on, 62, 68 and 62.
const LEAST: f64 = 0.5;
/// Words that met once may have met by chance.
const TIMES: u32 = 2;

/// Pairs of keywords of two languages, folded as [`fold`] does; no keyword is in two pairs.
#[derive(Debug, Default)]
pub(super) struct KeywordPairs {
    forward: HashMap<String, String>,
    backward: HashMap<String, String>,
}

/// Texts that differ in letter case only are one.
pub(crate) fn fold(text: &str) -> String {
    text.trim().to_lowercase()
}

impl KeywordPairs {
    /// Learns from entries that are trained on. Pairs that are names of an entry that is held out are left out: they are
    /// what a model will be asked.
    pub fn new(entries: &[Entry], from: &str, to: &str) -> Self {
        let (mut numbers, mut words) = ([HashMap::new(), HashMap::new()], [Vec::new(), Vec::new()]);
        let mut number = |side: usize, text: &String| {
            let word = fold(text);
            let next = words[side].len() as u32;
            *numbers[side].entry(word.clone()).or_insert_with(|| {
                words[side].push(word);
                next
            })
        };
        let mut texts: Vec<Parallel> = Vec::new();
        for entry in entries.iter().filter(|entry| entry.split == Split::Train) {
            let (a, b) = (entry.keywords(from), entry.keywords(to));
            if !a.is_empty() && !b.is_empty() {
                let a = a.iter().map(|text| number(0, text)).collect();
                texts.push((a, b.iter().map(|text| number(1, text)).collect()));
            }
        }
        let held_out: HashSet<(String, String)> = entries
            .iter()
            .filter(|entry| entry.split != Split::Train)
            .flat_map(|entry| entry.names(from).iter().map(move |a| (fold(a), entry)))
            .flat_map(|(a, entry)| entry.names(to).iter().map(move |b| (a.clone(), fold(b))))
            .collect();
        let mut pairs = Self::default();
        for (a, b) in sure_pairs(&texts, LEAST, TIMES) {
            let pair = (words[0][a as usize].clone(), words[1][b as usize].clone());
            if !held_out.contains(&pair) {
                pairs.backward.insert(pair.1.clone(), pair.0.clone());
                pairs.forward.insert(pair.0, pair.1);
            }
        }
        pairs
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.forward.len()
    }

    /// The word that pairs with a folded one; `turned` asks in the other direction.
    pub fn get(&self, word: &str, turned: bool) -> Option<&str> {
        (if turned { &self.backward } else { &self.forward }).get(word).map(String::as_str)
    }

    /// All pairs, sorted.
    pub fn all(&self, turned: bool) -> Vec<(String, String)> {
        let pairs = if turned { &self.backward } else { &self.forward };
        let mut pairs: Vec<(String, String)> = pairs.iter().map(|(a, b)| (a.clone(), b.clone())).collect();
        pairs.sort_unstable();
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(split: Split, en: &[&str], de: &[&str]) -> Entry {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let texts = [("en".to_owned(), texts(en)), ("de".to_owned(), texts(de))].into();
        Entry { split, texts, ..Entry::default() }
    }

    #[test]
    fn keywords_that_keep_company_are_paired() {
        let train = [
            entry(
                Split::Train,
                &["cat face", "cat", "pet", "face"],
                &["Katzengesicht", "Gesicht", "Haustier", "Katze"],
            ),
            entry(Split::Train, &["black cat", "cat", "pet"], &["schwarze Katze", "Haustier", "Katze"]),
            entry(Split::Train, &["dog", "pet"], &["Hund", "Haustier"]),
            entry(Split::Train, &["lion", "Cat", "face"], &["Löwe", "katze", "Gesicht"]),
        ];
        let pairs = KeywordPairs::new(&train, "en", "de");
        let found: Vec<(String, String)> = pairs.all(false);
        let expected = [("cat", "katze"), ("face", "gesicht"), ("pet", "haustier")];
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!((pairs.get("katze", true), pairs.get("katze", false), pairs.len()), (Some("cat"), None, 3));
        // A held-out entry is not learned from, and its own name is not given away by the keywords of others.
        let held = entry(Split::HeldOutConcept, &["cat", "pet"], &["Katze", "Haustier"]);
        let with: Vec<Entry> = train.into_iter().chain([held]).collect();
        let found = KeywordPairs::new(&with, "en", "de");
        assert_eq!((found.get("cat", false), found.get("pet", false), found.len()), (None, Some("haustier"), 2));
    }
}
