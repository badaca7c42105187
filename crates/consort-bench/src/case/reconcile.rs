//! Finding the difference of two large sets: what it takes on the wire, and in time. Two replicas converse as nodes do,
//! by links and with every message encoded and decoded; but without processes, and over sets in memory, which count
//! what is read of them.

use std::cell::Cell as Counter;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use consort_core::model::Knowledge;
use consort_core::model::conflict::Losers;
use consort_core::model::frontier::Mark;
use consort_core::protocol::event::Access;
use consort_core::protocol::{Effect, Envelope, Event, Message, Now, Replica, codec};
use consort_core::reconcile::{Answer, Decoder, Index, Method};
use consort_core::store::{
    Cursor, Epoch, FeedRow, Sequence, StoreError, Stored, Summary, Tombstones, View,
};
use consort_core::{
    AuthorId, Content, DatasetId, Digest, Dot, Entry, Fingerprint, FingerprintKey, Instant, Key,
    NodeId, Timestamp, Version, VersionVector, WallTime,
};

use crate::case::Bench;
use crate::failure::Failure;
use crate::table::{Cell, Table};

const DIFFERENCES: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
const KEY: FingerprintKey = FingerprintKey([7; 32]);
const DATASET: DatasetId = DatasetId([1; 16]);
/// The side that describes what it has, and the side that compares.
const DESCRIBING: usize = 0;
const COMPARING: usize = 1;

pub(crate) fn reconcile(bench: &Bench) -> Result<Table, Failure> {
    let versions = bench.files.unwrap_or(1_000_000);
    let runs = bench.runs.unwrap_or(10);
    let shared = Shared::new(versions);
    let title = format!("Finding differences among {versions} versions on each side");
    let mut table = Table::new(
        title,
        &[
            "differences",
            "runs",
            "symbols needed each",
            "symbols sent each",
            "finding",
            "bytes each",
            "most bytes each",
            "naming each",
            "rounds",
            "method",
            "scanned",
            "decode",
            "microseconds to add one",
            "verified",
        ],
    );
    for differences in DIFFERENCES.into_iter().filter(|differences| 10 * differences <= versions) {
        let all: Result<Vec<Outcome>, Failure> =
            (0..runs).map(|run| measure(&shared, differences, run)).collect();
        table.row(row(differences, &all?));
    }
    let check = check_of_equals(&shared)?;
    table.note(format!(
        "Means. Half of the differences are on either side. Finding: all requests and answers. Naming: what is wanted then, \
         16 bytes for each version that only the peer has. Symbols needed: with which decoding just succeeds; published are \
         1.35 to 1.72 for each difference. Rounds: requests and their answers. Scanned: fingerprints that had to be read \
         on both sides. Decode: all that the comparing side does with an answer. To add one: a version into the live index, \
         as each commit does. Two sides that hold the same learn so from one message of {check} bytes."
    ));
    Ok(table)
}

/// What one comparison took.
#[derive(Debug, Default)]
struct Outcome {
    needed: Option<usize>,
    sent: usize,
    bytes: usize,
    naming: usize,
    requests: usize,
    methods: Vec<Method>,
    scanned: usize,
    decode: Duration,
    add: Duration,
    verified: bool,
}

fn measure(shared: &Shared, differences: usize, run: usize) -> Result<Outcome, Failure> {
    let first = (run as u64 + 1) << 40;
    let new: Vec<Entry> = (first..first + differences as u64).map(entry).collect();
    let (only_theirs, only_ours) = new.split_at(differences.div_ceil(2));
    let mut outcome = Outcome::default();

    let mut sides = [only_theirs, only_ours].map(|only| {
        let mut set = Set::new(shared);
        only.iter().for_each(|entry| set.add(entry.clone()));
        set
    });
    let fingerprints: Vec<Fingerprint> = new.iter().map(|e| Fingerprint::of(e, &KEY)).collect();
    let mut index = shared.index.clone();
    let started = Clock::now();
    fingerprints.iter().for_each(|fingerprint| index.add(*fingerprint));
    // The first changes of a clone copy its pages, so small differences would tell nothing about a commit.
    if 1_000 <= differences {
        outcome.add = started.elapsed() / u32::try_from(differences).unwrap_or(u32::MAX);
    }
    outcome.needed = needed(&sides[DESCRIBING].index, &sides[COMPARING].index);
    converse(&mut sides, &mut outcome)?;
    outcome.scanned = sides.iter().map(|side| side.read.get()).sum();
    let holds_all = |side: &Set| fingerprints.iter().all(|new| side.own.contains_key(new));
    outcome.verified = sides.iter().all(holds_all) && sides[0].summary() == sides[1].summary();
    Ok(outcome)
}

