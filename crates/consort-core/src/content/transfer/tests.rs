//! Providers of every kind, by seed: whatever they do, what somebody keeps arrives.

use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::content::ChunkHash;
use crate::content::exchange::Promise;
use crate::limits::{MAX_CHUNK_BYTES, MAX_CONTENT_MESSAGE_BYTES};

/// Providers that answer as they are told to, and everything that is checked on the way.
struct World {
    now: Instant,
    transfer: Transfer,
    random: Random,
    peers: BTreeMap<NodeId, Peer>,
    wanted: BTreeSet<ChunkRef>,
    arrived: BTreeSet<ChunkRef>,
    unavailable: Vec<ChunkRef>,
    faults: Vec<(NodeId, Fault)>,
}

#[derive(Default)]
struct Peer {
    up: bool,
    has: BTreeSet<ChunkRef>,
    lies: bool,
    stalls: bool,
    /// Forgets chunks and goes away.
    fickle: bool,
    requests: VecDeque<(u32, Vec<ChunkRef>)>,
}

fn chunk(n: u64) -> ChunkRef {
    let length = 1 + u32::try_from(n * 7919 % MAX_CHUNK_BYTES as u64).expect("below");
    ChunkRef { hash: ChunkHash::of(&n.to_le_bytes()), length }
}

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

impl World {
    fn new(seed: u64, peers: impl IntoIterator<Item = Peer>) -> Self {
        let mut world = Self {
            now: Instant(1),
            transfer: Transfer::new(NodeId([0xff; 16]), seed),
            random: Random::new(seed),
            peers: (0..).map(node).zip(peers).collect(),
            wanted: BTreeSet::new(),
            arrived: BTreeSet::new(),
            unavailable: Vec::new(),
            faults: Vec::new(),
        };
        let peers: Vec<_> = world.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| world.set_up(peer, true));
        world
    }

    fn set_up(&mut self, id: NodeId, up: bool) {
        let peer = self.peers.get_mut(&id).expect("it exists");
        peer.up = up;
        peer.requests.clear();
        if up {
            self.transfer.provider_up(self.now, id);
        } else {
            self.transfer.provider_down(self.now, id);
        }
        self.pump();
    }

    fn want(&mut self, chunks: impl IntoIterator<Item = ChunkRef>) {
        for chunk in chunks {
            self.wanted.insert(chunk);
            self.transfer.want(self.now, chunk, Urgency::Later);
        }
        self.pump();
    }

    fn pump(&mut self) {
        while let Some(effect) = self.transfer.poll(self.now) {
            match effect {
                Effect::Request { peer, id, chunks } => {
                    let peer = self.peers.get_mut(&peer).expect("it exists");
                    assert!(peer.up, "a peer is asked that is not there");
                    let sum: usize = chunks.iter().map(|chunk| chunk.length as usize).sum();
                    assert!(!chunks.is_empty() && chunks.len() <= MAX_REQUEST_CHUNKS);
                    assert!(sum <= MAX_CONTENT_MESSAGE_BYTES);
                    let mut asked = BTreeSet::new();
                    peer.requests.push_back((id, chunks));
                    for chunk in peer.requests.iter().flat_map(|(_, chunks)| chunks) {
                        assert!(asked.insert(*chunk), "a peer is asked twice at a time");
                    }
                }
                Effect::Drop { peer, fault } => {
                    self.peers.get_mut(&peer).expect("it exists").requests.clear();
                    self.faults.push((peer, fault));
                }
                Effect::Unavailable { chunk, .. } => self.unavailable.push(chunk),
            }
        }
    }

    /// One peer answers its oldest request.
    fn answer(&mut self, id: NodeId) {
        let peer = self.peers.get_mut(&id).expect("it exists");
        if peer.stalls {
            return;
        }
        let Some((request, chunks)) = peer.requests.pop_front() else { return };
        let mut outcomes = Vec::new();
        for chunk in &chunks {
            outcomes.push(match peer.has.contains(chunk) {
                _ if peer.lies && self.random.below(4) == 0 => Outcome::Wrong,
                true => Outcome::Arrived,
                false => Outcome::Missing,
            });
            if outcomes.last() == Some(&Outcome::Arrived) && self.wanted.contains(chunk) {
                self.arrived.insert(*chunk);
            }
        }
        self.transfer.answered(self.now, id, request, &outcomes);
        self.pump();
    }

    /// Anything that can happen.
    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(self.random.below(200_000));
        let at = usize::try_from(self.random.below(self.peers.len() as u64)).expect("small");
        let (&id, peer) = self.peers.iter_mut().nth(at).expect("it is in range");
        let fickle = peer.fickle && self.random.below(4) == 0;
        match self.random.below(16) {
            0 if fickle => {
                let up = !peer.up;
                self.set_up(id, up);
            }
            1 if fickle => drop(peer.has.pop_first()),
            2 if fickle && peer.up => {
                peer.requests.clear();
                self.transfer.failed(self.now, id);
            }
            3 if self.random.below(8) == 0 => {
                if let Some(at) = self.transfer.deadline() {
                    self.now = self.now.max(at);
                }
            }
            4 => {
                // Somebody changes their mind, and back.
                if let Some(chunk) = self.transfer.wants.keys().next().copied() {
                    self.transfer.cancel(chunk);
                    self.transfer.want(self.now, chunk, Urgency::Later);
                }
            }
            _ => self.answer(id),
        }
        if self.transfer.deadline().is_some_and(|at| at <= self.now) {
            self.transfer.on_deadline(self.now);
        }
        self.pump();
        self.check();
    }

    fn check(&self) {
        let transfer = &self.transfer;
        for ((of, order), chunk) in &transfer.queue {
            let want = &transfer.wants[chunk];
            assert_eq!((want.order, want.state), (*order, State::Queued(*of)));
        }
        for (at, chunk) in &transfer.later {
            assert_eq!(transfer.wants[chunk].later, Some(*at));
        }
        for (chunk, want) in &transfer.wants {
            assert!(want.later.is_none_or(|at| transfer.later.contains(&(at, *chunk))));
            match want.state {
                State::Queued(of) => assert!(transfer.queue.contains_key(&(of, want.order))),
                State::Coming(_) => assert!(want.later.is_some()),
                State::Asked(peer) => assert!(transfer.providers[&peer].has_asked(chunk)),
            }
        }
        transfer.providers.values().for_each(Provider::check);
    }

    fn is_done(&self) -> bool {
        self.transfer.wanted() == 0 && self.arrived == self.wanted
    }
}

