//! The directory engine: keeps a linked directory and a dataset's replica identical, both ways.
//!
//! [`Folder`] is the whole of it, from outside. `engine.rs` decides, on one thread: what a change in the directory
//! means, and what may be put in place (`put.rs`). `index.rs` (with `earlier.rs`) reads files for it, `apply.rs` gets the content of
//! what others changed, `project.rs` says which path shows which version.
//!
//! Beneath are the files that touch the file system and decide nothing:
//!
//! - [`Root`]: a linked directory, held open. Everything below goes through it, by key. A path
//!   string is never resolved from the outside again, and no symlink is ever followed.
//! - [`Ignores`]: which keys the user wants left alone.
//! - [`Walk`]: all entries in key order: the truth.
//! - [`Watcher`]: where to look, soon after something happened: a hint.
//! - [`Staging`], [`Staged`] and the `place_…` and `remove_…` methods of [`Root`]: how entries get
//!   in and out without ever destroying something that nobody has seen.
//!
//! These files hold all calls that exist on Linux only.

use consort_core::limits::MAX_KEY_BYTES;
use std::path::Path;

use rustix::fs::{FileType, Statx, makedev};

mod apply;
mod context;
mod earlier;
mod engine;
mod ignores;
mod index;
mod link;
mod place;
mod project;
mod put;
mod record;
mod root;
mod status;
mod walk;
mod watch;

pub use context::LinkContext;
pub use ignores::{Ignores, LoadIgnoresError, PatternProblem};
pub use link::Folder;
pub use place::{
    Becomes, Expected, Growing, Grown, Journal, Peek, PlaceError, Placed, Placing,
    RemovedDirectory, Staged, Staging, Target, WriteOut,
};
pub(crate) use project::conflict_path;
pub(crate) use record::recorded_meta;
pub use root::{OpenRootError, Root, RootId};
pub(crate) use status::MAX_PROBLEMS;
pub use status::{Progress, Scan, Trouble};
pub use walk::{Walk, WalkEntry, WalkProblem, WalkProblemKind};
pub use watch::{CookieName, WatchError, WatchEvent, Watcher};

/// Our own directory inside a linked directory. A component of this name is never an entry, at any
/// depth: a linked directory that was copied into another must not bring its identity along.
pub const PRIVATE_DIR: &str = ".consort";

/// Whether a directory can never show a key, since a component of it is the name of [`PRIVATE_DIR`].
pub(crate) fn is_private(key: &str) -> bool {
    key.split('/').any(|name| name == PRIVATE_DIR)
}

/// Removes our own directory from a directory that is linked no more; where something was rescued into it, it stays, without
/// what was not complete. If it is known which directory that was, another one that is there by now stays as it is.
pub fn remove_private_area(dir: &Path, id: Option<RootId>) {
    let private = dir.join(PRIVATE_DIR);
    if id.is_some_and(|id| root::id_of(dir).is_none_or(|found| found != id)) {
        tracing::info!(dir = %dir.display(), "it is not the directory that was linked");
        return;
    }
    // It is not there when the link could not even begin.
    if let Err(error) = root::clear_unlinked(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %private.display(), %error, "the private area is not removed");
        return;
    }
    let rescued =
        std::fs::read_dir(private.join("rescued")).is_ok_and(|mut names| names.next().is_some());
    if rescued {
        tracing::warn!(dir = %private.display(), "rescued files are kept");
    } else if let Err(error) = std::fs::remove_dir_all(&private) {
        tracing::debug!(dir = %private.display(), %error, "the private area is not removed");
    }
}

/// What kind of thing stands at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; its target is data, it is never followed.
    Symlink,
    /// A fifo, socket or device: nothing that can be synchronized.
    Other,
}

impl From<FileType> for EntryKind {
    fn from(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// What one `statx` said about an entry, at one moment.
///
/// Time stamps advance in steps (about 4 ms on kernels before 6.13), so an entry whose times are
/// younger than that when it is looked at may change again and look the same. Who records a
/// `Meta` as "indexed" must look again at such an entry a little later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes (of a symlink: of its target).
    pub size: u64,
    /// Permission bits, at most `0o777`; set-id and sticky bits are left out on purpose.
    pub mode: u32,
    /// When the content last changed, in nanoseconds since 1970. Users can set it at will.
    pub mtime_ns: i64,
    /// When anything about it last changed, in nanoseconds since 1970. Users cannot set it; a
    /// rename advances it on most file systems.
    pub ctime_ns: i64,
    /// The inode number, unique in its file system as long as the file exists.
    pub inode: u64,
    /// The device number of its file system, which may be another one after a reboot.
    pub device: u64,
    /// Allocated blocks of 512 bytes; fewer than the size asks for means holes.
    pub blocks: u64,
}

impl Meta {
    /// Whether `other` shows the same content and attributes, as far as the file system can tell,
    /// for two looks between which we did nothing to the entry ourselves.
    ///
    /// - *kind*, *size*, *mtime*: any ordinary write changes one of them.
    /// - *mode*: it is synchronized too.
    /// - *inode*: a file that was replaced by another of equal size and time (`cp -p`, `mv`).
    /// - *ctime*: a write whose mtime was set back afterwards; users cannot forge it.
    ///
    /// Not compared: *device* (it changes with a reboot) and *blocks* (delayed allocation changes
    /// it without a write). Of directories only kind and mode count: everything else about them
    /// follows from their children.
    #[must_use]
    pub fn same_file_state(&self, other: &Self) -> bool {
        self.same_after_rename(other)
            && (self.kind == EntryKind::Directory || self.ctime_ns == other.ctime_ns)
    }

    /// [`Meta::same_file_state`] without the ctime: for two looks between which we have renamed
    /// the entry, which sets its ctime (ext4, xfs, btrfs and tmpfs all do).
    fn same_after_rename(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.mode == other.mode
            && (self.kind == EntryKind::Directory
                || (self.size == other.size
                    && self.mtime_ns == other.mtime_ns
                    && self.inode == other.inode))
    }
}

impl From<&Statx> for Meta {
    fn from(stat: &Statx) -> Self {
        let nanoseconds = |seconds: i64, rest: u32| {
            seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(rest))
        };
        Self {
            kind: FileType::from_raw_mode(u32::from(stat.stx_mode)).into(),
            size: stat.stx_size,
            mode: u32::from(stat.stx_mode) & 0o777,
            mtime_ns: nanoseconds(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            ctime_ns: nanoseconds(stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            inode: stat.stx_ino,
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            blocks: stat.stx_blocks,
        }
    }
}

/// The key of `name` in the directory `parent`; the top directory is the empty string.
fn join_key(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        return name.to_owned();
    }
    let mut key = String::with_capacity(parent.len() + 1 + name.len());
    key.push_str(parent);
    key.push('/');
    key.push_str(name);
    key
}

/// The directory part (empty for the top) and the name of a key.
fn split_key(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}
