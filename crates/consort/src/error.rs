//! Why a command did not do what it was asked: one type, whose kind decides the exit code and whose hint says what to
//! do next. How it is shown is the business of [`crate::ui`].

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use consort_node::{ErrorKind, NodeError};
use serde::{Deserialize, Serialize};

/// What kind of failure it is. The exit codes are a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// It could not be done.
    Failed,
    /// What was asked makes no sense. Nothing was changed.
    Usage,
    /// It was not done in time. It may still happen.
    TimedOut,
    /// Something changed meanwhile. Nothing was changed by us.
    Conflict,
    /// This node may not do that. Nothing was changed.
    NotAllowed,
}

impl Kind {
    /// The exit code of a command that ends so.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::TimedOut => 3,
            Self::Conflict => 4,
            Self::NotAllowed => 5,
        }
    }
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Error {
    /// Something went wrong that has to be told.
    Told {
        /// What kind of failure.
        kind: Kind,
        /// What happened, in plain words.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The command's ordinary output already says what is wrong.
    Shown,
    /// Whoever read our output has gone: no failure, and nobody to tell.
    OutputClosed,
}

impl Error {
    /// A failure.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Wrong usage.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// An error of any kind.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self::Told { kind, message: message.into(), hint: None }
    }

    /// A failed operation on a file or directory. What to do follows from how it failed; a command that knows more says
    /// it instead.
    pub(crate) fn io(what: &str, path: &Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "check the path: something in it is not there",
            io::ErrorKind::NotADirectory => "check the path: something in it is not a directory",
            io::ErrorKind::PermissionDenied => "choose a place that you may read and write",
            io::ErrorKind::ReadOnlyFilesystem => "choose a place that can be written",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "make room, or choose a place that has some"
            }
            _ => "look at the disk and at the system's log, or choose another place",
        };
        Self::failed(format!("cannot {what} {}: {error}", path.display())).hint(hint)
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Told { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// The exit code of a command that ends with this.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Told { kind, .. } => kind.exit_code().into(),
            Self::Shown => Kind::Failed.exit_code().into(),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told { message, .. } => f.write_str(message),
            Self::Shown => f.write_str("failed as shown"),
            Self::OutputClosed => f.write_str("nobody reads the output any more"),
        }
    }
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Failed => Self::Failed,
            ErrorKind::Usage => Self::Usage,
            ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::NotAllowed => Self::NotAllowed,
        }
    }
}

impl From<NodeError> for Error {
    fn from(error: NodeError) -> Self {
        Self::Told { kind: error.kind.into(), message: error.message, hint: error.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_ones_that_were_promised() {
        for (kind, code) in [
            (Kind::Failed, 1),
            (Kind::Usage, 2),
            (Kind::TimedOut, 3),
            (Kind::Conflict, 4),
            (Kind::NotAllowed, 5),
        ] {
            assert_eq!(kind.exit_code(), code);
        }
        assert_eq!(Error::OutputClosed.exit_code(), ExitCode::SUCCESS);
    }
}
