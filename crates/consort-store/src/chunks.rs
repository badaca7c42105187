//! Where chunks are, as rows: how places come and go. Nearly every chunk has one place, and one row under its hash,
//! which is found, or known to be missing, without a search; further places have rows behind that one. What the rows'
//! bytes are stands in `layout.rs`, what a place may be in `transaction.rs`.

use std::collections::BTreeMap;

use consort_core::ChunkHash;
use consort_core::store::StoreError;

use crate::layout::{self, ChunkRow, Extent, Number, Site, Table};
use crate::lsm::{Moment, Rows, damaged};
use crate::view::decoded;

/// Changes of places that are written together, on top of a moment.
pub(crate) struct Chunks<'m> {
    moment: &'m Moment,
    /// The rows under the hashes that were looked at, as they will be.
    looked: BTreeMap<ChunkHash, ChunkRow>,
}

impl<'m> Chunks<'m> {
    /// No changes yet.
    pub(crate) fn new(moment: &'m Moment) -> Self {
        Self { moment, looked: BTreeMap::new() }
    }

    /// Reads what changing the places of a chunk takes: that is all that can fail.
    pub(crate) fn look(&mut self, hash: ChunkHash) -> Result<(), StoreError> {
        if !self.looked.contains_key(&hash) {
            let row = self.moment.get(Table::Chunks, &hash.0)?;
            // Places are hints. What cannot be read does not keep others from being written.
            let row = row.and_then(|row| layout::decode_chunk(&row).ok()).unwrap_or_default();
            self.looked.insert(hash, row);
        }
        Ok(())
    }

    /// Adds a place of a chunk that was looked at, or changes where in the site it is.
    pub(crate) fn put(&mut self, hash: ChunkHash, site: Site, extent: Extent, rows: &mut Rows) {
        let row = self.looked.entry(hash).or_default();
        let first = match &row.place {
            None => true,
            Some((first, _)) => *first == site,
        };
        if first {
            if row.more && row.place.is_none() {
                // It may be one of the further ones, and would be there twice.
                rows.remove(Table::Chunks, layout::place_key(hash, &site));
            }
            row.place = Some((site, extent));
        } else {
            rows.put(Table::Chunks, layout::place_key(hash, &site), layout::encode_extent(extent));
            if row.more {
                return;
            }
            row.more = true;
        }
        rows.put(Table::Chunks, hash.0, layout::encode_chunk(row));
    }

    /// Removes a place of a chunk that was looked at, if it is known.
    pub(crate) fn remove(&mut self, hash: ChunkHash, site: &Site, rows: &mut Rows) {
        let row = self.looked.entry(hash).or_default();
        if row.place.as_ref().is_none_or(|(first, _)| first != site) {
            if row.more {
                rows.remove(Table::Chunks, layout::place_key(hash, site));
            }
            return;
        }
        row.place = None;
        if row.more {
            // Says that there are others; it stays, since finding out whether that is still so takes a search.
            rows.put(Table::Chunks, hash.0, layout::encode_chunk(row));
        } else {
            rows.remove(Table::Chunks, hash.0);
        }
    }

    /// Removes the places in files of a dataset from one row, which was just read.
    pub(crate) fn clear(
        &mut self,
        number: Number,
        key: &[u8],
        value: &[u8],
        rows: &mut Rows,
    ) -> Result<(), StoreError> {
        let wrong = |error| damaged(Table::Chunks, error);
        let of_dataset = |site: &Site| matches!(site, Site::File(of, _) if *of == number);
        let (hash, further) = layout::chunk_of(key).map_err(wrong)?;
        if let Some(site) = further {
            if of_dataset(&site) {
                rows.remove(Table::Chunks, key);
            }
            return Ok(());
        }
        let mut row = layout::decode_chunk(value).unwrap_or_default();
        row.place = row.place.filter(|(site, _)| !of_dataset(site));
        if row.place.is_none() {
            // The further ones that belong to the dataset go, too, now or with the next rows.
            let mut others = further_places(self.moment, hash);
            row.more =
                row.more && others.any(|other| other.is_ok_and(|(site, _)| !of_dataset(&site)));
            if row.more {
                rows.put(Table::Chunks, key, layout::encode_chunk(&row));
            } else {
                rows.remove(Table::Chunks, key);
            }
        }
        self.looked.insert(hash, row);
        Ok(())
    }
}

/// The places of a chunk, at most `limit`.
pub(crate) fn places(
    moment: &Moment,
    hash: ChunkHash,
    limit: usize,
) -> Result<Vec<(Site, Extent)>, StoreError> {
    let row = moment.get(Table::Chunks, &hash.0)?;
    let row = decoded(Table::Chunks, row.map(|row| layout::decode_chunk(&row)))?;
    let Some(ChunkRow { place, more }) = row else { return Ok(Vec::new()) };
    let mut places = Vec::from_iter(place);
    if more {
        for further in further_places(moment, hash).take(limit - places.len().min(limit)) {
            places.push(further?);
        }
    }
    Ok(places)
}

/// The places of a chunk behind its first, packs before files.
fn further_places(
    moment: &Moment,
    hash: ChunkHash,
) -> impl Iterator<Item = Result<(Site, Extent), StoreError>> + use<> {
    let from = layout::further_places(hash);
    moment.rows(Table::Chunks, &hash.0, from).map(|row| {
        let (key, value) = row?;
        let wrong = |error| damaged(Table::Chunks, error);
        let (_, site) = layout::chunk_of(&key).map_err(wrong)?;
        let site = site.expect("a key longer than a hash names a site");
        Ok((site, layout::decode_extent(&value).map_err(wrong)?))
    })
}
