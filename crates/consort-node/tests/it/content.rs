//! Chunks between nodes on loopback, with real networks, stores and directories.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::content::chunker::Chunker;
use consort_core::content::delta;
use consort_core::content::exchange::{Answer, Request, encode_response};
use consort_core::content::manifest::ManifestBuilder;
use consort_core::content::parquet::writer::header;
use consort_core::content::transfer::Urgency;
use consort_core::model::Commit;
use consort_core::store::DatasetParameters;
use consort_core::{
    Attributes, AuthorId, ChunkRef, Content, DatasetId, Dot, Entry, FingerprintKey, Key,
    OnConflict, Timestamp, Version, VersionVector, WallTime,
};
use consort_node::content::{
    Contents, FetchError, Fetched, Fetcher, LocalContent, Roots, Server, Unavailable, Want,
};
use consort_node::folder::{Expected, Folder, LinkContext, Root};
use consort_node::net::network::OnContent;
use consort_node::net::{KnownPeer, Limits, Network, NetworkConfig, NodeId, Rate};
use consort_store::{Body, DiskStore, Place, Transaction};
use crossbeam_channel::{Receiver, Sender, bounded};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::net::Cluster;

/// What a test waits for takes milliseconds; this is for a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(30);

const DATASET: DatasetId = DatasetId([5; 16]);

/// Nodes of one cluster, on one runtime. The test itself is outside of it and may block.
pub(crate) struct World {
    runtime: Runtime,
    cluster: Cluster,
    next: u32,
}

/// A node that has a store and a directory, and serves and fetches.
pub(crate) struct Peer {
    id: NodeId,
    pub(crate) net: Arc<Network>,
    pub(crate) fetcher: Arc<Fetcher>,
    local: Arc<LocalContent>,
    server: Server,
    home: TempDir,
}

fn wants(chunks: &[ChunkRef]) -> Vec<Want> {
    chunks.iter().copied().map(Want::from).collect()
}

impl World {
    pub(crate) fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let cluster = runtime.block_on(Cluster::new());
        Self { runtime, cluster, next: 0 }
    }

    /// A node that serves what it has.
    pub(crate) fn peer(&mut self) -> Peer {
        self.peer_serving(|server| Arc::new(move |peer, connection| server.serve(peer, connection)))
    }

    fn peer_serving(&mut self, on_content: impl FnOnce(Server) -> Arc<OnContent>) -> Peer {
        let home = tempfile::tempdir().unwrap();
        let store = DiskStore::open(&home.path().join("store")).unwrap();
        let fingerprint_key = FingerprintKey([0; 32]);
        store.open_dataset(DatasetParameters { id: DATASET, fingerprint_key }).unwrap();
        store.set_linked(DATASET, true).unwrap();
        fs::create_dir(home.path().join("data")).unwrap();
        let roots = Arc::new(Roots::default());
        roots.insert(DATASET, Arc::new(Root::open(&home.path().join("data")).unwrap()));
        let local = Arc::new(LocalContent::new(store, roots));
        let server = Server::new(Arc::clone(&local));
        self.next += 1;
        let name = format!("peer-{}", self.next);
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = NetworkConfig { listen, on_content: on_content(server.clone()), join: None };
        let (id, net, fetcher) = self.runtime.block_on(async {
            let identity = self.cluster.member(&name).await;
            let (events, mut received) = mpsc::channel(16);
            tokio::spawn(async move { while received.recv().await.is_some() {} });
            let net = Arc::new(Network::start(config, &identity, events).await.unwrap());
            (identity.node(), Arc::clone(&net), Arc::new(Fetcher::start(net)))
        });
        Peer { id, net, fetcher, local, server, home }
    }
}

impl Peer {
    pub(crate) fn knows(&self, others: &[&Self]) {
        let known = others
            .iter()
            .map(|other| KnownPeer { node: other.id, addresses: vec![other.net.local_addr()] });
        self.net.set_peers(known.collect());
        others.iter().for_each(|other| self.fetcher.peer_up(other.id));
    }

