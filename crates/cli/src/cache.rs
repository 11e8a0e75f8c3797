//! Where downloads are kept.

use conjure::{Error, Result};
use std::env::var_os;
use std::path::PathBuf;

/// The cache folder: `$XDG_CACHE_HOME/conjure`, `%LOCALAPPDATA%\\conjure` or `~/.cache/conjure`. It may not exist yet.
///
/// # Errors
/// None of these is known.
pub fn folder() -> Result<PathBuf> {
    let named = |name: &str| var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("XDG_CACHE_HOME")
        .or_else(|| named("LOCALAPPDATA"))
        .or_else(|| named("HOME").map(|home| home.join(".cache")))
        .map(|folder| folder.join("conjure"))
        .ok_or_else(|| Error::request("there is no place for downloads").with_help("set HOME or XDG_CACHE_HOME"))
}
