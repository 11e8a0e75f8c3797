//! Texts and lines that users give in files or on stdin.

use conjure::{Error, Result};
use std::io::Read;
use std::path::Path;

/// Larger files of lines are refused.
const MAX_LINES_BYTES: u64 = 1 << 30;
/// What some editors put before a text; it is no part of it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The lines of a file, or of stdin where it is `-`.
pub fn lines(path: &Path) -> Result<Vec<String>> {
    Ok(text(path, MAX_LINES_BYTES)?.lines().map(str::to_owned).collect())
}

/// What is in a file, or on stdin where it is `-`: text of at most so many bytes.
pub fn text(path: &Path, most: u64) -> Result<String> {
    if path == Path::new("-") { utf8(std::io::stdin().lock(), "stdin".as_ref(), most) } else { file(path, most) }
}

/// What is in a file or in anything else that can be read: text of at most so many bytes.
pub fn file(path: &Path, most: u64) -> Result<String> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder").with_help("name a file in it"));
    }
    let file = std::fs::File::open(path)
        .map_err(|e| Error::file(path, format!("cannot be read: {e}")).with_help("check the name of the file"))?;
    utf8(file, path, most)
}

fn utf8(from: impl Read, path: &Path, most: u64) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > most {
        return Err(Error::file(path, format!("has more than {} MiB of text", most >> 20))
            .with_help("split it into several files"));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::file(path, format!("line {line} is not UTF-8 text")).with_help("convert it to UTF-8, as iconv does")
    })?;
    Ok(without_mark(text))
}

/// A text without a byte order mark before it.
pub fn without_mark(text: String) -> String {
    text.strip_prefix(BYTE_ORDER_MARK).map(str::to_owned).unwrap_or(text)
}

/// Refuses a `-` beside another: what is on stdin can be read once.
pub fn stdin_once<'a>(names: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    if names.into_iter().filter(|name| *name == Path::new("-")).count() > 1 {
        return Err(Error::request("- is given twice, and stdin can be read once")
            .with_help("name a file or write the text for all but one"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_without_the_mark_before_them() {
        let read = |bytes: &[u8]| utf8(bytes, "x.txt".as_ref(), 8);
        assert_eq!(read(b"\xef\xbb\xbfa\nb").unwrap(), "a\nb");
        assert_eq!(read(b"").unwrap(), "");
        let told = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert_eq!(told(b"a\n\xff"), "x.txt: line 2 is not UTF-8 text");
        assert_eq!(told(b"123456789"), "x.txt: has more than 0 MiB of text");
    }
}
