//! How people ask for a thing in words of their own: `a picture of a dog`, `das Auto bitte`, `un sol pequeño`, `猫の絵`.
//!
//! | what is said | how often | for instance, of the automobile |
//! |---|---|---|
//! | the name | half, or always where no keyword stands for it | `automobile` |
//! | a keyword that stands for it | else | `motorcar` |
//! | with a colour, where none is in the name | a quarter of both | `a blue automobile` |
//! | in a sentence | seven tenths of all | `draw me an automobile` |
//! | and the style | 70 % of each | as in [`Caption`] |
//!
//! A keyword stands for one thing in a language, however many have it: for the one that is called so; else for one whose name
//! begins or ends with it, as a red apple is an apple; else for any. Of several it is the one with the shortest names over all
//! languages, as what is plain has short names.
//!
//! No picture shows the colour, and captions made of colour and thing say so to nobody: they are for teaching that a blue
//! automobile is an automobile, rather than the blue heart whose name it shares a word with.

use super::Record;
use super::caption::{Caption, draws, with_article};
use conjure_core::rng::Generator;
use std::collections::{BTreeMap, BTreeSet};

/// Sentences by language; `{a}` is the thing with its article, where English has one, and `{}` the thing.
const SENTENCES: [(&str, &[&str]); 4] = [
    (
        "en",
        &[
            "{a}",
            "{a}",
            "the {}",
            "the {}",
            "my {}",
            "some {}",
            "a picture of {a}",
            "a picture of {}",
            "picture of the {}",
            "an emoji of {a}",
            "{} emoji",
            "{} please",
            "draw {a}",
            "draw me {a}",
            "please draw {a}",
            "show me {a}",
            "show me the {}",
            "make {a}",
            "i want {a}",
            "a small {}",
            "a little {}",
            "a big {}",
            "a cute {}",
            "a nice {}",
            "a beautiful {}",
        ],
    ),
    (
        "de",
        &[
            "ein {}",
            "eine {}",
            "einen {}",
            "der {}",
            "die {}",
            "das {}",
            "mein {}",
            "ein Bild von {}",
            "Bild von einem {}",
            "ein Emoji von {}",
            "{} Emoji",
            "{} bitte",
            "zeichne {}",
            "zeichne mir ein {}",
            "male eine {}",
            "zeig mir einen {}",
            "zeig mir die {}",
            "bitte ein {}",
            "ich möchte ein {}",
            "ein kleines {}",
            "ein kleiner {}",
            "eine kleine {}",
            "ein großer {}",
            "ein schönes {}",
            "eine schöne {}",
        ],
    ),
    (
        "es",
        &[
            "un {}",
            "una {}",
            "el {}",
            "la {}",
            "los {}",
            "las {}",
            "mi {}",
            "una imagen de {}",
            "una imagen de un {}",
            "imagen de la {}",
            "un emoji de {}",
            "emoji de {}",
            "{} por favor",
            "dibuja {}",
            "dibuja un {}",
            "dibújame una {}",
            "muéstrame un {}",
            "quiero una {}",
            "por favor, un {}",
            "un {} pequeño",
            "una {} pequeña",
            "un {} grande",
            "una {} bonita",
            "un {} bonito",
        ],
    ),
    (
        "ja",
        &[
            "{}の絵",
            "{}の絵文字",
            "{}の画像",
            "{}のイラスト",
            "{}を描いて",
            "{}を描いてください",
            "{}の絵を描いて",
            "{}をください",
            "{}が欲しい",
            "{}を見せて",
            "小さな{}",
            "小さい{}",
            "大きな{}",
            "かわいい{}",
            "きれいな{}",
            "私の{}",
        ],
    ),
];

