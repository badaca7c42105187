//! What is about to be put in place, noted for whoever opens the directory after the node was killed in between: what then
//! stands there and is in no record is known for what it is, whatever others have made of it since.
//!
//! A note is written before the first entry changes, and removed when all is recorded. It is made durable only where a file
//! grows, so a power loss may take it along. What is pending in the store tells the same then, but for what others changed
//! between the two.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::limits::MAX_KEY_BYTES;
use consort_core::{AuthorId, Dot, Key, Kind, Timestamp};
use rustix::fs::{Mode, OFlags, fsync, openat};
use rustix::io::Errno;

use super::growing::Grown;
use super::stage::TempName;
use crate::folder::Root;
use crate::folder::root::{names, open_beneath};

/// How the names of such notes begin.
const JOURNAL_PREFIX: &str = "placing-";
/// How a note begins: the format of what follows.
const MAGIC: [u8; 8] = *b"placing1";
/// Entries of one note; what is put in place with more of them has several.
const MAX_ENTRIES: usize = 4096;
/// The longest note.
const MAX_BYTES: u64 = 64 + (MAX_ENTRIES * (2 * MAX_KEY_BYTES + 96)) as u64;

/// What is about to stand at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placing {
    /// Where.
    pub path: Key,
    /// The key of the version; not the path if it is a conflict copy.
    pub key: Key,
    /// Which version.
    pub dot: Dot,
    /// Its content.
    pub content: [u8; 16],
    /// What it is.
    pub kind: Kind,
    /// Its permissions.
    pub mode: u16,
    /// Its modification time.
    pub modified_ns: i64,
}

/// The notes of what may be in place and not recorded. Unless they are forgotten, whoever opens the directory next reads them.
#[derive(Debug, Default)]
#[must_use]
pub struct Journal(Vec<TempName>);

impl Journal {
    /// What a file has grown by goes when the notes go.
    pub fn keep(&mut self, Grown(tail): Grown) {
        self.0.push(tail);
    }

    /// The notes of another batch, too.
    pub fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// All of it is recorded, or is something else by now.
    pub fn forget(mut self) {
        self.0.iter_mut().for_each(|note| note.owned = true);
    }
}

impl Root {
    /// Notes what is about to be put in place; with `durable`, for a power loss as well.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file system failed.
    pub fn begin_placing(&self, placing: &[Placing], durable: bool) -> io::Result<Journal> {
        let mut journal = Journal(Vec::new());
        for placing in placing.chunks(MAX_ENTRIES) {
            let mut note = self.new_note()?;
            note.1.write_all(&encode(placing))?;
            if durable {
                note.1.sync_all()?;
            }
            journal.0.push(note.0);
        }
        if durable {
            fsync(self.temp())?;
        }
        // Before, all of them went again.
        journal.0.iter_mut().for_each(|note| note.owned = false);
        Ok(journal)
    }

