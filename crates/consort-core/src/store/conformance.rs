//! The suite that every store passes: random commits on a few stores, each of which is compared after every step with
//! a [`MemoryStore`] that got the same commits, and the laws that must hold between them. It panics where a store does
//! not conform.
//!
//! Everything follows from the seed. Whether rows survive a crash is not for this suite to find out; whether they
//! survive being opened again is, since the caller may do that between steps.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::content::{ChunkRef, Content};
use crate::limits::{MAX_COLLECTED, MAX_COMMIT_VERSIONS};
use crate::model::attributes::Attributes;
use crate::model::commit::Commit;
use crate::model::conflict::Losers;
use crate::model::fingerprint::{Fingerprint, FingerprintKey};
use crate::model::frontier::Frontier;
use crate::model::hlc::Timestamp;
use crate::model::id::{AuthorId, DatasetId, NodeId};
use crate::model::key::Key;
use crate::model::merge::Saw;
use crate::model::vector::Dot;
use crate::model::version::{Entry, Version};
use crate::store::memory::{MemoryStore, MemoryView};
use crate::store::{
    Cursor, DatasetParameters, Epoch, FeedRow, Lesson, LocalWrite, Sealer, Sequence, Store,
    StoreError, View, Written,
};
use crate::time::WallTime;

/// How many stores exchange commits.
const STORES: usize = 3;
/// How many commits are made.
const STEPS: usize = 48;
/// Names that are prefixes of each other, in a few directories, in more than one script.
const KEYS: [&str; 9] = ["a", "a-", "a/b", "a/b/c", "a/bc", "ab", "b", "é", "日/本"];

const DATASET: DatasetParameters =
    DatasetParameters { id: DatasetId([1; 16]), fingerprint_key: FingerprintKey([2; 32]) };

/// Runs the suite with `seed`. `make` makes an empty store of an author that no other store has, and `between` is
/// given a store between two steps and gives it back: it may open it again meanwhile.
pub fn run<S: Store>(seed: u64, mut make: impl FnMut() -> S, mut between: impl FnMut(S, u64) -> S) {
    let mut random = Random(seed);
    knows_only_what_was_opened(make());
    seals_what_becomes_a_version(make());
    tells_tombstones_of_one_dot_apart(make());
    let mut pairs: Vec<Pair<S>> = (0..STORES).map(|number| Pair::new(make(), number)).collect();
    for step in 0..STEPS {
        let place = random.below(STORES);
        let mut pair = pairs.swap_remove(place);
        pair.store = between(pair.store, random.next());
        match random.below(5) {
            0..3 => pair.write(step, &mut random),
            _ => {
                let from = random.below(pairs.len());
                pair.pull(&pairs[from], &mut random);
            }
        }
        pair.compare(&mut random, &format!("seed {seed}, step {step}"));
        pairs.push(pair);
    }
    feeds_make_stores_equal(&mut pairs, make());
    // Lessons may be wrong here, so each of these stores is equal to its reference, and to no other.
    let mut pairs: Vec<Pair<S>> = (0..STORES).map(|number| Pair::new(make(), number)).collect();
    for step in 0..STEPS {
        let place = random.below(STORES);
        let mut pair = pairs.swap_remove(place);
        pair.store = between(pair.store, random.next());
        match random.below(6) {
            0..2 => pair.write(step, &mut random),
            2..4 => pair.learn(step, &mut random),
            _ => pair.pull(&pairs[random.below(STORES - 1)], &mut random),
        }
        pair.compare(&mut random, &format!("seed {seed}, learning, step {step}"));
        pairs.push(pair);
    }
}

/// A store, and the reference that got the same commits.
struct Pair<S> {
    store: S,
    reference: MemoryStore,
    node: NodeId,
    epoch: Epoch,
}

impl<S: Store> Pair<S> {
    fn new(mut store: S, number: usize) -> Self {
        let byte = u8::try_from(number).expect("a few stores");
        let mut reference = MemoryStore::new(store.author(), Epoch(7));
        store.open_dataset(DATASET).expect("opens");
        reference.open_dataset(DATASET).expect("opens");
        let epoch = view(&store).summary().head.epoch;
        Self { store, reference, node: NodeId([byte; 16]), epoch }
    }

