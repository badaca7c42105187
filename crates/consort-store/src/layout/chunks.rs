//! The rows of `Chunks`: where a chunk is.

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::{ChunkHash, DatasetId, Key};

use super::{Number, narrow, prefix, rest_as_key};
use crate::transaction::Place;

const PACKED: u8 = 0;
const IN_FILE: u8 = 1;
const MORE: u8 = 1 << 1;
const NOWHERE: u8 = 1 << 2;

/// In what a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// In a pack.
    Pack(u64),
    /// In a file of a linked directory.
    File(Number, Key),
}

/// Where in its site a chunk is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// The row of a chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChunkRow {
    /// One place. None if it went and others did not.
    pub(crate) place: Option<(Site, Extent)>,
    /// Whether there may be rows of further places.
    pub(crate) more: bool,
}

/// The key of the row of a further place of a chunk.
pub(crate) fn place_key(hash: ChunkHash, site: &Site) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    bytes.extend_from_slice(&hash.0);
    match site {
        Site::Pack(pack) => {
            bytes.push(PACKED);
            bytes.extend_from_slice(&pack.to_be_bytes());
        }
        Site::File(number, path) => {
            bytes.push(IN_FILE);
            bytes.extend_from_slice(&prefix(*number));
            bytes.extend_from_slice(path.as_bytes());
        }
    }
    bytes
}

/// Where the keys of the rows of the further places of a chunk begin.
pub(crate) fn further_places(hash: ChunkHash) -> Vec<u8> {
    [&hash.0[..], &[PACKED]].concat()
}

/// Reads the hash, and the site if it is a further place's, back from the key of a row in `Chunks`.
pub(crate) fn chunk_of(key: &[u8]) -> Result<(ChunkHash, Option<Site>), DecodeError> {
    let mut from = Reader::new(key);
    let hash = ChunkHash(from.array("chunk hash")?);
    if from.is_empty() {
        return Ok((hash, None));
    }
    let site = match from.u8("place")? {
        PACKED => {
            let pack = u64::from_be_bytes(from.array("pack")?);
            from.finish()?;
            Site::Pack(pack)
        }
        IN_FILE => {
            let number = Number(u32::from_be_bytes(from.array("dataset number")?));
            Site::File(number, rest_as_key(from)?)
        }
        _ => return Err(DecodeError::Invalid { what: "place" }),
    };
    Ok((hash, Some(site)))
}

/// The value of a chunk's row.
pub(crate) fn encode_chunk(row: &ChunkRow) -> Vec<u8> {
    let more = if row.more { MORE } else { 0 };
    let mut bytes = Vec::with_capacity(64);
    let mut to = Writer(&mut bytes);
    match &row.place {
        None => to.u8(NOWHERE | more),
        Some((site, extent)) => {
            to.u8(more | if matches!(site, Site::Pack(_)) { PACKED } else { IN_FILE });
            to.varint(extent.offset);
            to.varint(u64::from(extent.length));
            match site {
                Site::Pack(pack) => to.varint(*pack),
                Site::File(number, path) => {
                    to.varint(u64::from(number.0));
                    to.raw(path.as_bytes());
                }
            }
        }
    }
    bytes
}

/// Reads such a value.
pub(crate) fn decode_chunk(bytes: &[u8]) -> Result<ChunkRow, DecodeError> {
    let mut from = Reader::new(bytes);
    let flags = from.u8("place")?;
    let more = flags & MORE != 0;
    let kind = flags & !MORE;
    if kind == NOWHERE {
        return from.finish().map(|()| ChunkRow { place: None, more });
    }
    let extent = read_extent(&mut from)?;
    let site = match kind {
        PACKED => {
            let pack = from.varint("pack")?;
            from.finish()?;
            Site::Pack(pack)
        }
        IN_FILE => {
            let number = Number(narrow(from.varint("dataset number")?, "dataset number")?);
            Site::File(number, rest_as_key(from)?)
        }
        _ => return Err(DecodeError::Invalid { what: "place" }),
    };
    Ok(ChunkRow { place: Some((site, extent)), more })
}

/// The value of the row of a further place.
pub(crate) fn encode_extent(extent: Extent) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8);
    Writer(&mut bytes).varint(extent.offset);
    Writer(&mut bytes).varint(u64::from(extent.length));
    bytes
}

/// Reads such a value.
pub(crate) fn decode_extent(bytes: &[u8]) -> Result<Extent, DecodeError> {
    let mut from = Reader::new(bytes);
    let extent = read_extent(&mut from)?;
    from.finish().map(|()| extent)
}

fn read_extent(from: &mut Reader<'_>) -> Result<Extent, DecodeError> {
    let offset = from.varint("offset")?;
    Ok(Extent { offset, length: narrow(from.varint("length")?, "length")? })
}

/// The site of a place, if its dataset has a number.
pub(crate) fn site_of(
    place: &Place,
    number_of: impl Fn(DatasetId) -> Option<Number>,
) -> Option<Site> {
    match place {
        Place::InFile { dataset, path, .. } => Some(Site::File(number_of(*dataset)?, path.clone())),
        Place::Packed { pack, .. } => Some(Site::Pack(*pack)),
    }
}
