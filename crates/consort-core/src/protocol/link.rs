//! One link: the conversation with one peer about one dataset.
//!
//! A link is fed events and a [`View`], and appends what should happen to a list. Outgoing, it reads this side's feed
//! from where the peer is (`Link::pump`), bounded by a window of unacknowledged messages. Incoming, it works off an
//! inbox in order, so that a cursor never passes versions that have not arrived (`Link::work_off`). It never
//! writes to a store; it asks for commits, and acknowledges a message when they are durable.
//!
//! Here stands what a link is and what can happen to it. What it does then: `opening`, `comparing`, `sending`,
//! `receiving`, `checking`, `knowing`.

mod checking;
mod comparing;
mod knowing;
mod opening;
mod pace;
mod receiving;
mod sending;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::model::fingerprint::{Digest, Fingerprint, FingerprintKey};
use crate::model::frontier::Frontier;
use crate::model::hlc::Timestamp;
use crate::model::id::{AuthorId, NodeId};
use crate::model::key::Key;
use crate::model::vector::Dot;
use crate::model::version::Entry;
use crate::protocol::event::{Access, Now};
use crate::protocol::garbage::{Published, ToTell};
use crate::protocol::link::pace::Pace;
use crate::protocol::link::receiving::Announced;
use crate::protocol::message::{Hello, Message};
use crate::protocol::news::{Elsewhere, News};
use crate::protocol::window::{Inbox, Overrun, Window};
use crate::random::Random;
use crate::reconcile::{Describer, Finder, Method};
use crate::store::{Cursor, Epoch, Lesson, Sequence, StoreError, View};
use crate::time::Instant;

use knowing::Told;

/// A link that is about to bring everything and from which nothing was heard for so long is not relied on.
const STALLED: Duration = Duration::from_secs(2);

/// What a link asks for; [`Replica`](crate::protocol::Replica) adds the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Send(Message),
    Commit {
        entries: Vec<Entry>,
        cursor: Option<Cursor>,
    },
    Learn {
        lesson: Lesson,
    },
    /// Collect this far.
    Collect {
        frontier: Frontier,
    },
    /// Others published this, or say so. This replica's author is told with it.
    Hear {
        author: AuthorId,
        published: Vec<Published>,
    },
    BarrierReached {
        id: u64,
        head: Sequence,
    },
}

/// Why a link cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// The peer's fault.
    Peer(String),
    /// Our store's.
    Store(StoreError),
}

impl From<Overrun> for LinkError {
    fn from(Overrun: Overrun) -> Self {
        peer("it sends without waiting for acknowledgements".into())
    }
}

impl From<StoreError> for LinkError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// How far a link has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Hello is not answered yet.
    Greeting,
    /// The sides compare what they hold.
    Reconciling,
    /// One side is behind the other's feed.
    CatchingUp,
    /// Changes flow as they happen.
    Live,
    /// The peer's versions lie in the future of our clock, and wait until it is no longer so.
    Waiting,
}

/// What does not change during a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) peer: NodeId,
    /// What the peer may do, and what we may.
    pub(crate) theirs: Access,
    pub(crate) ours: Access,
    pub(crate) opener: bool,
    pub(crate) fingerprint_key: FingerprintKey,
}

#[derive(Debug)]
pub(crate) struct Link {
    ends: Ends,
    random: Random,
    state: State,
    conversation: u32,
    /// The next Hello asks for reconciliation.
    distrust: bool,
    /// How the sides differed when they compared last.
    compared: Option<Digest>,

    /// What other links do for this replica, and what all of them share: lent while an event is handled.
    elsewhere: Elsewhere,
    news: News,

    // Outgoing.
    /// How far the peer has, or is being sent, our feed.
    sent: Sequence,
    /// It has our feed up to here, since what came last it sent itself, and has not been told.
    unsaid: Option<Sequence>,
    /// Up to here the peer gets from others what it lacks: announce.
    backlog: Sequence,
    /// Up to here the peer gets what came from itself too, since it began with nothing.
    resent: Sequence,
    /// The peer lacks what this side has, and does not take it in this conversation, or was not given it.
    lacks_ours: bool,
    /// Announce instead of sending; the peer does so too.
    lazy: bool,
    announcing: Pace,
    /// The version that every link pushes, if this one has done so. And when the peer was asked to push again for it.
    flooded: Option<Dot>,
    chosen_at: Option<Instant>,
    /// The last turn ended before everything was sent.
    go_on_at: Option<Instant>,
    /// What the peer wants, and, while comparing, what only we have.
    giving: VecDeque<Fingerprint>,
    offering: VecDeque<Fingerprint>,
    in_flight: Window,
    /// What the peer wanted has a window of its own, since until it has that it takes in nothing else. It is
    /// acknowledged before the announcement that led to it, which is the oldest message in the other window.
    given_in_flight: Window,
    acknowledged: u64,

