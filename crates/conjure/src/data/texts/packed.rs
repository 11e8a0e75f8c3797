//! Tokens of many documents in a row, of which windows are read.

use crate::{Error, Result};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::{Mutex, PoisonError};
use tempfile::SpooledTempFile;

/// Up to so many bytes are kept in memory; what is longer lies in a temporary file.
const IN_MEMORY: usize = 64 << 20;
/// Bytes of a token's id.
const BYTES: u64 = 4;

/// Tokens in a row.
pub struct Packed {
    file: Mutex<SpooledTempFile>,
    len: usize,
}

impl Default for Packed {
    fn default() -> Self {
        Self { file: Mutex::new(SpooledTempFile::new(IN_MEMORY)), len: 0 }
    }
}

impl Packed {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// The system's folder for temporary files is full.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Windows may have been read in between.
        let end = self.len as u64 * BYTES;
        file.seek(SeekFrom::Start(end)).and_then(|_| file.write_all(&bytes)).map_err(failed)?;
        self.len += ids.len();
        Ok(())
    }

    /// The tokens from number `from` on, at most `count`.
    ///
    /// # Errors
    /// The temporary file cannot be read.
    pub fn window(&self, from: usize, count: usize) -> Result<Vec<u32>> {
        let count = count.min(self.len.saturating_sub(from));
        let mut bytes = vec![0; count * BYTES as usize];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(from as u64 * BYTES)).and_then(|_| file.read_exact(&mut bytes)).map_err(failed)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::failure(format!("the tokens cannot be kept in a temporary file: {error}"))
        .with_help("the variable TMPDIR names a folder with more space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_what_was_pushed() {
        let mut packed = Packed::default();
        assert!(packed.is_empty() && packed.window(0, 3).unwrap().is_empty());
        packed.push(&[5, 70_000, 7]).unwrap();
        assert_eq!(packed.window(1, 1).unwrap(), [70_000]);
        packed.push(&[8, u32::MAX]).unwrap();
        assert_eq!(packed.len(), 5);
        assert_eq!(packed.window(1, 3).unwrap(), [70_000, 7, 8]);
        assert_eq!(packed.window(3, 9).unwrap(), [8, u32::MAX]);
        assert!(packed.window(6, 1).unwrap().is_empty());
    }
}
