//! Who this node is: its key, its certificate, and the cluster that it belongs to, as files in the
//! home directory. Keys are in PEM form, certificates in DER form. What is in a certificate is in
//! `certificate.rs`; how others' certificates are verified is in [`super::tls`].

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use consort_core::NodeId;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{certificate, durable};

const NODE_KEY: &str = "node.key";
const NODE_CERTIFICATE: &str = "node.crt";
const AUTHORITY_KEY: &str = "ca.key";
const AUTHORITY_CERTIFICATE: &str = "ca.crt";

/// The longest name of a node, in bytes; it is also a DNS label.
pub const MAX_NAME_BYTES: usize = 63;

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Receives datasets and serves their content.
    Reader,
    /// Also writes.
    Writer,
    /// Passes on what others wrote.
    Relay,
    /// Also changes the cluster: members, datasets, invitations.
    Admin,
}

impl Role {
    const ALL: [Self; 4] = [Self::Reader, Self::Writer, Self::Relay, Self::Admin];

    /// The number of the role on the wire and on disk; it never changes.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Reader => 1,
            Self::Writer => 2,
            Self::Relay => 3,
            Self::Admin => 4,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.code() == code)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Relay => "relay",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text names no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is one of reader, writer, relay, admin")]
pub struct ParseRoleError;

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(ParseRoleError)
    }
}

/// Who a member is, as its verified certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its id.
    pub node: NodeId,
    /// Its name, unique in the cluster when it joined.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The cluster that it belongs to.
    pub cluster: String,
}

/// This node's identity.
pub struct Identity {
    peer: PeerIdentity,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    authority_key: Option<KeyPair>,
}

impl Identity {
    /// Makes a new cluster, and this node its first member, an admin and the holder of the
    /// authority's key. `dir` is the `identity` directory of the home. An attempt that crashed
    /// halfway is started afresh.
    pub fn create_cluster(dir: &Path, name: &str) -> Result<Self, IdentityError> {
        require_name(name)?;
        require_new(dir)?;
        let authority_key = certificate::new_key()?;
        let authority = certificate::issue_authority(&authority_key)?;
        let key = certificate::new_key()?;
        let own = certificate::issue_member(&authority, &authority_key, &key, name, Role::Admin)?;
        make_dir(dir)?;
        write(&dir.join(AUTHORITY_KEY), authority_key.serialize_pem().as_bytes(), durable::SECRET)?;
        write(&dir.join(NODE_KEY), key.serialize_pem().as_bytes(), durable::SECRET)?;
        Self::complete(dir, &own, &authority)
    }

    /// Makes the key of a machine that is about to join, unless it has one, and says which node it will be.
    pub fn prepare(dir: &Path, name: &str) -> Result<NodeId, IdentityError> {
        let key = Self::prepare_join(dir, name)?;
        Ok(certificate::node_id(&key.subject_public_key_info()))
    }

