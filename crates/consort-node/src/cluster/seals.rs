//! Seals: why a fact of the cluster is believed, whoever brings it. Each version of a fact carries the certificate of
//! the admin that wrote it, and that admin's signature over everything else in it. Here seals are made and checked;
//! what facts there are and what they mean stands in `cluster.rs`, why seals are enough in decision 0010.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, ParsedPublicKey};
use consort_core::model::canonical;
use consort_core::store::{Sealer, StoreError, View};
use consort_core::{DatasetId, Entry, Key};
use rustls::pki_types::CertificateDer;

use crate::net::{Identity, Role, issued_to};

/// What a signature begins with, so that it is never taken for one over something else.
const PURPOSE: &[u8] = b"consort 2026 seal of a cluster's fact";
const SIGNATURE_BYTES: usize = 64;
/// Admins whose certificates are remembered as verified: a cluster has a few.
const MAX_ADMINS: usize = 64;

/// What seals the facts that this node writes; only an admin has it.
pub(crate) fn sealer(dataset: DatasetId, identity: &Arc<Identity>) -> Option<Arc<dyn Sealer>> {
    let identity = Arc::clone(identity);
    (identity.peer().role == Role::Admin).then(|| Arc::new(Admin { dataset, identity }) as _)
}

#[derive(Debug)]
struct Admin {
    dataset: DatasetId,
    identity: Arc<Identity>,
}

impl Sealer for Admin {
    fn seal(&self, entry: &Entry) -> Box<[u8]> {
        let certificate = self.identity.certificate();
        let signature = self.identity.sign(&signed_bytes(self.dataset, certificate, entry));
        [&signature, certificate.as_ref()].concat().into()
    }
}

/// Checks seals, and remembers the admins that it has met.
#[derive(Debug)]
pub(crate) struct Seals {
    dataset: DatasetId,
    authority: CertificateDer<'static>,
    /// Their public keys, by their certificates.
    admins: BTreeMap<Box<[u8]>, ParsedPublicKey>,
}

impl Seals {
    /// Seals of facts in `dataset`, by admins that `authority` made.
    pub(crate) fn new(dataset: DatasetId, authority: CertificateDer<'static>) -> Self {
        Self { dataset, authority, admins: BTreeMap::new() }
    }

    /// Whether each of these is an admin's word. What `view` holds was checked when it came, or is this node's own.
    pub(crate) fn check(&mut self, entries: &[Entry], view: &impl View) -> Result<(), CheckError> {
        for entry in entries {
            let held = view.siblings(&entry.key)?;
            if held.iter().all(|stored| stored.version != entry.version) {
                let refused = |cause| CheckError::Refused { key: entry.key.clone(), cause };
                self.check_seal(entry).map_err(refused)?;
            }
        }
        Ok(())
    }

    fn check_seal(&mut self, entry: &Entry) -> Result<(), Cause> {
        let mut unsealed = entry.clone();
        let seal = unsealed.version.attributes.seal.take().ok_or(Cause::Missing)?;
        let (signature, certificate) =
            seal.split_at_checked(SIGNATURE_BYTES).ok_or(Cause::Unreadable)?;
        let signed = signed_bytes(self.dataset, certificate, &unsealed);
        let admin = self.admin(certificate)?;
        admin.verify_sig(&signed, signature).map_err(|_| Cause::Altered)
    }

    /// The key of the admin whose certificate this is.
    fn admin(&mut self, certificate: &[u8]) -> Result<&ParsedPublicKey, Cause> {
        if !self.admins.contains_key(certificate) {
            let (member, key) = issued_to(&CertificateDer::from(certificate), &self.authority)
                .ok_or(Cause::Stranger)?;
            if member.role != Role::Admin {
                return Err(Cause::NotAnAdmin { name: member.name, role: member.role });
            }
            let key = ParsedPublicKey::new(&ED25519, &key).map_err(|_| Cause::Unreadable)?;
            if MAX_ADMINS <= self.admins.len() {
                self.admins.clear();
            }
            self.admins.insert(certificate.into(), key);
        }
        Ok(&self.admins[certificate])
    }
}

