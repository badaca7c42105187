//! The directory that holds what `consort dev` makes. Whoever works in it holds its lock: `dev` itself, and each node,
//! which inherits it. So it is known of a place whether anybody is left in it, however they ended, and what a killed
//! `dev` has left is removed by the next one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::error::Error;

/// What the name of each begins with; a process and a number follow.
const PREFIX: &str = "consort-dev-";
/// The file that is locked.
const LOCK: &str = "lock";

/// A place, as long as this or a process that was started meanwhile lives.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    _lock: File,
}

impl Place {
    /// Makes one that is new and ours alone.
    pub(crate) fn make(parent: &Path) -> Result<Self, Error> {
        let mut number = 0;
        let root = loop {
            let root = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&root) {
                Ok(()) => break root,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::io("make", &root, &error)),
            }
        };
        let lock = lock_new(&root).map_err(|error| Error::io("lock", &root, &error))?;
        Ok(Self { root, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

/// Removes the places in `parent` that nobody works in any more, and returns them.
pub(crate) fn remove_abandoned(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let places = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    places.filter(|path| is_place(path)).filter(|path| remove_if_abandoned(path)).collect()
}

/// The lock has its name only when it is held: a place that is just being made does not look abandoned.
fn lock_new(root: &Path) -> io::Result<File> {
    let (new, path) = (root.join("lock.new"), root.join(LOCK));
    let lock = File::create_new(&new)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    // For the nodes to inherit.
    fcntl_setfd(&lock, FdFlags::empty())?;
    fs::rename(new, path)?;
    Ok(lock)
}

/// Whether the path is called like a place, and is a directory of this user's.
fn is_place(path: &Path) -> bool {
    let numbers = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_called_so = numbers
        .and_then(|numbers| numbers.split_once('-'))
        .is_some_and(|(process, number)| is_number(process) && is_number(number));
    let user = rustix::process::geteuid().as_raw();
    is_called_so && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == user)
}

/// Whether it was removed. Nobody can begin to work in it meanwhile, since each `dev` makes a new one.
fn remove_if_abandoned(root: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(lock) = rustix::fs::open(root.join(LOCK), flags, Mode::empty()) else { return false };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    match fs::remove_dir_all(root) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(root = %root.display(), %error, "what is left of a `consort dev` is not removed");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_nobody_works_in_any_more_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| parent.path().join(name);
        let [used, left] = [(); 2].map(|()| Place::make(parent.path()).expect("made"));
        let used_root = used.root().to_owned();
        let left_root = left.root().to_owned();
        fs::create_dir(left_root.join("node-1")).expect("made");
        drop(left);
        // Without a lock, of another name, or only a way to somewhere else.
        for other in ["consort-dev-1-0", "consort-dev-x-0", "consort-dev-1"] {
            fs::create_dir(at(other)).expect("made");
        }
        fs::write(at("consort-dev-x-0").join(LOCK), "").expect("written");
        fs::create_dir(at("elsewhere")).expect("made");
        fs::write(at("elsewhere").join(LOCK), "").expect("written");
        symlink(at("elsewhere"), at("consort-dev-2-0")).expect("linked");
        fs::create_dir(at("consort-dev-3-0")).expect("made");
        symlink(at("elsewhere").join(LOCK), at("consort-dev-3-0").join(LOCK)).expect("linked");

        assert_eq!(remove_abandoned(parent.path()), [left_root.as_path()]);
        assert!(!left_root.exists() && used_root.join(LOCK).exists());
        assert_eq!(fs::read_dir(parent.path()).expect("readable").count(), 7);
        assert_eq!(remove_abandoned(&at("nowhere")), Vec::<PathBuf>::new());

        // A process that was started meanwhile works in it still; this one ends when its stdin does.
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("it starts");
        drop(used);
        assert_eq!(remove_abandoned(parent.path()), Vec::<PathBuf>::new());
        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert_eq!(remove_abandoned(parent.path()), [used_root]);
    }
}
