//! Directories: one that looks like a real one, made by seed, and the comparison of two of them in words.
//!
//! What counts is what a user sees: names, bytes, modes, link targets, empty directories, and the modification times of
//! files and symlinks to the nanosecond. The times of directories are not kept by anybody's promise.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::random::Random;

/// The directory of the engine's own at the top of a linked directory.
const PRIVATE: &str = ".consort";

/// Differences that are told before it gets too much to read.
const MOST_DIFFERENCES: usize = 20;

/// A directory's contents by relative path.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File { hash: blake3::Hash, size: u64, mode: u32, mtime: (i64, i64) },
    Symlink { target: PathBuf, mtime: (i64, i64) },
    Directory { mode: u32 },
    Other,
}

/// Reads a directory, all of it. What vanishes on the way is not there.
pub(crate) fn read(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let Ok(list) = fs::read_dir(dir.join(&relative)) else { continue };
        for name in list.filter_map(|entry| Some(entry.ok()?.file_name())) {
            if relative.as_os_str().is_empty() && name == PRIVATE {
                continue;
            }
            let path = relative.join(&name);
            let Ok(entry) = read_entry(&dir.join(&path)) else { continue };
            if matches!(entry, Entry::Directory { .. }) {
                pending.push(path.clone());
            }
            tree.insert(path, entry);
        }
    }
    tree
}

/// What differs, in words; nothing if they are equal.
pub(crate) fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, entry) in left {
        match right.get(path) {
            None => found.push(format!("{path:?} is only in the first: {entry:?}")),
            Some(other) if other == entry => {}
            Some(other) => {
                found.push(format!(
                    "{path:?} is {entry:?} in the first and {other:?} in the second"
                ));
            }
        }
    }
    let only_right = right.iter().filter(|(path, _)| !left.contains_key(*path));
    found.extend(
        only_right.map(|(path, entry)| format!("{path:?} is only in the second: {entry:?}")),
    );
    if found.len() > MOST_DIFFERENCES {
        let more = found.len() - MOST_DIFFERENCES;
        found.truncate(MOST_DIFFERENCES);
        found.push(format!("and {more} more"));
    }
    found
}

/// The hash by which contents are compared.
pub(crate) fn hash_of(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            length => hasher.update(&buffer[..length]),
        };
    }
}

fn read_entry(path: &Path) -> io::Result<Entry> {
    let meta = fs::symlink_metadata(path)?;
    let mode = meta.mode() & 0o7777;
    let mtime = (meta.mtime(), meta.mtime_nsec());
    Ok(match meta.file_type() {
        kind if kind.is_file() => {
            Entry::File { hash: hash_of(path)?, size: meta.len(), mode, mtime }
        }
        kind if kind.is_symlink() => Entry::Symlink { target: fs::read_link(path)?, mtime },
        kind if kind.is_dir() => Entry::Directory { mode },
        _ => Entry::Other,
    })
}

/// Makes a directory that has some of everything: about `files` files in nested directories, and one of each rarity.
pub(crate) fn make(dir: &Path, files: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut directories = vec![dir.to_path_buf()];
    for number in 0..files / 8 {
        // Sometimes deep, sometimes broad.
        let parent = match directories.last() {
            Some(last) if random.once_in(3) && last.as_os_str().len() < 600 => last.clone(),
            _ => random.pick(&directories).clone(),
        };
        let directory = parent.join(name(&mut random, number, "dir"));
        fs::create_dir_all(&directory).expect("a new directory");
        directories.push(directory);
    }
    for number in 0..files {
        let path = random.pick(&directories).join(name(&mut random, number, "txt"));
        let length = match random.below(10) {
            0 => 0,
            1..=6 => random.below(4 * 1024),
            7 | 8 => random.below(64 * 1024),
            _ => random.below(600 * 1024),
        };
        write(&path, &random.bytes(length));
        if random.once_in(10) {
            set_mode(&path, *random.pick(&[0o755, 0o600, 0o444, 0o400, 0o664]));
        }
        if random.once_in(4) {
            set_mtime(&path, &mut random);
        }
        if random.once_in(20) {
            let target = *random.pick(&["nowhere", "..", "../dir-0", "/etc/hostname"]);
            link(target, &path.with_extension("link"));
        }
    }
    rarities(dir, &mut random);
}

