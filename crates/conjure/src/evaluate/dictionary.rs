//! The baseline of translation: a dictionary, learned from the texts that a model is trained on.
//!
//! A text is looked up as a whole among the names and the sure keyword pairs. Where it is not there, it is cut from left to
//! right into the longest phrases that are there or that IBM model 1 has a likely translation of; what neither knows is
//! copied. So words stand in the order of the source, and none is inflected: what a model adds shows.

use crate::data::Split;
use crate::data::translation::alignment::{Lexicon, Parallel};
use crate::data::translation::keywords::fold;
use crate::data::translation::{Entry, Translations};
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};

/// A word below this is no translation.
const LEAST: f64 = 0.1;

/// Pieces of the longest phrase that is looked for inside a text, and of the longest word where writing shows none.
const LONGEST: usize = 16;

/// From one language to another.
pub struct Dictionary {
    /// Pieces joined as the source language joins them, to translations.
    phrases: HashMap<String, String>,
    /// The same of what is likely only.
    words: HashMap<String, String>,
    from: Writing,
    to: Writing,
}

/// Whether a language puts spaces between words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Spaced,
    Solid,
}

impl Writing {
    fn of(language: &str) -> Self {
        match language.split('-').next().unwrap_or_default() {
            "zh" | "yue" | "ja" | "th" | "lo" | "km" | "my" => Self::Solid,
            _ => Self::Spaced,
        }
    }

    /// Words and marks; of writing without spaces characters, but words of Latin letters and digits.
    fn pieces(self, text: &str) -> Vec<String> {
        let mut pieces: Vec<String> = Vec::new();
        let mut grows = false;
        for c in text.chars() {
            let part = match self {
                // Vowel signs and joiners of many scripts are not alphanumeric: only marks of ASCII and the common blocks end words.
                Self::Spaced => !c.is_whitespace() && !is_mark(c),
                Self::Solid => c.is_ascii_alphanumeric(),
            };
            match pieces.last_mut() {
                Some(last) if grows && part => last.push(c),
                _ if c.is_whitespace() => {}
                _ => pieces.push(c.to_string()),
            }
            grows = part;
        }
        pieces
    }

    /// Words of a name to learn from. Where writing does not show them, the longest of the `known` ones from left to right, and
    /// what stands between.
    fn words(self, text: &str, known: &HashSet<String>) -> Vec<String> {
        let pieces = self.pieces(text);
        if self == Self::Spaced {
            return pieces;
        }
        let (mut words, mut at, mut open) = (Vec::<String>::new(), 0, false);
        while at < pieces.len() {
            // A whole name is no word of itself.
            let longest = LONGEST.min(pieces.len() - at).min(pieces.len() - 1);
            let length = (1..=longest).rev().find(|n| known.contains(&fold(&pieces[at..at + n].concat())));
            let word = pieces[at..at + length.unwrap_or(1)].concat();
            match words.last_mut() {
                Some(last) if open && length.is_none() => last.push_str(&word),
                _ => words.push(word),
            }
            open = length.is_none();
            at += length.unwrap_or(1);
        }
        words
    }

    fn join(self, pieces: &[String]) -> String {
        pieces.join(match self {
            Self::Spaced => " ",
            Self::Solid => "",
        })
    }
}

fn is_mark(c: char) -> bool {
    (c.is_ascii_punctuation() && !matches!(c, '-' | '\''))
        || matches!(c, '\u{2010}'..='\u{205e}' | '\u{3001}'..='\u{303f}' | '«' | '»' | '：' | '，')
}

/// Numbers for words, in the order in which they come.
#[derive(Default)]
struct Numbers {
    numbers: HashMap<String, u32>,
    words: Vec<String>,
}

impl Numbers {
    /// The number of a word, whose spelling is kept when it first comes.
    fn number(&mut self, word: &str) -> u32 {
        let next = self.words.len() as u32;
        *self.numbers.entry(fold(word)).or_insert_with(|| {
            self.words.push(word.to_owned());
            next
        })
    }
}

impl Dictionary {
    /// Learns from all entries that are trained on.
    ///
    /// # Errors
    /// No such entry has both languages.
    pub fn learn(set: &Translations, from: &str, to: &str) -> Result<Self> {
        let both = |entry: &&Entry| {
            entry.split == Split::Train && entry.texts.contains_key(from) && entry.texts.contains_key(to)
        };
        let entries: Vec<&Entry> = set.entries().iter().filter(both).collect();
        if from == to || entries.is_empty() {
            return Err(Error::request(format!("nothing that is trained on is said in {from} and in {to}"))
                .with_help(format!("the languages are: {}", set.languages().join(", "))));
        }
        let mut dictionary =
            Self { phrases: HashMap::new(), words: HashMap::new(), from: Writing::of(from), to: Writing::of(to) };
        for entry in &entries {
            if let Some(target) = entry.names(to).first() {
                entry.names(from).iter().for_each(|source| dictionary.add(source, target));
            }
        }
        // Pairs of keywords are folded; they are written as the texts first have them.
        let mut spelling: HashMap<String, &String> = HashMap::new();
        for text in entries.iter().filter_map(|entry| entry.texts.get(to)).flatten() {
            spelling.entry(fold(text)).or_insert(text);
        }
        for (source, target) in set.keyword_pairs(from, to) {
            let target = spelling.get(&target).map_or(target.as_str(), |text| text.as_str());
            dictionary.add(&source, target);
        }
        dictionary.words = dictionary.likeliest(&entries, from, to);
        Ok(dictionary)
    }

