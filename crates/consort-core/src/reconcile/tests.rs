//! A finder and a describer converse, through bytes, and find what the naive difference is.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::encoding::Reader;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::model::fingerprint::{Digest, Fingerprint};
use crate::random::Random;
use crate::reconcile::describer::DescribeError;
use crate::reconcile::finder::FindError;
use crate::reconcile::{
    Answer, Batch, Block, Describer, Differences, Finder, Index, MAX_SYMBOLS, Method, Request, Run,
    Step, Symbol, model,
};

type Set = BTreeSet<Fingerprint>;

fn set(count: usize, random: &mut Random) -> Set {
    let mut half = || u128::from(random.next_u64());
    (0..count).map(|_| Fingerprint(half() << 64 | half())).collect()
}

fn sets(shared: usize, theirs: usize, ours: usize, seed: u64) -> [Set; 2] {
    let mut random = Random::new(seed);
    let [shared, mut theirs, mut ours] =
        [shared, theirs, ours].map(|count| set(count, &mut random));
    theirs.extend(&shared);
    ours.extend(&shared);
    [theirs, ours]
}

fn index_of(set: &Set) -> Index {
    Index::of_set(set.len() as u64, set.iter().copied())
}

/// What a conversation has come to.
#[derive(Debug, Default)]
struct Outcome {
    found: [Set; 2],
    methods: Vec<Method>,
    requests: usize,
    bytes: usize,
}

/// Lets the two sides converse; `between` may change their set between a request and its answer.
fn converse(mut theirs: Set, ours: &Set, mut between: impl FnMut(&mut Set, &mut Index)) -> Outcome {
    let mut index = index_of(&theirs);
    let mut finder = Finder::new(index.digest(), &index_of(ours));
    let mut describer = Describer::default();
    let mut outcome = Outcome::default();
    loop {
        if outcome.methods.last() != Some(&finder.method()) {
            outcome.methods.push(finder.method());
        }
        match finder.step() {
            Step::Done => return outcome,
            Step::Found(Differences { theirs, ours }) => {
                let [found_theirs, found_ours] = &mut outcome.found;
                assert!(theirs.into_iter().all(|fingerprint| found_theirs.insert(fingerprint)));
                assert!(ours.into_iter().all(|fingerprint| found_ours.insert(fingerprint)));
            }
            Step::Ask(request) => {
                outcome.requests += 1;
                assert_eq!(finder.step(), Step::Ask(request));
                let request = passed(request, Request::encode, Request::decode, &mut outcome.bytes);
                let answer = describer.answer(request, &theirs, &index).expect("it is in order");
                let answer = passed(answer, Answer::encode, Answer::decode, &mut outcome.bytes);
                finder.take(answer, ours).expect("it is what was asked for");
                between(&mut theirs, &mut index);
            }
        }
    }
}

