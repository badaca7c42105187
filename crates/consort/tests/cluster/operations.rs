//! Random changes of several directories that are kept identical: what a user, an editor and a script would do, by
//! seed, and a record of it. What the record proves in the end is told in [`crate::ledger`].
//!
//! Nothing is ever overwritten or deleted here: what goes is moved away in one step, into an attic beside the directory.
//! See there why.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::ledger::{Ledger, Value, What, values_below};
use crate::random::Random;

/// Files that nobody touches, so that no burst of deletions is the greater part of a directory.
const BALLAST: usize = 150;

/// The most bytes of a value, mostly; one in twenty is larger than any chunk.
const VALUE_BYTES: usize = 20 * 1024;
const LARGE_VALUE_BYTES: usize = 400 * 1024;

/// Directories that are operated on, and all that was done to them.
#[derive(Debug)]
pub(crate) struct Operations {
    random: Random,
    directories: Vec<PathBuf>,
    attic: PathBuf,
    /// Counts what was tried: it makes values unique and orders what happened.
    clock: usize,
    performed: usize,
    ledger: Ledger,
}

impl Operations {
    /// Operations on `directories`, which are equal at the moment. What they take away goes below `attic`, which is on
    /// the same file system.
    pub(crate) fn new(seed: u64, directories: Vec<PathBuf>, attic: PathBuf) -> Self {
        fs::create_dir_all(&attic).expect("a new directory");
        let mut operations = Self {
            random: Random::new(seed),
            directories,
            attic,
            clock: 0,
            performed: 0,
            ledger: Ledger::default(),
        };
        operations.populate();
        operations
    }

    /// The chance of this run, for whoever drives it.
    pub(crate) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Operations that found something to work on.
    pub(crate) fn performed(&self) -> usize {
        self.performed
    }

    /// Tries random operations until one of them finds something to work on.
    pub(crate) fn step(&mut self) {
        for _ in 0..1000 {
            self.clock += 1;
            let place = self.random.below(self.directories.len());
            let root = self.directories[place].clone();
            match self.operate(&root) {
                Ok(Some(line)) => {
                    self.ledger.note(format!("{:>5}  {place}  {line}", self.clock));
                    self.performed += 1;
                    return;
                }
                Ok(None) => {}
                // The engine changes the directory at the same time, so what was there may be gone, and the reverse.
                Err(error) if is_a_lost_race(&error) => {}
                Err(error) => panic!("operation {} in {}: {error}", self.clock, root.display()),
            }
        }
        panic!("no operation is possible any more");
    }

    /// What was done, for the proof.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What is there before anything happens, in the first directory.
    fn populate(&mut self) {
        let root = self.directories[0].clone();
        for number in 0..BALLAST {
            let path = root.join(format!("ballast/{}/{number}", number % 7));
            fs::create_dir_all(path.parent().expect("it has one")).expect("a new directory");
            fs::write(path, format!("ballast {number}")).expect("a new file");
        }
        for number in 0..40 {
            self.clock += 1;
            let path = PathBuf::from(format!("d{}/e{}/file-{number}", number % 5, number % 3));
            fs::create_dir_all(root.join(&path).parent().expect("it has one"))
                .expect("a directory");
            let bytes = self.fresh_bytes();
            fs::write(root.join(&path), &bytes).expect("a new file");
            self.record(What::Written(path, Value::of_bytes(&bytes)));
        }
    }

