//! Linked directories against a real store, without a network: what others wrote is committed to the store directly.
//! The harness stands here; single situations are in `folder/situations.rs`, those of conflicts in `folder/conflicts.rs`, of deletions in `folder/deletions.rs`, of files that grow in `folder/growing.rs`,
//! of what gets another name in `folder/renames.rs`, those of ignored paths in `folder/ignoring.rs`, what is told about a directory in `folder/standing.rs`, what happens
//! while large files come over a slow link in `folder/slow.rs`, random histories in `folder/random.rs`.

mod conflicts;
mod deletions;
mod growing;
mod ignoring;
mod random;
mod renames;
mod situations;
mod slow;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use consort_core::content::chunker::Chunker;
use consort_core::content::manifest::ManifestBuilder;
use consort_core::store::{DatasetParameters, View};
use consort_core::{
    Attributes, AuthorId, ChunkRef, Content, DatasetId, Dot, FingerprintKey, Key, Kind, OnConflict,
    Timestamp, Version, VersionVector, WallTime,
};
use consort_core::{Entry, NodeId};
use consort_node::content::{Contents, Fetcher, LocalContent, Roots};
use consort_node::folder::{Folder, LinkContext, Placing, RootId, Trouble};
use consort_node::net::{Network, NetworkConfig};
use consort_store::{Body, DiskStore, Transaction};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tempfile::TempDir;

use crate::net::Cluster;

/// What a test waits for takes milliseconds; this is for a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(60);

const DATASET: DatasetId = DatasetId([5; 16]);

/// Ends a comparison with what differs.
macro_rules! ensure {
    ($holds:expr, $($difference:tt)+) => {
        if !$holds {
            return Err(format!($($difference)+));
        }
    };
}

/// A node with one linked directory.
struct Site {
    home: TempDir,
    store: DiskStore,
    contents: Arc<Contents>,
    folder: Option<Folder>,
    read_only: bool,
    /// Which directory it is, once it is known.
    id: Option<RootId>,
    policy: OnConflict,
    applied: (Sender<()>, Receiver<()>),
    /// The time of the next version of others.
    next_time: u64,
    /// The contents that the last version of others replaced.
    replaced: Vec<Content>,
}

/// How a version of others stands to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// Its author saw everything.
    After,
    /// Its author saw nothing, and it loses.
    Beside,
    /// Its author saw nothing, and it wins.
    Over,
}

impl Site {
    /// With an empty directory, and its engine running.
    fn new() -> Self {
        let mut site = Self::stopped();
        site.start();
        site
    }

    /// With an empty directory of a dataset with this policy, and its engine running.
    fn under(policy: OnConflict) -> Self {
        let mut site = Self::stopped();
        site.policy = policy;
        site.start();
        site
    }

    /// With an empty directory into which only others write, and its engine running.
    fn read_only() -> Self {
        let mut site = Self::stopped();
        site.read_only = true;
        site.start();
        site
    }

