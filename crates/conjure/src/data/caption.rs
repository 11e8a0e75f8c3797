//! Training captions: the ways in which people ask for a picture of which name, further words and drawing style are known.
//!
//! | what is said | how often | for instance |
//! |---|---|---|
//! | the name | 60 % | `red heart`, `a red heart` |
//! | the name and up to three keywords | 30 % | `red heart, love, romance` |
//! | two or three keywords alone | 10 % | `emotion, red, valentine` |
//! | and the style | 70 % of each | `red heart, flat style`, `flat style red heart`, `Herz, flat-Stil` |
//!
//! A style is called by [`style_word`] and is said in English or in the caption's own language. A third of the captions is
//! English, the other languages share the rest. Captions of the user's own pictures are taken as they stand.

use super::Record;
use conjure_core::rng::Generator;

/// English's share of the captions of a picture that has other languages too.
const ENGLISH: f64 = 1.0 / 3.0;

/// Bytes of UTF-8 that name and keywords may take together; a name alone may be longer. A token of the vocabularies that
/// [`crate::tokens::train_bpe`] learns from such captions stands for three to five bytes in every script, and a caption
/// shall fit into 30 tokens beside its style, which stands at its end.
const ROOM: usize = 72;

/// How a language says "in the style of {}", appended to what is drawn. Names of styles stay apart from letters of other
/// scripts, which would otherwise make one word with them.
const STYLE_PHRASES: [(&str, &str); 28] = [
    ("bn", "{} শৈলী"),
    ("da", "{}-stil"),
    ("de", "{}-Stil"),
    ("en", "{} style"),
    ("en-gb", "{} style"),
    ("es", "estilo {}"),
    ("es-mx", "estilo {}"),
    ("et", "{}-stiil"),
    ("fi", "{}-tyyli"),
    ("fr", "style {}"),
    ("hi", "{} शैली"),
    ("hu", "{} stílus"),
    ("it", "stile {}"),
    ("ja", "{} スタイル"),
    ("ko", "{} 스타일"),
    ("lt", "{} stilius"),
    ("ms", "gaya {}"),
    ("nb", "{}-stil"),
    ("nl", "{}-stijl"),
    ("pl", "styl {}"),
    ("pt", "estilo {}"),
    ("ru", "стиль {}"),
    ("sv", "{}-stil"),
    ("th", "สไตล์ {}"),
    ("uk", "стиль {}"),
    ("vi", "phong cách {}"),
    ("zh", "{} 风格"),
    ("zh-hant", "{} 風格"),
];

/// What users call a style: of an icon set, a word for how it draws or its usual name; of any other style, its own name.
pub fn style_word(style: &str) -> &str {
    match style {
        "fluent-emoji" => "fluent",
        "fluent-emoji-flat" => "flat",
        // The round figures of Android 4.4 to 7, known by this name.
        "noto-v1" => "blob",
        // Drawn for Firefox OS.
        "fxemoji" => "firefox",
        other => other,
    }
}

/// A caption, and what it says, so that it can be asked of which other pictures it is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption {
    /// The caption.
    pub text: String,
    /// Its language.
    pub language: String,
    label: Option<String>,
    keywords: Vec<String>,
    style: Option<String>,
}

impl Caption {
    /// A caption of the picture, in a language at random. One caption takes the same number of draws whatever it becomes.
    pub fn draw(record: &Record, generator: &mut dyn Generator) -> Self {
        Self::draw_among(record, &[], generator)
    }

    /// As [`Caption::draw`], in one of `languages`; in any that the picture has if those are empty or it has none of them.
    pub fn draw_among(record: &Record, languages: &[String], generator: &mut dyn Generator) -> Self {
        let draw = f64::from(generator.uniform(1)[0]);
        let mut known: Vec<&String> = record.labels.keys().filter(|language| languages.contains(language)).collect();
        if known.is_empty() {
            known = record.labels.keys().collect();
        }
        let english = known.iter().any(|language| *language == "en");
        let others: Vec<&String> = known.into_iter().filter(|language| *language != "en").collect();
        let language = match (english, others.len()) {
            (_, 0) => "en",
            (true, _) if draw < ENGLISH => "en",
            (english, n) => {
                let draw = if english { (draw - ENGLISH) / (1.0 - ENGLISH) } else { draw };
                others[((draw * n as f64) as usize).min(n - 1)]
            }
        };
        Self::draw_in(record, language, generator)
    }

