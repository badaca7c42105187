//! Tar archives, and so the shards of WebDataset: a stretch is a member with the headers before it and the zeros that
//! fill its last block. POSIX.1-2024, `pax`, "ustar Interchange Format" and "pax Interchange Format"; GNU tar's manual,
//! "Basic Tar Format", for long names and large sizes.
//!
//! Archives from before POSIX say nothing by which to know them, and are not recognised.

use super::{MAX_BODY_BYTES, MAX_HEADER_BYTES, Step, Stretch, header_and_body};

const BLOCK_BYTES: usize = 512;

/// Where in an archive we are.
#[derive(Debug, Default)]
pub(super) struct Tar {
    /// The body that comes next, if it is a stretch of its own.
    body: Option<Stretch>,
    /// Zeros that come before the next header, behind such a body.
    padding: usize,
}

impl Tar {
    pub(super) fn recognise(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().is_some_and(is_header).then(Self::default)
    }

    pub(super) fn step(&mut self, bytes: &[u8]) -> Step {
        if let Some(body) = self.body.take() {
            return Step::Stretch(body);
        }
        let Some(rest) = bytes.get(self.padding..) else { return Step::More };
        let (headers, size) = match read_headers(rest) {
            Ok(member) => member,
            Err(step) => return step,
        };
        let (mut first, body) = header_and_body(headers, size);
        first.length += self.padding as u64;
        let padding = padding_of(size);
        self.padding = 0;
        match body {
            Some(_) => self.padding = padding,
            None => first.length += padding as u64,
        }
        self.body = body;
        Step::Stretch(first)
    }
}

/// All headers of the member with which `bytes` begin, up to its body, and the body's length.
fn read_headers(bytes: &[u8]) -> Result<(&[u8], u64), Step> {
    let mut at = 0;
    let mut size_in_record = None;
    loop {
        let Some(header) = bytes[at..].first_chunk() else { return Err(Step::More) };
        if !is_header(header) {
            return Err(Step::End);
        }
        let size = size_of(header).ok_or(Step::End)?;
        at += BLOCK_BYTES;
        match header[TYPE] {
            // What these hold describes the member that follows them.
            kind @ (b'x' | b'g' | b'L' | b'K') => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                if MAX_HEADER_BYTES < size || MAX_HEADER_BYTES < at + size {
                    return Err(Step::End);
                }
                let records = bytes.get(at..at + size).ok_or(Step::More)?;
                if kind == b'x' {
                    size_in_record = size_in(records);
                }
                at += size + padding_of(size as u64);
                if bytes.len() < at {
                    return Err(Step::More);
                }
            }
            // Links, devices, directories and pipes have no body, whatever their size is said to be.
            b'1'..=b'6' => return Ok((&bytes[..at], 0)),
            // Sparse files of old may have more headers.
            b'S' => return Err(Step::End),
            _ => {
                let size = size_in_record.unwrap_or(size);
                let member = (&bytes[..at], size);
                return if size <= MAX_BODY_BYTES { Ok(member) } else { Err(Step::End) };
            }
        }
    }
}

/// The zeros that fill the last block.
fn padding_of(size: u64) -> usize {
    let used = usize::try_from(size % BLOCK_BYTES as u64).expect("less than a block");
    (BLOCK_BYTES - used) % BLOCK_BYTES
}

// Where the fields of a header are.
const SIZE: core::ops::Range<usize> = 124..136;
const CHECKSUM: core::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const MAGIC: core::ops::Range<usize> = 257..262;

/// Whether this is a header: it names its format, and its bytes add up to what it says.
fn is_header(block: &[u8; BLOCK_BYTES]) -> bool {
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = block[CHECKSUM].iter().map(|byte| u64::from(*byte)).sum();
    // The checksum itself counts as spaces.
    let expected = sum - own + CHECKSUM.len() as u64 * u64::from(b' ');
    &block[MAGIC] == b"ustar" && octal(&block[CHECKSUM]) == Some(expected)
}

fn size_of(header: &[u8; BLOCK_BYTES]) -> Option<u64> {
    match &header[SIZE] {
        // What has too many digits is binary and big-endian.
        [0x80, 0, 0, 0, size @ ..] => size.first_chunk().map(|size| u64::from_be_bytes(*size)),
        digits => octal(digits),
    }
}