/// A message that has gone over the wire.
fn passed<T: PartialEq + core::fmt::Debug>(
    message: T,
    encode: fn(&T, &mut Vec<u8>),
    decode: fn(&mut Reader<'_>) -> Result<T, crate::encoding::DecodeError>,
    passed_bytes: &mut usize,
) -> T {
    let mut bytes = Vec::new();
    encode(&message, &mut bytes);
    assert!(bytes.len() + 64 <= MAX_MESSAGE_BYTES);
    *passed_bytes += bytes.len();
    let mut from = Reader::new(&bytes);
    let decoded = decode(&mut from).expect("it was encoded just now");
    assert!(from.is_empty());
    assert_eq!(decoded, message);
    decoded
}

fn check(theirs: &Set, ours: &Set) -> Outcome {
    let outcome = converse(theirs.clone(), ours, |_, _| ());
    let Differences { theirs, ours } = model::differences(theirs, ours);
    assert_eq!(outcome.found, [theirs, ours].map(|side| side.into_iter().collect::<Set>()));
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_difference_is_found_whatever_the_method(
        shared in 1usize..2000,
        only_theirs in 0usize..600,
        only_ours in 0usize..600,
        seed: u64,
    ) {
        let [theirs, ours] = sets(shared, only_theirs, only_ours, seed);
        check(&theirs, &ours);
    }

    #[test]
    fn what_stays_is_found_although_the_set_changes_meanwhile(
        shared in 500usize..2000,
        only_theirs in 0usize..300,
        only_ours in 0usize..300,
        seed: u64,
    ) {
        let [theirs, ours] = sets(shared, only_theirs, only_ours, seed);
        let expected = model::differences(&theirs, &ours);
        let mut random = Random::new(seed ^ 1);
        let mut gone = Set::new();
        let outcome = converse(theirs, &ours, |theirs, index| {
            let new = set(5, &mut random);
            new.iter().for_each(|fingerprint| index.add(*fingerprint));
            theirs.extend(&new);
            let old = theirs.pop_first().expect("it holds hundreds");
            index.remove(old);
            gone.insert(old);
        });
        for fingerprint in expected.theirs {
            prop_assert!(outcome.found[0].contains(&fingerprint) || gone.contains(&fingerprint));
        }
        for fingerprint in expected.ours {
            prop_assert!(outcome.found[1].contains(&fingerprint));
        }
    }

    #[test]
    fn no_answers_whatever_make_a_finder_believe_a_fingerprint_twice(
        answers in prop::collection::vec(any_answer(), 1..30),
        (ours, theirs) in (0usize..300, 1u64..100_000),
        seed: u64,
    ) {
        let ours = set(ours, &mut Random::new(seed));
        let claimed = Digest { sum: 0, count: theirs };
        let mut finder = Finder::new(claimed, &index_of(&ours));
        let [mut found_theirs, mut found_ours] = [Set::new(), Set::new()];
        let mut answers = answers.into_iter();
        loop {
            match finder.step() {
                Step::Done => break,
                Step::Found(Differences { theirs, ours }) => {
                    for fingerprint in theirs {
                        prop_assert!(found_theirs.insert(fingerprint));
                    }
                    for fingerprint in ours {
                        prop_assert!(found_ours.insert(fingerprint));
                    }
                }
                Step::Ask(request) => {
                    let Some(answer) = answers.next() else { break };
                    if finder.take(fit(answer, request), &ours).is_err() {
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn no_requests_whatever_break_a_describer(
        requests in prop::collection::vec(any_request(), 1..30),
        seed: u64,
    ) {
        let theirs = set(100, &mut Random::new(seed));
        let index = index_of(&theirs);
        let mut describer = Describer::default();
        let mut passes = 0;
        for request in requests {
            let answer = describer.answer(request, &theirs, &index);
            match (request, answer) {
                (Request::Range { .. } | Request::Sorted { .. }, Ok(_)) => passes += 1,
                (_, Ok(Answer::Symbols { run, .. })) => prop_assert!(run.end() <= MAX_SYMBOLS),
                (_, Err(DescribeError::OutOfOrder)) => {}
                (request, answer) => prop_assert!(false, "{request:?}: {answer:?}"),
            }
        }
        prop_assert!(passes <= 30);
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    let after = || prop::option::of(any::<u128>().prop_map(Fingerprint));
    prop_oneof![
        (1usize..100).prop_map(|symbols| Request::Prefix { symbols }),
        (1usize..20_000).prop_map(|symbols| Request::Further { symbols }),
        (after(), 1usize..50, 1usize..100).prop_map(|(after, width, symbols)| Request::Range {
            after,
            width,
            symbols
        }),
        after().prop_map(|after| Request::Sorted { after }),
    ]
}

/// Answers of which each part alone is in order.
fn any_answer() -> impl Strategy<Value = Answer> {
    // Few, so that the same come again.
    let fingerprint = || (0u128..9).prop_map(|n| Fingerprint(n << 120 | n));
    let symbol = prop_oneof![
        1 => fingerprint().prop_map(Symbol::of),
        3 => Just(Symbol::ZERO),
    ];
    prop_oneof![
        3 => (prop::collection::vec(symbol, 1..100), fingerprint(), prop::bool::weighted(0.8))
            .prop_map(|(symbols, end, more)| {
                let end = Some(end).filter(|_| more);
                Answer::Symbols { run: Run { total: 10, start: 0, symbols }, end }
            }),
        1 => (prop::collection::btree_set(fingerprint(), 0..9), any::<bool>()).prop_map(
            |(fingerprints, last)| {
                let fingerprints = fingerprints.into_iter().collect();
                Answer::Sorted(Batch { fingerprints, last })
            }
        ),
    ]
}

/// Makes a random answer fit what was asked so far that it is looked at; for symbols, mostly those of a single
/// fingerprint that may lie anywhere.
fn fit(answer: Answer, request: Request) -> Answer {
    let Answer::Symbols { mut run, end } = answer else { return answer };
    let one = run.symbols[0];
    match request {
        Request::Prefix { symbols } => run.symbols.truncate(symbols),
        Request::Range { width, symbols, .. } => {
            run.total = width as u64;
            if let Some((fingerprint, _)) = one.only() {
                let mut block = Block::new(0..symbols);
                block.add(fingerprint);
                run.symbols = block.into_symbols();
            }
            run.symbols.resize(symbols, Symbol::ZERO);
            return Answer::Symbols { run, end };
        }
        Request::Further { .. } | Request::Sorted { .. } => {}
    }
    Answer::Symbols { run, end: None }
}

#[test]
fn a_few_differences_take_one_request() {
    let [theirs, ours] = sets(20_000, 3, 7, 1);
    let outcome = check(&theirs, &ours);
    assert_eq!(outcome.methods, [Method::Prefix]);
    assert_eq!(outcome.requests, 1);
    assert!(outcome.bytes < 1000, "{}", outcome.bytes);
}

#[test]
fn a_few_hundred_differences_take_a_few_requests_and_less_than_fifty_bytes_each() {
    let [theirs, ours] = sets(20_000, 200, 200, 1);
    let outcome = check(&theirs, &ours);
    assert!(outcome.bytes < 400 * 50, "{}", outcome.bytes);
    assert!(outcome.requests <= 5, "{}", outcome.requests);
}

#[test]
fn a_difference_beyond_the_live_index_is_found_in_ranges() {
    let [theirs, ours] = sets(30_000, 2500, 3000, 1);
    let outcome = check(&theirs, &ours);
    assert_eq!(outcome.methods, [Method::Prefix, Method::Ranges]);
    assert!(outcome.bytes < 5500 * 50, "{}", outcome.bytes);
}

#[test]
fn counts_that_differ_much_lead_to_ranges_at_once() {
    let [theirs, ours] = sets(24_000, 12_000, 10, 1);
    let outcome = check(&theirs, &ours);
    assert_eq!(outcome.methods, [Method::Ranges]);
    assert!(2 <= outcome.requests && outcome.requests < 8, "{}", outcome.requests);
    assert!(outcome.bytes < 12_010 * 48, "{}", outcome.bytes);
}

#[test]
fn sets_that_share_little_are_compared_as_they_are() {
    let [theirs, ours] = sets(1000, 9000, 9000, 1);
    let outcome = check(&theirs, &ours);
    assert_eq!(outcome.methods, [Method::Prefix, Method::Sorted]);
    assert!(outcome.bytes < 10_000 * 16 + 1000, "{}", outcome.bytes);
}

#[test]
fn small_sets_are_compared_as_they_are() {
    let [theirs, ours] = sets(10, 5, 7, 1);
    assert_eq!(check(&theirs, &ours).methods, [Method::Sorted]);
}

#[test]
fn an_index_out_of_step_does_not_keep_anything_from_being_found() {
    let [theirs, ours] = sets(5000, 20, 20, 1);
    let mut index = index_of(&theirs);
    let digest = index.digest();
    // Twice the same: symbol 0 tells of it in a way, but decoding never comes to an end.
    let first = *theirs.first().expect("it holds thousands");
    index.add(first);
    index.add(first);
    let mut finder = Finder::new(digest, &index_of(&ours));
    let mut describer = Describer::default();
    let mut found = [Set::new(), Set::new()];
    let mut methods = vec![finder.method()];
    loop {
        match finder.step() {
            Step::Done => break,
            Step::Found(differences) => {
                found[0].extend(differences.theirs);
                found[1].extend(differences.ours);
            }
            Step::Ask(request) => {
                let answer = describer.answer(request, &theirs, &index).expect("it is in order");
                finder.take(answer, &ours).expect("it is what was asked for");
                methods.push(finder.method());
            }
        }
    }
    let expected = model::differences(&theirs, &ours);
    assert_eq!(found, [expected.theirs, expected.ours].map(|side| side.into_iter().collect()));
    assert!(methods.contains(&Method::Ranges));
}

#[test]
fn a_request_that_goes_back_is_refused() {
    let theirs = set(100, &mut Random::new(1));
    let index = index_of(&theirs);
    let place = |n: u128| Some(Fingerprint(n << 64));
    let range = |n| Request::Range { after: place(n), width: 10, symbols: 10 };
    let sorted = |n| Request::Sorted { after: place(n) };
    for (first, second) in [
        (Request::Prefix { symbols: 1 }, Request::Prefix { symbols: 1 }),
        (range(2), range(2)),
        (range(2), range(1)),
        (range(2), Request::Prefix { symbols: 1 }),
        (sorted(2), sorted(1)),
        (sorted(2), range(3)),
        (sorted(2), Request::Further { symbols: 1 }),
    ] {
        let mut describer = Describer::default();
        assert!(describer.answer(first, &theirs, &index).is_ok());
        let second = describer.answer(second, &theirs, &index);
        assert_eq!(second, Err(DescribeError::OutOfOrder));
    }
    let further = Request::Further { symbols: 1 };
    let answer = Describer::default().answer(further, &theirs, &index);
    assert_eq!(answer, Err(DescribeError::OutOfOrder));
}

#[test]
fn an_answer_that_was_not_asked_for_is_refused() {
    let [theirs, ours] = sets(5000, 300, 300, 1);
    let index = index_of(&theirs);
    let run = |start, limit| index.run(start, limit);
    let symbols = |run| Answer::Symbols { run, end: None };
    let begun = || {
        let mut finder = Finder::new(index.digest(), &index_of(&ours));
        let Step::Ask(Request::Prefix { symbols: asked }) = finder.step() else {
            panic!("it begins with the live index");
        };
        (finder, asked)
    };
    let refused = |answer| {
        let (mut finder, _) = begun();
        matches!(finder.take(answer, &ours), Err(FindError::Unfit(_)))
    };
    let (mut finder, asked) = begun();
    assert!(!refused(symbols(run(0, asked))));
    assert!(refused(symbols(run(0, asked + 1))));
    assert!(refused(symbols(run(1, asked))));
    assert!(refused(Answer::Symbols { run: run(0, asked), end: Some(Fingerprint(1)) }));
    assert!(refused(Answer::Sorted(Batch { fingerprints: Vec::new(), last: true })));

    finder.take(symbols(run(0, asked)), &ours).expect("this was asked for");
    // Nothing was asked for yet.
    assert!(finder.take(symbols(run(asked, 1)), &ours).is_err());

    let (mut finder, asked) = begun();
    finder.take(symbols(run(0, asked)), &ours).expect("this was asked for");
    assert!(matches!(finder.step(), Step::Ask(Request::Further { .. })));
    let other = Run { total: 5301, ..run(asked, 1) };
    assert!(finder.take(symbols(other), &ours).is_err());
}