    fn add(&mut self, source: &str, target: &str) {
        let pieces = self.from.pieces(&fold(source));
        self.phrases.entry(self.from.join(&pieces)).or_insert_with(|| target.to_owned());
    }

    /// The likeliest translation of each word. Words of names and whole keywords are learned from alike: keywords are words
    /// even where writing does not show where one ends.
    fn likeliest(&self, entries: &[&Entry], from: &str, to: &str) -> HashMap<String, String> {
        let (mut sources, mut targets) = (Numbers::default(), Numbers::default());
        let known = |language: &str| -> HashSet<String> {
            entries.iter().flat_map(|entry| entry.keywords(language)).map(|keyword| fold(keyword)).collect()
        };
        let known = [known(from), known(to)];
        let units = |entry: &Entry, language: &str, writing: Writing, numbers: &mut Numbers| -> Vec<u32> {
            let known = &known[usize::from(language == to)];
            let names = entry.names(language).iter().flat_map(|name| writing.words(name, known));
            let words: Vec<String> = names.chain(entry.keywords(language).iter().cloned()).collect();
            words.iter().map(|word| numbers.number(word)).collect()
        };
        let texts: Vec<Parallel> = entries
            .iter()
            .map(|entry| (units(entry, from, self.from, &mut sources), units(entry, to, self.to, &mut targets)))
            .collect();
        let best = Lexicon::new(&texts).best().into_iter().filter(|(_, _, probability)| *probability >= LEAST);
        let key = |a: u32| self.from.join(&self.from.pieces(&fold(&sources.words[a as usize])));
        best.map(|(a, b, _)| (key(a), targets.words[b as usize].clone())).collect()
    }

    /// The translation of a text. Empty for an empty one.
    pub fn translate(&self, text: &str) -> String {
        let pieces = self.from.pieces(text.trim());
        let folded: Vec<String> = pieces.iter().map(|piece| fold(piece)).collect();
        if let Some(whole) = self.phrases.get(&self.from.join(&folded)) {
            return whole.clone();
        }
        let (mut out, mut at) = (Vec::new(), 0);
        while at < pieces.len() {
            let found = (1..=LONGEST.min(pieces.len() - at)).rev().find_map(|length| {
                let phrase = self.from.join(&folded[at..at + length]);
                Some((self.phrases.get(&phrase).or_else(|| self.words.get(&phrase))?, length))
            });
            let (target, length) = found.unwrap_or((&pieces[at], 1));
            out.push(target.clone());
            at += length;
        }
        self.to.join(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lines: &str) -> Translations {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, lines).expect("written");
        Translations::open(&path).expect("read")
    }

    #[test]
    fn phrases_then_words_then_copies() {
        let set = set("en\tde\tja\n\
            black cat\tschwarze Katze\t黒い猫\n\
            black dog\tschwarzer Hund\t黒い犬\n\
            white dog\tweißer Hund\t白い犬\n\
            flag: France\tFlagge: Frankreich\t旗: フランス\n\
            dog\tHund\t犬\n\
            cat\tKatze\t猫\n");
        let german = Dictionary::learn(&set, "en", "de").expect("learned");
        assert_eq!(german.translate("Black Cat"), "schwarze Katze", "as a whole");
        assert_eq!(german.translate("white cat"), "weißer Katze", "word by word, in the order of the source");
        assert_eq!(german.translate("a dog, zebra"), "a Hund , zebra", "what is unknown is copied");
        assert_eq!(german.translate(" "), "");
        let japanese = Dictionary::learn(&set, "en", "ja").expect("learned");
        assert_eq!(japanese.translate("flag: France dog"), "旗: フランス犬");
        let back = Dictionary::learn(&set, "ja", "en").expect("learned");
        assert_eq!(back.translate("猫と犬"), "cat と dog");
        let error = Dictionary::learn(&set, "en", "fr").err().expect("no French");
        assert!(error.help().is_some_and(|help| help.contains("de, en, ja")), "{error}");
    }

    #[test]
    fn names_without_spaces_are_cut_by_the_words_that_are_known() {
        let known = ["顔", "笑顔", "猫"].map(str::to_owned).into();
        assert_eq!(Writing::Solid.words("ニヤリと笑う猫の顔", &known), ["ニヤリと笑う", "猫", "の", "顔"]);
        assert_eq!(Writing::Solid.words("笑顔の猫", &known), ["笑顔", "の", "猫"]);
        assert_eq!(Writing::Spaced.words("cat face", &["cat face".to_owned()].into()), ["cat", "face"]);
    }

    #[test]
    fn pieces_are_words_or_characters() {
        assert_eq!(Writing::Spaced.pieces("flag: Saint-Martin (झंडा)"), ["flag", ":", "Saint-Martin", "(", "झंडा", ")"]);
        assert_eq!(Writing::Solid.pieces("旗: AB12猫"), ["旗", ":", "AB12", "猫"]);
    }
}