    fn write(&mut self, step: usize, random: &mut Random) {
        let now = WallTime(1_000 + step as u64 / 4);
        let held = view(&self.reference);
        let mut writes: Vec<LocalWrite> = Vec::new();
        for _ in 0..=random.below(4) {
            let write = random.write(&held);
            if writes.iter().all(|other| other.key != write.key) {
                writes.push(write);
            }
        }
        let sealer: Option<Arc<dyn Sealer>> =
            if random.below(2) == 0 { Some(Arc::new(Stamp)) } else { None };
        let expected = self.reference.apply_sealed(DATASET.id, writes.clone(), now, sealer.clone());
        let mut expected = expected.expect("applies");
        let applied = self.store.apply_sealed(DATASET.id, writes, now, sealer).expect("applies");
        expected.summary.head.epoch = self.epoch;
        assert_eq!(applied, expected);
    }

    fn pull(&mut self, from: &Self, random: &mut Random) {
        let head = view(&from.store).summary().head;
        let known = view(&self.store).cursor(from.node).expect("reads");
        let after = match (known, random.below(3)) {
            (Some(known), 1..) => known.sequence,
            _ => Sequence(random.next() % (head.sequence.0 + 1)),
        };
        let limit = random.below(2_000);
        let rows = view(&from.store).feed(after, limit).expect("reads");
        let upto = rows.last().map_or(after, |row| row.sequence);
        let cursor = Cursor { epoch: head.epoch, sequence: upto };
        let cursor = (random.below(4) != 0).then_some(cursor);
        let commit = Commit { entries: rows.into_iter().map(|row| row.entry).collect() };
        let expected = self.reference.apply_remote(DATASET.id, from.node, commit.clone(), cursor);
        let mut expected = expected.expect("applies");
        let applied = self.store.apply_remote(DATASET.id, from.node, commit, cursor);
        expected.summary.head.epoch = self.epoch;
        assert_eq!(applied.expect("applies"), expected);
    }

    fn learn(&mut self, step: usize, random: &mut Random) {
        let held = view(&self.reference);
        let lesson = random.lesson(&held, WallTime(1_000 + step as u64 / 4));
        let expected = self.reference.learn(DATASET.id, lesson.clone());
        let mut expected = expected.expect("learns");
        let learnt = self.store.learn(DATASET.id, lesson).expect("learns");
        expected.summary.head.epoch = self.epoch;
        assert_eq!(learnt, expected);
    }

    /// Compares everything that can be read.
    fn compare(&self, random: &mut Random, context: &str) {
        let (store, reference) = (view(&self.store), view(&self.reference));
        assert_eq!(self.store.author(), self.reference.author(), "{context}");
        let (summary, expected) = (store.summary(), reference.summary());
        assert_eq!(summary.digest, expected.digest, "{context}");
        assert_eq!(summary.head.sequence, expected.head.sequence, "{context}");
        assert_eq!(summary.head.epoch, self.epoch, "{context}");
        assert_eq!(store.index().digest(), expected.digest, "{context}");
        let mut symbols = store.index().iter().zip(reference.index().iter());
        assert!(symbols.all(|(own, expected)| own == expected), "{context}");
        assert_eq!(summary.frontier, expected.frontier, "{context}");
        assert_eq!(store.knowledge(), reference.knowledge(), "{context}");
        assert_eq!(store.own(), reference.own(), "{context}");
        compare_tombstones(&store, &reference, random, context);
        compare_keys(&store, &reference, random, context);
        compare_feeds(&store, &reference, random, context);
        compare_fingerprints(&store, &reference, random, context);
        for number in 0..STORES {
            let peer = NodeId([u8::try_from(number).expect("a few stores"); 16]);
            assert_eq!(store.cursor(peer), reference.cursor(peer), "{context}");
        }
    }
}

fn compare_keys(store: &impl View, reference: &MemoryView, random: &mut Random, context: &str) {
    for key in KEYS {
        let key = Key::new(key).expect("a valid key");
        assert_eq!(store.siblings(&key), reference.siblings(&key), "{context}");
    }
    assert_eq!(store.scan("", None, usize::MAX), reference.scan("", None, usize::MAX), "{context}");
    compare_contested(store, reference, random, context);
    for prefix in ["", "a", "a/", "a/b", "é", "x", KEYS[random.below(KEYS.len())]] {
        let after = Key::new(KEYS[random.below(KEYS.len())]).expect("a valid key");
        let after = Some(&after).filter(|_| random.below(2) == 0);
        let limit = random.below(4);
        let (found, expected) =
            (store.scan(prefix, after, limit), reference.scan(prefix, after, limit));
        assert_eq!(found, expected, "{context}: {limit} from {prefix:?} after {after:?}");
    }
}

