//! What `--json` prints, and what travels over the control socket: types of our own, so that no change inside the
//! engine changes what scripts read. Identities are hexadecimal, times are milliseconds or nanoseconds since 1970 as
//! the names say, sizes are bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use consort_node as node;
use consort_sim::plan::{self, Spread};
use serde::{Deserialize, Serialize};

use crate::error;

/// A command that could not do its work.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) error: Error,
}

/// Why it could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Error {
    pub(crate) kind: error::Kind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// A command that did its work and has nothing to say about it.
#[derive(Debug, Serialize)]
pub(crate) struct Done {
    pub(crate) done: bool,
}

/// `init` and `join`.
#[derive(Debug, Serialize)]
pub(crate) struct Membership {
    pub(crate) node: String,
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) role: Role,
    pub(crate) home: String,
}

/// `up`, when it runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Up {
    #[serde(flatten)]
    pub(crate) identity: Identity,
    pub(crate) listen: SocketAddr,
    pub(crate) home: String,
}

/// Who a node is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) node: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) cluster: String,
}

/// `invite`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ticket {
    pub(crate) ticket: String,
}

/// `plan`: one forecast for each number of nodes.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) writers: u32,
    pub(crate) writes_per_second: f64,
    pub(crate) size: u32,
    pub(crate) duration_ms: u64,
    pub(crate) bytes_per_second: u64,
    pub(crate) latency_ms: u64,
    pub(crate) loss_ppm: u64,
    pub(crate) failures_ppm: u64,
    pub(crate) least_degree: usize,
    pub(crate) greatest_degree: usize,
    pub(crate) seed: u64,
    pub(crate) forecasts: Vec<Forecast>,
}

/// How a number of nodes would fare. Traffic is that of one node while it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Forecast {
    pub(crate) nodes: u32,
    pub(crate) links: usize,
    pub(crate) versions: u64,
    pub(crate) version_bytes: u64,
    pub(crate) failures: u32,
    pub(crate) converged: bool,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) last_ms: f64,
    pub(crate) settled_after_ms: f64,
    pub(crate) measured_ms: f64,
    pub(crate) mean_hops: f64,
    pub(crate) p50_hops: u32,
    pub(crate) p99_hops: u32,
    pub(crate) last_hops: u32,
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
    pub(crate) copies: f64,
    pub(crate) beyond_bytes_per_second: f64,
    pub(crate) busiest_uplink: f64,
    pub(crate) events: u64,
}

/// What nodes sent or received.
#[derive(Debug, Serialize)]
pub(crate) struct Traffic {
    pub(crate) mean_bytes: f64,
    pub(crate) mean_messages: f64,
    pub(crate) most_bytes: u64,
    pub(crate) most_messages: u64,
}

/// One of `member list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Member {
    #[serde(flatten)]
    pub(crate) peer: Name,
    pub(crate) role: Role,
    pub(crate) revoked: bool,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) connected: bool,
    /// Deletions are remembered until it has heard of them.
    pub(crate) waited_for: bool,
    pub(crate) this_node: bool,
}

/// A node as others call it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) node: String,
    pub(crate) name: String,
}

/// `dataset create`, `dataset show`, and one of `dataset list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Dataset {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) mode: Mode,
    pub(crate) on_conflict: OnConflict,
    pub(crate) created_ms: u64,
    /// Current versions, deletions among them.
    pub(crate) versions: u64,
    pub(crate) digest: String,
    /// The feed's end: `feed --since` this gives what comes after.
    pub(crate) head: String,
    pub(crate) link: Option<Link>,
}

/// The directory of a dataset.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) dir: String,
    pub(crate) read_only: bool,
}

/// `link`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Linked {
    #[serde(flatten)]
    pub(crate) link: Link,
    /// The directory was not there, and was made.
    pub(crate) created: bool,
}

/// `unlink`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Unlinked {
    /// It is so, whatever the rest says.
    pub(crate) done: bool,
    /// The directory, which stays as it is.
    pub(crate) dir: String,
    /// Changes that were known here and had not arrived in it.
    pub(crate) pending: u64,
    /// That perhaps nobody gives others what is in it.
    pub(crate) lacking: Option<Lacking>,
}

