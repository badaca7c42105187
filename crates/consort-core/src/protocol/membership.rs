//! Who is there, and whom to be connected with: a pure machine, as everything in this crate.
//!
//! Who *belongs* to the cluster, its facts say ([`Event::Members`]). Who of them is *there*, the members find out
//! together by SWIM (the `foca` crate): each asks a random one now and then, asks others to ask for it when no answer
//! comes, and what is found out travels along with these datagrams. From those who are there, each member chooses a
//! few *neighbours* at random; links, and so changes, flow between neighbours only. What a member tells about itself
//! (its [`News`]) travels with the datagrams too, so that each knows how all of them stand.
//!
//! # How to drive it
//! ```text
//!   Membership::new(own, started, seed, now)      started: rises with every start of the process
//!   handle(Event::Members{..})                    the facts, again whenever they change
//!   handle(Event::...), carry out the effects     until the end; Event::DeadlinePassed at deadline()
//! ```
//! - [`Effect::Connect`]: be connected with this member from now on: dial, again after failures and losses, report
//!   [`Event::Unreachable`] for an attempt that failed and [`Event::Connected`] when there is a connection, whoever
//!   made it. [`Effect::Disconnect`] ends that, and the connection, if there is one.
//! - A connection carries the links of the datasets only between [`Effect::Open`] and [`Effect::Close`]; both ends agree
//!   about that by [`Word`]s, which travel on the connection in order with the links' messages. The cluster's own
//!   dataset has a link on every connection.
//! - [`Effect::Send`] is a datagram: it may be lost, doubled, overtaken. It must arrive as coming from its sender or not at all.
//!   A simulation of thousands that needs neighbours only, and knows failures otherwise, may keep
//!   [`Event::Standing`] to itself: nothing is told then, and what each keeps of the others stays small.
//! - A member whose address is not known yet is said to be so ([`Member::dialable`]); addresses are among the news.
//! - Time never goes back, and starts late enough that nothing happened before.
//!
//! `swim` wraps foca, `wire` is the bytes, `news` what members tell about themselves, `neighbours` the choice.

mod neighbours;
mod news;
mod swim;
mod wire;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::model::id::NodeId;
use crate::random::Random;
use crate::time::Instant;

use neighbours::Neighbours;
use news::Board;
use swim::Swim;

pub use neighbours::{GREATEST_DEGREE, GREATEST_NEEDY_DEGREE, LEAST_DEGREE, MAX_FULL_MESH};
pub use news::{DatasetNews, MAX_NEWS_DATASETS, News};
pub use wire::MAX_DATAGRAM_BYTES;

/// How often a node looks for members that it does not see: at first, until it sees any, and then.
const SEEK_AT_FIRST: Duration = Duration::from_secs(1);
/// See [`SEEK_AT_FIRST`].
const SEEK_EVERY: Duration = Duration::from_secs(5);
/// How many of them it calls at a time at first.
const SEEK_AT_ONCE: usize = 3;
/// How often what there is to tell is told to a few random members, beside what probes carry. It bounds a node's traffic:
/// what does not fit waits.
const GOSSIP_EVERY: Duration = Duration::from_millis(500);
/// How often neighbours are looked over.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A member, as far as the choice of neighbours is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// It passes on what it receives: it is no reader.
    pub passes_on: bool,
    /// It is known where it can be reached. Others have to wait until it connects by itself.
    pub dialable: bool,
}

/// What the two ends of a connection say to each other about being neighbours, in order with the links' messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Be my neighbour. `needy`: nobody passes on anything to me yet.
    Ask {
        /// See above.
        needy: bool,
    },
    /// We are neighbours from here on.
    Accept,
    /// There are enough of them.
    Refuse,
    /// We are neighbours no more.
    End,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Who belongs to the cluster, this node or not. Replaces what was said before.
    Members {
        /// All of them.
        members: Vec<Member>,
    },
    /// A connection stands. It replaces another with the same peer, whose end was reported.
    Connected {
        /// With whom.
        peer: Member,
        /// Whether this side made it.
        dialed: bool,
    },
    /// A connection is gone, not by [`Effect::Disconnect`].
    Disconnected {
        /// With whom.
        peer: NodeId,
    },
    /// An attempt to connect failed.
    Unreachable {
        /// With whom.
        peer: NodeId,
    },
    /// A datagram came, and it is certain from whom.
    Received {
        /// From whom.
        from: NodeId,
        /// What.
        datagram: Vec<u8>,
    },
    /// A word came on a connection.
    Told {
        /// By whom.
        peer: NodeId,
        /// What.
        word: Word,
    },
    /// How this node stands: the answer to [`Effect::Report`].
    Standing {
        /// What to tell the others.
        news: News,
    },
    /// The deadline has passed.
    DeadlinePassed,
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a datagram of at most [`MAX_DATAGRAM_BYTES`]. Over the connection, if there is one and nothing better.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        datagram: Vec<u8>,
    },
    /// Say a word on the connection.
    Tell {
        /// To whom.
        peer: NodeId,
        /// What.
        word: Word,
    },
    /// Be connected with this member, until [`Disconnect`](Self::Disconnect).
    Connect {
        /// With whom.
        peer: NodeId,
    },
    /// End the connection, and dial no more. Its end is not to be reported.
    Disconnect {
        /// With whom.
        peer: NodeId,
    },
    /// Open links of all datasets on the connection.
    Open {
        /// With whom.
        peer: NodeId,
    },
    /// Close them, except the cluster's own. Follows also when the connection was lost.
    Close {
        /// With whom.
        peer: NodeId,
    },
    /// Say how this node stands, by [`Event::Standing`].
    Report,
}

