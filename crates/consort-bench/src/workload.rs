//! The data that is measured with. It cannot be compressed, and depends on nothing but its seed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use crate::failure::Failure;

/// Bytes that are made at once.
const BLOCK_BYTES: usize = 1 << 20;

/// Files in one directory, which is what file systems and people like.
const FILES_PER_DIRECTORY: usize = 500;

/// A number of files of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files {
    pub(crate) count: usize,
    /// Bytes of each.
    pub(crate) size: usize,
}

impl Files {
    pub(crate) fn bytes(self) -> u64 {
        self.count as u64 * self.size as u64
    }

    /// Writes them below `dir`, in directories of some hundred.
    pub(crate) fn make(self, dir: &Path, seed: u64) -> Result<(), Failure> {
        let mut random = Random::new(seed);
        let mut make = || -> io::Result<()> {
            let mut parent = dir.to_path_buf();
            for number in 0..self.count {
                if number % FILES_PER_DIRECTORY == 0 {
                    parent = dir.join(format!("{:04}", number / FILES_PER_DIRECTORY));
                    fs::create_dir_all(&parent)?;
                }
                random.write_file(&parent.join(format!("{number:07}.bin")), self.size)?;
            }
            Ok(())
        };
        make().map_err(|error| Failure::io("write the data", error))
    }
}

/// Makes `path` hold `length` new bytes and then all of `old`.
pub(crate) fn insert_at_head(
    path: &Path,
    old: &Path,
    length: usize,
    random: &mut Random,
) -> Result<(), Failure> {
    let mut insert = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BLOCK_BYTES, File::create(path)?);
        file.write_all(&random.bytes(length))?;
        io::copy(&mut File::open(old)?, &mut file)?;
        file.flush()
    };
    insert().map_err(|error| Failure::io("write the data", error))
}

/// A small generator (SplitMix64): its seed repeats it on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
        bytes
    }

    fn write_file(&mut self, path: &Path, size: usize) -> io::Result<()> {
        let mut file = File::create(path)?;
        let mut left = size;
        while left > 0 {
            let length = left.min(BLOCK_BYTES);
            file.write_all(&self.bytes(length))?;
            left -= length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_writes_the_same_and_another_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { count: 3, size: BLOCK_BYTES + 5 };
        for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
            files.make(&dir.path().join(name), seed).unwrap();
        }
        let at = |name: &str| fs::read(dir.path().join(name).join("0000/0000002.bin")).unwrap();
        assert_eq!(at("a").len(), files.size);
        assert!(at("a") == at("b") && at("a") != at("c"));
        assert_eq!(files.bytes(), 3 * files.size as u64);
    }

    #[test]
    fn an_insertion_keeps_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, b"what was there").unwrap();
        insert_at_head(&new, &old, 10, &mut Random::new(1)).unwrap();
        assert_eq!(&fs::read(&new).unwrap()[10..], b"what was there");
    }
}
