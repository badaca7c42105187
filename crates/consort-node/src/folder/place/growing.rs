//! Files that grow where they stand: of a version that goes on where the one before ended, only what was added is written. The
//! cost follows what changed.
//!
//! Nobody reads half of it: a [lease](Lease) is held meanwhile, and whoever opens the file waits for some milliseconds, or is
//! told to try again if he does not want to wait. Nothing is overwritten, since all that is written is appended. If the node
//! is killed in between, the file is cut short until its directory is opened again: what is to be added was made durable
//! before, with a note of where it belongs, and is added then. The note stands in the hole that a tail begins with: nothing
//! that is received can be there. What the file is then is told by `place/journal.rs`.
//!
//! A file that somebody has open, that has several names, that is to become read-only, or that is on a file system that other
//! machines change, is replaced as a whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::limits::{MAX_CHUNK_BYTES, MAX_KEY_BYTES};
use rustix::fs::{
    Access, AtFlags, CWD, Mode, OFlags, accessat, fchmod, fsync, futimens, openat, unlinkat,
};
use rustix::io::Errno;

use super::lease::Lease;
use super::stage::{Form, TempName, modified_at, permissions};
use super::{Expected, PlaceError, Placed, Staged, absent_is_changed, check};
use crate::folder::root::{meta_at, meta_of, open_beneath, path_of_handle};
use crate::folder::{EntryKind, Meta, Root, Staging};

/// Smaller files are written anew as quickly.
const MIN_BYTES: u64 = 4 << 20;
/// What is added at a time. Nobody has to wait for longer than it takes to copy that.
const MAX_ADDED_BYTES: u64 = 64 << 20;
/// How much is compared, or copied, at a time.
const STEP_BYTES: usize = 1 << 20;
/// How the names of tails begin. The content follows.
pub(super) const TAIL_PREFIX: &str = "growing-";
/// How a note begins: the format of what follows.
const NOTE_MAGIC: [u8; 8] = *b"growing1";
/// The longest note. The hole in a tail is longer.
const MAX_NOTE_BYTES: usize = 128 + MAX_KEY_BYTES;
const _: () = assert!(MAX_NOTE_BYTES as u64 + (MAX_CHUNK_BYTES as u64) < MIN_BYTES);

/// A file that may grow, as it stands. Close it before it does.
#[derive(Debug)]
pub struct Growing {
    /// To look whether the new version begins like this.
    pub file: Arc<File>,
    /// Its state.
    pub old: Meta,
}

/// The version that a file grows into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Becomes {
    /// Its key, at which it stands.
    pub key: String,
    /// Of so many bytes.
    pub size: u64,
    /// Its permissions.
    pub mode: u32,
    /// Its modification time.
    pub mtime_ns: i64,
}

/// What a file has grown by. It is kept until that is durable.
#[derive(Debug)]
pub struct Grown(pub(super) TempName);

/// What a file grows by, staged: a file that is a hole up to where that begins, or a little before.
#[derive(Debug)]
pub(super) struct Tail {
    temp: TempName,
    file: Arc<File>,
    note: Note,
}

/// What is to become of a file, for whoever opens the directory after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    becomes: Becomes,
    inode: u64,
    /// Where the tail begins.
    old_size: u64,
}

impl Root {
    /// The file at `key`, if it can grow to `size` where it stands, as far as that can be told now: it is as `old` says, and
    /// nobody else has it open.
    #[must_use]
    pub fn growing(&self, key: &str, old: &Meta, size: u64) -> Option<Growing> {
        let added = size.checked_sub(old.size)?;
        if old.size < MIN_BYTES || !(1..=MAX_ADDED_BYTES).contains(&added) || old.size < added {
            return None;
        }
        let (file, now) = self.open_file(key).ok()?;
        let path = path_of_handle(&file);
        let can_grow = now.same_file_state(old)
            && has_one_name(&file)
            && self.shared_file_system().is_none()
            && accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
            && Lease::take_soon(&file).is_ok();
        can_grow.then(|| Growing { file: Arc::new(file), old: now })
    }

    /// Like [`stage_large`](Self::stage_large), for the end of a content.
    ///
    /// # Errors
    ///
    /// The disk is full, the file system failed, or the same content is on its way to another key.
    pub fn stage_tail(&self, content: [u8; 16]) -> Result<Staging, PlaceError> {
        let hex: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{TAIL_PREFIX}{hex}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(self.temp(), &name, flags, Mode::RUSR | Mode::WUSR)?;
        let temp = TempName { dir: Arc::clone(self.temp()), name, owned: true };
        Ok(Staging::named(file.into(), temp))
    }