/// Whether a member is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It was heard of, and nobody doubts it.
    Alive,
    /// It did not answer, and has not objected yet.
    Suspected,
    /// It does not answer.
    Gone,
    /// Nothing was heard of it since this node started.
    Unheard,
}

/// What is known of a member.
#[derive(Clone, Debug)]
pub struct MemberReport<'m> {
    /// Who.
    pub node: NodeId,
    /// Whether it is there.
    pub liveness: Liveness,
    /// Since when that is so, as far as this node knows.
    pub since: Instant,
    /// It is this node's neighbour.
    pub neighbour: bool,
    /// There is a connection with it.
    pub connected: bool,
    /// What it told of itself, and when that came here.
    pub news: Option<(Instant, &'m News)>,
}

/// The members of a cluster as one of them sees them.
#[derive(Debug)]
pub struct Membership {
    own: Member,
    random: Random,
    members: BTreeMap<NodeId, Known>,
    swim: Swim,
    board: Board,
    neighbours: Neighbours,
    seek_at: Instant,
    gossip_at: Instant,
    look_at: Instant,
    report_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    member: Member,
    liveness: Liveness,
    since: Instant,
    /// The cluster's facts name it; otherwise only its certificate does.
    in_facts: bool,
}

impl Membership {
    /// A member that has heard of nobody. `started` tells this process from its predecessors with the same identity, and is higher
    /// than theirs; `seed` decides all randomness.
    pub fn new(own: Member, started: u32, seed: u64, now: Instant) -> Self {
        let mut random = Random::new(seed);
        let swim = Swim::new(own.node, started, random.next_u64());
        let neighbours = Neighbours::new(own, random.next_u64(), now);
        // Nodes that were started together do not go on in step.
        let jitter = Duration::from_millis(random.below(500));
        Self {
            own,
            random,
            members: BTreeMap::new(),
            swim,
            board: Board::new(own.node, started),
            neighbours,
            seek_at: now,
            gossip_at: now + GOSSIP_EVERY + jitter,
            look_at: now,
            report_at: now + LOOK_EVERY + jitter,
        }
    }

