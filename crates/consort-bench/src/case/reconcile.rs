//! Finding the difference of two large sets: what it takes on the wire, and in time. This is the core alone, without
//! processes: the two sides converse in memory, and every message is encoded and decoded.

use std::cell::Cell as Counter;
use std::time::{Duration, Instant};

use consort_core::encoding::{DecodeError, Reader};
use consort_core::reconcile::{
    Answer, Block, Decoder, Describer, Differences, Finder, Fingerprints, Index, Request, Step,
};
use consort_core::store::StoreError;
use consort_core::{Fingerprint, FingerprintKey};

use crate::case::Bench;
use crate::failure::Failure;
use crate::table::{Cell, Table};

const DIFFERENCES: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];

pub(crate) fn reconcile(bench: &Bench) -> Result<Table, Failure> {
    let versions = bench.files.unwrap_or(1_000_000);
    let runs = bench.runs.unwrap_or(10);
    let shared = fingerprints(0, versions);
    let mut block = Block::new(0..Index::length_for(shared.len() as u64));
    block.extend(shared.iter().copied());
    let index = Index::of(block);
    let title = format!("Finding differences among {versions} versions on each side");
    let mut table = Table::new(
        title,
        &[
            "differences",
            "runs",
            "symbols needed each",
            "symbols sent each",
            "wire",
            "bytes each",
            "most bytes each",
            "requests",
            "method",
            "scanned",
            "decode",
            "microseconds to add one",
            "verified",
        ],
    );
    for differences in DIFFERENCES.into_iter().filter(|differences| 10 * differences <= versions) {
        let all: Result<Vec<Outcome>, Failure> =
            (0..runs).map(|run| measure(&shared, &index, differences, run)).collect();
        table.row(row(differences, &all?));
    }
    table.note(
        "Means. Half of the differences are on either side. Wire: all requests and answers; to name what is wanted then \
         takes another 16 bytes for each version that only the peer has. Symbols needed: with which decoding just \
         succeeds; published are 1.35 to 1.72 for each difference. Scanned: fingerprints that had to be read on both sides. \
         Decode: all that the comparing side does. To add one: a version into the live index, as each commit does.",
    );
    Ok(table)
}

/// What one comparison took.
#[derive(Debug, Default)]
struct Outcome {
    needed: Option<usize>,
    sent: usize,
    bytes: usize,
    requests: usize,
    methods: Vec<String>,
    scanned: usize,
    decode: Duration,
    add: Duration,
    verified: bool,
}

fn measure(
    shared: &[Fingerprint],
    index: &Index,
    differences: usize,
    run: usize,
) -> Result<Outcome, Failure> {
    let first = (run + 1) << 40;
    let new = fingerprints(first, first + differences);
    let (only_theirs, only_ours) = new.split_at(differences.div_ceil(2));
    let (theirs, ours) = (Set::new(shared, only_theirs), Set::new(shared, only_ours));
    let mut outcome = Outcome::default();

    let started = Instant::now();
    let [their_index, our_index] = [only_theirs, only_ours].map(|only| {
        let mut index = index.clone();
        only.iter().for_each(|fingerprint| index.add(*fingerprint));
        index
    });
    // The first changes of a clone copy its pages, so small differences would tell nothing about a commit.
    if 1_000 <= differences {
        outcome.add = started.elapsed() / u32::try_from(differences).unwrap_or(u32::MAX);
    }
    outcome.needed = needed(&their_index, &our_index);
    converse((&theirs, &their_index), (&ours, &our_index), &mut outcome)
        .map_err(|error| Failure::new(format!("the comparison failed: {error}")))
        .map(|found| {
            outcome.verified =
                are_same(found.theirs, only_theirs) && are_same(found.ours, only_ours);
            outcome.scanned = theirs.read.get() + ours.read.get();
            outcome
        })
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

fn converse(
    (theirs, their_index): (&Set, &Index),
    (ours, our_index): (&Set, &Index),
    outcome: &mut Outcome,
) -> Result<Differences, String> {
    let mut all = Differences::default();
    let mut finder = Finder::new(their_index.digest(), our_index);
    let mut describer = Describer::default();
    loop {
        let method = format!("{:?}", finder.method()).to_lowercase();
        match finder.step() {
            Step::Done => return Ok(all),
            Step::Found(found) => {
                all.theirs.extend(found.theirs);
                all.ours.extend(found.ours);
            }
            Step::Ask(request) => {
                if outcome.methods.last() != Some(&method) {
                    outcome.methods.push(method);
                }
                let request = pass(&request, Request::encode, Request::decode, outcome)?;
                let answer = describer.answer(request, theirs, their_index);
                let answer = answer.map_err(|error| format!("{error:?}"))?;
                let answer = pass(&answer, Answer::encode, Answer::decode, outcome)?;
                outcome.requests += 1;
                if let Answer::Symbols { run, .. } = &answer {
                    outcome.sent += run.symbols.len();
                }
                let started = Instant::now();
                finder.take(answer, ours).map_err(|error| error.to_string())?;
                outcome.decode += started.elapsed();
            }
        }
    }
}

/// A message as the other side gets it.
fn pass<T>(
    message: &T,
    encode: impl Fn(&T, &mut Vec<u8>),
    decode: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
    outcome: &mut Outcome,
) -> Result<T, String> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes);
    outcome.bytes += bytes.len();
    decode(&mut Reader::new(&bytes)).map_err(|error| error.to_string())
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
        Cell::Ratio(mean(&|outcome| outcome.requests, 1)),
        Cell::Text(all.last().map(|outcome| outcome.methods.join(", ")).unwrap_or_default()),
        Cell::Count(whole(|outcome| outcome.scanned)),
        Cell::Milliseconds(time(|outcome| outcome.decode)),
        add.map_or(Cell::Nothing, |add| Cell::Ratio(add.as_secs_f64() * 1e6)),
        Cell::Verified(all.iter().all(|outcome| outcome.verified)),
    ]
}

/// A set in memory, which counts what is read of it.
struct Set {
    sorted: Vec<Fingerprint>,
    read: Counter<usize>,
}

impl Set {
    fn new(shared: &[Fingerprint], only: &[Fingerprint]) -> Self {
        let mut sorted = [shared, only].concat();
        sorted.sort_unstable();
        Self { sorted, read: Counter::new(0) }
    }
}

impl Fingerprints for Set {
    fn above(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        let start = self.sorted.partition_point(|own| Some(*own) <= after);
        let end = self.sorted.len().min(start + limit);
        self.read.set(self.read.get() + end - start);
        Ok(self.sorted[start..end].to_vec())
    }
}

/// Those of entries that are nothing but their numbers.
fn fingerprints(from: usize, to: usize) -> Vec<Fingerprint> {
    let key = FingerprintKey([7; 32]);
    (from..to).map(|number| Fingerprint::of_canonical(&number.to_le_bytes(), &key)).collect()
}

fn are_same(mut found: Vec<Fingerprint>, expected: &[Fingerprint]) -> bool {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    found.sort_unstable();
    found == expected
}
