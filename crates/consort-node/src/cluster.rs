//! The cluster's own facts: its members and its datasets. They are a dataset too, with inline contents, which every
//! node has and passes on, and only admins write; so they need no mechanism of their own but the seals by which an
//! admin's word is known (`cluster/seals.rs`). This file knows their keys and bytes.

pub(crate) mod seals;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::protocol::garbage::Registered;
use consort_core::store::{DatasetParameters, StoreError, View};
use consort_core::{
    AuthorId, Content, DatasetId, Dot, FingerprintKey, Key, NodeId, OnConflict, Timestamp, Version,
    WallTime,
};

use crate::net::{GossipKey, Role};

/// The formats of the values below. A later version may add fields behind those that this one knows.
const FORMAT: u8 = 1;
/// Before this one, it held its own revocation.
const MEMBER_FORMAT: u8 = 2;

const MAX_NAME_BYTES: usize = 63;
const MAX_ADDRESSES: usize = 8;
const MAX_POLICY_BYTES: usize = 63;
/// Rows of the cluster's dataset that are read at once.
const PAGE: usize = 256;

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberFact {
    /// Who.
    pub(crate) node: NodeId,
    /// Its name, unique in the cluster.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) role: Role,
    /// It is a member no more, although it has a certificate: a fact of its own, which is there also of a node whose
    /// own fact is not. Whether a node is let in is asked of [`Facts::revoked`].
    pub(crate) revoked: bool,
    /// Where it said it could be reached when it joined.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// A dataset of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatasetFact {
    /// Its name, `[a-z0-9-]{3,63}`. Of two that were made with one name at the same time, the loser gets a longer one.
    pub(crate) name: String,
    /// Where the fact is, and which version of it this is.
    pub(crate) key: Key,
    pub(crate) dot: Dot,
    /// Its identity and the secret of its fingerprints.
    pub(crate) parameters: DatasetParameters,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub(crate) created_ms: u64,
    /// What readers are shown of concurrent versions.
    pub(crate) on_conflict: OnConflict,
    /// The name of a policy that a later version of this program gave it, and for which the one above stands in.
    pub(crate) unknown_policy: Option<String>,
}

/// The keys for datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GossipFact {
    /// What members seal with.
    pub(crate) current: GossipKey,
    /// What they sealed with before, and what was chosen at the same time.
    pub(crate) others: Vec<GossipKey>,
    /// When the current one was written.
    pub(crate) written: WallTime,
}

/// How long a key for datagrams is accepted after another took its place. Whoever has not heard of that by then reaches
/// others by connections, until it has.
const ACCEPT_OLD_KEY_MS: u64 = 10 * 60 * 1000;

impl GossipFact {
    /// The keys that are good now; the first is to be used.
    pub(crate) fn keys(&self, now: WallTime) -> Vec<GossipKey> {
        let accepts = now.0 < self.written.0.saturating_add(ACCEPT_OLD_KEY_MS);
        let others = self.others.iter().filter(|_| accepts);
        std::iter::once(&self.current).chain(others).copied().collect()
    }
}

/// A replica that others wait for before they forget a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaFact {
    /// Who writes there.
    pub(crate) author: AuthorId,
    /// Whose it is.
    pub(crate) node: NodeId,
    /// It is not waited for, until it publishes something later than this.
    pub(crate) evicted: Option<Timestamp>,
}

/// All facts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Ordered by node.
    pub(crate) members: Vec<MemberFact>,
    /// Ordered by name.
    pub(crate) datasets: Vec<DatasetFact>,
    /// Ordered by author.
    pub(crate) replicas: Vec<ReplicaFact>,
    /// Those whose membership has ended.
    pub(crate) revoked: BTreeSet<NodeId>,
    /// None before the first contact.
    pub(crate) gossip: Option<GossipFact>,
    /// There are facts that cannot be understood, perhaps because a later version wrote them: a dataset that is not
    /// among those above may still be one.
    pub(crate) incomplete: bool,
}

