//! Writing a file so that a failure leaves nothing broken behind.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a file through `content`: under a temporary name in the same folder, moved to `path` when all is on the disk. What
/// was at `path` before stays until then, and a failure leaves no new file. A device such as `/dev/stdout` is written
/// directly.
///
/// # Errors
/// A folder that is missing or not writable, a full disk, an error of `content` itself.
pub fn write_atomically(path: &Path, content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let explain = |e: std::io::Error| Error::io(path, e);
    if std::fs::metadata(path).is_ok_and(|existing| !existing.is_file() && !existing.is_dir()) {
        let mut device = BufWriter::new(File::options().write(true).open(path).map_err(explain)?);
        content(&mut device).map_err(explain)?;
        return device.flush().map_err(explain);
    }
    let mut file = temporary_beside(path)?;
    {
        let mut writer = BufWriter::new(file.as_file_mut());
        content(&mut writer).map_err(explain)?;
        writer.flush().map_err(explain)?;
    }
    // A full disk may show only now.
    file.as_file().sync_all().map_err(explain)?;
    file.persist(path).map_err(|e| explain(e.error))?;
    Ok(())
}

/// Finds out whether [`write_atomically`] could write `path`, so that a long work is refused before it begins.
///
/// # Errors
/// As [`write_atomically`].
pub fn check_destination(path: &Path) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|existing| !existing.is_file() && !existing.is_dir()) {
        return Ok(());
    }
    temporary_beside(path).map(drop)
}

/// Finds out whether a folder could be made if needed and these files be written in it, so that a long work is refused before
/// it begins. Nothing is left behind.
///
/// # Errors
/// Where the folder is, or would be, lies a file or nothing may be written; one of the files is a folder.
pub fn check_folder(folder: &Path, files: &[&str]) -> Result<()> {
    if folder.is_dir() {
        return files.iter().try_for_each(|name| check_destination(&folder.join(name)));
    }
    let existing = folder.ancestors().find(|above| above.as_os_str().is_empty() || above.exists());
    let existing = existing.filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !existing.is_dir() {
        return Err(Error::file(existing, "is a file, and a folder is needed")
            .with_help("name another folder; it is made if needed"));
    }
    let probe = tempfile::Builder::new().prefix(".conjure-").suffix(".tmp").tempdir_in(existing);
    // As above, without the temporary name.
    probe.map(drop).map_err(|e| Error::io(folder, std::io::Error::from(e.kind())))
}

fn temporary_beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::file(path, "is a folder").with_help("give the name of a file, in it or elsewhere"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let message = format!("cannot be written: the folder {} does not exist", folder.display());
        return Err(Error::file(path, message).with_help("make the folder first, or choose another place"));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".conjure-").suffix(".tmp");
    #[cfg(unix)]
    {
        // Temporary files are private by default; a finished picture gets what the user's umask allows.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    // The error would name the temporary file, which means nothing to the user: keep its kind only.
    builder.tempfile_in(folder).map_err(|e| Error::io(path, std::io::Error::from(e.kind())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_failure_keeps_what_was_there_and_leaves_nothing_new() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.png");
        let fail = |w: &mut dyn Write| {
            w.write_all(&[1; 100_000])?;
            Err(std::io::Error::from(ErrorKind::StorageFull))
        };
        let error = write_atomically(&path, fail).expect_err("the disk is full");
        assert!(error.to_string().contains("x.png: no storage space"), "{error}");
        assert_eq!(names(folder.path()), Vec::<String>::new());
        write_atomically(&path, |w| w.write_all(b"first")).expect("written");
        write_atomically(&path, fail).expect_err("the disk is full");
        assert_eq!(std::fs::read(&path).expect("read"), b"first");
        assert_eq!(names(folder.path()), ["x.png"]);
    }

    #[test]
    fn bad_places_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = folder.path().join("none/x.png");
        let error = check_destination(&missing).expect_err("refused");
        assert!(error.to_string().contains("does not exist") && error.help().is_some());
        assert!(check_destination(folder.path()).expect_err("refused").to_string().contains("is a folder"));
        check_destination(&folder.path().join("x.png")).expect("fine");
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn folders_that_cannot_be_made_or_written_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inner = |name: &str| folder.path().join(name);
        check_folder(&inner("a/b"), &["x.png"]).expect("it can be made");
        check_folder(folder.path(), &["x.png"]).expect("it is there");
        assert_eq!(names(folder.path()), Vec::<String>::new());
        std::fs::write(inner("file"), "x").expect("written");
        std::fs::create_dir(inner("x.png")).expect("made");
        for place in ["file", "file/a/b"] {
            let error = check_folder(&inner(place), &[]).expect_err("refused");
            assert!(error.to_string().ends_with("file: is a file, and a folder is needed"), "{error}");
            assert!(error.help().is_some() && error.exit_code() == 2);
        }
        let error = check_folder(folder.path(), &["y.png", "x.png"]).expect_err("refused");
        assert!(error.to_string().ends_with("x.png: is a folder"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_device_gives_one_clear_error() {
        let path = Path::new("/dev/full");
        let error = write_atomically(path, |w| w.write_all(b"x")).expect_err("always full");
        assert!(error.to_string().starts_with("/dev/full: No space left on device"), "{error}");
        assert!(path.exists());
    }
}
