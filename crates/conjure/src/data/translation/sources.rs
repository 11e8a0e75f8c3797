//! What the packages call things: names and keywords by language and code points.

use super::keywords::fold;
use crate::data::emoji::names::parse;
use crate::data::emoji::packages::{ANNOTATIONS, DERIVED_ANNOTATIONS, NAMES, Opened, Packages};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Longer than any licence.
const MAX_LICENCE_BYTES: usize = 1 << 20;

/// What a thing is called in one language.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The first is the name.
    pub names: Vec<String>,
    pub keywords: Vec<String>,
}

impl Said {
    fn add_name(&mut self, name: &str) {
        if is_text(name) && self.names.iter().all(|known| fold(known) != fold(name)) {
            self.names.push(name.trim().to_owned());
        }
    }

    fn add_keywords(&mut self, keywords: &[String]) {
        for keyword in keywords {
            if is_text(keyword) && self.keywords.iter().all(|known| fold(known) != fold(keyword)) {
                self.keywords.push(keyword.trim().to_owned());
            }
        }
    }
}

/// Whether there is something to read: the arrows mark in CLDR what is to be looked up elsewhere.
fn is_text(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric) && !text.contains("↑↑↑") && !text.contains(char::is_control)
}

/// Code points, as in [`plain`], to what is said.
pub(super) type Texts = BTreeMap<String, Said>;

/// The packages, opened, with what is to be said about each.
pub(super) struct Sources {
    emoji: Opened,
    annotations: Opened,
    derived: Opened,
    /// Name, version, digest, licence of each.
    pub descriptions: Vec<Value>,
    /// The licences' texts by file name.
    pub licences: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct EmojiEntry {
    label: String,
    hexcode: String,
    #[serde(default)]
    tags: Vec<String>,
    group: Option<u32>,
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    annotations: BTreeMap<String, Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default)]
    default: Vec<String>,
    #[serde(default)]
    tts: Vec<String>,
}

impl Sources {
    pub fn open(packages: &Packages) -> Result<Self> {
        let [emoji, annotations, derived] = [&NAMES, &ANNOTATIONS, &DERIVED_ANNOTATIONS].map(|p| packages.open(p));
        let (emoji, annotations, derived) = (emoji?, annotations?, derived?);
        let (mut descriptions, mut licences) = (Vec::new(), Vec::new());
        let all = [
            (&NAMES, &emoji, "MIT"),
            (&ANNOTATIONS, &annotations, "Unicode-3.0"),
            (&DERIVED_ANNOTATIONS, &derived, "Unicode-3.0"),
        ];
        for (package, opened, licence) in all {
            let file = format!("licences/{}.txt", package.name);
            let mut found = opened.read(&["LICENSE".to_owned()])?;
            let text = found.remove("LICENSE").filter(|text| text.len() <= MAX_LICENCE_BYTES);
            let text = text.and_then(|text| String::from_utf8(text).ok()).ok_or_else(|| {
                Error::file(opened.path(), "holds no LICENSE, which must go with what is made from it")
                    .with_help(format!("run `npm pack {}` and unpack all of it", package.pinned()))
            })?;
            descriptions.push(json!({
                "package": package.name, "version": package.version, "sha512": package.sha512,
                "verified": opened.verified(), "licence": licence, "licence_file": file,
            }));
            licences.push((file, text));
        }
        Ok(Self { emoji, annotations, derived, descriptions, licences })
    }