    /// Reads the identity back, and checks that its parts belong together.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        if !dir.join(NODE_CERTIFICATE).exists() {
            return Err(IdentityError::NotInitialized { home: home(dir) });
        }
        let certificate = read_certificate(&dir.join(NODE_CERTIFICATE))?;
        let authority = read_certificate(&dir.join(AUTHORITY_CERTIFICATE))?;
        let key = read_key(&dir.join(NODE_KEY))?;
        let authority_key = match read_key(&dir.join(AUTHORITY_KEY)) {
            Ok(key) => Some(key),
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                None
            }
            Err(error) => return Err(error),
        };
        let damaged = |file: &str, what| IdentityError::Damaged { path: dir.join(file), what };
        if !certificate::signed_by(&certificate, &authority) {
            return Err(damaged(NODE_CERTIFICATE, "it was not signed by the authority in ca.crt"));
        }
        if certificate::public_key(&certificate) != Some(key.subject_public_key_info()) {
            return Err(damaged(NODE_KEY, "it does not belong to the certificate in node.crt"));
        }
        let of_authority = |key: &KeyPair| Some(key.subject_public_key_info());
        let expected = certificate::public_key(&authority);
        if authority_key.as_ref().is_some_and(|key| of_authority(key) != expected) {
            return Err(damaged(AUTHORITY_KEY, "it does not belong to the certificate in ca.crt"));
        }
        let peer = certificate::read_member(&certificate).ok_or_else(|| {
            damaged(NODE_CERTIFICATE, "it does not name a node, a role and a cluster")
        })?;
        Ok(Self { peer, key, certificate, authority, authority_key })
    }

    /// Id, name, role and cluster, as others see them.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.peer.node
    }

    /// Whether this node holds the cluster's authority, and so can let others in.
    pub fn is_authority(&self) -> bool {
        self.authority_key.is_some()
    }

    /// What a ticket says about the cluster's authority.
    pub fn authority_fingerprint(&self) -> [u8; 32] {
        certificate::fingerprint(&self.authority)
    }

    /// The key that a joining machine proves to have. It is kept from attempt to attempt, since an
    /// invitation that was used is bound to it.
    pub(super) fn prepare_join(dir: &Path, name: &str) -> Result<KeyPair, IdentityError> {
        require_name(name)?;
        require_new(dir)?;
        let path = dir.join(NODE_KEY);
        match read_key(&path) {
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            key => return key,
        }
        make_dir(dir)?;
        let key = certificate::new_key()?;
        write(&path, key.serialize_pem().as_bytes(), durable::SECRET)?;
        Ok(key)
    }

    /// Writes the certificates beside the key. The node's own certificate comes last: with it, the
    /// identity exists.
    pub(super) fn complete(
        dir: &Path,
        own: &CertificateDer<'_>,
        authority: &CertificateDer<'_>,
    ) -> Result<Self, IdentityError> {
        write(&dir.join(AUTHORITY_CERTIFICATE), authority, durable::PUBLIC)?;
        write(&dir.join(NODE_CERTIFICATE), own, durable::PUBLIC)?;
        Self::load(dir)
    }

    /// A certificate for another member; `None` where the authority's key is not.
    pub(super) fn issue(
        &self,
        public_key: &impl PublicKeyData,
        name: &str,
        role: Role,
    ) -> Option<Result<CertificateDer<'static>, rcgen::Error>> {
        let authority_key = self.authority_key.as_ref()?;
        Some(certificate::issue_member(&self.authority, authority_key, public_key, name, role))
    }

    /// Signs with this node's key (Ed25519). Whoever calls this begins `bytes` with what they are for.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.key.sign(bytes).expect("an Ed25519 key signs whatever it is given")
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// The chain that a peer is shown. The authority is in it for joiners, who know only its
    /// fingerprint.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.authority.clone()]
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.peer)
            .field("is_authority", &self.is_authority())
            .finish_non_exhaustive()
    }
}

/// Why there is no identity. Nothing was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The machine is not a member of a cluster yet.
    #[error("{} is not part of a cluster yet", home.display())]
    NotInitialized {
        /// The home directory.
        home: PathBuf,
    },
    /// The machine is a member already; a new identity would make its old writes a stranger's.
    #[error("{} is already part of a cluster", home.display())]
    AlreadyInitialized {
        /// The home directory.
        home: PathBuf,
    },
    /// The name cannot be a node's name.
    #[error("a node's name is 1 to 63 of a-z, 0-9 and -; {name:?} is not")]
    InvalidName {
        /// What was given.
        name: String,
    },
    /// A file is there, but cannot be what we wrote.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The system refused. An attempt to make an identity can be repeated.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cryptographic library could not make a key or a certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl IdentityError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotInitialized { .. } => {
                "begin a cluster with `consort init`, or become a member of one with `consort join TICKET`"
            }
            Self::AlreadyInitialized { .. } => "use another --home for a second node",
            Self::InvalidName { .. } => "choose another --name",
            Self::Damaged { .. } => "restore it from a backup, or join again with a new --home",
            Self::Io { .. } => "see that the user who runs the node may read and write the home",
            Self::Certificate(_) => "give the node another --name, or report this as a defect",
        }
    }
}

/// Whether a text can be a node's name: `[a-z0-9-]{1,63}`.
pub fn valid_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn require_name(name: &str) -> Result<(), IdentityError> {
    if valid_name(name) {
        Ok(())
    } else {
        Err(IdentityError::InvalidName { name: name.to_owned() })
    }
}

fn require_new(dir: &Path) -> Result<(), IdentityError> {
    if dir.join(NODE_CERTIFICATE).exists() {
        return Err(IdentityError::AlreadyInitialized { home: home(dir) });
    }
    Ok(())
}

fn home(dir: &Path) -> PathBuf {
    dir.parent().unwrap_or(dir).to_path_buf()
}

fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    durable::make_dir(dir).map_err(|source| IdentityError::Io { path: dir.to_path_buf(), source })
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), IdentityError> {
    durable::write(path, content, mode)
        .map_err(|source| IdentityError::Io { path: path.to_path_buf(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| IdentityError::Io { path: path.to_path_buf(), source })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let der = CertificateDer::from(read(path)?);
    if certificate::public_key(&der).is_none() {
        let what = "it is not a certificate in DER form";
        return Err(IdentityError::Damaged { path: path.to_path_buf(), what });
    }
    Ok(der)
}

fn read_key(path: &Path) -> Result<KeyPair, IdentityError> {
    let damaged = || IdentityError::Damaged {
        path: path.to_path_buf(),
        what: "it is not an Ed25519 key in PEM form",
    };
    let text = String::from_utf8(read(path)?).map_err(|_| damaged())?;
    let key = KeyPair::from_pem(&text).map_err(|_| damaged())?;
    if key.is_compatible(&rcgen::PKCS_ED25519) { Ok(key) } else { Err(damaged()) }
}

#[cfg(test)]
impl Identity {
    /// Another member of this node's cluster, which did not have to ask.
    pub(crate) fn let_in(&self, dir: &Path, name: &str, role: Role) -> Self {
        let key = Self::prepare_join(dir, name).unwrap();
        let own = self.issue(&key, name, role).unwrap().unwrap();
        Self::complete(dir, &own, &self.authority).unwrap()
    }

    /// The same member with another certificate.
    pub(crate) fn renewed(&self, member: &Self, name: &str, dir: &Path) -> Self {
        make_dir(dir).unwrap();
        write(&dir.join(NODE_KEY), member.key.serialize_pem().as_bytes(), durable::SECRET).unwrap();
        let own = self.issue(&member.key, name, member.peer.role).unwrap().unwrap();
        Self::complete(dir, &own, &self.authority).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_created_cluster_loads_back_with_its_name_role_and_id() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("identity");
        let created = Identity::create_cluster(&dir, "first").unwrap();
        let loaded = Identity::load(&dir).unwrap();
        assert_eq!(created.peer(), loaded.peer());
        assert_eq!((loaded.peer().name.as_str(), loaded.peer().role), ("first", Role::Admin));
        assert!(loaded.is_authority());
        assert_eq!(loaded.node().to_string().parse(), Ok(loaded.node()));
    }

    #[test]
    fn only_the_owner_may_read_the_keys() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("identity");
        Identity::create_cluster(&dir, "first").unwrap();
        for file in [NODE_KEY, AUTHORITY_KEY] {
            let mode = fs::metadata(dir.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_second_cluster_in_the_same_home_is_refused_and_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("identity");
        let first = Identity::create_cluster(&dir, "first").unwrap();
        let again = Identity::create_cluster(&dir, "second");
        assert!(
            matches!(again, Err(IdentityError::AlreadyInitialized { home: h }) if h == home.path())
        );
        assert_eq!(Identity::load(&dir).unwrap().peer(), first.peer());
    }

    #[test]
    fn a_home_without_identity_says_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let error = Identity::load(&home.path().join("identity")).unwrap_err();
        assert!(matches!(error, IdentityError::NotInitialized { .. }));
        assert!(error.hint().contains("consort init"), "{error}");
    }

    #[test]
    fn files_that_do_not_belong_together_or_are_cut_off_are_named() {
        let home = tempfile::tempdir().unwrap();
        let (dir, other) = (home.path().join("identity"), home.path().join("other"));
        Identity::create_cluster(&dir, "first").unwrap();
        Identity::create_cluster(&other, "first").unwrap();
        for file in [NODE_KEY, NODE_CERTIFICATE, AUTHORITY_KEY, AUTHORITY_CERTIFICATE] {
            let own = fs::read(dir.join(file)).unwrap();
            for bad in [fs::read(other.join(file)).unwrap(), own[..own.len() / 2].to_vec()] {
                fs::write(dir.join(file), bad).unwrap();
                let error = Identity::load(&dir).unwrap_err();
                assert!(matches!(error, IdentityError::Damaged { .. }), "{file}: {error}");
            }
            fs::write(dir.join(file), own).unwrap();
        }
        Identity::load(&dir).unwrap();
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(valid_name("a-1") && valid_name(&"x".repeat(63)));
        for bad in ["", "A", "a b", "ä", "a.b", &"x".repeat(64)] {
            assert!(!valid_name(bad), "{bad}");
        }
    }
}