    /// A directory that shows what is in the store.
    fn link(&self, dir: &str) -> Folder {
        let dir = self.home.path().join(dir);
        fs::create_dir(&dir).unwrap();
        let contents = Arc::new(Contents::new(Arc::clone(&self.local), Arc::clone(&self.fetcher)));
        let folder = Folder::start(LinkContext {
            dataset: DATASET,
            name: "test".to_owned(),
            on_conflict: OnConflict::KeepBoth,
            dir,
            id: None,
            read_only: false,
            workers: 1,
            store: self.local.store().clone(),
            contents,
            on_written: Box::new(|| {}),
            on_applied: Box::new(|| {}),
        });
        folder.unwrap()
    }

    /// Packs chunks, durably.
    fn pack<'a>(&self, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<ChunkRef> {
        let store = self.local.store();
        let refs = chunks.into_iter().map(|bytes| {
            store.pack(bytes).unwrap();
            ChunkRef::to(bytes)
        });
        let refs = refs.collect();
        store.commit(Transaction::new(DATASET, Body::Nothing)).unwrap();
        refs
    }

    /// Writes a file and tells the store where its chunks are.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Vec<ChunkRef> {
        fs::write(self.home.path().join("data").join(name), bytes).unwrap();
        let mut transaction = Transaction::new(DATASET, Body::Nothing);
        let (mut offset, mut refs) = (0, Vec::new());
        for bytes in Chunker::default().chunks(bytes) {
            let chunk = ChunkRef::to(bytes);
            let path = Key::new(name).unwrap();
            let place = Place::InFile { dataset: DATASET, path, offset, length: chunk.length };
            transaction.places.push((chunk.hash, place));
            offset += u64::from(chunk.length);
            refs.push(chunk);
        }
        self.local.store().commit(transaction).unwrap();
        refs
    }

    fn fetch(&self, chunks: &[ChunkRef]) -> Vec<u8> {
        let fetched = self.fetcher.fetch_all(chunks, BOUND).unwrap();
        fetched.iter().flat_map(|bytes| bytes.iter().copied()).collect()
    }

    /// What fetching a chunk that nobody has ends with, soon.
    fn refusal(&self, chunk: ChunkRef) -> Unavailable {
        match self.fetcher.fetch_all(&[chunk], Duration::from_secs(1)) {
            Err(FetchError::Unavailable { reason, .. }) => reason,
            other => panic!("it must not be there: {other:?}"),
        }
    }
}

/// Bytes without a pattern.
fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn chunks(bytes: &[u8]) -> Vec<&[u8]> {
    Chunker::default().chunks(bytes).collect()
}

fn sink(wants: usize) -> (Sender<Fetched>, Receiver<Fetched>) {
    bounded(2 * wants)
}

/// Takes what arrives until all of `count` chunks have.
fn collect(source: &Receiver<Fetched>, count: usize) -> BTreeMap<ChunkRef, Vec<u8>> {
    let mut arrived = BTreeMap::new();
    while arrived.len() < count {
        let Fetched { chunk, bytes, .. } = source.recv_timeout(BOUND).expect("it arrives in time");
        if let Ok(bytes) = bytes {
            arrived.insert(chunk, bytes.to_vec());
        }
    }
    arrived
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !condition() {
        assert!(Instant::now() < end, "it does not come true");
        std::thread::yield_now();
    }
}

/// A node that answers every request with what `answer` makes of it.
fn fake(answer: fn(&Request) -> Vec<u8>) -> Arc<OnContent> {
    Arc::new(move |_, mut connection| {
        tokio::spawn(async move {
            while let Ok(Some(frame)) = connection.reader.read().await {
                let answer = answer(&Request::decode(&frame).unwrap());
                let _ = connection.writer.write(&answer).await;
                let _ = connection.writer.flush().await;
            }
        });
    })
}

/// Bytes of the right lengths that are not what was asked for.
fn lie(request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    let answers = request.chunks.iter().map(|chunk| Answer::Chunk(chunk.length));
    encode_response(request.id, answers, &mut bytes);
    // Not compressed, either.
    bytes.resize(bytes.len() + request.payload_bytes() + 1, 0);
    bytes
}

