//! The bytes of datagrams and words. `docs/protocol.md` states them; foca adds its own counts, which are big-endian.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Message, State};
use thiserror::Error;

use super::Word;
use crate::encoding::DecodeError;
use crate::model::id::NodeId;

/// The longest datagram. With what encryption and UDP add it fits into 1,280 bytes, which every IPv6 network carries whole.
pub const MAX_DATAGRAM_BYTES: usize = 1152;

/// The part of it that foca may fill; news have the rest, and what foca leaves.
pub(super) const MAX_SWIM_BYTES: usize = 800;

/// A process of a node. Foca never takes back one that was declared gone, so each process, and each return from being
/// declared gone, is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) node: NodeId,
    pub(super) started: u32,
    pub(super) renewed: u16,
}

impl Identity for Process {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let next = match self.renewed.checked_add(1) {
            Some(renewed) => Self { renewed, ..*self },
            None => Self { started: self.started.checked_add(1)?, renewed: 0, ..*self },
        };
        Some(next)
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (adversary.started, adversary.renewed) < (self.started, self.renewed)
    }
}

/// A header or member that does not fit, or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a well-formed datagram")]
pub(super) struct Malformed;

const PROCESS_BYTES: usize = 16 + 4 + 2;
const MEMBER_BYTES: usize = PROCESS_BYTES + 2 + 1;

/// How foca's messages are written.
#[derive(Clone, Debug, Default)]
pub(super) struct Bytes {
    /// Set whenever a member is written. Foca does that for each change that it takes in, to pass it on, and tells of
    /// suspicions in no other way.
    pub(super) written: Arc<AtomicBool>,
}

impl Codec<Process> for Bytes {
    type Error = Malformed;

    fn encode_header(
        &mut self,
        header: &Header<Process>,
        mut to: impl BufMut,
    ) -> Result<(), Malformed> {
        put_process(&header.src, &mut to);
        to.put_u16_le(header.src_incarnation);
        put_process(&header.dst, &mut to);
        let mut with = |number: u8, process: &Process, probe: u8| {
            to.put_u8(number);
            put_process(process, &mut to);
            to.put_u8(probe);
        };
        match &header.message {
            Message::Ping(probe) => to.put_slice(&[0, *probe]),
            Message::Ack(probe) => to.put_slice(&[1, *probe]),
            Message::PingReq { target, probe_number } => with(2, target, *probe_number),
            Message::IndirectPing { origin, probe_number } => with(3, origin, *probe_number),
            Message::IndirectAck { target, probe_number } => with(4, target, *probe_number),
            Message::ForwardedAck { origin, probe_number } => with(5, origin, *probe_number),
            Message::Announce => to.put_u8(6),
            Message::Feed => to.put_u8(7),
            Message::Gossip => to.put_u8(8),
            Message::Broadcast => to.put_u8(9),
            Message::TurnUndead => to.put_u8(10),
        }
        Ok(())
    }

    fn decode_header(&mut self, mut from: impl Buf) -> Result<Header<Process>, Malformed> {
        let src = take_process(&mut from)?;
        let src_incarnation = from.try_get_u16_le().map_err(|_| Malformed)?;
        let dst = take_process(&mut from)?;
        let number = take_u8(&mut from)?;
        let message = match number {
            0 => Message::Ping(take_u8(&mut from)?),
            1 => Message::Ack(take_u8(&mut from)?),
            2..=5 => {
                let process = take_process(&mut from)?;
                let probe_number = take_u8(&mut from)?;
                match number {
                    2 => Message::PingReq { target: process, probe_number },
                    3 => Message::IndirectPing { origin: process, probe_number },
                    4 => Message::IndirectAck { target: process, probe_number },
                    _ => Message::ForwardedAck { origin: process, probe_number },
                }
            }
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            10 => Message::TurnUndead,
            _ => return Err(Malformed),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Process>,
        mut to: impl BufMut,
    ) -> Result<(), Malformed> {
        if to.remaining_mut() < MEMBER_BYTES {
            return Err(Malformed);
        }
        self.written.store(true, Ordering::Relaxed);
        put_process(member.id(), &mut to);
        to.put_u16_le(member.incarnation());
        to.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut from: impl Buf) -> Result<foca::Member<Process>, Malformed> {
        let process = take_process(&mut from)?;
        let incarnation = from.try_get_u16_le().map_err(|_| Malformed)?;
        let state = match take_u8(&mut from)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(Malformed),
        };
        Ok(foca::Member::new(process, incarnation, state))
    }
}

