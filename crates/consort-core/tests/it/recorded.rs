//! A recorded conversation: the bytes of every kind of message, which never change unnoticed.
//!
//! The fixture holds, for each message, what it says and its bytes. If this fails because a link says something else
//! than before, record again; if the bytes of what is said moved, that is another protocol version. How to record
//! stands in `docs/protocol.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use consort_core::content::{ChunkRef, NodeRef};
use consort_core::model::attributes::{Attributes, Kind};
use consort_core::model::merge::Saw;
use consort_core::protocol::event::Access;
use consort_core::protocol::{Envelope, Event, Message, codec};
use consort_core::store::{Epoch, LocalWrite, Sealer, Store};
use consort_core::{Content, Entry, Origin};

use crate::world::{DATASET, World, key};

/// How many messages of one kind are kept.
const OF_EACH_KIND: usize = 3;
const KINDS: usize = 18;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conversation.txt")
}

/// Three nodes that reconcile, catch up, go live, become lazy, wait for each other, and fall out.
fn conversation() -> Vec<Message> {
    let mut world = World::new(3, 2026);
    world.put(1, "a/file", "concurrent");
    world.put(1, "only/here", "1");
    write_everything(&mut world);
    world.connect(0, 1);
    world.settle();
    for other in 0..2 {
        world.connect(other, 2);
        world.settle();
    }
    for n in 0..6 {
        // The first is by an author that leaves a version of its own beside it.
        world.put(usize::from(n == 0), "a/file", &format!("{n}"));
        world.settle();
    }
    world.write(1, "only/here", Saw::Winner, Content::Deleted);
    world.barrier(1, 5);
    world.settle();
    // Enough to be described by symbols; and what differs shows in no cursor.
    for n in 0..60 {
        world.put(0, &format!("{n}"), "");
    }
    world.settle();
    world.crash(0);
    world.put(0, "a/file", "5");
    world.put(1, "only/here", "2");
    world.nodes[0].epoch = Some(Epoch(1));
    world.connect(0, 1);
    world.settle();
    world.assert_converged();
    world.inject(1, 0, Message::Given { entries: Vec::new(), more: false });
    world.sent.append(&mut forgetting());
    world.sent
}

/// A reader was away while a deletion was forgotten.
fn forgetting() -> Vec<Message> {
    let mut world = World::with_access(&[Access::Read, Access::Write], 2026);
    world.connect(0, 1);
    world.put(1, "a", "1");
    world.settle();
    world.disconnect(0, 1);
    world.register(&[1]);
    world.write(1, "a", Saw::Winner, Content::Deleted);
    world.settle();
    world.connect(0, 1);
    world.settle();
    world.sent
}

/// Any bytes are a seal to the core.
#[derive(Debug)]
struct Stamp;

impl Sealer for Stamp {
    fn seal(&self, _: &Entry) -> Box<[u8]> {
        [4, 5, 6].into()
    }
}

/// One commit with every kind of content and attribute.
fn write_everything(world: &mut World) {
    let chunk = ChunkRef::to(b"a chunk");
    let node = NodeRef { chunk, span: 5_000_000 };
    let attributes = Attributes {
        mode: 0o755,
        modified_ns: -1,
        origin: Origin::Synthetic,
        media_type: Some("text/csv".into()),
        metadata: [("name".into(), "value".into())].into(),
        unknown: [(77, [1, 2, 3].into())].into(),
        ..Attributes::default()
    };
    let directory = Attributes { kind: Kind::Directory, ..Attributes::default() };
    let symlink = Attributes { kind: Kind::Symlink, ..Attributes::default() };
    let writes = [
        ("a", Content::Inline([].into()), directory),
        ("a/file", Content::Chunks([chunk, chunk].into()), attributes),
        ("a/large", Content::Tree { level: 1, nodes: [node].into() }, Attributes::default()),
        ("a/link", Content::Inline((*b"file").into()), symlink),
    ];
    let writes = writes.map(|(name, content, attributes)| LocalWrite {
        attributes,
        ..LocalWrite::new(key(name), content)
    });
    let (wall, sealer) = (world.now.wall, Arc::new(Stamp));
    let store = &mut world.nodes[0].store;
    store.apply_sealed(DATASET, writes.into(), wall, Some(sealer)).expect("memory does not fail");
    world.event(0, Event::Grew);
}

fn record() -> String {
    let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
    let mut text = String::new();
    for message in conversation() {
        let mut bytes = Vec::new();
        codec::encode(&Envelope { dataset: DATASET, message: message.clone() }, &mut bytes);
        let count = counts.entry(bytes[16]).or_default();
        *count += 1;
        if *count <= OF_EACH_KIND {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{message:?}\n{hex}").expect("a string takes everything");
        }
    }
    assert_eq!(counts.len(), KINDS, "some kinds of message are missing: {counts:?}");
    text
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks_exact(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn recorded_bytes_still_mean_what_they_meant() {
    let recorded = std::fs::read_to_string(fixture()).expect("the fixture is there");
    let lines: Vec<&str> = recorded.lines().collect();
    for pair in lines.chunks(2) {
        let [meaning, hex] = pair else { panic!("a message takes two lines") };
        let bytes = from_hex(hex);
        let envelope = codec::decode(&bytes).expect("what was a message is one");
        assert_eq!(format!("{:?}", envelope.message), *meaning);
        let mut again = Vec::new();
        codec::encode(&envelope, &mut again);
        assert_eq!(again, bytes, "{meaning}");
    }
}

#[test]
fn the_recorded_conversation_would_be_held_again() {
    let record = record();
    if std::env::var_os("CONSORT_RECORD").is_some() {
        std::fs::write(fixture(), &record).expect("the fixture can be written");
    }
    let recorded = std::fs::read_to_string(fixture()).expect("the fixture is there");
    for (now, then) in record.lines().zip(recorded.lines()) {
        assert_eq!(now, then);
    }
    assert_eq!(record.lines().count(), recorded.lines().count());
}