    // Incoming.
    inbox: Inbox,
    /// What we wanted: it comes before what is in the inbox.
    given: Inbox,
    /// Commits that were asked for and are not durable yet, oldest first, and what their versions weigh.
    outstanding: VecDeque<Outstanding>,
    outstanding_bytes: usize,
    /// How many stream messages are done with, how many of them were acknowledged, and what the others weigh.
    taken: u64,
    said_taken: u64,
    unsaid_bytes: usize,
    acknowledging: Pace,
    /// The feed of the peer, and how far it is applied durably.
    applied: Cursor,
    /// How far it will be when everything that was asked for is durable.
    applying: Sequence,
    /// How far the peer's feed is known to go.
    known: Sequence,
    /// The cursor in the store is behind `applied`.
    cursor_is_stale: bool,
    /// No cursor before this is stored. Who began with nothing gets what came from itself only as long as this
    /// conversation lasts: it must not go on from the middle in the next one.
    kept_from: Sequence,
    /// How far it went when the peer said Hello, and whether the peer was asked to announce all of that.
    begun: Sequence,
    asked_to_announce: bool,
    /// What was announced and is not here yet: everything that arrived later waits for it.
    announced: Option<Announced>,
    ask_at: Option<Instant>,
    /// A Want is out; when it is answered, the feed is applied this far.
    wanting: Option<Option<Sequence>>,
    /// How many versions it asked for and has not been given.
    ungiven: usize,
    ahead: bool,

    // What is accounted for.
    told: Told,
    /// How far the peer has collected, as far as it told.
    their_frontier: Frontier,
    /// The peer's frontier, while this side takes its state by difference.
    adopting: Option<Frontier>,
    /// While it does: what is on its way to the disk would escape the comparison. When all of it is there, the
    /// conversation begins again; until then nothing is taken in.
    unsettled: bool,
    /// This side may hold what is dead by its frontier, and the peer's is the same, so what the comparison shows the peer to
    /// lack is dead: so much was found so far, and not more than is remembered.
    buries: bool,
    dead: Vec<(Key, Dot)>,
    dead_bytes: usize,
    /// Whether the peer may hold what is dead as well.
    doubts: bool,
    /// Once the peer's feed is applied up to here, this side has all that the peer had when the two had compared: what the
    /// peer wrote meanwhile may have replaced what it lacks.
    concludes_at: Option<Sequence>,
    /// When that last came on. And until when the peer's state is not taken, after it did not.
    came_on_at: Instant,
    rests_until: Option<Instant>,
    /// Another link takes its peer's state by difference.
    held: bool,
    /// The replica forgets deletions, and listens to what others say of that.
    forgets: bool,
    tell_at: Option<Instant>,
    /// The latest time that lay ahead of our clock and was not taken. The peer will not say that again by itself.
    missed: Timestamp,

    /// When the event that is being handled happened.
    now: Now,
    /// When the peer last sent something.
    heard_at: Instant,
    check_at: Option<Instant>,
    /// Since when changes flow as they happen.
    live_since: Instant,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// Waiting for the peer's Hello; the opener has sent this one.
    Greeting {
        said: Option<Hello>,
    },
    /// The opener's side of reconciling: it describes what it holds.
    Describing {
        describer: Describer,
        begin: Begin,
    },
    /// The answerer's side: it compares. It has asked for a description, or is busy with what the last one showed.
    Comparing {
        finder: Box<Finder>,
        asked: bool,
        begin: Begin,
    },
    Live,
}

/// What the Hellos said when a comparison began.
#[derive(Clone, Copy, Debug)]
struct Begin {
    /// The end of the peer's feed.
    head: Sequence,
    /// How the sides differed.
    difference: Digest,
}

