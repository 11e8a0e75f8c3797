//! A data set to those who train on it: records, pixels on demand, a digest.

use super::{archive, area, folder, shapes};
use crate::image_file::Picture;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whether a model may see a picture while it is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// To be trained on.
    #[default]
    Train,
    /// The concept is held out in every style, and with it all that is drawn much like it.
    HeldOutConcept,
    /// The concept is known from other styles; in this one it is held out.
    HeldOutCombination,
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::HeldOutConcept, Self::HeldOutCombination];

    /// The name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOutConcept => "held-out-concept",
            Self::HeldOutCombination => "held-out-combination",
        }
    }
}

/// What a picture shows and where it comes from. Of a user's own picture only the English label, which is its caption,
/// and the source, which is its file name, are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// What is drawn, the same in every style: the English name in lower case, words joined by `-`.
    pub concept: String,
    /// How it is drawn: the name of the icon set.
    pub style: String,
    /// Unicode's group of the emoji, such as `animals-nature`.
    pub group: String,
    /// Unicode's subgroup of the emoji, such as `animal-bird`.
    pub subgroup: String,
    /// Code points of the emoji in hexadecimal, joined by `-`.
    pub code_points: String,
    /// SPDX identifier of the picture's licence.
    pub licence: String,
    /// `package@version/icon`.
    pub source: String,
    /// Language to name.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Language to further words.
    pub keywords: Arc<BTreeMap<String, Vec<String>>>,
    /// Whether it may be trained on.
    pub split: Split,
}

/// Which records are wanted; an empty list of styles or splits means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Styles to take.
    pub styles: Vec<String>,
    /// Groups and subgroups to leave out.
    pub exclude_groups: Vec<String>,
    /// Splits to take.
    pub splits: Vec<Split>,
}

impl Selection {
    /// Whether a record is wanted.
    pub fn takes(&self, record: &Record) -> bool {
        (self.styles.is_empty() || self.styles.contains(&record.style))
            && (self.splits.is_empty() || self.splits.contains(&record.split))
            && !self.exclude_groups.iter().any(|group| *group == record.group || *group == record.subgroup)
    }
}

/// Files that were left out, with the reason for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// File and reason.
    pub files: Vec<(PathBuf, String)>,
}

/// Where pixels come from.
pub(super) enum Pixels {
    Archive(archive::Pictures),
    Folder(Vec<PathBuf>),
    Shapes { seed: u64, size: usize },
}

/// Pictures with words. Pixels are read when they are asked for, so a set may be larger than memory.
pub struct Dataset {
    records: Vec<Record>,
    pixels: Pixels,
    digest: String,
}

impl Dataset {
    /// Opens a file that `conjure data` wrote, or a folder of the user's own pictures (see [`Dataset::folder`]; broken
    /// pictures are refused).
    ///
    /// # Errors
    /// A path that is missing, a damaged file, no pictures in it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() { Self::folder(path, true).map(|(set, _)| set) } else { archive::open(path) }
    }

    /// The user's own pictures: `x.png` beside `x.txt`, or files that `metadata.jsonl` names (`file_name`, `text`). What
    /// cannot be used is skipped and reported, or, if `strict`, refused: broken pictures and those of other formats, pictures
    /// without captions, captions without pictures, and lines of the table without either or that name files elsewhere.
    ///
    /// # Errors
    /// No usable picture, captions missing, a `metadata.jsonl` that cannot be read; if `strict`, anything that would be
    /// skipped.
    pub fn folder(path: impl AsRef<Path>, strict: bool) -> Result<(Self, Skipped)> {
        folder::open(path.as_ref(), strict)
    }

    pub(super) fn new(records: Vec<Record>, pixels: Pixels, digest: String) -> Self {
        Self { records, pixels, digest }
    }

    pub(super) fn pixels(&self) -> &Pixels {
        &self.pixels
    }

    /// Number of pictures; never 0.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no pictures, which no constructor allows.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Picture `i`'s record.
    ///
    /// # Panics
    /// `i` is not below [`Dataset::len`].
    pub fn record(&self, i: usize) -> &Record {
        &self.records[i]
    }

    /// Picture `i` on white, `size` pixels a side: the area filter, which for whole factors is the exact mean of the
    /// pixels that fall together. A picture that is not square is cut to its middle.
    ///
    /// # Errors
    /// The picture is damaged or gone; `size` is 0 or above 16384.
    pub fn rgb(&self, i: usize, size: usize) -> Result<Picture> {
        if i >= self.len() {
            return Err(Error::request(format!("picture {i} of a data set of {}", self.len())));
        }
        let picture = match &self.pixels {
            Pixels::Archive(pictures) => pictures.read(i)?,
            Pixels::Folder(files) => folder::read(&files[i])?,
            &Pixels::Shapes { seed, size } => shapes::draw(&shapes::Scene::random(seed, i as u64), size)?,
        };
        area::square(&picture, size)
    }

    /// SHA-256 over all content, in hexadecimal. Of a file it is the file's own; of a folder it covers names, captions
    /// and the files' bytes.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Indices of the wanted records, in order.
    pub fn select(&self, selection: &Selection) -> Vec<usize> {
        (0..self.len()).filter(|&i| selection.takes(&self.records[i])).collect()
    }
}