    /// One random operation. `None`: there was nothing to do it with.
    fn operate(&mut self, root: &Path) -> io::Result<Option<String>> {
        let files = self.candidates(root, |entry| entry.is_file() || entry.is_symlink());
        let directories = self.candidates(root, |entry| entry.is_dir());
        let kind = self.random.below(100);
        if kind < 26 || files.is_empty() {
            return self.create(root, &directories);
        }
        let file = self.random.pick(&files).clone();
        match kind {
            26..=41 => self.replace(root, &file),
            42..=47 => self.edit(root, &file, Edit::Append),
            48..=51 => self.edit(root, &file, Edit::InsertAtHead),
            52..=55 => self.edit(root, &file, Edit::Overwrite),
            56..=60 => self.edit(root, &file, Edit::Truncate),
            61..=68 => self.rename_file(root, &file, &directories),
            69..=71 if directories.len() > 3 => {
                let directory = self.random.pick(&directories).clone();
                self.rename_directory(root, &directory)
            }
            72..=79 => self.delete(root, &file),
            80..=81 if directories.len() > 6 => {
                let directory = self.random.pick(&directories).clone();
                self.delete(root, &directory)
            }
            82..=86 => self.chmod(root, &file),
            87..=91 => self.touch(root, &file),
            92..=94 => self.file_to_directory(root, &file),
            95..=96 if !directories.is_empty() => {
                let directory = self.random.pick(&directories).clone();
                self.directory_to_file(root, &directory)
            }
            97..=99 => self.set_symlink(root, &file),
            _ => Ok(None),
        }
    }

    fn create(&mut self, root: &Path, directories: &[PathBuf]) -> io::Result<Option<String>> {
        // Few names, so that several nodes sometimes create the same one.
        let name = format!("new-{}.txt", self.random.below(120));
        let parent = match directories {
            [] => PathBuf::new(),
            _ if self.random.once_in(8) => PathBuf::new(),
            _ if self.random.once_in(8) => {
                let parent =
                    self.random.pick(directories).join(format!("sub-{}", self.random.below(9)));
                fs::create_dir_all(root.join(&parent))?;
                parent
            }
            _ => self.random.pick(directories).clone(),
        };
        let path = parent.join(name);
        let bytes = self.fresh_bytes();
        self.put_new(root, &path, &bytes)?;
        Ok(Some(format!("create {path:?}")))
    }

    fn replace(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        let bytes = self.fresh_bytes();
        let new = self.attic_name();
        fs::write(&new, &bytes)?;
        self.exchange(root, path, &new)?;
        self.record(What::Written(path.to_path_buf(), Value::of_bytes(&bytes)));
        Ok(Some(format!("replace {path:?}")))
    }

    fn set_symlink(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        let target = PathBuf::from(format!("target-{}", self.clock));
        let new = self.attic_name();
        symlink(&target, &new)?;
        self.exchange(root, path, &new)?;
        self.record(What::Written(path.to_path_buf(), Value::Target(target)));
        Ok(Some(format!("make a symlink {path:?}")))
    }

