//! A linked directory, held open: how entries are looked at by key.
//!
//! Every operation is resolved by the kernel from the held handle (`openat2` beneath it, without
//! symlinks and without crossing into another mounted file system), once per operation. There is
//! no cache of parent directories: a cached handle of a directory that was renamed away would
//! read from and write to the wrong place. Changing entries is in `place.rs`.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags, ResolveFlags,
    StatxFlags, flock, mkdirat, openat2, readlinkat, renameat_with, statx, unlinkat,
};
use rustix::io::Errno;

use crate::folder::place::{growing, journal, partial};
use crate::folder::{EntryKind, Meta, PRIVATE_DIR, split_key};

/// How many bytes of directory entries one system call may return.
pub(super) const LIST_BUFFER_BYTES: usize = 64 * 1024;

/// Files in `.consort/tmp/` whose name starts like this hold, or may hold, bytes of the user and
/// not ours: they are never removed as leftovers.
pub(super) const OUT_PREFIX: &str = "out-";

/// How soon a file is tried again that somebody has to himself, and how often.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(5);
const OPEN_TRIES: u32 = 100;

const MARKER: &str = "id";
const TEMP_DIR: &str = "tmp";
const COOKIE_DIR: &str = "cookies";
const RESCUE_DIR: &str = "rescued";

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);
const LOOK_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
const LIST_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// A directory that is linked to a dataset, held open and locked for this process.
///
/// - To look at one entry: [`stat`](Self::stat), [`open_file`](Self::open_file),
///   [`read_link`](Self::read_link), [`list`](Self::list).
/// - Before believing that something is gone: [`is_present`](Self::is_present).
/// - To change something: the methods in `place.rs`.
///
/// Keys are valid keys of the model (relative, no empty, `.` or `..` component).
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    dir: OwnedFd,
    private: OwnedFd,
    temp: Arc<OwnedFd>,
    cookies: OwnedFd,
    id: RootId,
    meta: Meta,
    next_temp: AtomicU64,
}

/// The identity of a linked directory, drawn at random when it is first linked and kept in its
/// `.consort/id`. It stays the same when the directory is moved or the machine restarts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootId(pub [u8; 16]);

impl std::fmt::Debug for RootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RootId({self})")
    }
}

impl std::fmt::Display for RootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a directory cannot be linked. In every case its entries are untouched.
#[derive(Debug, thiserror::Error)]
pub enum OpenRootError {
    /// The user's mistake, or a disk that is not mounted.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The user's mistake.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The node runs as a user who may not write there.
    #[error("{} cannot be written", .0.display())]
    NotWritable(PathBuf),
    /// A disk that is not mounted, or a directory that was replaced.
    #[error("another directory than the linked one is at {}", .0.display())]
    Another(PathBuf),
    /// Another node, or another link of this node, holds it.
    #[error("{} is already in use by a running node", .0.display())]
    InUse(PathBuf),
    /// Somebody edited our marker.
    #[error("{}/.consort/id is damaged", .0.display())]
    DamagedMarker(PathBuf),
    /// A file system on which two keys would be one file.
    #[error("{} is on a file system that takes names of different case for the same", .0.display())]
    IgnoresCase(PathBuf),
    /// The kernel has no `openat2`.
    #[error("this kernel cannot confine file access to a directory")]
    Unsupported,
    /// The file system failed.
    #[error("cannot open {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenRootError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing(_) => {
                "mount the disk it is on, or move it back; to go on with a new one, `consort unlink` and link that"
            }
            Self::NotADirectory(_) => "link a directory",
            Self::NotWritable(_) => "give the user who runs this node permission to write there",
            Self::Another(_) => "mount the disk it is on, or move it back",
            Self::InUse(_) => "stop that node, or link another directory",
            Self::DamagedMarker(_) => "remove that file, and link the directory again",
            Self::IgnoresCase(_) => {
                "link a directory on a file system that tells them apart, such as ext4 or xfs"
            }
            Self::Unsupported => "Linux 5.8 or newer is needed",
            Self::Io { .. } => "look at the disk and at the system's log",
        }
    }
}

impl Root {
    /// Opens `dir`, locks it for this process, and makes its private area if it has none. Leftovers
    /// of an interrupted run are removed; what may be the user's is kept in `.consort/rescued/`.
    ///
    /// # Errors
    ///
    /// See [`OpenRootError`]; no entry is changed.
    pub fn open(dir: &Path) -> Result<Self, OpenRootError> {
        Self::open_if(dir, None)
    }