    /// Adds a tail to the file at `key`.
    pub(super) fn grow(
        &self,
        tail: Tail,
        key: &str,
        expected: Expected,
    ) -> Result<Placed, PlaceError> {
        let Expected::Present(old) = expected else { return Err(PlaceError::Changed) };
        let Tail { mut temp, file: tail, note } = tail;
        let becomes = &note.becomes;
        let (dir, name) = self.open_parent(key).map_err(absent_is_changed)?;
        check(&dir, name, &old, key)?;
        let file = open_to_append(&dir, name).map_err(not_opened)?;
        let lease = Lease::take_soon(&file).map_err(PlaceError::Ungrown)?;
        let noted = (note.old_size, note.inode, becomes.key.as_str());
        if !meta_of(&file)?.same_file_state(&old) || noted != (old.size, old.inode, key) {
            return Err(PlaceError::Changed);
        }
        if self.room() < becomes.size - old.size {
            return Err(PlaceError::DiskFull);
        }
        // Some files can be appended to, but neither get a time nor be cut short again.
        let may_set = futimens(&file, &modified_at(old.mtime_ns));
        may_set.map_err(|errno| PlaceError::Ungrown(errno.into()))?;
        let grown = add(&tail, &file, old.size, becomes).and_then(|()| {
            // What is written from now on shows against this.
            let now = meta_of(&file)?;
            let is_there = meta_at(&dir, name).is_ok_and(|at| at.inode == now.inode)
                && self.is_parent_of(&dir, key);
            let is_it = now.size == becomes.size && is_there && lease.is_sure();
            if is_it { Ok(now) } else { Err(PlaceError::Changed) }
        });
        match grown {
            Ok(meta) => {
                temp.owned = false;
                Ok(Placed { meta, created: Vec::new(), grown: Some(Grown(temp)) })
            }
            Err(error) => {
                if !lease.is_sure() || shrink(&file, &old).is_err() {
                    // What is left undone is done when the directory is next opened, unless somebody writes to it before.
                    temp.owned = false;
                    tracing::error!(key, %error, "a file could not grow, and cannot be made what it was");
                }
                Err(error)
            }
        }
    }
}

impl Staging {
    /// Whether what is staged goes on where a file ends: it holds the same as that from `begin` to there.
    ///
    /// # Errors
    ///
    /// One of both cannot be read.
    pub fn goes_on(&self, growing: &Growing, begin: u64) -> io::Result<bool> {
        let range = begin..growing.old.size;
        Ok(same_to(&self.file, &growing.file, range.clone())? == range.end)
    }

    /// Makes what is staged the tail by which a file grows, if it [goes on](Self::goes_on) there. Nothing is durable yet.
    ///
    /// # Errors
    ///
    /// As for [`finish`](Self::finish).
    pub fn finish_tail(self, growing: Growing, becomes: Becomes) -> Result<Staged, PlaceError> {
        let Growing { old, .. } = growing;
        let (file, temp) = self.finish_named(becomes.size)?;
        let note = Note { becomes, inode: old.inode, old_size: old.size };
        file.write_all_at(&note.encode(), 0)?;
        Ok(Staged(Form::Tail(Tail { temp, file, note })))
    }
}

impl Staged {
    /// Whether a file grows by it.
    pub fn is_tail(&self) -> bool {
        matches!(self.0, Form::Tail(_))
    }
}

impl Note {
    fn encode(&self) -> Vec<u8> {
        let Becomes { key, size, mode, mtime_ns } = &self.becomes;
        let mut bytes = Vec::new();
        let mut writer = Writer(&mut bytes);
        writer.raw(&NOTE_MAGIC);
        writer.bytes(key.as_bytes());
        writer.u64(*size);
        writer.varint((*mode).into());
        writer.signed(*mtime_ns);
        writer.u64(self.inode);
        writer.u64(self.old_size);
        let hash = blake3::hash(&bytes);
        Writer(&mut bytes).raw(hash.as_bytes());
        bytes
    }