    /// Handles one event and appends what should happen to `effects`.
    pub fn handle(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Members { members } => self.on_members(&members, now),
            Event::Connected { peer, dialed } => {
                self.know(peer, now);
                self.neighbours.on_connected(peer, dialed, now, effects);
                // Each takes the other for alive from here on.
                self.swim.announce(peer.node, now);
            }
            Event::Disconnected { peer } => self.neighbours.on_disconnected(peer, now, effects),
            Event::Unreachable { peer } => self.neighbours.on_unreachable(peer, now, effects),
            Event::Received { from, datagram } => self.on_datagram(from, &datagram, now),
            Event::Told { peer, word } => {
                self.neighbours.on_word(peer, word, now, effects);
                if self.neighbours.is_open(peer) {
                    // It may be the last that this node waited for.
                    self.look_at = now;
                }
            }
            Event::Standing { mut news } => {
                news.links = u16::try_from(self.neighbours.open().count()).unwrap_or(u16::MAX);
                news.sources = u16::try_from(self.neighbours.sources()).unwrap_or(u16::MAX);
                self.board.post(news, self.members.len(), now);
            }
            Event::DeadlinePassed => {}
        }
        self.on_time(now, effects);
        self.send(effects);
    }

    /// When [`Event::DeadlinePassed`] is due.
    pub fn deadline(&self) -> Instant {
        let own = [self.seek_at, self.gossip_at, self.look_at, self.report_at];
        let own = own.into_iter().min().unwrap_or_default();
        self.swim.deadline().map_or(own, |at| at.min(own))
    }

    /// With whom this node shares links, in order.
    pub fn neighbours(&self) -> impl Iterator<Item = NodeId> {
        self.neighbours.open()
    }

    /// Whether this node has the neighbours that it can have now; until then, it may not be reached by what others write.
    pub fn is_settled(&self) -> bool {
        self.neighbours.is_settled()
    }

    /// What is known of all members but this node, in order.
    pub fn members(&self) -> impl Iterator<Item = MemberReport<'_>> {
        self.members.values().map(|known| {
            let node = known.member.node;
            let connected = self.neighbours.is_connected(node);
            MemberReport {
                node,
                // A connection is a sign of life, whatever becomes of datagrams.
                liveness: if connected { Liveness::Alive } else { known.liveness },
                since: known.since,
                neighbour: self.neighbours.is_open(node),
                connected,
                news: self.board.of(node),
            }
        })
    }

    fn on_members(&mut self, members: &[Member], now: Instant) {
        for known in self.members.values_mut() {
            known.in_facts = false;
        }
        for member in members.iter().filter(|member| member.node != self.own.node) {
            let unheard =
                Known { member: *member, liveness: Liveness::Unheard, since: now, in_facts: true };
            let known = self.members.entry(member.node).or_insert_with(|| {
                // Foca may have heard of it before the facts came.
                self.swim.report_again(member.node);
                unheard
            });
            (known.member, known.in_facts) = (*member, true);
        }
        self.prune();
        self.swim.resize(self.members.len() + 1);
        self.look_at = now;
        self.update_liveness(now);
    }

    /// Somebody whose certificate says that it is a member.
    fn know(&mut self, member: Member, now: Instant) {
        let unheard = Known { member, liveness: Liveness::Unheard, since: now, in_facts: false };
        let swim = &mut self.swim;
        let known = self.members.entry(member.node).or_insert_with(|| {
            swim.report_again(member.node);
            unheard
        });
        known.member = member;
        self.board.keep(self.members.keys().copied());
    }

    /// Forgets whom neither the facts nor a connection name.
    fn prune(&mut self) {
        let neighbours = &self.neighbours;
        self.members.retain(|node, known| known.in_facts || neighbours.is_connected(*node));
        self.board.keep(self.members.keys().copied());
    }

    fn on_datagram(&mut self, from: NodeId, datagram: &[u8], now: Instant) {
        // What is broken, or claims to come from another, has no effect.
        let Some((swim, news)) = wire::split(datagram) else { return };
        if !self.members.contains_key(&from) || wire::sender(swim) != Some(from) {
            return;
        }
        if self.swim.receive(swim, now).is_ok() {
            self.board.receive(news, now);
            self.update_liveness(now);
        }
    }

    /// Takes over what foca thinks, and what connections prove.
    fn update_liveness(&mut self, now: Instant) {
        for (node, found) in self.swim.take_changes() {
            let Some(known) = self.members.get_mut(&node) else { continue };
            let was = known.liveness;
            if found != was {
                (known.liveness, known.since) = (found, now);
            }
            if found == Liveness::Alive && was != Liveness::Suspected {
                self.neighbours.on_found(node);
            }
            if found == Liveness::Alive && was == Liveness::Gone {
                self.neighbours.on_returned(node, now);
            }
        }
    }

    fn on_time(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let connected = &self.neighbours;
        self.swim.on_time(now, |node| connected.is_connected(node));
        if self.seek_at <= now {
            self.seek(now);
        }
        if self.gossip_at <= now {
            self.gossip_at = now + GOSSIP_EVERY;
            if self.board.has_something_to_tell() || self.swim.has_something_to_tell() {
                self.swim.gossip(now);
            }
        }
        if self.report_at <= now {
            self.report_at = now + Board::pace(self.members.len());
            effects.push(Effect::Report);
        }
        self.update_liveness(now);
        if self.look_at <= now {
            self.look_at = now + LOOK_EVERY;
            let (members, board) = (&self.members, &self.board);
            let view =
                |node: NodeId| members.get(&node).map(|known| (known.member, known.liveness));
            let all = members.values().map(|known| known.member.node);
            let news = |node: NodeId| board.of(node).map(|(_, news)| news);
            self.neighbours.look(all, view, news, now, effects);
            if members.values().any(|known| !known.in_facts) {
                self.prune();
            }
        }
    }

    /// Calls some that foca does not see: the first contact, and how the halves of a cluster that was split find each other again.
    fn seek(&mut self, now: Instant) {
        let unseen: Vec<NodeId> = self
            .members
            .values()
            .filter(|known| matches!(known.liveness, Liveness::Gone | Liveness::Unheard))
            .map(|known| known.member.node)
            .collect();
        let lonely = unseen.len() == self.members.len();
        let (calls, pause) = if lonely { (SEEK_AT_ONCE, SEEK_AT_FIRST) } else { (1, SEEK_EVERY) };
        for _ in 0..calls.min(unseen.len()) {
            let choice = self.random.below(unseen.len() as u64);
            self.swim.announce(unseen[usize::try_from(choice).unwrap_or(0)], now);
        }
        let jitter = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX) / 4;
        self.seek_at = now + pause + Duration::from_micros(self.random.below(jitter));
        // Most are unheard of after a start: somebody who sees more of them tells many at once.
        if !lonely && self.members.len() < 2 * unseen.len() {
            self.swim.announce_to_any(now);
        }
    }

    /// Completes what foca sends with news.
    fn send(&mut self, effects: &mut Vec<Effect>) {
        for (to, swim) in self.swim.take_sends() {
            // Foca may still talk of one that is a member no more.
            if self.members.contains_key(&to) {
                let mut datagram = wire::join(&swim);
                self.board.fill(&mut datagram, self.members.len());
                effects.push(Effect::Send { to, datagram });
            }
        }
    }
}
