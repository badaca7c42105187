//! Zip archives, and so npz: a stretch is a member with the header before it. PKWARE's `APPNOTE.TXT`, 4.3.7 (local file
//! header), 4.4.4 (flags) and 4.5.3 (Zip64).
//!
//! A member whose length stands only behind it, as in an archive that was written to a pipe, ends the format: its end could be
//! found only at the end of the archive.

use super::{MAX_BODY_BYTES, Step, Stretch, header_and_body};

/// Where in an archive we are.
#[derive(Debug, Default)]
pub(super) struct Zip {
    /// The body that comes next, if it is a stretch of its own.
    body: Option<Stretch>,
}

impl Zip {
    pub(super) fn recognise(bytes: &[u8]) -> Option<Self> {
        bytes.starts_with(SIGNATURE).then(Self::default)
    }

    pub(super) fn step(&mut self, bytes: &[u8]) -> Step {
        if let Some(body) = self.body.take() {
            return Step::Stretch(body);
        }
        match read_header(bytes) {
            Ok((header, size)) => {
                let (first, body) = header_and_body(header, size);
                self.body = body;
                Step::Stretch(first)
            }
            Err(step) => step,
        }
    }
}

const SIGNATURE: &[u8] = b"PK\x03\x04";
const HEADER_BYTES: usize = 30;
/// The flag that says that lengths stand behind the member.
const LENGTHS_FOLLOW: u16 = 1 << 3;
const ZIP64: u16 = 1;
/// A length that stands in the Zip64 field instead.
const ELSEWHERE: u32 = u32::MAX;

/// The header with which `bytes` begin, and the length of its member as it is stored here.
fn read_header(bytes: &[u8]) -> Result<(&[u8], u64), Step> {
    let fixed = bytes.get(..HEADER_BYTES).ok_or(Step::More)?;
    if !fixed.starts_with(SIGNATURE) || u16_at(fixed, 6) & LENGTHS_FOLLOW != 0 {
        return Err(Step::End);
    }
    let (stored, original) = (u32_at(fixed, 18), u32_at(fixed, 22));
    let extra = HEADER_BYTES + usize::from(u16_at(fixed, 26));
    let end = extra + usize::from(u16_at(fixed, 28));
    let header = bytes.get(..end).ok_or(Step::More)?;
    let size = match stored {
        ELSEWHERE => zip64_size(&header[extra..], original == ELSEWHERE).ok_or(Step::End)?,
        size => u64::from(size),
    };
    if size <= MAX_BODY_BYTES { Ok((header, size)) } else { Err(Step::End) }
}

/// The stored length in the extra fields, each of which is a tag, a length and so many bytes. The original length comes
/// before it, if that stands there, too.
fn zip64_size(mut fields: &[u8], after_original: bool) -> Option<u64> {
    loop {
        let (head, rest) = fields.split_at_checked(4)?;
        let (field, rest) = rest.split_at_checked(usize::from(u16_at(head, 2)))?;
        if u16_at(head, 0) == ZIP64 {
            let size = field.get(if after_original { 8 } else { 0 }..)?.first_chunk()?;
            return Some(u64::from_le_bytes(*size));
        }
        fields = rest;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

#[cfg(test)]
pub(super) mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// A member that is stored as it is.
    pub(in super::super) fn member(name: &str, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("short").to_le_bytes();
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([20, 0, 0, 0, 0, 0, 0, 0, 33, 84, 1, 2, 3, 4]);
        bytes.extend(length);
        bytes.extend(length);
        bytes.extend([u8::try_from(name.len()).expect("short"), 0, 0, 0]);
        bytes.extend(name.as_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_short_member_is_one_stretch_and_a_long_one_is_cut_from_its_header() {
        let mut archive = member("short", &[1; 700]);
        archive.extend(member("long", &[2; 200_001]));
        archive.extend(b"PK\x01\x02, and then what is where");
        let mut zip = Zip::recognise(&archive).expect("an archive");
        let mut rest = &archive[..];
        for expected in [35 + 700, 34, 200_001] {
            let Step::Stretch(stretch) = zip.step(rest) else { panic!("it ends too soon") };
            assert_eq!(stretch.length, expected);
            rest = &rest[usize::try_from(expected).expect("short")..];
        }
        assert_eq!(zip.step(rest), Step::More);
        archive.extend([0; HEADER_BYTES]);
        assert_eq!(zip.step(&archive[archive.len() - HEADER_BYTES..]), Step::End);
    }

    #[test]
    fn a_long_length_stands_in_an_extra_field() {
        let mut header = member("name", b"");
        header[18..26].fill(0xff);
        header[28] = 6 + 20;
        header.extend([9, 9, 2, 0, 1, 1]);
        header.extend([1, 0, 16, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(read_header(&header), Ok((&header[..], 0x2_0000_0005)));
        header[18 + 4..26].fill(0);
        assert_eq!(read_header(&header), Ok((&header[..], 7)));
    }

    #[test]
    fn a_length_behind_the_member_ends_the_format() {
        let mut header = member("name", &[1; 100]);
        header[6] = 8;
        assert_eq!(read_header(&header), Err(Step::End));
    }
}
