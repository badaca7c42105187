//! Why there is no result.

use std::fmt;
use std::io;

/// A run that could not be finished, in words.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// A failed operation on a file or a process.
    pub(crate) fn io(what: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        Self(format!("cannot {what}: {}", error.into()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
