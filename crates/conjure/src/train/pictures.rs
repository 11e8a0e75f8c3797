//! The pictures that a recipe asks for, in memory at the size that is trained on.

use super::recipe;
use crate::data::{Dataset, Record, Selection, Skipped, Split, shapes};
use crate::image_file::Picture;
use crate::{Error, Result};
use conjure_core::{Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Memory for pictures that a run may take: 8 GiB.
const MAX_BYTES: usize = 8 << 30;

/// Pictures of one size, beside what is known of each.
pub struct Pictures {
    dataset: Dataset,
    size: usize,
    rgb: BTreeMap<usize, Vec<u8>>,
    splits: [Vec<usize>; 3],
    skipped: Skipped,
}

impl Pictures {
    /// Reads what `data` asks for; each picture is scaled down to a square of `data.size` pixels.
    ///
    /// # Errors
    /// No source or more than one; a style or group that does not occur; a broken file; a size of 0.
    pub fn open(data: &recipe::Data, seed: u64) -> Result<Self> {
        if data.size == 0 || data.size > 4096 {
            return Err(Error::request(format!("data.size is {}, not 1 to 4096 pixels", data.size))
                .with_help("for example data.size = 64"));
        }
        let mut skipped = Skipped::default();
        let dataset = match (&data.file, &data.folder, data.shapes) {
            (Some(file), None, None) => Dataset::open(file)?,
            (None, Some(folder), None) => {
                let (dataset, left_out) = Dataset::folder(folder, data.strict)?;
                skipped = left_out;
                dataset
            }
            (None, None, Some(count)) => shapes::dataset(count, seed, data.size)?,
            (None, None, None) => {
                return Err(Error::request("the recipe names no pictures")
                    .with_help("set data.file to a file that conjure data wrote, or data.folder, or data.shapes"));
            }
            _ => return Err(Error::request("data.file, data.folder and data.shapes exclude each other")),
        };
        known(&dataset, &data.styles, "data.styles", |record| vec![&record.style])?;
        known(&dataset, &data.exclude_groups, "data.exclude_groups", |record| vec![&record.group, &record.subgroup])?;
        let splits = [Split::Train, Split::HeldOutConcept, Split::HeldOutCombination].map(|split| {
            dataset.select(&Selection {
                styles: data.styles.clone(),
                exclude_groups: data.exclude_groups.clone(),
                splits: vec![split],
            })
        });
        let count: usize = splits.iter().map(Vec::len).sum();
        if count.saturating_mul(data.size * data.size * 3) > MAX_BYTES {
            return Err(Error::request(format!("{count} pictures of {0}x{0} pixels take over 8 GiB", data.size))
                .with_help("use a smaller data.size, or fewer pictures"));
        }
        let rgb = splits
            .iter()
            .flatten()
            .map(|&i| Ok((i, dataset.rgb(i, data.size)?.rgb)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Self { dataset, size: data.size, rgb, splits, skipped })
    }

    /// Side in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Digest of the whole data set.
    pub fn digest(&self) -> &str {
        self.dataset.digest()
    }

    /// Numbers of the chosen pictures in a part of the data set.
    pub fn split(&self, split: Split) -> &[usize] {
        match split {
            Split::Train => &self.splits[0],
            Split::HeldOutConcept => &self.splits[1],
            Split::HeldOutCombination => &self.splits[2],
        }
    }

    /// What is known of picture `i` of the data set.
    pub fn record(&self, i: usize) -> &Record {
        self.dataset.record(i)
    }

    /// Pixels `(size, size, 3)` of a chosen picture.
    pub fn rgb(&self, i: usize) -> &[u8] {
        self.rgb.get(&i).map_or(&[], Vec::as_slice)
    }

    /// A chosen picture.
    ///
    /// # Errors
    /// `i` was not chosen.
    pub fn picture(&self, i: usize) -> Result<Picture> {
        Picture::new(self.size, self.size, self.rgb(i).to_vec())
    }

    /// Chosen pictures as `(indices.len(), 3, size, size)` in -1 to 1.
    ///
    /// # Errors
    /// One was not chosen.
    pub fn tensor(&self, indices: &[usize], device: &Device) -> Result<Tensor> {
        let pictures: Vec<&[u8]> = indices.iter().map(|&i| self.rgb(i)).collect();
        to_tensor(&pictures, self.size, device)
    }

    /// The files that were left out, for the user.
    pub fn warnings(&self) -> Vec<String> {
        const NAMED: usize = 5;
        let files = &self.skipped.files;
        let mut lines: Vec<String> =
            files.iter().take(NAMED).map(|(file, reason)| format!("left out {}: {reason}", file.display())).collect();
        if files.len() > NAMED {
            lines.push(format!("left out {} files in all; conjure data folder names each", files.len()));
        }
        lines
    }

    /// How messages name picture `i`.
    pub fn describe(&self, i: usize) -> String {
        let record = self.record(i);
        let label = record.labels.get("en").or_else(|| record.labels.values().next()).map_or("", String::as_str);
        format!("{label} ({}, {})", record.style, record.source)
    }
}

/// # Errors
/// A name among `wanted` that no record has.
fn known(dataset: &Dataset, wanted: &[String], key: &str, names: impl Fn(&Record) -> Vec<&String>) -> Result<()> {
    let there: BTreeSet<&String> = (0..dataset.len()).flat_map(|i| names(dataset.record(i))).collect();
    match wanted.iter().find(|name| !there.contains(name)) {
        Some(name) => Err(Error::request(format!("{key}: the data hold no {name}"))
            .with_help(format!("they hold {}", there.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")))),
        None => Ok(()),
    }
}

/// Pictures `(size, size, 3)` of bytes as `(pictures, 3, size, size)` in -1 to 1.
///
/// # Errors
/// A picture of another size.
pub fn to_tensor(pictures: &[&[u8]], size: usize, device: &Device) -> Result<Tensor> {
    let plane = size * size;
    let mut values = vec![0f32; pictures.len() * 3 * plane];
    for (rgb, values) in pictures.iter().zip(values.chunks_exact_mut(3 * plane)) {
        if rgb.len() != 3 * plane {
            return Err(Error::failure(format!("a picture is not {size}x{size} pixels")));
        }
        for (i, pixel) in rgb.chunks_exact(3).enumerate() {
            for (channel, &byte) in pixel.iter().enumerate() {
                values[channel * plane + i] = f32::from(byte) / 127.5 - 1.0;
            }
        }
    }
    Ok(Tensor::from_vec(values, (pictures.len(), 3, size, size), device)?)
}
