//! What two nodes say first on a control connection: which version they speak, where they can be
//! reached, and whom else they know. The dialer greets first; the other answers with its own
//! greeting or a refusal.
//!
//! The version comes first and never moves, so that two versions that understand nothing else of
//! each other can say so.

use std::net::SocketAddr;

use super::identity::NodeId;
use super::wire::{Malformed, Reader, put_address, put_option};

/// The version of everything inside a control connection.
pub(super) const VERSION: u16 = 3;

/// The most addresses of others in a greeting; it keeps a greeting below 10 KiB.
pub(super) const MAX_KNOWN: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    /// What the node can do beyond the version, one bit each.
    pub(super) features: u64,
    pub(super) listen: Option<SocketAddr>,
    pub(super) known: Vec<(NodeId, SocketAddr)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GreetingError {
    Version(u16),
    Malformed,
}

impl From<Malformed> for GreetingError {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

impl Greeting {
    /// At most [`MAX_KNOWN`] of the known addresses are told.
    pub(super) fn encode(&self) -> Vec<u8> {
        let known = &self.known[..self.known.len().min(MAX_KNOWN)];
        let mut out = VERSION.to_le_bytes().to_vec();
        out.extend_from_slice(&self.features.to_le_bytes());
        put_option(&mut out, self.listen, put_address);
        let count = u16::try_from(known.len()).expect("the maximum fits");
        out.extend_from_slice(&count.to_le_bytes());
        for (node, address) in known {
            out.extend_from_slice(&node.0);
            put_address(&mut out, *address);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, GreetingError> {
        let mut reader = Reader::new(bytes);
        match reader.u16()? {
            VERSION => {}
            other => return Err(GreetingError::Version(other)),
        }
        let features = reader.u64()?;
        let listen = reader.option(Reader::address)?;
        let count = usize::from(reader.u16()?);
        if count > MAX_KNOWN {
            return Err(GreetingError::Malformed);
        }
        let known = (0..count)
            .map(|_| Ok((NodeId(reader.array()?), reader.address()?)))
            .collect::<Result<_, Malformed>>()?;
        reader.end()?;
        Ok(Self { features, listen, known })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn another_version_is_recognized_whatever_follows_it() {
        assert_eq!(Greeting::decode(&[1, 0, 9, 9]), Err(GreetingError::Version(1)));
    }

    proptest! {
        #[test]
        fn greetings_survive_the_wire(
            features: u64,
            listen in any::<Option<(std::net::IpAddr, u16)>>(),
            known in proptest::collection::vec(any::<([u8; 16], (std::net::IpAddr, u16))>(), 0..20),
        ) {
            let listen = listen.map(SocketAddr::from);
            let known = known.into_iter().map(|(id, at)| (NodeId(id), at.into())).collect();
            let greeting = Greeting { features, listen, known };
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Greeting::decode(&bytes);
            let _ = Greeting::decode(&[&VERSION.to_le_bytes()[..], &bytes].concat());
        }
    }
}
