//! The user's own pictures with captions.
//!
//! Either every picture has a text file of the same name beside it (`x.png`, `x.txt`), or one `metadata.jsonl` names
//! pictures and captions (`file_name`, `text`), as the ImageFolder of Hugging Face's `datasets` has it. Folders in the folder
//! belong to it. A picture or caption that cannot be used is told with the reason, never passed over in silence.

use super::archive::{self, Line, METADATA};
use super::dataset::{Dataset, Pixels, Record, Skipped};
use crate::image_file::Picture;
use crate::image_file::picture::decode_bytes;
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Larger picture files are refused before they are read.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;
/// No caption is longer.
const MAX_CAPTION_BYTES: u64 = 64 << 10;
/// A longer caption table is refused.
const MAX_METADATA_BYTES: u64 = 1 << 30;
/// More files than this are refused.
const MAX_FILES: usize = 5_000_000;
/// Folders nested deeper are not looked into.
const MAX_DEPTH: usize = 16;
/// Endings of pictures that are read.
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Endings of pictures that are not read: to leave them out without a word would look as if they had been learned from.
const OTHER_ENDINGS: [&str; 20] = [
    "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "jfif", "svg", "ico", "ppm", "pgm", "pnm",
    "tga", "qoi", "psd", "exr", "hdr",
];
/// Texts that tell of a whole folder, not of a picture.
const NO_CAPTIONS: [&str; 6] = ["readme", "license", "licence", "notice", "copying", "credits"];
const CAPTIONS: &str = "put a text file beside every picture (x.png, x.txt), or one metadata.jsonl with lines such as \
    {\"file_name\": \"x.png\", \"text\": \"a red heart\"}";

/// A picture that may be used: path below the folder, with `/` between the parts, and what is known about it.
type Candidate = (String, Record);

/// See [`Dataset::folder`].
pub(super) fn open(folder: &Path, strict: bool) -> Result<(Dataset, Skipped)> {
    if !folder.is_dir() {
        let message = match folder.exists() {
            true => "is a file, and a folder of pictures is needed",
            false => "there is no such folder",
        };
        return Err(Error::file(folder, message).with_help(
            "name a folder of pictures; a file that conjure data wrote is what data.file in a recipe takes",
        ));
    }
    let mut skipped = Skipped::default();
    let table = folder.join(METADATA);
    let candidates =
        if table.is_file() { listed(folder, &table, &mut skipped)? } else { captioned(folder, &mut skipped)? };
    // Only decoding tells whether a picture is whole.
    let checked: Vec<_> = candidates
        .into_par_iter()
        .map(|(name, mut record)| {
            let path = folder.join(&name);
            let digest = read_bytes(&path).map_err(|e| reason(&e)).and_then(|bytes| {
                decode(&bytes)?;
                Ok(Sha256::digest(&bytes))
            });
            if record.source.is_empty() {
                record.source = name.clone();
            }
            (name, path, record, digest)
        })
        .collect();
    let mut hasher = Sha256::new();
    let (mut records, mut files) = (Vec::new(), Vec::new());
    for (name, path, record, digest) in checked {
        match digest {
            Ok(digest) => {
                let line = Line { file_name: name, text: String::new(), record };
                let text = serde_json::to_string(&line).map_err(|e| Error::file(&path, e.to_string()))?;
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
                hasher.update(digest);
                records.push(line.record);
                files.push(path);
            }
            Err(reason) => skipped.files.push((path, reason)),
        }
    }
    if let Some((path, reason)) = skipped.files.first().filter(|_| strict) {
        let others = match skipped.files.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        let what = if *path == table { "that line" } else { "it" };
        return Err(Error::file(path, format!("{reason}{others}")).with_help(format!(
            "repair or remove {what}, or have what cannot be used skipped by leaving out --strict"
        )));
    }
    if records.is_empty() {
        let first = skipped.files.first().map(|(path, reason)| format!("; {}: {reason}", path.display()));
        return Err(
            Error::file(folder, format!("no picture can be used{}", first.unwrap_or_default())).with_help(CAPTIONS)
        );
    }
    Ok((Dataset::new(records, Pixels::Folder(files), crate::digest::hex(&hasher.finalize())), skipped))
}