/// Contents that this node gives to nobody any more.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Lacking {
    /// A key with such a content.
    pub(crate) key: String,
    /// What is known of the other members.
    pub(crate) why: String,
}

/// `put`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Put {
    pub(crate) version: String,
    pub(crate) size: u64,
}

/// `stat`, one of `ls`, and what `get` fetched.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) kind: EntryKind,
    pub(crate) size: u64,
    /// Permission bits.
    pub(crate) mode: u16,
    pub(crate) modified_ns: i64,
    /// Who wrote it and when: the author's identity, and a clock reading as 16 hexadecimal digits.
    pub(crate) version: String,
    /// When it was written, by its writer's clock.
    pub(crate) written_ms: u64,
    pub(crate) media_type: Option<String>,
    pub(crate) origin: Origin,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Versions that nobody chose between yet, apart from this one.
    pub(crate) conflicts: usize,
    pub(crate) deleted: bool,
}

/// One of `conflicts`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Conflict {
    pub(crate) key: String,
    pub(crate) winner: Candidate,
    /// In the order in which they would have won.
    pub(crate) losers: Vec<Candidate>,
    /// How many more there are than are listed.
    pub(crate) more: usize,
}

/// A version that somebody may choose.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) version: String,
    /// The name of the node that wrote it, or how its author's identity begins.
    pub(crate) author: String,
    /// That node's identity, if it is known.
    pub(crate) node: Option<String>,
    pub(crate) written_ms: u64,
    pub(crate) kind: EntryKind,
    pub(crate) size: u64,
    pub(crate) mode: u16,
    pub(crate) modified_ns: i64,
    pub(crate) media_type: Option<String>,
    pub(crate) origin: Origin,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Where this node's linked directory shows it.
    pub(crate) path: Option<String>,
}

/// `conflicts resolve`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Resolved {
    /// The version that stands for all that were chosen from.
    pub(crate) version: String,
    /// How many others it replaced.
    pub(crate) replaced: usize,
}

/// One of `feed`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) cursor: String,
    #[serde(flatten)]
    pub(crate) entry: Entry,
}

/// `wait`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Waited {
    pub(crate) versions: u64,
    pub(crate) peers: usize,
    /// No directory is linked here: contents may have to be fetched when they are read.
    pub(crate) metadata_only: bool,
    /// If so: members that are there and told that nothing is missing in their directories; none if nobody did and somebody
    /// has not told yet. With 0, it is not known whether contents can be had.
    pub(crate) complete_peers: Option<u64>,
}

/// `leave`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Left {
    /// The admin that ended the membership; none if this node was the only member.
    pub(crate) ended_by: Option<String>,
    /// It was looked at whether others have what this node has.
    pub(crate) checked: bool,
    /// The directories that were linked, which stay.
    pub(crate) dirs: Vec<String>,
}

/// `status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    #[serde(flatten)]
    pub(crate) identity: Identity,
    pub(crate) listen: SocketAddr,
    pub(crate) peers: Vec<PeerStatus>,
    pub(crate) datasets: Vec<DatasetStatus>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    /// The limits that hold now, in bytes a second.
    pub(crate) limit_up_bytes: Option<u64>,
    pub(crate) limit_down_bytes: Option<u64>,
    /// What is wrong with `config.toml`, if it was read again and not taken over.
    pub(crate) config_error: Option<String>,
    pub(crate) datagrams: Datagrams,
}

/// A peer of a node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PeerStatus {
    #[serde(flatten)]
    pub(crate) peer: Name,
    pub(crate) role: Role,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) connected: bool,
    /// Why it is not connected.
    pub(crate) reason: Option<String>,
    /// Whether it is there: `alive`, `suspected`, `gone` or `unheard`; and for how long.
    pub(crate) presence: String,
    pub(crate) for_seconds: u64,
    /// Changes flow between it and this node.
    pub(crate) neighbour: bool,
    /// When it told what follows.
    pub(crate) told_seconds_ago: Option<u64>,
    pub(crate) neighbours: u64,
    pub(crate) rate_bytes: u64,
    pub(crate) datasets: Vec<PeerDataset>,
}