/// How many symbols are just enough, if the live indexes have them.
fn needed(theirs: &Index, ours: &Index) -> Option<usize> {
    let mut decoder = Decoder::default();
    let pairs = theirs.iter().zip(ours.iter());
    for (theirs, ours) in pairs {
        decoder.take([*theirs], [*ours]).ok()?;
        if decoder.is_done() {
            return Some(decoder.taken());
        }
    }
    None
}

/// Lets the two sides converse until they are the same.
fn converse(sides: &mut [Set; 2], outcome: &mut Outcome) -> Result<(), Failure> {
    let mut talk = Talk::new();
    while let Some((n, event)) = talk.events.pop_front() {
        let is_answer = matches!(&event, Event::Received { message: Message::Description(_), .. });
        let started = Clock::now();
        let effects = talk.handle(n, event, &sides[n])?;
        if is_answer {
            outcome.decode += started.elapsed();
        }
        let link = talk.replicas[n].links(Sequence(0)).next();
        if let Some(method) = link.and_then(|link| link.method).filter(|_| n == COMPARING)
            && outcome.methods.last() != Some(&method)
        {
            outcome.methods.push(method);
        }
        for effect in effects {
            match effect {
                Effect::Send { message, .. } => {
                    let bytes = encoded(message);
                    let message = decoded(&bytes)?;
                    match &message {
                        Message::Describe(_) => {
                            outcome.bytes += bytes.len();
                            outcome.requests += 1;
                        }
                        Message::Description(answer) => {
                            outcome.bytes += bytes.len();
                            if let Answer::Symbols { run, .. } = answer {
                                outcome.sent += run.symbols.len();
                            }
                        }
                        Message::Want { .. } => outcome.naming += bytes.len(),
                        _ => {}
                    }
                    talk.events.push_back((1 - n, Event::Received { peer: node(n), message }));
                }
                Effect::Commit { peer, entries, .. } => {
                    entries.into_iter().for_each(|entry| sides[n].add(entry));
                    talk.events.push_back((n, Event::Committed { peer, stale: 0 }));
                }
                other => return Err(Failure::new(format!("a link asked for {other:?}"))),
            }
        }
    }
    Ok(())
}

/// How many bytes a check takes between two sides that hold the same.
fn check_of_equals(shared: &Shared) -> Result<usize, Failure> {
    let side = Set::new(shared);
    let mut talk = Talk::new();
    let pass = |talk: &mut Talk| -> Result<Vec<usize>, Failure> {
        let mut sent = Vec::new();
        while let Some((n, event)) = talk.events.pop_front() {
            for effect in talk.handle(n, event, &side)? {
                if let Effect::Send { message, .. } = effect {
                    let bytes = encoded(message);
                    sent.push(bytes.len());
                    let message = decoded(&bytes)?;
                    talk.events.push_back((1 - n, Event::Received { peer: node(n), message }));
                } else if let Effect::Commit { peer, .. } = effect {
                    talk.events.push_back((n, Event::Committed { peer, stale: 0 }));
                }
            }
        }
        Ok(sent)
    };
    pass(&mut talk)?;
    talk.now.instant = talk.replicas[COMPARING].deadline().unwrap_or(talk.now.instant);
    talk.events.push_back((COMPARING, Event::DeadlinePassed));
    match pass(&mut talk)?[..] {
        [bytes] if side.read.get() == 0 => Ok(bytes),
        ref sent => Err(Failure::new(format!("a check of equals took {} messages", sent.len()))),
    }
}

