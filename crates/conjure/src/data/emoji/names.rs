//! Names of emoji: which concepts there are, what they are called in each language, which group they belong to.

use super::packages::Opened;
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The languages of the package, as BCP 47 tags in lower case.
pub const LANGUAGES: [&str; 28] = [
    "bn", "da", "de", "en", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja", "ko", "lt", "ms", "nb",
    "nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant",
];

/// An emoji.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concept {
    /// The English name in lower case, words joined by `-`.
    pub name: String,
    /// Code points in hexadecimal, joined by `-`.
    pub code_points: String,
    /// Unicode's group.
    pub group: String,
    /// Unicode's subgroup.
    pub subgroup: String,
    /// Language to name.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Language to further words.
    pub keywords: Arc<BTreeMap<String, Vec<String>>>,
}

#[derive(Deserialize)]
struct Entry {
    label: String,
    hexcode: String,
    #[serde(default)]
    tags: Vec<String>,
    group: Option<u32>,
    subgroup: Option<u32>,
    #[serde(default)]
    order: u32,
}

#[derive(Deserialize)]
struct Groups {
    groups: BTreeMap<String, String>,
    subgroups: BTreeMap<String, String>,
}

/// All emoji in Unicode's order, without variants of skin and without parts of emoji (regional indicators, skin tones,
/// hair). `languages` always gains English.
///
/// # Errors
/// The package lacks a language or is damaged.
pub(super) fn concepts(package: &Opened, languages: &[String]) -> Result<Vec<Concept>> {
    let file = |language: &str| format!("{language}/data.json");
    let mut wanted: Vec<String> = languages.iter().map(|language| file(language)).collect();
    wanted.extend([file("en"), "meta/groups.json".to_owned()]);
    let files = package.read(&wanted)?;
    let groups: Groups = parse(package, &files, "meta/groups.json")?;
    let name_of = |names: &BTreeMap<String, String>, id: Option<u32>| {
        id.and_then(|id| names.get(&id.to_string())).cloned().unwrap_or_default()
    };
    let mut english: Vec<Entry> = parse(package, &files, &file("en"))?;
    english.retain(|entry| entry.group.is_some() && name_of(&groups.groups, entry.group) != "component");
    english.sort_by_key(|entry| entry.order);

    let mut labels: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut keywords: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    let mut add = |language: &str, entry: Entry| {
        let tags: Vec<String> = entry.tags.into_iter().filter(|tag| *tag != entry.label).collect();
        labels.entry(entry.hexcode.clone()).or_default().insert(language.to_owned(), entry.label);
        if !tags.is_empty() {
            keywords.entry(entry.hexcode).or_default().insert(language.to_owned(), tags);
        }
    };
    for language in languages.iter().filter(|language| *language != "en") {
        let entries: Vec<Entry> = parse(package, &files, &file(language))?;
        for entry in entries {
            add(language, entry);
        }
    }
    let mut concepts = Vec::with_capacity(english.len());
    for entry in english {
        concepts.push((slug(&entry.label), entry.hexcode.clone(), entry.group, entry.subgroup));
        add("en", entry);
    }
    let concept = |(name, code_points, group, subgroup): (String, String, _, _)| Concept {
        name,
        group: name_of(&groups.groups, group),
        subgroup: name_of(&groups.subgroups, subgroup),
        labels: Arc::new(labels.remove(&code_points).unwrap_or_default()),
        keywords: Arc::new(keywords.remove(&code_points).unwrap_or_default()),
        code_points,
    };
    let concepts: Vec<Concept> = concepts.into_iter().map(concept).collect();
    let mut names: Vec<&str> = concepts.iter().map(|concept| concept.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::file(package.path(), format!("two emoji are named {}", twice[0])));
    }
    Ok(concepts)
}

/// Parses one of the files that were read.
pub(in crate::data) fn parse<T: DeserializeOwned>(
    package: &Opened,
    files: &BTreeMap<String, Vec<u8>>,
    name: &str,
) -> Result<T> {
    let bytes = files.get(name).ok_or_else(|| Error::file(package.path(), format!("holds no {name}")))?;
    serde_json::from_slice(bytes).map_err(|e| Error::file(package.path(), format!("{name} is not as expected: {e}")))
}

/// A name in lower-case ASCII words joined by `-`, as icon sets name their drawings.
pub(super) fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars().flat_map(char::to_lowercase) {
        let plain = match c {
            'a'..='z' | '0'..='9' => Some(c),
            'ã' | 'å' | 'á' => Some('a'),
            'ç' => Some('c'),
            'é' => Some('e'),
            'í' => Some('i'),
            'ñ' => Some('n'),
            'ô' => Some('o'),
            'ü' => Some('u'),
            _ => None,
        };
        match (c, plain) {
            (_, Some(plain)) => slug.push(plain),
            ('’' | '\'' | '“' | '”' | '.', _) => {}
            ('#', _) => slug.push_str("hash"),
            ('*', _) => slug.push_str("asterisk"),
            ('&', _) => slug.push_str("and"),
            _ if slug.ends_with('-') || slug.is_empty() => {}
            _ => slug.push('-'),
        }
    }
    slug.truncate(slug.trim_end_matches('-').len());
    slug
}