#[test]
fn packed_chunks_and_chunks_in_files_are_fetched() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let (packed, in_file) = (noise(1_000_000, 1), noise(2_000_000, 2));
    let packed_chunks = a.pack(chunks(&packed));
    let file_chunks = a.write("file", &in_file);
    assert_eq!(b.fetch(&packed_chunks), packed);
    assert_eq!(b.fetch(&file_chunks), in_file);
    let status = b.fetcher.status();
    assert_eq!(status.wanted, 0);
    assert_eq!(status.total.bytes, 3_000_000);
    assert_eq!(status.peers[&a.id], status.total);
    wait_until(|| a.server.served().bytes == 3_000_000);
}

#[test]
fn sixty_four_megabytes_arrive_as_they_are() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let bytes = noise(64 << 20, 3);
    let wanted = a.write("large", &bytes);
    let (sink, source) = sink(wanted.len());
    b.fetcher.want(&wants(&wanted), Urgency::Later, &sink).unwrap();
    let arrived = collect(&source, wanted.len());
    let whole: Vec<u8> = wanted.iter().flat_map(|chunk| arrived[chunk].iter().copied()).collect();
    assert!(whole == bytes);
}

#[test]
fn what_arrives_is_written_where_it_is_wanted_before_that_is_told() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let bytes = noise(3_000_000, 8);
    let wanted = a.write("large", &bytes);
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    let staging = root.stage(0o600).unwrap();
    let mut offset = 0;
    let place = |chunk: &ChunkRef| {
        let into = Some(staging.target(offset));
        offset += u64::from(chunk.length);
        Want { chunk: *chunk, into }
    };
    let wants: Vec<Want> = wanted.iter().map(place).collect();
    let (sink, source) = sink(wanted.len());
    b.fetcher.want(&wants, Urgency::Later, &sink).unwrap();
    drop(wants);
    for _ in &wanted {
        let fetched = source.recv_timeout(BOUND).expect("it arrives in time");
        assert!(fetched.written.is_some_and(|written| written.result.is_ok()));
    }
    let staged = staging.finish(offset, 0o600, 0).unwrap();
    root.place_file(staged, "copy", Expected::Absent).unwrap();
    assert!(fs::read(dir.path().join("copy")).unwrap() == bytes);
}

#[test]
fn what_can_be_compressed_is_on_a_slow_link() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    a.net.set_limits(Limits { up: Rate::new(4_000_000), down: None });
    let lines =
        (0..).flat_map(|n: u32| format!("{{\"sample\": {n}, \"label\": 1}}\n").into_bytes());
    let text: Vec<u8> = lines.take(3_000_000).collect();
    let wanted = a.write("lines", &text);
    let before = b.net.traffic().received;
    assert!(b.fetch(&wanted) == text);
    let received = b.net.traffic().received - before;
    assert!(received < text.len() as u64 / 2, "{received} bytes were received");
}

#[test]
fn a_file_that_changed_is_never_served_and_its_places_are_forgotten() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let changed = a.write("changed", &noise(10_000, 4))[0];
    let shrunk = a.write("shrunk", &noise(10_000, 5))[0];
    let gone = a.write("gone", &noise(10_000, 6))[0];
    let data = a.home.path().join("data");
    fs::write(data.join("changed"), noise(10_000, 7)).unwrap();
    fs::write(data.join("shrunk"), noise(9_999, 5)).unwrap();
    fs::remove_file(data.join("gone")).unwrap();
    for chunk in [changed, shrunk, gone] {
        assert_eq!(b.refusal(chunk), Unavailable::Lacking { peers: 1 });
        wait_until(|| a.local.store().locate(chunk.hash).unwrap().is_empty());
    }
    assert_eq!(b.fetcher.status().total.wrong, 0);
}

