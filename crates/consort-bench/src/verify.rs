//! Whether two directories are equal: names, kinds, bytes, modes, link targets, and the modification times of files and
//! symlinks. Both are read whole; nobody is asked. Directory by directory, so that a million files need no memory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What Consort and Syncthing keep for themselves at the top of a directory.
pub(crate) const PRIVATE: [&str; 2] = [".consort", ".stfolder"];

const BUFFER_BYTES: usize = 256 * 1024;

/// The first difference, in words; `None` if they are equal.
pub(crate) fn difference(left: &Path, right: &Path) -> io::Result<Option<String>> {
    let mut buffers = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    in_directory(left, right, true, &mut buffers)
}

fn in_directory(
    left: &Path,
    right: &Path,
    is_top: bool,
    buffers: &mut (Vec<u8>, Vec<u8>),
) -> io::Result<Option<String>> {
    let (names, others) = (names(left, is_top)?, names(right, is_top)?);
    if let Some(name) = names.symmetric_difference(&others).next() {
        let holder = if names.contains(name) { left } else { right };
        return Ok(Some(format!("{} is on one side only", holder.join(name).display())));
    }
    for name in names {
        let (left, right) = (left.join(&name), right.join(&name));
        if let Some(found) = between(&left, &right, buffers)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn between(
    left: &Path,
    right: &Path,
    buffers: &mut (Vec<u8>, Vec<u8>),
) -> io::Result<Option<String>> {
    let (meta, other) = (fs::symlink_metadata(left)?, fs::symlink_metadata(right)?);
    let differs = |what: &str| Some(format!("{} has another {what} there", left.display()));
    if meta.mode() != other.mode() {
        return Ok(differs("kind or mode"));
    }
    if meta.is_dir() {
        return in_directory(left, right, false, buffers);
    }
    if (meta.mtime(), meta.mtime_nsec()) != (other.mtime(), other.mtime_nsec()) {
        return Ok(differs("modification time"));
    }
    let is_equal = if meta.is_symlink() {
        fs::read_link(left)? == fs::read_link(right)?
    } else {
        meta.len() == other.len() && is_content_equal(left, right, buffers)?
    };
    Ok(if is_equal { None } else { differs("content") })
}

fn is_content_equal(
    left: &Path,
    right: &Path,
    (buffer, other_buffer): &mut (Vec<u8>, Vec<u8>),
) -> io::Result<bool> {
    let (mut file, mut other) = (File::open(left)?, File::open(right)?);
    loop {
        let length = file.read(buffer)?;
        if length == 0 {
            return Ok(other.read(other_buffer)? == 0);
        }
        match other.read_exact(&mut other_buffer[..length]) {
            Ok(()) if buffer[..length] == other_buffer[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

fn names(dir: &Path, is_top: bool) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !is_top || !PRIVATE.iter().any(|private| name == *private) {
            names.insert(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn every_difference_is_found() {
        let make = || {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("sub/empty")).unwrap();
            fs::write(dir.path().join("sub/file"), vec![7; BUFFER_BYTES + 3]).unwrap();
            let file = File::options().write(true).open(dir.path().join("sub/file")).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            dir
        };
        let left = make();
        let find = |change: &dyn Fn(&Path)| {
            let right = make();
            change(right.path());
            difference(left.path(), right.path()).unwrap()
        };
        let file = |dir: &Path| dir.join("sub/file");
        let keep_time = |dir: &Path, change: &dyn Fn()| {
            change();
            let file = File::options().write(true).open(file(dir)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        assert_eq!(find(&|_| {}), None);
        assert_eq!(find(&|dir| fs::create_dir(dir.join(PRIVATE[0])).unwrap()), None);
        assert!(find(&|dir| fs::remove_dir(dir.join("sub/empty")).unwrap()).is_some());
        assert!(find(&|dir| symlink("x", dir.join("new")).unwrap()).is_some());
        assert!(find(&|dir| fs::write(file(dir), "short").unwrap()).is_some());
        let mode = Permissions::from_mode(0o600);
        assert!(find(&|dir| fs::set_permissions(file(dir), mode.clone()).unwrap()).is_some());
        let mut other = vec![7; BUFFER_BYTES + 3];
        other[BUFFER_BYTES + 1] = 8;
        let found = find(&|dir| keep_time(dir, &|| fs::write(file(dir), &other).unwrap()));
        assert!(found.is_some_and(|found| found.contains("content")));
    }
}