/// A dataset on a peer, as the peer told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PeerDataset {
    pub(crate) name: String,
    /// It holds the same as this node, as far as it told. False if it is not there: then nobody knows.
    pub(crate) in_sync: bool,
    pub(crate) versions: u64,
    /// Versions that it has fewer than this node.
    pub(crate) behind: u64,
    /// Entries that are not in its directory yet.
    pub(crate) pending: u64,
    pub(crate) linked: bool,
}

/// What became of datagrams.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Datagrams {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) malformed: u64,
    pub(crate) stranger: u64,
    pub(crate) unknown_key: u64,
    pub(crate) forged: u64,
    pub(crate) replayed: u64,
    pub(crate) overflowed: u64,
}

/// A dataset on a node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DatasetStatus {
    pub(crate) name: String,
    pub(crate) versions: u64,
    /// Deletions among them, and the node that has to hear of them before they are forgotten.
    pub(crate) tombstones: u64,
    pub(crate) tombstones_wait_for: Option<String>,
    pub(crate) digest: String,
    pub(crate) dir: Option<String>,
    pub(crate) read_only: bool,
    /// No directory is linked here: contents may have to be fetched when they are read.
    pub(crate) metadata_only: bool,
    /// Members that are there and told that nothing is missing in their directories; none if nobody did and somebody has not
    /// told yet.
    pub(crate) complete_peers: Option<u64>,
    pub(crate) state: DatasetState,
    /// Why it is paused or degraded, and what to do.
    pub(crate) reason: Option<String>,
    /// Entries and bytes that are known and not yet in the directory.
    pub(crate) pending: u64,
    pub(crate) pending_bytes: u64,
    /// Files that a running scan has looked at, and will.
    pub(crate) indexed: u64,
    pub(crate) to_index: Option<u64>,
    pub(crate) on_conflict: OnConflict,
    /// Versions that lost and that nobody has dealt with; and of these, copies in the directory.
    pub(crate) conflicts: u64,
    pub(crate) conflict_copies: u64,
    pub(crate) problems: Vec<String>,
    /// Content bytes per second, lately.
    pub(crate) rate_bytes: u64,
    pub(crate) links: Vec<LinkStatus>,
}

/// The conversation with one peer about one dataset.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LinkStatus {
    #[serde(flatten)]
    pub(crate) peer: Name,
    pub(crate) phase: String,
    /// How the two compare what they hold, while they do.
    pub(crate) method: Option<String>,
    /// Versions that the peer has not acknowledged.
    pub(crate) behind: u64,
}

/// One of `doctor`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) what: String,
    pub(crate) todo: Option<String>,
}

impl Finding {
    /// That `config.toml` was read again and not taken over.
    pub(crate) fn of_config(mistake: &str) -> Self {
        Self {
            severity: Severity::Warning,
            what: format!("{mistake}; what was settled before holds on"),
            todo: Some(
                "mend it, and let the node read it again: systemctl reload consort, or SIGHUP"
                    .to_owned(),
            ),
        }
    }
}

/// `completions`.
#[derive(Debug, Serialize)]
pub(crate) struct Completions {
    pub(crate) shell: String,
    pub(crate) script: String,
}

/// `get -o`.
#[derive(Debug, Serialize)]
pub(crate) struct Got {
    pub(crate) file: String,
    #[serde(flatten)]
    pub(crate) entry: Entry,
}

/// `dev --once`.
#[derive(Debug, Serialize)]
pub(crate) struct DevVerified {
    pub(crate) equal: bool,
    pub(crate) nodes: usize,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Bytes that the nodes sent each other for that.
    pub(crate) sent_bytes: u64,
    /// Names in the first directory that need not be elsewhere.
    pub(crate) not_compared: u64,
    pub(crate) differences: Vec<String>,
}

/// One of `dev`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum DevEvent {
    /// All nodes hold the same.
    Ready { dataset: String, files: u64, bytes: u64, seconds: f64, nodes: Vec<DevNode> },
    /// A change has arrived at a node, so long after it was written.
    Change {
        node: String,
        lag_ms: u64,
        #[serde(flatten)]
        change: Change,
    },
}

