//! What a store must make of any commits: its digest is the sum of what it holds, and its feed is all of it.

use consort_core::limits::MAX_VECTOR_EXCEPTIONS;
use consort_core::model::attributes::Attributes;
use consort_core::model::merge::Saw;
use consort_core::store::memory::{MemoryStore, MemoryView};
use consort_core::store::{Epoch, LocalWrite, Sequence, Store, StoreError, View};
use consort_core::{
    AuthorId, Commit, Content, Digest, Dot, Entry, Fingerprint, NodeId, Timestamp, Version,
    VersionVector, WallTime,
};
use proptest::prelude::*;

use crate::world::{DATASET, PARAMETERS, key};

/// One commit: at which of two stores, of which writes (key, value or deletion, which version was seen).
type Step = (usize, Vec<(u8, Option<u8>, u8)>);

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0u8..4, prop::option::of(0u8..3), 0u8..4);
    prop::collection::vec((0usize..2, prop::collection::vec(write, 1..4)), 1..30)
}

fn store(author: u8) -> MemoryStore {
    let mut store = MemoryStore::new(AuthorId([author; 16]), Epoch(u64::from(author)));
    store.open_dataset(PARAMETERS).unwrap();
    store
}

/// Plays the commits at two stores that also hear of each other's.
fn play(steps: &[Step]) -> [MemoryStore; 2] {
    let mut stores = [store(1), store(2)];
    for (at, writes) in steps {
        let view = stores[*at].view(DATASET).unwrap();
        let writes = writes.iter().map(|&(name, value, saw)| {
            let key = key(&name.to_string());
            let held = view.siblings(&key).unwrap();
            let saw = match saw {
                0 => Saw::Nothing,
                1 => held.first().map_or(Saw::Winner, |held| Saw::Version(held.version.dot)),
                _ => Saw::Winner,
            };
            let content = value.map_or(Content::Deleted, |value| Content::Inline([value].into()));
            LocalWrite { key, saw, content, attributes: Attributes::default() }
        });
        let writes = writes.collect();
        drop(view);
        let applied = stores[*at].apply_local(DATASET, writes, WallTime(1_700_000_000_000));
        let entries: Vec<Entry> = applied.unwrap().added.into_iter().map(|(e, _)| e).collect();
        // Every other commit reaches the other store at once; the rest never does.
        if entries.len() % 2 == 1 {
            let commit = Commit { entries };
            stores[1 - at].apply_remote(DATASET, NodeId([9; 16]), commit, None).unwrap();
        }
    }
    stores
}

fn recomputed(view: &MemoryView) -> Digest {
    let mut digest = Digest::default();
    for (key, held) in view.scan("", None, usize::MAX).unwrap() {
        for stored in held {
            let entry = Entry { key: key.clone(), version: stored.version };
            digest.add(Fingerprint::of(&entry, &PARAMETERS.fingerprint_key));
        }
    }
    digest
}

proptest! {
    #[test]
    fn a_digest_is_the_sum_of_what_is_held(steps in any_steps()) {
        for store in play(&steps) {
            let view = store.view(DATASET).unwrap();
            prop_assert_eq!(view.summary().digest, recomputed(&view));
            let listed = view.fingerprints(None, usize::MAX).unwrap();
            prop_assert_eq!(listed.len() as u64, view.summary().digest.count);
        }
    }

    #[test]
    fn a_feed_that_is_replayed_gives_the_same_replica(steps in any_steps(), limit in 1usize..2000) {
        for source in play(&steps) {
            let view = source.view(DATASET).unwrap();
            let mut copy = store(3);
            let mut place = Sequence(0);
            loop {
                let rows = view.feed(place, limit).unwrap();
                let Some(last) = rows.last() else { break };
                place = last.sequence;
                let entries = rows.into_iter().map(|row| row.entry).collect();
                copy.apply_remote(DATASET, NodeId([1; 16]), Commit { entries }, None).unwrap();
            }
            let copied = copy.view(DATASET).unwrap().summary().digest;
            prop_assert_eq!(copied, view.summary().digest);
        }
    }

    #[test]
    fn no_version_that_is_held_covers_another(steps in any_steps()) {
        for source in play(&steps) {
            let view = source.view(DATASET).unwrap();
            for (_, held) in view.scan("", None, usize::MAX).unwrap() {
                for (place, one) in held.iter().enumerate() {
                    let others = held.iter().enumerate().filter(|(other, _)| *other != place);
                    prop_assert!(others.into_iter().all(|(_, other)| !other.version.covers(&one.version)));
                }
            }
        }
    }
}