/// Two replicas that are connected, and what is on its way.
struct Talk {
    replicas: [Replica; 2],
    events: VecDeque<(usize, Event)>,
    now: Now,
}

impl Talk {
    fn new() -> Self {
        let replicas = [DESCRIBING, COMPARING].map(|n| Replica::new(KEY, Access::Write, n as u64));
        let connected = |n: usize| Event::Connected {
            peer: node(1 - n),
            access: Access::Write,
            opener: n == DESCRIBING,
            standing: false,
        };
        let events = [DESCRIBING, COMPARING].map(|n| (n, connected(n))).into();
        let now = Now { instant: Instant(0), wall: WallTime(1_700_000_000_000) };
        Self { replicas, events, now }
    }

    fn handle(&mut self, n: usize, event: Event, view: &Set) -> Result<Vec<Effect>, Failure> {
        let mut effects = Vec::new();
        let handled = self.replicas[n].handle(event, self.now, view, &mut effects);
        handled.map_err(|error| Failure::new(format!("the comparison failed: {error}")))?;
        Ok(effects)
    }
}

fn node(n: usize) -> NodeId {
    NodeId([u8::try_from(n).unwrap_or(u8::MAX); 16])
}

fn encoded(message: Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(&Envelope { dataset: DATASET, message }, &mut bytes);
    bytes
}

fn decoded(bytes: &[u8]) -> Result<Message, Failure> {
    let envelope = codec::decode(bytes);
    let wrong = |error| Failure::new(format!("a message does not decode: {error}"));
    envelope.map(|envelope| envelope.message).map_err(wrong)
}

fn row(differences: usize, all: &[Outcome]) -> Vec<Cell> {
    #[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
    let mean = |value: &dyn Fn(&Outcome) -> usize, divisor: usize| {
        all.iter().map(value).sum::<usize>() as f64 / (all.len() * divisor) as f64
    };
    let needed = all.iter().all(|outcome| outcome.needed.is_some());
    let needed = needed.then(|| mean(&|outcome| outcome.needed.unwrap_or(0), differences));
    let runs = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let time = |value: fn(&Outcome) -> Duration| all.iter().map(value).sum::<Duration>() / runs;
    let add = Some(time(|outcome| outcome.add)).filter(|add| !add.is_zero());
    let whole = |value: fn(&Outcome) -> usize| all.iter().map(value).sum::<usize>() / all.len();
    let methods = |outcome: &Outcome| {
        let names: Vec<&str> = outcome.methods.iter().map(|method| method.name()).collect();
        names.join(", ")
    };
    let most = all.iter().map(|outcome| outcome.bytes).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
    let most = most as f64 / differences as f64;
    vec![
        Cell::Count(differences),
        Cell::Count(all.len()),
        needed.map_or(Cell::Nothing, Cell::Ratio),
        Cell::Ratio(mean(&|outcome| outcome.sent, differences)),
        Cell::Bytes(whole(|outcome| outcome.bytes) as u64),
        Cell::Ratio(mean(&|outcome| outcome.bytes, differences)),
        Cell::Ratio(most),
        Cell::Ratio(mean(&|outcome| outcome.naming, differences)),
        Cell::Ratio(mean(&|outcome| outcome.requests, 1)),
        Cell::Text(all.last().map(methods).unwrap_or_default()),
        Cell::Count(whole(|outcome| outcome.scanned)),
        Cell::Milliseconds(time(|outcome| outcome.decode)),
        add.map_or(Cell::Nothing, |add| Cell::Ratio(add.as_secs_f64() * 1e6)),
        Cell::Verified(all.iter().all(|outcome| outcome.verified)),
    ]
}

/// What both sides hold.
struct Shared {
    sorted: Vec<Fingerprint>,
    index: Index,
}

impl Shared {
    fn new(versions: usize) -> Self {
        // Nobody asks for these, so they need no entries.
        let of = |number: usize| Fingerprint::of_canonical(&number.to_le_bytes(), &KEY);
        let mut sorted: Vec<Fingerprint> = (0..versions).map(of).collect();
        sorted.sort_unstable();
        let index = Index::of_set(versions as u64, sorted.iter().copied());
        Self { sorted, index }
    }
}