/// The keys with losers are those that a look at all keys would find.
fn compare_contested(
    store: &impl View,
    reference: &MemoryView,
    random: &mut Random,
    context: &str,
) {
    let (mut contested, mut losers) = (Vec::new(), Losers::default());
    for (key, held) in reference.scan("", None, usize::MAX).expect("reads") {
        let lost = Losers::of(held.iter().map(|stored| &stored.version));
        losers = losers + lost;
        if !lost.are_none() {
            contested.push(key);
        }
    }
    assert_eq!((store.losers(), reference.losers()), (losers, losers), "{context}");
    assert_eq!(store.contested(None, usize::MAX).as_ref(), Ok(&contested), "{context}");
    let after = Key::new(KEYS[random.below(KEYS.len())]).expect("a valid key");
    let limit = random.below(3);
    let expected = contested.into_iter().filter(|key| after < *key).take(limit).collect();
    assert_eq!(store.contested(Some(&after), limit), Ok(expected), "{context}: {limit} of {after}");
}

fn compare_feeds(store: &impl View, reference: &MemoryView, random: &mut Random, context: &str) {
    let head = reference.summary().head.sequence.0;
    for after in [0, random.next() % (head + 1), head, u64::MAX] {
        for limit in [0, random.below(1_000), usize::MAX] {
            let found = store.feed(Sequence(after), limit);
            let expected = reference.feed(Sequence(after), limit);
            assert_eq!(found, expected, "{context}: {limit} bytes after {after}");
        }
    }
}

fn compare_fingerprints(
    store: &impl View,
    reference: &MemoryView,
    random: &mut Random,
    context: &str,
) {
    let all = reference.fingerprints(None, usize::MAX).expect("reads");
    assert_eq!(store.fingerprints(None, usize::MAX).as_ref(), Ok(&all), "{context}");
    let limit = 1 + random.below(3);
    let mut paged: Vec<Fingerprint> = Vec::new();
    loop {
        let page = store.fingerprints(paged.last().copied(), limit).expect("reads");
        assert!(page.len() <= limit, "{context}");
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all, "{context}");
    for fingerprint in all {
        assert_eq!(store.has(fingerprint), Ok(true), "{context}");
        let entry = store.by_fingerprint(fingerprint).expect("reads").expect("is there");
        assert_eq!(Fingerprint::of(&entry, &DATASET.fingerprint_key), fingerprint, "{context}");
    }
    let absent = Fingerprint(u128::from(random.next()));
    assert_eq!(store.has(absent), Ok(false), "{context}");
    assert_eq!(store.by_fingerprint(absent), Ok(None), "{context}");
    let last = store.fingerprints(Some(Fingerprint(u128::MAX)), 1);
    assert_eq!(last, Ok(Vec::new()), "{context}");
}

fn compare_tombstones(
    store: &impl View,
    reference: &MemoryView,
    random: &mut Random,
    context: &str,
) {
    assert_eq!(store.tombstones(), reference.tombstones(), "{context}");
    let all = reference.tombstones_after(None, usize::MAX).expect("reads");
    assert_eq!(reference.tombstones().count, all.len() as u64, "{context}");
    let after = if all.is_empty() { None } else { Some(&all[random.below(all.len())]) };
    for after in [None, after] {
        for limit in [0, 1 + random.below(3), usize::MAX] {
            let expected = reference.tombstones_after(after, limit);
            assert_eq!(store.tombstones_after(after, limit), expected, "{context}");
        }
    }
}