    /// With an empty directory, and no engine yet.
    fn stopped() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = DiskStore::open(&home.path().join("store")).unwrap();
        let fingerprint_key = FingerprintKey([0; 32]);
        store.open_dataset(DatasetParameters { id: DATASET, fingerprint_key }).unwrap();
        store.set_linked(DATASET, true).unwrap();
        fs::create_dir(home.path().join("data")).unwrap();
        fs::create_dir(home.path().join("aside")).unwrap();
        let local = Arc::new(LocalContent::new(store.clone(), Arc::new(Roots::default())));
        let contents = Arc::new(Contents::new(local, lonely_fetcher()));
        let (read_only, id, next_time) = (false, None, 1);
        let policy = OnConflict::KeepBoth;
        let (folder, applied) = (None, unbounded());
        let replaced = Vec::new();
        Self { home, store, contents, folder, read_only, id, policy, applied, next_time, replaced }
    }

    fn start(&mut self) {
        let applied = self.applied.0.clone();
        let written = self.applied.0.clone();
        let context = LinkContext {
            dataset: DATASET,
            name: "test".to_owned(),
            on_conflict: self.policy,
            dir: self.home.path().join("data"),
            id: self.id,
            read_only: self.read_only,
            workers: 2,
            store: self.store.clone(),
            contents: Arc::clone(&self.contents),
            on_written: Box::new(move || {
                let _ = written.send(());
            }),
            on_applied: Box::new(move || {
                let _ = applied.send(());
            }),
        };
        self.folder = Some(Folder::start(context).unwrap());
    }

    fn stop(&mut self) {
        self.folder = None;
    }

    fn folder(&self) -> &Folder {
        self.folder.as_ref().expect("the engine runs")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.home.path().join("data").join(path)
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), bytes).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read(self.at(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The paths of the conflict copies that stand in the directory.
    fn copies(&self) -> Vec<String> {
        let paths = tree(&self.at("")).into_keys();
        paths.filter(|path| path.contains(".conflict-")).collect()
    }

    /// Waits until everything that was changed in the directory is in the store.
    fn flush(&self) {
        let (done, flushed) = bounded(1);
        self.folder().flush(move || {
            let _ = done.send(());
        });
        flushed.recv_timeout(BOUND).expect("the directory is flushed in time");
    }

    /// Waits until neither the directory nor the store has anything that the other lacks.
    fn settle(&self) {
        self.until("nothing is pending any more", |site| {
            site.flush();
            site.view().pending(None, 1).unwrap().is_empty()
        });
    }

    /// Waits for a condition.
    fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + BOUND;
        while !condition(self) {
            if end < Instant::now() {
                let pending = self.view().pending(None, 10).unwrap();
                let problems = self.folder.as_ref().map(|folder| folder.progress().problems());
                let trouble = self.folder.as_ref().map(|folder| folder.progress().trouble());
                for (path, _) in self.view().scan("", None, 1000).unwrap() {
                    let record = self.view().record(&path).unwrap();
                    eprintln!("{path}: {:?}, {record:?}", self.siblings(&path));
                }
                eprintln!("waiting: {}", self.folder().progress().is_waiting());
                let there: Vec<String> = tree(&self.at("")).into_keys().collect();
                panic!("not so: {what}; pending {pending:?}, {problems:?}, {trouble:?}, {there:?}");
            }
            let _ = self.applied.1.recv_timeout(Duration::from_millis(10));
        }
    }

    /// What cannot be done now is tried again later and later.
    fn expect_few_batches(&self) {
        let end = Instant::now() + Duration::from_millis(400);
        let mut batches = 0;
        while Instant::now() < end {
            batches += usize::from(self.applied.1.recv_deadline(end).is_ok());
            assert!(batches < 30, "it is tried without end");
        }
    }

    fn view(&self) -> consort_store::DiskView {
        self.store.view(DATASET).unwrap()
    }

    fn records(&self) -> BTreeMap<Key, consort_store::Record> {
        let view = self.view();
        let mut records = BTreeMap::new();
        while let page = view.records("", records.keys().next_back(), 1000).unwrap()
            && !page.is_empty()
        {
            records.extend(page);
        }
        records
    }

    fn siblings(&self, path: &str) -> Vec<Version> {
        let siblings = self.view().siblings(&key(path)).unwrap();
        siblings.into_iter().map(|stored| stored.version).collect()
    }

    /// The versions that are no deletions.
    fn live(&self, path: &str) -> usize {
        self.siblings(path).iter().filter(|version| !version.is_deleted()).count()
    }

    fn winner(&self, path: &str) -> Option<Version> {
        self.policy.winner(&self.siblings(path)).filter(|winner| !winner.is_deleted()).cloned()
    }

    fn is_pending(&self, path: &str) -> bool {
        let pending = self.view().pending(None, 1000).unwrap();
        pending.iter().any(|(pending, _)| pending.as_str() == path)
    }

    /// A version that somebody else wrote. Its bytes can be had here.
    fn remote(&mut self, path: &str, stands: Stands, bytes: &[u8]) -> Version {
        self.keep(bytes);
        self.remote_version(path, stands, content_of(bytes), file_attributes())
    }

    fn remote_deletion(&mut self, path: &str) -> Version {
        self.remote_version(path, Stands::After, Content::Deleted, Attributes::default())
    }

    fn remote_directory(&mut self, path: &str) -> Version {
        let attributes = Attributes { kind: Kind::Directory, mode: 0o755, ..Attributes::default() };
        self.remote_version(path, Stands::After, Content::Inline([].into()), attributes)
    }

    fn remote_version(
        &mut self,
        path: &str,
        stands: Stands,
        content: Content,
        attributes: Attributes,
    ) -> Version {
        let mut seen = VersionVector::new();
        let mut time = Timestamp::at(WallTime(1_700_000_000_000 + self.next_time)).0;
        self.next_time += 1;
        self.replaced.clear();
        for version in self.siblings(path) {
            if stands != Stands::Beside {
                time = time.max(version.dot.time.0 + 1);
            }
            if stands == Stands::After {
                seen.union(&version.closure());
                self.replaced.push(version.content);
            }
        }
        // An author that wrote nothing else, so that its versions have seen no other of its own.
        let mut author = [9; 16];
        author[..4].copy_from_slice(&u32::try_from(self.next_time).unwrap().to_be_bytes());
        let dot = Dot { author: AuthorId(author), time: Timestamp(time) };
        let version = Version { dot, seen, content, attributes };
        self.commit(path, version.clone());
        version
    }

    fn commit(&self, path: &str, version: Version) {
        let entries = vec![Entry { key: key(path), version }];
        let commit = consort_core::model::Commit { entries };
        let body = Body::Remote { peer: NodeId([7; 16]), commit, cursor: None };
        self.store.commit(Transaction::new(DATASET, body)).unwrap();
        self.folder.iter().for_each(Folder::wake);
    }

    /// Keeps bytes where they can be had when a version needs them.
    fn keep(&self, bytes: &[u8]) {
        for chunk in Chunker::default().chunks(bytes) {
            self.store.pack(chunk).unwrap();
        }
        cut(bytes, &mut |node| drop(self.store.pack(node).unwrap()));
        self.store.commit(Transaction::new(DATASET, Body::Nothing)).unwrap();
    }

    /// Checks that directory, records and versions come to agree to the byte.
    fn check(&self) {
        let end = Instant::now() + BOUND;
        // What the engine does by itself is done a moment later, such as the removal of a directory that nobody needs.
        while let Err(difference) = self.agree() {
            if end < Instant::now() {
                let pending = self.view().pending(None, 3).unwrap();
                panic!("{difference}; pending {pending:?}");
            }
            let _ = self.applied.1.recv_timeout(Duration::from_millis(10));
        }
    }

    /// Whether directory, records and versions agree to the byte; if not, on what they do not.
    fn agree(&self) -> Result<(), String> {
        let pending = self.view().pending(None, 3).unwrap();
        ensure!(pending.is_empty(), "something is pending");
        let (view, records) = (self.view(), self.records());
        let disk = tree(&self.at(""));
        let paths: BTreeSet<&str> = records.keys().map(Key::as_str).collect();
        let found: BTreeSet<&str> = disk.keys().map(String::as_str).collect();
        ensure!(paths == found, "recorded are {paths:?}, there are {found:?}");

        let mut shown = BTreeSet::new();
        let all = view.scan("", None, usize::MAX).unwrap();
        let is_live = |(_, held): &&(Key, Vec<consort_core::store::Stored>)| {
            held.iter().any(|stored| !stored.version.is_deleted())
        };
        let shown_keys: Vec<Key> = all.iter().filter(is_live).map(|(key, _)| key.clone()).collect();
        for (key, held) in all {
            let siblings: Vec<Version> = held.into_iter().map(|stored| stored.version).collect();
            let Some(winner) = self.policy.winner(&siblings).filter(|w| !w.is_deleted()) else {
                continue;
            };
            let losers = self.policy.losers(&siblings);
            let copies = records.iter().filter(|(_, record)| record.key.as_ref() == Some(&key));
            let copies: Vec<_> = copies.collect();
            let mut expected: BTreeSet<Dot> = losers.iter().map(|v| v.dot).take(8).collect();
            match records.get(&key) {
                Some(record) if record.dot == winner.dot && record.key.is_none() => {
                    shown.insert(key.clone());
                    shows(&key, winner, &disk[key.as_str()], record.implicit)?;
                }
                record => {
                    let implicit = record.is_some_and(|record| record.implicit);
                    let beneath = format!("{key}/");
                    let displaced = paths.iter().any(|path| path.starts_with(&beneath));
                    ensure!(implicit && displaced, "{key} shows {record:?} instead of {winner:?}");
                    expected.insert(winner.dot);
                }
            }
            let copied: BTreeSet<Dot> = copies.iter().map(|(_, record)| record.dot).collect();
            // A key of that name comes first.
            expected.retain(|dot| {
                let mark = format!(".conflict-{}-", dot.author.short());
                copied.contains(dot) || !shown_keys.iter().any(|key| key.contains(&mark))
            });
            ensure!(copied == expected, "the conflict copies of {key}: {siblings:?} in {found:?}");
            for (path, record) in copies {
                shown.insert(path.clone());
                let version = siblings.iter().find(|version| version.dot == record.dot).unwrap();
                shows(path, version, &disk[path.as_str()], false)?;
            }
        }
        for (path, record) in &records {
            ensure!(
                shown.contains(path) || record.implicit,
                "{path} stands there for no version: {record:?}"
            );
        }
        let problems = self.folder().progress().problems();
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.folder = None;
    }
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OnDisk {
    kind: Kind,
    bytes: Vec<u8>,
    mode: u16,
    modified_ns: i64,
}

/// Whether what stands at a path is this version.
fn shows(path: &str, version: &Version, disk: &OnDisk, implicit: bool) -> Result<(), String> {
    ensure!(disk.kind == version.attributes.kind, "{path}");
    match disk.kind {
        Kind::Directory => {
            ensure!(!implicit, "{path} is there only for what is in it");
            ensure!(disk.mode == version.attributes.mode, "the mode of {path}");
        }
        Kind::Symlink => {
            ensure!(Content::Inline(disk.bytes.clone().into()) == version.content, "{path}");
        }
        Kind::File => {
            let bytes = String::from_utf8_lossy(&disk.bytes[..disk.bytes.len().min(40)]);
            let same = content_of(&disk.bytes).same_bytes(&version.content);
            ensure!(same, "the bytes of {path}: {bytes} instead of {version:?}");
            ensure!(disk.mode == version.attributes.mode, "the mode of {path}");
            ensure!(disk.modified_ns == version.attributes.modified_ns, "the time of {path}");
        }
    }
    Ok(())
}

/// Whether so much was deleted that it waits for an answer.
fn is_paused(site: &Site) -> bool {
    matches!(site.folder().progress().trouble(), Some(Trouble::Paused(_)))
}

/// Everything in a directory but for what is ours.
fn tree(top: &Path) -> BTreeMap<String, OnDisk> {
    let mut found = BTreeMap::new();
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        // While an engine runs, anything may be gone by the time it is looked at.
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if name == ".consort" {
                continue;
            }
            let (kind, bytes) = if meta.is_dir() {
                directories.push(path);
                (Kind::Directory, Vec::new())
            } else if meta.is_symlink() {
                let Ok(target) = fs::read_link(&path) else { continue };
                (Kind::Symlink, target.to_str().unwrap().as_bytes().to_vec())
            } else {
                let Ok(bytes) = fs::read(&path) else { continue };
                (Kind::File, bytes)
            };
            let mode = u16::try_from(meta.permissions().mode() & 0o777).unwrap();
            let modified_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            found.insert(name, OnDisk { kind, bytes, mode, modified_ns });
        }
    }
    found
}