/// What one side holds, which counts what is read of it.
struct Set<'s> {
    shared: &'s [Fingerprint],
    own: BTreeMap<Fingerprint, Entry>,
    index: Index,
    digest: Digest,
    read: Counter<usize>,
}

impl<'s> Set<'s> {
    fn new(shared: &'s Shared) -> Self {
        let index = shared.index.clone();
        let digest = index.digest();
        let read = Counter::new(0);
        Self { shared: &shared.sorted, own: BTreeMap::new(), index, digest, read }
    }

    fn add(&mut self, entry: Entry) {
        let fingerprint = Fingerprint::of(&entry, &KEY);
        if self.own.insert(fingerprint, entry).is_none() {
            self.index.add(fingerprint);
            self.digest.add(fingerprint);
        }
    }
}

impl View for Set<'_> {
    fn summary(&self) -> Summary {
        // Of a feed that nobody reads: everything is found by comparing.
        let head = Cursor { epoch: Epoch(1), sequence: Sequence(1) };
        Summary { digest: self.digest, head, frontier: Mark::default(), unburied: false }
    }

    fn siblings(&self, _: &Key) -> Result<Vec<Stored>, StoreError> {
        Ok(Vec::new())
    }

    fn feed(&self, _: Sequence, _: usize) -> Result<Vec<FeedRow>, StoreError> {
        Ok(Vec::new())
    }

    fn by_fingerprint(&self, fingerprint: Fingerprint) -> Result<Option<Entry>, StoreError> {
        Ok(self.own.get(&fingerprint).cloned())
    }

    fn has(&self, fingerprint: Fingerprint) -> Result<bool, StoreError> {
        let is_own = self.own.contains_key(&fingerprint);
        Ok(is_own || self.shared.binary_search(&fingerprint).is_ok())
    }

    fn index(&self) -> &Index {
        &self.index
    }

    fn fingerprints(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        let start = self.shared.partition_point(|shared| Some(*shared) <= after);
        let mut shared = self.shared[start..].iter().copied().peekable();
        let own = self.own.range(after.unwrap_or(Fingerprint(0))..).map(|(own, _)| *own);
        let mut own = own.filter(|own| after < Some(*own)).peekable();
        let least = std::iter::from_fn(|| match (shared.peek(), own.peek()) {
            (Some(a), Some(b)) if b < a => own.next(),
            (Some(_), _) => shared.next(),
            (None, _) => own.next(),
        });
        let found: Vec<Fingerprint> = least.take(limit).collect();
        self.read.set(self.read.get() + found.len());
        Ok(found)
    }

    // Nothing was deleted.

    fn knowledge(&self) -> Result<Arc<Knowledge>, StoreError> {
        Ok(Arc::default())
    }

    fn tombstones(&self) -> Tombstones {
        Tombstones::default()
    }

    fn tombstones_after(
        &self,
        _: Option<&(Dot, Key)>,
        _: usize,
    ) -> Result<Vec<(Dot, Key)>, StoreError> {
        Ok(Vec::new())
    }

    fn own(&self) -> Result<(AuthorId, Timestamp), StoreError> {
        Ok((AuthorId([9; 16]), Timestamp(0)))
    }

    fn contested(&self, _: Option<&Key>, _: usize) -> Result<Vec<Key>, StoreError> {
        Ok(Vec::new())
    }

    fn losers(&self) -> Losers {
        Losers::default()
    }

    fn cursor(&self, _: NodeId) -> Result<Option<Cursor>, StoreError> {
        Ok(None)
    }

    fn scan(
        &self,
        _: &str,
        _: Option<&Key>,
        _: usize,
    ) -> Result<Vec<(Key, Vec<Stored>)>, StoreError> {
        Ok(Vec::new())
    }
}

/// A small entry.
fn entry(number: u64) -> Entry {
    let dot = Dot { author: AuthorId([9; 16]), time: Timestamp(1 + number) };
    let content = Content::Inline(number.to_le_bytes().into());
    let version =
        Version { dot, seen: VersionVector::new(), content, attributes: Default::default() };
    Entry { key: Key::new(format!("{number}")).expect("digits are a key"), version }
}
