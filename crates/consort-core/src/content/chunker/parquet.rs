//! Parquet files: a stretch is a page with the header before it, and the pages behind it that have as many values.
//! What a header says is read in [`parquet`](crate::content::parquet).
//!
//! Pages follow each other from the fifth byte on, column by column; what comes behind the last (indexes and the footer)
//! is no page, and ends the format. Most writers begin a page after so many rows. Then rows that come or go move all rows
//! behind them through such pages, which are no units of change, and to begin anew with each would hide what is
//! left of the old ones. A writer that cuts pages by their content makes them of different numbers of rows.

use super::{MAX_HEADER_BYTES, Step, Stretch, header_and_body};
use crate::content::parquet::{MAGIC, PageHeader, Unreadable};

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

/// A page: its header, and what is behind it.
struct Page<'a> {
    header: &'a [u8],
    /// The bytes behind the header.
    size: u64,
    values: i64,
}

impl<'a> Page<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let bytes = &bytes[..bytes.len().min(MAX_HEADER_BYTES)];
        let header = PageHeader::read(bytes)?;
        Ok(Self { header: &bytes[..header.length], size: header.size, values: header.values })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::content::parquet::writer;

    /// A data page of so many rows, with the statistics of a column of numbers.
    pub(in super::super) fn page(rows: u16, body: &[u8]) -> Vec<u8> {
        let size = body.len() as u64;
        let mut bytes = writer::header(false, size + 10, size, rows.into(), 0);
        // Behind the encodings come `statistics`: null_count, max_value and min_value.
        bytes.truncate(bytes.len() - 2);
        bytes.extend([0x1c, 0x36, 0, 0x28, 2, 9, 9, 0x18, 1, 1, 0, 0, 0]);
        bytes.extend(body);
        bytes
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
}