fn holder(count: u64) -> Peer {
    Peer { has: (0..count).map(chunk).collect(), ..Peer::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn what_somebody_keeps_arrives_however_the_others_behave(
        seed: u64,
        count in 1u64..200,
        others in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..5),
    ) {
        let mut random = Random::new(seed);
        let mut peers = vec![holder(count)];
        for (lies, stalls, fickle) in others {
            let mut peer = Peer { lies, stalls, fickle, ..holder(count) };
            peer.has.retain(|_| random.below(3) != 0);
            peers.push(peer);
        }
        let mut world = World::new(seed, peers);
        world.want((0..count).map(chunk));
        let mut steps = 0;
        while !world.is_done() {
            world.step();
            steps += 1;
            prop_assert!(steps < 100_000, "{} of {count} arrived", world.arrived.len());
        }
    }
}

#[test]
fn several_providers_are_asked_at_once() {
    let mut world = World::new(3, [holder(400), holder(400), holder(400)]);
    world.want((0..400).map(chunk));
    (0..3).for_each(|n| world.answer(node(n)));
    assert!(world.peers.values().all(|peer| peer.requests.len() >= 3));
}

#[test]
fn of_several_who_is_new_or_was_not_asked_for_a_while_is_asked_for_one_chunk_first() {
    let (mut transfer, mut now) = (Transfer::new(node(9), 1), Instant(0));
    transfer.provider_up(now, node(1));
    transfer.provider_up(now, node(2));
    for round in 0..2 {
        (0..200).for_each(|n| transfer.want(now, chunk(200 * round + n), Urgency::Later));
        let first = [next_request(&mut transfer, &mut now), next_request(&mut transfer, &mut now)];
        assert_eq!((first.map(|(_, _, count)| count), transfer.poll(now)), ([1, 1], None));
        for (peer, id, _) in first {
            transfer.answered(now, peer, id, &[Outcome::Arrived]);
        }
        assert!(1 < next_request(&mut transfer, &mut now).2);
        transfer.provider_down(now, node(2));
        while transfer.wanted() != 0 {
            let (peer, id, count) = next_request(&mut transfer, &mut now);
            transfer.answered(now, peer, id, &vec![Outcome::Arrived; count]);
        }
        now = now + KNOWN_FOR;
        transfer.provider_up(now, node(2));
    }
}

