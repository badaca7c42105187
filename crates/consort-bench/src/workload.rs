//! The data that is measured with, and how it is changed. It cannot be compressed, and depends on nothing but its seed.
//!
//! Modification times are whole seconds in the past, as some tools keep no more of them. A change sets a later one, so
//! that it is seen by tools that trust times, however soon after the last it comes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

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
            for number in 0..self.count {
                let path = dir.join(name(number));
                if number % FILES_PER_DIRECTORY == 0 {
                    path.parent().map_or(Ok(()), fs::create_dir_all)?;
                }
                random.write_file(&path, self.size)?;
            }
            Ok(())
        };
        make().map_err(|error| Failure::io("write the data", error))
    }

    /// The paths of so many different files, taken by chance.
    pub(crate) fn some(self, dir: &Path, count: usize, random: &mut Random) -> Vec<PathBuf> {
        let mut numbers: Vec<usize> = (0..self.count).collect();
        for taken in 0..count.min(self.count) {
            let others = (self.count - taken) as u64;
            #[expect(clippy::cast_possible_truncation, reason = "less than a number of files")]
            numbers.swap(taken, taken + (random.next() % others) as usize);
        }
        numbers.truncate(count);
        numbers.into_iter().map(|number| dir.join(name(number))).collect()
    }
}

/// Where a file is below the directory of all.
fn name(number: usize) -> PathBuf {
    format!("{:04}/{number:07}.bin", number / FILES_PER_DIRECTORY).into()
}

/// The modification time of what was made by a change, or before all of them (0).
fn time_of(change: usize) -> SystemTime {
    const BEGIN: Duration = Duration::from_secs(1_600_000_000);
    // Unison takes two seconds for the error of a file system, and one hour for summer.
    const STEP: u64 = 10_000;
    SystemTime::UNIX_EPOCH + BEGIN + Duration::from_secs(change as u64 * STEP)
}

/// Replaces the content of a file, in place.
pub(crate) fn overwrite(path: &Path, content: &[u8], change: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.set_modified(time_of(change))
}

/// Adds to the end of a file.
pub(crate) fn append(path: &Path, content: &[u8], change: usize) -> io::Result<()> {
    let mut file = File::options().append(true).open(path)?;
    file.write_all(content)?;
    file.set_modified(time_of(change))
}

/// Makes `path` hold `inserted` and then all of `old`.
pub(crate) fn insert_at_head(
    path: &Path,
    old: &Path,
    inserted: &[u8],
    change: usize,
) -> Result<(), Failure> {
    let insert = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BLOCK_BYTES, File::create(path)?);
        file.write_all(inserted)?;
        io::copy(&mut File::open(old)?, &mut file)?;
        file.flush()?;
        file.get_ref().set_modified(time_of(change))
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
        file.set_modified(time_of(0))
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
        insert_at_head(&new, &old, b"new and ", 1).unwrap();
        assert_eq!(fs::read(&new).unwrap(), b"new and what was there");
        append(&new, b" and more", 2).unwrap();
        assert_eq!(fs::read(&new).unwrap(), b"new and what was there and more");
        overwrite(&new, b"other", 3).unwrap();
        assert_eq!(fs::read(&new).unwrap(), b"other");
        assert_eq!(fs::metadata(&new).unwrap().modified().unwrap(), time_of(3));
    }

    #[test]
    fn some_files_are_different_ones_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { count: 700, size: 1 };
        files.make(dir.path(), 1).unwrap();
        let some = files.some(dir.path(), 600, &mut Random::new(1));
        assert!(some.iter().all(|path| path.is_file()));
        assert_eq!(some.iter().collect::<std::collections::BTreeSet<_>>().len(), 600);
        assert_ne!(some, files.some(dir.path(), 600, &mut Random::new(2)));
        assert_eq!(files.some(dir.path(), 1000, &mut Random::new(1)).len(), 700);
    }
}
