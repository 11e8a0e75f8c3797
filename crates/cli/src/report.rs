//! How results and errors reach the user: results on stdout, everything else on stderr.

use conjure::{Error, Result};
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;

/// Prints an error with its remedy, and gives the exit code that belongs to it.
pub fn failure(error: &Error) -> ExitCode {
    note(&format!("error: {error}"));
    if let Some(help) = error.help().or_else(|| system_help(error)) {
        note(&format!("help: {help}"));
    }
    ExitCode::from(error.exit_code())
}

/// What to do about the system's commonest refusals.
fn system_help(error: &Error) -> Option<&'static str> {
    let Error::Io { source, .. } = error else { return None };
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Some(
            "no broken file was left behind; free some space or choose another place, and run the same command again",
        ),
        ErrorKind::PermissionDenied => Some("check who may read or write it"),
        ErrorKind::NotFound => Some("check the name"),
        _ => None,
    }
}

/// A number with what is counted: `1 token`, `2 tokens`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Prints a line for people.
pub fn note(line: &str) {
    // When stderr is closed there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a result.
///
/// # Errors
/// Stdout cannot be written to, for example because it is a full disk.
pub fn result(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        // The reader has seen enough, as in `conjure models list | head -1`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Error::io("stdout", error)),
    }
}

/// Prints a part of a result at once, without a line end. In a terminal, characters that would steer it are left out. Whether
/// somebody still reads.
///
/// # Errors
/// Stdout cannot be written to, for example because it is a full disk.
pub fn piece(text: &str) -> Result<bool> {
    let stdout = std::io::stdout();
    let text = if stdout.is_terminal() { printable(text) } else { text.to_owned() };
    let mut out = stdout.lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("stdout", error)),
    }
}

/// A text without characters that steer a terminal; what a model writes is not to be trusted.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