    /// What stands at the head of `bytes`, if it was written to the end.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let invalid = |what| DecodeError::Invalid { what };
        let mut reader = Reader::new(bytes);
        if reader.array("magic")? != NOTE_MAGIC {
            return Err(invalid("magic"));
        }
        let key = reader.text(MAX_KEY_BYTES, "key")?.to_owned();
        let size = reader.u64("size")?;
        let mode = u32::try_from(reader.varint("mode")?).map_err(|_| invalid("mode"))?;
        let mtime_ns = reader.signed("modification time")?;
        let (inode, old_size) = (reader.u64("inode")?, reader.u64("old size")?);
        let length = bytes.len() - reader.remaining();
        if reader.array("hash")? != *blake3::hash(&bytes[..length]).as_bytes() {
            return Err(invalid("hash"));
        }
        let becomes = Becomes { key, size, mode, mtime_ns };
        Ok(Self { becomes, inode, old_size })
    }
}

impl Tail {
    /// Makes it durable, with its name.
    pub(super) fn sync(&self) -> io::Result<()> {
        fsync(&self.file)?;
        Ok(fsync(&self.temp.dir)?)
    }
}

/// Whether a leftover in the temporary directory of `dir` is the tail of a file that had begun to grow. That is completed, and
/// the tail goes.
///
/// # Errors
///
/// The file cannot be completed, as where the disk is full: it must not be looked at before.
pub(in crate::folder) fn complete(
    dir: BorrowedFd<'_>,
    temp: &OwnedFd,
    leftover: &OsStr,
) -> io::Result<bool> {
    let Some(leftover) = leftover.to_str().filter(|name| name.starts_with(TAIL_PREFIX)) else {
        return Ok(false);
    };
    // Without a note nothing was added to anything.
    let Some((tail, note)) = read_note(temp, leftover)? else { return Ok(false) };
    let key = &note.becomes.key;
    let completed = add_rest(dir, &tail, &note).map_err(|error| {
        let text = "was growing when the node ended, and cannot be completed";
        io::Error::new(error.kind(), format!("{key} {text}: {error}"))
    })?;
    if completed {
        unlinkat(temp, leftover, AtFlags::empty())?;
    }
    Ok(completed)
}

/// A tail, if it is whole, and its note.
fn read_note(temp: &OwnedFd, name: &str) -> io::Result<Option<(File, Note)>> {
    let tail = File::from(open_beneath(temp, name, OFlags::RDONLY | OFlags::NOFOLLOW)?);
    let mut note = vec![0; MAX_NOTE_BYTES];
    let length = tail.metadata()?.len();
    if length < note.len() as u64 {
        return Ok(None);
    }
    tail.read_exact_at(&mut note, 0)?;
    let note = Note::decode(&note).ok().filter(|note| note.becomes.size == length);
    Ok(note.map(|note| (tail, note)))
}

/// Completes a file that begins like the one that was to grow and ends within the tail, or where it does. Any other one was
/// changed since, or had not begun to grow. Whether it is complete.
fn add_rest(dir: BorrowedFd<'_>, tail: &File, note: &Note) -> io::Result<bool> {
    let Note { becomes, inode, old_size } = note;
    let file = match open_to_append(dir, &becomes.key) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR) => return Ok(false),
        // Soon there is more of that, or whoever has the file to himself is done.
        Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN)) => {
            return Err(errno.into());
        }
        Err(errno) => {
            let key = &becomes.key;
            tracing::warn!(%key, %errno, "a file that was growing when the node ended cannot be completed");
            return Ok(false);
        }
    };
    let lease = Lease::take_soon(&file).ok();
    let now = meta_of(&file)?;
    let is_it = now.kind == EntryKind::File && now.inode == *inode;
    if !is_it || now.size <= *old_size || becomes.size < now.size {
        return Ok(false);
    }
    let added = same_to(&file, tail, *old_size..now.size)?;
    if added < now.size {
        // After a power loss, the file system may have made it longer than what reached the disk.
        // Nothing is cut off while somebody may be adding to it.
        if lease.is_none() || !is_zero(&file, added..now.size)? {
            tracing::warn!(key = %becomes.key, "a file that was growing when the node ended was written to since");
            return Ok(false);
        }
        file.set_len(added)?;
    }
    add(tail, &file, added, becomes).map_err(|error| match error {
        PlaceError::Io(error) => error,
        error => io::Error::other(error),
    })?;
    let is_complete = meta_of(&file)?.size == becomes.size;
    drop(lease);
    fsync(&file)?;
    tracing::info!(key = %becomes.key, is_complete, "completed a file that was growing when the node ended");
    Ok(is_complete)
}

