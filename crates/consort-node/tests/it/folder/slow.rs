//! What happens in a linked directory while large files are on their way, over a link that takes longer for them than
//! any test.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use consort_core::limits::MAX_TOP_REFS;
use consort_core::{ChunkRef, Content};
use consort_node::content::Contents;
use consort_node::net::{Limits, Rate};

use super::{Site, Stands, file_attributes, noise};
use crate::content::{Peer, World};

/// More than a directory wants of its peers at a time.
const UNDER_WAY_BYTES: usize = 56 << 20;

/// A linked directory and a node that has large contents, on a slow link.
struct Slow {
    site: Site,
    /// All chunks that the source has.
    chunks: Vec<ChunkRef>,
    _source: Peer,
    _own: Peer,
    _world: World,
}

impl Slow {
    fn new(read_only: bool) -> Self {
        let mut world = World::new();
        let (source, own) = (world.peer(), world.peer());
        own.knows(&[&source]);
        source.net.set_limits(Limits { up: Rate::new(Rate::MIN_BYTES), down: None });
        let chunks = source.write("large", &noise(UNDER_WAY_BYTES, 1));
        let mut site = Site::stopped();
        let local = Arc::clone(site.contents.local());
        site.read_only = read_only;
        site.contents = Arc::new(Contents::new(local, Arc::clone(&own.fetcher)));
        site.start();
        Self { site, chunks, _source: source, _own: own, _world: world }
    }

    /// Others wrote this large content.
    fn write(&mut self, name: &str, chunks: &[ChunkRef]) {
        let content = Content::Chunks(chunks.into());
        self.site.remote_version(name, Stands::After, content, file_attributes());
    }

    /// Others wrote large files, of which so much is on its way that no more is wanted, and some that have their turn later.
    fn fill(&mut self) {
        for (number, chunks) in self.chunks.clone().chunks(MAX_TOP_REFS).enumerate() {
            self.write(&format!("large-{number}"), chunks);
        }
    }
}

#[test]
fn what_others_removed_goes_while_a_large_file_is_on_its_way() {
    let mut slow = Slow::new(false);
    slow.site.remote("gone", Stands::After, b"gone");
    slow.site.until("it is there", |site| site.at("gone").exists());
    slow.fill();
    slow.site.remote_deletion("gone");
    slow.site.until("it is gone", |site| !site.at("gone").exists());
    assert!(!slow.site.at("large-0").exists());
}

#[test]
fn small_files_pass_however_many_large_ones_are_on_their_way() {
    let mut slow = Slow::new(false);
    slow.fill();
    // Of these nothing can be wanted before the first ones have come.
    let chunks = slow.chunks[..MAX_TOP_REFS].to_vec();
    for number in 0..1500 {
        slow.write(&format!("later-{number}"), &chunks[number % 16..]);
    }
    slow.site.remote("small", Stands::After, b"small");
    slow.site.until("it is there", |site| site.at("small").exists());
    assert!(!slow.site.at("large-0").exists());
}

#[test]
fn what_is_to_be_looked_at_again_is_while_a_large_file_is_on_its_way() {
    let mut slow = Slow::new(true);
    slow.site.remote("f", Stands::After, b"theirs");
    slow.site.settle();
    slow.fill();
    // Nothing that others wrote says that it is to be restored.
    fs::remove_file(slow.site.at("f")).unwrap();
    slow.site.until("it is back", |site| site.at("f").exists());
    assert!(!slow.site.at("large-0").exists());
}

#[test]
fn what_was_left_is_tried_again_while_a_large_file_is_on_its_way() {
    let mut slow = Slow::new(false);
    slow.site.remote("x/a", Stands::After, b"a");
    slow.site.settle();
    // What has such a name is nobody else's.
    let in_the_way = slow.site.at("x").join(OsStr::from_bytes(b"\xff"));
    fs::write(&in_the_way, "in the way").unwrap();
    slow.fill();
    slow.site.remote_deletion("x/a");
    slow.site.remote("x", Stands::After, b"a file by now");
    slow.site.until("the directory makes way", |site| !site.at("x/a").exists());
    assert!(slow.site.is_pending("x"));
    fs::remove_file(in_the_way).unwrap();
    slow.site.until("the file is there", |site| site.at("x").is_file());
    assert!(!slow.site.at("large-0").exists());
}