/// Writes a folder's usable pictures as one file (see [`archive`]); the pictures' own bytes are kept.
///
/// # Errors
/// As [`Dataset::folder`], and a place that cannot be written to, is one of the folder's own pictures or captions, or holds
/// anything but an older data set; known before the pictures are read.
pub fn pack(folder: &Path, strict: bool, file: &Path) -> Result<(Dataset, Skipped)> {
    check_apart(folder, file)?;
    archive::check_replaceable(file)?;
    let (set, skipped) = open(folder, strict)?;
    let Pixels::Folder(files) = set.pixels() else { return Err(Error::file(folder, "is no folder of pictures")) };
    let records: Vec<Record> = (0..set.len()).map(|i| set.record(i).clone()).collect();
    let name = |path: &PathBuf| {
        let inner = path.strip_prefix(folder).unwrap_or(path);
        inner.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
    };
    let names: Vec<String> = files.iter().map(name).collect();
    let description = json!({ "format": format!("{} 1", archive::FORMAT), "pictures": records.len() });
    archive::write(file, &description, &names, &records, |i| read_bytes(&files[i]))?;
    Ok((Dataset::open(file)?, skipped))
}

/// Refuses a file that the folder's next reader would take for a picture, a caption or the table.
fn check_apart(folder: &Path, file: &Path) -> Result<()> {
    let taken = has_ending(file, &ENDINGS)
        || has_ending(file, &OTHER_ENDINGS)
        || has_ending(file, &["txt"])
        || file.file_name().is_some_and(|name| name == METADATA);
    let place = file.parent().filter(|place| !place.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let inside = match (place.canonicalize(), folder.canonicalize()) {
        (Ok(place), Ok(folder)) => place.starts_with(folder),
        // What is not there is told by others.
        _ => false,
    };
    if taken && inside {
        return Err(Error::file(
            file,
            "is no place for the data set: it lies among the pictures and captions that are read",
        )
        .with_help("name a file in another folder, such as pictures.zip"));
    }
    Ok(())
}

/// A picture file on white.
pub(super) fn read(path: &Path) -> Result<Picture> {
    decode(&read_bytes(path)?).map_err(|m| Error::file(path, m))
}

/// Decodes PNG, JPEG or WebP bytes, upright, on white; sizes are checked before memory is taken.
pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Picture, String> {
    let image = decode_bytes(bytes)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let rgb = if image.color().has_alpha() {
        let on_white = |c: u8, alpha: u8| {
            let (c, alpha) = (u32::from(c), u32::from(alpha));
            ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        let rgba = image.into_rgba8().into_raw();
        rgba.chunks_exact(4).flat_map(|p| [on_white(p[0], p[3]), on_white(p[1], p[3]), on_white(p[2], p[3])]).collect()
    } else {
        image.into_rgb8().into_raw()
    };
    Picture::new(width, height, rgb).map_err(|e| e.to_string())
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    bounded(path, MAX_FILE_BYTES)
}

fn bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(path, "there is no such file"),
        _ => Error::io(path, e),
    })?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("larger than {} bytes", limit)));
    }
    Ok(bytes)
}

