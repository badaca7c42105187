//! Files that grow where they stand: of a version that goes on where the one before ended, only what was added is written. The
//! cost follows what changed, and whoever follows the file goes on following it.
//!
//! Nobody sees half of it: a [lease](Lease) is taken first, and whoever opens the file meanwhile waits. Nothing is
//! overwritten, since all that is written is appended. If the node is killed in between, the file is cut short until its
//! directory is opened again: what is to be added was made durable before, with a note of where it belongs, and is
//! added then. That note stands where the tail has its hole:
//! nothing that is received can be there.
//!
//! A file that somebody has open, that has several names, or that is on a file system that other machines change, is
//! replaced as a whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::limits::{MAX_CHUNK_BYTES, MAX_KEY_BYTES};
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, Mode, OFlags, accessat, fallocate, fchmod, fsync,
    futimens, openat,
};
use rustix::io::Errno;

use super::lease::Lease;
use super::stage::{Form, TempName, modified_at, permissions};
use super::{Expected, PlaceError, Placed, Staged, absent_is_changed, check};
use crate::folder::root::{meta_at, meta_of, open_beneath, path_of_handle};
use crate::folder::{EntryKind, Meta, Root, Staging};

/// Smaller files are written anew as quickly.
const MIN_BYTES: u64 = 4 << 20;
/// What is added at a time. Nobody has to wait for longer than that takes.
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
    key: String,
    inode: u64,
    /// Where the tail begins.
    old_size: u64,
    size: u64,
    mode: u32,
    mtime_ns: i64,
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
        let may_write =
            accessat(CWD, path_of_handle(&file), Access::WRITE_OK, AtFlags::EACCESS).is_ok();
        let is_free = may_write
            && self.shared_file_system().is_none()
            && has_one_name(&file)
            && Lease::take(&file).is_ok();
        let old = (is_free && now.same_file_state(old)).then_some(now)?;
        Some(Growing { file: Arc::new(file), old })
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

    /// Adds a tail to the file at `key`, durably.
    pub(super) fn grow(
        &self,
        tail: Tail,
        key: &str,
        expected: Expected,
    ) -> Result<Placed, PlaceError> {
        let Expected::Present(old) = expected else { return Err(PlaceError::Changed) };
        let Tail { temp, file: tail, note } = tail;
        let (dir, name) = self.open_parent(key).map_err(absent_is_changed)?;
        check(&dir, name, &old, key)?;
        let file = open_to_append(&dir, name).map_err(|errno| PlaceError::Ungrown(errno.into()))?;
        let lease = Lease::take(&file).map_err(PlaceError::Ungrown)?;
        let is_expected = meta_of(&file)?.same_file_state(&old)
            && (old.size, old.inode, key) == (note.old_size, note.inode, &note.key);
        if !is_expected {
            return Err(PlaceError::Changed);
        }
        let grown = reserve(&file, &note).and_then(|()| {
            append(&tail, &file, note.old_size..note.size)?;
            finish(&file, &note)?;
            let now = meta_of(&file)?;
            let is_still_there = meta_at(&dir, name).is_ok_and(|at| at.inode == now.inode)
                && self.is_parent_of(&dir, key);
            if now.size == note.size && is_still_there { Ok(now) } else { Err(PlaceError::Changed) }
        });
        let meta = match grown {
            Ok(meta) => meta,
            Err(error) => {
                shrink(&file, &lease, &old);
                return Err(error);
            }
        };
        drop(lease);
        drop(temp);
        fsync(self.temp())?;
        Ok(Placed { meta, created: Vec::new() })
    }
}

impl Staging {
    /// Whether what is staged goes on where the file ends: where that may grow, it holds what that file holds from `begin` to
    /// its end.
    ///
    /// # Errors
    ///
    /// One of both cannot be read.
    pub fn goes_on(&self, growing: &Growing, begin: u64) -> io::Result<bool> {
        same_bytes(&self.file, &growing.file, begin..growing.old.size)
    }

