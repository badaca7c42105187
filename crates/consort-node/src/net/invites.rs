//! The authority's book of invitations: which secrets let a machine in, as what, until when, and
//! who has used them. Only hashes of the secrets are kept. Every change is on stable storage before
//! it is answered.
//!
//! A use is bound to the joiner's public key: a joiner that never got its answer asks again and
//! gets the same one.
//!
//! ```text
//!   magic (8), count (2), invitations, BLAKE3 hash of all that (32)
//!   invitation: hash of the secret (32), role (1), expires (8), uses allowed (4), count (4), hashes of keys (32 each)
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::identity::Role;
use super::wire::{Malformed, Reader};
use super::{durable, random};

/// The most invitations that are kept at a time.
pub const MAX_INVITES: usize = 1024;

/// The most uses of all kept invitations together; it bounds the file to about 2 MiB.
pub const MAX_TOTAL_USES: u32 = 1 << 16;

/// For how long an expired invitation is kept, in seconds, so that late users are told that it
/// expired.
const KEPT_EXPIRED_SECONDS: u64 = 7 * 24 * 3600;

const MAGIC: &[u8; 8] = b"cinvite1";

/// The book, and the file that it is in.
#[derive(Debug)]
pub struct Invites {
    path: PathBuf,
    invites: Vec<Invite>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Invite {
    secret: [u8; 32],
    role: Role,
    expires: u64,
    uses: u32,
    used_by: Vec<[u8; 32]>,
}

/// Why the book cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenInvitesError {
    /// The file is not what we wrote.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenInvitesError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Damaged { .. } => "delete it (open invitations are lost) and invite again",
            Self::Io { .. } => "see that the user who runs the node may read and write the home",
        }
    }
}

/// Why there is no new invitation. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CreateInviteError {
    /// It could never be used.
    #[error("an invitation needs at least one use and must expire in the future")]
    Useless,
    /// Too much is open already.
    #[error("too many invitations are open")]
    Full,
    /// The book could not be written.
    #[error("cannot record the invitation: {0}")]
    Io(#[from] io::Error),
}

impl CreateInviteError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Useless => "give it more time and more uses, such as --expires 24h --uses 1",
            Self::Full => "wait until some expire, or ask for fewer uses",
            Self::Io(_) => "see that the disk of the node's home has room and can be written",
        }
    }
}

/// Why a secret lets nobody in. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// Its time is over.
    #[error("the invitation has expired")]
    Expired,
    /// Others have used it up.
    #[error("the invitation was used already")]
    Used,
    /// There is no such invitation.
    #[error("there is no such invitation")]
    Unknown,
    /// The book could not be written, so the use does not count.
    #[error("cannot record the use of the invitation: {0}")]
    Io(#[from] io::Error),
}