/// A node of `dev`.
#[derive(Debug, Serialize)]
pub(crate) struct DevNode {
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) home: String,
    pub(crate) dir: String,
}

/// An enum whose names in JSON and on the command line are the same, and its conversion from and to the node's type.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident is $of:path { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
        pub(crate) enum $name {
            $(#[serde(rename = $text)] #[value(name = $text)] $variant,)+
        }

        impl $name {
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl From<$of> for $name {
            fn from(value: $of) -> Self {
                use $of as Of;
                match value { $(Of::$variant => Self::$variant,)+ }
            }
        }

        impl From<$name> for $of {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant,)+ }
            }
        }
    };
}

names! {
    /// What a member may do.
    Role is node::Role { Writer = "writer", Reader = "reader", Relay = "relay", Admin = "admin" }
}
names! {
    /// Who decides the order of a dataset's changes.
    Mode is node::Mode { Mesh = "mesh", Hub = "hub" }
}
names! {
    /// What becomes of concurrent versions.
    OnConflict is node::OnConflict { KeepBoth = "keep-both", Latest = "latest", PreferReal = "prefer-real" }
}
names! {
    /// Where content came from.
    Origin is node::Origin { Real = "real", Synthetic = "synthetic", Derived = "derived" }
}
names! {
    /// What an entry is in a directory.
    EntryKind is node::Kind { File = "file", Directory = "directory", Symlink = "symlink" }
}
names! {
    /// How a dataset stands on a node.
    DatasetState is node::DatasetState {
        InSync = "in-sync", Syncing = "syncing", Scanning = "scanning",
        Waiting = "waiting", Paused = "paused", Degraded = "degraded",
    }
}
names! {
    /// How bad a finding is.
    Severity is node::Severity { Ok = "ok", Warning = "warning", Problem = "problem" }
}

impl From<node::NodeIdentity> for Identity {
    fn from(identity: node::NodeIdentity) -> Self {
        Self {
            node: identity.node.to_string(),
            name: identity.name,
            role: identity.role.into(),
            cluster: identity.cluster,
        }
    }
}

impl From<node::Member> for Member {
    fn from(member: node::Member) -> Self {
        Self {
            peer: Name { node: member.node.to_string(), name: member.name },
            role: member.role.into(),
            revoked: member.revoked,
            addresses: member.addresses,
            connected: member.connected,
            waited_for: member.waited_for,
            this_node: member.this_node,
        }
    }
}

impl From<node::Dataset> for Dataset {
    fn from(dataset: node::Dataset) -> Self {
        Self {
            name: dataset.name,
            id: dataset.id.to_string(),
            mode: dataset.mode.into(),
            on_conflict: dataset.on_conflict.into(),
            created_ms: dataset.created_ms,
            versions: dataset.versions,
            digest: dataset.digest,
            head: dataset.head.to_string(),
            link: dataset.link.map(Link::from),
        }
    }
}

impl From<node::Link> for Link {
    fn from(link: node::Link) -> Self {
        Self { dir: link.dir.display().to_string(), read_only: link.read_only }
    }
}

impl From<node::Linked> for Linked {
    fn from(linked: node::Linked) -> Self {
        Self { link: linked.link.into(), created: linked.created }
    }
}

impl From<node::Unlinked> for Unlinked {
    fn from(unlinked: node::Unlinked) -> Self {
        let node::Unlinked { dir, pending, lacking } = unlinked;
        let lacking = lacking.map(|node::Lacking { key, why }| Lacking { key, why });
        Self { done: true, dir: dir.display().to_string(), pending, lacking }
    }
}

impl From<node::Put> for Put {
    fn from(put: node::Put) -> Self {
        Self { version: put.dot.to_string(), size: put.size }
    }
}

