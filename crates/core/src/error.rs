//! One error type: what is wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

/// Result with Conjure's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. Messages are lower case, without a full stop, and name the value; [`Error::help`] names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, a config entry or an argument that cannot be used. Refused before work begins.
    #[error("{message}")]
    Request {
        /// What is wrong, with the value that was given.
        message: String,
        /// What to do instead.
        help: Option<String>,
    },
    /// A file whose content cannot be used. Refused before memory is taken for it.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
        /// What to do instead.
        help: Option<String>,
    },
    /// The operating system refused to read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The work itself failed, for example because a value became NaN.
    #[error("{message}")]
    Failure {
        /// What failed.
        message: String,
        /// What to try.
        help: Option<String>,
    },
    /// The user stopped the work.
    #[error("stopped on request")]
    Cancelled,
    /// A tensor operation failed: shapes, types or devices do not fit.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// A request that cannot be met.
    pub fn request(message: impl Into<String>) -> Self {
        Self::Request { message: message.into(), help: None }
    }

    /// A file that cannot be used.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), message: message.into(), help: None }
    }

    /// An operating-system error about a file.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Work that failed after it began.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::Failure { message: message.into(), help: None }
    }

    /// The same error with a remedy.
    pub fn with_help(mut self, remedy: impl Into<String>) -> Self {
        match &mut self {
            Self::Request { help, .. } | Self::File { help, .. } | Self::Failure { help, .. } => {
                *help = Some(remedy.into());
            }
            _ => {}
        }
        self
    }

    /// What the user can do, if we know it.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Request { help, .. } | Self::File { help, .. } | Self::Failure { help, .. } => help.as_deref(),
            _ => None,
        }
    }

    /// The process exit code: 2 for what is refused before work begins, 130 after an interrupt, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Request { .. } | Self::File { .. } => 2,
            Self::Cancelled => 130,
            Self::Io { .. } | Self::Failure { .. } | Self::Tensor(_) => 1,
        }
    }
}