#[test]
fn chunks_that_follow_each_other_are_read_without_looking_for_each_and_others_are_found() {
    let mut world = World::new();
    let a = world.peer();
    let bytes = noise(1_000_000, 9);
    let here = a.write("file", &bytes);
    let moved = a.write("moved", &noise(10_000, 10))[0];
    // Nobody knows any more where these are.
    let mut transaction = Transaction::new(DATASET, Body::Nothing);
    for chunk in &here[3..] {
        let places = a.local.store().locate(chunk.hash).unwrap();
        transaction.gone.extend(places.into_iter().map(|place| (chunk.hash, place)));
    }
    a.local.store().commit(transaction).unwrap();
    let mut reader = a.local.reader();
    let mut read = |chunk: &ChunkRef| {
        let mut to = vec![0; chunk.length as usize];
        let is_here = reader.read(chunk, &mut to).unwrap();
        assert!(!is_here || chunk.is(&to));
        is_here
    };
    assert!(here[..5].iter().all(&mut read));
    assert!(!read(&here[6]), "one is left out, and nothing says where this one is");
    assert!(read(&moved) && read(&here[0]) && read(&here[1]) && read(&here[2]) && read(&here[3]));
}

#[test]
fn a_directory_that_is_away_for_a_while_keeps_its_places() {
    let mut world = World::new();
    let a = world.peer();
    let bytes = noise(10_000, 8);
    let chunk = a.write("file", &bytes)[0];
    let (data, aside) = (a.home.path().join("data"), a.home.path().join("aside"));
    fs::rename(&data, &aside).unwrap();
    fs::rename(aside.join("file"), aside.join("elsewhere")).unwrap();
    assert_eq!(a.local.read(&chunk).unwrap(), None);
    fs::rename(aside.join("elsewhere"), aside.join("file")).unwrap();
    fs::rename(&aside, &data).unwrap();
    a.local.store().commit(Transaction::new(DATASET, Body::Nothing)).unwrap();
    assert_eq!(a.local.read(&chunk).unwrap(), Some(bytes));
}

#[test]
fn a_peer_that_lies_is_dropped_and_another_one_used() {
    let mut world = World::new();
    let (liar, honest, b) = (world.peer_serving(|_| fake(lie)), world.peer(), world.peer());
    let bytes = noise(3_000_000, 9);
    let wanted = honest.pack(chunks(&bytes));
    b.knows(&[&liar]);
    let (sink, source) = sink(wanted.len());
    b.fetcher.want(&wants(&wanted), Urgency::Later, &sink).unwrap();
    wait_until(|| 0 < b.fetcher.status().peers[&liar.id].wrong);
    b.knows(&[&liar, &honest]);
    let arrived = collect(&source, wanted.len());
    assert!(arrived.iter().all(|(chunk, bytes)| chunk.is(bytes)));
    assert_eq!(b.fetcher.status().peers[&liar.id].bytes, 0);
}

#[test]
fn answers_that_make_no_sense_end_the_connection_and_no_more() {
    fn nonsense(request: &Request) -> Vec<u8> {
        match request.id % 3 {
            0 => b"nonsense".to_vec(),
            1 => lie(&Request { id: request.id + 1, ..request.clone() }),
            _ => lie(&Request { id: request.id, chunks: vec![request.chunks[0]; 2] }),
        }
    }
    let mut world = World::new();
    let (fool, honest, b) = (world.peer_serving(|_| fake(nonsense)), world.peer(), world.peer());
    let bytes = noise(10_000, 10);
    let wanted = honest.pack([&*bytes]);
    b.knows(&[&fool]);
    assert_eq!(b.refusal(wanted[0]), Unavailable::NobodyThere);
    b.knows(&[&fool, &honest]);
    assert_eq!(b.fetch(&wanted), bytes);
}

#[test]
fn a_peer_that_dies_in_the_middle_is_replaced_by_another() {
    let mut world = World::new();
    let (dying, other, b) = (world.peer(), world.peer(), world.peer());
    let bytes = noise(32 << 20, 11);
    let wanted = dying.pack(chunks(&bytes));
    other.pack(chunks(&bytes));
    b.knows(&[&dying]);
    let (sink, source) = sink(wanted.len());
    b.fetcher.want(&wants(&wanted), Urgency::Later, &sink).unwrap();
    let first = source.recv_timeout(BOUND).expect("the first one arrives");
    dying.net.set_revoked([b.id].into());
    b.knows(&[&dying, &other]);
    let mut arrived = collect(&source, wanted.len() - 1);
    arrived.insert(first.chunk, first.bytes.unwrap().to_vec());
    assert!(wanted.iter().all(|chunk| chunk.is(&arrived[chunk])));
}

