//! Safetensors files that tell when a bit of them has flipped: a file that is cut short shows it by its length, one that a
//! disk spoilt does not.

use super::Safetensors;
use super::save::{Contents, replace};
use crate::{Error, Result, Tensor};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::path::Path;

/// Key of the seal in a file's metadata: the SHA-256 of the whole file, header included, in hexadecimal; while that is
/// computed, zeros stand in the seal's place.
const SEAL: &str = "conjure.sha256";
const BLANK: [u8; 64] = [b'0'; 64];

/// As [`super::save`], with a seal over every byte of the file, which [`Safetensors::check_seal`] checks. Other programs read
/// the file as any other.
///
/// # Errors
/// As for [`super::save`].
pub fn save_sealed(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut metadata = metadata.clone();
    metadata.insert(SEAL.to_owned(), String::from_utf8_lossy(&BLANK).into_owned());
    let contents = Contents::new(tensors, &metadata)?;
    let place =
        place(contents.header().as_bytes()).ok_or_else(|| Error::failure("a file was to be sealed without a seal"))?;
    replace(path, |file| {
        let mut hashing = Hashing { inner: &mut *file, hasher: Sha256::new() };
        contents.write(path, &mut hashing)?;
        let seal = hex(&hashing.hasher.finalize());
        // After the header's length, a number of 8 bytes.
        file.seek(SeekFrom::Start(8 + place as u64))
            .and_then(|_| file.write_all(seal.as_bytes()))
            .map_err(|e| Error::io(path, e))
    })
}

impl Safetensors {
    /// Whether the file has a seal, which then holds. Reads the whole file.
    ///
    /// # Errors
    /// The seal does not hold: the file is not as it was written.
    pub fn check_seal(&self) -> Result<bool> {
        let Some(seal) = self.metadata().get(SEAL) else { return Ok(false) };
        let bytes: &[u8] = &self.bytes;
        let header = bytes
            .split_first_chunk::<8>()
            .and_then(|(length, rest)| rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?));
        let range = header.and_then(place).map(|place| 8 + place..8 + place + BLANK.len());
        let holds = range.is_some_and(|range| {
            let Some(after) = bytes.get(range.end..) else { return false };
            let mut hasher = Sha256::new();
            hasher.update(&bytes[..range.start]);
            hasher.update(BLANK);
            hasher.update(after);
            hex(&hasher.finalize()) == *seal
        });
        if holds {
            return Ok(true);
        }
        Err(Error::file(&self.path, "is not as it was written: its bytes do not fit the digest in it")
            .with_help("the disk or a copy spoilt it; put back a sound copy"))
    }
}

/// Where the seal begins in a header. The quotes around its key occur nowhere else: inside of texts they are escaped.
fn place(header: &[u8]) -> Option<usize> {
    let key = format!("\"{SEAL}\":\"");
    let found = header.windows(key.len()).position(|window| window == key.as_bytes())?;
    Some(found + key.len())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what is written.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::weights::{TensorSource as _, save};

    #[test]
    fn any_flipped_bit_breaks_the_seal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = BTreeMap::from([("a".to_owned(), Tensor::arange(0f32, 9.0, &Device::Cpu).unwrap())]);
        // A text that spells the key is no seal.
        let metadata = BTreeMap::from([("text".to_owned(), "{\"conjure.sha256\":\"00\"}".to_owned())]);
        save_sealed(&path, &tensors, &metadata).unwrap();
        let file = Safetensors::open(&path).unwrap();
        assert!(file.check_seal().unwrap());
        assert_eq!(file.metadata()["text"], metadata["text"]);
        assert_eq!(file.infos()["a"].shape.dims(), [9]);
        let bytes = std::fs::read(&path).unwrap();
        let key = place(&bytes).unwrap() - 3 - SEAL.len();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match Safetensors::from_bytes(flipped, "x").map(|file| file.check_seal()) {
                Err(_) | Ok(Err(_)) => {}
                // The key became another: who expects a seal finds none.
                Ok(Ok(sealed)) => assert!(!sealed && (key..key + SEAL.len()).contains(&(bit / 8)), "bit {bit}"),
            }
        }
        save(&path, &tensors, &metadata).unwrap();
        assert!(!Safetensors::open(&path).unwrap().check_seal().unwrap());
    }
}
