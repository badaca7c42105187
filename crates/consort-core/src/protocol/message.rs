//! One variant per message of a link; each says what its receiver has to do. The bytes stand in `docs/protocol.md`.

use alloc::string::String;
use alloc::vec::Vec;

use crate::model::fingerprint::Fingerprint;
use crate::model::frontier::Frontier;
use crate::model::id::DatasetId;
use crate::model::version::Entry;
use crate::protocol::garbage::Published;
use crate::reconcile::{Answer, Request};
use crate::store::{Cursor, Sequence, Summary};

/// The protocol's version. A peer of another one is told so and left alone.
pub const PROTOCOL_VERSION: u16 = 3;

/// What this program can do beyond its protocol version, a bit each. A peer ignores bits that it does not know.
pub const FEATURES: u64 = 0;

/// A message with the dataset that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The dataset.
    pub dataset: DatasetId,
    /// The message.
    pub message: Message,
}

/// How a link begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u16,
    /// [`FEATURES`] of the sender.
    pub features: u64,
    /// Chosen by the opener, repeated by the answer, so that an answer to an earlier Hello is not taken for this one's.
    pub conversation: u32,
    /// What the sender holds.
    pub summary: Summary,
    /// How far the sender has applied the receiver's feed.
    pub cursor: Option<Cursor>,
    /// The sender does not trust the cursors: reconcile.
    pub reconcile: bool,
    /// Others bring the sender what it lacks: announce what you hold now, instead of sending it.
    pub announce: bool,
}

/// What the two ends of a link say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// From the opener: forget this link's state and answer with a Hello. From the answerer: the answer.
    Hello(Hello),
    /// From the answerer: begin again with a Hello, since I opened the dataset just now or found that we differ.
    Restart {
        /// Reconcile then.
        reconcile: bool,
    },
    /// Apply these as one commit, make it durable, acknowledge. With `through`: what you have applied of my feed now
    /// reaches this far.
    Versions {
        /// The versions.
        entries: Vec<Entry>,
        /// The place in the sender's feed.
        through: Option<Sequence>,
    },
    /// I hold versions with these fingerprints; ask for those that you lack. Once you have them, what you have
    /// applied of my feed reaches this far. Acknowledge then.
    Have {
        /// The fingerprints.
        fingerprints: Vec<Fingerprint>,
        /// The place in the sender's feed.
        through: Sequence,
    },
    /// Send me the versions with these fingerprints, as Given.
    Want {
        /// The fingerprints.
        fingerprints: Vec<Fingerprint>,
    },
    /// Versions that you wanted. Those that were replaced since are left out. Apply, acknowledge.
    Given {
        /// The versions.
        entries: Vec<Entry>,
        /// Whether more of the same Want follow.
        more: bool,
    },
    /// Of what lies within these times I have collected the tombstones. If you do not account for all of it, take what I
    /// hold by difference: what you hold of it and I do not is dead. Acknowledge at once.
    Frontier {
        /// The times that are later than those I told you before.
        times: Frontier,
    },
    /// Once you have applied what I sent before this, you account for everything within these times, as I do. And this
    /// is what others and I have published. Acknowledge when it is durable.
    Known {
        /// The times that are later than those I told you before.
        times: Frontier,
        /// What was published since I told you last.
        published: Vec<Published>,
    },
    /// I hold none of these, and take none from you.
    Unwanted {
        /// The fingerprints.
        fingerprints: Vec<Fingerprint>,
    },
    /// So many of your Versions, Have, Given, Frontier and Known messages of this link are applied and durable, counted from its Hello.
    Ack {
        /// How many.
        count: u64,
    },
    /// You sent me what I had: announce with Have from now on, and I do the same. Or, if not `lazy`: you sent me something
    /// before anybody else did, so let both of us push again.
    Lazy {
        /// Whether to announce.
        lazy: bool,
    },
    /// Describe what you hold: I compare.
    Describe(Request),
    /// What I hold, as far as you asked, for you to compare.
    Description(Answer),
    /// I have compared everything.
    Reconciled {
        /// I have what you had when you said Hello: your feed goes on from there. Otherwise I take in nothing for now, and
        /// will begin again.
        taken: bool,
        /// You have what I had when I said Hello: my feed goes on from there. Otherwise I withheld what only I have, since I
        /// am taking your state, and will begin again.
        given: bool,
    },
    /// For you to notice, if you and I have applied all of each other's feed, that we differ all the same.
    Check {
        /// What I hold.
        summary: Summary,
        /// How far I have applied your feed.
        applied: Sequence,
    },
    /// Take in everything that was changed in your linked directory so far, ask the same of your other neighbours unless you
    /// were asked before, and answer with Flushed when you have applied what they answer.
    Flush {
        /// To tell barriers apart, in the whole cluster.
        id: u64,
    },
    /// Everything that was changed before your Flush, by me and by those whom I asked, lies before this place in my feed.
    Flushed {
        /// That of the Flush.
        id: u64,
        /// The place.
        head: Sequence,
    },
    /// I end this link, because of something that you sent.
    Reject {
        /// What it was, in words.
        reason: String,
    },
}

impl Message {
    /// The versions that it brings: for who has to know whether to believe them before anything is done with them.
    pub fn entries(&self) -> &[Entry] {
        match self {
            Self::Versions { entries, .. } | Self::Given { entries, .. } => entries,
            // One by one, so that nobody can add a message that brings versions past whoever looks here.
            Self::Hello(_)
            | Self::Restart { .. }
            | Self::Have { .. }
            | Self::Want { .. }
            | Self::Frontier { .. }
            | Self::Known { .. }
            | Self::Unwanted { .. }
            | Self::Ack { .. }
            | Self::Lazy { .. }
            | Self::Describe(_)
            | Self::Description(_)
            | Self::Reconciled { .. }
            | Self::Check { .. }
            | Self::Flush { .. }
            | Self::Flushed { .. }
            | Self::Reject { .. } => &[],
        }
    }
}
