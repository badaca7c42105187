//! The one line that `consort invite` prints and `consort join` takes: where the authority is, how
//! to recognize it, and a secret that it knows. The secret's book is in [`super::invites`].
//!
//! The text is `consort`, a version digit, and base32 of the bytes below with a checksum behind
//! them. The checksum tells a mistyped ticket from a refused one; it protects nothing.
//!
//! ```text
//!   count of addresses (1), addresses, fingerprint (32), secret (16), role (1), expires (8), checksum (4)
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::identity::Role;
use super::wire::{Malformed, Reader, put_address};

/// The most addresses in a ticket; the line stays short enough to be pasted.
pub const MAX_TICKET_ADDRESSES: usize = 8;

const NAME: &str = "consort";
const VERSION: char = '1';
const CHECKSUM_BYTES: usize = 4;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The longest text that can be a ticket; anything longer is not looked at.
const MAX_TEXT_BYTES: usize = 512;

/// An invitation to a cluster. Whoever has it can join until it expires or is used up.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Where the authority listens: 1 to [`MAX_TICKET_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// The BLAKE3 hash of the authority's certificate.
    pub ca_fingerprint: [u8; 32],
    /// What the authority knows the invitation by.
    pub secret: [u8; 16],
    /// What the new member will be allowed to do.
    pub role: Role,
    /// Until when it can be used, in seconds since 1970, by the authority's clock.
    pub expires: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        let count = self.addresses.len().min(MAX_TICKET_ADDRESSES);
        bytes.push(u8::try_from(count).expect("the maximum fits into a byte"));
        for address in &self.addresses[..count] {
            put_address(&mut bytes, *address);
        }
        bytes.extend_from_slice(&self.ca_fingerprint);
        bytes.extend_from_slice(&self.secret);
        bytes.push(self.role.code());
        bytes.extend_from_slice(&self.expires.to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "{NAME}{VERSION}{}", to_base32(&bytes))
    }
}

/// Leaves the secret out, since debug output ends up in logs.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("addresses", &self.addresses)
            .field("role", &self.role)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Why a text is not a ticket that can be used. All are the text's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTicketError {
    /// It is something else.
    #[error("this is not a ticket")]
    NotATicket,
    /// It once was a ticket, but characters are wrong or missing.
    #[error("the ticket is mistyped or cut off")]
    Mistyped,
    /// It comes from a version of Consort that came after this one.
    #[error("the ticket was made by a newer version of consort")]
    Newer,
    /// It arrived as it was made, but what it says cannot be.
    #[error("the ticket was not made by consort")]
    Invalid,
}

impl ParseTicketError {
    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::NotATicket => {
                "a ticket is the line that `consort invite` prints, and starts with consort1"
            }
            Self::Mistyped => "copy the whole line again",
            Self::Newer => "upgrade consort on this machine",
            Self::Invalid => "ask for a new one (`consort invite`)",
        }
    }
}

impl FromStr for Ticket {
    type Err = ParseTicketError;

    fn from_str(text: &str) -> Result<Self, ParseTicketError> {
        let rest = text.trim().strip_prefix(NAME).ok_or(ParseTicketError::NotATicket)?;
        let mut rest = rest.chars();
        match rest.next() {
            Some(VERSION) => {}
            Some('2'..='9') => return Err(ParseTicketError::Newer),
            _ => return Err(ParseTicketError::NotATicket),
        }
        let text = rest.as_str();
        if text.len() > MAX_TEXT_BYTES {
            return Err(ParseTicketError::Mistyped);
        }
        let bytes = from_base32(text).ok_or(ParseTicketError::Mistyped)?;
        let (body, sum) =
            bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(ParseTicketError::Mistyped)?;
        if *sum != checksum(body) {
            return Err(ParseTicketError::Mistyped);
        }
        decode(body).map_err(|Malformed| ParseTicketError::Invalid)
    }
}