    /// All that is said in a language. A name of emojibase comes first, as it names the pictures too; keywords of CLDR come
    /// first, as emojibase writes them in lower case.
    ///
    /// # Errors
    /// No package has the language; a package is damaged.
    pub fn texts(&self, language: &str) -> Result<Texts> {
        let emoji_file = format!("{language}/data.json");
        let tag = cldr_tag(language);
        let (plain_file, derived_file) =
            (format!("annotations/{tag}/annotations.json"), format!("annotationsDerived/{tag}/annotations.json"));
        let mut texts = Texts::new();
        let mut found = false;
        let files = self.emoji.read(std::slice::from_ref(&emoji_file))?;
        let mut tags = Vec::new();
        if files.contains_key(&emoji_file) {
            found = true;
            let entries: Vec<EmojiEntry> = parse(&self.emoji, &files, &emoji_file)?;
            for entry in entries.into_iter().filter(|entry| entry.group.is_some()) {
                let code_points = plain(&entry.hexcode);
                texts.entry(code_points.clone()).or_default().add_name(&entry.label);
                tags.push((code_points, entry.tags));
            }
        }
        for (package, file, key) in
            [(&self.annotations, plain_file, "annotations"), (&self.derived, derived_file, "annotationsDerived")]
        {
            let files = package.read(std::slice::from_ref(&file))?;
            if !files.contains_key(&file) {
                continue;
            }
            found = true;
            let mut content: BTreeMap<String, Annotations> = parse(package, &files, &file)?;
            let annotations = content
                .remove(key)
                .map(|a| a.annotations)
                .ok_or_else(|| Error::file(package.path(), format!("{file} is not as expected: it has no {key:?}")))?;
            for (characters, annotation) in annotations {
                let codes: Vec<String> = characters.chars().map(|c| format!("{:x}", u32::from(c))).collect();
                let said = texts.entry(plain(&codes.join("-"))).or_default();
                annotation.tts.iter().for_each(|name| said.add_name(name));
                said.add_keywords(&annotation.default);
            }
        }
        if !found {
            return Err(Error::request(format!("no package has the language {language}")).with_help(format!(
                "known are {}, and others that {} has",
                super::make::LANGUAGES.join(", "),
                ANNOTATIONS.name
            )));
        }
        for (code_points, tags) in tags {
            // Two capitals are a country's code, no word.
            let words: Vec<String> =
                tags.into_iter().filter(|tag| tag.len() != 2 || !tag.bytes().all(|b| b.is_ascii_uppercase())).collect();
            texts.entry(code_points).or_default().add_keywords(&words);
        }
        for said in texts.values_mut() {
            let names: Vec<String> = said.names.iter().map(|name| fold(name)).collect();
            said.keywords.retain(|keyword| !names.contains(&fold(keyword)));
        }
        texts.retain(|code_points, said| !said.names.is_empty() && !has_skin_tone(code_points));
        Ok(texts)
    }
}

/// Code points in lower case without the variation selector.
fn plain(code_points: &str) -> String {
    let lower = code_points.to_ascii_lowercase();
    lower.split('-').filter(|code| *code != "fe0f").collect::<Vec<_>>().join("-")
}

/// Whether something is shown with a skin tone; the tones themselves are not.
fn has_skin_tone(code_points: &str) -> bool {
    let tone = |code: &str| ["1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"].contains(&code);
    code_points.contains('-') && code_points.split('-').any(tone)
}

/// A language's folder in CLDR: `zh-Hant`, `es-MX`; Norwegian Bokmål is `no` there.
fn cldr_tag(language: &str) -> String {
    if language == "nb" {
        return "no".to_owned();
    }
    let part = |(n, part): (usize, &str)| match (n, part.len()) {
        (0, _) => part.to_ascii_lowercase(),
        (_, 2) => part.to_ascii_uppercase(),
        (_, 4) => part[..1].to_ascii_uppercase() + &part[1..].to_ascii_lowercase(),
        _ => part.to_owned(),
    };
    language.split('-').enumerate().map(part).collect::<Vec<_>>().join("-")
}

