//! How a machine becomes a member: it shows a ticket's secret and proves its key; the authority
//! records it, and answers with a certificate. One question, one answer, over a connection on which
//! only the server is authenticated.
//!
//! The joiner keeps its key from attempt to attempt, and the use of an invitation is bound to the
//! key, so an answer that got lost is asked for again. A certificate is signed before the answer,
//! but a member is recorded first.
//!
//! ```text
//!   request: version (2), secret (16), certificate signing request (2 + n), name (2 + n), listen address (optional)
//!   answer:  0, reason (1)   or   1, certificate (2 + n), authority's certificate (2 + n), welcome (2 + n)
//! ```

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{CertificateParams, CertificateSigningRequestParams, PublicKeyData};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::identity::{Identity, IdentityError, MAX_NAME_BYTES, NodeId, Role, valid_name};
use super::invites::{CreateInviteError, Invites, RedeemError};
use super::ticket::{MAX_TICKET_ADDRESSES, Ticket};
use super::wire::{Malformed, Reader, put_address, put_bytes, put_option};
use super::{certificate, lock, socket, tls, unix_now};

/// The largest message of this conversation, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// The largest certificate or signing request; ours have a few hundred bytes.
const MAX_CERTIFICATE_BYTES: usize = 4 << 10;

/// The largest blob with which a new member can be welcomed, in bytes.
pub const MAX_WELCOME_BYTES: usize = 48 << 10;

const _: () = assert!(MAX_WELCOME_BYTES + 2 * MAX_CERTIFICATE_BYTES + 16 < MAX_MESSAGE_BYTES);

const VERSION: u16 = 1;

/// How long one address of a ticket is tried. The authority writes to its disk before it answers.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long connecting to it may take. Most addresses of a ticket with several lead nowhere from here.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A machine that is about to become a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joiner {
    /// Its id.
    pub node: NodeId,
    /// The name that it asks for; it is well-formed, but may be taken.
    pub name: String,
    /// What its invitation allows it.
    pub role: Role,
    /// Where it says it will listen.
    pub listen: Option<SocketAddr>,
}

/// Why the authority does not let a machine in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// The invitation's time is over.
    #[error("the ticket has expired")]
    Expired,
    /// The invitation is used up.
    #[error("the ticket was used already")]
    Used,
    /// The authority knows no such invitation.
    #[error("the cluster does not know this ticket")]
    Unknown,
    /// Another member has the name.
    #[error("another member has this name")]
    NameTaken,
    /// The name is not `[a-z0-9-]{1,63}`.
    #[error("a node's name is 1 to 63 of a-z, 0-9 and -")]
    NameInvalid,
    /// The node that was asked cannot sign certificates.
    #[error("the node that was asked cannot let others in")]
    NotAuthority,
    /// The request could not be understood or its signature is wrong.
    #[error("the request was not understood")]
    Malformed,
    /// The machine was a member, and its membership was ended.
    #[error("the membership of this node was revoked")]
    Revoked,
    /// The authority could not record the new member.
    #[error("the cluster cannot record a new member now")]
    Failed,
}