    /// Like [`open`](Self::open), but only the directory with this identity: in any other one, such as
    /// the empty place where a disk is not mounted, nothing is made or removed.
    ///
    /// # Errors
    ///
    /// See [`OpenRootError`]; no entry is changed.
    pub fn open_known(dir: &Path, id: RootId) -> Result<Self, OpenRootError> {
        Self::open_if(dir, Some(id))
    }

    fn open_if(dir: &Path, known: Option<RootId>) -> Result<Self, OpenRootError> {
        let fail = |source: io::Error| {
            let path = dir.to_owned();
            match Errno::from_io_error(&source) {
                Some(Errno::NOENT) => OpenRootError::Missing(path),
                Some(Errno::NOTDIR) => OpenRootError::NotADirectory(path),
                Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => OpenRootError::NotWritable(path),
                Some(Errno::NOSYS) => OpenRootError::Unsupported,
                Some(Errno::WOULDBLOCK) => OpenRootError::InUse(path),
                _ if source.kind() == io::ErrorKind::InvalidData => {
                    OpenRootError::DamagedMarker(path)
                }
                _ => OpenRootError::Io { path, source },
            }
        };
        // The absolute path stays valid when the process changes its working directory.
        let path = std::path::absolute(dir).map_err(fail)?;
        let handle =
            rustix::fs::openat(CWD, &path, LIST_DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| fail(errno.into()))?;
        if let Some(known) = known {
            match read_marker_at(&handle) {
                Ok(Some(id)) if id == known => {}
                Ok(_) => return Err(OpenRootError::Another(path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(OpenRootError::Another(path));
                }
                Err(error) => return Err(fail(error)),
            }
        }
        let root = Self::open_held(path, handle).map_err(fail)?;
        if root.ignores_case() {
            return Err(OpenRootError::IgnoresCase(root.path));
        }
        Ok(root)
    }

    fn open_held(path: PathBuf, dir: OwnedFd) -> io::Result<Self> {
        let meta = meta_of(&dir)?;
        let private = open_or_make(&dir, PRIVATE_DIR)?;
        // Some network file systems cannot lock; that is no reason to refuse them.
        if flock(&private, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(Errno::WOULDBLOCK.into());
        }
        let temp = open_or_make(&private, TEMP_DIR)?;
        let cookies = open_or_make(&private, COOKIE_DIR)?;
        clear_leftovers(&dir, &private, &temp)?;
        for name in names(&cookies)? {
            unlinkat(&cookies, &name, AtFlags::empty())?;
        }
        let id = match read_marker(&private)? {
            Some(id) => id,
            None => write_marker(&dir, &private, &temp)?,
        };
        Ok(Self {
            path,
            dir,
            private,
            temp: Arc::new(temp),
            cookies,
            id,
            meta,
            next_temp: AtomicU64::new(0),
        })
    }

    /// Whether names of different case are the same here: what belongs to one key would be taken for another's.
    fn ignores_case(&self) -> bool {
        let upper = PRIVATE_DIR.to_ascii_uppercase();
        let inode = |name: &str| meta_at(&self.dir, name).map(|meta| meta.inode);
        inode(&upper).is_ok_and(|found| inode(PRIVATE_DIR) == Ok(found))
    }

    /// Lets others link the directory from now on, though somebody still reads from it. Nothing is to be changed
    /// through this any more.
    pub fn unlock(&self) {
        // If it cannot be unlocked, it is when the last handle goes.
        let _ = flock(&self.private, FlockOperation::Unlock);
    }

    /// The identity in the marker.
    #[must_use]
    pub fn id(&self) -> RootId {
        self.id
    }

    /// Where it was opened; for messages, never to be resolved again for access.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory at the path is still the one that is held, with its marker in place.
    ///
    /// Ask before taking entries for deleted: a directory that was unmounted, moved away or
    /// deleted as a whole must never look like one whose entries were all deleted.
    #[must_use]
    pub fn is_present(&self) -> bool {
        let at_path = statx(CWD, &self.path, AtFlags::empty(), StatxFlags::BASIC_STATS);
        at_path.is_ok_and(|stat| {
            let meta = Meta::from(&stat);
            (meta.inode, meta.device) == (self.meta.inode, self.meta.device)
        }) && read_marker_at(&self.dir).is_ok_and(|id| id == Some(self.id))
    }

    /// The kind of file system, if other machines may change what is in it: no event tells of that here.
    #[must_use]
    pub fn shared_file_system(&self) -> Option<&'static str> {
        // A file system that does not say what it is, is taken for a plain one.
        rustix::fs::fstatfs(&self.dir).ok().and_then(|stat| shared_kind(stat.f_type))
    }