impl Facts {
    /// Reads the facts. What cannot be understood is left out, and said in the log. Seals are not looked into again:
    /// nothing gets into the store that was not checked when it arrived, and whoever can change the store beneath a
    /// node can change the node as well.
    pub(crate) fn read(view: &impl View) -> Result<Self, StoreError> {
        let mut facts = Self::default();
        let mut after: Option<Key> = None;
        loop {
            let page = view.scan("", after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else {
                facts.datasets.sort_by(|a, b| a.name.cmp(&b.name));
                for member in &mut facts.members {
                    member.revoked = facts.revoked.contains(&member.node);
                }
                return Ok(facts);
            };
            after = Some(last.clone());
            for (key, held) in page {
                let versions: Vec<_> = held.into_iter().map(|stored| stored.version).collect();
                if let Err(error) = facts.add(&key, &versions) {
                    tracing::warn!(%key, %error, "a fact of the cluster cannot be understood");
                    facts.incomplete = true;
                }
            }
        }
    }

    fn add(&mut self, key: &Key, versions: &[Version]) -> Result<(), DecodeError> {
        let inline = |version: &Version| match &version.content {
            Content::Inline(bytes) => Some(bytes.clone()),
            _ => None,
        };
        let Some(winner) = OnConflict::KeepBoth.winner(versions) else { return Ok(()) };
        if let Some(node) = key.strip_prefix(MEMBERS).and_then(|node| node.parse().ok()) {
            let Some(bytes) = inline(winner) else { return Ok(()) };
            self.members.push(decode_member(node, &bytes)?);
        } else if let Some(node) = key.strip_prefix(REVOKED).and_then(|node| node.parse().ok()) {
            // It is for good, whatever stands there: nobody can take it back, the revoked admin's seal included.
            self.revoked.insert(node);
        } else if key.as_str() == GOSSIP {
            let Some(bytes) = inline(winner) else { return Ok(()) };
            let (current, mut others) = decode_gossip(&bytes)?;
            for version in versions.iter().filter(|version| version.dot != winner.dot) {
                if let Some(bytes) = inline(version) {
                    let (key, before) = decode_gossip(&bytes)?;
                    others.extend(std::iter::once(key).chain(before));
                }
            }
            others.truncate(MAX_OLD_KEYS);
            self.gossip = Some(GossipFact { current, others, written: winner.dot.time.wall() });
        } else if let Some(author) = key.strip_prefix(REPLICAS).and_then(|a| a.parse().ok()) {
            let Some(bytes) = inline(winner) else { return Ok(()) };
            self.replicas.push(decode_replica(author, &bytes)?);
        } else if let Some(name) = key.strip_prefix(DATASETS) {
            // Each of several that were made at the same time may hold what was acknowledged.
            for version in versions {
                let Some(bytes) = inline(version) else { continue };
                let mut dataset = decode_dataset(name, key, version.dot, &bytes)?;
                if version.dot != winner.dot {
                    dataset.name = name_of_loser(name, dataset.parameters.id);
                }
                self.datasets.push(dataset);
            }
        }
        Ok(())
    }

    /// The dataset of this name.
    pub(crate) fn dataset(&self, name: &str) -> Option<&DatasetFact> {
        self.datasets.iter().find(|dataset| dataset.name == name)
    }

    /// The replicas that are waited for before a deletion is forgotten: those of members, unless they are evicted.
    pub(crate) fn registered(&self) -> Vec<Registered> {
        let members = self.members.iter().filter(|member| !member.revoked);
        let roles: BTreeMap<NodeId, Role> = members.map(|m| (m.node, m.role)).collect();
        let replicas = self.replicas.iter().filter(|replica| replica.evicted.is_none());
        replicas
            .filter_map(|replica| {
                let writes = *roles.get(&replica.node)? != Role::Reader;
                Some(Registered { author: replica.author, writes })
            })
            .collect()
    }

    /// The members that have such replicas.
    pub(crate) fn waited_for(&self) -> BTreeSet<NodeId> {
        let members = self.members.iter().filter(|member| !member.revoked);
        let members: BTreeSet<NodeId> = members.map(|member| member.node).collect();
        let replicas = self.replicas.iter().filter(|replica| replica.evicted.is_none());
        replicas.map(|replica| replica.node).filter(|node| members.contains(node)).collect()
    }

    /// The member with this identity.
    pub(crate) fn member(&self, node: NodeId) -> Option<&MemberFact> {
        self.members.iter().find(|member| member.node == node)
    }

    /// The member whose store an author is.
    pub(crate) fn writer(&self, author: AuthorId) -> Option<&MemberFact> {
        self.members.iter().find(|member| begins_as(author, member.node))
    }
}

/// Whether an author is a node's store: it begins as the node's identity does.
pub(crate) fn begins_as(author: AuthorId, node: NodeId) -> bool {
    author.0[..8] == node.0[..8]
}

const MEMBERS: &str = "members/";
const DATASETS: &str = "datasets/";
const REVOKED: &str = "revoked/";
const GOSSIP: &str = "gossip/key";

/// Keys that are accepted beside the current one.
const MAX_OLD_KEYS: usize = 4;
const REPLICAS: &str = "replicas/";

/// The cluster's own dataset. Its identity and secret follow from the authority's fingerprint, which members have.
pub(crate) fn cluster_dataset(authority_fingerprint: &[u8; 32]) -> DatasetParameters {
    let key = blake3::derive_key(
        "consort 2026 fingerprints of the cluster's dataset",
        authority_fingerprint,
    );
    let id =
        blake3::derive_key("consort 2026 identity of the cluster's dataset", authority_fingerprint);
    let id = DatasetId(*id.first_chunk().expect("a key has 32 bytes"));
    DatasetParameters { id, fingerprint_key: FingerprintKey(key) }
}

/// Whether a dataset may have this name: it is an S3 bucket name as well.
pub(crate) fn valid_dataset_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (3..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

/// Where a member's fact is.
pub(crate) fn member_key(node: NodeId) -> Key {
    Key::new(format!("{MEMBERS}{node}")).expect("hexadecimal digits are a key")
}

/// Where the end of a membership is.
pub(crate) fn revocation_key(node: NodeId) -> Key {
    Key::new(format!("{REVOKED}{node}")).expect("hexadecimal digits are a key")
}

/// Where a replica's fact is.
pub(crate) fn replica_key(author: AuthorId) -> Key {
    Key::new(format!("{REPLICAS}{author}")).expect("hexadecimal digits are a key")
}

/// The value of a replica's fact.
pub(crate) fn encode_replica(replica: &ReplicaFact) -> Content {
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.u8(FORMAT);
    to.raw(&replica.node.0);
    to.u8(u8::from(replica.evicted.is_some()));
    to.u64(replica.evicted.unwrap_or_default().0);
    Content::Inline(bytes.into())
}

fn decode_replica(author: AuthorId, bytes: &[u8]) -> Result<ReplicaFact, DecodeError> {
    let mut from = Reader::new(bytes);
    read_format(&mut from, FORMAT)?;
    let node = NodeId(from.array("node")?);
    let is_evicted = from.u8("eviction")? != 0;
    let upto = Timestamp(from.u64("eviction")?);
    Ok(ReplicaFact { author, node, evicted: is_evicted.then_some(upto) })
}

/// Where a dataset's fact is.
pub(crate) fn dataset_key(name: &str) -> Key {
    Key::new(format!("{DATASETS}{name}")).expect("a dataset's name is a key")
}

/// Where the keys for datagrams are.
pub(crate) fn gossip_key() -> Key {
    Key::new(GOSSIP.to_owned()).expect("it is a key")
}

/// The value of that.
pub(crate) fn encode_gossip(current: GossipKey, last: Option<GossipKey>) -> Content {
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.u8(FORMAT);
    to.raw(&current.0);
    to.count(usize::from(last.is_some()));
    if let Some(last) = last {
        to.raw(&last.0);
    }
    Content::Inline(bytes.into())
}

fn decode_gossip(bytes: &[u8]) -> Result<(GossipKey, Vec<GossipKey>), DecodeError> {
    let mut from = Reader::new(bytes);
    read_format(&mut from, FORMAT)?;
    let current = GossipKey(from.array("key")?);
    let count = from.count(32, MAX_OLD_KEYS, "keys")?;
    let others = (0..count).map(|_| Ok(GossipKey(from.array("key")?))).collect::<Result<_, _>>()?;
    Ok((current, others))
}

/// The value of a revocation.
pub(crate) fn encode_revocation() -> Content {
    Content::Inline([FORMAT].into())
}

/// The value of a member's fact, without its revocation.
pub(crate) fn encode_member(member: &MemberFact) -> Content {
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.u8(MEMBER_FORMAT);
    to.bytes(member.name.as_bytes());
    to.bytes(member.role.to_string().as_bytes());
    encode_addresses(&member.addresses, &mut to);
    Content::Inline(bytes.into())
}

fn decode_member(node: NodeId, bytes: &[u8]) -> Result<MemberFact, DecodeError> {
    let mut from = Reader::new(bytes);
    read_format(&mut from, MEMBER_FORMAT)?;
    let name = from.text(MAX_NAME_BYTES, "name")?.to_owned();
    let role = from.text(MAX_NAME_BYTES, "role")?;
    let role = role.parse().map_err(|_| DecodeError::Invalid { what: "role" })?;
    let addresses = decode_addresses(&mut from)?;
    Ok(MemberFact { node, name, role, revoked: false, addresses })
}

/// The name of a dataset that lost its own to another: still a valid one, and the same on every node.
fn name_of_loser(name: &str, id: DatasetId) -> String {
    let [a, b, c, d, ..] = id.0;
    let short = &name[..name.len().min(MAX_NAME_BYTES - 9)];
    format!("{short}-{a:02x}{b:02x}{c:02x}{d:02x}")
}

/// The value of a dataset's fact.
pub(crate) fn encode_dataset(
    parameters: DatasetParameters,
    created_ms: u64,
    on_conflict: OnConflict,
) -> Content {
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.u8(FORMAT);
    to.raw(&parameters.id.0);
    to.raw(&parameters.fingerprint_key.0);
    to.u64(created_ms);
    to.bytes(on_conflict.name().as_bytes());
    Content::Inline(bytes.into())
}

fn decode_dataset(
    name: &str,
    key: &Key,
    dot: Dot,
    bytes: &[u8],
) -> Result<DatasetFact, DecodeError> {
    if !valid_dataset_name(name) {
        return Err(DecodeError::Invalid { what: "name" });
    }
    let mut from = Reader::new(bytes);
    read_format(&mut from, FORMAT)?;
    let id = DatasetId(from.array("dataset")?);
    let fingerprint_key = FingerprintKey(from.array("fingerprint key")?);
    let parameters = DatasetParameters { id, fingerprint_key };
    let created_ms = from.u64("time")?;
    // Facts were written without one before there was a choice.
    let policy = if from.is_empty() { "" } else { from.text(MAX_POLICY_BYTES, "policy")? };
    let known =
        if policy.is_empty() { Some(OnConflict::KeepBoth) } else { OnConflict::by_name(policy) };
    Ok(DatasetFact {
        name: name.to_owned(),
        key: key.clone(),
        dot,
        parameters,
        created_ms,
        // Of one that is not known here, that is the one which loses nothing.
        on_conflict: known.unwrap_or(OnConflict::KeepBoth),
        unknown_policy: known.is_none().then(|| policy.to_owned()),
    })
}

fn read_format(from: &mut Reader<'_>, known: u8) -> Result<(), DecodeError> {
    if from.u8("format")? == known { Ok(()) } else { Err(DecodeError::Invalid { what: "format" }) }
}

/// Appends addresses: a count, then each as a family, the IP and the port.
pub(crate) fn encode_addresses(addresses: &[SocketAddr], to: &mut Writer<'_>) {
    let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
    to.count(addresses.len());
    for address in addresses {
        match address.ip() {
            IpAddr::V4(ip) => {
                to.u8(4);
                to.raw(&ip.octets());
            }
            IpAddr::V6(ip) => {
                to.u8(6);
                to.raw(&ip.octets());
            }
        }
        to.raw(&address.port().to_le_bytes());
    }
}

/// Reads such addresses.
pub(crate) fn decode_addresses(from: &mut Reader<'_>) -> Result<Vec<SocketAddr>, DecodeError> {
    let count = from.count(7, MAX_ADDRESSES, "addresses")?;
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        let ip: IpAddr = match from.u8("address")? {
            4 => from.array::<4>("address")?.into(),
            6 => from.array::<16>("address")?.into(),
            _ => return Err(DecodeError::Invalid { what: "address" }),
        };
        let port = u16::from_le_bytes(from.array("port")?);
        addresses.push(SocketAddr::new(ip, port));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use consort_core::store::memory::MemoryStore;
    use consort_core::store::{Epoch, LocalWrite, Store};
    use consort_core::{Attributes, AuthorId, VersionVector, WallTime};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A member's content is an admin's, but what a later version wrote may be anything.
        #[test]
        fn any_bytes_are_a_fact_or_refused(
            bytes in prop::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..120),
        ) {
            let node = NodeId([5; 16]);
            if let Ok(member) = decode_member(node, &bytes) {
                let Content::Inline(again) = encode_member(&member) else { panic!("it is inline") };
                prop_assert_eq!(decode_member(node, &again), Ok(member));
            }
            if let Ok((key, others)) = decode_gossip(&bytes) {
                prop_assert!(others.len() <= MAX_OLD_KEYS);
                prop_assert_eq!(GossipKey(*bytes[1..].first_chunk().expect("it was read")), key);
            }
            let _ = decode_dataset("photos", &dataset_key("photos"), Dot::default(), &bytes);
        }
    }