/// Things in colours by language.
const COLOURED: [(&str, &[&str]); 4] = [
    (
        "en",
        &[
            "red {}",
            "orange {}",
            "yellow {}",
            "green {}",
            "blue {}",
            "purple {}",
            "pink {}",
            "brown {}",
            "black {}",
            "white {}",
            "grey {}",
            "gray {}",
            "golden {}",
        ],
    ),
    (
        "de",
        &[
            "rotes {}",
            "roter {}",
            "rote {}",
            "gelbes {}",
            "gelbe {}",
            "grünes {}",
            "grüner {}",
            "grüne {}",
            "blaues {}",
            "blauer {}",
            "blaue {}",
            "rosa {}",
            "lila {}",
            "braunes {}",
            "braune {}",
            "schwarzes {}",
            "schwarzer {}",
            "schwarze {}",
            "weißes {}",
            "weißer {}",
            "weiße {}",
            "graues {}",
            "graue {}",
        ],
    ),
    (
        "es",
        &[
            "{} rojo",
            "{} roja",
            "{} amarillo",
            "{} amarilla",
            "{} verde",
            "{} azul",
            "{} naranja",
            "{} rosa",
            "{} morado",
            "{} morada",
            "{} marrón",
            "{} negro",
            "{} negra",
            "{} blanco",
            "{} blanca",
            "{} gris",
        ],
    ),
    (
        "ja",
        &[
            "赤い{}",
            "青い{}",
            "緑の{}",
            "黄色い{}",
            "黒い{}",
            "白い{}",
            "ピンクの{}",
            "茶色い{}",
            "紫の{}",
            "オレンジ色の{}",
            "灰色の{}",
            "金色の{}",
        ],
    ),
];

/// Longest keyword that is asked for, in bytes.
const WORD: usize = 30;

/// What the words of each language stand for.
pub struct Asking {
    /// Language and concept to the keywords that stand for it.
    words: BTreeMap<(String, String), Vec<String>>,
    /// Language to all names, in lower case.
    names: BTreeMap<String, BTreeSet<String>>,
}

/// How well a keyword suits a thing, the lowest first, and how long the thing's names are.
type Fit = (u8, usize);

impl Asking {
    /// What the words of these pictures' languages stand for.
    pub fn new<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let mut things: BTreeMap<&str, &Record> = BTreeMap::new();
        for record in records.filter(|record| !record.concept.is_empty()) {
            things.entry(&record.concept).or_insert(record);
        }
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut best: BTreeMap<(&str, String), (Fit, &str)> = BTreeMap::new();
        for (concept, record) in things {
            let all: usize = record.labels.values().map(|label| label.chars().count()).sum();
            let length = 100 * all / record.labels.len().max(1);
            for (language, label) in record.labels.iter() {
                let label = label.to_lowercase();
                let keywords = record.keywords.get(language).into_iter().flatten();
                for word in keywords.map(|word| word.to_lowercase()).chain([label.clone()]) {
                    let fit = match &word {
                        word if *word == label => 0,
                        word if label.ends_with(&**word) || label.starts_with(&format!("{word} ")) => 1,
                        _ => 2,
                    };
                    let fit = ((fit, length), concept);
                    best.entry((language, word)).and_modify(|known| *known = fit.min(*known)).or_insert(fit);
                }
                names.entry(language.clone()).or_default().insert(label);
            }
        }
        let mut words: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for ((language, word), ((fit, _), concept)) in best {
            if fit > 0 && word.len() <= WORD {
                words.entry((language.to_owned(), concept.to_owned())).or_default().push(word);
            }
        }
        Self { words, names }
    }

    /// Somebody's words for what the picture shows, in this language. `None` where it has no name in it. One wish takes the same
    /// number of draws whatever it becomes.
    pub fn draw(&self, record: &Record, language: &str, generator: &mut dyn Generator) -> Option<Caption> {
        let [by_word, word, coloured, colour, framed, sentence, style, order] = draws(generator);
        let label = record.labels.get(language)?;
        let words = self.words.get(&(language.to_owned(), record.concept.clone()));
        // 1. The thing.
        let mut thing = match words {
            Some(words) if by_word < 0.5 => picked(words, word).clone(),
            _ => label.clone(),
        };
        // 2. Its colour.
        if coloured < 0.25
            && let Some(patterns) = of(&COLOURED, language)
            && !has_colour(record)
        {
            let in_colour = picked(patterns, colour).replace("{}", &thing);
            let is_a_name = self.names.get(language).is_some_and(|names| names.contains(&in_colour.to_lowercase()));
            if !is_a_name {
                thing = in_colour;
            }
        }
        // 3. The sentence.
        if framed < 0.7
            && let Some(sentences) = of(&SENTENCES, language)
        {
            thing = picked(sentences, sentence).replace("{a}", &with_article(&thing)).replace("{}", &thing);
        }
        Some(Caption::in_words(thing, record, language, [style, order]))
    }
}