    /// How many bytes can still be written, as far as the file system says.
    #[must_use]
    pub fn room(&self) -> u64 {
        let stat = rustix::fs::fstatvfs(&self.dir);
        stat.map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// What stands at `key`; `None` if nothing does, also because a parent is missing, is no
    /// directory or is a symlink, or because no file of that name can exist.
    ///
    /// # Errors
    ///
    /// The file system failed, or the key is on another file system mounted inside.
    pub fn stat(&self, key: &str) -> io::Result<Option<Meta>> {
        let looked = if key.contains('/') {
            open_beneath(&self.dir, key, LOOK).and_then(meta_of)
        } else {
            meta_at(&self.dir, key)
        };
        match looked {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens the regular file at `key` for reading, with its state at that moment. A fifo cannot
    /// hang us. One that somebody has to himself, as while it grows, is waited for, a moment.
    ///
    /// # Errors
    ///
    /// The file system failed, nothing is there (`NotFound`), or it is not a regular file
    /// (`InvalidInput`, or `FilesystemLoop` for a symlink).
    pub fn open_file(&self, key: &str) -> io::Result<(File, Meta)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut opened = open_beneath(&self.dir, key, flags);
        for _ in 0..OPEN_TRIES {
            if opened.as_ref().err() != Some(&Errno::AGAIN) {
                break;
            }
            std::thread::sleep(OPEN_AGAIN_AFTER);
            opened = open_beneath(&self.dir, key, flags);
        }
        let file = opened?;
        let meta = meta_of(&file)?;
        if meta.kind != EntryKind::File {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok((File::from(file), meta))
    }

    /// The target of the symlink at `key`, in raw bytes.
    ///
    /// # Errors
    ///
    /// The file system failed, or no symlink is there.
    pub fn read_link(&self, key: &str) -> io::Result<OsString> {
        let link = open_beneath(&self.dir, key, LOOK)?;
        Ok(OsString::from_vec(readlinkat(&link, "", Vec::new())?.into_bytes()))
    }

    /// The names in the directory at `key` (the empty string is the top), in byte order, raw: also
    /// names that cannot be part of a key. The private area is left out.
    ///
    /// # Errors
    ///
    /// The file system failed, or no directory is there.
    pub fn list(&self, key: &str) -> io::Result<Vec<OsString>> {
        let mut names = names(&self.open_directory(key)?)?;
        names.retain(|name| name != PRIVATE_DIR);
        Ok(names)
    }

    /// The names of files kept in `.consort/rescued/`: bytes of the user that an interrupted or
    /// contested operation could not put back at their key. A person has to look at them.
    ///
    /// # Errors
    ///
    /// The file system failed.
    pub fn rescued(&self) -> io::Result<Vec<OsString>> {
        match open_beneath(&self.private, RESCUE_DIR, LIST_DIRECTORY) {
            Ok(dir) => names(&dir),
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A handle of the directory at `key` (the empty string is the top) that can be listed and
    /// synced.
    pub(super) fn open_directory(&self, key: &str) -> Result<OwnedFd, Errno> {
        open_beneath(&self.dir, if key.is_empty() { "." } else { key }, LIST_DIRECTORY)
    }

    /// A handle of the directory that holds `key`, good for `…at` calls only, and the name in it.
    pub(super) fn open_parent<'k>(&self, key: &'k str) -> Result<(OwnedFd, &'k str), Errno> {
        let (parent, name) = split_key(key);
        let parent = if parent.is_empty() { "." } else { parent };
        Ok((open_beneath(&self.dir, parent, LOOK_DIRECTORY)?, name))
    }

    /// A handle of whatever stands at `key`, without opening it.
    pub(super) fn open_entry(&self, key: &str) -> Result<OwnedFd, Errno> {
        open_beneath(&self.dir, key, LOOK)
    }

    /// A name in the temporary directory that this process has not used yet.
    pub(super) fn temp_name(&self, prefix: &str) -> String {
        format!("{prefix}{:x}", self.next_temp.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(super) fn temp(&self) -> &Arc<OwnedFd> {
        &self.temp
    }

    pub(super) fn cookies(&self) -> BorrowedFd<'_> {
        self.cookies.as_fd()
    }

    /// The device number of the top directory.
    pub(super) fn device(&self) -> u64 {
        self.meta.device
    }

    /// Moves a file of the user from the temporary directory to where it waits for a person.
    pub(super) fn rescue(&self, temp_name: &str) -> io::Result<()> {
        rescue(&self.private, &self.temp, temp_name.as_ref())
    }
}

/// The file systems that other machines, or another program beneath them, may change; by `f_type` of statfs(2).
fn shared_kind(f_type: impl Into<i64>) -> Option<&'static str> {
    // Some systems say it in 32 bits with a sign.
    Some(match f_type.into() & 0xFFFF_FFFF {
        0x6969 => "NFS",
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => "SMB",
        0x0102_1997 => "9p",
        0x6573_5546 => "FUSE",
        0x00C3_6400 => "Ceph",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0BD0_0BD0 => "Lustre",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x4750_4653 => "GPFS",
        0x786F_4256 => "vboxsf",
        _ => return None,
    })
}

/// Opens `path` beneath `dir`: never through a symlink, never outside, never on another mount.
pub(super) fn open_beneath(dir: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
}

/// Like [`open_beneath`] for one raw name of a directory that shall be listed.
pub(super) fn open_child_directory(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat2(dir, name, LIST_DIRECTORY | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
}

/// Like [`open_beneath`] for one directory name, good for `…at` calls only.
pub(super) fn look_at_child_directory(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    open_beneath(dir, name, LOOK_DIRECTORY)
}

/// The state of what a handle refers to.
pub(super) fn meta_of(handle: impl AsFd) -> Result<Meta, Errno> {
    let stat = statx(handle, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(Meta::from(&stat))
}

/// The state of one name in a directory; a symlink's own.
pub(super) fn meta_at(dir: impl AsFd, name: &str) -> Result<Meta, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(Meta::from(&statx(dir, name, flags, StatxFlags::BASIC_STATS)?))
}

/// Calls `each` with every name in `dir` but `.` and `..`, in the order of the file system. The
/// buffer's capacity is what one system call may fill.
pub(super) fn for_each_name(
    dir: impl AsFd,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&CStr, FileType) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            each(entry.file_name(), entry.file_type())?;
        }
    }
    Ok(())
}

/// A path by which the kernel reaches exactly what the handle refers to, for the few calls that
/// take no handle.
pub(super) fn path_of_handle(handle: impl AsFd) -> String {
    format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())
}

pub(super) fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    // A handle of its own: the position in the listing belongs to the open file.
    let dir = open_beneath(dir, ".", LIST_DIRECTORY)?;
    let mut names = Vec::new();
    for_each_name(&dir, &mut Vec::with_capacity(LIST_BUFFER_BYTES), |name, _| {
        names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
        Ok(())
    })?;
    names.sort_unstable();
    Ok(names)
}

