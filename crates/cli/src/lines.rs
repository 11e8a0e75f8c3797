//! Files of lines.

use conjure::{Error, Result};
use std::io::Read as _;
use std::path::Path;

/// Larger files are refused.
const MAX_LINES_BYTES: u64 = 1 << 30;

/// The lines of a file, or of stdin where it is `-`.
pub fn lines(path: &Path) -> Result<Vec<String>> {
    let mut bytes = Vec::new();
    let limit = MAX_LINES_BYTES + 1;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_LINES_BYTES {
        return Err(Error::file(path, "has more than 1 GiB of text").with_help("split it into several files"));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::file(path, format!("line {line} is not UTF-8 text")).with_help("convert the file to UTF-8")
    })?;
    Ok(text.lines().map(str::to_owned).collect())
}