/// However many tombstones can go, a lesson collects no more than a step of them; repeated, it collects them all.
pub fn collects_many_in_steps<S: Store>(mut store: S) {
    const MANY: usize = MAX_COLLECTED + MAX_COLLECTED / 2;
    store.open_dataset(DATASET).expect("opens");
    let keys: Vec<Key> =
        (0..MANY).map(|n| Key::new(format!("k{n}")).expect("a valid key")).collect();
    for (now, content) in [(1, Content::Inline([1].into())), (2, Content::Deleted)] {
        for keys in keys.chunks(MAX_COMMIT_VERSIONS) {
            let writes = keys.iter().map(|key| LocalWrite::new(key.clone(), content.clone()));
            store.apply_local(DATASET.id, writes.collect(), WallTime(now)).expect("applies");
        }
    }
    assert_eq!(view(&store).tombstones().count, MANY as u64);
    let (author, reading) = view(&store).own().expect("reads");
    // Of somebody else it has collected much further already.
    let other: Frontier = [(AuthorId([66; 16]), Timestamp::at(WallTime(9)))].into_iter().collect();
    let lesson = Lesson { known: other.clone(), frontier: other.clone(), ..Lesson::default() };
    store.learn(DATASET.id, lesson).expect("learns");
    let mut frontier: Frontier = [(author, reading)].into_iter().collect();
    frontier.join(&other);
    let mut left = MANY as u64;
    while left != 0 {
        let lesson = Lesson { frontier: frontier.clone(), ..Lesson::default() };
        store.learn(DATASET.id, lesson).expect("learns");
        let before = core::mem::replace(&mut left, view(&store).tombstones().count);
        let collected = before - left;
        assert!((1..=MAX_COLLECTED as u64).contains(&collected), "{collected} in one step");
    }
    let view = view(&store);
    assert_eq!(view.summary().digest.count, 0);
    assert_eq!(view.scan("", None, 1), Ok(Vec::new()));
    assert_eq!(view.feed(Sequence(0), usize::MAX), Ok(Vec::new()));
    assert_eq!(view.knowledge().expect("reads").frontier, frontier);
}

/// Tombstones of one time all go in one step, since no frontier lies between them. Here a forger gave them one dot.
pub fn collects_many_of_one_dot<S: Store>(mut store: S) {
    const MANY: usize = MAX_COLLECTED + 1;
    store.open_dataset(DATASET).expect("opens");
    let dot = Dot { author: AuthorId([66; 16]), time: Timestamp::at(WallTime(1_000)) };
    forge((0..MANY).map(|n| format!("k{n}")), dot, &mut store);
    let frontier: Frontier = [(dot.author, dot.time)].into_iter().collect();
    let lesson =
        Lesson { known: frontier.clone(), frontier: frontier.clone(), ..Lesson::default() };
    store.learn(DATASET.id, lesson).expect("learns");
    let view = view(&store);
    assert_eq!(view.knowledge().expect("reads").frontier, frontier);
    assert_eq!(view.tombstones().count, 0);
    assert_eq!(view.tombstones_after(None, 1), Ok(Vec::new()));
    assert_eq!(view.summary().digest.count, 0);
}

/// A forger may give tombstones of several keys one dot.
fn tells_tombstones_of_one_dot_apart<S: Store>(mut store: S) {
    store.open_dataset(DATASET).expect("opens");
    let key = |name: &str| Key::new(name).expect("a valid key");
    let dot = Dot { author: AuthorId([66; 16]), time: Timestamp::at(WallTime(1_000)) };
    // Those of one commit, and those of another.
    for names in [["b", "a"], ["d", "c"]] {
        forge(names, dot, &mut store);
    }
    let all = ["a", "b", "c", "d"].map(|name| (dot, key(name)));
    for (place, after) in all.iter().enumerate() {
        let rest = view(&store).tombstones_after(Some(after), 2).expect("reads");
        assert_eq!(rest, all[place + 1..].iter().take(2).cloned().collect::<Vec<_>>());
    }
    // One that is replaced takes no other with it.
    let write = LocalWrite::new(key("b"), Content::Inline([1].into()));
    store.apply_local(DATASET.id, [write].into(), WallTime(2_000)).expect("applies");
    let left = view(&store).tombstones_after(None, usize::MAX).expect("reads");
    assert_eq!(left, ["a", "c", "d"].map(|name| (dot, key(name))));
    assert_eq!(view(&store).tombstones().count, 3);

    let frontier: Frontier = [(dot.author, dot.time)].into_iter().collect();
    let lesson = Lesson { known: frontier.clone(), frontier, ..Lesson::default() };
    store.learn(DATASET.id, lesson).expect("learns");
    let view = view(&store);
    assert_eq!(view.tombstones().count, 0);
    assert_eq!(view.tombstones_after(None, usize::MAX), Ok(Vec::new()));
    assert_eq!(view.summary().digest.count, 1);
}