/// One of each of what is seldom, and therefore forgotten.
fn rarities(dir: &Path, random: &mut Random) {
    let rare = dir.join("rarities");
    fs::create_dir_all(rare.join("empty/in/empty")).expect("new directories");
    fs::create_dir(rare.join("closed")).expect("a new directory");
    set_mode(&rare.join("closed"), 0o700);
    write(&rare.join("zero"), b"");
    write(&rare.join("program"), b"#!/bin/sh\n");
    set_mode(&rare.join("program"), 0o755);
    write(&rare.join("read only"), b"do not touch");
    set_mode(&rare.join("read only"), 0o444);
    for name in [
        "grüße",
        "日本語",
        "👩‍👩‍👧",
        "e\u{301} and é",
        " leading",
        "trailing ",
        "-n",
        "*?[]",
        "a\\b",
        "c:d",
    ] {
        write(&rare.join(name), name.as_bytes());
    }
    write(&rare.join("l".repeat(255)), b"the longest name");
    write(&rare.join("before 1970"), b"old");
    utimes(&rare.join("before 1970"), -86_400, 123_456_789);
    write(&rare.join("large"), &random.bytes(5 * 1024 * 1024 + 17));
    link("nowhere at all", &rare.join("dangling"));
    link("../rarities/zero", &rare.join("relative"));
    link("/etc", &rare.join("absolute"));
    link(".", &rare.join("loop"));
    sparse(&rare.join("sparse"));
    let deep = rare.join(vec!["down"; 60].join("/"));
    fs::create_dir_all(&deep).expect("new directories");
    write(&deep.join("bottom"), b"deep");
}

/// 16 MiB, of which three pages are data.
fn sparse(path: &Path) {
    let mut file = File::create(path).expect("a new file");
    for at in [0, 7 * 1024 * 1024, 12 * 1024 * 1024 + 4096] {
        file.seek(SeekFrom::Start(at)).expect("seekable");
        file.write_all(&[b'x'; 4096]).expect("writable");
    }
    file.set_len(16 * 1024 * 1024).expect("a hole at the end");
}

/// The bytes that a file takes on disk.
pub(crate) fn allocated(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

fn name(random: &mut Random, number: usize, kind: &str) -> String {
    match random.below(12) {
        0 => format!("größe {number}.{kind}"),
        1 => format!("文件-{number}.{kind}"),
        2 => format!("{}-{number}.{kind}", "long".repeat(40)),
        3 => format!(".hidden-{number}"),
        _ => format!("{kind}-{number}.{kind}"),
    }
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {path:?}: {error}"));
}

fn link(target: &str, path: &Path) {
    symlink(OsStr::from_bytes(target.as_bytes()), path)
        .unwrap_or_else(|error| panic!("cannot link {path:?}: {error}"));
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own file");
}

/// Some time between 2001 and now, to the nanosecond.
fn set_mtime(path: &Path, random: &mut Random) {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs();
    let seconds = 1_000_000_000 + random.next() % (now - 1_000_000_000);
    let nanoseconds = random.below(1_000_000_000);
    utimes(
        path,
        i64::try_from(seconds).expect("a date"),
        i64::try_from(nanoseconds).expect("small"),
    );
}

/// Sets the modification time of a file or a symlink itself.
pub(crate) fn utimes(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("our own file");
}

#[test]
fn the_same_seed_makes_the_same_tree_and_a_difference_is_told() {
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(left.path(), 40, 7);
    make(right.path(), 40, 7);
    let bytes_only = |tree: Tree| -> Vec<_> {
        let facts = tree.into_iter().map(|(path, entry)| match entry {
            Entry::File { hash, size, mode, .. } => (path, format!("{hash} {size} {mode}")),
            Entry::Symlink { target, .. } => (path, format!("{target:?}")),
            other => (path, format!("{other:?}")),
        });
        facts.collect()
    };
    assert_eq!(bytes_only(read(left.path())), bytes_only(read(right.path())));

    let before = read(left.path());
    assert!(differences(&before, &read(left.path())).is_empty());
    utimes(&left.path().join("rarities/dangling"), 5, 6);
    set_mode(&left.path().join("rarities/zero"), 0o640);
    fs::remove_dir(left.path().join("rarities/empty/in/empty")).unwrap();
    fs::create_dir_all(left.path().join(".consort/tmp")).unwrap();
    let found = differences(&before, &read(left.path()));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("dangling") && found[2].contains("zero"), "{found:?}");
    assert!(found[1].contains("only in the first"), "{found:?}");
}
