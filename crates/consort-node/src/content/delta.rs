//! Parquet files that another version of theirs is made from: both sides take pages apart into values, whose place in the
//! file and compression do not matter any more; whoever lacks chunks says which pieces of values it has, and is told how to put
//! pages together from these and what is new.
//!
//! Nothing here is believed. What is put together is a chunk if it has its hash; if not, and whenever anything is not as it
//! is expected, the chunk is fetched as any other. So this changes how many bytes are sent, and nothing else: chunks, manifests
//! and versions know nothing of it.
//!
//! In reading order: `page` (one page, apart and together; its encodings are in `runs`, `dictionary` and `codec`),
//! `pieces` (cuts values where they say so), `base` (the pieces of the file that is here), `give` (says how to make another
//! file from them), `take` (makes it), `ask` (the conversation about it). The messages are in
//! [`consort_core::content::delta`].

pub(super) mod ask;
mod base;
mod codec;
mod dictionary;
pub(super) mod give;
mod page;
mod pieces;
mod runs;
// Snappy is a library in C++ (the reason stands there), and calling one is unsafe. It is done nowhere else in this crate.
#[allow(unsafe_code)]
mod snappy;
mod take;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use consort_core::content::parquet::{MAGIC, PageHeader, PageKind, Unreadable};
use consort_core::limits::MAX_PAGE_HEAD_BYTES;

pub use ask::{MAX_LACKING, Rebuild, Rebuilder, Rebuilt, is_base, pays};

/// What can be read at any place.
trait Source {
    /// Fills `to` with what stands at `offset`.
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// How many bytes there are.
    fn size(&self) -> u64;
}

/// A file as it is on the disk. What is read may change at any time.
#[derive(Debug)]
struct OnDisk<'a> {
    file: &'a File,
    size: u64,
}

impl<'a> OnDisk<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, size: file.metadata()?.len() })
    }
}

impl Source for OnDisk<'_> {
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, offset)
    }

    fn size(&self) -> u64 {
        self.size
    }
}

/// A page in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageAt {
    offset: u64,
    header: PageHeader,
}

impl PageAt {
    fn is_dictionary(&self) -> bool {
        self.header.kind == PageKind::Dictionary
    }

    /// Where what follows it begins.
    fn end(&self) -> u64 {
        self.offset + self.header.length as u64 + self.header.size
    }
}

/// The first bytes of a page: its header is among them as a rule.
const FIRST_BYTES: usize = 512;

/// The page that begins at `offset`, if one does and all of it is there.
fn page_at(source: &mut impl Source, offset: u64) -> io::Result<Option<PageAt>> {
    let left = source.size().saturating_sub(offset);
    for most in [FIRST_BYTES, MAX_PAGE_HEAD_BYTES] {
        let length = usize::try_from(left).unwrap_or(most).min(most);
        let mut bytes = vec![0; length];
        source.read_at(offset, &mut bytes)?;
        match PageHeader::read(&bytes) {
            Ok(header) => {
                let page = PageAt { offset, header };
                return Ok((page.end() <= source.size()).then_some(page));
            }
            Err(Unreadable::Short) if length == most => {}
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// Where the first page begins, if this is a file with pages.
fn first_page(source: &mut impl Source) -> io::Result<Option<u64>> {
    let mut first = [0; MAGIC.len()];
    if source.size() < first.len() as u64 {
        return Ok(None);
    }
    source.read_at(0, &mut first)?;
    Ok((first == MAGIC).then_some(first.len() as u64))
}