fn open_or_make(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    open_beneath(dir, name, LIST_DIRECTORY).map_err(|errno| match errno {
        // Ours is a directory; whatever else has our name was not made by us.
        Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
            io::Error::other(format!("{name} in the private area is not a plain directory"))
        }
        errno => errno.into(),
    })
}

/// Removes what is left in the temporary directory of a directory that is linked no more, files that were not complete
/// included. What may be the user's is kept in `.consort/rescued/`.
pub(super) fn clear_unlinked(dir: &Path) -> io::Result<()> {
    let dir = rustix::fs::openat(CWD, dir, LIST_DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let private = open_beneath(&dir, PRIVATE_DIR, LIST_DIRECTORY)?;
    // Another node may have linked it by now.
    flock(&private, FlockOperation::NonBlockingLockExclusive)?;
    let temp = open_beneath(&private, TEMP_DIR, LIST_DIRECTORY)?;
    clear(&dir, &private, &temp, |_| Ok(false))
}

fn clear_leftovers(dir: &OwnedFd, private: &OwnedFd, temp: &OwnedFd) -> io::Result<()> {
    let is_note = |name: &OsStr| name.to_str().is_some_and(journal::is_note);
    clear(dir, private, temp, |name| Ok(is_note(name) || partial::keep(temp, name)?))
}

fn clear(
    dir: &OwnedFd,
    private: &OwnedFd,
    temp: &OwnedFd,
    keeps: impl Fn(&OsStr) -> io::Result<bool>,
) -> io::Result<()> {
    let is_users = |name: &OsStr| name.as_bytes().starts_with(OUT_PREFIX.as_bytes());
    for name in names(temp)?.into_iter().filter(|name| is_users(name)) {
        rescue(private, temp, &name)?;
    }
    for name in names(temp)? {
        if !growing::complete(dir.as_fd(), temp, &name)? && !keeps(&name)? {
            unlinkat(temp, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn rescue(private: &OwnedFd, temp: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let shelter = open_or_make(private, RESCUE_DIR)?;
    let mut number = 0_u64;
    loop {
        let safe_name = format!("file-{number}");
        match renameat_with(temp, name, &shelter, &safe_name, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => number += 1,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The identity of a directory that is linked, or was.
pub(super) fn id_of(dir: &Path) -> Option<RootId> {
    let dir = rustix::fs::openat(CWD, dir, LIST_DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    read_marker_at(&dir).ok().flatten()
}

fn read_marker_at(dir: &OwnedFd) -> io::Result<Option<RootId>> {
    read_marker(&open_beneath(dir, PRIVATE_DIR, LIST_DIRECTORY)?)
}

fn read_marker(private: &OwnedFd) -> io::Result<Option<RootId>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match open_beneath(private, MARKER, flags) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut text = Vec::new();
    file.take(64).read_to_end(&mut text)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged marker");
    let text = std::str::from_utf8(&text).map_err(|_| damaged())?.trim_end();
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(damaged());
    }
    let id = u128::from_str_radix(text, 16).map_err(|_| damaged())?;
    Ok(Some(RootId(id.to_be_bytes())))
}

/// Draws an identity and makes it durable: content first, then its name, then the private area's.
fn write_marker(dir: &OwnedFd, private: &OwnedFd, temp: &OwnedFd) -> io::Result<RootId> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| io::Error::other("no randomness"))?;
    let id = RootId(id);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(temp, MARKER, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    writeln!(file, "{id}")?;
    file.sync_all()?;
    rustix::fs::renameat(temp, MARKER, private, MARKER)?;
    rustix::fs::fsync(private)?;
    rustix::fs::fsync(dir)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::folder::remove_private_area;

    fn linked() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn the_identity_survives_reopening_and_the_private_area_is_private() {
        let (dir, root) = linked();
        let id = root.id();
        drop(root);
        assert_eq!(Root::open(dir.path()).unwrap().id(), id);
        let mode = fs::metadata(dir.path().join(PRIVATE_DIR)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn each_reason_not_to_open_has_its_own_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Root::open(&dir.path().join("missing"));
        assert!(matches!(missing, Err(OpenRootError::Missing(_))), "{missing:?}");
        fs::write(dir.path().join("file"), "").unwrap();
        let file = Root::open(&dir.path().join("file"));
        assert!(matches!(file, Err(OpenRootError::NotADirectory(_))), "{file:?}");
        let held = Root::open(dir.path()).unwrap();
        let again = Root::open(dir.path());
        assert!(matches!(again, Err(OpenRootError::InUse(_))), "{again:?}");
        drop(held);
        fs::write(dir.path().join(".consort/id"), "nonsense").unwrap();
        let damaged = Root::open(dir.path());
        assert!(matches!(damaged, Err(OpenRootError::DamagedMarker(_))), "{damaged:?}");
    }

    #[test]
    fn a_directory_that_was_moved_replaced_or_lost_its_marker_is_not_present() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("linked");
        let aside = outer.path().join("aside");
        fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        assert!(root.is_present());
        fs::rename(&path, &aside).unwrap();
        assert!(!root.is_present());
        fs::create_dir(&path).unwrap();
        assert!(!root.is_present());
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert!(root.is_present());
        fs::remove_file(path.join(".consort/id")).unwrap();
        assert!(!root.is_present());
    }

    #[test]
    fn a_known_directory_is_opened_and_in_any_other_one_nothing_is_made_or_removed() {
        let (dir, root) = linked();
        let id = root.id();
        drop(root);
        assert_eq!(Root::open_known(dir.path(), id).unwrap().id(), id);

        let empty = tempfile::tempdir().unwrap();
        let opened = Root::open_known(empty.path(), id);
        assert!(matches!(opened, Err(OpenRootError::Another(_))), "{opened:?}");
        assert!(fs::read_dir(empty.path()).unwrap().next().is_none());

        let (other, root) = linked();
        drop(root);
        fs::write(other.path().join(".consort/tmp/stage-1"), "of the other link").unwrap();
        let opened = Root::open_known(other.path(), id);
        assert!(matches!(opened, Err(OpenRootError::Another(_))), "{opened:?}");
        assert!(other.path().join(".consort/tmp/stage-1").exists());
    }

    #[test]
    fn file_systems_that_other_machines_change_are_known() {
        for (f_type, kind) in [(0x6969_i64, "NFS"), (0xFF53_4D42, "SMB"), (0x6573_5546, "FUSE")] {
            assert_eq!(shared_kind(f_type), Some(kind));
        }
        assert_eq!(shared_kind(0xFE53_4D42_u32.cast_signed()), Some("SMB"));
        // ext4, xfs, btrfs, tmpfs.
        for f_type in [0xEF53_i64, 0x5846_5342, 0x9123_683E, 0x0102_1994] {
            assert_eq!(shared_kind(f_type), None);
        }
    }

    #[test]
    fn leftovers_are_removed_but_what_may_be_the_users_is_rescued() {
        let (dir, root) = linked();
        drop(root);
        fs::write(dir.path().join(".consort/tmp/stage-1"), "ours").unwrap();
        fs::write(dir.path().join(".consort/tmp/out-1"), "theirs").unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(fs::read_dir(dir.path().join(".consort/tmp")).unwrap().next().is_none());
        assert_eq!(root.rescued().unwrap(), ["file-0"]);
        let kept = fs::read_to_string(dir.path().join(".consort/rescued/file-0")).unwrap();
        assert_eq!(kept, "theirs");
    }

    #[test]
    fn of_a_directory_that_is_linked_no_more_only_what_may_be_the_users_is_kept() {
        let (dir, root) = linked();
        let id = root.id();
        drop(root);
        let leave = |names: &[&str]| {
            for name in names {
                fs::write(dir.path().join(".consort/tmp").join(name), *name).unwrap();
            }
        };
        leave(&["stage-1", "partial-07", "arrived-08", "out-1"]);
        remove_private_area(dir.path(), Some(id));
        assert_eq!(fs::read_dir(dir.path().join(".consort/tmp")).unwrap().count(), 0);
        let kept = fs::read_to_string(dir.path().join(".consort/rescued/file-0")).unwrap();
        assert_eq!(kept, "out-1");
        // Where nothing is the user's, nothing stays.
        fs::remove_dir_all(dir.path().join(".consort/rescued")).unwrap();
        leave(&["partial-07", "arrived-08"]);
        remove_private_area(dir.path(), Some(id));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_read_through_a_symlink() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let (dir, root) = linked();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/secret"), "inside").unwrap();
        assert!(root.open_file("a/secret").is_ok());
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        symlink(outside.path(), dir.path().join("a")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("link")).unwrap();
        assert!(root.open_file("a/secret").is_err());
        assert!(root.open_file("link").is_err());
        assert!(root.list("a").is_err());
        assert_eq!(root.stat("a/secret").unwrap(), None);
        assert_eq!(root.stat("a").unwrap().unwrap().kind, EntryKind::Symlink);
        assert_eq!(root.read_link("a").unwrap(), outside.path());
        assert_eq!(root.list("").unwrap(), ["a", "link"]);
    }

    #[test]
    fn a_fifo_neither_hangs_nor_opens() {
        let (dir, root) = linked();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(root.dir(), "pipe", FileType::Fifo, mode, 0).unwrap();
        assert_eq!(root.open_file("pipe").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(root.stat("pipe").unwrap().unwrap().kind, EntryKind::Other);
        drop(dir);
    }

    #[test]
    fn a_name_that_cannot_exist_is_absent() {
        let (_dir, root) = linked();
        assert_eq!(root.stat(&"x".repeat(256)).unwrap(), None);
        assert_eq!(root.stat(&format!("a/{}", "x".repeat(256))).unwrap(), None);
    }
}