#[test]
fn a_window_doubles_when_all_of_it_came_in_time_and_does_not_grow_if_it_is_not_in_use() {
    let (mut transfer, mut now) = (Transfer::new(node(9), 1), Instant(0));
    transfer.provider_up(now, node(1));
    (0..4000).for_each(|n| transfer.want(now, chunk(n), Urgency::Later));
    let ask_all = |transfer: &mut Transfer, now| {
        let mut asked = Vec::new();
        while let Some(Effect::Request { id, chunks, .. }) = transfer.poll(now) {
            asked.push((id, chunks.len()));
        }
        asked
    };
    let answer = |transfer: &mut Transfer, (id, count): (u32, usize), now| {
        transfer.answered(now, node(1), id, &vec![Outcome::Arrived; count]);
        transfer.providers[&node(1)].window()
    };
    let round = ask_all(&mut transfer, now);
    let (first, others) = round.split_first().expect("something is asked for");
    now = now + FAST_ANSWER;
    let window = answer(&mut transfer, *first, now);
    assert!(FIRST_WINDOW_BYTES < window && window < FIRST_WINDOW_BYTES * 3 / 2, "{window}");
    let mut rest = ask_all(&mut transfer, now);
    let window = others.iter().map(|request| answer(&mut transfer, *request, now)).last();
    let window = window.expect("there are others");
    assert!(FIRST_WINDOW_BYTES * 3 / 2 < window && window <= 2 * FIRST_WINDOW_BYTES, "{window}");
    // Nothing more is asked for: the last answers find little under way.
    let last = rest.pop().expect("there are several");
    let before = rest.into_iter().map(|request| answer(&mut transfer, request, now)).last();
    assert_eq!(before, Some(answer(&mut transfer, last, now)));
}

#[test]
fn what_others_were_to_fetch_is_asked_of_who_has_everything_when_little_else_is_under_way() {
    let (mut transfer, mut now) = (Transfer::new(node(9), 1), Instant(0));
    let (source, other) = (node(1), node(2));
    // The other one seems to fetch the same, and lacks all of it.
    transfer.provider_up(now, other);
    transfer.want(now, chunk(1000), Urgency::Later);
    let (_, id, _) = next_request(&mut transfer, &mut now);
    transfer.answered(now, other, id, &[Outcome::Missing]);
    assert_eq!(transfer.poll(now), Some(Effect::Unavailable { chunk: chunk(1000), lacking: 1 }));
    transfer.cancel(chunk(1000));
    transfer.provider_up(now, source);
    (0..600).for_each(|n| transfer.want(now, chunk(n), Urgency::Later));
    let ask_all = |transfer: &mut Transfer| {
        let mut of_source = Vec::new();
        while let Some(Effect::Request { peer, id, chunks }) = transfer.poll(now) {
            if peer == source {
                of_source.push((id, chunks));
            } else {
                transfer.answered(now, other, id, &vec![Outcome::Missing; chunks.len()]);
            }
        }
        of_source
    };
    let bytes =
        |chunks: &[ChunkRef]| chunks.iter().map(|chunk| chunk.length as usize).sum::<usize>();
    let spare = loop {
        let asked = ask_all(&mut transfer);
        let chunks: Vec<ChunkRef> = asked.iter().flat_map(|(_, chunks)| chunks.clone()).collect();
        if chunks.iter().any(|chunk| transfer.wants[chunk].order.passed_over) {
            break bytes(&chunks);
        }
        for (id, chunks) in asked {
            transfer.answered(now, source, id, &vec![Outcome::Arrived; chunks.len()]);
        }
    };
    let window = transfer.providers[&source].window();
    assert!(spare < window / 2 + MAX_CHUNK_BYTES, "{spare} of {window}");
    let left: Vec<ChunkRef> = transfer.wants.keys().copied().collect();
    assert!(window < bytes(&left), "all that is left is asked for");
}