fn put_process(process: &Process, to: &mut impl BufMut) {
    to.put_slice(&process.node.0);
    to.put_u32_le(process.started);
    to.put_u16_le(process.renewed);
}

fn take_process(from: &mut impl Buf) -> Result<Process, Malformed> {
    let mut node = [0; 16];
    from.try_copy_to_slice(&mut node).map_err(|_| Malformed)?;
    let started = from.try_get_u32_le().map_err(|_| Malformed)?;
    let renewed = from.try_get_u16_le().map_err(|_| Malformed)?;
    Ok(Process { node: NodeId(node), started, renewed })
}

fn take_u8(from: &mut impl Buf) -> Result<u8, Malformed> {
    from.try_get_u8().map_err(|_| Malformed)
}

/// Begins a datagram with what foca says: its length in two bytes, then that. News follow.
pub(super) fn join(swim: &[u8]) -> Vec<u8> {
    let length = u16::try_from(swim.len()).expect("foca stays within its bound");
    let mut datagram = Vec::with_capacity(MAX_DATAGRAM_BYTES);
    datagram.extend_from_slice(&length.to_le_bytes());
    datagram.extend_from_slice(swim);
    datagram
}

/// What foca said, and the news.
pub(super) fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = datagram.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

/// Whom foca will take for the sender.
pub(super) fn sender(swim: &[u8]) -> Option<NodeId> {
    swim.first_chunk().copied().map(NodeId)
}

impl Word {
    /// The word in one byte.
    pub fn encode(self) -> u8 {
        match self {
            Self::Ask { needy: false } => 1,
            Self::Ask { needy: true } => 2,
            Self::Accept => 3,
            Self::Refuse => 4,
            Self::End => 5,
        }
    }

    /// The word that these bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match bytes {
            [1] => Ok(Self::Ask { needy: false }),
            [2] => Ok(Self::Ask { needy: true }),
            [3] => Ok(Self::Accept),
            [4] => Ok(Self::Refuse),
            [5] => Ok(Self::End),
            _ => Err(DecodeError::Invalid { what: "word" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    fn process() -> impl Strategy<Value = Process> + Clone {
        (any::<[u8; 16]>(), any::<u32>(), any::<u16>())
            .prop_map(|(node, started, renewed)| Process { node: NodeId(node), started, renewed })
    }

    fn message() -> impl Strategy<Value = Message<Process>> {
        let with = (process(), any::<u8>());
        prop_oneof![
            any::<u8>().prop_map(Message::Ping),
            any::<u8>().prop_map(Message::Ack),
            with.clone()
                .prop_map(|(target, probe_number)| Message::PingReq { target, probe_number }),
            with.clone()
                .prop_map(|(origin, probe_number)| Message::IndirectPing { origin, probe_number }),
            with.clone()
                .prop_map(|(target, probe_number)| Message::IndirectAck { target, probe_number }),
            with.prop_map(|(origin, probe_number)| Message::ForwardedAck { origin, probe_number }),
            Just(Message::Announce),
            Just(Message::Feed),
            Just(Message::Gossip),
            Just(Message::Broadcast),
            Just(Message::TurnUndead),
        ]
    }

    proptest! {
        #[test]
        fn headers_and_members_come_back(
            src in process(),
            src_incarnation: u16,
            dst in process(),
            message in message(),
            member in process(),
        ) {
            let header = Header { src, src_incarnation, dst, message };
            let mut bytes = Vec::new();
            prop_assert_eq!(Bytes::default().encode_header(&header, &mut bytes), Ok(()));
            prop_assert_eq!(sender(&bytes), Some(src.node));
            let member = foca::Member::new(member, src_incarnation, State::Suspect);
            prop_assert_eq!(Bytes::default().encode_member(&member, &mut bytes), Ok(()));
            let mut from = &bytes[..];
            prop_assert_eq!(Bytes::default().decode_header(&mut from), Ok(header));
            prop_assert_eq!(Bytes::default().decode_member(&mut from), Ok(member));
            prop_assert!(from.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Bytes::default().decode_header(&bytes[..]);
            let _ = Bytes::default().decode_member(&bytes[..]);
            let _ = split(&bytes);
            if let Ok(word) = Word::decode(&bytes) {
                prop_assert_eq!(&[word.encode()][..], &bytes[..]);
            }
        }
    }

    #[test]
    fn a_renewed_process_wins_against_the_one_before() {
        let last = Process { node: NodeId([1; 16]), started: 7, renewed: u16::MAX };
        let next = last.renew().unwrap();
        assert!(next.win_addr_conflict(&last) && !last.win_addr_conflict(&next));
    }
}
