//! What the header of a page of a Parquet file says: Apache Parquet, `README.md` ("File format") and `parquet.thrift`
//! (`PageHeader`); Apache Thrift, `thrift-compact-protocol.md`. Nothing of the footer is read: contents are streams. Which chunks
//! follow from the pages is decided in [`chunker`](super::chunker).

#[cfg(any(test, feature = "test-utils"))]
pub mod writer;

/// The first bytes of a file.
pub const MAGIC: &[u8] = b"PAR1";

/// What is to know of a page. All of it is a claim of whoever wrote the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// The bytes of the header itself.
    pub length: usize,
    /// What the page holds.
    pub kind: PageKind,
    /// The bytes behind the header, at most [`MAX_PAGE_BYTES`].
    pub size: u64,
    /// So many they are when they are not compressed, at most [`MAX_PAGE_BYTES`].
    pub plain_size: u64,
    /// How many values are in them.
    pub values: i64,
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Levels and values, compressed together.
    Data {
        /// The values are indices into the dictionary.
        indices: bool,
    },
    /// Levels as they are, then values.
    DataV2 {
        /// The values are indices into the dictionary.
        indices: bool,
        /// The bytes of the levels.
        levels: u64,
        /// How many of the values are none.
        nulls: i64,
        /// Whether the values are compressed.
        compressed: bool,
    },
    /// Values without levels.
    Dictionary,
    /// Something else.
    Other,
}

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
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
pub const MAX_PAGE_BYTES: u64 = i32::MAX as u64;

/// How deep structures lie in each other: statistics in the header of a kind of page, and what is added to them one day.
const MAX_DEPTH: u8 = 3;

/// The number of `is_compressed` in the header of a data page of version 2.
const IS_COMPRESSED: i64 = 7;

/// The first fields of a structure, by their numbers: numbers of 32 bits, and a flag as 0 or 1.
type Fields = [Option<i64>; 9];

impl PageHeader {
    /// Reads the header with which `bytes` begin.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut compact = Compact { rest: bytes };
        let (mut is_typed, mut plain_size, mut size) = (false, None, None);
        let (mut of, mut fields) = (0, Fields::default());
        let mut field = 0;
        while let Some(kind) = compact.field(&mut field)? {
            match (field, kind) {
                // type, uncompressed_page_size, compressed_page_size, crc
                (1, I32) => is_typed = compact.integer().map(|_| true)?,
                (2, I32) => plain_size = Some(compact.integer()?),
                (3, I32) => size = u64::try_from(compact.integer()?).ok(),
                (4, I32) => _ = compact.integer()?,
                // One for each kind of page. Each begins with num_values.
                (5..=8, STRUCT) => (of, fields) = (field, compact.structure(MAX_DEPTH)?),
                _ => return Err(Unreadable::Wrong),
            }
        }
        match (size, plain_size, fields[1]) {
            (Some(size), Some(plain_size), Some(values)) if is_typed && size <= MAX_PAGE_BYTES => {
                let kind = PageKind::of(of, &fields);
                let plain_size = u64::try_from(plain_size).unwrap_or(0).min(MAX_PAGE_BYTES);
                let length = bytes.len() - compact.rest.len();
                Ok(Self { length, kind, size, plain_size, values })
            }
            _ => Err(Unreadable::Wrong),
        }
    }
}

impl PageKind {
    /// What the structure in this field of the header says.
    fn of(field: i64, fields: &Fields) -> Self {
        // PLAIN_DICTIONARY, as older writers call it, and RLE_DICTIONARY
        let are_indices = |encoding: Option<i64>| matches!(encoding, Some(2 | 8));
        match field {
            5 => Self::Data { indices: are_indices(fields[2]) },
            7 => Self::Dictionary,
            8 => {
                let bytes = |number: usize| fields[number].and_then(|n| u64::try_from(n).ok());
                match (bytes(5), bytes(6)) {
                    (Some(definition), Some(repetition)) => Self::DataV2 {
                        indices: are_indices(fields[4]),
                        levels: definition.saturating_add(repetition),
                        nulls: fields[2].unwrap_or(0),
                        compressed: fields[7] != Some(0),
                    },
                    _ => Self::Other,
                }
            }
            _ => Self::Other,
        }
    }
}

/// Reads structures of the compact protocol.
struct Compact<'a> {
    rest: &'a [u8],
}

impl Compact<'_> {
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

    /// Reads a structure of any kind, and returns what its first fields say.
    fn structure(&mut self, depth: u8) -> Result<Fields, Unreadable> {
        let inside = depth.checked_sub(1).ok_or(Unreadable::Wrong)?;
        let mut fields = Fields::default();
        let mut number = 0;
        while let Some(kind) = self.field(&mut number)? {
            let value = match kind {
                // No other flag is of interest, and none stands where a number is looked for.
                TRUE | FALSE => (number == IS_COMPRESSED).then(|| i64::from(kind == TRUE)),
                BYTE => self.byte().map(|_| None)?,
                I32 => Some(self.integer()?),
                I16 | I64 => self.varint().map(|_| None)?,
                BINARY => {
                    let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                    self.rest = self.rest.get(length..).ok_or(Unreadable::Short)?;
                    None
                }
                STRUCT => self.structure(inside).map(|_| None)?,
                // Doubles, lists and maps are in no header of a page.
                _ => return Err(Unreadable::Wrong),
            };
            let place = usize::try_from(number).ok().and_then(|number| fields.get_mut(number));
            if let (Some(place), Some(_)) = (place, value) {
                *place = value;
            }
        }
        Ok(fields)
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_says_what_the_page_holds() {
        let header =
            [0x15, 0, 0x15, 40, 0x15, 20, 0x2c, 0x15, 12, 0x15, 16, 0x15, 6, 0x15, 6, 0, 0, 9, 9];
        let kind = PageKind::Data { indices: true };
        let expected = PageHeader { length: 17, kind, size: 10, plain_size: 20, values: 6 };
        assert_eq!(PageHeader::read(&header), Ok(expected));
        let v2 = [
            0x15, 6, 0x15, 40, 0x15, 20, 0x5c, 0x15, 12, 0x15, 2, 0x15, 12, 0x15, 0, 0x15, 8, 0x15,
            4, 0x12, 0, 0,
        ];
        let kind = PageKind::DataV2 { indices: false, levels: 6, nulls: 1, compressed: false };
        assert_eq!(PageHeader::read(&v2).map(|header| header.kind), Ok(kind));
    }

    #[test]
    fn what_a_writer_says_is_read() {
        for (dictionary, kind) in
            [(false, PageKind::Data { indices: true }), (true, PageKind::Dictionary)]
        {
            let mut bytes = writer::header(dictionary, 1_000_000, 70_000, 5_000, 8);
            let length = bytes.len();
            let expected =
                PageHeader { length, kind, size: 70_000, plain_size: 1_000_000, values: 5_000 };
            bytes.extend([9, 9]);
            assert_eq!(PageHeader::read(&bytes), Ok(expected));
        }
    }

    #[test]
    fn structures_are_not_followed_without_end() {
        let mut header = [0x15, 0, 0x15, 0, 0x15, 0, 0x2c].to_vec();
        header.extend([0x1c; 1_000]);
        assert_eq!(PageHeader::read(&header), Err(Unreadable::Wrong));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: alloc::vec::Vec<u8>) {
            let _ = PageHeader::read(&bytes);
        }
    }
}