/// Everybody would refuse it: the peers, and the store itself when it reads it back.
#[test]
fn what_nobody_could_read_is_not_written() {
    let plain = |name: &str| LocalWrite::new(key(name), Content::Inline([1].into()));
    let mut unordered = plain("b");
    unordered.attributes.metadata = [("z".into(), "1".into()), ("a".into(), "2".into())].into();
    let mut too_long = plain("b");
    too_long.attributes.media_type = Some("x".repeat(1000).into());
    let too_much = LocalWrite::new(key("b"), Content::Inline([0; 20_000].into()));
    for refused in [unordered, too_long, too_much] {
        let mut store = store(1);
        let writes = vec![plain("a"), refused];
        let outcome = store.apply_local(DATASET, writes, WallTime(1_700_000_000_000));
        assert!(matches!(outcome, Err(StoreError::Refused { .. })), "{outcome:?}");
        assert_eq!(store.view(DATASET).unwrap().summary().digest, Digest::default());
    }
}

/// A store with so many versions of one key that do not know of each other.
fn crowded(versions: usize, dot: impl Fn(u64) -> Dot) -> MemoryStore {
    let mut store = store(0);
    let version = |number| Version {
        dot: dot(number),
        seen: VersionVector::new(),
        content: Content::Inline(number.to_le_bytes().into()),
        attributes: Attributes::default(),
    };
    let entries = (1..=versions as u64).map(version);
    let entries = entries.map(|version| Entry { key: key("a"), version }).collect();
    store.apply_remote(DATASET, NodeId([9; 16]), Commit { entries }, None).unwrap();
    store
}

#[test]
fn many_authors_who_did_not_know_of_each_other_are_in_nobodys_way() {
    let author = |number: u64| {
        let mut bytes = [1; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        AuthorId(bytes)
    };
    let versions = 2 * MAX_VECTOR_EXCEPTIONS;
    let dot = |number| Dot { author: author(number), time: Timestamp(1) };
    let mut store = crowded(versions, dot);
    for value in 0..3 {
        let write = LocalWrite::new(key("a"), Content::Inline([value].into()));
        store.apply_local(DATASET, vec![write], WallTime(1_700_000_000_000)).unwrap();
        let held = store.view(DATASET).unwrap().siblings(&key("a")).unwrap();
        assert_eq!(held.len(), versions, "the winner is replaced, and nothing else");
    }
}

/// Nothing is replaced that nobody looked at, so somebody has to choose first; and can.
#[test]
fn a_write_beside_more_conflicts_than_it_can_name_is_refused_until_somebody_chooses() {
    let versions = MAX_VECTOR_EXCEPTIONS + 2;
    let dot = |number| Dot { author: AuthorId([1; 16]), time: Timestamp(number) };
    let mut store = crowded(versions, dot);
    let now = WallTime(1_700_000_000_000);
    let before = store.view(DATASET).unwrap().summary();
    for content in [Content::Inline([1].into()), Content::Deleted] {
        let outcome = store.apply_local(DATASET, vec![LocalWrite::new(key("a"), content)], now);
        let refused = StoreError::Crowded { key: key("a"), versions };
        assert_eq!(outcome, Err(refused));
        assert_eq!(store.view(DATASET).unwrap().summary(), before);
    }
    let held = store.view(DATASET).unwrap().siblings(&key("a")).unwrap();
    let saw = Saw::Versions(held.iter().map(|stored| stored.version.dot).collect());
    let chosen = held[7].version.content.clone();
    let choice = LocalWrite { saw, ..LocalWrite::new(key("a"), chosen) };
    store.apply_local(DATASET, vec![choice], now).unwrap();
    assert_eq!(store.view(DATASET).unwrap().siblings(&key("a")).unwrap().len(), 1);
    let write = LocalWrite::new(key("a"), Content::Inline([1].into()));
    store.apply_local(DATASET, vec![write], now).unwrap();
}
