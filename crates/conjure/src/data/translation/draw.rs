//! Which pair a translator sees next.

use super::keywords::fold;
use super::{Entry, Kind, Pair, Translations};
use crate::data::Split;
use conjure_core::rng::Generator;

/// The language on one side of most pairs: most users' requests have it, and most texts are known in it.
const CENTRE: &str = "en";
/// Share of pairs that have it, where an entry does; the others are of any two languages.
const WITH_CENTRE: f32 = 0.7;
/// Share of keyword pairs. Where an entry has none that is sure, its names are taken.
const KEYWORDS: f32 = 0.4;
/// Share of pairs of two entries, so that longer texts are seen as well. Sentences are left as they are.
const JOINED: f32 = 0.1;
/// Between the two, in all languages.
const COMMA: &str = ", ";
/// Entries looked at for one to join.
const TRIES: usize = 32;
/// Numbers that every draw takes from the generator, used or not.
const NUMBERS: usize = 8;

impl Translations {
    /// A training pair of entry `entry`: source text, its language, target text, target language; drawn by `generator` alone,
    /// by one call for eight uniform numbers.
    ///
    /// Seven of ten pairs have English on one side. Of ten pairs five are names, four are keywords that surely say the same,
    /// one joins the names of two entries with a comma. A source is any of the entry's names; a target is always the first.
    /// Of an entry that is held out, names only are drawn, and it is joined to none: so a loss can be measured on it.
    /// A share `copied` of all pairs says the same twice in one language: any of the entry's texts is source and target.
    ///
    /// # Panics
    /// There is no such entry.
    pub fn draw(&self, entry: usize, copied: f64, generator: &mut dyn Generator) -> Pair {
        let numbers = generator.uniform(NUMBERS);
        let u = |n: usize| numbers.get(n).copied().unwrap_or(0.0);
        let drawn = &self.entries[entry];
        let (from, to) = languages(drawn, [u(0), u(1), u(2)]);
        if drawn.split == Split::Train && f64::from(u(7)) < copied {
            let texts = &drawn.texts[to];
            let text = texts.get(pick(u(5), texts.len())).cloned().unwrap_or_default();
            return Pair { source: text.clone(), from: to.to_owned(), target: text, to: to.to_owned() };
        }
        let trained = drawn.split == Split::Train && self.kind == Kind::Names;
        let pair = match u(3) {
            kind if trained && kind < KEYWORDS => self.keyword_pair(drawn, from, to, u(4)),
            kind if trained && kind < KEYWORDS + JOINED => self.joined(entry, from, to, [u(4), u(5), u(6)]),
            _ => None,
        };
        let (source, target) = pair.unwrap_or_else(|| {
            (name(drawn, from, u(5)).to_owned(), drawn.names(to).first().cloned().unwrap_or_default())
        });
        Pair { source, from: from.to_owned(), target, to: to.to_owned() }
    }

    /// One of an entry's keywords whose translation is sure and is one of the entry's as well.
    fn keyword_pair(&self, entry: &Entry, from: &str, to: &str, u: f32) -> Option<(String, String)> {
        let (pairs, turned) = self.pairs_of(from, to)?;
        let targets: Vec<String> = entry.keywords(to).iter().map(|text| fold(text)).collect();
        let translation = |source: &String| {
            let wanted = pairs.get(&fold(source), turned)?;
            let target = targets.iter().position(|target| target == wanted)?;
            Some((source.clone(), entry.keywords(to)[target].clone()))
        };
        let mut found: Vec<(String, String)> = entry.keywords(from).iter().filter_map(translation).collect();
        (!found.is_empty()).then(|| found.swap_remove(pick(u, found.len())))
    }

    /// The names of an entry and of another that is trained on.
    fn joined(&self, entry: usize, from: &str, to: &str, u: [f32; 3]) -> Option<(String, String)> {
        let start = pick(u[0], self.trained.len());
        let others = self.trained.iter().cycle().skip(start).take(TRIES.min(self.trained.len()));
        let mut others = others.filter(|other| **other != entry).map(|other| &self.entries[*other]);
        let other = others.find(|other| [from, to].iter().all(|language| !other.names(language).is_empty()))?;
        let first = &self.entries[entry];
        let source = [name(first, from, u[1]), name(other, from, u[2])].join(COMMA);
        Some((source, [first.names(to).first()?.as_str(), other.names(to).first()?].join(COMMA)))
    }
}