impl From<node::Entry> for Entry {
    fn from(entry: node::Entry) -> Self {
        Self {
            key: entry.key,
            kind: entry.kind.into(),
            size: entry.size,
            mode: entry.mode,
            modified_ns: entry.modified_ns,
            version: entry.dot.to_string(),
            written_ms: entry.dot.time.wall().0,
            media_type: entry.media_type,
            origin: entry.origin.into(),
            metadata: entry.metadata.into_iter().collect(),
            conflicts: entry.conflicts,
            deleted: entry.deleted,
        }
    }
}

impl From<node::Conflict> for Conflict {
    fn from(conflict: node::Conflict) -> Self {
        Self {
            key: conflict.key,
            winner: conflict.winner.into(),
            losers: conflict.losers.into_iter().map(Candidate::from).collect(),
            more: conflict.more,
        }
    }
}

impl From<node::Candidate> for Candidate {
    fn from(candidate: node::Candidate) -> Self {
        let entry = Entry::from(candidate.entry);
        Self {
            version: entry.version,
            author: candidate.author,
            node: candidate.node.map(|node| node.to_string()),
            written_ms: entry.written_ms,
            kind: entry.kind,
            size: entry.size,
            mode: entry.mode,
            modified_ns: entry.modified_ns,
            media_type: entry.media_type,
            origin: entry.origin,
            metadata: entry.metadata,
            path: candidate.path,
        }
    }
}

impl From<node::Resolved> for Resolved {
    fn from(resolved: node::Resolved) -> Self {
        Self { version: resolved.dot.to_string(), replaced: resolved.replaced }
    }
}

impl From<node::Change> for Change {
    fn from(change: node::Change) -> Self {
        Self { cursor: change.cursor.to_string(), entry: change.entry.into() }
    }
}

impl From<node::Waited> for Waited {
    fn from(waited: node::Waited) -> Self {
        let node::Waited { versions, peers, metadata_only, complete_peers } = waited;
        Self { versions, peers, metadata_only, complete_peers }
    }
}

impl From<node::Left> for Left {
    fn from(left: node::Left) -> Self {
        let node::Left { ended_by, checked, dirs } = left;
        let dirs = dirs.into_iter().map(|dir| dir.display().to_string()).collect();
        Self { ended_by, checked, dirs }
    }
}

impl From<node::Status> for Status {
    fn from(status: node::Status) -> Self {
        Self {
            identity: status.node.into(),
            listen: status.listen,
            peers: status.peers.into_iter().map(PeerStatus::from).collect(),
            datasets: status.datasets.into_iter().map(DatasetStatus::from).collect(),
            sent_bytes: status.traffic.sent,
            received_bytes: status.traffic.received,
            limit_up_bytes: status.limits.up.map(node::Rate::bytes),
            limit_down_bytes: status.limits.down.map(node::Rate::bytes),
            config_error: None,
            datagrams: status.datagrams.into(),
        }
    }
}

impl From<node::PeerStatus> for PeerStatus {
    fn from(peer: node::PeerStatus) -> Self {
        Self {
            peer: Name { node: peer.node.to_string(), name: peer.name },
            role: peer.role.into(),
            address: peer.addr,
            connected: peer.connected,
            reason: peer.reason,
            presence: peer.presence.to_string(),
            for_seconds: peer.for_seconds,
            neighbour: peer.neighbour,
            told_seconds_ago: peer.told_seconds_ago,
            neighbours: peer.neighbours,
            rate_bytes: peer.rate_bytes,
            datasets: peer.datasets.into_iter().map(PeerDataset::from).collect(),
        }
    }
}

impl From<node::PeerDataset> for PeerDataset {
    fn from(dataset: node::PeerDataset) -> Self {
        Self {
            name: dataset.name,
            in_sync: dataset.in_sync,
            versions: dataset.versions,
            behind: dataset.behind,
            pending: dataset.pending,
            linked: dataset.linked,
        }
    }
}

impl From<node::DatagramCounts> for Datagrams {
    fn from(counts: node::DatagramCounts) -> Self {
        Self {
            sent: counts.sent,
            received: counts.received,
            malformed: counts.malformed,
            stranger: counts.stranger,
            unknown_key: counts.unknown_key,
            forged: counts.forged,
            replayed: counts.replayed,
            overflowed: counts.overflowed,
        }
    }
}