    /// A caption of the picture in this language; empty where it has no name in it.
    pub fn draw_in(record: &Record, language: &str, generator: &mut dyn Generator) -> Self {
        let [say, length, style, order, article, quote, first, second, third] = draws(generator);
        let Some(label) = record.labels.get(language) else { return Self::empty(language) };
        if record.concept.is_empty() {
            return Self { text: label.clone(), label: Some(label.clone()), ..Self::empty(language) };
        }
        // 1. What is said: the name, keywords, or both.
        let known = record.keywords.get(language).map_or(&[][..], Vec::as_slice);
        let known: Vec<&String> = known.iter().filter(|word| *word != label).collect();
        let (named, wanted) = match say {
            x if x < 0.6 || known.is_empty() => (true, 0),
            x if x < 0.9 || known.len() < 2 => (true, 1 + (3.0 * length) as usize),
            _ => (false, 2 + (2.0 * length) as usize),
        };
        let room = ROOM.saturating_sub(if named { label.len() } else { 0 });
        let keywords = chosen(known, wanted, [first, second, third], room);
        let named = named || keywords.is_empty();
        let mut said: Vec<String> = Vec::new();
        if named {
            let english = language.starts_with("en");
            said.push(if english && article < 0.3 { with_article(label) } else { label.clone() });
        }
        said.extend(keywords.iter().cloned());
        // 2. The style.
        let (mut text, style) = styled(said.join(", "), record, language, [style, order]);
        // 3. Keyboards have one apostrophe, print has another.
        if quote < 0.5 {
            text = text.replace('’', "'");
        }
        Self { text, language: language.to_owned(), label: named.then(|| label.clone()), keywords, style }
    }

    /// Words that mean the picture's name, and the style as [`Caption::draw`] says it or not; `draws` are two uniform numbers.
    pub(super) fn in_words(words: String, record: &Record, language: &str, draws: [f32; 2]) -> Self {
        let (text, style) = styled(words, record, language, draws);
        let label = record.labels.get(language).cloned();
        Self { text, language: language.to_owned(), label, keywords: Vec::new(), style }
    }

    /// The name and the style, as in `red heart, fluent style`; without a style, the name. `None` where the picture has no
    /// name in this language.
    pub fn plain(record: &Record, language: &str) -> Option<Self> {
        let label = record.labels.get(language)?;
        let style = (!record.style.is_empty()).then(|| record.style.clone());
        let text = named(label, style.as_deref(), language);
        Some(Self { text, language: language.to_owned(), label: Some(label.clone()), keywords: Vec::new(), style })
    }

    /// The style that the caption says, as the data name it.
    pub fn style(&self) -> Option<&str> {
        self.style.as_deref()
    }

    /// The English name of the picture, with the style if this caption says it. `None` where either has no name.
    pub fn in_english(&self, record: &Record) -> Option<String> {
        self.label.as_ref()?;
        Some(named(record.labels.get("en")?, self.style.as_deref(), "en"))
    }

    /// Whether the caption says nothing wrong of this picture: a caption without a style is true of its subject in every
    /// style, and keywords without a name are true of whatever has them all.
    pub fn is_true_of(&self, record: &Record) -> bool {
        let label = record.labels.get(&self.language);
        let known = record.keywords.get(&self.language).map_or(&[][..], Vec::as_slice);
        self.style.as_ref().is_none_or(|style| *style == record.style)
            && self.label.as_ref().is_none_or(|said| Some(said) == label)
            && self.keywords.iter().all(|word| known.contains(word) || Some(word) == label)
    }

    fn empty(language: &str) -> Self {
        Self { text: String::new(), language: language.to_owned(), label: None, keywords: Vec::new(), style: None }
    }
}