impl Invites {
    /// Opens the book; a file that does not exist is an empty one.
    pub fn open(path: &Path) -> Result<Self, OpenInvitesError> {
        let invites = match fs::read(path) {
            Ok(bytes) => decode(&bytes)
                .map_err(|Malformed| OpenInvitesError::Damaged { path: path.to_path_buf() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(OpenInvitesError::Io { path: path.to_path_buf(), source }),
        };
        Ok(Self { path: path.to_path_buf(), invites })
    }

    /// A new secret that lets `uses` machines in as `role` until `expires` (seconds since 1970,
    /// like `now`).
    pub fn create(
        &mut self,
        role: Role,
        expires: u64,
        uses: u32,
        now: u64,
    ) -> Result<[u8; 16], CreateInviteError> {
        if uses == 0 || expires <= now {
            return Err(CreateInviteError::Useless);
        }
        let mut invites = self.invites.clone();
        invites.retain(|invite| now < invite.expires.saturating_add(KEPT_EXPIRED_SECONDS));
        let total = invites.iter().fold(uses, |sum, invite| sum.saturating_add(invite.uses));
        if invites.len() >= MAX_INVITES || total > MAX_TOTAL_USES {
            return Err(CreateInviteError::Full);
        }
        let secret = random();
        invites.push(Invite { secret: hash(&secret), role, expires, uses, used_by: Vec::new() });
        self.replace(invites)?;
        Ok(secret)
    }

    /// Uses an invitation for the joiner with this public key, and answers what it may be.
    pub fn redeem(
        &mut self,
        secret: &[u8; 16],
        public_key: &[u8],
        now: u64,
    ) -> Result<Role, RedeemError> {
        let (secret, key) = (hash(secret), hash(public_key));
        let at = self.invites.iter().position(|invite| invite.secret == secret);
        let at = at.ok_or(RedeemError::Unknown)?;
        let invite = &self.invites[at];
        let role = invite.role;
        if invite.used_by.contains(&key) {
            return Ok(role);
        }
        if now >= invite.expires {
            return Err(RedeemError::Expired);
        }
        if invite.used_by.len() >= invite.uses as usize {
            return Err(RedeemError::Used);
        }
        let mut invites = self.invites.clone();
        invites[at].used_by.push(key);
        self.replace(invites)?;
        Ok(role)
    }

    /// Memory changes only after the file has.
    fn replace(&mut self, invites: Vec<Invite>) -> io::Result<()> {
        durable::write(&self.path, &encode(&invites), durable::SECRET)?;
        self.invites = invites;
        Ok(())
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn encode(invites: &[Invite]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let count = u16::try_from(invites.len()).expect("create keeps the book below its bound");
    out.extend_from_slice(&count.to_le_bytes());
    for invite in invites {
        out.extend_from_slice(&invite.secret);
        out.push(invite.role.code());
        out.extend_from_slice(&invite.expires.to_le_bytes());
        out.extend_from_slice(&invite.uses.to_le_bytes());
        let used = u32::try_from(invite.used_by.len()).expect("redeem keeps this below the uses");
        out.extend_from_slice(&used.to_le_bytes());
        invite.used_by.iter().for_each(|key| out.extend_from_slice(key));
    }
    let sum = hash(&out);
    out.extend_from_slice(&sum);
    out
}

fn decode(bytes: &[u8]) -> Result<Vec<Invite>, Malformed> {
    let (body, sum) = bytes.split_last_chunk::<32>().ok_or(Malformed)?;
    let mut reader = Reader::new(body);
    if hash(body) != *sum || &reader.array()? != MAGIC {
        return Err(Malformed);
    }
    let invites = (0..reader.u16()?).map(|_| decode_one(&mut reader)).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(invites)
}

fn decode_one(reader: &mut Reader<'_>) -> Result<Invite, Malformed> {
    Ok(Invite {
        secret: reader.array()?,
        role: Role::from_code(reader.u8()?).ok_or(Malformed)?,
        expires: reader.u64()?,
        uses: reader.u32()?,
        used_by: (0..reader.u32()?).map(|_| reader.array()).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn book() -> (tempfile::TempDir, Invites) {
        let dir = tempfile::tempdir().unwrap();
        let invites = Invites::open(&dir.path().join("invites")).unwrap();
        (dir, invites)
    }

    #[test]
    fn an_invitation_lets_in_as_many_as_it_says_also_after_a_restart() {
        let (_dir, mut invites) = book();
        let secret = invites.create(Role::Relay, NOW + 10, 2, NOW).unwrap();
        assert_eq!(invites.redeem(&secret, b"a", NOW).unwrap(), Role::Relay);
        let mut reopened = Invites::open(&invites.path).unwrap();
        assert_eq!(reopened.invites, invites.invites);
        assert_eq!(reopened.redeem(&secret, b"b", NOW).unwrap(), Role::Relay);
        assert!(matches!(reopened.redeem(&secret, b"c", NOW), Err(RedeemError::Used)));
    }

    #[test]
    fn the_same_key_gets_the_same_answer_again_even_when_the_invitation_is_over() {
        let (_dir, mut invites) = book();
        let secret = invites.create(Role::Writer, NOW + 10, 1, NOW).unwrap();
        for now in [NOW, NOW, NOW + 20] {
            assert_eq!(invites.redeem(&secret, b"a", now).unwrap(), Role::Writer);
        }
        assert!(matches!(invites.redeem(&secret, b"b", NOW), Err(RedeemError::Used)));
    }

    #[test]
    fn expired_and_unknown_secrets_are_told_apart_until_the_book_is_pruned() {
        let (_dir, mut invites) = book();
        let secret = invites.create(Role::Reader, NOW + 10, 1, NOW).unwrap();
        assert!(matches!(invites.redeem(&secret, b"a", NOW + 10), Err(RedeemError::Expired)));
        assert!(matches!(invites.redeem(&[0; 16], b"a", NOW), Err(RedeemError::Unknown)));
        let later = NOW + 10 + KEPT_EXPIRED_SECONDS;
        invites.create(Role::Reader, later + 1, 1, later).unwrap();
        assert!(matches!(invites.redeem(&secret, b"a", later), Err(RedeemError::Unknown)));
    }

    #[test]
    fn the_book_is_bounded() {
        let (_dir, mut invites) = book();
        assert!(matches!(
            invites.create(Role::Reader, NOW, 1, NOW),
            Err(CreateInviteError::Useless)
        ));
        invites.create(Role::Reader, NOW + 1, MAX_TOTAL_USES, NOW).unwrap();
        assert!(matches!(
            invites.create(Role::Reader, NOW + 1, 1, NOW),
            Err(CreateInviteError::Full)
        ));
    }

    #[test]
    fn secrets_are_not_in_the_file() {
        let (_dir, mut invites) = book();
        let secret = invites.create(Role::Reader, NOW + 1, 1, NOW).unwrap();
        let bytes = fs::read(&invites.path).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }

    #[test]
    fn a_use_that_cannot_be_recorded_does_not_count() {
        let (dir, mut invites) = book();
        let secret = invites.create(Role::Reader, NOW + 1, 1, NOW).unwrap();
        let path = std::mem::replace(&mut invites.path, dir.path().join("gone/invites"));
        assert!(matches!(invites.redeem(&secret, b"a", NOW), Err(RedeemError::Io(_))));
        invites.path = path;
        assert!(invites.redeem(&secret, b"b", NOW).is_ok());
    }

    #[test]
    fn a_damaged_file_is_noticed_wherever_it_is_damaged() {
        let (_dir, mut invites) = book();
        invites.create(Role::Reader, NOW + 1, 1, NOW).unwrap();
        let good = fs::read(&invites.path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err() && decode(&good[..at]).is_err(), "{at}");
        }
    }
}