    /// Makes what is staged the tail by which the file at `key` grows, if it [goes on](Self::goes_on) there. Nothing is
    /// durable yet.
    ///
    /// # Errors
    ///
    /// As for [`finish`](Self::finish).
    pub fn finish_tail(
        self,
        key: &str,
        growing: Growing,
        size: u64,
        mode: u32,
        mtime_ns: i64,
    ) -> Result<Staged, PlaceError> {
        let Growing { old, .. } = growing;
        let (file, temp) = self.finish_named(size)?;
        let note = Note {
            key: key.to_owned(),
            inode: old.inode,
            old_size: old.size,
            size,
            mode,
            mtime_ns,
        };
        file.write_all_at(&note.encode(), 0)?;
        Ok(Staged(Form::Tail(Tail { temp, file, note })))
    }
}

impl Note {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer(&mut bytes);
        writer.raw(&NOTE_MAGIC);
        writer.bytes(self.key.as_bytes());
        writer.u64(self.inode);
        writer.u64(self.old_size);
        writer.u64(self.size);
        writer.varint(self.mode.into());
        writer.signed(self.mtime_ns);
        let hash = blake3::hash(&bytes);
        Writer(&mut bytes).raw(hash.as_bytes());
        bytes
    }

    /// What stands at the head of `bytes`, if it was written to the end.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.array("magic")? != NOTE_MAGIC {
            return Err(DecodeError::Invalid { what: "magic" });
        }
        let key = reader.text(MAX_KEY_BYTES, "key")?.to_owned();
        let (inode, old_size, size) =
            (reader.u64("inode")?, reader.u64("old size")?, reader.u64("size")?);
        let mode = u32::try_from(reader.varint("mode")?)
            .map_err(|_| DecodeError::Invalid { what: "mode" })?;
        let mtime_ns = reader.signed("modification time")?;
        let length = bytes.len() - reader.remaining();
        if reader.array("hash")? != *blake3::hash(&bytes[..length]).as_bytes() {
            return Err(DecodeError::Invalid { what: "hash" });
        }
        Ok(Self { key, inode, old_size, size, mode, mtime_ns })
    }
}

impl Tail {
    /// Makes it durable, with its name.
    pub(super) fn sync(&self) -> io::Result<()> {
        fsync(&self.file)?;
        Ok(fsync(&self.temp.dir)?)
    }
}

/// Whether a leftover in the temporary directory of `dir` is a tail that was finished. What of it was not added yet is added
/// then, if that had begun.
///
/// # Errors
///
/// It cannot be added, as where the disk is full: the file must not be looked at before.
pub(in crate::folder) fn complete(
    dir: BorrowedFd<'_>,
    temp: &OwnedFd,
    leftover: &OsStr,
) -> io::Result<bool> {
    let Some(leftover) = leftover.to_str().filter(|name| name.starts_with(TAIL_PREFIX)) else {
        return Ok(false);
    };
    let tail = File::from(open_beneath(temp, leftover, OFlags::RDONLY | OFlags::NOFOLLOW)?);
    let mut note = vec![0; MAX_NOTE_BYTES];
    // Without a note nothing was added to anything.
    if tail.read_exact_at(&mut note, 0).is_err() {
        return Ok(false);
    }
    let Ok(note) = Note::decode(&note) else { return Ok(false) };
    if tail.metadata()?.len() == note.size {
        add_rest(dir, &tail, &note)?;
    }
    Ok(true)
}

/// Completes a file that begins like the one that was to grow and ends within the tail. Any other one was changed since, or
/// had not begun to grow.
fn add_rest(dir: BorrowedFd<'_>, tail: &File, note: &Note) -> io::Result<()> {
    let Ok(file) = open_to_append(dir, &note.key) else { return Ok(()) };
    let now = meta_of(&file)?;
    let is_it = now.kind == EntryKind::File && now.inode == note.inode;
    let has_begun = note.old_size < now.size && now.size <= note.size;
    if !is_it || !has_begun {
        return Ok(());
    }
    if !same_bytes(&file, tail, note.old_size..now.size)? {
        tracing::warn!(key = %note.key, "a file that was growing when the node ended was written to since");
        return Ok(());
    }
    // Whoever has it open has seen the half of it.
    let lease = Lease::take(&file).ok();
    append(tail, &file, now.size..note.size)?;
    finish(&file, note)?;
    drop(lease);
    tracing::info!(key = %note.key, "completed a file that was growing when the node ended");
    Ok(())
}

