//! Content on its way: files in `.consort/tmp/` that have no key yet. Giving them one is in
//! `place.rs`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FallocateFlags, Mode, Timespec, Timestamps, UTIME_OMIT, fallocate, fchmod, futimens,
    unlinkat,
};
use rustix::io::Errno;

use crate::folder::root::meta_of;
use crate::folder::{Meta, PlaceError};

/// Zeroes are left out in aligned blocks of this size, the page and usual block size.
const HOLE_BYTES: usize = 4096;

/// A file that is being written in `.consort/tmp/`. Dropping it removes it.
#[derive(Debug)]
pub struct Staging {
    pub(super) file: File,
    pub(super) temp: TempName,
    /// Where the bytes written so far end; what lies beyond is a hole already.
    pub(super) end: u64,
}

/// A finished file or symlink in `.consort/tmp/`, ready to be placed. It holds no open handle, so
/// a batch may have many. Dropping it removes it.
#[derive(Debug)]
pub struct Staged {
    pub(super) temp: TempName,
    pub(super) meta: Meta,
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

impl Staging {
    /// Writes `bytes` at `offset`. Ranges may come in any order and may be written again. Aligned
    /// blocks of zeroes become holes.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file system failed; the range is undefined then.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), PlaceError> {
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
                self.write_run(offset, bytes, start..at, run_is_hole)?;
                (start, run_is_hole) = (at, is_hole);
            }
            at += block.len();
        }
        self.write_run(offset, bytes, start..bytes.len(), run_is_hole)
    }

    fn write_run(
        &mut self,
        offset: u64,
        bytes: &[u8],
        run: std::ops::Range<usize>,
        is_hole: bool,
    ) -> Result<(), PlaceError> {
        let start = offset + run.start as u64;
        let end = offset + run.end as u64;
        if run.is_empty() || (is_hole && self.end <= start) {
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
        self.end = self.end.max(end);
        Ok(())
    }

    /// Gives the file its length, permissions and modification time. Nothing is durable yet.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file system failed; the file is removed.
    pub fn finish(self, size: u64, mode: u32, mtime_ns: i64) -> Result<Staged, PlaceError> {
        self.file.set_len(size)?;
        fchmod(&self.file, permissions(mode))?;
        futimens(&self.file, &modified_at(mtime_ns))?;
        Ok(Staged { meta: meta_of(&self.file)?, temp: self.temp })
    }
}

impl Staged {
    /// Its state, as it will be found after it was placed, but for the ctime.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
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
