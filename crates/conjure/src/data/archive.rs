//! A data set as one file.
//!
//! A zip archive that is an ImageFolder of Hugging Face's `datasets`: pictures, and `metadata.jsonl` with a line for each:
//! `file_name`, `text` (the caption) and all fields of [`Record`](super::Record). `dataset.json` describes the whole. Pictures are stored as they
//! are, the rest is deflated. The same content gives the same bytes.

use super::dataset::{Pixels, Record};
use super::{Dataset, folder};
use crate::image_file::Picture;
use crate::image_file::write::write_atomically;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// The caption table.
pub const METADATA: &str = "metadata.jsonl";
/// The description of the whole.
pub const DESCRIPTION: &str = "dataset.json";
/// More pictures than this are refused.
const MAX_PICTURES: usize = 5_000_000;
/// A longer caption table is refused.
const MAX_METADATA_BYTES: u64 = 1 << 30;
/// Deflate cannot do better; an entry that claims more is lying.
const MAX_RATIO: u64 = 1032;
pub(super) const DAMAGED: &str = "the file is incomplete or damaged; make or copy it again";

/// A line of `metadata.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    pub file_name: String,
    #[serde(default)]
    pub text: String,
    #[serde(flatten)]
    pub record: Record,
}

impl Line {
    /// Parses a line.
    pub fn parse(line: &str) -> std::result::Result<Self, String> {
        // The JSON's line is always the first, while a message names the table's.
        let explain = |e: serde_json::Error| e.to_string().replace(" at line 1 column ", " at column ");
        let mut line: Self = serde_json::from_str(line).map_err(explain)?;
        if line.record.labels.is_empty() && !line.text.trim().is_empty() {
            line.record.labels = Arc::new([("en".to_owned(), line.text.trim().to_owned())].into());
        }
        Ok(line)
    }
}

/// Pictures inside an archive.
pub(super) struct Pictures {
    path: PathBuf,
    archive: Mutex<ZipArchive<BufReader<File>>>,
    /// Index in the archive, for each record.
    entries: Vec<usize>,
    names: Vec<String>,
}

impl Pictures {
    /// Picture `i` on white.
    pub fn read(&self, i: usize) -> Result<Picture> {
        let explain = |m: String| Error::file(&self.path, format!("{} {m}", self.names[i])).with_help(DAMAGED);
        let bytes = {
            // A panic elsewhere leaves the archive as it was: every read seeks first.
            let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
            entry(&mut archive, self.entries[i], folder::MAX_FILE_BYTES).map_err(explain)?
        };
        folder::decode(&bytes).map_err(|m| explain(format!("is a {m}")))
    }
}

/// Opens an archive that [`write`] made, or another zip archive of that layout.
pub(super) fn open(path: &Path) -> Result<Dataset> {
    let explain = |m: String| Error::file(path, m).with_help(DAMAGED);
    let digest = sha256(path)?;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|e| explain(format!("is no whole data set: {e}")))?;
    let index =
        archive.index_for_name(METADATA).ok_or_else(|| explain(format!("is no data set: holds no {METADATA}")))?;
    let metadata = entry(&mut archive, index, MAX_METADATA_BYTES).map_err(|m| explain(format!("{METADATA} {m}")))?;
    let metadata = String::from_utf8(metadata).map_err(|_| explain(format!("{METADATA} is not UTF-8")))?;
    let (mut records, mut entries, mut names) = (Vec::<Record>::new(), Vec::new(), Vec::new());
    for (n, line) in metadata.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |m: String| explain(format!("{METADATA}, line {}: {m}", n + 1));
        let Line { file_name, mut record, .. } = Line::parse(line).map_err(at)?;
        if records.len() == MAX_PICTURES {
            return Err(at(format!("more than {MAX_PICTURES} pictures")));
        }
        // Styles of one concept follow each other and share its names.
        if let Some(last) = records.last() {
            if last.labels == record.labels {
                record.labels = last.labels.clone();
            }
            if last.keywords == record.keywords {
                record.keywords = last.keywords.clone();
            }
        }
        entries.push(archive.index_for_name(&file_name).ok_or_else(|| at(format!("there is no {file_name}")))?);
        records.push(record);
        names.push(file_name);
    }
    if records.is_empty() {
        return Err(explain(format!("holds no pictures: {METADATA} is empty")));
    }
    let pictures = Pictures { path: path.to_owned(), archive: Mutex::new(archive), entries, names };
    Ok(Dataset::new(records, Pixels::Archive(pictures), digest))
}

/// The content of an entry of at most `limit` bytes.
pub(super) fn entry(
    archive: &mut ZipArchive<BufReader<File>>,
    index: usize,
    limit: u64,
) -> std::result::Result<Vec<u8>, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("cannot be read: {e}");
    let entry = archive.by_index(index).map_err(|e| damaged(&e))?;
    let (size, packed) = (entry.size(), entry.compressed_size());
    if size > limit || size / MAX_RATIO > packed {
        return Err(format!("claims {size} bytes in {packed}"));
    }
    let mut bytes = Vec::new();
    entry.take(limit + 1).read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
    if bytes.len() as u64 != size {
        return Err(format!("claims {size} bytes and has others"));
    }
    Ok(bytes)
}