fn open_to_append(dir: impl AsFd, path: &str) -> Result<File, Errno> {
    let flags =
        OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    open_beneath(&dir, path, flags).map(File::from)
}

fn not_opened(errno: Errno) -> PlaceError {
    match absent_is_changed(errno) {
        PlaceError::Changed => PlaceError::Changed,
        _ => PlaceError::Ungrown(errno.into()),
    }
}

/// Other names are other entries, or none of this dataset: what they name does not change.
fn has_one_name(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.nlink() == 1)
}

/// Adds what a file of so many bytes lacks, and gives it its attributes. Nothing is durable yet.
fn add(tail: &File, mut file: &File, size: u64, becomes: &Becomes) -> Result<(), PlaceError> {
    let mut bytes = vec![0; STEP_BYTES];
    for (at, count) in steps(size..becomes.size) {
        tail.read_exact_at(&mut bytes[..count], at)?;
        io::Write::write_all(&mut file, &bytes[..count])?;
    }
    futimens(file, &modified_at(becomes.mtime_ns))?;
    Ok(fchmod(file, permissions(becomes.mode))?)
}

/// Takes away what was added: nobody else has added anything.
fn shrink(file: &File, old: &Meta) -> io::Result<()> {
    file.set_len(old.size)?;
    fchmod(file, permissions(old.mode))?;
    Ok(futimens(file, &modified_at(old.mtime_ns))?)
}

/// Up to where both files hold the same in a range.
fn same_to(one: &File, other: &File, range: Range<u64>) -> io::Result<u64> {
    let (mut a, mut b) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    for (at, count) in steps(range.clone()) {
        one.read_exact_at(&mut a[..count], at)?;
        other.read_exact_at(&mut b[..count], at)?;
        if let Some(same) = (0..count).find(|&n| a[n] != b[n]) {
            return Ok(at + same as u64);
        }
    }
    Ok(range.end)
}