/// What an admin signs. The certificate is part of it, so that nobody can exchange it for another one with the same key
/// and so make two of one version.
fn signed_bytes(dataset: DatasetId, certificate: &[u8], unsealed: &Entry) -> Vec<u8> {
    let mut bytes = PURPOSE.to_vec();
    bytes.extend_from_slice(&dataset.0);
    bytes.extend_from_slice(blake3::hash(certificate).as_bytes());
    canonical::encode_entry(unsealed, &mut bytes);
    bytes
}

/// Why entries are not taken for facts. Nothing was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    /// The fault of whoever sent it.
    #[error("it sent a fact of the cluster ({key}) {cause}")]
    Refused {
        /// Where the fact would be.
        key: Key,
        /// What is wrong with it.
        cause: Cause,
    },
    /// Our store's.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is wrong with a fact that somebody sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    /// It has no seal.
    #[error("that no admin has sealed")]
    Missing,
    /// Its seal is not a signature and a certificate with a key for such.
    #[error("with a seal that cannot be read")]
    Unreadable,
    /// The certificate is of no member.
    #[error("with the seal of somebody whom this cluster's authority has not made a member")]
    Stranger,
    /// The certificate is of a member, but not of an admin.
    #[error("that was sealed by {name}, which is a {role}: only admins change the cluster")]
    NotAnAdmin {
        /// Whose seal it is.
        name: String,
        /// What that one is.
        role: Role,
    },
    /// The signature is of something else.
    #[error("that is not what its admin has sealed")]
    Altered,
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use consort_core::encoding::Reader;
    use consort_core::limits::MAX_SEAL_BYTES;
    use consort_core::model::Commit;
    use consort_core::store::memory::{MemoryStore, MemoryView};
    use consort_core::store::{Epoch, LocalWrite, Store};
    use consort_core::{AuthorId, Content, DatasetId, NodeId, WallTime};
    use tempfile::TempDir;

    use super::*;
    use crate::cluster::cluster_dataset;

    /// A cluster's authority, and where its members' identities are.
    struct World {
        dir: TempDir,
        authority: Arc<Identity>,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let authority =
                Identity::create_cluster(&dir.path().join("a"), "a").expect("it is new");
            Self { dir, authority: Arc::new(authority) }
        }

        fn place(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn member(&self, name: &str, role: Role) -> Arc<Identity> {
            Arc::new(self.authority.let_in(&self.place(name), name, role))
        }

        fn dataset(&self) -> DatasetId {
            cluster_dataset(&self.authority.authority_fingerprint()).id
        }

        fn seals(&self) -> Seals {
            Seals::new(self.dataset(), self.authority.authority().clone())
        }

        fn store(&self) -> MemoryStore {
            let mut store = MemoryStore::new(AuthorId([1; 16]), Epoch(1));
            let cluster = cluster_dataset(&self.authority.authority_fingerprint());
            store.open_dataset(cluster).expect("opens");
            store
        }

        /// Some fact that a member writes, with its seal whatever its role.
        fn fact(&self, by: &Arc<Identity>) -> Entry {
            let (dataset, identity) = (self.dataset(), Arc::clone(by));
            let sealer: Arc<dyn Sealer> = Arc::new(Admin { dataset, identity });
            let write =
                |n| LocalWrite::new(Key::new("a/key").expect("a key"), Content::Inline([n].into()));
            let mut store = self.store();
            // So that it has seen something.
            for n in 0..2 {
                let (writes, sealer) = ([write(n)].into(), Some(Arc::clone(&sealer)));
                store.apply_sealed(dataset, writes, WallTime(7), sealer).expect("applies");
            }
            let row = store.view(dataset).expect("opened").feed(Default::default(), usize::MAX);
            row.expect("reads").remove(0).entry
        }

        fn check(&self, entry: &Entry) -> Result<(), Cause> {
            check(&mut self.seals(), entry, &self.store().view(self.dataset()).expect("opened"))
        }
    }

    fn check(seals: &mut Seals, entry: &Entry, view: &MemoryView) -> Result<(), Cause> {
        match seals.check(std::slice::from_ref(entry), view) {
            Ok(()) => Ok(()),
            Err(CheckError::Refused { key, cause }) => {
                assert_eq!(key, entry.key);
                Err(cause)
            }
            Err(CheckError::Store(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn an_admins_word_is_believed_and_nobody_elses() {
        let world = World::new();
        let (first, other) = (world.fact(&world.authority), world.member("b", Role::Admin));
        assert_eq!(world.check(&first), Ok(()));
        assert_eq!(world.check(&world.fact(&other)), Ok(()));
        for role in [Role::Reader, Role::Writer, Role::Relay] {
            let name = role.to_string();
            let fact = world.fact(&world.member(&name, role));
            assert_eq!(world.check(&fact), Err(Cause::NotAnAdmin { name, role }));
        }
        let stranger = World::new();
        assert_eq!(world.check(&world.fact(&stranger.authority)), Err(Cause::Stranger));
        assert_eq!(world.check(&stranger.fact(&stranger.authority)), Err(Cause::Stranger));

        let mut bare = first.clone();
        bare.version.attributes.seal = None;
        assert_eq!(world.check(&bare), Err(Cause::Missing));
        bare.version.attributes.seal = Some([0; SIGNATURE_BYTES - 1].into());
        assert_eq!(world.check(&bare), Err(Cause::Unreadable));
    }

    #[test]
    fn a_seal_is_for_one_cluster_and_one_certificate() {
        let world = World::new();
        let admin = world.member("b", Role::Admin);
        let fact = world.fact(&admin);
        let mut elsewhere = Seals::new(DatasetId([9; 16]), world.authority.authority().clone());
        let view = world.store().view(world.dataset()).expect("opened");
        assert_eq!(check(&mut elsewhere, &fact, &view), Err(Cause::Altered));

        // These certificates are good as well, the first even for the same key.
        let signature = &fact.version.attributes.seal.as_ref().expect("sealed")[..SIGNATURE_BYTES];
        let renewed = world.authority.renewed(&admin, "b2", &world.place("b2"));
        for other in [&renewed, &world.member("c", Role::Admin)] {
            let seal = [signature, other.certificate().as_ref()].concat();
            let mut exchanged = fact.clone();
            exchanged.version.attributes.seal = Some(seal.into());
            assert_eq!(world.check(&exchanged), Err(Cause::Altered));
        }
    }

    #[test]
    fn what_is_held_is_not_asked_for_its_seal() {
        let world = World::new();
        let mut held = world.fact(&world.authority);
        held.version.attributes.seal = None;
        let mut store = world.store();
        let commit = Commit { entries: [held.clone()].into() };
        store.apply_remote(world.dataset(), NodeId([2; 16]), commit, None).expect("applies");
        let view = store.view(world.dataset()).expect("opened");
        assert_eq!(check(&mut world.seals(), &held, &view), Ok(()));
        held.version.attributes.mode = 0o600;
        assert_eq!(check(&mut world.seals(), &held, &view), Err(Cause::Missing));
    }

    #[test]
    fn the_longest_certificate_fits_into_a_seal() {
        let world = World::new();
        let fact = world.fact(&world.member(&"x".repeat(63), Role::Admin));
        let seal = fact.version.attributes.seal.expect("sealed");
        assert!(seal.len() <= MAX_SEAL_BYTES, "{} bytes", seal.len());
    }

    #[test]
    fn only_admins_have_what_it_takes_to_seal() {
        let world = World::new();
        assert!(sealer(world.dataset(), &world.authority).is_some());
        assert!(sealer(world.dataset(), &world.member("b", Role::Writer)).is_none());
    }

    #[test]
    fn any_number_of_admins_is_checked_in_bounded_memory() {
        let world = World::new();
        let (mut seals, store) = (world.seals(), world.store());
        let view = store.view(world.dataset()).expect("opened");
        for n in 0..MAX_ADMINS + 2 {
            let fact = world.fact(&world.member(&format!("admin-{n}"), Role::Admin));
            assert_eq!(check(&mut seals, &fact, &view), Ok(()));
            assert!(seals.admins.len() <= MAX_ADMINS);
        }
    }

    #[test]
    fn whatever_is_changed_in_a_fact_shows() {
        let world = World::new();
        let fact = world.fact(&world.authority);
        let (mut seals, store) = (world.seals(), world.store());
        let view = store.view(world.dataset()).expect("opened");
        let mut bytes = Vec::new();
        canonical::encode_entry(&fact, &mut bytes);
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[place] ^= 1 << bit;
                let Ok(entry) = canonical::decode_entry(&mut Reader::new(&changed)) else {
                    continue;
                };
                assert!(check(&mut seals, &entry, &view).is_err(), "bit {bit} of byte {place}");
            }
        }
    }
}