/// A commit or a lesson that was asked for and is not durable yet.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    bytes: usize,
    /// It answers a stream message, which is to be acknowledged.
    counts: bool,
    /// How many versions it held, if they were pushed without being asked for, and decide whether the link goes on so.
    decides: Option<usize>,
    /// How far the peer's feed is applied once it is durable.
    through: Option<Sequence>,
    /// It belongs to a conversation before this one, in which the peer's feed was of this epoch.
    inherited: Option<Epoch>,
    /// The peer's state has been taken by difference once it is durable.
    adopts: bool,
}

impl Link {
    pub(crate) fn new(ends: Ends, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let conversation = u32::try_from(random.below(1 << 32)).expect("it is below 2³²");
        Self {
            ends,
            random,
            state: State::Greeting { said: None },
            conversation,
            distrust: false,
            compared: None,
            elsewhere: Elsewhere::Nobody,
            news: News::default(),
            sent: Sequence(0),
            unsaid: None,
            backlog: Sequence(0),
            resent: Sequence(0),
            lacks_ours: false,
            lazy: false,
            announcing: Pace::default(),
            flooded: None,
            chosen_at: None,
            go_on_at: None,
            giving: VecDeque::new(),
            offering: VecDeque::new(),
            in_flight: Window::default(),
            given_in_flight: Window::default(),
            acknowledged: 0,
            inbox: Inbox::default(),
            given: Inbox::default(),
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            taken: 0,
            said_taken: 0,
            unsaid_bytes: 0,
            acknowledging: Pace::default(),
            applied: Cursor::default(),
            applying: Sequence(0),
            known: Sequence(0),
            cursor_is_stale: false,
            kept_from: Sequence(0),
            begun: Sequence(0),
            asked_to_announce: false,
            announced: None,
            ask_at: None,
            wanting: None,
            ungiven: 0,
            ahead: false,
            told: Told::default(),
            their_frontier: Frontier::new(),
            adopting: None,
            unsettled: false,
            buries: false,
            dead: Vec::new(),
            dead_bytes: 0,
            doubts: false,
            concludes_at: None,
            came_on_at: Instant(0),
            rests_until: None,
            held: false,
            forgets: false,
            tell_at: None,
            missed: Timestamp(0),
            now: Now::default(),
            heard_at: Instant(0),
            check_at: None,
            live_since: Instant(0),
            retry_at: None,
        }
    }

    /// Takes over commits that the link to this peer before had asked for, and that will be reported to this one.
    pub(crate) fn inherit(&mut self, commits: VecDeque<Outstanding>) {
        self.outstanding_bytes = commits.iter().map(|commit| commit.bytes).sum();
        self.outstanding = commits;
    }

    /// The commits that were asked for and not reported yet, which tell the peer nothing any more.
    pub(crate) fn take_outstanding(&mut self) -> VecDeque<Outstanding> {
        let epoch = self.applied.epoch;
        let inert = |Outstanding { bytes, inherited, .. }| Outstanding {
            bytes,
            inherited: inherited.or(Some(epoch)),
            ..Outstanding::default()
        };
        self.outstanding.drain(..).map(inert).collect()
    }

    /// An event is about to be handled: this is the time, this is what other links do, and what all of them know.
    pub(crate) fn lend(&mut self, now: Now, elsewhere: Elsewhere, news: News) {
        (self.now, self.elsewhere, self.news) = (now, elsewhere, news);
    }

    /// The event is handled.
    pub(crate) fn take_back(&mut self) -> News {
        core::mem::take(&mut self.news)
    }

    /// What this link does for the replica, as far as the others are concerned.
    pub(crate) fn does(&self, now: Instant) -> Elsewhere {
        // What a reader has is never taken.
        if self.ends.theirs == Access::Read {
            return Elsewhere::Nobody;
        }
        match self.state {
            // It waits for the others itself, or for a clock.
            _ if self.lazy || self.ahead || self.announced.is_some() => Elsewhere::Somebody,
            State::Greeting { .. } => Elsewhere::Somebody,
            State::Live if self.begun <= self.applied.sequence => Elsewhere::Pushing,
            State::Live if self.asked_to_announce || STALLED <= now.since(self.heard_at) => {
                Elsewhere::Somebody
            }
            State::Live => Elsewhere::CatchingUp,
            State::Describing { .. } | State::Comparing { .. } => Elsewhere::Pushing,
        }
    }

    pub(crate) fn on_message(
        &mut self,
        message: Message,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.heard_at = self.now.instant;
        self.take_in(message, view, to)?;
        self.acknowledge(false, to);
        Ok(())
    }