    #[test]
    fn facts_come_back_from_their_bytes() {
        for evicted in [None, Some(Timestamp(0)), Some(Timestamp(7))] {
            let replica = ReplicaFact { author: AuthorId([3; 16]), node: NodeId([5; 16]), evicted };
            let Content::Inline(bytes) = encode_replica(&replica) else { panic!("it is inline") };
            assert_eq!(decode_replica(replica.author, &bytes), Ok(replica));
        }
        let member = MemberFact {
            node: NodeId([5; 16]),
            name: "b".into(),
            role: Role::Writer,
            revoked: false,
            addresses: vec![
                "127.0.0.1:7440".parse().expect("an address"),
                "[::1]:9".parse().expect("one"),
            ],
        };
        let Content::Inline(bytes) = encode_member(&member) else { panic!("it is inline") };
        assert_eq!(decode_member(member.node, &bytes), Ok(member));

        let parameters = cluster_dataset(&[1; 32]);
        let (key, dot) = (dataset_key("photos"), Dot::default());
        let content = encode_dataset(parameters, 7, OnConflict::PreferReal);
        let Content::Inline(bytes) = content else { panic!("it is inline") };
        let dataset = DatasetFact {
            name: "photos".to_owned(),
            key: key.clone(),
            dot,
            parameters,
            created_ms: 7,
            on_conflict: OnConflict::PreferReal,
            unknown_policy: None,
        };
        assert_eq!(decode_dataset("photos", &key, dot, &bytes), Ok(dataset.clone()));
        // What a later version adds does no harm.
        let longer: Vec<u8> = bytes.iter().copied().chain([1, 2, 3]).collect();
        assert_eq!(decode_dataset("photos", &key, dot, &longer), Ok(dataset.clone()));
        // Before there was a choice, facts ended here.
        let shorter = &bytes[..bytes.len() - 1 - OnConflict::PreferReal.name().len()];
        let dataset = DatasetFact { on_conflict: OnConflict::KeepBoth, ..dataset };
        assert_eq!(decode_dataset("photos", &key, dot, shorter), Ok(dataset.clone()));
        // A policy that is not known here loses nothing, and is told.
        let later = [shorter, b"\x0btoss-a-coin"].concat();
        let unknown_policy = Some("toss-a-coin".to_owned());
        let dataset = DatasetFact { unknown_policy, ..dataset };
        assert_eq!(decode_dataset("photos", &key, dot, &later), Ok(dataset));
        assert!(decode_dataset("photos", &key, dot, &[9]).is_err());
    }