    fn new_note(&self) -> io::Result<(TempName, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        loop {
            let name = self.temp_name(JOURNAL_PREFIX);
            match openat(self.temp(), &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    let dir = Arc::clone(self.temp());
                    return Ok((TempName { dir, name, owned: true }, file.into()));
                }
                // Of whoever was killed.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// What whoever had the directory open before noted, and did not record as far as is known.
    ///
    /// # Errors
    ///
    /// The notes cannot be read.
    pub fn left_placing(&self) -> io::Result<(Journal, Vec<Placing>)> {
        let (mut journal, mut placing) = (Journal(Vec::new()), Vec::new());
        for name in names(self.temp())? {
            let Some(name) = name.to_str().filter(|name| is_note(name)) else { continue };
            placing.extend(read(self.temp(), name)?);
            let (dir, name) = (Arc::clone(self.temp()), name.to_owned());
            journal.0.push(TempName { dir, name, owned: false });
        }
        Ok((journal, placing))
    }
}

/// Whether something in the temporary directory is such a note.
pub(in crate::folder) fn is_note(name: &str) -> bool {
    name.starts_with(JOURNAL_PREFIX)
}

fn read(temp: &OwnedFd, name: &str) -> io::Result<Vec<Placing>> {
    let file = File::from(open_beneath(temp, name, OFlags::RDONLY | OFlags::NOFOLLOW)?);
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    // What was not written to the end was noted before anything was put in place, or is what a power loss left of it.
    Ok(decode(&bytes).unwrap_or_default())
}

fn encode(placing: &[Placing]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer(&mut bytes);
    writer.raw(&MAGIC);
    writer.count(placing.len());
    for Placing { path, key, dot, content, kind, mode, modified_ns } in placing {
        writer.bytes(path.as_bytes());
        writer.bytes(if key == path { b"" } else { key.as_bytes() });
        writer.raw(&dot.author.0);
        writer.u64(dot.time.0);
        writer.raw(content);
        writer.u8(match kind {
            Kind::File => 0,
            Kind::Directory => 1,
            Kind::Symlink => 2,
        });
        writer.varint((*mode).into());
        writer.signed(*modified_ns);
    }
    let hash = blake3::hash(&bytes);
    Writer(&mut bytes).raw(hash.as_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<Placing>, DecodeError> {
    let invalid = |what| DecodeError::Invalid { what };
    let length = bytes.len().checked_sub(blake3::OUT_LEN).ok_or(invalid("length"))?;
    let (bytes, hash) = bytes.split_at(length);
    if *hash != *blake3::hash(bytes).as_bytes() {
        return Err(invalid("hash"));
    }
    let mut reader = Reader::new(bytes);
    if reader.array("magic")? != MAGIC {
        return Err(invalid("magic"));
    }
    let key = |text| Key::new(text).map_err(|_| invalid("key"));
    let mut placing = Vec::new();
    for _ in 0..reader.varint("entries")? {
        let path = key(reader.text(MAX_KEY_BYTES, "path")?)?;
        let key = match reader.text(MAX_KEY_BYTES, "key")? {
            "" => path.clone(),
            text => key(text)?,
        };
        let author = AuthorId(reader.array("author")?);
        let dot = Dot { author, time: Timestamp(reader.u64("time")?) };
        let content = reader.array("content")?;
        let kind = match reader.u8("kind")? {
            0 => Kind::File,
            1 => Kind::Directory,
            2 => Kind::Symlink,
            _ => return Err(invalid("kind")),
        };
        let mode = u16::try_from(reader.varint("mode")?).map_err(|_| invalid("mode"))?;
        let modified_ns = reader.signed("modification time")?;
        placing.push(Placing { path, key, dot, content, kind, mode, modified_ns });
    }
    reader.finish()?;
    Ok(placing)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::tests::Fixture;
    use super::*;

    fn some(number: usize) -> Placing {
        let path = Key::new(format!("dir/f{number}")).unwrap();
        let key = if number.is_multiple_of(3) { path.clone() } else { Key::new("other").unwrap() };
        let dot = Dot { author: AuthorId([1; 16]), time: Timestamp(number as u64) };
        let kind = [Kind::File, Kind::Directory, Kind::Symlink][number % 3];
        Placing { path, key, dot, content: [7; 16], kind, mode: 0o644, modified_ns: -5 }
    }

    #[test]
    fn what_was_noted_is_told_to_whoever_opens_the_directory_until_it_is_forgotten() {
        let mut fixture = Fixture::new();
        let all: Vec<Placing> = (0..MAX_ENTRIES + 1).map(some).collect();
        let first = fixture.root.begin_placing(&all, false).unwrap();
        fixture.root.begin_placing(&all[..1], true).unwrap().forget();
        drop(first);
        for _ in 0..2 {
            fixture.reopen();
            let (journal, mut left) = fixture.root.left_placing().unwrap();
            left.sort_by_key(|placing| placing.dot.time);
            assert_eq!(left, all);
            drop(journal);
        }
        fixture.root.left_placing().unwrap().0.forget();
        fixture.reopen();
        assert_eq!(fixture.root.left_placing().unwrap().1, []);
        assert_eq!(fs::read_dir(fixture.at(".consort/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_note_that_was_not_written_to_the_end_says_nothing_and_goes() {
        let mut fixture = Fixture::new();
        let bytes = encode(&[some(0), some(1)]);
        for length in [0, 20, bytes.len() - 1] {
            fs::write(fixture.at(".consort/tmp/placing-0"), &bytes[..length]).unwrap();
            fixture.reopen();
            let (journal, left) = fixture.root.left_placing().unwrap();
            assert_eq!(left, []);
            journal.forget();
            assert_eq!(fs::read_dir(fixture.at(".consort/tmp")).unwrap().count(), 0);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_or_nothing(
            count in 0..5_usize,
            at in 0..1000_usize,
            flip in 1_u8..,
            noise in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let all: Vec<Placing> = (0..count).map(some).collect();
            let mut bytes = encode(&all);
            prop_assert_eq!(decode(&bytes).unwrap(), all);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes).is_err());
            prop_assert!(decode(&noise).is_err());
        }
    }
}
