//! Emoji as a data set: some 1,900 concepts with names in 28 languages, drawn in up to seven styles under open licences.
//!
//! | module | question it answers |
//! |---|---|
//! | [`packages`] | which packages hold names and drawings, and how do they come here? |
//! | [`names`] | which concepts are there, and what are they called? |
//! | `icon_set` | which drawing of a style shows which concept? |
//! | `render` | how does a drawing become pixels? |
//! | [`split`] | which pictures are kept from the model? |
//! | [`summary`] | what is in the set that was made? |

mod icon_set;
pub mod names;
pub mod packages;
mod render;
pub mod split;
pub mod summary;

use super::archive;
use super::dataset::{Record, Split};
use crate::{Error, Result};
use icon_set::{IconSet, KnownNames};
use names::Concept;
use packages::{Package, Packages};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use summary::Summary;

/// Sides of pictures that can be asked for.
pub const SIZES: std::ops::RangeInclusive<usize> = 16..=1024;
/// The data set's file in the folder that [`Emoji::save`] writes.
pub const FILE_NAME: &str = "emoji.zip";
/// The icon sets that tell code points; the others are read with the help of their names.
const TELLING: [&str; 3] = ["noto", "twemoji", "fluent-emoji-flat"];
/// Drawings rendered between two reports of progress.
const PORTION: usize = 64;

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Styles; see [`style_names`].
    pub styles: Vec<String>,
    /// Groups and subgroups of emoji to leave out.
    pub exclude_groups: Vec<String>,
    /// Languages of names and keywords, from [`names::LANGUAGES`]; English is always there.
    pub languages: Vec<String>,
    /// Pixels a side.
    pub size: usize,
}

impl Default for Request {
    /// Everything, at 128 pixels.
    fn default() -> Self {
        Self {
            styles: style_names().map(str::to_owned).collect(),
            exclude_groups: Vec::new(),
            languages: names::LANGUAGES.map(str::to_owned).to_vec(),
            size: 128,
        }
    }
}

/// All styles.
pub fn style_names() -> impl Iterator<Item = &'static str> {
    packages::STYLES.iter().map(Package::short_name)
}

/// A data set in memory, not yet written.
pub struct Emoji {
    records: Vec<Record>,
    /// PNG files, one per record.
    pictures: Vec<Vec<u8>>,
    description: Value,
    failures: Vec<(String, String)>,
}

/// Reads the packages and draws the pictures, in the order of Unicode and then of the styles. `progress(done, of)` is
/// called with the drawings that are done, and may stop the work with an error.
///
/// # Errors
/// An unknown style, group or language; packages that are missing or damaged; an error of `progress`. Drawings that cannot
/// be rendered are left out and listed in the summary.
pub fn make(
    request: &Request,
    packages: &Packages,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Emoji> {
    check(request)?;
    let concepts = names::concepts(&packages.open(&packages::NAMES)?, &request.languages)?;
    let concepts = without(concepts, &request.exclude_groups)?;
    let mut known = KnownNames::default();
    for package in packages::STYLES.iter().filter(|package| TELLING.contains(&package.short_name())) {
        IconSet::open(&packages.open(package)?, &mut known)?;
    }
    let styles = packages::STYLES.iter().filter(|p| request.styles.iter().any(|style| style == p.short_name()));
    let styles: Vec<&Package> = styles.collect();
    let mut drawn: Vec<Drawn> = Vec::new();
    let mut failures = Vec::new();
    let mut sources = Vec::new();
    for (n, package) in styles.iter().enumerate() {
        let opened = packages.open(package)?;
        let set = IconSet::open(&opened, &mut known)?;
        sources.push(json!({
            "style": package.short_name(), "package": package.name, "version": package.version,
            "sha512": package.sha512, "verified": opened.verified(), "title": set.info.name,
            "author": set.info.author.name, "url": set.info.author.url,
            "licence": set.info.license.spdx, "licence_url": set.info.license.url,
        }));
        let found = find(&set, &concepts, &known);
        // The sets to come are not counted yet: suppose that they are as large as this one.
        let of = drawn.len() + failures.len() + found.len() * (styles.len() - n);
        for portion in found.chunks(PORTION) {
            progress(drawn.len() + failures.len(), of)?;
            let rendered: Vec<_> = portion
                .par_iter()
                .map(|&(concept, icon)| {
                    let picture = set.svg(icon).and_then(|svg| render::render(&svg, request.size as u32));
                    (concept, icon, picture.and_then(|picture| archive::smallest_png(&picture)))
                })
                .collect();
            for (concept, icon, png) in rendered {
                let source = format!("{}/{icon}", package.pinned());
                match png {
                    Ok(png) => {
                        drawn.push(Drawn { concept, style: n, source, licence: set.info.license.spdx.clone(), png })
                    }
                    Err(error) => failures.push((source, error.to_string())),
                }
            }
        }
    }
    progress(drawn.len() + failures.len(), drawn.len() + failures.len())?;
    drawn.sort_by_key(|drawn| (drawn.concept, drawn.style));
    let mut styles_of: BTreeMap<usize, usize> = BTreeMap::new();
    for drawn in &drawn {
        *styles_of.entry(drawn.concept).or_default() += 1;
    }
    let record = |drawn: &Drawn| {
        let concept = &concepts[drawn.concept];
        let style = styles[drawn.style].short_name();
        Record {
            concept: concept.name.clone(),
            style: style.to_owned(),
            group: concept.group.clone(),
            subgroup: concept.subgroup.clone(),
            code_points: concept.code_points.clone(),
            licence: drawn.licence.clone(),
            source: drawn.source.clone(),
            labels: concept.labels.clone(),
            keywords: concept.keywords.clone(),
            split: split::split(&concept.code_points, style, styles_of[&drawn.concept] > 1),
        }
    };
    let records: Vec<Record> = drawn.iter().map(record).collect();
    if records.is_empty() {
        return Err(Error::request("no emoji are left to draw").with_help("leave out fewer groups"));
    }
    let description = json!({
        "format": format!("{} 1", archive::FORMAT),
        "pictures": records.len(),
        "size": request.size,
        "styles": request.styles,
        "exclude_groups": request.exclude_groups,
        "languages": request.languages,
        "names": {
            "package": packages::NAMES.name, "version": packages::NAMES.version, "sha512": packages::NAMES.sha512,
            "licence": "MIT",
        },
        "sources": sources,
        "split": split::RULE,
    });
    Ok(Emoji { records, pictures: drawn.into_iter().map(|drawn| drawn.png).collect(), description, failures })
}

/// A drawing that became a picture.
struct Drawn {
    concept: usize,
    style: usize,
    source: String,
    licence: String,
    png: Vec<u8>,
}

impl Emoji {
    /// Writes `emoji.zip`, `sheet.png` (a sample of the pictures) and `summary.json` into a folder, which is made if needed.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn save(&self, folder: &Path) -> Result<Summary> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let file = folder.join(FILE_NAME);
        let names: Vec<String> = self.records.iter().map(|r| format!("{}/{}.png", r.style, r.concept)).collect();
        archive::write(&file, &self.description, &names, &self.records, |i| Ok(self.pictures[i].clone()))?;
        let summary = Summary::new(&file, &self.records, &self.failures)?;
        summary.save(&folder.join("summary.json"))?;
        summary::save_sheet(&file, &folder.join("sheet.png"))?;
        Ok(summary)
    }
}