impl JoinRefusal {
    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Expired | Self::Used | Self::Unknown => "ask for a new one (`consort invite`)",
            Self::NameTaken | Self::NameInvalid => "join with another --name",
            Self::NotAuthority => "use a ticket of the cluster's first node",
            Self::Malformed => "use the same version of consort on both machines",
            Self::Revoked => "ask for a new ticket, and join with a new --home",
            Self::Failed => "look at the log of the cluster's first node, and try again",
        }
    }

    const ALL: [Self; 9] = [
        Self::Expired,
        Self::Used,
        Self::Unknown,
        Self::NameTaken,
        Self::NameInvalid,
        Self::NotAuthority,
        Self::Malformed,
        Self::Failed,
        Self::Revoked,
    ];

    fn code(self) -> u8 {
        match self {
            Self::Expired => 1,
            Self::Used => 2,
            Self::Unknown => 3,
            Self::NameTaken => 4,
            Self::NameInvalid => 5,
            Self::NotAuthority => 6,
            Self::Malformed => 7,
            Self::Failed => 8,
            Self::Revoked => 9,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

/// Records a new member durably, and says with what it is welcomed (at most [`MAX_WELCOME_BYTES`]).
/// May block. It is called again for a member that lost its answer, and must then do the same.
pub type OnJoin = dyn Fn(Joiner) -> Result<Vec<u8>, JoinRefusal> + Send + Sync;

/// Where the authority invites and lets in.
pub struct JoinDesk {
    identity: Arc<Identity>,
    invites: Mutex<Invites>,
    on_join: Box<OnJoin>,
}

impl JoinDesk {
    /// `on_join` is called before a joiner is answered.
    pub fn new(identity: Arc<Identity>, invites: Invites, on_join: Box<OnJoin>) -> Self {
        Self { identity, invites: Mutex::new(invites), on_join }
    }

    /// A ticket with the first [`MAX_TICKET_ADDRESSES`] of `addresses`, at which this node can be
    /// reached. Writes to the disk.
    pub fn invite(
        &self,
        addresses: &[SocketAddr],
        role: Role,
        expires: u64,
        uses: u32,
    ) -> Result<Ticket, CreateInviteError> {
        let secret = lock(&self.invites).create(role, expires, uses, unix_now())?;
        Ok(Ticket {
            addresses: addresses[..addresses.len().min(MAX_TICKET_ADDRESSES)].to_vec(),
            ca_fingerprint: self.identity.authority_fingerprint(),
            secret,
            role,
            expires,
        })
    }

    fn admit(&self, request: &[u8], seen: IpAddr) -> Result<Admission, JoinRefusal> {
        let request = Request::decode(request).map_err(|Malformed| JoinRefusal::Malformed)?;
        if !self.identity.is_authority() {
            return Err(JoinRefusal::NotAuthority);
        }
        if !valid_name(&request.name) {
            return Err(JoinRefusal::NameInvalid);
        }
        // Parsing verifies the request's signature, so the joiner has the key that it names.
        let csr = CertificateSigningRequestDer::from(request.csr);
        let csr =
            CertificateSigningRequestParams::from_der(&csr).map_err(|_| JoinRefusal::Malformed)?;
        if csr.public_key.algorithm() != &rcgen::PKCS_ED25519 {
            return Err(JoinRefusal::Malformed);
        }
        let public_key = csr.public_key.subject_public_key_info();
        let role = lock(&self.invites).redeem(&request.secret, &public_key, unix_now());
        let role = role.map_err(|error| match error {
            RedeemError::Expired => JoinRefusal::Expired,
            RedeemError::Used => JoinRefusal::Used,
            RedeemError::Unknown => JoinRefusal::Unknown,
            RedeemError::Io(error) => failed(&error),
        })?;
        let certificate = self
            .identity
            .issue(&csr.public_key, &request.name, role)
            .ok_or(JoinRefusal::NotAuthority)?
            .map_err(|error| failed(&error))?;
        let welcome = (self.on_join)(Joiner {
            node: certificate::node_id(&public_key),
            name: request.name,
            role,
            listen: request.listen.map(|claimed| socket::reachable(claimed, seen)),
        })?;
        if welcome.len() > MAX_WELCOME_BYTES {
            return Err(failed(&"the welcome is too long"));
        }
        Ok(Admission {
            certificate: certificate.to_vec(),
            authority: self.identity.authority().to_vec(),
            welcome,
        })
    }
}

impl fmt::Debug for JoinDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinDesk").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn failed(error: &dyn fmt::Display) -> JoinRefusal {
    tracing::error!(%error, "cannot record a new member");
    JoinRefusal::Failed
}

/// Answers one joiner; without a desk, with a refusal. An error is the connection's.
pub(super) async fn serve(
    desk: Option<Arc<JoinDesk>>,
    stream: impl AsyncRead + AsyncWrite,
    seen: IpAddr,
) -> Result<(), FrameError> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(Box::pin(read), MAX_MESSAGE_BYTES);
    let mut writer = FrameWriter::new(Box::pin(write), MAX_MESSAGE_BYTES);
    let Some(request) = reader.read().await? else { return Ok(()) };
    let answer = match desk {
        None => Err(JoinRefusal::NotAuthority),
        Some(desk) => tokio::task::spawn_blocking(move || desk.admit(&request, seen))
            .await
            .unwrap_or_else(|panic| Err(failed(&panic))),
    };
    writer.write(&encode_answer(&answer)).await?;
    writer.shutdown().await?;
    Ok(())
}

