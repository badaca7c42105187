//! What is measured while a plan runs: who sent and received how much, and how soon and over how many nodes every version
//! came to every node. It takes a few bytes for each version on each node, where the checkers would take hundreds.

use std::collections::BTreeMap;
use std::sync::Arc;

use consort_core::model::canonical;
use consort_core::protocol::Message;
use consort_core::store::Sequence;
use consort_core::{Content, Dot, Entry, Instant};

use crate::node::NodeIndex;

/// What a message takes on the wire besides itself: its frame's length and kind, and a TLS record of its own.
const FRAME_BYTES: u64 = 5 + 22;

/// What one node sent and received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) sent_bytes: u64,
    pub(crate) sent_messages: u64,
    pub(crate) received_bytes: u64,
    pub(crate) received_messages: u64,
    /// Versions that it was sent, known or not.
    pub(crate) received_versions: u64,
}

/// A version that somebody wrote.
#[derive(Debug)]
struct Written {
    at: Instant,
    content: Arc<[u8]>,
}

/// What is measured.
#[derive(Debug)]
pub(crate) struct Meter {
    /// By node.
    pub(crate) loads: Vec<Load>,
    versions: BTreeMap<Dot, usize>,
    written: Vec<Written>,
    /// When measuring began.
    begun: Instant,
    /// How many versions were written since, and what they are, encoded, in bytes.
    pub(crate) counted: usize,
    pub(crate) version_bytes: u64,
    /// For each version and then each node: one more than over how many links it came there; zero if it is not there.
    places: Vec<u8>,
    /// How long each version took to each node that did not write it, in microseconds.
    pub(crate) delays_us: Vec<u32>,
    /// How many of them came over so many links.
    pub(crate) hops: [u64; 256],
    /// When a version last came somewhere.
    pub(crate) last: Instant,
}

impl Meter {
    /// For so many nodes.
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            loads: vec![Load::default(); nodes],
            versions: BTreeMap::new(),
            written: Vec::new(),
            begun: Instant(0),
            counted: 0,
            version_bytes: 0,
            places: Vec::new(),
            delays_us: Vec::new(),
            hops: [0; 256],
            last: Instant(0),
        }
    }

    /// What was sent and written until now does not count.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.loads.fill(Load::default());
        self.delays_us.clear();
        self.hops.fill(0);
        (self.version_bytes, self.counted, self.begun) = (0, 0, now);
    }

    /// How many versions were ever written.
    pub(crate) fn versions(&self) -> usize {
        self.written.len()
    }

    pub(crate) fn sent(&mut self, n: NodeIndex, bytes: usize) {
        let load = &mut self.loads[n.0 as usize];
        load.sent_bytes += bytes as u64 + FRAME_BYTES;
        load.sent_messages += 1;
    }

    /// A message arrived. The contents in it become those that all nodes share.
    pub(crate) fn received(&mut self, n: NodeIndex, bytes: usize, message: &mut Message) {
        let load = &mut self.loads[n.0 as usize];
        load.received_bytes += bytes as u64 + FRAME_BYTES;
        load.received_messages += 1;
        let (Message::Versions { entries, .. } | Message::Given { entries, .. }) = message else {
            return;
        };
        load.received_versions += entries.len() as u64;
        for Entry { version, .. } in entries {
            let known = self.versions.get(&version.dot).map(|place| &self.written[*place].content);
            if let (Content::Inline(bytes), Some(shared)) = (&mut version.content, known)
                && bytes == shared
            {
                *bytes = Arc::clone(shared);
            }
        }
    }

    /// Versions are durable at a node, which had them from another, or wrote them.
    pub(crate) fn durable(
        &mut self,
        n: NodeIndex,
        from: Option<NodeIndex>,
        added: &[(Entry, Sequence)],
        now: Instant,
    ) {
        let (nodes, n) = (self.loads.len(), n.0 as usize);
        for (entry, _) in added {
            let Some(from) = from else {
                self.write(entry, now);
                let places = self.places.len();
                self.places.resize(places + nodes, 0);
                self.places[places + n] = 1;
                continue;
            };
            let version = *self.versions.get(&entry.version.dot).expect("its writer has it");
            let places = &mut self.places[version * nodes..][..nodes];
            let there = places[from.0 as usize];
            places[n] = there.saturating_add(1);
            let written = self.written[version].at;
            if written < self.begun {
                continue;
            }
            self.hops[usize::from(there)] += 1;
            let delay = now.since(written).as_micros();
            self.delays_us.push(u32::try_from(delay).unwrap_or(u32::MAX));
            self.last = now;
        }
    }

    fn write(&mut self, entry: &Entry, at: Instant) {
        let mut bytes = Vec::new();
        canonical::encode_entry(entry, &mut bytes);
        self.version_bytes += bytes.len() as u64;
        self.counted += 1;
        let content = match &entry.version.content {
            Content::Inline(bytes) => Arc::clone(bytes),
            _ => Arc::default(),
        };
        self.versions.insert(entry.version.dot, self.written.len());
        self.written.push(Written { at, content });
    }
}