fn check(request: &Request) -> Result<()> {
    let known = |what: &str, asked: &[String], known: &[&str]| match asked.iter().find(|a| !known.contains(&a.as_str()))
    {
        Some(unknown) => Err(Error::request(format!("there is no {what} {unknown}"))
            .with_help(format!("known are: {}", known.join(", ")))),
        None => Ok(()),
    };
    known("style", &request.styles, &style_names().collect::<Vec<_>>())?;
    known("language", &request.languages, &names::LANGUAGES)?;
    if request.styles.is_empty() {
        return Err(Error::request("no style is asked for").with_help("name at least one, such as noto"));
    }
    if !SIZES.contains(&request.size) {
        return Err(Error::request(format!("size {} is outside {} to {}", request.size, SIZES.start(), SIZES.end())));
    }
    Ok(())
}

fn without(mut concepts: Vec<Concept>, groups: &[String]) -> Result<Vec<Concept>> {
    if let Some(unknown) =
        groups.iter().find(|group| !concepts.iter().any(|c| c.group == **group || c.subgroup == **group))
    {
        let mut known: Vec<&str> = concepts.iter().flat_map(|c| [c.group.as_str(), &c.subgroup]).collect();
        known.sort_unstable();
        known.dedup();
        return Err(Error::request(format!("there is no group of emoji {unknown}"))
            .with_help(format!("known are: {}", known.join(", "))));
    }
    concepts.retain(|concept| !groups.contains(&concept.group) && !groups.contains(&concept.subgroup));
    Ok(concepts)
}

/// Concepts (by index) with the drawing that shows each. A drawing shows one concept only: the first in Unicode's order.
fn find<'a>(set: &'a IconSet, concepts: &[Concept], known: &KnownNames) -> Vec<(usize, &'a str)> {
    let mut taken = std::collections::BTreeSet::new();
    let found = concepts.iter().enumerate().filter_map(|(n, concept)| Some((n, set.find(concept, known)?)));
    found.filter(|(_, icon)| taken.insert(*icon)).collect()
}

/// A sample of pictures that shows all styles, for the contact sheet.
fn sample(records: &[&Record], count: usize) -> Vec<usize> {
    use sha2::{Digest, Sha256};
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_cached_key(|&i| Sha256::digest(&records[i].source).to_vec());
    order.truncate(count);
    order
}

/// Labels a picture of the sheet.
fn label(record: &Record) -> String {
    let mark = match record.split {
        Split::Train => "",
        Split::HeldOutConcept => "*",
        Split::HeldOutCombination => "+",
    };
    let name: String = record.labels.get("en").map_or("", String::as_str).chars().take(20).collect();
    format!("{name}{mark}")
}