/// Gives a store tombstones of all these keys, with one dot.
fn forge<S: Store>(names: impl IntoIterator<Item: AsRef<str>>, dot: Dot, store: &mut S) {
    let tombstone = |name: &str| {
        let (seen, attributes) = Default::default();
        let version = Version { dot, seen, content: Content::Deleted, attributes };
        Entry { key: Key::new(name).expect("a valid key"), version }
    };
    let entries = names.into_iter().map(|name| tombstone(name.as_ref())).collect();
    let applied = store.apply_remote(DATASET.id, NodeId([1; 16]), Commit { entries }, None);
    applied.expect("applies");
}

fn knows_only_what_was_opened<S: Store>(mut store: S) {
    let unknown = Some(StoreError::UnknownDataset(DATASET.id));
    assert_eq!(store.view(DATASET.id).err(), unknown);
    assert_eq!(store.apply_local(DATASET.id, Vec::new(), WallTime(1)).err(), unknown);
    assert_eq!(store.learn(DATASET.id, Lesson::default()).err(), unknown);
    let commit = Commit::default();
    assert_eq!(store.apply_remote(DATASET.id, NodeId([1; 16]), commit, None).err(), unknown);

    store.open_dataset(DATASET).expect("opens");
    let write = LocalWrite {
        key: Key::new("a").expect("a valid key"),
        saw: Saw::Nothing,
        content: Content::Inline([1].into()),
        attributes: Attributes::default(),
    };
    store.apply_local(DATASET.id, [write].into(), WallTime(1)).expect("applies");
    let summary = view(&store).summary();
    store.open_dataset(DATASET).expect("opens");
    assert_eq!(view(&store).summary(), summary, "a dataset that was opened before keeps its rows");
}

/// A seal is over the version as it is, and is no part of what makes versions alike.
fn seals_what_becomes_a_version<S: Store>(mut store: S) {
    store.open_dataset(DATASET).expect("opens");
    let key = Key::new("a").expect("a valid key");
    let mut write = LocalWrite::new(key.clone(), Content::Inline([1].into()));
    write.attributes.seal = Some([9].into());
    let mut apply = |write: &LocalWrite, sealer| {
        let writes = [write.clone()].into();
        let applied = store.apply_sealed(DATASET.id, writes, WallTime(1), sealer);
        let written = applied.expect("applies").written[0];
        let held = view(&store).siblings(&key).expect("reads").remove(0).version;
        (written, Entry { key: key.clone(), version: held })
    };
    let (_, held) = apply(&write, None);
    assert_eq!(held.version.attributes.seal, None, "a seal belongs to one version only");

    write.content = Content::Inline([2].into());
    let (written, mut held) = apply(&write, Some(Arc::new(Stamp)));
    assert_eq!(written, Written::New(held.version.dot));
    let seal = held.version.attributes.seal.take().expect("it is sealed");
    assert_eq!(seal, Stamp.seal(&held));
    let (written, _) = apply(&write, None);
    assert_eq!(written, Written::Same(held.version.dot), "the same again is no new version");
}

/// A seal that shows what it was made for.
#[derive(Debug)]
struct Stamp;

impl Sealer for Stamp {
    fn seal(&self, entry: &Entry) -> Box<[u8]> {
        Fingerprint::of(entry, &DATASET.fingerprint_key).0.to_le_bytes().into()
    }
}

/// What one store's feed holds is all that another needs to become equal to it; and twice is like once.
fn feeds_make_stores_equal<S: Store>(pairs: &mut [Pair<S>], mut fresh: S) {
    fresh.open_dataset(DATASET).expect("opens");
    let feed =
        |from: &S| -> Vec<FeedRow> { view(from).feed(Sequence(0), usize::MAX).expect("reads") };
    let pour = |rows: Vec<FeedRow>, into: &mut S| {
        let entries = rows.into_iter().map(|row| row.entry).collect();
        into.apply_remote(DATASET.id, NodeId([9; 16]), Commit { entries }, None).expect("applies")
    };
    for _ in 0..2 {
        pour(feed(&pairs[0].store), &mut fresh);
        assert_same(&fresh, &pairs[0].store);
    }
    for (from, into) in [(0, 1), (1, 2), (2, 0), (2, 1)] {
        let rows = feed(&pairs[from].store);
        pour(rows, &mut pairs[into].store);
    }
    for pair in &pairs[1..] {
        assert_same(&pair.store, &pairs[0].store);
    }
    let again = pour(feed(&pairs[0].store), &mut pairs[1].store);
    assert!(again.added.is_empty(), "what is known already changes nothing");
}