/// What a new member has.
#[derive(Debug)]
pub struct Joined {
    /// Its identity, which is on disk too.
    pub identity: Identity,
    /// What the authority wanted it to know.
    pub welcome: Vec<u8>,
}

/// Why the machine is not a member now. After any of these the same call can be made again.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is an identity already, or it could not be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster does not want this machine, or not so.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// Nobody answered at any of the ticket's addresses.
    #[error("no answer from {addresses}: {source}")]
    Unreachable {
        /// Where it was tried.
        addresses: String,
        /// What happened at the last of them.
        source: io::Error,
    },
    /// Whoever answered is not the cluster of the ticket, or does not behave as it.
    #[error("{address} answered, but is not the cluster of this ticket: {reason}")]
    NotTheCluster {
        /// Who answered.
        address: SocketAddr,
        /// What was wrong.
        reason: String,
    },
}

impl JoinError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Identity(error) => error.hint(),
            Self::Refused(refusal) => refusal.hint(),
            Self::Unreachable { .. } => {
                "see that the node that made the ticket is up and its port open, then join again"
            }
            Self::NotTheCluster { .. } => "ask for a new ticket (`consort invite`)",
        }
    }
}

/// Makes this machine a member, and writes its identity to `dir`. `listen` is where it will listen.
pub async fn join(
    ticket: &Ticket,
    dir: &Path,
    name: &str,
    listen: Option<SocketAddr>,
) -> Result<Joined, JoinError> {
    let key = Identity::prepare_join(dir, name)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(IdentityError::from)?;
    let csr = csr.der().to_vec();
    let request = Request { secret: ticket.secret, csr, name: name.to_owned(), listen }.encode();
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the ticket has no address").into();
    for address in &ticket.addresses {
        let attempt = timeout(ATTEMPT_TIMEOUT, ask(ticket, *address, &request)).await;
        let admission = match attempt.unwrap_or_else(|_| Err(timed_out().into())) {
            Ok(Ok(admission)) => admission,
            // Another of the addresses may be the right one.
            Ok(Err(JoinRefusal::NotAuthority)) => {
                last = AskError::Refused;
                continue;
            }
            Ok(Err(refusal)) => return Err(refusal.into()),
            Err(error) => {
                last = error;
                continue;
            }
        };
        let wrong = |reason: &str| JoinError::NotTheCluster {
            address: *address,
            reason: reason.to_owned(),
        };
        let own = CertificateDer::from(admission.certificate);
        let authority = CertificateDer::from(admission.authority);
        if certificate::fingerprint(&authority) != ticket.ca_fingerprint
            || !certificate::signed_by(&own, &authority)
        {
            return Err(wrong("its certificates are not the authority's"));
        }
        let me = certificate::read_member(&own)
            .ok_or_else(|| wrong("its certificate is not a member's"))?;
        let node = certificate::node_id(&key.subject_public_key_info());
        if (me.node, me.name.as_str(), me.role) != (node, name, ticket.role) {
            return Err(wrong("its certificate is for another node, name or role"));
        }
        let identity = Identity::complete(dir, &own, &authority)?;
        return Ok(Joined { identity, welcome: admission.welcome });
    }
    Err(match last {
        AskError::Refused => JoinRefusal::NotAuthority.into(),
        AskError::Untrusted(address, reason) => JoinError::NotTheCluster { address, reason },
        AskError::Io(source) => {
            let addresses = ticket.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>();
            JoinError::Unreachable { addresses: addresses.join(", "), source }
        }
    })
}

enum AskError {
    Refused,
    Untrusted(SocketAddr, String),
    Io(io::Error),
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it took too long")
}

