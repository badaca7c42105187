//! Random histories of one linked directory: what its user does, what others wrote, and restarts, in any order; at
//! the end everything agrees, and nothing is gone that nobody replaced.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use consort_core::random::Random;
use consort_core::{Attributes, Content, Kind};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Site, Stands, content_of, file_attributes, is_paused, noise};

/// So many histories run with every test; `CONSORT_SEEDS=FROM..TO` runs others.
const SEEDS: std::ops::Range<u64> = 0..12;
const STEPS: u64 = 60;
/// How often, and after how long, it is looked whether an entry is back.
const PUT_BACK_WAITS: u32 = 1000;
const PUT_BACK_WAIT: Duration = Duration::from_millis(5);

#[test]
fn whatever_happens_directory_and_store_agree_and_nothing_is_lost() {
    let seeds = match std::env::var("CONSORT_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("FROM..TO");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => SEEDS,
    };
    for seed in seeds {
        println!("seed {seed}");
        History::new(seed).play();
    }
}

struct History {
    site: Site,
    random: Random,
    step: u64,
    /// What the user wrote and nobody has replaced: by content, where.
    kept: BTreeMap<[u8; 16], String>,
}

impl History {
    fn new(seed: u64) -> Self {
        Self { site: Site::new(), random: Random::new(seed), step: 0, kept: BTreeMap::new() }
    }

    fn play(mut self) {
        for step in 0..STEPS {
            self.step = step;
            let what = self.below(24);
            println!("step {step}: {what}");
            match what {
                0..5 => self.write(),
                5..7 => self.append(),
                7 | 8 => self.remove(),
                9 | 10 => self.rename(),
                11 => self.replace_by_directory(),
                12 => self.chmod(),
                13 => self.link(),
                14..19 => self.remote(),
                19 | 20 => self.remote_deletion(),
                21 => self.remote_directory(),
                22 => self.settle(),
                _ if self.below(2) == 0 => self.site.flush(),
                _ => {
                    self.site.stop();
                    if self.below(2) == 0 {
                        self.write();
                        self.remove();
                        self.remote();
                    }
                    self.site.start();
                }
            }
        }
        self.settle();
        self.site.check();
        let view = self.site.view();
        let all = consort_core::store::View::scan(&view, "", None, usize::MAX).unwrap();
        let mut held: Vec<[u8; 16]> = all
            .iter()
            .flat_map(|(_, held)| held.iter().map(|stored| stored.version.content.id()))
            .collect();
        let rescued = self.site.at(".consort/rescued");
        for entry in fs::read_dir(rescued).into_iter().flatten() {
            held.push(content_of(&fs::read(entry.unwrap().path()).unwrap()).id());
        }
        for (content, what) in &self.kept {
            if !held.contains(content) {
                for (path, held) in &all {
                    eprintln!("{path}: {held:?}, {:?}", view.record(path).unwrap());
                }
            }
            assert!(held.contains(content), "nobody replaced {what}, and it is gone");
        }
    }

