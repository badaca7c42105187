//! What compresses pages. A page does not say by what it was compressed (the end of the file does): its bytes do.

use consort_core::content::delta::Codec;
use zstd::bulk::{Compressor, Decompressor};

use super::snappy;

/// Levels of Zstandard that writers use when they are not told otherwise, and that come before others do.
const ZSTD_LEVELS: [u8; 2] = [1, 3];

/// The first bytes of what Zstandard compressed.
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The plain form of a page that has `length` bytes then, and what may have compressed it: the codecs of which one gives
/// the bytes again, or none.
pub(super) fn decompress(body: &[u8], length: usize) -> Option<(Vec<u8>, &'static [Codec])> {
    const ZSTD: [Codec; 2] = [Codec::Zstd(ZSTD_LEVELS[0]), Codec::Zstd(ZSTD_LEVELS[1])];
    if body.starts_with(ZSTD_MAGIC) {
        let mut zstd = Decompressor::new().ok()?;
        let plain = zstd.decompress(body, length).ok().filter(|plain| plain.len() == length);
        if let Some(plain) = plain {
            return Some((plain, &ZSTD));
        }
    }
    if let Some(plain) = snappy::decompress(body, length) {
        return Some((plain, &[Codec::Snappy]));
    }
    (body.len() == length).then(|| (body.to_vec(), &[Codec::Stored][..]))
}

/// Compresses pages. Keeps what it needs for that.
#[derive(Default)]
pub(super) struct Packer {
    zstd: Option<(u8, Compressor<'static>)>,
}

impl Packer {
    /// Compresses.
    pub(super) fn pack(&mut self, codec: Codec, plain: Vec<u8>) -> Option<Vec<u8>> {
        match codec {
            Codec::Stored => Some(plain),
            Codec::Snappy => snappy::compress(&plain),
            Codec::Zstd(level) => {
                if self.zstd.as_ref().is_none_or(|(other, _)| *other != level) {
                    self.zstd = Some((level, Compressor::new(i32::from(level)).ok()?));
                }
                let (_, zstd) = self.zstd.as_mut()?;
                zstd.compress(&plain).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_shows_by_what() {
        let plain = b"so it is, and so it was, and so it will be".repeat(50);
        for codec in [Codec::Stored, Codec::Snappy, Codec::Zstd(1), Codec::Zstd(3)] {
            let packed = Packer::default().pack(codec, plain.clone()).expect("short");
            let (again, codecs) = decompress(&packed, plain.len()).expect("whole");
            assert_eq!(again, plain);
            let gives = |codec: &&Codec| {
                Packer::default().pack(**codec, plain.clone()).as_ref() == Some(&packed)
            };
            assert!(codecs.iter().find(gives).is_some());
            assert!(decompress(&packed[..packed.len() - 1], plain.len()).is_none());
        }
    }
}
