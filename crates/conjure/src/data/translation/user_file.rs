//! A user's own parallel sentences.

use super::Entry;
use crate::data::emoji::split::held_out_text;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

const MAX_BYTES: u64 = 1 << 30;

pub(super) fn read(path: &Path) -> Result<(Vec<Entry>, String)> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, "has more than 1 GiB of text").with_help("split it into several files"));
    }
    let digest = crate::digest::hex(&Sha256::digest(&bytes));
    let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "is not UTF-8 text"))?;
    let mut lines = text.lines().enumerate();
    let tsv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let languages: Vec<&str> = if tsv { lines.next().map_or("", |(_, l)| l).split('\t').collect() } else { Vec::new() };
    let mut entries = Vec::new();
    for (n, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let at = |m: String| Error::file(path, format!("line {}: {m}", n + 1));
        let texts: BTreeMap<String, String> = if tsv {
            languages.iter().zip(line.split('\t')).map(|(l, t)| ((*l).to_owned(), t.to_owned())).collect()
        } else {
            serde_json::from_str(line).map_err(|e| at(e.to_string()))?
        };
        let texts: BTreeMap<String, Vec<String>> =
            texts.into_iter().filter(|(_, t)| !t.trim().is_empty()).map(|(l, t)| (l, vec![t])).collect();
        if texts.len() < 2 {
            return Err(at("has texts in fewer than two languages".to_owned()));
        }
        entries.push(Entry { concept: format!("{}", n + 1), split: held_out_text(line), texts });
    }
    if entries.is_empty() {
        return Err(Error::file(path, "holds no sentences"));
    }
    Ok((entries, digest))
}
