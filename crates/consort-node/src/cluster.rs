//! The cluster's own facts: its members and its datasets. They are a dataset too, with inline contents, which every
//! node has and only admins write; so they need no mechanism of their own. This file knows their keys and bytes.

use std::net::{IpAddr, SocketAddr};

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::model::merge;
use consort_core::store::{DatasetParameters, StoreError, View};
use consort_core::{Content, DatasetId, FingerprintKey, Key, NodeId};

use crate::net::Role;

/// The format of the values below. A later version may add fields behind those that this one knows.
const FORMAT: u8 = 1;

const MAX_NAME_BYTES: usize = 63;
const MAX_ADDRESSES: usize = 8;
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
    /// It is a member no more, although it has a certificate.
    pub(crate) revoked: bool,
    /// Where it said it could be reached when it joined.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// A dataset of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatasetFact {
    /// Its name, `[a-z0-9-]{3,63}`.
    pub(crate) name: String,
    /// Its identity and the secret of its fingerprints.
    pub(crate) parameters: DatasetParameters,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub(crate) created_ms: u64,
}

/// All facts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Ordered by node.
    pub(crate) members: Vec<MemberFact>,
    /// Ordered by name.
    pub(crate) datasets: Vec<DatasetFact>,
}

impl Facts {
    /// Reads the facts. What cannot be understood is left out, and said in the log.
    pub(crate) fn read(view: &impl View) -> Result<Self, StoreError> {
        let mut facts = Self::default();
        let mut after: Option<Key> = None;
        loop {
            let page = view.scan("", after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(facts) };
            after = Some(last.clone());
            for (key, held) in page {
                let versions: Vec<_> = held.into_iter().map(|stored| stored.version).collect();
                let Some(winner) = merge::winner(&versions) else { continue };
                let Content::Inline(bytes) = &winner.content else { continue };
                if let Err(error) = facts.add(&key, bytes) {
                    tracing::warn!(%key, %error, "a fact of the cluster cannot be understood");
                }
            }
        }
    }

    fn add(&mut self, key: &Key, bytes: &[u8]) -> Result<(), DecodeError> {
        if let Some(node) = key.strip_prefix(MEMBERS).and_then(|node| node.parse().ok()) {
            self.members.push(decode_member(node, bytes)?);
        } else if let Some(name) = key.strip_prefix(DATASETS) {
            self.datasets.push(decode_dataset(name, bytes)?);
        }
        Ok(())
    }

    /// The dataset of this name.
    pub(crate) fn dataset(&self, name: &str) -> Option<&DatasetFact> {
        self.datasets.iter().find(|dataset| dataset.name == name)
    }

    /// The member with this identity.
    pub(crate) fn member(&self, node: NodeId) -> Option<&MemberFact> {
        self.members.iter().find(|member| member.node == node)
    }
}

const MEMBERS: &str = "members/";
const DATASETS: &str = "datasets/";

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

/// Where a dataset's fact is.
pub(crate) fn dataset_key(name: &str) -> Key {
    Key::new(format!("{DATASETS}{name}")).expect("a dataset's name is a key")
}

/// The value of a member's fact.
pub(crate) fn encode_member(member: &MemberFact) -> Content {
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.u8(FORMAT);
    to.bytes(member.name.as_bytes());
    to.bytes(member.role.to_string().as_bytes());
    to.u8(u8::from(member.revoked));
    encode_addresses(&member.addresses, &mut to);
    Content::Inline(bytes.into())
}

fn decode_member(node: NodeId, bytes: &[u8]) -> Result<MemberFact, DecodeError> {
    let mut from = Reader::new(bytes);
    read_format(&mut from)?;
    let name = from.text(MAX_NAME_BYTES, "name")?.to_owned();
    let role = from.text(MAX_NAME_BYTES, "role")?;
    let role = role.parse().map_err(|_| DecodeError::Invalid { what: "role" })?;
    let revoked = from.u8("revocation")? != 0;
    let addresses = decode_addresses(&mut from)?;
    Ok(MemberFact { node, name, role, revoked, addresses })
}

/// The value of a dataset's fact.
pub(crate) fn encode_dataset(dataset: &DatasetFact) -> Content {
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.u8(FORMAT);
    to.raw(&dataset.parameters.id.0);
    to.raw(&dataset.parameters.fingerprint_key.0);
    to.u64(dataset.created_ms);
    Content::Inline(bytes.into())
}

fn decode_dataset(name: &str, bytes: &[u8]) -> Result<DatasetFact, DecodeError> {
    if !valid_dataset_name(name) {
        return Err(DecodeError::Invalid { what: "name" });
    }
    let mut from = Reader::new(bytes);
    read_format(&mut from)?;
    let id = DatasetId(from.array("dataset")?);
    let fingerprint_key = FingerprintKey(from.array("fingerprint key")?);
    let parameters = DatasetParameters { id, fingerprint_key };
    Ok(DatasetFact { name: name.to_owned(), parameters, created_ms: from.u64("time")? })
}

fn read_format(from: &mut Reader<'_>) -> Result<(), DecodeError> {
    if from.u8("format")? == FORMAT { Ok(()) } else { Err(DecodeError::Invalid { what: "format" }) }
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
    use super::*;

    #[test]
    fn facts_come_back_from_their_bytes() {
        let member = MemberFact {
            node: NodeId([5; 16]),
            name: "b".into(),
            role: Role::Writer,
            revoked: true,
            addresses: vec![
                "127.0.0.1:7440".parse().expect("an address"),
                "[::1]:9".parse().expect("one"),
            ],
        };
        let Content::Inline(bytes) = encode_member(&member) else { panic!("it is inline") };
        assert_eq!(decode_member(member.node, &bytes), Ok(member));

        let parameters = cluster_dataset(&[1; 32]);
        let dataset = DatasetFact { name: "photos".into(), parameters, created_ms: 7 };
        let Content::Inline(bytes) = encode_dataset(&dataset) else { panic!("it is inline") };
        assert_eq!(decode_dataset("photos", &bytes), Ok(dataset));
    }

    #[test]
    fn what_a_later_version_adds_does_no_harm() {
        let parameters = cluster_dataset(&[1; 32]);
        let dataset = DatasetFact { name: "photos".into(), parameters, created_ms: 7 };
        let Content::Inline(bytes) = encode_dataset(&dataset) else { panic!("it is inline") };
        let longer: Vec<u8> = bytes.iter().copied().chain([1, 2, 3]).collect();
        assert_eq!(decode_dataset("photos", &longer), Ok(dataset));
        assert!(decode_dataset("photos", &[9]).is_err());
    }

    #[test]
    fn names_of_datasets_are_bucket_names() {
        assert!(valid_dataset_name("photos-2026"));
        for name in ["ab", "Photos", "a_b", "a.b", "../x", &"x".repeat(64)] {
            assert!(!valid_dataset_name(name), "{name}");
        }
    }
}