/// The name, and the style if there is one.
fn named(label: &str, style: Option<&str>, language: &str) -> String {
    style.map_or_else(|| label.to_owned(), |style| format!("{label}, {}", style_phrase(style, language)))
}

/// The text with the picture's style in seven of ten cases, and that style.
fn styled(text: String, record: &Record, language: &str, [style, order]: [f32; 2]) -> (String, Option<String>) {
    if record.style.is_empty() || style >= 0.7 {
        return (text, None);
    }
    let english = format!("{} style", style_word(&record.style));
    let text = match order {
        x if x < 0.5 => format!("{text}, {}", style_phrase(&record.style, language)),
        x if x < 0.7 => format!("{text}, {english}"),
        x if x < 0.85 || !language.starts_with("en") => format!("{english} {text}"),
        _ => format!("{text} in {english}"),
    };
    (text, Some(record.style.clone()))
}

fn style_phrase(style: &str, language: &str) -> String {
    let phrase = STYLE_PHRASES.iter().find(|(known, _)| *known == language).map_or("{} style", |(_, phrase)| phrase);
    phrase.replace("{}", style_word(style))
}

/// As many uniform numbers.
pub(super) fn draws<const N: usize>(generator: &mut dyn Generator) -> [f32; N] {
    let mut values = generator.uniform(N).into_iter();
    std::array::from_fn(|_| values.next().unwrap_or(0.0))
}

/// So many of the words, no word twice, in the order of the draws, less those for which there is no room.
fn chosen(mut words: Vec<&String>, wanted: usize, draws: [f32; 3], mut room: usize) -> Vec<String> {
    let mut chosen = Vec::new();
    for draw in draws.into_iter().take(wanted) {
        if !words.is_empty() {
            let n = ((draw * words.len() as f32) as usize).min(words.len() - 1);
            let word = words.remove(n);
            if let Some(left) = room.checked_sub(word.len()) {
                room = left;
                chosen.push(word.clone());
            }
        }
    }
    chosen
}

