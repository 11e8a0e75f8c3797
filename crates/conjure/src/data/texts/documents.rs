//! Documents in folders and files, read one at a time.

use super::JsonLines;
use super::json_lines;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// Endings of the files that are read in a folder: prose, lines of JSON, code.
const ENDINGS: [&str; 33] = [
    "txt", "md", "rst", "tex", "jsonl", "html", "css", "xml", "json", "toml", "yaml", "yml", "rs", "py", "js", "mjs",
    "ts", "c", "h", "cc", "cpp", "hpp", "cs", "go", "java", "kt", "swift", "rb", "php", "lua", "sh", "sql", "r",
];
/// Folders nested deeper than this are not looked into.
const MAX_DEPTH: usize = 16;
/// A last part of a long text that is shorter than this stays with the part before it.
const LEAST_PART: usize = 256;
/// The least that a text may be cut into.
pub const LEAST_DOCUMENT: usize = 1024;

/// A text, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its text.
    pub text: String,
    /// File, and line or part in it, for messages.
    pub place: String,
}

/// The documents of some files.
///
/// A text file is a document; one longer than a limit is several, cut at ends of lines, so that no more of it is ever in
/// memory. In a .jsonl file each line is a document, its text under `"text"`.
#[derive(Clone, Debug)]
pub struct Documents {
    files: Vec<PathBuf>,
    left_out: usize,
    longest: usize,
}

impl Documents {
    /// The documents of these folders and files: folders with all that is in them, sorted by name; hidden files and such with
    /// an ending that stands for no text are left out. A file that is named is read whatever its ending. `longest` is how
    /// many bytes of a text file make a document, at least [`LEAST_DOCUMENT`].
    ///
    /// # Errors
    /// Nothing named, not found, a folder without texts, a limit out of range.
    pub fn open(paths: &[PathBuf], longest: usize) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::request("no texts are named").with_help("set texts = [\"a folder or files\"]"));
        }
        if !(LEAST_DOCUMENT..=1 << 30).contains(&longest) {
            return Err(Error::request(format!(
                "a document of at most {longest} bytes is not possible; {LEAST_DOCUMENT} to {} are",
                1 << 30
            )));
        }
        let (mut files, mut left_out) = (BTreeSet::new(), 0);
        let mut in_order = Vec::new();
        for path in paths {
            if path.is_dir() {
                let mut found = Vec::new();
                list(path, 0, &mut found, &mut left_out)?;
                if found.is_empty() {
                    return Err(Error::file(path, "the folder holds no texts").with_help(format!(
                        "it needs files such as .txt, .md or .jsonl; {left_out} others in it were left out"
                    )));
                }
                found.sort();
                in_order.extend(found);
            } else if path.is_file() {
                in_order.push(path.clone());
            } else {
                return Err(Error::file(path, "not found").with_help("name a folder of texts or a text file"));
            }
        }
        in_order.retain(|path| files.insert(path.clone()));
        Ok(Self { files: in_order, left_out, longest })
    }

    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Files in the folders that were left out for their endings.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The documents, one after the other; none after an error.
    pub fn iter(&self) -> impl Iterator<Item = Result<Document>> + Send + '_ {
        let longest = self.longest;
        let mut failed = false;
        let all = self.files.iter().flat_map(move |path| match Reader::open(path, longest) {
            Ok(reader) => reader,
            Err(error) => Reader::Failed(Some(error)),
        });
        all.take_while(move |document| !std::mem::replace(&mut failed, document.is_err()))
    }
}

fn list(folder: &Path, depth: usize, found: &mut Vec<PathBuf>, left_out: &mut usize) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() {
            if depth < MAX_DEPTH {
                list(&path, depth + 1, found, left_out)?;
            }
        } else if path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
        {
            found.push(path);
        } else {
            *left_out += 1;
        }
    }
    Ok(())
}

/// The documents of a file.
enum Reader {
    Lines(PathBuf, JsonLines),
    Parts(Parts),
    Failed(Option<Error>),
}

impl Reader {
    fn open(path: &Path, longest: usize) -> Result<Self> {
        if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl")) {
            return Ok(Self::Lines(path.to_owned(), JsonLines::open(path)?));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let parts = Parts { path: path.to_owned(), reader: BufReader::new(file), longest, at: 0, next: None };
        Ok(Self::Parts(parts))
    }
}

impl Iterator for Reader {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Lines(path, lines) => Some(lines.next()?.and_then(|(line, object)| {
                let text = json_lines::text(path, line, &object, "text")?.to_owned();
                Ok(Document { text, place: format!("{}: line {line}", path.display()) })
            })),
            Self::Parts(parts) => parts.read().transpose(),
            Self::Failed(error) => error.take().map(Err),
        }
    }
}

/// A text file in parts of at most so many bytes and the rest of a line.
struct Parts {
    path: PathBuf,
    reader: BufReader<File>,
    longest: usize,
    /// Byte at which the next part begins.
    at: usize,
    /// The part that was read ahead, to see whether it is worth standing by itself.
    next: Option<(usize, String)>,
}

impl Parts {
    fn read(&mut self) -> Result<Option<Document>> {
        let first = self.at == 0;
        let current = match self.next.take() {
            None if first => self.part()?,
            next => next,
        };
        let Some((from, mut text)) = current else { return Ok(None) };
        match self.part()? {
            Some((_, rest)) if rest.len() < LEAST_PART => text.push_str(&rest),
            next => self.next = next,
        }
        let whole = from == 0 && self.next.is_none();
        let place = self.path.display();
        let place = if whole { place.to_string() } else { format!("{place}: from byte {from} on") };
        Ok(Some(Document { text, place }))
    }