    fn take_in(
        &mut self,
        message: Message,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if brings_state(&message) {
            self.came_on_at = self.now.instant;
        }
        match message {
            Message::Hello(hello) => self.on_hello(hello, view, to),
            Message::Restart { reconcile } => self.on_restart(reconcile, view, to),
            Message::Reject { reason } => Err(peer(format!("the peer ended the link: {reason}"))),
            // Barriers belong to no conversation: whoever waits for one is not told of a new Hello. They are asked for all
            // links together, so what asks for one does not come here.
            Message::Flush { .. } => Ok(()),
            Message::Flushed { id, head } => {
                // What a reader changes is never taken, so there is nothing to wait for.
                let head = if self.ends.theirs == Access::Read { Sequence(0) } else { head };
                to.push(Ask::BarrierReached { id, head });
                Ok(())
            }
            // Whatever belongs to a conversation before the last Hello.
            _ if matches!(self.state, State::Greeting { .. }) => Ok(()),
            Message::Ack { count } => self.on_ack(count, view, to),
            Message::Want { fingerprints } => self.on_want(fingerprints, view, to),
            Message::Lazy { lazy } => {
                self.lazy = lazy;
                self.pump(view, to)
            }
            Message::Unwanted { fingerprints } => self.on_unwanted(fingerprints, view),
            Message::Describe(request) => self.on_describe(request, view, to),
            Message::Check { summary, applied } => self.on_check(summary, applied, view, to),
            Message::Given { .. } => {
                self.given.push(message, self.now.instant)?;
                self.work_off(view, to)
            }
            Message::Versions { .. }
            | Message::Have { .. }
            | Message::Description(_)
            | Message::Reconciled { .. }
            | Message::Frontier { .. }
            | Message::Known { .. } => {
                if let Message::Versions { through: Some(through), .. }
                | Message::Have { through, .. } = &message
                {
                    self.known = self.known.max(*through);
                }
                self.inbox.push(message, self.now.instant)?;
                self.work_off(view, to)
            }
        }
    }

    /// The oldest commit that was asked for is durable.
    pub(crate) fn on_committed(
        &mut self,
        stale: usize,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        // A commit of a conversation before the last Hello has nothing to report to.
        let Some(commit) = self.outstanding.pop_front() else { return Ok(()) };
        self.outstanding_bytes -= commit.bytes;
        self.came_on_at = self.now.instant;
        if self.may_be_lost(&commit) {
            // Both sides said what they hold before this was here, and the peer may have lost it since it sent it.
            self.resent = self.resent.max(view.summary().head.sequence);
        }
        if commit.adopts {
            self.adopting = None;
        }
        if let Some(through) = commit.through {
            self.applied.sequence = self.applied.sequence.max(through);
            self.conclude(to);
        }
        if commit.counts {
            self.take(commit.bytes);
        }
        if self.unsettled && self.outstanding.is_empty() {
            self.begin_again(true, view, to)?;
        }
        if let Some(pushed) = commit.decides {
            let was_known = pushed == stale && self.elsewhere != Elsewhere::Nobody;
            if was_known || self.lazy {
                to.push(Ask::Send(Message::Lazy { lazy: was_known }));
                self.chosen_at = self.lazy.then_some(self.now.instant).filter(|_| !was_known);
            }
            self.lazy = was_known;
        }
        self.work_off(view, to)?;
        self.acknowledge(false, to);
        Ok(())
    }

    /// Whether what a commit brings came from the peer in an earlier conversation, when its feed was another one: it may
    /// have lost it since.
    fn may_be_lost(&self, commit: &Outstanding) -> bool {
        commit.inherited.is_some_and(|epoch| epoch != self.applied.epoch)
    }

    /// Whether such a commit is not reported yet. The view may show it all the same, together with what was reported.
    fn awaits_what_may_be_lost(&self) -> bool {
        self.outstanding.iter().any(|commit| self.may_be_lost(commit))
    }

    /// This side's feed grew: there may be something to send, and what the peer has announced may be here now.
    pub(crate) fn on_grew(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        self.tell_soon();
        if self.announced.is_some() {
            self.work_off(view, to)?;
            self.acknowledge(false, to);
        }
        self.pump(view, to)
    }