fn open_to_append(dir: impl AsFd, path: &str) -> Result<File, Errno> {
    let flags =
        OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    open_beneath(&dir, path, flags).map(File::from)
}

/// Other names are other entries, or none of this dataset: what they name does not change.
fn has_one_name(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.nlink() == 1)
}

/// Finds out whether there is room before anything is added.
fn reserve(file: &File, note: &Note) -> Result<(), PlaceError> {
    let added = note.size - note.old_size;
    match fallocate(file, FallocateFlags::KEEP_SIZE, note.old_size, added) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Appends a range of one file to another one.
fn append(from: &File, mut to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut bytes = vec![0; STEP_BYTES];
    for (at, count) in steps(range) {
        from.read_exact_at(&mut bytes[..count], at)?;
        io::Write::write_all(&mut to, &bytes[..count])?;
    }
    Ok(())
}

/// Gives a file that has grown its attributes, and makes it durable.
fn finish(file: &File, note: &Note) -> io::Result<()> {
    futimens(file, &modified_at(note.mtime_ns))?;
    fchmod(file, permissions(note.mode))?;
    Ok(fsync(file)?)
}

/// Takes away what was added. Under the lease nobody else has added anything.
fn shrink(file: &File, lease: &Lease<'_>, old: &Meta) {
    if !lease.is_undisturbed() {
        return;
    }
    let shrunk = file
        .set_len(old.size)
        .and_then(|()| Ok(fchmod(file, permissions(old.mode))?))
        .and_then(|()| Ok(futimens(file, &modified_at(old.mtime_ns))?));
    if let Err(error) = shrunk {
        tracing::error!(%error, "a file could not grow, and cannot be made what it was");
    }
}

/// Whether both files hold the same in a range.
fn same_bytes(one: &File, other: &File, range: std::ops::Range<u64>) -> io::Result<bool> {
    let (mut a, mut b) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    for (at, count) in steps(range) {
        one.read_exact_at(&mut a[..count], at)?;
        other.read_exact_at(&mut b[..count], at)?;
        if a[..count] != b[..count] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A range in steps: where each begins, and how long it is.
fn steps(range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let end = range.end;
    range.step_by(STEP_BYTES).map(move |at| {
        (at, usize::try_from(end - at).map_or(STEP_BYTES, |rest| rest.min(STEP_BYTES)))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::tests::Fixture;
    use super::*;

    const MTIME: i64 = 1_234_567_890_123_456_789;
    const OLD: usize = MIN_BYTES as usize + 12_345;

    /// A file that can grow by some bytes.
    struct Grows {
        fixture: Fixture,
        old: Meta,
        new: Vec<u8>,
    }

    impl Grows {
        fn new(added: usize) -> Self {
            let new: Vec<u8> = (0..OLD + added).map(|at| (at / 7 + at / 4096) as u8).collect();
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
            staging.finish_tail("f", growing, self.new.len() as u64, 0o640, MTIME).unwrap()
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
            assert!(self.fixture.temp_is_empty());
        }
    }

    #[test]
    fn a_file_grows_where_it_stands_and_takes_its_attributes() {
        let grows = Grows::new(3_000_000);
        let placed = grows.place(grows.tail()).unwrap();
        assert!(grows.content() == grows.new);
        let now = grows.fixture.stat("f");
        assert_eq!((placed.meta, placed.created), (now, Vec::<String>::new()));
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
            !grows
                .fixture
                .root
                .growing("f", &Meta { size: MIN_BYTES - 1, ..grows.old }, old)
                .is_some()
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
        }
    }

    #[test]
    fn what_its_user_did_after_a_kill_is_never_touched() {
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
            key in "[a-z/é]{1,60}", inode: u64, old_size: u64, size: u64, mode in 0_u32..0o1000, mtime_ns: i64,
            at: prop::sample::Index, flip in 1_u8..,
        ) {
            let note = Note { key, inode, old_size, size, mode, mtime_ns };
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
