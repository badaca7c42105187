//! The whole interface of the protocol: what happens to it, and what it asks for.

use alloc::string::String;
use alloc::vec::Vec;

use crate::model::id::NodeId;
use crate::model::version::Entry;
use crate::protocol::garbage::Registered;
use crate::protocol::message::Message;
use crate::store::{Cursor, Lesson, Sequence};
use crate::time::{Instant, WallTime};

/// The time of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub instant: Instant,
    /// For recognising clocks that are far ahead.
    pub wall: WallTime,
}

/// What a node may do to a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its versions are taken.
    Write,
    /// It only receives.
    Read,
}

/// Something that happened, to one dataset's replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection to a peer stands. `opener` is true at exactly one of its ends.
    Connected {
        /// Who.
        peer: NodeId,
        /// What the peer may do.
        access: Access,
        /// Whether this side says Hello.
        opener: bool,
        /// Whether the connection stood before this replica was opened, so that the peer's first words may have
        /// found nobody.
        standing: bool,
    },
    /// The connection is gone.
    Disconnected {
        /// Whose.
        peer: NodeId,
    },
    /// A message arrived. Messages of one connection arrive in order, whole, and once.
    Received {
        /// From whom.
        peer: NodeId,
        /// The message.
        message: Message,
    },
    /// An [`Effect::Commit`] is durable: the oldest one of that peer which was not reported yet.
    Committed {
        /// Whose versions.
        peer: NodeId,
        /// How many of them were known or covered already.
        stale: usize,
    },
    /// An [`Effect::Learn`] is durable: the oldest one of that peer, in one order with its commits.
    Learned {
        /// For whom it was asked.
        peer: Option<NodeId>,
    },
    /// These replicas are registered: deletions are not forgotten before all of them account for them.
    Registered {
        /// This replica's node.
        node: NodeId,
        /// The replicas, this one included if it is among them.
        replicas: Vec<Registered>,
    },
    /// The replica's feed grew, by whatever cause. Reported after the [`Committed`](Self::Committed) of the same commit.
    Grew,
    /// The deadline that was last given by [`Replica::deadline`](crate::protocol::Replica::deadline) has passed.
    DeadlinePassed,
    /// An [`Effect::FlushDirectory`] is done, and with it all before it of the same peer.
    DirectoryFlushed {
        /// Who asked.
        peer: NodeId,
        /// That of the effect.
        id: u64,
    },
    /// Somebody here wants to know how far this peer's feed must be applied to include every change made before now, at
    /// the peer and at all that it can reach.
    BarrierWanted {
        /// Which peer.
        peer: NodeId,
        /// To tell barriers apart: nobody else in the cluster uses it.
        id: u64,
    },
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a message. If the connection is gone, drop it.
    Send {
        /// To whom.
        peer: NodeId,
        /// The message.
        message: Message,
    },
    /// Apply these versions as one commit and remember the cursor, both durable, then report
    /// [`Event::Committed`]. Commits of one peer take effect in order.
    Commit {
        /// Who sent them.
        peer: NodeId,
        /// The versions; there may be none, if only the cursor moved.
        entries: Vec<Entry>,
        /// How far the peer's feed has been applied with them.
        cursor: Option<Cursor>,
    },
    /// Take note of what was learnt, durably, then report [`Event::Learned`]. It takes effect after all commits and
    /// lessons that were asked for before, of whatever peer.
    Learn {
        /// For whom, if it is not for the replica itself.
        peer: Option<NodeId>,
        /// What was learnt.
        lesson: Lesson,
    },
    /// Take in everything that was changed in the linked directory so far, then report [`Event::DirectoryFlushed`].
    FlushDirectory {
        /// Who asked.
        peer: NodeId,
        /// To tell flushes apart; it rises.
        id: u64,
    },
    /// A peer answered a barrier: once its feed is applied this far, every change made at it before the barrier is here.
    BarrierReached {
        /// Which barrier.
        id: u64,
        /// Which peer.
        peer: NodeId,
        /// How far.
        head: Sequence,
    },
    /// The peer broke the protocol, or the store could not be read for its link: end the connection. Another one
    /// begins anew, and misses nothing.
    Disconnect {
        /// Whose.
        peer: NodeId,
        /// Why, in words.
        reason: String,
    },
}
