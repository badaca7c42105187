//! Which paths of a linked directory show which versions of a key: the winner at the key itself, each loser beside
//! it as `name.conflict-AUTHOR-TIME.ext`. Pure, and a function of the versions alone, so that all nodes show the same.

use consort_core::{Dot, Key, Kind, OnConflict, Version};

/// How many losers of one key are shown beside the winner. More stay readable by version.
pub(super) const MAX_CONFLICT_COPIES: usize = 8;

/// The longest name that the file systems we run on can hold, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// A version at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown<'v> {
    /// Where.
    pub(super) path: Key,
    /// What.
    pub(super) version: &'v Version,
}

/// What of a key's current versions a directory shows under `policy`, losers first: they have to be in place before the
/// winner takes the place that one of them may still have.
///
/// `displaced` says that there are live keys beneath this one, so that only a directory can stand at its path; a
/// winner that is none is shown like a loser then.
pub(super) fn project<'v>(
    key: &Key,
    siblings: &'v [Version],
    policy: OnConflict,
    displaced: bool,
) -> Vec<Shown<'v>> {
    let Some(winner) = policy.winner(siblings).filter(|winner| !winner.is_deleted()) else {
        return Vec::new();
    };
    let beside =
        |version: &'v Version| conflict_path(key, version.dot).map(|path| Shown { path, version });
    let losers = policy.losers(siblings).into_iter();
    let mut shown: Vec<Shown<'v>> = Vec::new();
    for loser in losers.take(MAX_CONFLICT_COPIES).filter_map(beside) {
        // Authors are told apart by a part of their names only.
        if shown.iter().all(|other| other.path != loser.path) {
            shown.push(loser);
        }
    }
    if displaced && winner.attributes.kind != Kind::Directory {
        shown.extend(beside(winner));
    } else {
        shown.push(Shown { path: key.clone(), version: winner });
    }
    shown
}

/// Where a loser is shown: `dir/name.conflict-AUTHOR-TIME.ext`, with the author's first eight digits and the UTC time
/// to the millisecond, `-N` behind it if it was the author's Nth version in that millisecond. A long name is cut so
/// that it fits. `None` if the key is too long for any such path.
pub(crate) fn conflict_path(key: &Key, dot: Dot) -> Option<Key> {
    let (stem, extension) = match key.name().rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, Some(extension)),
        _ => (key.name(), None),
    };
    let mut mark = format!("{}{}-{}", CONFLICT_MARK, dot.author.short(), utc(dot.time.wall().0));
    if dot.time.counter() != 0 {
        mark.push_str(&format!("-{}", dot.time.counter()));
    }
    if let Some(extension) = extension {
        mark.push('.');
        mark.push_str(extension);
    }
    let room = MAX_NAME_BYTES.checked_sub(mark.len())?;
    let name = format!("{}{mark}", &stem[..stem.floor_char_boundary(room)]);
    let path = match key.parent() {
        Some(parent) => format!("{parent}/{name}"),
        None => name,
    };
    Key::new(path).ok()
}

/// What every path of a conflict copy of `key` begins with. Of a long name only a part counts, since it may be cut.
pub(super) fn conflict_prefix(key: &Key) -> String {
    let stem = match key.name().rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => key.name(),
    };
    let extension = key.name().len() - stem.len();
    let name = match MAX_NAME_BYTES.checked_sub(MAX_MARK_BYTES + extension) {
        Some(room) if stem.len() <= room => format!("{stem}{CONFLICT_MARK}"),
        Some(room) => stem[..stem.floor_char_boundary(room)].to_owned(),
        None => String::new(),
    };
    key.parent().map_or_else(|| name.clone(), |parent| format!("{parent}/{name}"))
}

/// The key whose conflict copy a path would be by its name, if that was not cut.
pub(super) fn copied_key(path: &Key) -> Option<Key> {
    let (stem, rest) = path.name().rsplit_once(CONFLICT_MARK)?;
    let rest = rest.get(8 + 1 + 19..)?;
    let counter = rest.strip_prefix('-').map_or("", |rest| rest.split('.').next().unwrap_or(""));
    let extension = if counter.is_empty() { rest } else { &rest[1 + counter.len()..] };
    let is_extension = extension.is_empty() || extension.starts_with('.');
    if !is_extension || !counter.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let name = format!("{stem}{extension}");
    let key = path.parent().map_or_else(|| name.clone(), |parent| format!("{parent}/{name}"));
    Key::new(key).ok()
}

