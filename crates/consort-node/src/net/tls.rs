//! What is checked before a byte is believed: TLS 1.3 only, every member shows a certificate of our
//! cluster's authority, and all signatures are verified by rustls and webpki. Certificates carry no
//! host names: a caller who means a certain node compares the verified [`PeerIdentity`] after the
//! handshake.
//!
//! The protocols share a port, so a client certificate is optional while shaking hands, and
//! [`accepted`] insists on it right after, unless the client came to join.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};

use super::certificate;
use super::identity::{Identity, PeerIdentity, Role};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Frames of the protocol core, one connection for each pair of nodes.
    Control,
    /// Frames with content.
    Content,
    /// A machine that wants to become a member.
    Join,
    /// A member that wants to be none any more.
    Leave,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Control, Self::Content, Self::Join, Self::Leave];

    /// The name by which TLS agrees on it (ALPN).
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Control => b"consort-control/1",
            Self::Content => b"consort-content/1",
            Self::Join => b"consort-join/1",
            Self::Leave => b"consort-leave/1",
        }
    }
}

/// Whether one side of a handshake did not believe the other, rather than that the connection broke. TLS reports both as
/// I/O.
pub(super) fn is_rejection(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// Who came, and for what, as the handshake has verified it.
#[derive(Debug)]
pub enum Accepted {
    /// A member, for anything but joining.
    Member(Protocol, PeerIdentity),
    /// Anybody, to join.
    Joiner,
}

/// Why a client is not let in although the handshake was sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// It named none of our protocols.
    #[error("it does not speak our protocol")]
    NoProtocol,
    /// It wants what only members may, and shows no certificate.
    #[error("it showed no certificate: only members of the cluster may connect")]
    NoCertificate,
    /// Our authority signed its certificate, but it is not a member's.
    #[error("its certificate does not name a node, a role and a cluster")]
    NotAMember,
}

/// The name that a client asks for; nobody looks at it.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("consort").expect("it is a valid DNS name")
}

/// For everybody who connects to us.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(identity.authority())?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())?;
    config.alpn_protocols = Protocol::ALL.map(|protocol| protocol.alpn().to_vec()).to_vec();
    // A resumed session would skip the certificate check.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For connecting to members, as a member.
pub fn client_config(identity: &Identity, protocol: Protocol) -> Result<Arc<ClientConfig>, Error> {
    let roots = roots(identity.authority())?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(ServerVerifier::new(Trust::Members(roots)))
        .with_client_auth_cert(identity.chain(), identity.private_key())?;
    Ok(finish(config, protocol))
}

/// For connecting to the authority that a ticket names, as nobody.
pub fn joiner_config(ca_fingerprint: [u8; 32]) -> Result<Arc<ClientConfig>, Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(ServerVerifier::new(Trust::Ticket(ca_fingerprint)))
        .with_no_client_auth();
    Ok(finish(config, Protocol::Join))
}

/// Enforces, on the server, what each protocol demands of a client.
pub fn accepted(connection: &CommonState) -> Result<Accepted, AcceptError> {
    let alpn = connection.alpn_protocol();
    let protocol = Protocol::ALL.into_iter().find(|protocol| alpn == Some(protocol.alpn()));
    match protocol.ok_or(AcceptError::NoProtocol)? {
        Protocol::Join => Ok(Accepted::Joiner),
        protocol => {
            connection.peer_certificates().ok_or(AcceptError::NoCertificate)?;
            Ok(Accepted::Member(protocol, peer(connection).ok_or(AcceptError::NotAMember)?))
        }
    }
}

/// Whom the verified certificate of the other side names.
pub fn peer(connection: &CommonState) -> Option<PeerIdentity> {
    certificate::read_member(connection.peer_certificates()?.first()?)
}

fn finish(mut config: ClientConfig, protocol: Protocol) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // The fastest where processors have instructions for AES, and as safe as the signatures.
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn roots(authority: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    Ok(Arc::new(roots))
}

/// A client's view of the server.
#[derive(Debug)]
struct ServerVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

/// Which servers a client believes.
#[derive(Debug)]
enum Trust {
    /// Any member of our cluster.
    Members(Arc<RootCertStore>),
    /// An admin of the cluster whose authority has this fingerprint: a ticket's secret must not be
    /// shown to members that may not let others in.
    Ticket([u8; 32]),
}

impl ServerVerifier {
    fn new(trust: Trust) -> Arc<Self> {
        Arc::new(Self { trust, provider: provider() })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = match &self.trust {
            Trust::Members(roots) => Arc::clone(roots),
            Trust::Ticket(fingerprint) => {
                let is_authority = |shown: &&_| certificate::fingerprint(shown) == *fingerprint;
                let authority = intermediates.iter().find(is_authority);
                roots(authority.ok_or(CertificateError::UnknownIssuer)?)?
            }
        };
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let server = certificate::read_member(end_entity).ok_or(CertificateError::BadEncoding)?;
        if matches!(self.trust, Trust::Ticket(_)) && server.role != Role::Admin {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
