//! Identities: sixteen bytes each, told apart by their types.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// Why a text is not an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an identity is 32 hexadecimal digits")]
pub struct ParseIdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The first eight hexadecimal digits: enough for people to tell identities apart.
            pub fn short(&self) -> impl fmt::Display {
                Hex([self.0[0], self.0[1], self.0[2], self.0[3]])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Hex(self.0).fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

id! {
    /// A node: derived from its public key, so it lasts as long as the key does.
    NodeId
}
id! {
    /// Who writes: a node's store. A store that was restored from a backup gets a new one, since its old one may
    /// already have given out the dots that it would give out again.
    AuthorId
}
id! {
    /// A dataset: drawn at random when it is created. A dataset that is dropped and made again under its old name
    /// has another identity.
    DatasetId
}

struct Hex<const N: usize>([u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads lower- or upper-case hexadecimal digits into exactly `N` bytes.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return Err(ParseIdError);
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(ParseIdError),
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn an_identity_is_read_back_from_its_text() {
        let id = NodeId([0xa7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short().to_string(), "a7a7a7a7");
        assert_eq!("a7".parse::<NodeId>(), Err(ParseIdError));
        assert_eq!("zz".repeat(16).parse::<NodeId>(), Err(ParseIdError));
    }
}