    /// The next part and where it begins. An empty file is an empty part.
    fn part(&mut self) -> Result<Option<(usize, String)>> {
        let failed = |e| Error::io(&self.path, e);
        let mut bytes = Vec::new();
        self.reader.by_ref().take(self.longest as u64).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() == self.longest {
            // To the end of the line, if that is not far; else to the end of the character.
            let more = self.longest as u64;
            self.reader.by_ref().take(more).read_until(b'\n', &mut bytes).map_err(failed)?;
            let is_inside = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
            let mut rest = 0;
            while rest < 3 && self.reader.fill_buf().map_err(failed)?.first().is_some_and(is_inside) {
                self.reader.by_ref().take(1).read_to_end(&mut bytes).map_err(failed)?;
                rest += 1;
            }
        }
        if bytes.is_empty() && self.at > 0 {
            return Ok(None);
        }
        let from = self.at;
        if bytes.is_empty() {
            // An empty file: told of once.
            self.at = 1;
        }
        self.at += bytes.len();
        let text = String::from_utf8(bytes).map_err(|e| {
            let byte = from + e.utf8_error().valid_up_to();
            Error::file(&self.path, format!("byte {byte} is not UTF-8"))
                .with_help("convert it, for example with iconv, or leave it out if it is no text")
        })?;
        Ok(Some((from, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn read(path: &Path) -> Result<Vec<Document>> {
        Documents::open(&[path.to_owned()], LEAST_DOCUMENT)?.iter().collect()
    }

    fn told(folder: &tempfile::TempDir, error: &Error) -> String {
        error.to_string().replace(&folder.path().display().to_string(), "F")
    }

    #[test]
    fn files_come_sorted_and_lines_of_json_one_by_one() {
        let files: [(&str, &[u8]); 5] = [
            ("b.txt", b"two"),
            ("a/x.RS", b"one"),
            ("c.jsonl", b"{\"text\": \"three\"}\n{\"text\": \"four\", \"n\": 1}\n"),
            ("picture.png", b"\xff"),
            (".hidden.txt", b"\xff"),
        ];
        let folder = folder(&files);
        let all = read(folder.path()).unwrap();
        assert_eq!(
            all.iter().map(|document| document.text.as_str()).collect::<Vec<_>>(),
            ["one", "two", "three", "four"]
        );
        assert!(all[3].place.ends_with("c.jsonl: line 2"), "{}", all[3].place);
        assert_eq!(Documents::open(&[folder.path().to_owned()], 2000).unwrap().left_out(), 1);
    }

    #[test]
    fn a_long_text_is_cut_at_ends_of_lines_and_nothing_is_lost() {
        let text: String = (0..400).map(|i| format!("line {i} äöü\n")).collect();
        let long = "ä".repeat(3000);
        let folder = folder(&[("a.txt", text.as_bytes()), ("b.txt", long.as_bytes())]);
        let all = read(folder.path()).unwrap();
        let of = |name: &str| all.iter().filter(|d| d.place.contains(name)).map(|d| d.text.clone()).collect::<Vec<_>>();
        assert_eq!(of("a.txt").concat(), text);
        assert!(of("a.txt").len() > 4 && of("a.txt").iter().all(|part| part.ends_with('\n') && part.len() < 1400));
        assert_eq!(of("b.txt").concat(), long);
        assert!(of("b.txt").len() > 1);
        // A text that is a little too long is not cut for a few bytes.
        let folder = self::folder(&[("c.txt", "abc\n".repeat(260).as_bytes())]);
        assert_eq!(read(folder.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let empty = folder(&[("x.png", b"")]);
        let error = read(empty.path()).unwrap_err();
        assert_eq!(told(&empty, &error), "F: the folder holds no texts");
        assert!(error.help().unwrap().contains("1 others"));
        let broken = folder(&[("a.txt", b"ok"), ("b.txt", b"abc\xffd")]);
        let error = read(broken.path()).unwrap_err();
        assert_eq!(told(&broken, &error), "F/b.txt: byte 3 is not UTF-8");
        let mut long = b"abc\n".repeat(600);
        long.push(0xc3);
        let broken = folder(&[("a.txt", &long)]);
        assert_eq!(told(&broken, &read(broken.path()).unwrap_err()), "F/a.txt: byte 2400 is not UTF-8");
        let keyless = folder(&[("a.jsonl", b"{\"text\": \"a\"}\n{\"txt\": \"b\"}\n{\"text\": \"c\"}")]);
        let documents = Documents::open(&[keyless.path().to_owned()], 2000).unwrap();
        let all: Vec<Result<Document>> = documents.iter().collect();
        assert_eq!(all.len(), 2, "nothing comes after an error");
        assert_eq!(told(&keyless, all[1].as_ref().unwrap_err()), "F/a.jsonl: line 2: lacks \"text\"");
        let missing = keyless.path().join("none.txt");
        assert_eq!(told(&keyless, &read(&missing).unwrap_err()), "F/none.txt: not found");
        assert!(Documents::open(&[], 2000).unwrap_err().to_string().contains("no texts are named"));
        assert!(Documents::open(&[keyless.path().to_owned()], 3).unwrap_err().to_string().contains("3 bytes"));
    }
}