/// A number in octal digits, with spaces before it and a space or a zero byte behind it. No digits are 0.
fn octal(field: &[u8]) -> Option<u64> {
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let mut number = 0;
    for byte in &field[start..] {
        match byte {
            // Twelve digits are the most, so nothing overflows.
            b'0'..=b'7' => number = number * 8 + u64::from(byte - b'0'),
            b' ' | 0 => break,
            _ => return None,
        }
    }
    Some(number)
}

/// The size that the records of a pax header give the member, if they do. A record is its length in decimal, a space,
/// `name=value`, and a newline.
fn size_in(mut records: &[u8]) -> Option<u64> {
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let length = decimal(&records[..space])?;
        let length = usize::try_from(length).ok().filter(|length| space < *length)?;
        let (record, rest) = records.split_at_checked(length)?;
        if let Some(size) = record[space + 1..].strip_prefix(b"size=") {
            return decimal(size.strip_suffix(b"\n")?);
        }
        records = rest;
    }
    None
}

fn decimal(digits: &[u8]) -> Option<u64> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// A header of a member of this type.
    pub(in super::super) fn header(name: &str, kind: u8, size: u64) -> [u8; BLOCK_BYTES] {
        let mut header = [0; BLOCK_BYTES];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[SIZE].copy_from_slice(alloc::format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"14737216000\0");
        header[CHECKSUM].fill(b' ');
        header[TYPE] = kind;
        header[MAGIC].copy_from_slice(b"ustar");
        header[263..265].copy_from_slice(b"00");
        seal(&mut header);
        header
    }

    fn seal(header: &mut [u8; BLOCK_BYTES]) {
        header[CHECKSUM].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[CHECKSUM].copy_from_slice(alloc::format!("{sum:06o}\0 ").as_bytes());
    }

    /// A member with its headers and padding.
    pub(in super::super) fn member(name: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, b'0', body.len() as u64).to_vec();
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }

    fn lengths(mut bytes: &[u8]) -> Vec<u64> {
        let mut tar = Tar::recognise(bytes).expect("an archive");
        let mut lengths = Vec::new();
        while let Step::Stretch(stretch) = tar.step(bytes) {
            lengths.push(stretch.length);
            bytes = bytes.get(usize::try_from(stretch.length).expect("short")..).unwrap_or(&[]);
        }
        lengths
    }

    #[test]
    fn a_short_member_is_one_stretch_and_a_long_one_is_cut_from_its_header() {
        let mut archive = member("short", &[1; 700]);
        archive.extend(member("long", &[2; 200_001]));
        archive.extend(header("directory/", b'5', 0));
        archive.extend(member("empty", b""));
        archive.extend([0; 1024]);
        // 200,001 bytes leave 191 in their last block, and these come with the next header.
        assert_eq!(lengths(&archive), [512 + 1024, 512, 200_001, 191 + 512, 512]);
    }

    #[test]
    fn headers_that_describe_a_member_belong_to_it() {
        let records = b"18 mtime=12.345678\n18 path=some/name\n";
        let mut archive = header("PaxHeaders/name", b'x', records.len() as u64).to_vec();
        archive.extend(records);
        archive.resize(1024, 0);
        archive.extend(member("name", &[1; 10]));
        assert_eq!(lengths(&archive), [1024 + 1024]);
    }

    #[test]
    fn a_size_may_be_in_a_record_or_binary() {
        let records = b"19 mtime=12.345678\n19 size=9000000000\n";
        let mut archive = header("PaxHeaders/name", b'x', records.len() as u64).to_vec();
        archive.extend(records);
        archive.resize(1024, 0);
        archive.extend(header("name", b'0', 0));
        assert_eq!(lengths(&archive), [1536, 9_000_000_000]);

        let mut binary = header("name", b'0', 0);
        binary[SIZE].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]);
        seal(&mut binary);
        assert_eq!(lengths(&binary), [512, 0x2_0000_0001]);
    }

    #[test]
    fn what_does_not_add_up_is_no_header() {
        let mut archive = header("name", b'0', 10);
        assert!(Tar::recognise(&archive).is_some());
        archive[0] ^= 1;
        assert!(Tar::recognise(&archive).is_none());
        assert!(Tar::recognise(&archive[..511]).is_none());
    }
}
