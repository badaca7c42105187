//! Keys: the names of entries. A key that passed [`Key::new`] is safe to use as a relative path.

use alloc::boxed::Box;
use alloc::string::String;
use core::borrow::Borrow;
use core::fmt;
use core::ops::Deref;

use thiserror::Error;

use crate::limits::MAX_KEY_BYTES;

/// The name of an entry: UTF-8, 1 to 1,024 bytes, components separated by `/`, none of them empty, `.` or `..`,
/// and no control character anywhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

/// Why a text cannot be a key. The fault of whoever chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// No bytes at all.
    #[error("a key cannot be empty")]
    Empty,
    /// More bytes than a key may have.
    #[error("a key has at most {MAX_KEY_BYTES} bytes; this one has {0}")]
    TooLong(usize),
    /// A leading, trailing or double slash.
    #[error("a key cannot begin or end with a slash or have two in a row")]
    EmptyComponent,
    /// A component that is `.` or `..`.
    #[error("no part of a key can be `.` or `..`")]
    DotComponent,
    /// A control character, NUL among them.
    #[error("a key cannot contain control characters")]
    ControlCharacter,
}

impl Key {
    /// Checks `text` and makes it a key.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, KeyError> {
        let text = text.into();
        Self::check(&text)?;
        Ok(Self(text))
    }

    /// Whether `text` could be a key.
    pub fn check(text: &str) -> Result<(), KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if MAX_KEY_BYTES < text.len() {
            return Err(KeyError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(KeyError::ControlCharacter);
        }
        for component in text.split('/') {
            match component {
                "" => return Err(KeyError::EmptyComponent),
                "." | ".." => return Err(KeyError::DotComponent),
                _ => {}
            }
        }
        Ok(())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of the directory that holds this one, if it is not at the top.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The keys of the directories above this one, the nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        core::iter::successors(self.parent(), |key| key.rsplit_once('/').map(|(parent, _)| parent))
    }
}

impl Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn what_could_leave_the_directory_is_not_a_key() {
        for (text, error) in [
            ("", KeyError::Empty),
            ("/etc/passwd", KeyError::EmptyComponent),
            ("a//b", KeyError::EmptyComponent),
            ("a/", KeyError::EmptyComponent),
            ("..", KeyError::DotComponent),
            ("a/../b", KeyError::DotComponent),
            ("a/./b", KeyError::DotComponent),
            ("a\0b", KeyError::ControlCharacter),
            ("a\nb", KeyError::ControlCharacter),
            ("a\u{85}b", KeyError::ControlCharacter),
        ] {
            assert_eq!(Key::new(text), Err(error), "{text:?}");
        }
        assert_eq!(Key::new("x".repeat(1025)), Err(KeyError::TooLong(1025)));
        assert!(Key::new("x".repeat(1024)).is_ok());
        assert!(Key::new("päth/..x/.hidden/日本").is_ok());
    }

    #[test]
    fn ancestors_go_from_the_nearest_to_the_top() {
        let key = Key::new("a/b/c").expect("a valid key");
        assert_eq!(key.ancestors().collect::<Vec<_>>(), ["a/b", "a"]);
        assert_eq!((key.parent(), key.name()), (Some("a/b"), "c"));
    }
}