/// With `a` or `an` before it where the name begins like a common noun in the singular; mistakes with plurals and things
/// that are not counted are mistakes that people make too.
pub(super) fn with_article(label: &str) -> String {
    let common = label.starts_with(|c: char| c.is_ascii_lowercase()) && !label.ends_with('s') && !label.contains(':');
    let sounds_like_a_consonant = ["uni", "use", "uk", "eu", "one"].iter().any(|start| label.starts_with(start));
    match label.starts_with(['a', 'e', 'i', 'o', 'u']) && !sounds_like_a_consonant {
        _ if !common => label.to_owned(),
        true => format!("an {label}"),
        false => format!("a {label}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::rng::keyed;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    fn record(concept: &str, style: &str, words: &[(&str, &str, &[&str])]) -> Record {
        let labels = words.iter().map(|(language, label, _)| ((*language).to_owned(), (*label).to_owned())).collect();
        let keywords = words
            .iter()
            .map(|(language, _, words)| ((*language).to_owned(), words.iter().map(|w| (*w).to_owned()).collect()))
            .collect();
        Record {
            concept: concept.into(),
            style: style.into(),
            labels: Arc::new(labels),
            keywords: Arc::new(keywords),
            ..Record::default()
        }
    }

    fn heart(style: &str) -> Record {
        let words: [(&str, &str, &[&str]); 3] = [
            ("en", "red heart", &["emotion", "heart", "love", "red"]),
            ("de", "rotes Herz", &["herz", "liebe"]),
            ("ja", "赤いハート", &[]),
        ];
        record("red-heart", style, &words)
    }

    fn captions(record: &Record, n: usize) -> Vec<Caption> {
        (0..n).map(|n| Caption::draw(record, &mut keyed(1, &n.to_string()))).collect()
    }

    #[test]
    fn captions_take_every_form() {
        let texts: BTreeSet<String> = captions(&heart("fluent-emoji-flat"), 3000).into_iter().map(|c| c.text).collect();
        for form in [
            "red heart",
            "a red heart",
            "red heart, flat style",
            "a red heart, flat style",
            "flat style red heart",
            "red heart in flat style",
            "red heart, love",
            "love, red, flat style",
            "rotes Herz, flat-Stil",
            "rotes Herz, flat style",
            "herz, liebe",
            "赤いハート, flat スタイル",
        ] {
            assert!(texts.contains(form), "{form}");
        }
        assert!(!texts.contains(""));
    }

    /// 9000 draws: each share is within four standard deviations.
    #[test]
    fn shares_are_as_documented() {
        let all = captions(&heart("noto"), 9000);
        let share = |count: usize| count as f64 / all.len() as f64;
        let languages = all.iter().fold(BTreeMap::<&str, usize>::new(), |mut counts, caption| {
            *counts.entry(&caption.language).or_default() += 1;
            counts
        });
        assert!(languages.values().all(|count| (share(*count) - 1.0 / 3.0).abs() < 0.02), "{languages:?}");
        assert!((share(all.iter().filter(|c| c.style.is_some()).count()) - 0.7).abs() < 0.02);
        let english: Vec<_> = all.iter().filter(|c| c.language == "en").collect();
        let share = |count: usize| count as f64 / english.len() as f64;
        assert!((share(english.iter().filter(|c| c.keywords.is_empty()).count()) - 0.6).abs() < 0.04);
        assert!((share(english.iter().filter(|c| c.label.is_none()).count()) - 0.1).abs() < 0.03);
    }

    #[test]
    fn draws_depend_on_the_generator_alone() {
        let record = heart("noto");
        assert_eq!(captions(&record, 50), captions(&record, 50));
        // A caption of a form that needs fewer draws leaves the generator where any other does.
        let mut generators = [keyed(3, "x"), keyed(3, "x")];
        Caption::draw(&record, &mut generators[0]);
        Caption::draw(&record_of_folder(), &mut generators[1]);
        assert_eq!(generators[0].uniform(4), generators[1].uniform(4));
    }

    fn record_of_folder() -> Record {
        record("", "", &[("en", "my dog’s ball", &[])])
    }

    #[test]
    fn captions_of_own_pictures_stand_as_they_are() {
        let record = record_of_folder();
        assert!(captions(&record, 40).iter().all(|caption| caption.text == "my dog’s ball"));
        assert_eq!(Caption::plain(&record, "en").map(|c| c.text).as_deref(), Some("my dog’s ball"));
        assert_eq!(Caption::plain(&record, "de"), None);
    }

    #[test]
    fn a_caption_is_true_of_what_it_says_and_no_more() {
        let (flat, noto) = (heart("fluent-emoji-flat"), heart("noto"));
        let words: [(&str, &str, &[&str]); 1] = [("en", "kiss mark", &["emotion", "lips", "love", "heart"])];
        let kiss = record("kiss-mark", "noto", &words);
        let say = |label: Option<&str>, keywords: &[&str], style: Option<&str>| Caption {
            label: label.map(str::to_owned),
            keywords: keywords.iter().map(|w| (*w).to_owned()).collect(),
            style: style.map(str::to_owned),
            ..Caption::empty("en")
        };
        let true_of = |caption: Caption| [&flat, &noto, &kiss].map(|record| caption.is_true_of(record));
        assert_eq!(true_of(say(Some("red heart"), &[], None)), [true, true, false]);
        assert_eq!(true_of(say(Some("red heart"), &["love"], Some("noto"))), [false, true, false]);
        assert_eq!(true_of(say(None, &["love", "emotion"], None)), [true, true, true]);
        assert_eq!(true_of(say(None, &["love", "emotion"], Some("noto"))), [false, true, true]);
        assert_eq!(true_of(say(None, &["love", "lips"], None)), [false, false, true]);
        for caption in captions(&flat, 300) {
            assert!(caption.is_true_of(&flat), "{caption:?}");
        }
    }

    #[test]
    fn articles_fit() {
        let cases = [("apple", "an apple"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella"), ("socks", "socks")];
        for (label, expected) in [("flag: Fiji", "flag: Fiji"), ("Libra", "Libra")].into_iter().chain(cases) {
            assert_eq!(with_article(label), expected);
        }
    }
}
