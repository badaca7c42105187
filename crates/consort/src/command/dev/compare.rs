//! Whether directories are the same, found out by reading them: names, kinds, bytes, modes, link targets, and the
//! modification times of files, not of directories, which nobody promises. Nothing here asks a node.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Where a linked directory keeps what is not part of the dataset.
const PRIVATE: &str = ".consort";
/// A file that says which names are not part of the dataset.
const IGNORE: &str = ".consortignore";
/// Permission bits that are kept.
const MODE_MASK: u32 = 0o777;
/// Bytes of two files that are compared at once.
const READ_BYTES: usize = 128 * 1024;
/// Differences that are collected.
const MAX_DIFFERENCES: usize = 1000;

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Files, not directories or links.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// What is in the first directory and was compared.
    pub(crate) tally: Tally,
    /// What differs, in words; not more than a bounded number.
    pub(crate) differences: Vec<String>,
    /// Names in the first directory alone that need not be elsewhere: that cannot be keys, or may be ignored.
    pub(crate) not_compared: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Fact {
    File {
        len: u64,
        mode: u32,
        modified: (i64, i64),
    },
    Directory {
        mode: u32,
    },
    Symlink {
        target: PathBuf,
    },
    /// A socket, a device or the like, which no dataset has.
    Other,
}

/// Compares all directories with the first.
pub(crate) fn compare(dirs: &[PathBuf]) -> Result<Comparison, Error> {
    let mut found = Comparison::default();
    let Some((first, others)) = dirs.split_first() else { return Ok(found) };
    let facts = walk(first)?;
    let ignores = facts.keys().any(|path| path.ends_with(IGNORE));
    let may_be_alone = |path: &Path, fact: &Fact| {
        ignores || path.to_str().is_none() || matches!(fact, Fact::Other)
    };
    let mut alone = std::collections::BTreeSet::new();
    for other in others {
        let mut theirs = walk(other)?;
        for (path, fact) in &facts {
            let difference = match theirs.remove(path) {
                None if may_be_alone(path, fact) => {
                    alone.insert(path);
                    continue;
                }
                None => Some(format!("only in {}", first.display())),
                Some(theirs) => difference(fact, &theirs, &first.join(path), &other.join(path))?,
            };
            if let Some(difference) = difference {
                found.note(path, other, &difference);
            }
        }
        for path in theirs.into_keys() {
            found.note(&path, other, &format!("not in {}", first.display()));
        }
    }
    found.not_compared = alone.len() as u64;
    for (path, fact) in &facts {
        if let Fact::File { len, .. } = fact
            && !alone.contains(path)
        {
            found.tally.files += 1;
            found.tally.bytes += len;
        }
    }
    Ok(found)
}

/// Adds what is in `dir` to `tally`.
pub(crate) fn count(dir: &Path, mut tally: Tally) -> Result<Tally, Error> {
    for fact in walk(dir)?.into_values() {
        if let Fact::File { len, .. } = fact {
            tally.files += 1;
            tally.bytes += len;
        }
    }
    Ok(tally)
}

impl Comparison {
    fn note(&mut self, path: &Path, dir: &Path, difference: &str) {
        if self.differences.len() < MAX_DIFFERENCES {
            self.differences.push(format!("{} in {}: {difference}", path.display(), dir.display()));
        }
    }
}

/// Everything below `root`, by its path from there.
fn walk(root: &Path) -> Result<BTreeMap<PathBuf, Fact>, Error> {
    let mut facts = BTreeMap::new();
    let mut to_read = vec![PathBuf::new()];
    while let Some(dir) = to_read.pop() {
        let full = root.join(&dir);
        let failed = |error| Error::io("read", &full, &error);
        for entry in fs::read_dir(&full).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = dir.join(entry.file_name());
            if path == Path::new(PRIVATE) {
                continue;
            }
            let fact = fact(&entry.path()).map_err(failed)?;
            if matches!(fact, Fact::Directory { .. }) {
                to_read.push(path.clone());
            }
            facts.insert(path, fact);
        }
    }
    Ok(facts)
}

fn fact(path: &Path) -> io::Result<Fact> {
    let metadata = fs::symlink_metadata(path)?;
    let (kind, mode) = (metadata.file_type(), metadata.mode() & MODE_MASK);
    Ok(if kind.is_file() {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Fact::File { len: metadata.len(), mode, modified }
    } else if kind.is_dir() {
        Fact::Directory { mode }
    } else if kind.is_symlink() {
        Fact::Symlink { target: fs::read_link(path)? }
    } else {
        Fact::Other
    })
}