/// What each flag stands for, by its code points, where the flags' names have one form: "flag: France" gives "France".
pub(super) fn regions(texts: &Texts) -> BTreeMap<String, String> {
    let split = |name: &str| {
        let (before, after) = name.split_once([':', '：'])?;
        Some((before.trim().to_owned(), after.trim().to_owned())).filter(|(_, after)| !after.is_empty())
    };
    let flags: Vec<(&String, Option<(String, String)>)> = texts
        .iter()
        .filter(|(code_points, _)| is_flag(code_points))
        .map(|(code_points, said)| (code_points, said.names.first().and_then(|name| split(name))))
        .collect();
    // Nine in ten begin alike, or the colon is part of a name.
    let mut starts: BTreeMap<&str, usize> = BTreeMap::new();
    for (before, _) in flags.iter().filter_map(|(_, parts)| parts.as_ref()) {
        *starts.entry(before).or_default() += 1;
    }
    let common =
        starts.iter().find(|(_, count)| **count * 10 >= flags.len() * 9).map(|(before, _)| (*before).to_owned());
    let region = |(code_points, parts): &(&String, Option<(String, String)>)| {
        let (before, after) = parts.as_ref()?;
        (Some(before) == common.as_ref()).then(|| ((*code_points).clone(), after.clone()))
    };
    flags.iter().filter_map(region).collect()
}

/// Whether these are a region's letters, or a black flag with letters that nobody sees behind it.
pub(super) fn is_flag(code_points: &str) -> bool {
    let codes: Vec<u32> = code_points.split('-').filter_map(|code| u32::from_str_radix(code, 16).ok()).collect();
    match codes[..] {
        [a, b] => [a, b].iter().all(|code| (0x1f1e6..=0x1f1ff).contains(code)),
        [0x1f3f4, next, ..] => (0xe0020..=0xe007f).contains(&next),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[(&str, &str)]) -> Texts {
        let said = |name: &str| Said { names: vec![name.to_owned()], keywords: Vec::new() };
        names.iter().map(|(code_points, name)| ((*code_points).to_owned(), said(name))).collect()
    }

    #[test]
    fn flags_stand_for_regions_where_their_names_have_one_form() {
        let french = [
            ("1f1eb-1f1f7", "drapeau\u{a0}: France"),
            ("1f3f4-e0067-e0062-e007f", "drapeau\u{a0}: Écosse"),
            ("1f3f4-200d-2620", "drapeau\u{a0}: pirate"),
            ("1f600", "visage : rieur"),
        ];
        let expected = [("1f1eb-1f1f7", "France"), ("1f3f4-e0067-e0062-e007f", "Écosse")];
        assert_eq!(regions(&named(&french)), expected.map(|(c, n)| (c.to_owned(), n.to_owned())).into());
        assert_eq!(
            regions(&named(&[("1f1eb-1f1f7", "旗子：法國")])),
            [("1f1eb-1f1f7".to_owned(), "法國".to_owned())].into()
        );
        let other =
            [("1f1eb-1f1f7", "flag: France"), ("1f1ec-1f1e7", "Britain: united"), ("1f1e9-1f1ea", "flag of Germany")];
        assert!(regions(&named(&other)).is_empty());
        assert!(regions(&Texts::new()).is_empty());
    }

    #[test]
    fn tags_code_points_and_texts_are_read_as_they_are_meant() {
        assert_eq!(
            ["nb", "zh-hant", "es-mx", "de", "ca-es-valencia"].map(cldr_tag),
            ["no", "zh-Hant", "es-MX", "de", "ca-ES-valencia"]
        );
        assert_eq!(plain("2764-FE0F-200D-1F525"), "2764-200d-1f525");
        assert!(has_skin_tone("1f44d-1f3ff") && !has_skin_tone("1f3ff") && !has_skin_tone("1f44d"));
        assert!(is_text("3:30") && is_text("猫") && !is_text("↑↑↑") && !is_text("…") && !is_text("a\u{1b}[2J"));
        let mut said = Said::default();
        ["Katze", "katze", "Kater"].iter().for_each(|name| said.add_name(name));
        assert_eq!(said.names, ["Katze", "Kater"]);
    }
}