/// Source and target language of an entry's pair.
fn languages(entry: &Entry, u: [f32; 3]) -> (&str, &str) {
    let all: Vec<&str> = entry.texts.keys().map(String::as_str).collect();
    let others: Vec<&str> = all.iter().copied().filter(|language| *language != CENTRE).collect();
    if others.len() < all.len() && u[0] < WITH_CENTRE {
        let other = others[pick(u[1], others.len())];
        return if u[2] < 0.5 { (CENTRE, other) } else { (other, CENTRE) };
    }
    let from = pick(u[1], all.len());
    let to = (from + 1 + pick(u[2], all.len() - 1)) % all.len();
    (all[from], all[to])
}

/// One of an entry's names.
fn name<'a>(entry: &'a Entry, language: &str, u: f32) -> &'a str {
    let names = entry.names(language);
    names.get(pick(u, names.len())).map_or("", String::as_str)
}

/// An index below `n`.
fn pick(u: f32, n: usize) -> usize {
    ((f64::from(u) * n as f64) as usize).min(n.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::rng::Torch;
    use std::collections::BTreeSet;

    fn entry(concept: &str, split: Split, texts: &[(&str, &[&str])], alternatives: &[(&str, usize)]) -> Entry {
        Entry {
            concept: concept.to_owned(),
            split,
            texts: texts
                .iter()
                .map(|(language, texts)| ((*language).to_owned(), texts.iter().map(|t| (*t).to_owned()).collect()))
                .collect(),
            alternatives: alternatives.iter().map(|(language, n)| ((*language).to_owned(), *n)).collect(),
        }
    }

    fn animals(kind: Kind) -> Translations {
        let train = Split::Train;
        let entries = vec![
            entry(
                "1",
                train,
                &[("de", &["Katze", "Haustier", "Tier"]), ("en", &["cat", "kitty", "animal", "pet"])],
                &[("en", 1)],
            ),
            entry(
                "2",
                train,
                &[("de", &["Hund", "Tier", "Haustier"]), ("en", &["dog", "pet", "animal"]), ("fr", &["chien"])],
                &[],
            ),
            entry("3", train, &[("de", &["Löwe", "Tier"]), ("en", &["lion", "animal"])], &[]),
            entry("4", Split::HeldOutConcept, &[("de", &["Hamster", "Tier"]), ("en", &["hamster", "animal"])], &[]),
        ];
        Translations::new(entries, String::new(), kind).expect("entries to train on")
    }

    fn drawn(set: &Translations, entry: usize, times: usize) -> Vec<Pair> {
        let mut generator = Torch::new(7);
        (0..times).map(|_| set.draw(entry, 0.0, &mut generator)).collect()
    }

    #[test]
    fn a_share_of_pairs_says_the_same_twice() {
        let set = animals(Kind::Names);
        let mut generator = Torch::new(7);
        let pairs: Vec<Pair> = (0..4000).map(|_| set.draw(0, 0.2, &mut generator)).collect();
        let copies: Vec<&Pair> = pairs.iter().filter(|p| p.from == p.to).collect();
        // Binomial: a standard deviation of 0.0063.
        assert!((copies.len() as f64 / 4000.0 - 0.2).abs() < 0.02, "{}", copies.len());
        assert!(copies.iter().all(|p| p.source == p.target));
        let german: BTreeSet<&str> = copies.iter().filter(|p| p.to == "de").map(|p| p.source.as_str()).collect();
        assert_eq!(german, BTreeSet::from(["Haustier", "Katze", "Tier"]));
        // Held-out names are copied no more than they are translated for training.
        let held: Vec<Pair> = (0..200).map(|_| set.draw(3, 0.9, &mut generator)).collect();
        assert!(held.iter().all(|p| p.from != p.to));
    }

    #[test]
    fn names_keywords_and_joined_names_are_drawn_in_their_shares() {
        let set = animals(Kind::Names);
        let pairs = drawn(&set, 0, 4000);
        let german: BTreeSet<(&str, &str)> =
            pairs.iter().filter(|p| p.to == "de").map(|p| (p.source.as_str(), p.target.as_str())).collect();
        let expected = [
            ("animal", "Tier"),
            ("cat", "Katze"),
            ("cat, dog", "Katze, Hund"),
            ("cat, lion", "Katze, Löwe"),
            ("kitty", "Katze"),
            ("kitty, dog", "Katze, Hund"),
            ("kitty, lion", "Katze, Löwe"),
            ("pet", "Haustier"),
        ];
        assert_eq!(german, BTreeSet::from(expected));
        assert!(
            pairs.iter().filter(|p| p.to == "en").all(|p| !p.target.contains("kitty")),
            "a target is the first name"
        );
        let share = |wanted: &dyn Fn(&Pair) -> bool| pairs.iter().filter(|p| wanted(p)).count() as f64 / 4000.0;
        // Binomial: standard deviations below 0.008.
        assert!((share(&|p| p.source.contains(", ")) - 0.1).abs() < 0.03);
        assert!((share(&|p| ["animal", "pet", "Tier", "Haustier"].contains(&p.source.as_str())) - 0.4).abs() < 0.03);
        assert!((share(&|p| p.to == "de") - 0.5).abs() < 0.03);
    }

    #[test]
    fn most_pairs_have_english() {
        let set = animals(Kind::Names);
        let pairs = drawn(&set, 1, 3000);
        let english = pairs.iter().filter(|p| p.from == "en" || p.to == "en").count() as f64 / 3000.0;
        // Seven of ten for sure, and two in three of the others: three languages.
        assert!((english - (0.7 + 0.3 * 2.0 / 3.0)).abs() < 0.03, "{english}");
        assert!(pairs.iter().all(|p| p.from != p.to));
        assert!(pairs.iter().any(|p| (p.from.as_str(), p.to.as_str(), p.source.as_str()) == ("fr", "de", "chien")));
    }

    #[test]
    fn the_generator_alone_decides_and_is_called_once() {
        let set = animals(Kind::Names);
        assert_eq!(drawn(&set, 0, 50), drawn(&set, 0, 50));
        let (mut one, mut other) = (Torch::new(3), Torch::new(3));
        set.draw(0, 0.0, &mut one);
        other.uniform(NUMBERS);
        assert_eq!(one.uniform(4), other.uniform(4));
    }

    #[test]
    fn what_is_held_out_is_never_drawn_for_training() {
        let set = animals(Kind::Names);
        let held = set.held_out("en", "de");
        assert_eq!(
            held.iter().map(|p| (p.source.as_str(), p.target.as_str())).collect::<Vec<_>>(),
            [("hamster", "Hamster")]
        );
        let known = set.trained_on("en", "de");
        assert_eq!(
            known.iter().map(|p| (p.source.as_str(), p.target.as_str())).collect::<Vec<_>>(),
            [("cat", "Katze"), ("dog", "Hund"), ("lion", "Löwe")]
        );
        for &entry in &set.trained {
            let pairs = drawn(&set, entry, 500);
            assert!(pairs.iter().all(|p| !p.source.contains("amster") && !p.target.contains("amster")));
        }
        // Its own names can be asked for, and nothing else.
        assert!(
            drawn(&set, 3, 200).iter().all(|p| p.source.eq_ignore_ascii_case("hamster") && !p.source.contains(", "))
        );
        assert!(set.held_out("fr", "de").is_empty() && set.held_out("xx", "de").is_empty());
    }

    #[test]
    fn sentences_are_drawn_whole() {
        let set = animals(Kind::Sentences);
        let sources: BTreeSet<String> = drawn(&set, 2, 300).into_iter().map(|p| p.source).collect();
        assert_eq!(sources, BTreeSet::from(["Löwe".to_owned(), "lion".to_owned()]));
    }
}