/// What is said in this language; a region speaks as its language does.
fn of(table: &[(&str, &'static [&'static str])], language: &str) -> Option<&'static [&'static str]> {
    let base = language.split('-').next().unwrap_or(language);
    table.iter().find(|(known, _)| *known == base).map(|(_, said)| *said)
}

fn picked<T>(choices: &[T], draw: f32) -> &T {
    &choices[((draw * choices.len() as f32) as usize).min(choices.len() - 1)]
}

/// Whether the English name says a colour.
fn has_colour(record: &Record) -> bool {
    let colours = of(&COLOURED, "en").unwrap_or_default();
    let said = record.labels.get("en").map_or("", String::as_str);
    said.split_whitespace().any(|word| colours.iter().any(|colour| colour.strip_suffix(" {}") == Some(word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::rng::keyed;
    use std::sync::Arc;

    fn thing(concept: &str, words: &[(&str, &str, &[&str])]) -> Record {
        let of = |word: &&str| (*word).to_owned();
        Record {
            concept: concept.into(),
            style: "noto".into(),
            labels: Arc::new(words.iter().map(|(l, label, _)| (of(l), of(label))).collect()),
            keywords: Arc::new(words.iter().map(|(l, _, keys)| (of(l), keys.iter().map(of).collect())).collect()),
            ..Record::default()
        }
    }

    fn things() -> Vec<Record> {
        vec![
            thing("red-apple", &[("en", "red apple", &["apple", "fruit", "red"]), ("de", "roter Apfel", &["obst"])]),
            thing("pear", &[("en", "pear", &["fruit"]), ("de", "Birne", &["obst"])]),
            thing("automobile", &[("en", "automobile", &["car", "vehicle"]), ("de", "Auto", &["pkw"])]),
            thing("cat", &[("en", "cat", &["pet"]), ("ja", "猫", &["ペット"])]),
            thing("black-cat", &[("en", "black cat", &["black", "cat", "unlucky"])]),
        ]
    }

    fn drawn(record: &Record, language: &str) -> BTreeSet<String> {
        let asking = Asking::new(things().iter());
        let wish = |n: i32| asking.draw(record, language, &mut keyed(5, &n.to_string())).unwrap();
        (0..20000).map(|n| wish(n).text).collect()
    }

    #[test]
    fn a_keyword_stands_for_one_thing() {
        let asking = Asking::new(things().iter());
        let words = |language: &str, concept: &str| {
            asking.words.get(&(language.to_owned(), concept.to_owned())).cloned().unwrap_or_default()
        };
        // An apple is a red apple; the cat is called so itself; fruit is the one with the shorter names.
        assert_eq!(words("en", "red-apple"), ["apple", "red"]);
        assert_eq!(words("en", "pear"), ["fruit"]);
        assert_eq!(words("de", "pear"), ["obst"]);
        assert_eq!(words("en", "black-cat"), ["black", "unlucky"]);
    }

    #[test]
    fn wishes_take_every_form() {
        let all = things();
        let texts = drawn(&all[2], "en");
        for wish in [
            "automobile",
            "car",
            "the car",
            "draw me an automobile",
            "blue car",
            "car, noto style",
            "a picture of a car in noto style",
        ] {
            assert!(texts.contains(wish), "{wish}");
        }
        assert!(drawn(&all[2], "de").contains("blaues Auto, noto-Stil"));
        assert!(drawn(&all[3], "ja").contains("猫の絵"));
        // Whose name says a colour has no other; and what is another thing's name is not asked of this one.
        assert!(!drawn(&all[0], "en").iter().any(|text| text.contains("blue")));
        let cats = drawn(&all[3], "en");
        assert!(cats.contains("white cat") && !cats.contains("black cat"));
    }

    #[test]
    fn a_wish_means_the_name() {
        let all = things();
        let asking = Asking::new(all.iter());
        for n in 0..200 {
            let wish = asking.draw(&all[2], "de", &mut keyed(5, &n.to_string())).unwrap();
            let english = if wish.style().is_some() { "automobile, noto style" } else { "automobile" };
            assert_eq!(wish.in_english(&all[2]).unwrap(), english);
        }
        assert!(asking.draw(&all[4], "de", &mut keyed(5, "0")).is_none());
    }
}