fn is_zero(file: &File, range: Range<u64>) -> io::Result<bool> {
    let mut bytes = vec![0; STEP_BYTES];
    for (at, count) in steps(range) {
        file.read_exact_at(&mut bytes[..count], at)?;
        if bytes[..count].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A range in steps: where each begins, and how long it is.
fn steps(range: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let end = range.end;
    range.step_by(STEP_BYTES).map(move |at| {
        (at, usize::try_from(end - at).map_or(STEP_BYTES, |rest| rest.min(STEP_BYTES)))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::Journal;
    use super::super::tests::Fixture;
    use super::*;

    const MTIME: i64 = 1_234_567_890_123_456_789;
    const OLD: usize = (4 << 20) + 12_345;

    /// A file that can grow by some bytes.
    struct Grows {
        fixture: Fixture,
        old: Meta,
        new: Vec<u8>,
    }

    impl Grows {
        fn new(added: usize) -> Self {
            let new: Vec<u8> =
                (0..OLD + added).map(|at| (at / 7 + at / 4096).to_le_bytes()[0]).collect();
            let fixture = Fixture::new();
            fs::write(fixture.at("f"), &new[..OLD]).unwrap();
            let old = fixture.stat("f");
            Self { fixture, old, new }
        }

        fn growing(&self) -> Option<Growing> {
            self.fixture.root.growing("f", &self.old, self.new.len() as u64)
        }

        fn tail(&self) -> Staged {
            let begin = OLD - 1000;
            let growing = self.growing().expect("it can grow");
            let staging = self.fixture.root.stage_tail([7; 16]).unwrap();
            staging.target(begin as u64).write(&self.new[begin..]).unwrap();
            assert!(staging.goes_on(&growing, begin as u64).unwrap());
            staging.finish_tail(growing, self.becomes()).unwrap()
        }

        fn becomes(&self) -> Becomes {
            let (key, size) = ("f".to_owned(), self.new.len() as u64);
            Becomes { key, size, mode: 0o640, mtime_ns: MTIME }
        }

        fn place(&self, tail: Staged) -> Result<Placed, PlaceError> {
            self.fixture.root.sync_staged(std::slice::from_ref(&tail)).unwrap();
            self.fixture.root.place_file(tail, "f", Expected::Present(self.old))
        }

        fn content(&self) -> Vec<u8> {
            fs::read(self.fixture.at("f")).unwrap()
        }

        /// As if the node had been killed when so much was added; then its directory is opened again.
        fn open_again_after(&mut self, added: usize, meanwhile: impl FnOnce(&Self)) {
            let tail = self.tail();
            self.fixture.root.sync_staged(std::slice::from_ref(&tail)).unwrap();
            let Form::Tail(Tail { mut temp, .. }) = tail.0 else { panic!("it is a tail") };
            temp.owned = false;
            drop(temp);
            let file = open_to_append(self.fixture.root.dir(), "f").unwrap();
            io::Write::write_all(&mut &file, &self.new[OLD..OLD + added]).unwrap();
            drop(file);
            meanwhile(self);
            self.fixture.reopen();
        }
    }

    #[test]
    fn a_file_grows_where_it_stands_and_takes_its_attributes() {
        let grows = Grows::new(3_000_000);
        let mut placed = grows.place(grows.tail()).unwrap();
        assert!(grows.content() == grows.new);
        let now = grows.fixture.stat("f");
        assert_eq!((placed.meta, placed.created), (now, Vec::<String>::new()));
        // It is not durable yet.
        assert!(!grows.fixture.temp_is_empty());
        let mut journal = Journal::default();
        journal.keep(placed.grown.take().unwrap());
        journal.forget();
        assert_eq!((now.inode, now.mode, now.mtime_ns), (grows.old.inode, 0o640, MTIME));
        assert!(grows.fixture.temp_is_empty());
    }

    #[test]
    fn a_file_that_somebody_has_open_or_that_has_another_name_does_not_grow() {
        let grows = Grows::new(100);
        let reader = File::open(grows.fixture.at("f")).unwrap();
        assert!(grows.growing().is_none());
        drop(reader);
        // It is opened when the tail is there already.
        let tail = grows.tail();
        let reader = File::open(grows.fixture.at("f")).unwrap();
        let placed = grows.place(tail);
        assert!(matches!(placed, Err(PlaceError::Ungrown(_))), "{placed:?}");
        assert!(grows.content() == grows.new[..OLD] && grows.fixture.stat("f") == grows.old);
        drop(reader);
        fs::hard_link(grows.fixture.at("f"), grows.fixture.at("g")).unwrap();
        let old = grows.fixture.stat("f");
        assert!(grows.fixture.root.growing("f", &old, grows.new.len() as u64).is_none());
        assert!(grows.fixture.temp_is_empty());
    }

    #[test]
    fn what_is_small_shrinks_or_grows_by_much_is_replaced() {
        let grows = Grows::new(100);
        let can_grow_to = |size: u64| grows.fixture.root.growing("f", &grows.old, size).is_some();
        let old = OLD as u64;
        assert_eq!(
            [old - 1, old, old + 1, 2 * old, 2 * old + 1].map(can_grow_to),
            [false, false, true, true, false]
        );
        assert!(
            grows
                .fixture
                .root
                .growing("f", &Meta { size: MIN_BYTES - 1, ..grows.old }, old)
                .is_none()
        );
        let other = Meta { mtime_ns: 1, ..grows.old };
        assert!(grows.fixture.root.growing("f", &other, old + 1).is_none());
    }

    #[test]
    fn what_its_user_wrote_before_it_grows_stays_as_it_is() {
        let grows = Grows::new(100);
        let tail = grows.tail();
        let mut file = File::options().append(true).open(grows.fixture.at("f")).unwrap();
        io::Write::write_all(&mut file, b"user").unwrap();
        drop(file);
        let placed = grows.place(tail);
        assert!(matches!(placed, Err(PlaceError::Changed)), "{placed:?}");
        assert!(grows.content() == [&grows.new[..OLD], b"user"].concat());
    }

    #[test]
    fn a_file_whose_end_is_another_one_does_not_go_on() {
        let grows = Grows::new(100);
        let growing = grows.growing().unwrap();
        let staging = grows.fixture.root.stage_tail([7; 16]).unwrap();
        let begin = OLD as u64 - 10;
        staging.target(begin).write(&[0xFF; 110]).unwrap();
        assert!(!staging.goes_on(&growing, begin).unwrap());
        assert!(staging.goes_on(&growing, OLD as u64).unwrap());
    }

    #[test]
    fn a_file_that_was_growing_when_the_node_was_killed_is_completed() {
        // Nothing was added, some of it was, and all of it without the attributes.
        for added in [0, 1, 2_000_000, 3_000_000] {
            let mut grows = Grows::new(3_000_000);
            grows.open_again_after(added, |_| {});
            let has_begun = added != 0;
            let expected = if has_begun { &grows.new[..] } else { &grows.new[..OLD] };
            assert!(grows.content() == expected, "{added}");
            let now = grows.fixture.stat("f");
            assert_eq!(now.mtime_ns == MTIME && now.mode == 0o640, has_begun, "{added}");
            // What was not needed may be looked for where it has arrived.
            assert_eq!(grows.fixture.temp_is_empty(), has_begun, "{added}");
        }
    }

    #[test]
    fn zeroes_that_a_power_loss_leaves_in_place_of_what_was_added_are_replaced() {
        for added in [0, 1, 1_500_000] {
            let mut grows = Grows::new(3_000_000);
            grows.open_again_after(added, |grows| {
                let file = File::options().write(true).open(grows.fixture.at("f")).unwrap();
                file.set_len((OLD + added + 700_000) as u64).unwrap();
            });
            assert!(grows.content() == grows.new, "{added}");
            assert!(grows.fixture.temp_is_empty(), "{added}");
        }
    }

    #[test]
    fn what_its_user_wrote_after_a_kill_is_never_touched() {
        let written = |grows: &Grows, bytes: &[u8]| {
            let mut file = File::options().append(true).open(grows.fixture.at("f")).unwrap();
            io::Write::write_all(&mut file, bytes).unwrap();
        };
        let mut grows = Grows::new(3_000_000);
        grows.open_again_after(1000, |grows| written(grows, b"user"));
        assert!(grows.content() == [&grows.new[..OLD + 1000], b"user"].concat());
        // Longer than it was to be.
        let mut grows = Grows::new(1000);
        grows.open_again_after(1000, |grows| written(grows, b"user"));
        assert!(grows.content() == [&grows.new[..], b"user"].concat());
        // Another file of that name.
        let mut grows = Grows::new(1000);
        grows.open_again_after(500, |grows| {
            fs::copy(grows.fixture.at("f"), grows.fixture.at("g")).unwrap();
            fs::rename(grows.fixture.at("g"), grows.fixture.at("f")).unwrap();
        });
        assert!(grows.content() == grows.new[..OLD + 500]);
        // None.
        let mut grows = Grows::new(1000);
        grows.open_again_after(500, |grows| fs::remove_file(grows.fixture.at("f")).unwrap());
        assert!(!grows.fixture.at("f").exists());
    }

    #[test]
    fn whoever_reads_by_key_waits_while_a_file_grows() {
        let grows = Grows::new(1000);
        let file = open_to_append(grows.fixture.root.dir(), "f").unwrap();
        let lease = Lease::take(&file).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| grows.fixture.root.open_file("f"));
            while lease.is_whole() {
                std::thread::yield_now();
            }
            drop(lease);
            reader.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_tail_that_was_not_finished_is_what_has_arrived_of_its_content() {
        let mut grows = Grows::new(1000);
        let staging = grows.fixture.root.stage_tail([7; 16]).unwrap();
        staging.target(OLD as u64).write(&[1; 1000]).unwrap();
        staging.leave();
        grows.fixture.reopen();
        assert!(grows.content() == grows.new[..OLD]);
        assert!(grows.fixture.root.arrived([7; 16]).is_some());
    }

    proptest! {
        #[test]
        fn a_note_is_read_as_it_was_written_and_nothing_else_is_one(
            key in "[a-z/é]{1,60}", size: u64, mode in 0_u32..0o1000, mtime_ns: i64, inode: u64,
            old_size: u64, at: prop::sample::Index, flip in 1_u8..,
        ) {
            let becomes = Becomes { key, size, mode, mtime_ns };
            let note = Note { becomes, inode, old_size };
            let bytes = note.encode();
            let padded = [&bytes[..], &[0; 100]].concat();
            prop_assert_eq!(Note::decode(&padded).unwrap(), note);
            let mut damaged = padded;
            damaged[at.index(bytes.len())] ^= flip;
            prop_assert!(Note::decode(&damaged).is_err());
            prop_assert!(Note::decode(&bytes[..at.index(bytes.len())]).is_err());
        }
    }
}
