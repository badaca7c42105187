//! What a caller of [`Node`](crate::Node) gets when something cannot be done: which kind of thing went wrong, in
//! words, and what to do. The parts of the engine have small errors of their own; here they become this one.

use consort_core::model::KeyError;
use consort_core::store::StoreError;

use crate::content::ContentError;
use crate::folder::OpenRootError;
use crate::net::{IdentityError, JoinError, JoinRefusal, StartError};

/// What went wrong, as far as a program needs to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// It failed. Nothing was changed, unless the message says so.
    Failed,
    /// The caller asked for something that makes no sense.
    Usage,
    /// It took longer than it may.
    TimedOut,
    /// Something else is there, or was done meanwhile.
    Conflict,
    /// This node, or its user, may not do it.
    NotAllowed,
}

/// Something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    /// What kind of thing went wrong.
    pub kind: ErrorKind,
    /// What happened, in words.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl NodeError {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    pub(crate) fn not_allowed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotAllowed, message)
    }

    /// The node is ending, and does nothing more.
    pub(crate) fn ending() -> Self {
        Self::failed("the node is shutting down")
    }
}

impl From<StoreError> for NodeError {
    fn from(error: StoreError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<consort_store::OpenError> for NodeError {
    fn from(error: consort_store::OpenError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<IdentityError> for NodeError {
    fn from(error: IdentityError) -> Self {
        let kind = match error {
            IdentityError::InvalidName { .. } => ErrorKind::Usage,
            IdentityError::AlreadyInitialized { .. } => ErrorKind::Conflict,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<JoinError> for NodeError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Identity(error) => error.into(),
            JoinError::Refused(
                JoinRefusal::Expired
                | JoinRefusal::Used
                | JoinRefusal::Unknown
                | JoinRefusal::Revoked,
            ) => Self::not_allowed(error.to_string()),
            JoinError::Refused(JoinRefusal::NameTaken) => {
                Self::new(ErrorKind::Conflict, error.to_string())
            }
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<StartError> for NodeError {
    fn from(error: StartError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<OpenRootError> for NodeError {
    fn from(error: OpenRootError) -> Self {
        let kind = match error {
            OpenRootError::InUse(_) => ErrorKind::Conflict,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ContentError> for NodeError {
    fn from(error: ContentError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<KeyError> for NodeError {
    fn from(error: KeyError) -> Self {
        Self::usage(error.to_string())
    }
}