    /// Waits until directory and store agree, whatever was deleted: what is asked waits with all that depends on it.
    fn settle(&self) {
        self.site.until("nothing is asked or pending any more", |site| {
            if is_paused(site) {
                site.folder().allow_mass_delete();
            }
            site.flush();
            !is_paused(site) && site.view().pending(None, 1).unwrap().is_empty()
        });
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn path(&mut self) -> String {
        let paths = ["a", "b.txt", "a/x", "a/y", "d/x", "d/e/f", "d", "d/e"];
        // Conflict copies are files like others to the user.
        let copies = self.site.copies();
        let place = usize::try_from(self.below(10)).unwrap();
        let path = match copies.get(place.wrapping_sub(paths.len())) {
            Some(copy) => copy.clone(),
            None => paths[place % paths.len()].to_owned(),
        };
        println!("  {path}");
        path
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = match self.below(4) {
            0 => 0,
            1 => 100_000,
            _ => 20,
        };
        let number = self.below(1 << 30);
        let mut bytes = format!("step {} of {number}", self.step).into_bytes();
        bytes.extend(noise(length, self.step));
        bytes
    }

    fn aside(&self) -> std::path::PathBuf {
        self.site.home.path().join("aside/file")
    }

    /// Swaps what is aside with what stands at a path, if that can be, and forgets what was replaced.
    fn swap_in(&mut self, path: &str) -> bool {
        let (aside, at) = (self.aside(), self.site.at(path));
        if fs::create_dir_all(at.parent().unwrap()).is_err() || at.is_dir() && !at.is_symlink() {
            return false;
        }
        for _ in 0..10 {
            let flags = RenameFlags::NOREPLACE;
            if renameat_with(CWD, &aside, CWD, &at, flags).is_ok() {
                return true;
            }
            if renameat_with(CWD, &aside, CWD, &at, RenameFlags::EXCHANGE).is_ok() {
                self.forget(&aside);
                return true;
            }
        }
        false
    }

    /// What is there now was replaced, or deleted, by the user.
    ///
    /// In a directory that was just moved away, an entry may be out for a moment: the engine, which had opened the
    /// directory before, takes it, sees where it is, and puts it back. So a user who deletes may have to do so twice.
    fn forget(&mut self, path: &Path) {
        for _ in 0..PUT_BACK_WAITS {
            if path.is_dir() && !path.is_symlink() {
                for entry in fs::read_dir(path).unwrap() {
                    self.forget(&entry.unwrap().path());
                }
                if fs::remove_dir(path).is_ok() {
                    return;
                }
            } else {
                let bytes = fs::read(path);
                if fs::remove_file(path).is_ok() {
                    if let Ok(bytes) = bytes {
                        println!(
                            "  out: {}",
                            String::from_utf8_lossy(&bytes[..bytes.len().min(20)])
                        );
                        self.kept.remove(&content_of(&bytes).id());
                    }
                    return;
                }
            }
            std::thread::sleep(PUT_BACK_WAIT);
        }
        panic!("{} was taken, and not put back", path.display());
    }

    fn put(&mut self, path: &str, bytes: &[u8]) {
        fs::write(self.aside(), bytes).unwrap();
        self.kept.insert(content_of(bytes).id(), format!("{path} at step {}", self.step));
        if !self.swap_in(path) {
            self.forget(&self.aside());
        }
    }

    fn write(&mut self) {
        let (path, bytes) = (self.path(), self.bytes());
        self.put(&path, &bytes);
    }

    fn append(&mut self) {
        let path = self.path();
        let Ok(mut bytes) = fs::read(self.site.at(&path)) else { return };
        bytes.extend(self.bytes());
        self.put(&path, &bytes);
    }

    fn remove(&mut self) {
        let path = self.path();
        let aside = self.aside();
        if fs::rename(self.site.at(&path), &aside).is_ok() {
            self.forget(&aside);
        }
    }

    fn rename(&mut self) {
        let (from, to) = (self.path(), self.path());
        let aside = self.aside();
        if fs::rename(self.site.at(&from), &aside).is_err() {
            return;
        }
        let moved = if aside.is_dir() && !aside.is_symlink() {
            renameat_with(CWD, &aside, CWD, self.site.at(&to), RenameFlags::NOREPLACE).is_ok()
        } else {
            self.swap_in(&to)
        };
        if !moved {
            self.forget(&aside);
        }
    }

    fn replace_by_directory(&mut self) {
        let path = self.path();
        let aside = self.aside();
        if fs::rename(self.site.at(&path), &aside).is_ok() {
            self.forget(&aside);
        }
        let bytes = self.bytes();
        let _ = fs::create_dir_all(self.site.at(&path));
        self.put(&format!("{path}/x"), &bytes);
    }

    fn chmod(&mut self) {
        let path = self.path();
        let at = self.site.at(&path);
        let mode = if self.below(2) == 0 { 0o755 } else { 0o700 };
        if !at.is_symlink() {
            let _ = fs::set_permissions(at, fs::Permissions::from_mode(mode));
        }
    }

    fn link(&mut self) {
        let (path, target) = (self.path(), format!("target-{}", self.step));
        symlink(target, self.aside()).unwrap();
        if !self.swap_in(&path) {
            self.forget(&self.aside());
        }
    }

    fn stands(&mut self) -> Stands {
        [Stands::Beside, Stands::Over, Stands::After][usize::try_from(self.below(3)).unwrap()]
    }

    fn remote_version(&mut self, path: &str, content: Content, attributes: Attributes) {
        let stands = self.stands();
        self.site.remote_version(path, stands, content, attributes);
        for content in &self.site.replaced {
            self.kept.remove(&content.id());
        }
    }

    fn remote(&mut self) {
        let path = self.path();
        let bytes = self.bytes();
        self.site.keep(&bytes);
        let mode = if self.below(3) == 0 { 0o755 } else { 0o644 };
        let attributes = Attributes { mode, ..file_attributes() };
        self.remote_version(&path, content_of(&bytes), attributes);
    }

    fn remote_deletion(&mut self) {
        let path = self.path();
        self.remote_version(&path, Content::Deleted, Attributes::default());
    }

    fn remote_directory(&mut self) {
        let path = self.path();
        let attributes = Attributes { kind: Kind::Directory, mode: 0o755, ..Attributes::default() };
        self.remote_version(&path, Content::Inline([].into()), attributes);
    }
}