    /// All that a barrier of the peer's waits for is here.
    pub(crate) fn answer_barrier(
        &mut self,
        id: u64,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        // Somebody waits until all of this is applied: nothing is put off.
        self.go_on_at = Some(self.now.instant);
        self.pump(view, to)?;
        let head = view.summary().head.sequence;
        to.push(Ask::Send(Message::Flushed { id, head }));
        Ok(())
    }

    /// This side learnt something: what waits for that can be believed now.
    pub(crate) fn on_learned(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.tell_soon();
        self.check_soon_what_is_dead(view);
        self.work_off(view, to)?;
        self.acknowledge(false, to);
        self.pump(view, to)
    }

    /// Whatever was due before `now`. `published` is what replicas say of themselves.
    pub(crate) fn on_deadline(
        &mut self,
        published: &ToTell,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let now = self.now.instant;
        let is_due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        let (retry, ask) = (is_due(&mut self.retry_at), is_due(&mut self.ask_at));
        if retry || ask {
            self.work_off(view, to)?;
        }
        if self.announcing.take_due(now) || self.go_on_at.is_some_and(|at| at <= now) {
            self.pump(view, to)?;
        }
        if self.gives_up_at().is_some_and(|at| at <= now) {
            self.give_up();
        }
        let acknowledge = self.acknowledging.take_due(now);
        self.acknowledge(acknowledge, to);
        if self.check_at.is_some_and(|at| at <= now) {
            self.check(view, to)?;
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell(published, view, to)?;
        }
        Ok(())
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let paced = [self.announcing.due(), self.acknowledging.due()];
        let others = [self.check_at, self.retry_at, self.ask_at, self.go_on_at, self.tell_at];
        paced.into_iter().chain(others).chain([self.gives_up_at()]).flatten().min()
    }

    /// How far the peer's feed has been applied durably here.
    pub(crate) fn applied(&self) -> Sequence {
        self.applied.sequence
    }

    /// Whether everything up to this place of the peer's feed is applied, and what came before the feed as well.
    pub(crate) fn has_applied(&self, head: Sequence) -> bool {
        let compares = matches!(self.state, State::Describing { .. } | State::Comparing { .. });
        !self.is_greeting() && !compares && head <= self.applied.sequence
    }

    pub(crate) fn is_greeting(&self) -> bool {
        matches!(self.state, State::Greeting { .. })
    }

    /// Whether what the peer has is taken.
    pub(crate) fn takes(&self) -> bool {
        self.ends.theirs != Access::Read
    }

    pub(crate) fn phase(&self, head: Sequence) -> Phase {
        match self.state {
            State::Greeting { .. } => Phase::Greeting,
            _ if self.ahead => Phase::Waiting,
            State::Describing { .. } | State::Comparing { .. } => Phase::Reconciling,
            State::Live if self.behind(head) == 0 && self.lacks() == 0 => Phase::Live,
            State::Live => Phase::CatchingUp,
        }
    }

    /// How the sides compare what they hold, while they do and once it is decided.
    pub(crate) fn method(&self) -> Option<Method> {
        match &self.state {
            State::Describing { describer, .. } => describer.method(),
            State::Comparing { finder, .. } => Some(finder.method()),
            State::Greeting { .. } | State::Live => None,
        }
    }

    /// How many places of the peer's feed are known of and not applied here yet.
    pub(crate) fn lacks(&self) -> u64 {
        // What a reader has is never taken.
        if self.takes() { self.known.0.saturating_sub(self.applied.sequence.0) } else { 0 }
    }

    /// How many places of our feed the peer has not been sent, and how many messages it has not acknowledged.
    pub(crate) fn behind(&self, head: Sequence) -> u64 {
        let unsent = head.0.saturating_sub(self.sent.0);
        let in_flight = self.in_flight.len() + self.given_in_flight.len();
        let behind = unsent + in_flight as u64 + u64::from(self.lacks_ours);
        if self.ends.ours == Access::Read { 0 } else { behind }
    }
}

/// Whether a message may belong to the transfer of the peer's state.
fn brings_state(message: &Message) -> bool {
    matches!(
        message,
        Message::Hello(_)
            | Message::Describe(_)
            | Message::Description(_)
            | Message::Want { .. }
            | Message::Unwanted { .. }
            | Message::Given { .. }
            | Message::Versions { .. }
            | Message::Reconciled { .. }
    )
}

fn peer(reason: String) -> LinkError {
    LinkError::Peer(reason)
}
