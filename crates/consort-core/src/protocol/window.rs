//! How much may be on its way: what a message weighs, what a sender may have in flight, what a receiver keeps.
//!
//! Both ends weigh alike, so a receiver recognises a peer that does not wait for acknowledgements.

use alloc::collections::VecDeque;

use crate::limits::{MAX_COMMIT_BYTES, WINDOW_BYTES, WINDOW_MESSAGES};
use crate::model::version::Entry;
use crate::protocol::message::Message;
use crate::reconcile::{Answer, Symbol};
use crate::time::Instant;

/// What a receiver keeps of one sender, in bytes. A sender may overshoot its window by one commit, which may take many
/// times as much memory as bytes if it is full of small attributes.
pub(super) const KEPT_BYTES: usize = WINDOW_BYTES + 16 * MAX_COMMIT_BYTES;
/// And in messages.
pub(super) const KEPT_MESSAGES: usize = WINDOW_MESSAGES + 8;

/// A window that was full is filled again when no more than this is on its way.
const REFILL_AT_BYTES: usize = WINDOW_BYTES / 4 * 3;
const REFILL_AT_MESSAGES: usize = WINDOW_MESSAGES / 4 * 3;

/// The messages that a peer has been sent and has not acknowledged, by weight, oldest first.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// With whether each is about versions, rather than about what is known of them.
    weights: VecDeque<(usize, bool)>,
    bytes: usize,
    /// It was full, and no quarter of it is free yet.
    is_closed: bool,
    about_versions: usize,
}

impl Window {
    /// Whether another message may be sent. Once it was full, only when a quarter of it is free again: who sends reads
    /// a whole page of its feed, and would read one for every message that is acknowledged.
    pub(super) fn has_room(&self) -> bool {
        !self.is_closed
    }

    pub(super) fn len(&self) -> usize {
        self.weights.len()
    }

    /// How many of them are about versions.
    pub(super) fn about_versions(&self) -> usize {
        self.about_versions
    }

    /// Takes in a message; returns what it weighs.
    pub(super) fn add(&mut self, message: &Message) -> usize {
        let weight = weight(message);
        let about_versions = !matches!(message, Message::Frontier { .. } | Message::Known { .. });
        self.weights.push_back((weight, about_versions));
        self.bytes += weight;
        self.about_versions += usize::from(about_versions);
        self.is_closed |= WINDOW_BYTES <= self.bytes || WINDOW_MESSAGES <= self.weights.len();
        weight
    }

    /// Takes off the oldest `count` messages, or all if there are fewer; returns how many `count` has left.
    pub(super) fn take_off(&mut self, count: usize) -> usize {
        let here = count.min(self.weights.len());
        for (weight, about_versions) in self.weights.drain(..here) {
            self.bytes -= weight;
            self.about_versions -= usize::from(about_versions);
        }
        self.is_closed &= REFILL_AT_BYTES < self.bytes || REFILL_AT_MESSAGES < self.weights.len();
        count - here
    }
}

/// Messages that arrived and have to wait, oldest first, with their weight and when they arrived.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    messages: VecDeque<(Message, usize, Instant)>,
    bytes: usize,
}

/// The peer has sent more than a window.
#[derive(Debug)]
pub(super) struct Overrun;

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn push(&mut self, message: Message, now: Instant) -> Result<(), Overrun> {
        let weight = weight(&message);
        self.bytes += weight;
        self.messages.push_back((message, weight, now));
        let kept = self.bytes <= KEPT_BYTES && self.messages.len() <= KEPT_MESSAGES;
        if kept { Ok(()) } else { Err(Overrun) }
    }

    pub(super) fn front(&self) -> Option<&Message> {
        self.messages.front().map(|(message, ..)| message)
    }

    pub(super) fn pop(&mut self) -> Option<(Message, Instant)> {
        let (message, weight, arrived) = self.messages.pop_front()?;
        self.bytes -= weight;
        Some((message, arrived))
    }
}

const EACH: usize = 64;
/// What an author of a frontier counts.
const AUTHOR: usize = 40;

/// What a message counts, in bytes: about what it takes in memory.
fn weight(message: &Message) -> usize {
    match message {
        Message::Versions { entries, .. } | Message::Given { entries, .. } => {
            EACH + weight_of(entries)
        }
        Message::Have { fingerprints, .. } => EACH + fingerprints.len() * 16,
        Message::Frontier { times } => EACH + times.len() * AUTHOR,
        Message::Known { times, published } => EACH + (times.len() + 2 * published.len()) * AUTHOR,
        Message::Description(Answer::Symbols { run, .. }) => {
            EACH + run.symbols.len() * size_of::<Symbol>()
        }
        Message::Description(Answer::Sorted(batch)) => EACH + batch.fingerprints.len() * 16,
        _ => EACH,
    }
}

/// What versions count, in bytes.
pub(super) fn weight_of(entries: &[Entry]) -> usize {
    entries.iter().map(Entry::weight).sum()
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::encoding::Reader;
    use crate::limits::{MAX_COMMIT_VERSIONS, MAX_METADATA_BYTES, MAX_UNKNOWN_ATTRIBUTES};
    use crate::model::canonical;
    use crate::model::generators::any_entry;

    /// The entry that takes the most memory for its bytes: attributes as many and as small as they may be.
    fn heaviest(mut entry: Entry) -> Entry {
        let attributes = &mut entry.version.attributes;
        let mut names: Vec<Box<str>> = (0..500).map(|n: u32| n.to_string().into()).collect();
        names.sort_unstable();
        let mut bytes = 0;
        let mut fits = |name: &str| {
            bytes += 2 + name.len();
            bytes <= MAX_METADATA_BYTES
        };
        attributes.metadata =
            names.into_iter().take_while(|name| fits(name)).map(|name| (name, "".into())).collect();
        attributes.unknown =
            (10..).take(MAX_UNKNOWN_ATTRIBUTES).map(|tag| (tag, Box::from([]))).collect();
        entry
    }

    #[test]
    fn a_window_that_was_full_opens_again_when_a_quarter_of_it_is_free() {
        let mut window = Window::default();
        for _ in 0..WINDOW_MESSAGES {
            assert!(window.has_room());
            window.add(&Message::Lazy { lazy: true });
        }
        for _ in REFILL_AT_MESSAGES..WINDOW_MESSAGES {
            assert!(!window.has_room());
            window.take_off(1);
        }
        assert!(window.has_room());
        window.add(&Message::Lazy { lazy: true });
        assert!(window.has_room());
    }

    proptest! {
        #[test]
        fn a_receiver_has_room_for_any_commit_behind_a_full_window(entry in any_entry(), heavy: bool) {
            let entry = if heavy { heaviest(entry) } else { entry };
            let mut bytes = Vec::new();
            canonical::encode_entry(&entry, &mut bytes);
            prop_assert!(canonical::decode_entry(&mut Reader::new(&bytes)).is_ok());
            let count = (MAX_COMMIT_BYTES / bytes.len()).min(MAX_COMMIT_VERSIONS);
            prop_assert!(WINDOW_BYTES + EACH + count * entry.weight() <= KEPT_BYTES);
        }
    }
}
