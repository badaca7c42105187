//! Parquet files: a stretch is a page with the header before it, and the pages behind it that have as many values.
//! Apache Parquet, `README.md` ("File format") and `parquet.thrift` (`PageHeader`); Apache Thrift,
//! `thrift-compact-protocol.md`.
//!
//! Pages follow each other from the fifth byte on, column by column; what comes behind the last (indexes and the footer)
//! is no page, and ends the format. Most writers begin a page after so many rows. Then rows that come or go move all rows
//! behind them through such pages, which are no units of change, and to begin anew with each would hide what is
//! left of the old ones. A writer that cuts pages by their content makes them of different numbers of rows.

use super::{MAX_HEADER_BYTES, Step, Stretch, header_and_body};

/// Where in a file we are.
#[derive(Debug)]
pub(super) struct Parquet {
    /// Whether the first page is still to come, and with it the bytes before.
    at_start: bool,
    /// The body that comes next, if it is a stretch of its own.
    body: Option<Stretch>,
    /// The values of the page before.
    values: i64,
}

const MAGIC: &[u8] = b"PAR1";

impl Parquet {
    pub(super) fn recognise(bytes: &[u8]) -> Option<Self> {
        bytes.starts_with(MAGIC).then_some(Self { at_start: true, body: None, values: 0 })
    }

    pub(super) fn step(&mut self, bytes: &[u8]) -> Step {
        if let Some(body) = self.body.take() {
            return Step::Stretch(body);
        }
        let before = if self.at_start { MAGIC.len() } else { 0 };
        let page = match Page::read(&bytes[before..]) {
            Ok(page) => page,
            Err(Unreadable::Short) if bytes.len() < MAX_HEADER_BYTES => return Step::More,
            Err(_) => return Step::End,
        };
        let (mut first, body) = header_and_body(page.header, page.size);
        first.length += before as u64;
        *self = Self { at_start: false, body, values: page.values };
        Step::Stretch(first)
    }

    /// The length of a page that belongs to the stretch before.
    pub(super) fn more(&mut self, bytes: &[u8]) -> Option<u64> {
        let page = Page::read(bytes).ok()?;
        let belongs = self.body.is_none() && page.values == self.values;
        belongs.then_some(page.header.len() as u64 + page.size)
    }
}

/// What is to know of a page.
struct Page<'a> {
    header: &'a [u8],
    /// The bytes behind the header.
    size: u64,
    values: i64,
}

impl<'a> Page<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let bytes = &bytes[..bytes.len().min(MAX_HEADER_BYTES)];
        let mut compact = Compact { rest: bytes };
        let (size, values) = compact.page_header()?;
        Ok(Self { header: &bytes[..bytes.len() - compact.rest.len()], size, values })
    }
}

/// Why a header cannot be read.
#[derive(Debug, PartialEq, Eq)]
enum Unreadable {
    /// It goes on behind the bytes that are there.
    Short,
    /// It is none.
    Wrong,
}

// The types of fields that a page's header is made of.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const STRUCT: u8 = 12;

/// Sizes are signed numbers of 32 bits.
const MAX_PAGE_BYTES: u64 = i32::MAX as u64;

/// How deep structures lie in each other: statistics in the header of a kind of page, and what is added to them one day.
const MAX_DEPTH: u8 = 3;

/// Reads structures of the compact protocol.
struct Compact<'a> {
    rest: &'a [u8],
}