/// An error's message without the path, which is named beside it.
fn reason(error: &Error) -> String {
    match error {
        Error::File { message, .. } => message.clone(),
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// The pictures that `metadata.jsonl` names. A line that cannot be used is skipped like a picture.
fn listed(folder: &Path, table: &Path, skipped: &mut Skipped) -> Result<Vec<Candidate>> {
    let bytes = bounded(table, MAX_METADATA_BYTES)?;
    let mut seen = BTreeMap::new();
    let mut candidates = Vec::new();
    for (n, line) in without_mark(&bytes).split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        if n >= MAX_FILES {
            return Err(Error::file(table, format!("has more than {MAX_FILES} lines")));
        }
        match candidate(line) {
            Ok((name, record)) => match seen.entry(PathBuf::from(&name)) {
                Entry::Vacant(free) => {
                    free.insert(n + 1);
                    candidates.push((name, record));
                }
                Entry::Occupied(first) => {
                    let reason = format!("line {}: {name} is named already in line {}", n + 1, first.get());
                    skipped.files.push((table.to_owned(), reason));
                }
            },
            Err(reason) => skipped.files.push((table.to_owned(), format!("line {}: {reason}", n + 1))),
        }
    }
    let files = Files::below(folder)?;
    skipped.files.extend(files.passed_over(folder));
    let unlisted = files.pictures.iter().chain(&files.other_pictures).filter(|inner| !seen.contains_key(*inner));
    skipped.files.extend(unlisted.map(|inner| (folder.join(inner), format!("is not listed in {METADATA}"))));
    Ok(candidates)
}

/// What a line of `metadata.jsonl` names, or why it cannot be used.
fn candidate(line: &[u8]) -> std::result::Result<Candidate, String> {
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?;
    let Line { file_name, record, .. } = Line::parse(line)?;
    // A table from a stranger must not reach files elsewhere.
    let inside = Path::new(&file_name).components().all(|part| matches!(part, Component::Normal(_)));
    if file_name.is_empty() || !inside || file_name.contains('\\') {
        return Err(format!("file_name {file_name:?} is not a file of the folder"));
    }
    if record.labels.values().all(|label| label.trim().is_empty()) {
        return Err(format!("{file_name} has no text"));
    }
    Ok((file_name, record))
}

/// Without the mark that some editors put before a file's text.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

/// The pictures that have a text file beside them.
fn captioned(folder: &Path, skipped: &mut Skipped) -> Result<Vec<Candidate>> {
    let files = Files::below(folder)?;
    let mut candidates = Vec::new();
    let mut missing = 0;
    for inner in &files.pictures {
        let path = folder.join(inner);
        let Some(name) = name_of(inner) else {
            skipped.files.push((path, "its name is not UTF-8".to_owned()));
            continue;
        };
        let caption = path.with_extension("txt");
        if !caption.is_file() {
            missing += 1;
            skipped.files.push((path, "has no caption: there is no text file of the same name".to_owned()));
            continue;
        }
        let text = bounded(&caption, MAX_CAPTION_BYTES).map_err(|e| reason(&e));
        let text = text
            .and_then(|bytes| String::from_utf8(without_mark(&bytes).to_vec()).map_err(|_| "is not UTF-8".to_owned()));
        match text.map(|text| text.trim().to_owned()) {
            Ok(text) if text.is_empty() => skipped.files.push((path, "its caption is empty".to_owned())),
            Ok(text) => {
                let labels = Arc::new([("en".to_owned(), text)].into());
                candidates.push((name, Record { labels, ..Record::default() }));
            }
            Err(reason) => skipped.files.push((path, format!("its caption cannot be read: {reason}"))),
        }
    }
    skipped.files.extend(files.passed_over(folder));
    let unread = "is not read: pictures end in .png, .jpg, .jpeg or .webp";
    skipped.files.extend(files.other_pictures.iter().map(|inner| (folder.join(inner), unread.to_owned())));
    let described: BTreeSet<PathBuf> =
        files.pictures.iter().chain(&files.other_pictures).map(|inner| inner.with_extension("")).collect();
    let alone = files.captions.iter().filter(|inner| !described.contains(&inner.with_extension("")));
    skipped
        .files
        .extend(alone.map(|inner| (folder.join(inner), "has no picture: there is none of the same name".to_owned())));
    if candidates.is_empty() {
        let message = match (missing, skipped.files.first()) {
            (0, None) => "holds no pictures (PNG, JPEG or WebP) with captions".to_owned(),
            (0, Some((path, reason))) => {
                format!("holds no pictures (PNG, JPEG or WebP) with captions; {}: {reason}", path.display())
            }
            (n, _) => format!("captions are missing: none of its {n} pictures has one"),
        };
        return Err(Error::file(folder, message).with_help(CAPTIONS));
    }
    Ok(candidates)
}

/// A path below the folder as captions' tables have it, with `/` between the parts; none if it is not UTF-8.
fn name_of(inner: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = inner.iter().map(|part| part.to_str()).collect();
    parts.map(|parts| parts.join("/"))
}

/// Why what is in a folder was not looked for.
const TOO_DEEP: &str = "is not looked into: it lies too deep in other folders";

/// What a folder holds, as paths below it; hidden files and what is neither picture nor caption are left out.
#[derive(Default)]
struct Files {
    /// Pictures of formats that are read.
    pictures: Vec<PathBuf>,
    /// Pictures of formats that are not.
    other_pictures: Vec<PathBuf>,
    /// Text files.
    captions: Vec<PathBuf>,
    /// Folders that are not looked into.
    too_deep: Vec<PathBuf>,
    /// Folders that cannot be read.
    closed: Vec<PathBuf>,
}

impl Files {
    fn below(folder: &Path) -> Result<Self> {
        let mut files = Self::default();
        list(folder, &mut PathBuf::new(), &mut files)?;
        // The order of a data set, which its digest hangs on, is that of the names with their slashes.
        files.pictures.sort_by_cached_key(|inner| name_of(inner));
        Ok(files)
    }

    fn len(&self) -> usize {
        let Self { pictures, other_pictures, captions, too_deep, closed } = self;
        [pictures, other_pictures, captions, too_deep, closed].map(Vec::len).iter().sum()
    }

    /// The folders that were not looked into, with the reason.
    fn passed_over(&self, folder: &Path) -> Vec<(PathBuf, String)> {
        let told = |inner: &PathBuf, reason: &str| (folder.join(inner), reason.to_owned());
        let too_deep = self.too_deep.iter().map(|inner| told(inner, TOO_DEEP));
        too_deep.chain(self.closed.iter().map(|inner| told(inner, "is a folder that cannot be read"))).collect()
    }
}

/// Adds what lies below `folder/inner` to `files`, in order.
fn list(folder: &Path, inner: &mut PathBuf, files: &mut Files) -> Result<()> {
    let here = folder.join(&*inner);
    let explain = |e: std::io::Error| Error::io(&here, e);
    let names = std::fs::read_dir(&here)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let mut names = match names {
        Ok(names) => names,
        // One that may not be read, such as lost+found, does not cost the others.
        Err(_) if inner.iter().next().is_some() => {
            files.closed.push(inner.clone());
            return Ok(());
        }
        Err(error) => return Err(explain(error)),
    };
    names.sort();
    for name in names.iter().filter(|name| !name.as_encoded_bytes().starts_with(b".")) {
        inner.push(name);
        if folder.join(&*inner).is_dir() {
            if inner.iter().count() < MAX_DEPTH {
                list(folder, inner, files)?;
            } else {
                files.too_deep.push(inner.clone());
            }
        } else if has_ending(inner, &ENDINGS) {
            files.pictures.push(inner.clone());
        } else if has_ending(inner, &OTHER_ENDINGS) {
            files.other_pictures.push(inner.clone());
        } else if has_ending(inner, &["txt"]) {
            let stem = inner.file_stem().unwrap_or_default();
            if !NO_CAPTIONS.iter().any(|name| stem.eq_ignore_ascii_case(name)) {
                files.captions.push(inner.clone());
            }
        }
        inner.pop();
        if files.len() > MAX_FILES {
            return Err(Error::file(folder, format!("holds more than {MAX_FILES} pictures and captions")));
        }
    }
    Ok(())
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|e| endings.iter().any(|ending| e.eq_ignore_ascii_case(ending)))
}
