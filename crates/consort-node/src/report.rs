//! What a [`Node`](crate::Node) tells about itself: plain data, without a promise about the next moment.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use consort_core::{DatasetId, Dot, Kind, NodeId, OnConflict, Origin};

use crate::net::{DatagramCounts, Limits, Role, Traffic};

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its identity.
    pub node: NodeId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The cluster's name.
    pub cluster: String,
}

/// What [`init`](crate::init) made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initialized {
    /// The node's identity.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
}

/// What [`join`](crate::join) made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The node's identity.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// What it may do.
    pub role: Role,
}

/// How a node is to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Where to listen. If there is none: where this node listened last, or was told to when it joined, or port
    /// [`DEFAULT_PORT`](crate::DEFAULT_PORT) of all interfaces. Port 0 takes any free one.
    pub listen: Option<SocketAddr>,
    /// An admin's node stops waiting for members that were away for so long while it ran, before deletions are
    /// forgotten: it evicts them, as long as it and the others that are there are the majority. None: never. Less than
    /// what it takes to notice that a member is gone, about 20 seconds, means that.
    pub evict_after: Option<Duration>,
    /// How fast it may send and receive from the start.
    pub limits: Limits,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// It is a member no more.
    pub revoked: bool,
    /// Where it can be reached, as far as is known, the likeliest first.
    pub addresses: Vec<SocketAddr>,
    /// It is connected with this node.
    pub connected: bool,
    /// Deletions are remembered until it has heard of them.
    pub waited_for: bool,
    /// It is this node.
    pub this_node: bool,
}

/// Who decides the order of a dataset's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nobody: every writer accepts writes.
    #[default]
    Mesh,
    /// One authority.
    Hub,
}

/// How a dataset is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Who decides the order.
    pub mode: Mode,
    /// What becomes of concurrent versions.
    pub on_conflict: OnConflict,
    /// Where a hub dataset's authority keeps it.
    pub authority: Option<String>,
}

/// A dataset as this node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: DatasetId,
    /// Who decides the order.
    pub mode: Mode,
    /// What becomes of concurrent versions.
    pub on_conflict: OnConflict,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// Current versions, deletions among them.
    pub versions: u64,
    /// What this node holds of it: equal on nodes that hold the same.
    pub digest: String,
    /// The end of this node's feed.
    pub head: FeedCursor,
    /// The directory that it is linked to here.
    pub link: Option<Link>,
}

/// A linked directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The directory.
    pub dir: PathBuf,
    /// Changes made in it are not taken in.
    pub read_only: bool,
}

/// What linking a directory came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The link.
    pub link: Link,
    /// The directory was not there, and was made.
    pub created: bool,
}

/// What ending a link came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlinked {
    /// The directory. It stays, with all that is in it.
    pub dir: PathBuf,
    /// Changes that were known here and had not arrived in it.
    pub pending: u64,
    /// That others may not be able to get what was in it, if that is so.
    pub lacking: Option<Lacking>,
}

/// Contents that this node has no more, since a directory is linked no more, and that perhaps nobody else has either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// A key with such a content. There may be more.
    pub key: String,
    /// What is known of the others.
    pub why: String,
}

/// How a directory is to be linked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkOptions {
    /// Changes made in it are not taken in.
    pub read_only: bool,
    /// Let deletions go that are held back because they are so many.
    pub allow_mass_delete: bool,
}

/// What is to be said of content that is put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The media type.
    pub media_type: Option<String>,
    /// Where the content came from.
    pub origin: Origin,
    /// Names and values of the user's.
    pub metadata: Vec<(String, String)>,
    /// Permission bits; `0o644` if there are none.
    pub mode: Option<u16>,
}

/// What was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// The version.
    pub dot: Dot,
    /// Its length in bytes.
    pub size: u64,
}