impl Compact<'_> {
    /// Reads a `PageHeader`, and returns how many bytes are behind it and how many values are in them.
    fn page_header(&mut self) -> Result<(u64, i64), Unreadable> {
        let (mut is_typed, mut is_sized, mut size, mut values) = (false, false, None, None);
        let mut field = 0;
        while let Some(kind) = self.field(&mut field)? {
            match (field, kind) {
                // type, uncompressed_page_size, compressed_page_size, crc
                (1, I32) => is_typed = self.integer().map(|_| true)?,
                (2, I32) => is_sized = self.integer().map(|_| true)?,
                (3, I32) => size = u64::try_from(self.integer()?).ok(),
                (4, I32) => _ = self.integer()?,
                // One for each kind of page. Each begins with num_values.
                (5..=8, STRUCT) => values = self.structure(MAX_DEPTH)?,
                _ => return Err(Unreadable::Wrong),
            }
        }
        match (size, values) {
            (Some(size), Some(values)) if is_typed && is_sized && size <= MAX_PAGE_BYTES => {
                Ok((size, values))
            }
            _ => Err(Unreadable::Wrong),
        }
    }

    /// The type of the next field of a structure, after the one of this number; nothing at its end.
    fn field(&mut self, number: &mut i64) -> Result<Option<u8>, Unreadable> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        *number = match head >> 4 {
            0 => self.integer()?,
            step => number.saturating_add(i64::from(step)),
        };
        Ok(Some(head & 0x0f))
    }

    /// Reads a structure of any kind, and returns its first field if that is an i32.
    fn structure(&mut self, depth: u8) -> Result<Option<i64>, Unreadable> {
        let inside = depth.checked_sub(1).ok_or(Unreadable::Wrong)?;
        let mut first = None;
        let mut number = 0;
        while let Some(kind) = self.field(&mut number)? {
            match kind {
                TRUE | FALSE => {}
                BYTE => _ = self.byte()?,
                I32 if number == 1 => first = Some(self.integer()?),
                I16 | I32 | I64 => _ = self.varint()?,
                BINARY => {
                    let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                    self.rest = self.rest.get(length..).ok_or(Unreadable::Short)?;
                }
                STRUCT => _ = self.structure(inside)?,
                // Doubles, lists and maps are in no header of a page.
                _ => return Err(Unreadable::Wrong),
            }
        }
        Ok(first)
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        let (byte, rest) = self.rest.split_first().ok_or(Unreadable::Short)?;
        self.rest = rest;
        Ok(*byte)
    }

    /// Seven bits in each byte, the lowest first.
    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unreadable::Wrong)
    }

    /// A varint whose lowest bit is the sign.
    fn integer(&mut self) -> Result<i64, Unreadable> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// A data page of so many rows, with the statistics of a column of numbers.
    pub(in super::super) fn page(rows: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = [0x15, 0, 0x15].to_vec();
        varint(2 * body.len() as u64 + 20, &mut bytes);
        bytes.push(0x15);
        varint(2 * body.len() as u64, &mut bytes);
        bytes.extend([0x2c, 0x15]);
        varint(2 * u64::from(rows), &mut bytes);
        // The encodings, then `statistics`: null_count, max_value and min_value.
        bytes
            .extend([0x15, 0, 0x15, 6, 0x15, 6, 0x1c, 0x36, 0, 0x28, 2, 9, 9, 0x18, 1, 1, 0, 0, 0]);
        bytes.extend(body);
        bytes
    }

    fn varint(mut value: u64, to: &mut Vec<u8>) {
        while 0x80 <= value {
            to.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        to.push(value.to_le_bytes()[0]);
    }

    /// What comes behind the pages.
    pub(in super::super) const FOOTER: &[u8] = &[0x15, 4, 0x19, 0x2c, 0x48, 1, b's', 0];

    #[test]
    fn stretches_are_pages_until_something_else_comes() {
        let small = page(10, &[1; 700]);
        let large = page(1_000, &[2; 200_001]);
        let header = (large.len() - 200_001) as u64;
        let file = [MAGIC, &small, &large, &small, FOOTER].concat();
        let mut parquet = Parquet::recognise(&file).expect("a file");
        let mut rest = &file[..];
        for expected in [4 + small.len() as u64, header, 200_001, small.len() as u64] {
            let Step::Stretch(stretch) = parquet.step(rest) else { panic!("it ends too soon") };
            assert_eq!(stretch.length, expected);
            rest = &rest[usize::try_from(expected).expect("short")..];
        }
        assert_eq!(rest, FOOTER);
        assert_eq!(parquet.step(rest), Step::End);
        assert_eq!(parquet.step(&small[..20]), Step::More);
    }

    #[test]
    fn pages_of_as_many_values_belong_together() {
        let [first, same, other] = [(10, 700), (10, 900), (11, 900)]
            .map(|(values, length)| page(values, &alloc::vec![1; length]));
        let mut parquet = Parquet::recognise(MAGIC).expect("a file");
        assert!(matches!(parquet.step(&[MAGIC, &first].concat()), Step::Stretch(_)));
        assert_eq!(parquet.more(&same), Some(same.len() as u64));
        assert_eq!(parquet.more(&other), None);
        assert_eq!(parquet.more(FOOTER), None);
    }

    #[test]
    fn structures_are_not_followed_without_end() {
        let mut header = [0x15, 0, 0x15, 0, 0x15, 0, 0x2c].to_vec();
        header.extend([0x1c; 1_000]);
        assert_eq!(Compact { rest: &header }.page_header(), Err(Unreadable::Wrong));
    }
}
