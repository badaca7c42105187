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
        Self::failed("the node is shutting down").hint("start it again with `consort up`")
    }
}

impl From<StoreError> for NodeError {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Crowded { .. } => ErrorKind::Conflict,
            _ => ErrorKind::Failed,
        };
        let hint = match error {
            StoreError::Failed(_) => "make room or mend the disk, then start the node again",
            StoreError::Damaged(_) => {
                "stop the node; `consort doctor --deep` says what is damaged, and what to do"
            }
            StoreError::UnknownDataset(_) => "`consort dataset list` shows those there are",
            StoreError::Refused { .. } => "choose another key, or less to say of it",
            StoreError::Crowded { .. } => "`consort conflicts NAME` shows what to choose from",
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}

impl From<consort_store::OpenError> for NodeError {
    fn from(error: consort_store::OpenError) -> Self {
        Self::failed(error.to_string()).hint(error.hint())
    }
}

impl From<IdentityError> for NodeError {
    fn from(error: IdentityError) -> Self {
        let kind = match error {
            IdentityError::InvalidName { .. } => ErrorKind::Usage,
            IdentityError::AlreadyInitialized { .. } => ErrorKind::Conflict,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string()).hint(error.hint())
    }
}

impl From<JoinError> for NodeError {
    fn from(error: JoinError) -> Self {
        let kind = match error {
            JoinError::Identity(error) => return error.into(),
            JoinError::Refused(
                JoinRefusal::Expired
                | JoinRefusal::Used
                | JoinRefusal::Unknown
                | JoinRefusal::Revoked,
            ) => ErrorKind::NotAllowed,
            JoinError::Refused(JoinRefusal::NameTaken) => ErrorKind::Conflict,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string()).hint(error.hint())
    }
}

impl From<StartError> for NodeError {
    fn from(error: StartError) -> Self {
        Self::failed(error.to_string()).hint(error.hint())
    }
}

impl From<OpenRootError> for NodeError {
    fn from(error: OpenRootError) -> Self {
        let kind = match error {
            OpenRootError::InUse(_) => ErrorKind::Conflict,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string()).hint(error.hint())
    }
}

impl From<ContentError> for NodeError {
    fn from(error: ContentError) -> Self {
        let message = error.to_string();
        match error {
            ContentError::Store(error) => error.into(),
            ContentError::Fetch(_) => {
                Self::failed(message).hint("`consort status` shows which nodes are connected")
            }
            ContentError::Manifest(_) => {
                Self::failed(message).hint("write the entry anew, or report this as a defect")
            }
        }
    }
}

impl From<KeyError> for NodeError {
    fn from(error: KeyError) -> Self {
        Self::usage(error.to_string())
            .hint("a key is a relative path such as 2026/cat.jpg, of at most 1,024 bytes of UTF-8")
    }
}