fn decode(body: &[u8]) -> Result<Ticket, Malformed> {
    let mut reader = Reader::new(body);
    let count = usize::from(reader.u8()?);
    if !(1..=MAX_TICKET_ADDRESSES).contains(&count) {
        return Err(Malformed);
    }
    let ticket = Ticket {
        addresses: (0..count).map(|_| reader.address()).collect::<Result<_, _>>()?,
        ca_fingerprint: reader.array()?,
        secret: reader.array()?,
        role: Role::from_code(reader.u8()?).ok_or(Malformed)?,
        expires: reader.u64()?,
    };
    reader.end()?;
    Ok(ticket)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::hash(body).as_bytes().first_chunk().expect("a hash is longer than a checksum")
}

fn to_base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut pending, mut bits) = (0u32, 0);
    for byte in bytes {
        pending = pending << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(pending >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(pending << (5 - bits) & 31) as usize]));
    }
    text
}

/// `None` for a foreign character, and for bits at the end that [`to_base32`] would not have
/// written.
fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut pending, mut bits) = (0u32, 0);
    for character in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == character)?;
        pending = (pending << 5 | u32::try_from(value).ok()?) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((pending >> bits & 0xff) as u8);
        }
    }
    (bits < 5 && pending & ((1 << bits) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tickets() -> impl Strategy<Value = Ticket> {
        let address = any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from);
        let role =
            proptest::sample::select(vec![Role::Reader, Role::Writer, Role::Relay, Role::Admin]);
        (
            proptest::collection::vec(address, 1..=8),
            any::<[u8; 32]>(),
            any::<[u8; 16]>(),
            role,
            any::<u64>(),
        )
            .prop_map(|(addresses, ca_fingerprint, secret, role, expires)| Ticket {
                addresses,
                ca_fingerprint,
                secret,
                role,
                expires,
            })
    }

    fn sample() -> String {
        let ticket = Ticket {
            addresses: vec![SocketAddr::from(([192, 168, 1, 2], 7000))],
            ca_fingerprint: [1; 32],
            secret: [2; 16],
            role: Role::Writer,
            expires: 1_800_000_000,
        };
        ticket.to_string()
    }

    #[test]
    fn other_texts_are_not_tickets() {
        for text in ["", "hello", "consort", "consortx", "https://consort1"] {
            assert_eq!(text.parse::<Ticket>(), Err(ParseTicketError::NotATicket), "{text}");
        }
    }

    #[test]
    fn a_newer_ticket_says_to_upgrade() {
        assert_eq!("consort2abc".parse::<Ticket>(), Err(ParseTicketError::Newer));
    }

    #[test]
    fn a_cut_off_ticket_is_mistyped_wherever_it_was_cut() {
        let text = sample();
        for end in "consort1".len()..text.len() {
            assert_eq!(text[..end].parse::<Ticket>(), Err(ParseTicketError::Mistyped), "{end}");
        }
    }

    #[test]
    fn a_forged_ticket_parses_and_is_left_to_the_authority_to_refuse() {
        let mut ticket: Ticket = sample().parse().unwrap();
        ticket.secret = [9; 16];
        assert!(ticket.to_string().parse::<Ticket>().is_ok());
    }

    #[test]
    fn what_no_ticket_says_is_invalid_although_its_checksum_is_right() {
        let body = [0u8; 60];
        let bytes = [&body[..], &checksum(&body)].concat();
        let text = format!("consort1{}", to_base32(&bytes));
        assert_eq!(text.parse::<Ticket>(), Err(ParseTicketError::Invalid));
    }

    proptest! {
        #[test]
        fn tickets_survive_their_text(ticket in tickets()) {
            prop_assert_eq!(format!(" {ticket}\n").parse::<Ticket>(), Ok(ticket));
        }

        #[test]
        fn one_wrong_character_is_mistyped(at in 8usize..100, replacement in 0usize..32) {
            let mut text = sample().into_bytes();
            prop_assume!(text[at] != ALPHABET[replacement]);
            text[at] = ALPHABET[replacement];
            let text = String::from_utf8(text).unwrap();
            prop_assert_eq!(text.parse::<Ticket>(), Err(ParseTicketError::Mistyped));
        }

        #[test]
        fn arbitrary_text_and_bytes_never_panic(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<Ticket>();
            let _ = format!("consort1{text}").parse::<Ticket>();
            let _ = decode(&bytes);
        }
    }
}