#[test]
fn what_nobody_has_is_reported_once_a_round_and_asked_of_whoever_comes() {
    let mut world = World::new(1, [holder(0)]);
    world.want([chunk(0)]);
    world.answer(node(0));
    assert_eq!(world.unavailable, [chunk(0)]);
    world.now = world.transfer.deadline().expect("it will be asked for again");
    world.transfer.on_deadline(world.now);
    world.pump();
    assert_eq!(world.unavailable.len(), 1);
    world.answer(node(0));
    assert_eq!(world.unavailable.len(), 2);
    assert!(world.transfer.is_lacking() && world.transfer.is_lacked_by(node(0)));
    world.peers.insert(node(1), holder(1));
    world.set_up(node(1), true);
    assert!(!world.transfer.is_lacked_by(node(1)), "it has not answered yet");
    world.answer(node(1));
    assert!(!world.transfer.is_lacking());
    assert!(world.is_done() && world.transfer.deadline().is_none());
}

#[test]
fn what_is_wanted_while_nobody_is_there_is_reported_and_asked_of_the_first_to_come() {
    let mut world = World::new(1, []);
    world.want([chunk(0)]);
    assert_eq!(world.unavailable, [chunk(0)]);
    world.peers.insert(node(1), holder(1));
    world.set_up(node(1), true);
    world.answer(node(1));
    assert!(world.is_done());
}

#[test]
fn what_a_quiet_provider_is_asked_for_is_asked_of_others_and_later_it_is_given_up() {
    let mut world = World::new(1, [Peer { stalls: true, ..holder(100) }]);
    world.want((0..100).map(chunk));
    world.peers.insert(node(1), holder(100));
    world.set_up(node(1), true);
    let answer_all = |world: &mut World| {
        while !world.peers[&node(1)].requests.is_empty() {
            world.answer(node(1));
        }
    };
    answer_all(&mut world);
    assert!(!world.is_done());
    let asked_at = world.now;
    world.now = world.transfer.deadline().expect("somebody owes an answer");
    assert!(world.now <= asked_at + QUIET_AFTER);
    world.transfer.on_deadline(world.now);
    world.pump();
    assert_eq!(world.faults, []);
    answer_all(&mut world);
    assert!(world.is_done());
    world.now = world.transfer.deadline().expect("somebody still owes an answer");
    world.transfer.on_deadline(world.now);
    world.pump();
    assert_eq!(world.faults, [(node(0), Fault::TimedOut)]);
    assert!(world.transfer.providers[&node(0)].window() < FIRST_WINDOW_BYTES);
}

/// Lets time pass until a provider is asked for something.
fn next_request(transfer: &mut Transfer, now: &mut Instant) -> (NodeId, u32, usize) {
    loop {
        match transfer.poll(*now) {
            Some(Effect::Request { peer, id, chunks }) => return (peer, id, chunks.len()),
            Some(_) => {}
            None => {
                *now = transfer.deadline().expect("nobody will ever be asked again");
                transfer.on_deadline(*now);
            }
        }
    }
}

#[test]
fn what_is_urgent_is_asked_for_first_and_what_becomes_urgent_too() {
    use Urgency::{Later, Now, Soon};
    let (mut transfer, now) = (Transfer::new(node(9), 1), Instant(0));
    transfer.provider_up(now, node(1));
    let wants = [(0, Later), (1, Soon), (2, Now), (3, Later), (3, Now), (2, Later)];
    wants.into_iter().for_each(|(n, urgency)| transfer.want(now, chunk(n), urgency));
    let mut asked = Vec::new();
    while let Some(Effect::Request { peer, id, chunks }) = transfer.poll(now) {
        transfer.answered(now, peer, id, &vec![Outcome::Arrived; chunks.len()]);
        asked.extend(chunks);
    }
    assert_eq!(asked, [2, 3, 1, 0].map(chunk));
}

