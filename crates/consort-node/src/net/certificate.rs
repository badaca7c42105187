//! What our certificates say, and how they are made and read: subject CN is the node's name, OU its
//! role, O its cluster. Chains are verified in [`super::tls`]; files are in [`super::identity`].

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use super::identity::{NodeId, PeerIdentity, Role, valid_name};
use super::unix_now;

/// Members outlive hardware, but not forever.
const MEMBER_YEARS: i32 = 10;

/// The authority must be valid for as long as what it issued last.
const AUTHORITY_YEARS: i32 = 2 * MEMBER_YEARS;

/// The first day on which a certificate is valid. It is fixed, so that a machine whose clock is
/// behind can still join.
const FIRST_DAY: (i32, u8, u8) = (2020, 1, 1);

const AUTHORITY_NAME: &str = "consort cluster authority";

/// The identity of a public key, given as SubjectPublicKeyInfo DER.
pub(super) fn node_id(public_key: &[u8]) -> NodeId {
    let hash = blake3::hash(public_key);
    NodeId(*hash.as_bytes().first_chunk().expect("a hash is longer than an id"))
}

/// By what a ticket names a cluster's authority.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

pub(super) fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ED25519)
}

/// A self-signed certificate for a cluster whose authority has this key; the key also gives the
/// cluster its id.
pub(super) fn issue_authority(key: &KeyPair) -> Result<CertificateDer<'static>, rcgen::Error> {
    let cluster = node_id(&key.subject_public_key_info()).short().to_string();
    let mut params = params(AUTHORITY_YEARS);
    params.distinguished_name.push(DnType::CommonName, AUTHORITY_NAME);
    params.distinguished_name.push(DnType::OrganizationName, cluster);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params.self_signed(key)?.der().clone())
}

/// A certificate by which the holder of `public_key` is `name`, and may do what `role` may.
pub(super) fn issue_member(
    authority: &CertificateDer<'_>,
    authority_key: &KeyPair,
    public_key: &impl PublicKeyData,
    name: &str,
    role: Role,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let cluster = cluster_of(authority).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    let mut params = params(MEMBER_YEARS);
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationalUnitName, role.to_string());
    params.distinguished_name.push(DnType::OrganizationName, cluster);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(authority, authority_key)?;
    Ok(params.signed_by(public_key, &issuer)?.der().clone())
}

/// Whom a certificate is about. Says nothing about whether it is to be believed.
pub(super) fn read_member(certificate: &CertificateDer<'_>) -> Option<PeerIdentity> {
    let parsed = parse(certificate)?;
    let subject = parsed.subject();
    let name = only(subject.iter_common_name())?;
    let role = only(subject.iter_organizational_unit())?.parse().ok()?;
    let cluster = only(subject.iter_organization())?;
    valid_name(name).then(|| PeerIdentity {
        node: node_id(parsed.public_key().raw),
        name: name.to_owned(),
        role,
        cluster: cluster.to_owned(),
    })
}

/// The public key in a certificate, as SubjectPublicKeyInfo DER.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    Some(parse(certificate)?.public_key().raw.to_vec())
}

/// Whether `authority` signed `certificate`.
pub(super) fn signed_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let (Some(certificate), Some(authority)) = (parse(certificate), parse(authority)) else {
        return false;
    };
    certificate.verify_signature(Some(authority.public_key())).is_ok()
}

/// The member for whom `authority` made `certificate`, and its public key as SubjectPublicKeyInfo DER. Until when the
/// certificate is good is not asked: what was signed while it was stays signed.
pub(crate) fn issued_to(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
) -> Option<(PeerIdentity, Vec<u8>)> {
    if !signed_by(certificate, authority) {
        return None;
    }
    Some((read_member(certificate)?, public_key(certificate)?))
}

fn cluster_of(authority: &CertificateDer<'_>) -> Option<String> {
    let parsed = parse(authority)?;
    only(parsed.subject().iter_organization()).map(str::to_owned)
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Some(parsed),
        _ => None,
    }
}

/// The attribute, if there is exactly one: with two, two readers could believe two different
/// things.
fn only<'a, 'b: 'a>(
    mut attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'b>>,
) -> Option<&'a str> {
    let text = attributes.next()?.as_str().ok()?;
    attributes.next().is_none().then_some(text)
}

fn params(years: i32) -> CertificateParams {
    const SECONDS_PER_YEAR: u64 = 31_556_952;
    let this_year = 1970 + i32::try_from(unix_now() / SECONDS_PER_YEAR).unwrap_or_default();
    let (year, month, day) = FIRST_DAY;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = date_time_ymd(year, month, day);
    params.not_after = date_time_ymd(this_year + years, 12, 31);
    params
}
