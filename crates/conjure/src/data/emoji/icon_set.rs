//! One style: an icon set in Iconify's JSON, and which of its drawings shows which emoji.

use super::names::{Concept, parse, slug};
use super::packages::Opened;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Aliases of aliases are followed this far.
const MAX_ALIASES: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Set {
    icons: BTreeMap<String, Icon>,
    #[serde(default)]
    aliases: BTreeMap<String, Icon>,
    #[serde(flatten)]
    place: Place,
}

/// A drawing, or a reference to one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Icon {
    body: Option<String>,
    parent: Option<String>,
    #[serde(flatten)]
    place: Place,
    #[serde(default)]
    rotate: u8,
    #[serde(default)]
    h_flip: bool,
    #[serde(default)]
    v_flip: bool,
}

/// The part of the plane that a drawing fills.
#[derive(Clone, Copy, Default, Deserialize)]
struct Place {
    left: Option<f64>,
    top: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
}

impl Place {
    fn or(self, other: Self) -> Self {
        Self {
            left: self.left.or(other.left),
            top: self.top.or(other.top),
            width: self.width.or(other.width),
            height: self.height.or(other.height),
        }
    }
}

/// Who made an icon set, and what may be done with it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Info {
    pub name: String,
    pub author: Author,
    pub license: License,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Author {
    pub name: String,
    #[serde(default)]
    pub url: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct License {
    pub spdx: String,
    #[serde(default)]
    pub url: String,
}

/// A style's drawings.
pub(super) struct IconSet {
    icons: BTreeMap<String, Icon>,
    place: Place,
    pub info: Info,
    /// Code points, as in [`plain`], to the drawing that shows them.
    chars: BTreeMap<String, String>,
}

/// Which names icon sets use for which emoji: what one set says in its `chars.json` helps to read another that has none.
#[derive(Default)]
pub(super) struct KnownNames {
    /// Code points, as in [`plain`], to names.
    names: BTreeMap<String, BTreeSet<String>>,
    /// Names of one and the same drawing.
    same: BTreeMap<String, BTreeSet<String>>,
}

/// Code points in lower case without the variation selector, which icon sets set or leave out as they like.
pub(super) fn plain(code_points: &str) -> String {
    let lower = code_points.to_ascii_lowercase();
    lower.split('-').filter(|code| *code != "fe0f").collect::<Vec<_>>().join("-")
}

impl IconSet {
    /// Reads a set, and adds what it knows to `known`.
    ///
    /// # Errors
    /// The package is damaged or not an icon set.
    pub fn open(package: &Opened, known: &mut KnownNames) -> Result<Self> {
        let names = ["icons.json", "chars.json", "info.json"].map(str::to_owned);
        let files = package.read(&names)?;
        let set: Set = parse(package, &files, "icons.json")?;
        let chars: BTreeMap<String, String> = parse(package, &files, "chars.json")?;
        let info = parse(package, &files, "info.json")?;
        for (code_points, name) in &chars {
            known.names.entry(plain(code_points)).or_default().insert(name.clone());
        }
        for (name, alias) in &set.aliases {
            if let (Some(parent), 0, false, false) = (&alias.parent, alias.rotate, alias.h_flip, alias.v_flip) {
                known.same.entry(name.clone()).or_default().insert(parent.clone());
                known.same.entry(parent.clone()).or_default().insert(name.clone());
            }
        }
        let chars = chars.into_iter().map(|(code_points, name)| (plain(&code_points), name)).collect();
        let mut icons = set.icons;
        for (name, alias) in set.aliases {
            icons.entry(name).or_insert(alias);
        }
        Ok(Self { icons, place: set.place, info, chars })
    }

    /// The drawing of an emoji: by the set's own table of code points, else by a name that another set gives these code
    /// points, else by the English name.
    pub fn find(&self, concept: &Concept, known: &KnownNames) -> Option<&str> {
        let code_points = plain(&concept.code_points);
        let own = self.chars.get(&code_points).into_iter();
        let others = known.names.get(&code_points).into_iter().flatten();
        let english = slug(concept.labels.get("en").map_or("", String::as_str));
        let names = own.chain(others).cloned().chain([english]);
        names
            .flat_map(|name| {
                let same = known.same.get(&name).cloned().unwrap_or_default();
                std::iter::once(name).chain(same)
            })
            .find_map(|name| self.icons.get_key_value(&name))
            .map(|(name, _)| name.as_str())
    }

    /// A drawing as a whole SVG document.
    ///
    /// # Errors
    /// No such drawing, or aliases that lead nowhere.
    pub fn svg(&self, name: &str) -> Result<String> {
        let mut icon = self.icon(name)?;
        let (mut place, mut rotate, mut h_flip, mut v_flip) = (icon.place, icon.rotate, icon.h_flip, icon.v_flip);
        for _ in 0..MAX_ALIASES {
            let Some(parent) = icon.parent.as_deref().filter(|_| icon.body.is_none()) else { break };
            icon = self.icon(parent)?;
            place = place.or(icon.place);
            rotate = (rotate + icon.rotate) % 4;
            h_flip ^= icon.h_flip;
            v_flip ^= icon.v_flip;
        }
        let body = icon.body.as_deref().ok_or_else(|| Error::request(format!("the drawing {name} has no content")))?;
        let place = place.or(self.place);
        // Iconify's defaults.
        let (left, top) = (place.left.unwrap_or(0.0), place.top.unwrap_or(0.0));
        let (width, height) = (place.width.unwrap_or(16.0), place.height.unwrap_or(16.0));
        let (x, y) = (left + width / 2.0, top + height / 2.0);
        let (sx, sy) = (if h_flip { -1 } else { 1 }, if v_flip { -1 } else { 1 });
        let turn = u16::from(rotate % 4) * 90;
        let body = if (turn, sx, sy) == (0, 1, 1) {
            body.to_owned()
        } else {
            format!(
                "<g transform=\"translate({x} {y}) rotate({turn}) scale({sx} {sy}) translate({} {})\">{body}</g>",
                -x, -y
            )
        };
        Ok(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
             width=\"{width}\" height=\"{height}\" viewBox=\"{left} {top} {width} {height}\">{body}</svg>"
        ))
    }

    fn icon(&self, name: &str) -> Result<&Icon> {
        self.icons.get(name).ok_or_else(|| Error::request(format!("there is no drawing {name}")))
    }
}