    /// An edit in place, as editors and programs do that keep a file open.
    fn edit(&mut self, root: &Path, path: &Path, edit: Edit) -> io::Result<Option<String>> {
        let full = root.join(path);
        if !fs::symlink_metadata(&full)?.is_file() {
            return Ok(None);
        }
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOFOLLOW;
        let mut file = File::from(rustix::fs::open(&full, flags, rustix::fs::Mode::empty())?);
        let mut base = Vec::new();
        file.read_to_end(&mut base)?;
        let mark = format!("edited by operation {}\n", self.clock);
        let mut result = base.clone();
        match edit {
            Edit::Append => {
                result.extend_from_slice(mark.as_bytes());
                file.write_all(mark.as_bytes())?;
            }
            Edit::InsertAtHead => {
                result.splice(0..0, mark.bytes());
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&result)?;
            }
            Edit::Overwrite => {
                let at = self.random.below(base.len() + 1);
                let end = (at + mark.len()).min(result.len());
                result.splice(at..end, mark.bytes());
                file.seek(SeekFrom::Start(at as u64))?;
                file.write_all(mark.as_bytes())?;
            }
            Edit::Truncate => {
                result.truncate(self.random.below(base.len() + 1));
                file.set_len(result.len() as u64)?;
            }
        }
        let base = Value::of_bytes(&base);
        self.record(What::Taken(path.to_path_buf(), base.clone()));
        let ours = file.metadata()?;
        let is_ours = |there: Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        if fs::symlink_metadata(&full).is_ok_and(is_ours) {
            self.record(What::Written(path.to_path_buf(), Value::of_bytes(&result)));
        } else {
            self.record(What::Edited(base));
        }
        Ok(Some(format!("{edit:?} in place {path:?}")))
    }

    fn rename_file(
        &mut self,
        root: &Path,
        path: &Path,
        directories: &[PathBuf],
    ) -> io::Result<Option<String>> {
        let parent = match directories {
            [] => PathBuf::new(),
            _ => self.random.pick(directories).clone(),
        };
        let new = parent.join(format!("renamed-{}.txt", self.clock));
        renameat_with(CWD, root.join(path), CWD, root.join(&new), RenameFlags::NOREPLACE)?;
        // Nobody else uses the new name, so what is there now is what was renamed.
        let value = Value::at(&root.join(&new))?;
        self.record(What::Taken(path.to_path_buf(), value.clone()));
        self.record(What::Written(new.clone(), value));
        Ok(Some(format!("rename {path:?} to {new:?}")))
    }

    fn rename_directory(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        let new = PathBuf::from(format!("moved-{}", self.clock));
        renameat_with(CWD, root.join(path), CWD, root.join(&new), RenameFlags::NOREPLACE)?;
        self.record(What::Renamed(path.to_path_buf()));
        for (below, value) in values_below(&root.join(&new)) {
            self.record(What::Taken(path.join(&below), value.clone()));
            self.record(What::Written(new.join(&below), value));
        }
        Ok(Some(format!("rename the directory {path:?} to {new:?}")))
    }

    fn delete(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        self.move_away(root, path)?;
        Ok(Some(format!("delete {path:?}")))
    }

    fn chmod(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        let full = root.join(path);
        if !fs::symlink_metadata(&full)?.is_file() {
            return Ok(None);
        }
        let mode = *self.random.pick(&[0o644, 0o600, 0o755, 0o640, 0o700]);
        fs::set_permissions(&full, Permissions::from_mode(mode))?;
        Ok(Some(format!("chmod {mode:o} {path:?}")))
    }

    fn touch(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        let full = root.join(path);
        if fs::symlink_metadata(&full)?.is_symlink() {
            return Ok(None);
        }
        let seconds = 1_600_000_000 + i64::try_from(self.random.below(100_000_000)).expect("small");
        let nanoseconds = i64::try_from(self.random.below(1_000_000_000)).expect("small");
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &full, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some(format!("touch {path:?}")))
    }

    fn file_to_directory(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        self.move_away(root, path)?;
        fs::create_dir(root.join(path))?;
        let child = path.join("was-a-file.txt");
        let bytes = self.fresh_bytes();
        self.put_new(root, &child, &bytes)?;
        Ok(Some(format!("make a directory of the file {path:?}")))
    }

    fn directory_to_file(&mut self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        self.move_away(root, path)?;
        let bytes = self.fresh_bytes();
        self.put_new(root, path, &bytes)?;
        Ok(Some(format!("make a file of the directory {path:?}")))
    }

    /// Puts a whole file where nothing is.
    fn put_new(&mut self, root: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = self.attic_name();
        fs::write(&new, bytes)?;
        let placed = renameat_with(CWD, &new, CWD, root.join(path), RenameFlags::NOREPLACE);
        if let Err(error) = placed {
            fs::remove_file(&new)?;
            return Err(error.into());
        }
        self.record(What::Written(path.to_path_buf(), Value::of_bytes(bytes)));
        Ok(())
    }

    /// Exchanges what is at `path` with `new`, so that the attic holds what was there in that very moment.
    fn exchange(&mut self, root: &Path, path: &Path, new: &Path) -> io::Result<()> {
        let exchanged = renameat_with(CWD, new, CWD, root.join(path), RenameFlags::EXCHANGE);
        if let Err(error) = exchanged {
            fs::remove_file(new)?;
            return Err(error.into());
        }
        self.record(What::MovedAway(path.to_path_buf(), new.to_path_buf()));
        Ok(())
    }

    fn move_away(&mut self, root: &Path, path: &Path) -> io::Result<()> {
        let away = self.attic_name();
        renameat_with(CWD, root.join(path), CWD, &away, RenameFlags::NOREPLACE)?;
        self.record(What::MovedAway(path.to_path_buf(), away));
        Ok(())
    }

    fn record(&mut self, what: What) {
        self.ledger.record(self.clock, what);
    }

    fn attic_name(&self) -> PathBuf {
        self.attic.join(self.ledger.records().to_string())
    }

    /// Bytes that nobody else has written.
    fn fresh_bytes(&mut self) -> Vec<u8> {
        let most = if self.random.once_in(20) { LARGE_VALUE_BYTES } else { VALUE_BYTES };
        let length = self.random.below(most);
        let mut bytes = format!("written by operation {}\n", self.clock).into_bytes();
        bytes.extend(self.random.bytes(length));
        bytes
    }

    /// Paths that may be operated on, in an order that does not depend on the file system.
    fn candidates(&self, root: &Path, accept: impl Fn(&fs::FileType) -> bool) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let Ok(list) = fs::read_dir(root.join(&relative)) else { continue };
            for entry in list.flatten() {
                let path = relative.join(entry.file_name());
                let Ok(kind) = entry.file_type() else { continue };
                if ["ballast", "put", ".consort"].iter().any(|kept| path.starts_with(kept)) {
                    continue;
                }
                if kind.is_dir() {
                    pending.push(path.clone());
                }
                if accept(&kind) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

#[derive(Clone, Copy, Debug)]
enum Edit {
    Append,
    InsertAtHead,
    Overwrite,
    Truncate,
}

fn is_a_lost_race(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, NotFound};
    let became_a_symlink = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    became_a_symlink
        || matches!(
            error.kind(),
            NotFound | AlreadyExists | NotADirectory | IsADirectory | DirectoryNotEmpty
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_one_directory(seed: u64, steps: usize) -> (tempfile::TempDir, Operations, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("dir");
        fs::create_dir(&dir).unwrap();
        let mut operations = Operations::new(seed, vec![dir.clone()], temp.path().join("attic"));
        for _ in 0..steps {
            operations.step();
        }
        (temp, operations, dir)
    }

    #[test]
    fn one_directory_alone_loses_nothing() {
        let (_temp, operations, dir) = on_one_directory(3, 600);
        assert_eq!(operations.performed(), 600);
        operations.ledger().check(&dir, |_| Vec::new());
    }

    #[test]
    fn the_same_seed_does_the_same() {
        let (_left, left, _) = on_one_directory(11, 100);
        let (_right, right, _) = on_one_directory(11, 100);
        assert_eq!(left.ledger.journal(), right.ledger.journal());
    }

    #[test]
    fn every_lost_value_is_noticed() {
        let (_temp, operations, dir) = on_one_directory(5, 100);
        for (path, _) in values_below(&dir) {
            if path.starts_with("ballast") {
                continue;
            }
            let aside = dir.with_extension("aside");
            fs::rename(dir.join(&path), &aside).unwrap();
            let check =
                std::panic::AssertUnwindSafe(|| operations.ledger().check(&dir, |_| Vec::new()));
            // The hook would print every one of these expected panics.
            let noticed = std::panic::catch_unwind(check).is_err();
            fs::rename(&aside, dir.join(&path)).unwrap();
            let below_renamed =
                path.starts_with("moved-") || path.to_string_lossy().contains("moved-");
            assert!(noticed || below_renamed, "{path:?} was not missed");
        }
    }
}