/// How two entries differ, if they do.
fn difference(
    ours: &Fact,
    theirs: &Fact,
    our: &Path,
    their: &Path,
) -> Result<Option<String>, Error> {
    if ours != theirs {
        return Ok(Some(format!("{ours:?} became {theirs:?}")));
    }
    let failed = |error| Error::io("compare", their, &error);
    match ours {
        Fact::File { .. } if !same_bytes(our, their).map_err(failed)? => {
            Ok(Some("other bytes".to_string()))
        }
        _ => Ok(None),
    }
}

fn same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let mut one = BufReader::with_capacity(READ_BYTES, File::open(one)?);
    let mut other = BufReader::with_capacity(READ_BYTES, File::open(other)?);
    let (mut left, mut right) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    loop {
        let (read, also) = (read_full(&mut one, &mut left)?, read_full(&mut other, &mut right)?);
        if left[..read] != right[..also] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

/// Reads until `buffer` is full or there is no more.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match reader.read(&mut buffer[have..])? {
            0 => break,
            more => have += more,
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    fn two_equal() -> (tempfile::TempDir, Vec<PathBuf>) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let dirs = ["a", "b"].map(|name| place.path().join(name));
        let then = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        for dir in &dirs {
            fs::create_dir_all(dir.join("sub")).expect("made");
            fs::create_dir_all(dir.join(PRIVATE)).expect("made");
            fs::write(dir.join(PRIVATE).join("own"), dir.display().to_string()).expect("written");
            fs::write(dir.join("sub/file"), vec![7; READ_BYTES + 1]).expect("written");
            let file = File::options().write(true).open(dir.join("sub/file")).expect("opened");
            file.set_modified(then).expect("dated");
            symlink("sub/file", dir.join("link")).expect("linked");
        }
        (place, dirs.into())
    }

    #[test]
    fn equal_directories_are_equal_whatever_their_private_part_holds() {
        let (_place, dirs) = two_equal();
        let found = compare(&dirs).expect("readable");
        assert_eq!(found.differences, Vec::<String>::new());
        assert_eq!(found.tally, Tally { files: 1, bytes: READ_BYTES as u64 + 1 });
        assert_eq!(found.not_compared, 0);
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        type Change = fn(&Path);
        let changes: [Change; 7] = [
            |dir| fs::write(dir.join("more"), "x").expect("written"),
            |dir| fs::remove_file(dir.join("link")).expect("removed"),
            |dir| {
                fs::remove_file(dir.join("link")).expect("removed");
                symlink("elsewhere", dir.join("link")).expect("linked");
            },
            |dir| {
                let file = dir.join("sub/file");
                fs::set_permissions(file, Permissions::from_mode(0o600)).expect("changed");
            },
            |dir| {
                let file = File::options().write(true).open(dir.join("sub/file")).expect("opened");
                file.set_modified(SystemTime::UNIX_EPOCH).expect("dated");
            },
            |dir| {
                // The last byte, with the time put back.
                let file = dir.join("sub/file");
                let then = fs::metadata(&file).and_then(|m| m.modified()).expect("dated");
                let mut bytes = vec![7; READ_BYTES];
                bytes.push(8);
                fs::write(&file, bytes).expect("written");
                let file = File::options().write(true).open(file).expect("opened");
                file.set_modified(then).expect("dated");
            },
            |dir| fs::set_permissions(dir.join("sub"), Permissions::from_mode(0o700)).expect("set"),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let (_place, dirs) = two_equal();
            change(&dirs[1]);
            let found = compare(&dirs).expect("readable");
            assert_eq!(found.differences.len(), 1, "change {number}: {:?}", found.differences);
        }
    }

    #[test]
    fn what_may_be_ignored_may_be_missing_elsewhere_but_not_differ() {
        let (_place, dirs) = two_equal();
        for dir in &dirs {
            fs::write(dir.join(IGNORE), "*.log\n").expect("written");
            let file = File::options().write(true).open(dir.join(IGNORE)).expect("opened");
            file.set_modified(SystemTime::UNIX_EPOCH).expect("dated");
        }
        fs::write(dirs[0].join("a.log"), "x").expect("written");
        let found = compare(&dirs).expect("readable");
        assert_eq!((found.differences.len(), found.not_compared), (0, 1));
        fs::write(dirs[1].join("b.txt"), "x").expect("written");
        assert_eq!(compare(&dirs).expect("readable").differences.len(), 1);
    }
}