fn assert_same<S: Store>(a: &S, b: &S) {
    let (a, b) = (view(a), view(b));
    assert_eq!(a.summary().digest, b.summary().digest);
    let versions = |view: &S::View| -> Vec<_> {
        let keys = view.scan("", None, usize::MAX).expect("reads");
        let plain = |(key, held): (Key, Vec<super::Stored>)| {
            (key, held.into_iter().map(|stored| stored.version).collect::<Vec<_>>())
        };
        keys.into_iter().map(plain).collect()
    };
    assert_eq!(versions(&a), versions(&b));
}

fn view<S: Store>(store: &S) -> S::View {
    store.view(DATASET.id).expect("the dataset is open")
}

/// A generator of numbers (splitmix64): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    /// Something to learn, be it true or not.
    fn lesson(&mut self, held: &impl View, now: WallTime) -> Lesson {
        let (own, _) = held.own().expect("reads");
        let authors: Vec<AuthorId> = held
            .feed(Sequence(0), usize::MAX)
            .expect("reads")
            .into_iter()
            .map(|row| row.entry.version.dot.author)
            .chain([AuthorId([77; 16])])
            // Who knows more of a store's author than itself shows it a lost past, which only some stores notice.
            .filter(|author| *author != own)
            .collect();
        let mut frontier = || -> Frontier {
            let times = (0..self.below(4)).map(|_| {
                let time = Timestamp::at(WallTime(1_000 + self.below(20) as u64));
                (authors[self.below(authors.len())], time)
            });
            times.collect::<Vec<_>>().into_iter().collect()
        };
        let (known, frontier) = (frontier(), frontier());
        let mut dead = Vec::new();
        for (key, held) in held.scan("", None, usize::MAX).expect("reads") {
            if self.below(8) == 0 {
                dead.push((key, held[0].version.dot));
            }
        }
        let (anew, mark) = (self.below(4) == 0, held.summary().frontier);
        let promise = (self.below(3) == 0).then_some(now);
        let (unburied, buried) = (self.below(4) == 0, (self.below(4) == 0).then_some(mark));
        Lesson { known, frontier, dead, unburied, buried, anew, promise }
    }

    /// A write by somebody who sees what `held` shows, or something older.
    fn write(&mut self, held: &impl View) -> LocalWrite {
        let key = Key::new(KEYS[self.below(KEYS.len())]).expect("a valid key");
        let siblings = held.siblings(&key).expect("reads");
        let saw = match self.below(4) {
            0 => Saw::Nothing,
            1 => Saw::Version(Dot { time: Timestamp(self.next()), ..Dot::default() }),
            2 if !siblings.is_empty() => {
                Saw::Version(siblings[self.below(siblings.len())].version.dot)
            }
            _ => Saw::Winner,
        };
        let byte = u8::try_from(self.below(3)).expect("below three");
        let content = match self.below(5) {
            0 => Content::Deleted,
            1 => Content::Chunks([ChunkRef::to(&[byte])].into()),
            2 => Content::Inline((0..self.below(600)).map(|_| byte).collect()),
            _ => Content::Inline([byte].into()),
        };
        let modified_ns = i64::from(self.below(2) == 0);
        LocalWrite {
            key,
            saw,
            content,
            attributes: Attributes { modified_ns, ..Attributes::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[test]
    fn the_store_in_memory_conforms() {
        for seed in 0..64 {
            let made = Cell::new(0);
            let make = || {
                made.set(made.get() + 1);
                MemoryStore::new(AuthorId([made.get(); 16]), Epoch(3))
            };
            run(seed, make, |store, _| store);
        }
        collects_many_in_steps(MemoryStore::new(AuthorId([1; 16]), Epoch(3)));
        collects_many_of_one_dot(MemoryStore::new(AuthorId([1; 16]), Epoch(3)));
    }
}