async fn ask(
    ticket: &Ticket,
    address: SocketAddr,
    request: &[u8],
) -> Result<Result<Admission, JoinRefusal>, AskError> {
    let untrusted = |reason: &dyn fmt::Display| AskError::Untrusted(address, reason.to_string());
    let config = tls::joiner_config(ticket.ca_fingerprint).map_err(io::Error::other)?;
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let tcp = tcp.unwrap_or_else(|_| Err(timed_out()))?;
    let stream =
        TlsConnector::from(config).connect(tls::server_name(), tcp).await.map_err(|error| {
            match error.kind() {
                io::ErrorKind::InvalidData => untrusted(&error),
                _ => AskError::Io(error),
            }
        })?;
    let (read, write) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(write, MAX_MESSAGE_BYTES);
    writer.write(request).await?;
    writer.flush().await?;
    let mut reader = FrameReader::new(read, MAX_MESSAGE_BYTES);
    let answer = reader.read().await.map_err(|error| match error {
        FrameError::Io(error) => AskError::Io(error),
        error => untrusted(&error),
    })?;
    let answer = answer.ok_or_else(|| AskError::Io(io::ErrorKind::UnexpectedEof.into()))?;
    decode_answer(&answer).map_err(|error| untrusted(&error))
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    secret: [u8; 16],
    csr: Vec<u8>,
    name: String,
    listen: Option<SocketAddr>,
}

impl Request {
    fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        out.extend_from_slice(&self.secret);
        put_bytes(&mut out, &self.csr);
        put_bytes(&mut out, self.name.as_bytes());
        put_option(&mut out, self.listen, put_address);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u16()? != VERSION {
            return Err(Malformed);
        }
        let request = Self {
            secret: reader.array()?,
            csr: reader.bytes(MAX_CERTIFICATE_BYTES)?.to_vec(),
            name: reader.text(MAX_NAME_BYTES)?.to_owned(),
            listen: reader.option(Reader::address)?,
        };
        reader.end()?;
        Ok(request)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Admission {
    certificate: Vec<u8>,
    authority: Vec<u8>,
    welcome: Vec<u8>,
}

fn encode_answer(answer: &Result<Admission, JoinRefusal>) -> Vec<u8> {
    match answer {
        Err(refusal) => vec![0, refusal.code()],
        Ok(admission) => {
            let mut out = vec![1];
            put_bytes(&mut out, &admission.certificate);
            put_bytes(&mut out, &admission.authority);
            put_bytes(&mut out, &admission.welcome);
            out
        }
    }
}

fn decode_answer(bytes: &[u8]) -> Result<Result<Admission, JoinRefusal>, Malformed> {
    let mut reader = Reader::new(bytes);
    let answer = match reader.u8()? {
        0 => Err(JoinRefusal::from_code(reader.u8()?).ok_or(Malformed)?),
        1 => Ok(Admission {
            certificate: reader.bytes(MAX_CERTIFICATE_BYTES)?.to_vec(),
            authority: reader.bytes(MAX_CERTIFICATE_BYTES)?.to_vec(),
            welcome: reader.bytes(MAX_WELCOME_BYTES)?.to_vec(),
        }),
        _ => return Err(Malformed),
    };
    reader.end()?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(max: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..max)
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            secret: [u8; 16],
            csr in blob(600),
            name in "[a-z0-9-]{1,63}",
            listen in any::<Option<(IpAddr, u16)>>(),
        ) {
            let request = Request { secret, csr, name, listen: listen.map(SocketAddr::from) };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn answers_survive_the_wire(certificate in blob(600), authority in blob(600), welcome in blob(900)) {
            let answer = Ok(Admission { certificate, authority, welcome });
            prop_assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
            for refusal in JoinRefusal::ALL {
                prop_assert_eq!(decode_answer(&encode_answer(&Err(refusal))), Ok(Err(refusal)));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in blob(200)) {
            let _ = Request::decode(&bytes);
            let _ = Request::decode(&[&VERSION.to_le_bytes()[..], &bytes].concat());
            let _ = decode_answer(&bytes);
        }
    }
}