/// The current version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// What it is.
    pub kind: Kind,
    /// The length in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u16,
    /// Modification time, in nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
    /// Which version.
    pub dot: Dot,
    /// The media type.
    pub media_type: Option<String>,
    /// Where the content came from.
    pub origin: Origin,
    /// Names and values of the user's.
    pub metadata: Vec<(String, String)>,
    /// How many concurrent versions somebody may want to choose from, apart from this one.
    pub conflicts: usize,
    /// It is a deletion.
    pub deleted: bool,
}

/// A key with concurrent versions that nobody chose between yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key.
    pub key: String,
    /// What a reader gets.
    pub winner: Candidate,
    /// What lost, in the order in which it would have won.
    pub losers: Vec<Candidate>,
    /// How many more lost than are listed.
    pub more: usize,
}

/// One of the versions of a key that somebody may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The version.
    pub entry: Entry,
    /// The node that wrote it, if it is known.
    pub node: Option<NodeId>,
    /// That node's name, or how its author's begins.
    pub author: String,
    /// Where the linked directory shows it, if it does.
    pub path: Option<String>,
}

/// What a resolution came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The version that stands for all that were chosen from.
    pub dot: Dot,
    /// How many others it replaced.
    pub replaced: usize,
}

/// A place in a feed. Written `EPOCH:SEQUENCE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedCursor {
    /// Which feed; zero stands for whichever there is, at its beginning.
    pub epoch: u64,
    /// How many versions come before.
    pub sequence: u64,
}

impl FeedCursor {
    /// The beginning of any feed.
    pub const START: Self = Self { epoch: 0, sequence: 0 };
}

impl fmt::Display for FeedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.sequence)
    }
}

/// The text is no place in a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is written EPOCH:SEQUENCE, as `consort feed` prints it")]
pub struct ParseCursorError;

impl FromStr for FeedCursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let (epoch, sequence) = text.split_once(':').ok_or(ParseCursorError)?;
        let number = |text: &str| text.parse().map_err(|_| ParseCursorError);
        Ok(Self { epoch: number(epoch)?, sequence: number(sequence)? })
    }
}

/// One change of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place.
    pub cursor: FeedCursor,
    /// The version.
    pub entry: Entry,
}

/// What a wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Current versions that this node holds, deletions among them.
    pub versions: u64,
    /// Peers that were asked.
    pub peers: usize,
    /// No directory is linked here, so that contents may have to be fetched when they are read.
    pub metadata_only: bool,
    /// If so: members that are there and told that nothing is missing in their directories; none if nobody did and somebody
    /// has not told yet. With 0, it is not known whether contents can be had.
    pub complete_peers: Option<u64>,
}

/// What leaving the cluster came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The admin that ended the membership; none if this node was the only member.
    pub ended_by: Option<String>,
    /// It was looked at whether others have what this node has.
    pub checked: bool,
    /// The directories that were linked. They stay, with all that is in them.
    pub dirs: Vec<PathBuf>,
}

/// How a node stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// Who it is.
    pub node: NodeIdentity,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The other members.
    pub peers: Vec<PeerStatus>,
    /// The datasets.
    pub datasets: Vec<DatasetStatus>,
    /// Bytes at the sockets since the start.
    pub traffic: Traffic,
    /// How fast it may send and receive.
    pub limits: Limits,
    /// What became of datagrams since the start.
    pub datagrams: DatagramCounts,
}

/// How a peer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where it listens, as far as is known; of one that cannot be reached, where it was dialed last.
    pub addr: Option<SocketAddr>,
    /// Whether it is connected.
    pub connected: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Whether it is there, as the members find out together.
    pub presence: Presence,
    /// For how many seconds that has been so, as far as this node knows.
    pub for_seconds: u64,
    /// It is a neighbour: changes flow between it and this node.
    pub neighbour: bool,
    /// How many seconds ago it said what follows; none if this node has heard nothing of it since its start.
    pub told_seconds_ago: Option<u64>,
    /// How many neighbours it has.
    pub neighbours: u64,
    /// Bytes a second at its sockets.
    pub rate_bytes: u64,
    /// How it stands with each dataset that this node knows, too.
    pub datasets: Vec<PeerDataset>,
}

