//! Large files of which others make versions that go on where the last one ended.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use consort_node::folder::{Becomes, Folder, Root};

use super::{Site, Stands, noise, placing};

const SIZE: usize = 6 << 20;

/// A directory with a large file, as others wrote it, and what they go on with.
fn site() -> (Site, Vec<u8>) {
    let mut site = Site::new();
    let bytes = noise(SIZE + 3_000_000, 1);
    site.remote("f", Stands::After, &bytes[..SIZE]);
    site.settle();
    (site, bytes)
}

fn inode(site: &Site) -> u64 {
    fs::metadata(site.at("f")).unwrap().ino()
}

fn holds(site: &Site, bytes: &[u8]) -> bool {
    fs::read(site.at("f")).is_ok_and(|found| found == bytes)
}

#[test]
fn what_others_append_is_added_to_the_file_where_it_stands() {
    let (mut site, bytes) = site();
    let before = inode(&site);
    for end in [SIZE + 1, SIZE + 500_000, bytes.len()] {
        site.remote("f", Stands::After, &bytes[..end]);
        site.settle();
        assert!(holds(&site, &bytes[..end]), "{end}");
        assert_eq!(inode(&site), before, "{end}");
        site.check();
    }
    // What its user goes on with is a version like any other.
    File::options().append(true).open(site.at("f")).unwrap().write_all(b"user").unwrap();
    site.settle();
    assert_eq!(site.live("f"), 1);
    assert_eq!(site.winner("f").unwrap().content.size(), bytes.len() as u64 + 4);
    site.check();
}

#[test]
fn a_file_that_somebody_has_open_is_replaced_and_stays_what_it_was_for_him() {
    let (mut site, bytes) = site();
    let (before, mut reader) = (inode(&site), File::open(site.at("f")).unwrap());
    site.remote("f", Stands::After, &bytes);
    site.settle();
    assert!(holds(&site, &bytes));
    assert_ne!(inode(&site), before);
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut read).unwrap();
    assert!(read == bytes[..SIZE]);
    site.check();
}

#[test]
fn a_file_that_is_longer_and_another_one_is_replaced() {
    let (mut site, bytes) = site();
    // At its head, in its middle, in its last byte, and by one byte that was inserted.
    let changed = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    let inserted = [b"x", &bytes[..]].concat();
    for other in [changed(0), changed(SIZE / 2), changed(SIZE - 1), inserted] {
        site.remote("f", Stands::After, &bytes[..SIZE]);
        site.settle();
        let before = inode(&site);
        site.remote("f", Stands::After, &other);
        site.settle();
        assert!(holds(&site, &other));
        assert_ne!(inode(&site), before);
        site.check();
    }
}

#[test]
fn a_file_that_was_growing_when_the_node_was_killed_is_what_others_made_of_it() {
    for (added, read_only) in
        [1, 1_500_000, 3_000_000].into_iter().flat_map(|added| [(added, false), (added, true)])
    {
        let (mut site, bytes) = site();
        site.stop();
        site.read_only = read_only;
        let longer = [&bytes[..], &noise(100_000, 2)].concat();
        site.keep(&longer);
        let version = site.remote("f", Stands::After, &bytes);
        let (size, attributes) = (bytes.len() as u64, version.attributes.clone());
        // As far as the engine comes before it is killed.
        let root = Root::open(&site.at("")).unwrap();
        let old = root.stat("f").unwrap().unwrap();
        let growing = root.growing("f", &old, size).unwrap();
        let staging = root.stage_tail(version.content.id()).unwrap();
        staging.target(SIZE as u64).write(&bytes[SIZE..]).unwrap();
        let becomes = Becomes {
            key: "f".to_owned(),
            size,
            mode: attributes.mode.into(),
            mtime_ns: attributes.modified_ns,
        };
        let tail = staging.finish_tail(growing, becomes).unwrap();
        root.sync_staged(std::slice::from_ref(&tail)).unwrap();
        drop(root.begin_placing(&[placing("f", &version)], true).unwrap());
        root.unlock();
        std::mem::forget(tail);
        let mut file = File::options().append(true).open(site.at("f")).unwrap();
        file.write_all(&bytes[SIZE..SIZE + added]).unwrap();
        let id = root.id();
        drop((file, root));

        // They may go on before it was looked at, and before the directory was opened again.
        let mut last = version;
        if added == 1_500_000 {
            last = site.remote("f", Stands::After, &longer);
        }
        site.id = Some(id);
        site.start();
        site.folder.iter().for_each(Folder::wake);
        if added == 3_000_000 {
            last = site.remote("f", Stands::After, &longer);
        }
        let expected = if added == 1 { &bytes } else { &longer };
        site.settle();
        assert!(holds(&site, expected), "{added}");
        assert_eq!(site.winner("f").unwrap().dot, last.dot, "{added}");
        assert_eq!((site.live("f"), site.copies()), (1, Vec::new()), "{added}");
        site.check();
    }
}