#[test]
fn what_somebody_waits_for_is_fetched_from_where_everything_is() {
    let (mut transfer, mut now) = (Transfer::new(node(9), 1), Instant(0));
    transfer.provider_up(now, node(1));
    // It seems to fetch the same.
    transfer.want(now, chunk(0), Urgency::Later);
    let (peer, id, _) = next_request(&mut transfer, &mut now);
    transfer.answered(now, peer, id, &[Outcome::Missing]);
    transfer.cancel(chunk(0));
    transfer.provider_up(now, node(2));
    (1..20).for_each(|n| transfer.want(now, chunk(n), Urgency::Now));
    let mut count = 0;
    while count < 19 {
        let (peer, id, chunks) = next_request(&mut transfer, &mut now);
        assert_eq!((peer, now), (node(2), Instant(0)));
        transfer.answered(now, peer, id, &vec![Outcome::Arrived; chunks]);
        count += chunks;
    }
}

#[test]
fn who_did_not_keep_a_promise_and_seems_to_have_everything_by_now_is_asked_again() {
    let (mut transfer, mut now) = (Transfer::new(node(9), 1), Instant(0));
    transfer.provider_up(now, node(1));
    transfer.want(now, chunk(0), Urgency::Later);
    let (peer, id, _) = next_request(&mut transfer, &mut now);
    transfer.answered(now, peer, id, &[Outcome::Coming(Promise::Direct)]);
    // It gives so much else that it seems to have everything.
    let others: Vec<_> = (1..600).map(chunk).collect();
    others.iter().for_each(|chunk| transfer.want(now, *chunk, Urgency::Later));
    while 1 < transfer.wanted() {
        let (peer, id, count) = next_request(&mut transfer, &mut now);
        transfer.answered(now, peer, id, &vec![Outcome::Arrived; count]);
    }
    assert_eq!(next_request(&mut transfer, &mut now).2, 1);
}

#[test]
fn what_a_quiet_provider_lacks_after_all_is_asked_for_again() {
    let (mut transfer, mut now) = (Transfer::new(node(9), 1), Instant(0));
    transfer.provider_up(now, node(1));
    transfer.want(now, chunk(0), Urgency::Later);
    let (peer, id, _) = next_request(&mut transfer, &mut now);
    now = now + QUIET_AFTER;
    transfer.on_deadline(now);
    transfer.answered(now, peer, id, &[Outcome::Missing]);
    assert_eq!(next_request(&mut transfer, &mut now).0, peer);
}

#[test]
fn a_provider_whose_answer_takes_long_and_comes_is_not_given_up_but_asked_for_less() {
    let mut world = World::new(1, [holder(200)]);
    world.want((0..200).map(chunk));
    let slow = Duration::from_secs(30);
    for _ in 0..30 {
        world.now = world.now + slow / 30;
        world.transfer.heard(world.now, node(0));
        if world.transfer.deadline().is_some_and(|at| at <= world.now) {
            world.transfer.on_deadline(world.now);
        }
        world.pump();
    }
    assert_eq!(world.faults, []);
    let before = world.transfer.providers[&node(0)].window();
    world.answer(node(0));
    assert!(world.transfer.providers[&node(0)].window() < before);
}

#[test]
fn a_provider_of_wrong_bytes_is_dropped_and_another_one_used() {
    let mut world = World::new(9, [holder(64), holder(64)]);
    world.want((0..64).map(chunk));
    let (id, chunks) = world.peers.get_mut(&node(0)).unwrap().requests.pop_front().unwrap();
    world.transfer.answered(world.now, node(0), id, &vec![Outcome::Wrong; chunks.len()]);
    world.pump();
    assert_eq!(world.faults, [(node(0), Fault::WrongBytes)]);
    assert!(world.peers[&node(0)].requests.is_empty());
    while !world.peers[&node(1)].requests.is_empty() {
        world.answer(node(1));
    }
    assert!(world.is_done());
}