#[test]
fn what_nobody_has_is_reported_and_comes_with_who_has_it() {
    let mut world = World::new();
    let (without, with, b) = (world.peer(), world.peer(), world.peer());
    let bytes = noise(10_000, 12);
    let chunk = ChunkRef::to(&bytes);
    let (sink, source) = sink(1);
    b.fetcher.want(&wants(&[chunk]), Urgency::Later, &sink).unwrap();
    let news = |source: &Receiver<Fetched>| source.recv_timeout(BOUND).unwrap().bytes.map(drop);
    assert_eq!(news(&source), Err(Unavailable::NobodyThere));
    b.knows(&[&without]);
    wait_until(|| news(&source) == Err(Unavailable::Lacking { peers: 1 }));
    with.pack([&*bytes]);
    b.knows(&[&without, &with]);
    assert!(chunk.is(&collect(&source, 1)[&chunk]));
    // And from a peer that only got it later.
    let later = noise(10_000, 13);
    b.fetcher.want(&wants(&[ChunkRef::to(&later)]), Urgency::Later, &sink).unwrap();
    assert!(news(&source).is_err());
    with.pack([&*later]);
    assert_eq!(collect(&source, 1)[&ChunkRef::to(&later)], later);
}

#[test]
fn what_is_cancelled_does_not_arrive() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let bytes = noise(10_000, 14);
    let wanted = a.pack([&*bytes]);
    let (sink, source) = sink(1);
    b.fetcher.want(&wants(&wanted), Urgency::Later, &sink).unwrap();
    assert!(source.recv_timeout(BOUND).unwrap().bytes.is_err());
    b.fetcher.cancel(&wanted, &sink);
    assert_eq!(b.fetcher.status().wanted, 0);
    b.knows(&[&a]);
    assert_eq!(b.fetch(&wanted), bytes);
    assert!(source.is_empty());
}

#[test]
fn garbage_on_a_content_connection_ends_it_and_nothing_else() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let bytes = noise(10_000, 15);
    let wanted = a.pack([&*bytes]);
    let too_much = Request { id: 1, chunks: vec![ChunkRef { length: 1 << 18, ..wanted[0] }; 5] };
    let mut encoded = Vec::new();
    too_much.encode(&mut encoded);
    for garbage in [&b"garbage"[..], &noise(100_000, 16), &encoded] {
        world.runtime.block_on(async {
            let mut connection = b.net.open_content(a.id).await.unwrap();
            connection.writer.write(garbage).await.unwrap();
            connection.writer.flush().await.unwrap();
            let end = tokio::time::timeout(BOUND, connection.reader.read()).await;
            assert!(!matches!(end.expect("it is closed"), Ok(Some(_))));
        });
    }
    assert_eq!(b.fetch(&wanted), bytes);
}

#[test]
fn the_chunks_of_a_large_content_are_listed_by_who_has_none_of_it() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let mut builder = ManifestBuilder::default();
    let mut nodes = Vec::new();
    let mut emit = |_: ChunkRef, bytes: &[u8]| nodes.push(bytes.to_vec());
    let refs: Vec<_> = (0..20_000_u32).map(|n| ChunkRef::to(&n.to_le_bytes())).collect();
    refs.iter().for_each(|chunk| builder.push(*chunk, &mut emit));
    let content = builder.finish(&mut emit).unwrap();
    assert!(matches!(content, Content::Tree { level: 2.., .. }));
    a.pack(nodes.iter().map(|node| &**node));

    let contents = Contents::new(Arc::clone(&b.local), Arc::clone(&b.fetcher));
    let listed: Result<Vec<_>, _> = contents.chunks_of(&content, BOUND).collect();
    let expected: Vec<_> = (0..).step_by(4).zip(refs).collect();
    assert_eq!(listed.unwrap(), expected);

    // What was fetched is kept.
    b.fetcher.peer_down(a.id);
    b.local.store().commit(Transaction::new(DATASET, Body::Nothing)).unwrap();
    assert_eq!(contents.chunks_of(&content, Duration::ZERO).count(), expected.len());
    let chunk = expected[0].1;
    assert!(contents.read_or_fetch(&chunk, Duration::ZERO).is_err());
}