/// A fetcher that has nobody to ask.
fn lonely_fetcher() -> Arc<Fetcher> {
    static LONELY: OnceLock<(tokio::runtime::Runtime, Arc<Fetcher>)> = OnceLock::new();
    let (_, fetcher) = LONELY.get_or_init(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let fetcher = runtime.block_on(async {
            let identity = Cluster::new().await.member("lonely").await;
            let (events, mut received) = tokio::sync::mpsc::channel(16);
            tokio::spawn(async move { while received.recv().await.is_some() {} });
            let listen = "127.0.0.1:0".parse().unwrap();
            let config = NetworkConfig { listen, on_content: Arc::new(|_, _| {}), join: None };
            let network = Network::start(config, &identity, events).await.unwrap();
            Arc::new(Fetcher::start(Arc::new(network)))
        });
        (runtime, fetcher)
    });
    Arc::clone(fetcher)
}

fn content_of(bytes: &[u8]) -> Content {
    cut(bytes, &mut |_| {})
}

/// The content that these bytes are, and each node of its manifest.
fn cut(bytes: &[u8], on_node: &mut impl FnMut(&[u8])) -> Content {
    let mut manifest = ManifestBuilder::default();
    let mut emit = |_, node: &[u8]| on_node(node);
    for chunk in Chunker::default().chunks(bytes) {
        manifest.push(ChunkRef::to(chunk), &mut emit);
    }
    manifest.finish(&mut emit).unwrap()
}

fn file_attributes() -> Attributes {
    Attributes { modified_ns: 1_600_000_000_123_456_789, ..Attributes::default() }
}

/// What is noted of a version before it is put in place.
fn placing(path: &str, version: &Version) -> Placing {
    let Attributes { kind, mode, modified_ns, .. } = version.attributes;
    let (dot, content) = (version.dot, version.content.id());
    Placing { path: key(path), key: key(path), dot, content, kind, mode, modified_ns }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Bytes without a pattern.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
