//! Content on its way: files that have no key yet. Giving them one is in `place.rs`.
//!
//! As a rule such a file has no name at all (`O_TMPFILE`): nothing is left of it after a crash, and
//! making many of them does not queue up for one directory. Where the file system cannot do that,
//! or too many are open, it has a name in `.consort/tmp/`; and so do large ones, of which something is to be left
//! (`partial.rs`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fallocate, fchmod,
    futimens, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::growing::Tail;
use crate::folder::root::{meta_of, open_beneath};
use crate::folder::{Meta, PlaceError, Root};

/// Zeroes are left out in aligned blocks of this size, the page and usual block size.
const HOLE_BYTES: usize = 4096;

/// Files without a name that one process keeps open at a time, if it may open so many; further ones
/// get a name, and are closed when they are finished. As many as are staged at a time at most: a
/// name that is taken away again costs as much as the file.
const MAX_UNNAMED: usize = 12 * 1024;

/// Files that are left for everything else; where there are hardly more, three quarters.
const LEFT_FOR_OTHERS: usize = 8 * 1024;

/// How the names of such files begin.
pub(super) const STAGE_PREFIX: &str = "stage-";

/// A quarter of the files that this process may have open now: what one purpose may take, so that
/// enough is left for the store, the links and the directories.
pub(in crate::folder) fn share_of_open_files() -> usize {
    open_files_limit() / 4
}

fn open_files_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// How many there are now.
static UNNAMED: AtomicUsize = AtomicUsize::new(0);

/// A file that is being written. Dropping it removes it.
#[derive(Debug)]
pub struct Staging {
    pub(super) file: Arc<File>,
    kept: Kept,
    /// Where the bytes written so far end; what lies beyond is a hole already.
    end: Arc<AtomicU64>,
}

/// A place in a file that is being written, for one who writes there meanwhile. As long as somebody holds one, the file
/// cannot be [finished](Staging::finish): what has a name belongs to its user.
#[derive(Clone, Debug)]
pub struct Target {
    file: Arc<File>,
    end: Arc<AtomicU64>,
    offset: u64,
}

/// By what a file that is being written is kept.
#[derive(Debug)]
enum Kept {
    Unnamed(Permit),
    Named(TempName),
}

/// What was written of a file so far, to be written out.
#[derive(Debug)]
pub struct WriteOut(Arc<File>);

impl WriteOut {
    /// Writes it out to the disk.
    pub fn run(&self) {
        // Should it fail, it fails again when the whole file is synced.
        let _ = self.0.sync_data();
    }
}

/// A finished file, ready to be placed, or what one grows by. Dropping it removes it.
#[derive(Debug)]
pub struct Staged(pub(super) Form);

/// How much of a file is staged.
#[derive(Debug)]
pub(super) enum Form {
    Whole(Whole),
    Tail(Tail),
}

/// A whole file or symlink.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) origin: Origin,
    /// Its state, as it will be found after it was placed, but for the ctime.
    pub(super) meta: Meta,
}

/// Where a finished file is.
#[derive(Debug)]
pub(super) enum Origin {
    /// Nowhere but behind its handle.
    Unnamed(Arc<File>, Permit),
    /// In the temporary directory.
    Named(TempName),
}

/// One of the [`MAX_UNNAMED`] files.
#[derive(Debug)]
pub(super) struct Permit(());