#[test]
fn a_version_that_claims_a_wrong_length_keeps_no_chunk_from_others() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let bytes = noise(20_000, 1);
    let good = a.pack([&*bytes])[0];
    let wrong = ChunkRef { length: good.length + 1, ..good };
    let entry = |n: u8, name: &str, chunk| {
        let dot = Dot { author: AuthorId([n; 16]), time: Timestamp::at(WallTime(1 << 40)) };
        let (seen, content) = (VersionVector::new(), Content::Chunks([chunk].into()));
        let version = Version { dot, seen, content, attributes: Attributes::default() };
        Entry { key: Key::new(name).unwrap(), version }
    };
    let commit = Commit { entries: vec![entry(1, "a-wrong", wrong), entry(2, "b-good", good)] };
    let store = b.local.store().clone();
    let body = Body::Remote { peer: a.id, commit, cursor: None };
    store.commit(Transaction::new(DATASET, body)).unwrap();

    let dir = b.home.path().join("linked");
    let folder = b.link("linked");
    wait_until(|| fs::read(dir.join("b-good")).is_ok_and(|found| found == bytes));
    assert!(!dir.join("a-wrong").exists());
    folder.stop();
}

/// A Parquet file with a column of these numbers, compressed by Zstandard at a level for each page.
fn parquet(numbers: impl Iterator<Item = u64>, level: impl Fn(usize) -> i32) -> Vec<u8> {
    let numbers: Vec<u64> = numbers.collect();
    let mut file = b"PAR1".to_vec();
    for (number, page) in numbers.chunks(5000).enumerate() {
        let plain: Vec<u8> = page.iter().flat_map(|number| number.to_le_bytes()).collect();
        let packed = zstd::bulk::compress(&plain, level(number)).unwrap();
        let [plain, size, values] = [plain.len(), packed.len(), page.len()].map(|n| n as u64);
        file.extend(header(false, plain, size, values, 0));
        file.extend(packed);
    }
    file.extend(b"the footer");
    file
}

fn number(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24
}

/// What becomes of a file in a directory of `b` that somebody replaced by a version that `a` has: how many bytes of chunks
/// are fetched for it.
fn replace(a: &Peer, b: &Peer, old: &[u8], new: &[u8]) -> u64 {
    let content = |bytes: &[u8]| {
        let mut builder = ManifestBuilder::default();
        let mut nodes = Vec::new();
        let mut emit = |_: ChunkRef, bytes: &[u8]| nodes.push(bytes.to_vec());
        chunks(bytes).into_iter().for_each(|chunk| builder.push(ChunkRef::to(chunk), &mut emit));
        let content = builder.finish(&mut emit).unwrap();
        a.pack(nodes.iter().map(|node| &**node));
        b.pack(nodes.iter().map(|node| &**node));
        content
    };
    let folder = b.link("table");
    let path = b.home.path().join("table/t.parquet");
    let commit = |content, time, seen: VersionVector| {
        let dot = Dot { author: AuthorId([9; 16]), time: Timestamp(time) };
        let version = Version { dot, seen, content, attributes: Attributes::default() };
        let entries = vec![Entry { key: Key::new("t.parquet").unwrap(), version: version.clone() }];
        let body = Body::Remote { peer: a.id, commit: Commit { entries }, cursor: None };
        b.local.store().commit(Transaction::new(DATASET, body)).unwrap();
        folder.wake();
        version
    };
    let time = Timestamp::at(WallTime(1 << 40)).0;
    a.pack(chunks(old));
    a.pack(chunks(new));
    let first = commit(content(old), time, VersionVector::new());
    wait_until(|| fs::read(&path).is_ok_and(|found| found == old));
    let before = b.fetcher.status().total.bytes;
    commit(content(new), time + 1, first.closure());
    wait_until(|| fs::read(&path).is_ok_and(|found| found == new));
    folder.stop();
    b.fetcher.status().total.bytes - before
}

