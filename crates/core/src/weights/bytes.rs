//! The bytes of a weight file, mapped from disk or held in memory.

use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// Bytes that are read where they lie.
pub(super) enum Bytes {
    Mapped(Mmap),
    Memory(Vec<u8>),
}

impl Bytes {
    /// Maps a file: its pages are read when they are touched, and the system may drop them again.
    ///
    /// # Errors
    /// The file cannot be opened, is a folder, or is empty.
    pub fn map(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if metadata.is_dir() {
            return Err(Error::file(path, "is a folder, not a file"));
        }
        if metadata.len() == 0 {
            return Err(Error::file(path, "the file is empty").with_help("download it again"));
        }
        // SAFETY: the map is read-only and private to this process. Another process that shortens the file while it is
        // mapped can still make a read fail; that risk is the price of not holding every file twice in memory.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}
