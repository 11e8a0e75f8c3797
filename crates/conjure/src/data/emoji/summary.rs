//! What is in a data set: counts, bytes, digests, failures; and a sheet to look at.

use super::{label, sample};
use crate::data::{Dataset, Record, Split};
use crate::image_file::write::write_atomically;
use crate::image_file::{strip, write_png};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Pictures on the contact sheet.
const SAMPLED: usize = 60;
/// Pixels a side of each.
const SHEET_SIZE: usize = 128;

/// Counts over a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All pictures.
    pub pictures: usize,
    /// Different concepts.
    pub concepts: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Pictures of each style.
    pub styles: BTreeMap<String, usize>,
    /// Pictures of each group.
    pub groups: BTreeMap<String, usize>,
    /// Pictures of each split.
    pub splits: BTreeMap<String, usize>,
    /// Concepts that have a name in each language.
    pub languages: BTreeMap<String, usize>,
    /// Pictures under each licence.
    pub licences: BTreeMap<String, usize>,
    /// Concepts that are held out in every style.
    pub held_out_concepts: BTreeSet<String>,
    /// Drawings that could not be rendered, with the reason.
    pub failures: BTreeMap<String, String>,
}

impl Summary {
    pub(super) fn new(file: &Path, records: &[Record], failures: &[(String, String)]) -> Result<Self> {
        let mut summary = Self {
            pictures: records.len(),
            bytes: std::fs::metadata(file).map_err(|e| Error::io(file, e))?.len(),
            sha256: crate::digest::model_digest(file)?,
            failures: failures.iter().cloned().collect(),
            ..Self::default()
        };
        let mut seen = BTreeSet::new();
        for record in records {
            *summary.styles.entry(record.style.clone()).or_default() += 1;
            *summary.groups.entry(record.group.clone()).or_default() += 1;
            *summary.splits.entry(record.split.name().to_owned()).or_default() += 1;
            *summary.licences.entry(record.licence.clone()).or_default() += 1;
            if seen.insert(record.concept.as_str()) {
                for language in record.labels.keys() {
                    *summary.languages.entry(language.clone()).or_default() += 1;
                }
            }
            if record.split == Split::HeldOutConcept {
                summary.held_out_concepts.insert(record.concept.clone());
            }
        }
        summary.concepts = seen.len();
        Ok(summary)
    }

    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::failure(format!("the summary: {e}")))?;
        write_atomically(path, |file| writeln!(file, "{text}"))
    }
}

/// Reads a sample of pictures back from the data set and lays them out with their names.
pub(super) fn save_sheet(file: &Path, sheet: &Path) -> Result<()> {
    let set = Dataset::open(file)?;
    let records: Vec<&Record> = (0..set.len()).map(|i| set.record(i)).collect();
    let panels: Result<Vec<_>> =
        sample(&records, SAMPLED).into_iter().map(|i| Ok((label(records[i]), set.rgb(i, SHEET_SIZE)?))).collect();
    write_png(sheet, &strip(&panels?, "a sample of the data set: * held-out concept, + held-out combination")?, None)
}
