//! Giving a file another key in one step, without touching its bytes. What is looked at before and after is in
//! `place.rs`.

use rustix::io::Errno;

use super::{Parent, PlaceError, Placed, absent_is_changed, check, rename_new};
use crate::folder::root::meta_at;
use crate::folder::{Meta, Root};

impl Root {
    /// Gives the file at `from` the key `key` instead, if it is still the expected one and `key` is free; with the
    /// parents of that if they are missing. Nobody finds it missing meanwhile.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]; `Changed` also if nothing is at `from` any more, or something is at `key`; `Unmovable` if it
    /// would fail again.
    pub fn move_file(&self, from: &str, expected: &Meta, key: &str) -> Result<Placed, PlaceError> {
        let (old_parent, old_name) = self.open_parent(from).map_err(absent_is_changed)?;
        check(&old_parent, old_name, expected, from)?;
        let Parent { dir, name, created } = self.parent_of(key)?;
        let moved = || -> Result<Meta, PlaceError> {
            rename_new(&old_parent, old_name, &dir, name).map_err(not_moved)?;
            let meta = meta_at(&dir, name)?;
            if meta.same_after_rename(expected) && self.is_parent_of(&old_parent, from) {
                return Ok(meta);
            }
            // Should the user have made a new entry in its place meanwhile, it stays where it is, and is found there.
            let _ = rename_new(&dir, name, &old_parent, old_name);
            Err(PlaceError::Changed)
        };
        match moved() {
            Ok(meta) => Ok(Placed { meta, created, grown: None }),
            Err(error) => {
                self.unmake(&created);
                Err(error)
            }
        }
    }
}

/// Why a file was not moved. Mounts, quotas and permissions stay as they are; a disk that is full or fails may not.
fn not_moved(errno: Errno) -> PlaceError {
    match errno {
        Errno::EXIST | Errno::NOENT => PlaceError::Changed,
        Errno::XDEV | Errno::DQUOT | Errno::PERM | Errno::ACCESS | Errno::ROFS => {
            PlaceError::Unmovable(errno.into())
        }
        errno => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Expected;
    use super::super::tests::{Fixture, read};
    use super::*;

    #[test]
    fn a_file_moves_to_a_free_key_if_it_is_what_was_expected() {
        let fixture = Fixture::new();
        let known = fixture.place("known", "f", Expected::Absent).unwrap().meta;
        let placed = fixture.root.move_file("f", &known, "a/b/g").unwrap();
        assert_eq!(placed.created, ["a", "a/b"]);
        assert_eq!(placed.meta, fixture.stat("a/b/g"));
        assert!(placed.meta.same_after_rename(&known) && !fixture.at("f").exists());
        let again = fixture.root.move_file("f", &known, "c/h");
        assert!(matches!(again, Err(PlaceError::Changed)), "{again:?}");
        fs::write(fixture.at("h"), "users").unwrap();
        let onto = fixture.root.move_file("a/b/g", &placed.meta, "h");
        assert!(matches!(onto, Err(PlaceError::Changed)), "{onto:?}");
        fs::write(fixture.at("a/b/g"), "users, too").unwrap();
        let changed = fixture.root.move_file("a/b/g", &placed.meta, "c/h");
        assert!(matches!(changed, Err(PlaceError::Changed)), "{changed:?}");
        assert_eq!(
            (read(fixture.at("h")), read(fixture.at("a/b/g"))),
            ("users".into(), "users, too".into())
        );
        assert!(!fixture.at("c").exists());
    }

    #[test]
    fn only_what_stays_so_keeps_a_file_from_being_moved_later() {
        let stays = |errno| matches!(not_moved(errno), PlaceError::Unmovable(_));
        let lasting = [Errno::XDEV, Errno::DQUOT, Errno::PERM, Errno::ACCESS, Errno::ROFS];
        assert!(lasting.into_iter().all(stays));
        let passing = [Errno::NOSPC, Errno::IO, Errno::INTR, Errno::NOMEM, Errno::BUSY];
        assert!(!passing.into_iter().chain([Errno::EXIST, Errno::NOENT]).any(stays));
    }
}