/// The longest mark without an extension: eight digits of an author, a time, a counter.
const MAX_MARK_BYTES: usize = CONFLICT_MARK.len() + 8 + 1 + 19 + 1 + 5;

const CONFLICT_MARK: &str = ".conflict-";

/// `20261123T021530.123`, from milliseconds since 1970 (the civil calendar from days, after Howard Hinnant's
/// "chrono-Compatible Low-Level Date Algorithms").
fn utc(ms: u64) -> String {
    let (days, ms) = (ms / 86_400_000, ms % 86_400_000);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{ms:03}")
}

#[cfg(test)]
mod tests {
    use consort_core::{Attributes, AuthorId, Content, Timestamp, VersionVector, WallTime};

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).expect("a valid key")
    }

    fn version(author: u8, ms: u64, value: u8) -> Version {
        let dot = Dot { author: AuthorId([author; 16]), time: Timestamp::at(WallTime(ms)) };
        let content = Content::Inline([value].into());
        Version { dot, seen: VersionVector::new(), content, attributes: Attributes::default() }
    }

    #[test]
    fn a_loser_is_shown_beside_the_winner_under_a_name_that_tells_whose_it_is() {
        let siblings = [version(0xaa, 1_795_400_130_123, 1), version(0xbb, 1_795_400_131_000, 2)];
        let shown = project(&key("dir/report.txt"), &siblings, OnConflict::KeepBoth, false);
        let paths: Vec<&str> = shown.iter().map(|shown| shown.path.as_str()).collect();
        assert_eq!(
            paths,
            ["dir/report.conflict-aaaaaaaa-20261123T021530.123.txt", "dir/report.txt"]
        );
    }

    #[test]
    fn what_has_no_extension_gets_none() {
        let dot = version(1, 0, 0).dot;
        let path = |text: &str| conflict_path(&key(text), dot).map(|path| path.to_string());
        let mark = ".conflict-01010101-19700101T000000.000";
        assert_eq!(path("Makefile"), Some(format!("Makefile{mark}")));
        assert_eq!(path(".hidden"), Some(format!(".hidden{mark}")));
    }

    #[test]
    fn a_conflict_copy_is_known_by_its_name() {
        for (key_text, counter) in
            [("d/a.txt", 0), ("Makefile", 7), (".hidden", 0), ("x.tar.gz", 1)]
        {
            let mut dot = version(0xaa, 1_795_400_130_123, 1).dot;
            dot.time = Timestamp(dot.time.0 + counter);
            let path = conflict_path(&key(key_text), dot).expect("it is short");
            assert_eq!(copied_key(&path), Some(key(key_text)), "{path}");
        }
        for other in ["a.txt", "a.conflict-", "a.conflict-aaaaaaaa-20261123T021530.123x"] {
            assert_eq!(copied_key(&key(other)), None);
        }
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let long = "ä".repeat(127);
        let path = conflict_path(&key(&long), version(1, 0, 0).dot).expect("it fits when cut");
        assert!(path.name().len() <= MAX_NAME_BYTES && path.name().starts_with("ää"));
        assert!(path.starts_with(&conflict_prefix(&key(&long))));
    }

    #[test]
    fn a_file_makes_way_for_what_lies_beneath_it() {
        let siblings = [version(0xaa, 5, 1)];
        let shown = project(&key("x"), &siblings, OnConflict::KeepBoth, true);
        assert_eq!(shown.len(), 1);
        assert_ne!(shown[0].path, key("x"));
    }

    #[test]
    fn a_deleted_key_shows_nothing() {
        let deleted = Version { content: Content::Deleted, ..version(1, 1, 1) };
        assert_eq!(project(&key("x"), &[deleted], OnConflict::KeepBoth, false), []);
    }
}