impl Permit {
    fn take() -> Option<Self> {
        let limit = open_files_limit();
        let most = MAX_UNNAMED.min((limit / 4).max(limit.saturating_sub(LEFT_FOR_OTHERS)));
        let more = |count| (count < most).then_some(count + 1);
        let taken = UNNAMED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self(()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        UNNAMED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A name in the temporary directory that is unlinked when it is dropped.
#[derive(Debug)]
pub(super) struct TempName {
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: String,
    /// False once nothing of ours has this name any more.
    pub(super) owned: bool,
}

impl Drop for TempName {
    fn drop(&mut self) {
        if self.owned {
            // A leftover is removed when the directory is next opened.
            let _ = unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

/// A look into a file that is on its way to a key, or was: reads from it wherever it is by now, behind its handle, under its
/// temporary name or at the key. It keeps nothing open.
#[derive(Debug)]
pub struct Peek {
    pub(super) root: Arc<Root>,
    /// `None` if it will not get there.
    pub(super) key: Option<String>,
    pub(super) file: Weak<File>,
    pub(super) temp: Option<String>,
}

impl Peek {
    /// Fills `to` with what stands at `offset`, and with zeroes beyond the end: those may not be written yet. Whether it is
    /// what was written there is for the caller to verify: at the key may be another file.
    ///
    /// # Errors
    ///
    /// The file is gone, or the file system failed.
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(file) = self.file.upgrade() {
            return read_with_hole(&file, to, offset);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        if let Some(name) = &self.temp
            && let Ok(file) = open_beneath(self.root.temp(), name, flags)
        {
            return read_with_hole(&File::from(file), to, offset);
        }
        let key = self.key.as_deref().ok_or(io::ErrorKind::NotFound)?;
        let (file, _) = self.root.open_file(key)?;
        read_with_hole(&file, to, offset)
    }
}

/// What lies beyond the end of a file that is being written is a hole.
fn read_with_hole(file: &File, to: &mut [u8], offset: u64) -> io::Result<()> {
    let end = file.metadata()?.len().saturating_sub(offset);
    let (there, hole) =
        to.split_at_mut(usize::try_from(end).map_or(to.len(), |end| end.min(to.len())));
    hole.fill(0);
    file.read_exact_at(there, offset)
}

impl Root {
    /// Begins a file with no content, under no key yet, which is meant to get these permissions.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file system failed.
    pub fn stage(&self, mode: u32) -> Result<Staging, PlaceError> {
        // Not in a directory that is watched: the watcher would be told of each step of it.
        match Staging::unnamed(self.temp(), mode) {
            Some(staging) => Ok(staging),
            None => self.stage_named(),
        }
    }

    /// Until it is finished, only its owner may read it.
    pub(super) fn stage_named(&self) -> Result<Staging, PlaceError> {
        loop {
            let name = self.temp_name(STAGE_PREFIX);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match openat(self.temp(), &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    let temp = TempName { dir: Arc::clone(self.temp()), name, owned: true };
                    return Ok(Staging::named(file.into(), temp));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Staging {
    /// A look into this file, also when it is finished and while and after it is placed at `key`.
    #[must_use]
    pub fn peek(&self, root: &Arc<Root>, key: &str) -> Peek {
        let temp = match &self.kept {
            Kept::Unnamed(_) => None,
            Kept::Named(temp) => Some(temp.name.clone()),
        };
        let (root, key) = (Arc::clone(root), Some(key.to_owned()));
        Peek { root, key, file: Arc::downgrade(&self.file), temp }
    }

    /// A file without a name on the file system of `dir`; `None` if that cannot be had.
    pub(super) fn unnamed(dir: impl AsFd, mode: u32) -> Option<Self> {
        let permit = Permit::take()?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(dir, ".", flags, permissions(mode)).ok()?;
        Some(Self::new(file.into(), Kept::Unnamed(permit)))
    }

    /// A new file with a name.
    pub(super) fn named(file: File, temp: TempName) -> Self {
        Self::new(file, Kept::Named(temp))
    }

    fn new(file: File, kept: Kept) -> Self {
        Self { file: Arc::new(file), kept, end: Arc::default() }
    }

    /// The place at `offset`.
    #[must_use]
    pub fn target(&self, offset: u64) -> Target {
        Target { file: Arc::clone(&self.file), end: Arc::clone(&self.end), offset }
    }

    /// What was written so far, for one who writes it out meanwhile.
    #[must_use]
    pub fn written(&self) -> WriteOut {
        WriteOut(Arc::clone(&self.file))
    }

    /// Whether this is the place at `offset` of this file.
    pub(in crate::folder) fn is_at(&self, offset: u64, target: &Target) -> bool {
        target.offset == offset && Arc::ptr_eq(&target.file, &self.file)
    }

    /// Whether there is still a [`Target`] in the file.
    #[must_use]
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.end) != 1
    }

    /// Gives it up, but if it has a name, what was written stays there when this process ends.
    pub fn leave(self) {
        self.leave_if(|_| true);
    }

    /// The same if that says so of its name. Otherwise, and if it has none, nothing stays.
    pub(super) fn leave_if(self, is_left: impl FnOnce(&str) -> bool) -> bool {
        let Kept::Named(mut temp) = self.kept else { return false };
        temp.owned = !is_left(&temp.name);
        !temp.owned
    }

    /// Gives the file its length, permissions and modification time. Nothing is durable yet.
    ///
    /// # Errors
    ///
    /// The disk is full, the file system failed, or there is still a [`Target`] in the file; the file is removed.
    pub fn finish(self, size: u64, mode: u32, mtime_ns: i64) -> Result<Staged, PlaceError> {
        self.end_at(size)?;
        futimens(&self.file, &modified_at(mtime_ns))?;
        let mut meta = meta_of(&self.file)?;
        if meta.mode != permissions(mode).as_raw_mode() {
            fchmod(&self.file, permissions(mode))?;
            meta = meta_of(&self.file)?;
        }
        let origin = match self.kept {
            Kept::Unnamed(permit) => Origin::Unnamed(self.file, permit),
            Kept::Named(temp) => Origin::Named(temp),
        };
        Ok(Staged(Form::Whole(Whole { origin, meta })))
    }

    /// Gives the file its length, if it has a name.
    pub(super) fn finish_named(self, size: u64) -> Result<(Arc<File>, TempName), PlaceError> {
        self.end_at(size)?;
        match self.kept {
            Kept::Named(temp) => Ok((self.file, temp)),
            Kept::Unnamed(_) => Err(PlaceError::Io(io::ErrorKind::NotFound.into())),
        }
    }

    fn end_at(&self, size: u64) -> Result<(), PlaceError> {
        if self.is_held() {
            return Err(PlaceError::Io(io::Error::other(
                "it is still being written; it is fetched again",
            )));
        }
        if self.end.load(Ordering::Acquire) != size {
            self.file.set_len(size)?;
        }
        Ok(())
    }
}

impl Target {
    /// The place so many bytes behind this one.
    #[must_use]
    pub fn after(&self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes as u64, ..self.clone() }
    }

    /// Whether what is written there ends where `next` begins, if it is so many bytes: both can be written at once.
    #[must_use]
    pub fn is_before(&self, bytes: usize, next: &Self) -> bool {
        Arc::ptr_eq(&self.file, &next.file)
            && self.offset.checked_add(bytes as u64) == Some(next.offset)
    }

    /// Writes `bytes` there. Several threads may write to a file, in any order, and the same bytes again. Aligned blocks
    /// of zeroes become holes, and so do bytes that are all zeroes.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file system failed; the range is undefined then.
    pub fn write(&self, bytes: &[u8]) -> Result<(), PlaceError> {
        // The blocks at their ends, too: in a long hole they would be one of each 64.
        let is_hole =
            bytes.chunks(HOLE_BYTES).all(|block| *block == [0; HOLE_BYTES][..block.len()]);
        if is_hole {
            return self.write_run(bytes, 0..bytes.len(), true);
        }
        let offset = self.offset;
        let head = (HOLE_BYTES as u64 - offset % HOLE_BYTES as u64) % HOLE_BYTES as u64;
        let head = usize::try_from(head).map_or(bytes.len(), |head| head.min(bytes.len()));
        // Runs of blocks of the same sort are written, or punched out, with one call each.
        let mut start = 0;
        let mut run_is_hole = false;
        let mut at = head;
        while at < bytes.len() {
            let block = &bytes[at..bytes.len().min(at + HOLE_BYTES)];
            let is_hole = block == [0; HOLE_BYTES];
            if is_hole != run_is_hole {
                self.write_run(bytes, start..at, run_is_hole)?;
                (start, run_is_hole) = (at, is_hole);
            }
            at += block.len();
        }
        self.write_run(bytes, start..bytes.len(), run_is_hole)
    }

    fn write_run(
        &self,
        bytes: &[u8],
        run: std::ops::Range<usize>,
        is_hole: bool,
    ) -> Result<(), PlaceError> {
        let start = self.offset + run.start as u64;
        let end = self.offset + run.end as u64;
        if run.is_empty() || (is_hole && self.end.load(Ordering::Acquire) <= start) {
            return Ok(());
        }
        if is_hole {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, start, end - start) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.file.write_all_at(&bytes[run], start)?;
        self.end.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }
}

impl Whole {
    /// By what it can be looked at wherever it is.
    pub(super) fn handle(&self) -> Option<Arc<File>> {
        match &self.origin {
            Origin::Unnamed(file, _) => Some(Arc::clone(file)),
            Origin::Named(_) => None,
        }
    }
}

pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

pub(super) fn modified_at(mtime_ns: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
        },
    }
}
