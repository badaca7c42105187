//! Rows are what was written, and nothing that a disk returns makes reading them panic.

use std::fmt::Debug;

use proptest::prelude::*;

use super::*;

/// What decodes comes back from what it encodes to.
fn comes_back<T: Debug + PartialEq>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    if let Ok(row) = decode(bytes) {
        assert_eq!(decode(&encode(&row)), Ok(row));
    }
}

fn read_as_everything(bytes: &[u8]) {
    let start = Sequence(5);
    comes_back(bytes, decode_chunk, encode_chunk);
    comes_back(bytes, decode_extent, |extent| encode_extent(*extent));
    comes_back(bytes, decode_siblings, |siblings| encode_siblings(siblings));
    comes_back(
        bytes,
        |bytes| decode_feed(start, bytes),
        |place| encode_feed(start, place.commit_end, place.via, &place.key),
    );
    comes_back(bytes, decode_varint, |value| encode_varint(*value));
    comes_back(bytes, decode_record, encode_record);
    comes_back(bytes, decode_dataset, encode_dataset);
    comes_back(bytes, decode_replica, encode_replica);
    comes_back(bytes, decode_pending, encode_pending);
    comes_back(bytes, decode_losers, |losers| encode_losers(*losers));
    comes_back(bytes, decode_cursor, |cursor| encode_cursor(*cursor));
    comes_back(bytes, decode_index, |(through, index)| encode_index(*through, index));
    comes_back(bytes, decode_index_change, encode_index_change);
    comes_back(
        bytes,
        |bytes| Ok((number_of(bytes)?, index_change_of(bytes)?)),
        |(number, place)| match place {
            None => index_key(*number),
            Some(place) => index_change_key(*number, *place),
        },
    );
    comes_back(bytes, decode_identity, encode_identity);
    comes_back(bytes, decode_clock, |clock| encode_clock(*clock));
    comes_back(bytes, decode_pack_tail, |tail| encode_pack_tail(*tail));
    comes_back(bytes, dataset_of_row, |id| dataset_key(*id));
    comes_back(
        bytes,
        |bytes| Ok((number_of(bytes)?, name_of(bytes)?)),
        |(number, name)| name_key(*number, name),
    );
    comes_back(
        bytes,
        |bytes| Ok((number_of(bytes)?, sequence_of(bytes)?)),
        |(number, sequence)| feed_key(*number, *sequence),
    );
    comes_back(
        bytes,
        |bytes| Ok((number_of(bytes)?, fingerprint_of(bytes)?)),
        |(number, fingerprint)| fingerprint_key(*number, *fingerprint),
    );
    comes_back(bytes, chunk_of, |(hash, site)| match site {
        None => hash.0.to_vec(),
        Some(site) => place_key(*hash, site),
    });
    let _ = (replica_of(bytes), decode_number(bytes));
}

/// A dataset's row is looked up by its tag, which reading its key takes for granted.
fn dataset_of_row(key: &[u8]) -> Result<DatasetId, DecodeError> {
    if key.starts_with(&DATASETS) {
        dataset_of(key)
    } else {
        Err(DecodeError::Invalid { what: "tag" })
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_row_or_refused(bytes: Vec<u8>) {
        read_as_everything(&bytes);
    }

    #[test]
    fn small_numbers_are_a_row_or_refused(
        bytes in prop::collection::vec(prop_oneof![0u8..6, Just(b'a')], 0..90),
    ) {
        read_as_everything(&bytes);
    }
}