    /// Versions of one key that do not know of each other.
    fn concurrent(key: &Key, contents: Vec<Content>) -> Facts {
        let version = |(n, content)| Version {
            dot: Dot { author: AuthorId([n; 16]), ..Dot::default() },
            seen: VersionVector::default(),
            content,
            attributes: Attributes::default(),
        };
        let versions: Vec<Version> = (1..).zip(contents).map(version).collect();
        let mut facts = Facts::default();
        facts.add(key, &versions).expect("they are understood");
        facts
    }

    #[test]
    fn datasets_that_were_made_with_one_name_at_the_same_time_are_both_there() {
        let name = "x".repeat(63);
        let dataset =
            |n| encode_dataset(cluster_dataset(&[n; 32]), u64::from(n), OnConflict::KeepBoth);
        let made = [1, 2].map(dataset).to_vec();
        let facts = concurrent(&dataset_key(&name), made);
        assert_eq!(facts.datasets.len(), 2);
        assert!(facts.dataset(&name).is_some());
        assert!(facts.datasets.iter().all(|dataset| valid_dataset_name(&dataset.name)));
        assert_ne!(facts.datasets[0].name, facts.datasets[1].name);
    }

    #[test]
    fn of_two_keys_that_were_written_at_the_same_time_all_seal_with_the_same_and_accept_both() {
        let (a, b, old) = (GossipKey([1; 32]), GossipKey([2; 32]), GossipKey([3; 32]));
        let written = [a, b].map(|key| encode_gossip(key, Some(old)));
        let [one, other] = [written.clone(), [written[1].clone(), written[0].clone()]]
            .map(|order| concurrent(&gossip_key(), order.to_vec()).gossip.expect("there is one"));
        for fact in [&one, &other] {
            let keys = fact.keys(WallTime(0));
            assert!([a, b, old].iter().all(|key| keys.contains(key)), "{keys:?}");
            assert_eq!(fact.keys(WallTime(u64::MAX)), [fact.current]);
        }
    }

