//! Which weights made a picture: a digest over a model's files.
//!
//! The digest is the SHA-256 of every byte, whatever it costs to read them: a sample of the bytes would call two
//! fine-tunings of one model the same.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// SHA-256 of a model, in hexadecimal.
///
/// For a file it is the file's own SHA-256, as checkpoint lists give it. For a folder it is the SHA-256 over the files that
/// make up the model (names that end in `.json`, `.txt`, `.safetensors`, `.gguf`, `.bin`, `.pt`, `.ckpt`), in the order of their
/// paths: for each its path with `/` between the parts, a zero byte, its length in 8 bytes little-endian, its content.
///
/// # Errors
/// A path that is not there, a folder without such files, a file that cannot be read.
pub fn model_digest(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    if path.is_dir() {
        let mut files = Vec::new();
        list(path, &mut Vec::new(), &mut files)?;
        if files.is_empty() {
            return Err(Error::file(path, "the folder holds no model files"));
        }
        files.sort();
        for (name, file) in &files {
            hasher.update(name.as_bytes());
            hasher.update([0]);
            let length = file.metadata().map_err(|e| Error::io(file, e))?.len();
            hasher.update(length.to_le_bytes());
            hash_file(file, &mut hasher)?;
        }
    } else {
        hash_file(path, &mut hasher)?;
    }
    Ok(hex(&hasher.finalize()))
}

/// The first ten digits, as web interfaces show model hashes.
pub fn short(digest: &str) -> &str {
    digest.get(..10).unwrap_or(digest)
}

/// One digest of several.
pub fn combined(digests: &[&str]) -> String {
    hex(&Sha256::digest(digests.join(" ")))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Folders nested deeper than this belong to no model.
const MAX_DEPTH: usize = 4;
const ENDINGS: [&str; 7] = [".json", ".txt", ".safetensors", ".gguf", ".bin", ".pt", ".ckpt"];

/// Collects `(path relative to the model, file)`; hidden files, such as a download tool's, are left out.
fn list(folder: &Path, parts: &mut Vec<String>, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        parts.push(name);
        if path.is_dir() {
            if parts.len() < MAX_DEPTH {
                list(&path, parts, files)?;
            }
        } else if ENDINGS.iter().any(|ending| parts.last().is_some_and(|name| name.ends_with(ending))) {
            files.push((parts.join("/"), path));
        }
        parts.pop();
    }
    Ok(())
}

fn hash_file(path: &Path, hasher: &mut Sha256) -> Result<()> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_own_sha256() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, "abc").map_err(|e| Error::io(&path, e))?;
        // FIPS 180-2, appendix B.1.
        assert_eq!(model_digest(&path)?, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(short(&model_digest(&path)?), "ba7816bf8f");
        Ok(())
    }

    #[test]
    fn a_folder_changes_with_its_files_only() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        assert!(model_digest(folder.path()).is_err(), "nothing to digest");
        write("unet/config.json", "{}");
        write("unet/model.safetensors", "weights");
        let first = model_digest(folder.path())?;
        write("README.md", "words");
        write(".cache/x.json", "{}");
        assert_eq!(model_digest(folder.path())?, first);
        write("unet/model.safetensors", "weightz");
        let second = model_digest(folder.path())?;
        assert_ne!(second, first);
        // Where one file ends and the next begins matters.
        write("unet/config.json", "{}w");
        write("unet/model.safetensors", "eightz");
        assert_ne!(model_digest(folder.path())?, second);
        Ok(())
    }
}