/// Whether a member is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Alive,
    /// It did not answer, and may object yet.
    Suspected,
    /// It does not answer.
    Gone,
    /// Nothing was heard of it since this node started.
    Unheard,
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspected => "suspected",
            Self::Gone => "gone",
            Self::Unheard => "unheard",
        })
    }
}

/// How another member stood with a dataset when it told so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerDataset {
    /// Its name.
    pub name: String,
    /// It held the same versions as this node does now, and its directory, if there is one, showed them. Never so of one that is
    /// not there: it may have gone on since.
    pub in_sync: bool,
    /// How many versions it held.
    pub versions: u64,
    /// By how many these are fewer than here.
    pub behind: u64,
    /// Entries that it knew of and that were not in its directory.
    pub pending: u64,
    /// A directory of its is linked.
    pub linked: bool,
}

/// How a dataset stands on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetStatus {
    /// Its name.
    pub name: String,
    /// Current versions, deletions among them.
    pub versions: u64,
    /// Deletions among them, which are remembered until every registered replica has heard of them.
    pub tombstones: u64,
    /// The node that has not, if any are remembered.
    pub tombstones_wait_for: Option<String>,
    /// What this node holds of it.
    pub digest: String,
    /// The directory that it is linked to.
    pub dir: Option<PathBuf>,
    /// Changes made in the directory are not taken in.
    pub read_only: bool,
    /// There is no directory, so that contents may have to be fetched when they are read.
    pub metadata_only: bool,
    /// Members that are there and told that nothing is missing in their directories; none if nobody did and somebody has not
    /// told yet. With 0 and no directory here, it is not known whether contents can be had.
    pub complete_peers: Option<u64>,
    /// How it stands as a whole.
    pub state: DatasetState,
    /// Why it is paused or degraded, and what to do.
    pub reason: Option<String>,
    /// Entries that are known and not yet in the directory.
    pub pending: u64,
    /// Bytes of them that are still to be written.
    pub pending_bytes: u64,
    /// Entries that a running scan has looked at.
    pub indexed: u64,
    /// About how many entries it has to look at, if that is known.
    pub to_index: Option<u64>,
    /// What readers are shown of concurrent versions.
    pub on_conflict: OnConflict,
    /// Versions that lost against concurrent ones and that nobody has dealt with.
    pub conflicts: u64,
    /// Of these, how many lie beside the winners in the directory. The others are only listed.
    pub conflict_copies: u64,
    /// Entries that cannot be taken in or shown, and why.
    pub problems: Vec<String>,
    /// Content for the directory that comes from peers, in bytes per second lately; zero if nothing can come, or it is not known
    /// yet.
    pub rate_bytes: u64,
    /// The links to peers.
    pub links: Vec<LinkStatus>,
}

/// How a dataset stands as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatasetState {
    /// This node holds all that its peers hold, and its directory, if it has one, shows it.
    InSync,
    /// Something is on its way.
    Syncing,
    /// The directory is being scanned.
    Scanning,
    /// No peer can be reached, or what is missing is with none of them.
    Waiting,
    /// Nothing goes on before somebody does something.
    Paused,
    /// It works, but not as it should.
    Degraded,
}

impl fmt::Display for DatasetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InSync => "in sync",
            Self::Syncing => "syncing",
            Self::Scanning => "scanning",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Degraded => "degraded",
        })
    }
}

/// How a link of a dataset to a peer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Who.
    pub peer: NodeId,
    /// Its name.
    pub name: String,
    /// How far the conversation has come.
    pub phase: String,
    /// How the two compare what they hold, while they do: by `symbols`, `ranges` or `fingerprints`.
    pub method: Option<String>,
    /// About how many versions the peer has not confirmed.
    pub behind: u64,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// All is well.
    Ok,
    /// It works, but look at it.
    Warning,
    /// It does not work.
    Problem,
}

/// Something that was found when everything was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub todo: Option<String>,
}