#[test]
fn a_parquet_file_that_got_rows_is_made_from_the_one_before() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    let old = parquet((0..600_000).map(number), |_| 1);
    let new = parquet((1_000_000..1_000_300).chain(0..600_000).map(number), |_| 1);
    assert!(1 << 20 < old.len());
    assert_eq!(replace(&a, &b, &old, &new), 0);
    // What it was made by came over the wire as well.
    let status = b.fetcher.status();
    let came = status.total.delta_bytes;
    assert!(0 < came && came < new.len() as u64 / 4, "{came} of {}", new.len());
    assert_eq!(status.peers[&a.id].delta_bytes, came);
    wait_until(|| came <= a.server.served().delta_bytes);
}

#[test]
fn what_the_given_instructions_do_not_make_is_fetched() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    b.knows(&[&a]);
    // Whoever gives instructions tries one of a few pages only, when all was well for a while.
    let level = |page: usize| if 30 < page && page.is_multiple_of(5) { 3 } else { 1 };
    let old = parquet((0..600_000).map(number), |_| 1);
    let new = parquet((1_000_000..1_000_300).chain(0..600_000).map(number), level);
    let fetched = replace(&a, &b, &old, &new);
    assert!(fetched < new.len() as u64, "{fetched} of {}", new.len());
}

#[test]
fn a_peer_that_lies_in_its_instructions_or_says_none_delays_and_changes_nothing() {
    let lies: [fn() -> Vec<u8>; 4] = [
        || Vec::new(),
        || noise(5000, 1),
        || {
            let mut said = Vec::new();
            let pieces = delta::Instruction::Copy(delta::Stream::Values, 3, u32::MAX);
            pieces.encode(&mut said);
            said
        },
        || {
            let mut said = Vec::new();
            (0..9).for_each(|_| delta::Instruction::Raw(&noise(60_000, 2)).encode(&mut said));
            delta::Instruction::End.encode(&mut said);
            said
        },
    ];
    let old = parquet((0..300_000).map(number), |_| 1);
    let new = parquet((1_000_000..1_000_300).chain(0..300_000).map(number), |_| 1);
    for lie in lies {
        let held: BTreeMap<ChunkRef, Vec<u8>> = [&old, &new]
            .into_iter()
            .flat_map(|bytes| chunks(bytes))
            .map(|chunk| (ChunkRef::to(chunk), chunk.to_vec()))
            .collect();
        let held = Arc::new(held);
        let answer = move |frame: &[u8]| {
            let mut bytes = Vec::new();
            if delta::Request::is(frame) {
                assert!(delta::Request::decode(frame).is_ok());
                bytes = lie();
            } else if let Ok(request) = Request::decode(frame) {
                let answers = request.chunks.iter().map(|chunk| Answer::Chunk(chunk.length));
                encode_response(request.id, answers, &mut bytes);
                request.chunks.iter().for_each(|chunk| bytes.extend(&held[chunk]));
            }
            // Not compressed. Hashes are not answered.
            if !bytes.is_empty() {
                bytes.push(0);
            }
            bytes
        };
        let mut world = World::new();
        let a = world.peer_serving(|_| {
            Arc::new(move |_, mut connection| {
                let answer = answer.clone();
                tokio::spawn(async move {
                    while let Ok(Some(frame)) = connection.reader.read().await {
                        let answer = answer(&frame);
                        if answer.is_empty() {
                            break;
                        }
                        let _ = connection.writer.write(&answer).await;
                        let _ = connection.writer.flush().await;
                    }
                });
            })
        });
        let b = world.peer();
        b.knows(&[&a]);
        assert!(0 < replace(&a, &b, &old, &new));
    }
}