impl From<node::DatasetStatus> for DatasetStatus {
    fn from(dataset: node::DatasetStatus) -> Self {
        Self {
            name: dataset.name,
            versions: dataset.versions,
            digest: dataset.digest,
            dir: dataset.dir.map(|dir| dir.display().to_string()),
            read_only: dataset.read_only,
            metadata_only: dataset.metadata_only,
            complete_peers: dataset.complete_peers,
            state: dataset.state.into(),
            reason: dataset.reason,
            pending: dataset.pending,
            pending_bytes: dataset.pending_bytes,
            indexed: dataset.indexed,
            to_index: dataset.to_index,
            on_conflict: dataset.on_conflict.into(),
            conflicts: dataset.conflicts,
            conflict_copies: dataset.conflict_copies,
            tombstones: dataset.tombstones,
            tombstones_wait_for: dataset.tombstones_wait_for,
            problems: dataset.problems,
            rate_bytes: dataset.rate_bytes,
            links: dataset.links.into_iter().map(LinkStatus::from).collect(),
        }
    }
}

impl From<&plan::Forecast> for Forecast {
    fn from(forecast: &plan::Forecast) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let Spread { p50, p99, last } = forecast.convergence;
        Self {
            nodes: forecast.nodes,
            links: forecast.links,
            versions: forecast.versions,
            version_bytes: forecast.version_bytes,
            failures: forecast.failures,
            // There is no forecast otherwise.
            converged: true,
            p50_ms: ms(p50),
            p99_ms: ms(p99),
            last_ms: ms(last),
            settled_after_ms: ms(forecast.settled_after),
            measured_ms: ms(forecast.measured),
            mean_hops: forecast.mean_hops,
            p50_hops: forecast.hops.p50,
            p99_hops: forecast.hops.p99,
            last_hops: forecast.hops.last,
            received: forecast.received.into(),
            sent: forecast.sent.into(),
            copies: forecast.copies,
            beyond_bytes_per_second: forecast.beyond,
            busiest_uplink: forecast.busiest_uplink,
            events: forecast.events,
        }
    }
}

impl From<plan::Traffic> for Traffic {
    fn from(traffic: plan::Traffic) -> Self {
        let plan::Traffic { mean_bytes, mean_messages, most_bytes, most_messages } = traffic;
        Self { mean_bytes, mean_messages, most_bytes, most_messages }
    }
}

impl From<node::LinkStatus> for LinkStatus {
    fn from(link: node::LinkStatus) -> Self {
        Self {
            peer: Name { node: link.peer.to_string(), name: link.name },
            phase: link.phase,
            method: link.method,
            behind: link.behind,
        }
    }
}

impl From<node::Finding> for Finding {
    fn from(finding: node::Finding) -> Self {
        Self { severity: finding.severity.into(), what: finding.what, todo: finding.todo }
    }
}

impl From<error::Error> for Error {
    fn from(error: error::Error) -> Self {
        match error {
            error::Error::Told { kind, message, hint } => Self { kind, message, hint },
            other @ (error::Error::Shown | error::Error::OutputClosed) => {
                Self { kind: error::Kind::Failed, message: other.to_string(), hint: None }
            }
        }
    }
}

impl From<Error> for error::Error {
    fn from(error: Error) -> Self {
        Self::Told { kind: error.kind, message: error.message, hint: error.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_promised_shape() {
        let error = error::Error::new(error::Kind::TimedOut, "too late").hint("try again");
        let json = serde_json::to_value(Failure { error: error.into() }).expect("plain data");
        assert_eq!(
            json,
            serde_json::json!({
                "error": { "kind": "timed_out", "message": "too late", "hint": "try again" }
            })
        );
    }

    #[test]
    fn names_are_the_same_on_the_command_line_and_in_json() {
        for role in <Role as clap::ValueEnum>::value_variants() {
            let json = serde_json::to_value(role).expect("plain data");
            assert_eq!(json, role.as_str());
            assert_eq!(node::Role::from(*role).to_string(), role.as_str());
        }
        assert_eq!(OnConflict::PreferReal.as_str(), "prefer-real");
    }
}