/// How the format of pictures is called in the [`DESCRIPTION`], before its version.
pub(super) const FORMAT: &str = "conjure data set";
/// A longer description is not one of ours.
const MAX_DESCRIPTION_BYTES: u64 = 64 << 20;

/// Refuses to replace what is no data set of ours: a slip of the user's must not cost a picture.
///
/// # Errors
/// At `path` lies a file whose [`DESCRIPTION`] does not say that it is one.
pub(super) fn check_replaceable(path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let description = ZipArchive::new(BufReader::new(file)).ok().and_then(|mut archive| {
        let index = archive.index_for_name(DESCRIPTION)?;
        serde_json::from_slice::<serde_json::Value>(&entry(&mut archive, index, MAX_DESCRIPTION_BYTES).ok()?).ok()
    });
    let is_ours = description.is_some_and(|told| told["format"].as_str().is_some_and(|name| name.starts_with(FORMAT)));
    if is_ours {
        return Ok(());
    }
    Err(Error::file(path, "is a file that is no data set of conjure's, and is not replaced")
        .with_help("give the data set another name, or remove that file first"))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(path, "there is no such file"),
        _ => Error::io(path, e),
    })?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(crate::digest::hex(&hasher.finalize())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

/// Writes an archive. `names` are the pictures' paths in it, `content(i)` the bytes of picture file `i`. The caption is the
/// English label with the style, if there is one.
pub(super) fn write(
    path: &Path,
    description: &Value,
    names: &[String],
    records: &[Record],
    mut content: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(Error::failure(format!("two pictures are named {twice}")));
    }
    let mut lines = String::new();
    for (file_name, record) in names.iter().zip(records) {
        let label = record.labels.get("en").map_or("", String::as_str);
        let text = if record.style.is_empty() { label.to_owned() } else { format!("{label}, {} style", record.style) };
        let line = Line { file_name: file_name.clone(), text, record: record.clone() };
        lines += &serde_json::to_string(&line).map_err(|e| Error::failure(format!("{file_name}: {e}")))?;
        lines.push('\n');
    }
    let description = format!("{description:#}\n");
    let (plain, packed) = (stored(), deflated());
    let mut failed = None;
    let written = write_atomically(path, |file| {
        let mut archive = ZipWriter::new_stream(file);
        archive.start_file(DESCRIPTION, packed)?;
        archive.write_all(description.as_bytes())?;
        archive.start_file(METADATA, packed)?;
        archive.write_all(lines.as_bytes())?;
        for (i, name) in names.iter().enumerate() {
            let bytes = content(i).map_err(|e| {
                failed = Some(e);
                std::io::Error::other("a picture cannot be read")
            })?;
            archive.start_file(name.as_str(), plain)?;
            archive.write_all(&bytes)?;
        }
        archive.finish()?;
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}

/// How what is packed already is put into an archive. The time is fixed, so that the same content gives the same bytes.
fn stored() -> SimpleFileOptions {
    SimpleFileOptions::default()
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .compression_method(CompressionMethod::Stored)
}

/// How text is put into an archive.
pub(super) fn deflated() -> SimpleFileOptions {
    stored().compression_method(CompressionMethod::Deflated).compression_level(Some(9))
}

/// A PNG of a picture: of several ways to write it losslessly the smallest.
pub(super) fn smallest_png(picture: &Picture) -> Result<Vec<u8>> {
    let mut palette: Vec<[u8; 3]> = picture.rgb.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    palette.sort_unstable();
    palette.dedup();
    let mut best = Vec::new();
    let mut keep = |png: Vec<u8>| {
        if best.is_empty() || png.len() < best.len() {
            best = png;
        }
    };
    if palette.len() <= 256 {
        let index = |p: &[u8]| palette.binary_search(&[p[0], p[1], p[2]]).unwrap_or(0) as u8;
        let indices: Vec<u8> = picture.rgb.chunks_exact(3).map(index).collect();
        let colours = palette.concat();
        keep(encode(picture, &indices, Some(&colours), png::Filter::NoFilter)?);
    }
    for filter in [png::Filter::NoFilter, png::Filter::Paeth, png::Filter::Adaptive] {
        keep(encode(picture, &picture.rgb, None, filter)?);
    }
    Ok(best)
}

fn encode(picture: &Picture, data: &[u8], palette: Option<&[u8]>, filter: png::Filter) -> Result<Vec<u8>> {
    let explain = |e: png::EncodingError| Error::failure(format!("a picture cannot be written as PNG: {e}"));
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width as u32, picture.height as u32);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(png::ColorType::Rgb);
    if let Some(palette) = palette {
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette(palette);
    }
    encoder.set_compression(png::Compression::High);
    encoder.set_filter(filter);
    let mut writer = encoder.write_header().map_err(explain)?;
    writer.write_image_data(data).map_err(explain)?;
    writer.finish().map_err(explain)?;
    Ok(bytes)
}