    #[test]
    fn a_revocation_is_for_good() {
        let node = NodeId([5; 16]);
        let mut store = MemoryStore::new(AuthorId([1; 16]), Epoch(1));
        let cluster = cluster_dataset(&[1; 32]);
        store.open_dataset(cluster).expect("opens");
        let other = NodeId([6; 16]);
        let name = "b".into();
        let member =
            MemberFact { node, name, role: Role::Writer, revoked: false, addresses: Vec::new() };
        let mut write = |key, content| {
            let writes = vec![LocalWrite::new(key, content)];
            store.apply_local(cluster.id, writes, WallTime(1)).expect("applies");
            Facts::read(&store.view(cluster.id).expect("it is open")).expect("reads")
        };
        let is_revoked = |facts: &Facts| facts.member(node).expect("a member").revoked;
        assert!(!is_revoked(&write(member_key(node), encode_member(&member))));
        assert!(is_revoked(&write(revocation_key(node), encode_revocation())));
        assert!(is_revoked(&write(member_key(node), encode_member(&member))));
        assert!(is_revoked(&write(revocation_key(node), Content::Deleted)));
        // Of a node whose own fact has not come, or was taken away, as well.
        assert!(write(revocation_key(other), encode_revocation()).revoked.contains(&other));
        let facts = write(member_key(node), Content::Deleted);
        assert!(facts.member(node).is_none() && facts.revoked.contains(&node));
    }

    #[test]
    fn names_of_datasets_are_bucket_names() {
        assert!(valid_dataset_name("photos-2026"));
        for name in ["ab", "Photos", "a_b", "a.b", "../x", &"x".repeat(64)] {
            assert!(!valid_dataset_name(name), "{name}");
        }
    }
}
