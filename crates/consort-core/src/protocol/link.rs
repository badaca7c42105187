//! One link: the conversation with one peer about one dataset.
//!
//! A link is fed events and a [`View`], and appends what should happen to a list. Outgoing, it reads this side's feed
//! from where the peer is (`Link::pump`), bounded by a window of unacknowledged messages. Incoming, it works off an
//! inbox in order, so that a cursor never passes versions that have not arrived (`Link::work_off`). It never
//! writes to a store; it asks for commits, and acknowledges a message when they are durable.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_VERSIONS};
use crate::model::canonical;
use crate::model::fingerprint::{Fingerprint, FingerprintKey};
use crate::model::id::NodeId;
use crate::model::version::Entry;
use crate::protocol::event::{Access, Now};
use crate::protocol::message::{FEATURES, Hello, Message, PROTOCOL_VERSION};
use crate::protocol::window::{self, Inbox, Overrun, Window};
use crate::random::Random;
use crate::reconcile::{Comparison, Offer};
use crate::store::{Cursor, FeedRow, Sequence, StoreError, Summary, View};
use crate::time::{Instant, WallTime};

/// What a link asks for; [`Replica`](crate::protocol::Replica) adds the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Send(Message),
    Commit { entries: Vec<Entry>, cursor: Option<Cursor> },
    FlushDirectory { id: u64 },
    BarrierReached { id: u64, head: Sequence },
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

/// How long a quiet link waits before it checks that both sides hold the same: at least, and how much is random.
const CHECK_AFTER: Duration = Duration::from_secs(15);
const CHECK_JITTER: Duration = Duration::from_secs(30);
/// The first check of a link comes soon, since what a crash left behind shows then.
const FIRST_CHECK_AFTER: Duration = Duration::from_secs(1);
/// How often versions that lie too far ahead are looked at again.
const RETRY_AHEAD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Link {
    ends: Ends,
    random: Random,
    state: State,
    conversation: u32,
    /// The next Hello asks for reconciliation.
    distrust: bool,

    // Outgoing.
    /// How far the peer has, or is being sent, our feed.
    sent: Sequence,
    /// Up to here the peer gets what came from itself too, since it began with nothing.
    resent: Sequence,
    /// Announce instead of sending.
    lazy: bool,
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
    /// How many stream messages are done with.
    taken: u64,
    /// The feed of the peer, and how far it is applied durably.
    applied: Cursor,
    /// How far it will be when everything that was asked for is durable.
    applying: Sequence,
    /// How far the peer's feed is known to go.
    known: Sequence,
    /// The cursor in the store is behind `applied`.
    cursor_is_stale: bool,
    /// A Want is out; when it is answered, the feed is applied this far.
    wanting: Option<Option<Sequence>>,
    ahead: bool,

    /// When the event that is being handled happened.
    now: Now,
    check_at: Option<Instant>,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// Waiting for the peer's Hello; the opener has sent this one.
    Greeting {
        said: Option<Hello>,
    },
    /// The opener's side of reconciling: it describes what it holds.
    Offering {
        offer: Offer,
        theirs: Hello,
    },
    /// The answerer's side: it compares, batch by batch.
    Comparing {
        comparison: Comparison,
        batch_is_last: bool,
        asked: bool,
        theirs: Hello,
    },
    Live,
}

#[derive(Debug)]
struct Outstanding {
    bytes: usize,
    /// It answers a stream message, which is to be acknowledged.
    counts: bool,
    /// How many versions it held, if they were pushed without being asked for.
    pushed: Option<usize>,
    /// How far the peer's feed is applied once it is durable.
    through: Option<Sequence>,
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
            sent: Sequence(0),
            resent: Sequence(0),
            lazy: false,
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
            applied: Cursor::default(),
            applying: Sequence(0),
            known: Sequence(0),
            cursor_is_stale: false,
            wanting: None,
            ahead: false,
            now: Now::default(),
            check_at: None,
            retry_at: None,
        }
    }

    /// Takes over commits that the link to this peer before had asked for, and that will be reported to this one.
    pub(crate) fn inherit(&mut self, outstanding: usize) {
        let inert = || Outstanding { bytes: 0, counts: false, pushed: None, through: None };
        self.outstanding.extend(core::iter::repeat_with(inert).take(outstanding));
    }

    /// How many commits were asked for and not reported yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// The link's first words. The answerer asks for a Hello, and the opener waits for that; but if the connection
    /// stood before the opener had the dataset, that request is gone, and it speaks by itself.
    pub(crate) fn begin(
        &mut self,
        standing: bool,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if !self.ends.opener {
            to.push(Ask::Send(Message::Restart { reconcile: false }));
        } else if standing {
            self.say_hello(view, to)?;
        }
        Ok(())
    }

    pub(crate) fn on_message(
        &mut self,
        message: Message,
        now: Now,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.now = now;
        match message {
            Message::Hello(hello) => self.on_hello(hello, view, to),
            Message::Restart { reconcile } => self.on_restart(reconcile, view, to),
            Message::Reject { reason } => Err(peer(format!("the peer ended the link: {reason}"))),
            // Barriers belong to no conversation: whoever waits for one is not told of a new Hello.
            Message::Flush { id } => {
                to.push(Ask::FlushDirectory { id });
                Ok(())
            }
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
            Message::Lazy => {
                self.lazy = true;
                Ok(())
            }
            Message::More => self.on_more(view, to),
            Message::Check { summary, applied } => self.on_check(summary, applied, view, to),
            Message::Given { .. } => {
                self.given.push(message)?;
                self.work_off(view, to)
            }
            Message::Versions { .. }
            | Message::Have { .. }
            | Message::Fingerprints(_)
            | Message::Reconciled => {
                if let Message::Versions { through: Some(through), .. }
                | Message::Have { through, .. } = &message
                {
                    self.known = self.known.max(*through);
                }
                self.inbox.push(message)?;
                self.work_off(view, to)
            }
        }
    }

    /// The oldest commit that was asked for is durable.
    pub(crate) fn on_committed(
        &mut self,
        stale: usize,
        now: Now,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.now = now;
        // A commit of a conversation before the last Hello has nothing to report to.
        let Some(commit) = self.outstanding.pop_front() else { return Ok(()) };
        self.outstanding_bytes -= commit.bytes;
        if let Some(through) = commit.through {
            self.applied.sequence = self.applied.sequence.max(through);
        }
        if commit.counts {
            self.take(to);
        }
        if commit.pushed.is_some_and(|pushed| pushed != 0 && pushed == stale) {
            to.push(Ask::Send(Message::Lazy));
        }
        self.work_off(view, to)
    }

    /// This side's feed grew, or there is room in the window: sends what there is to send.
    pub(crate) fn pump(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        while !self.giving.is_empty() && self.given_in_flight.has_room() {
            let entries = take_entries(&mut self.giving, view)?;
            let message = Message::Given { entries, more: !self.giving.is_empty() };
            self.given_in_flight.add(&message);
            to.push(Ask::Send(message));
        }
        // What the peer wanted comes before what it will have to wait with anyway.
        while self.giving.is_empty() && self.in_flight.has_room() {
            if !self.offering.is_empty() {
                let entries = take_entries(&mut self.offering, view)?;
                self.send_counted(Message::Versions { entries, through: None }, to);
                if self.offering.is_empty() {
                    self.advance_comparison(view, to)?;
                }
            } else if !self.pump_feed(view, to)? {
                break;
            }
        }
        Ok(())
    }

    /// The linked directory is flushed, as the peer asked.
    pub(crate) fn on_directory_flushed(&self, id: u64, view: &impl View, to: &mut Vec<Ask>) {
        let head = view.summary().head.sequence;
        to.push(Ask::Send(Message::Flushed { id, head }));
    }

    /// Whatever was due before `now`.
    pub(crate) fn on_deadline(
        &mut self,
        now: Now,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.now = now;
        if self.retry_at.is_some_and(|at| at <= now.instant) {
            self.retry_at = None;
            self.work_off(view, to)?;
        }
        if self.check_at.is_some_and(|at| at <= now.instant) {
            self.schedule_check();
            if self.cursor_is_stale && self.outstanding.is_empty() {
                self.commit(Vec::new(), Some(self.applied.sequence), false, None, to);
            }
            let summary = view.summary();
            if self.is_quiet(&summary) {
                to.push(Ask::Send(Message::Check { summary, applied: self.applied.sequence }));
            }
        }
        Ok(())
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.check_at, self.retry_at].into_iter().flatten().min()
    }

    /// How far the peer's feed has been applied durably here.
    pub(crate) fn applied(&self) -> Sequence {
        self.applied.sequence
    }

    pub(crate) fn phase(&self, head: Sequence) -> Phase {
        match self.state {
            State::Greeting { .. } => Phase::Greeting,
            _ if self.ahead => Phase::Waiting,
            State::Offering { .. } | State::Comparing { .. } => Phase::Reconciling,
            State::Live if self.behind(head) == 0 && self.lacks() == 0 => Phase::Live,
            State::Live => Phase::CatchingUp,
        }
    }

    /// How many places of the peer's feed are known of and not applied here yet.
    pub(crate) fn lacks(&self) -> u64 {
        // What a reader has is never taken.
        let taken = self.ends.theirs != Access::Read;
        if taken { self.known.0.saturating_sub(self.applied.sequence.0) } else { 0 }
    }

    /// How many places of our feed the peer has not been sent, and how many messages it has not acknowledged.
    pub(crate) fn behind(&self, head: Sequence) -> u64 {
        let unsent = head.0.saturating_sub(self.sent.0);
        let in_flight = self.in_flight.len() + self.given_in_flight.len();
        if self.ends.ours == Access::Read { 0 } else { unsent + in_flight as u64 }
    }

    // ---- Greeting ----

    fn say_hello(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        self.conversation = self.conversation.wrapping_add(1);
        let hello = self.hello(view)?;
        self.forget_conversation();
        self.state = State::Greeting { said: Some(hello) };
        to.push(Ask::Send(Message::Hello(hello)));
        Ok(())
    }

    fn hello(&self, view: &impl View) -> Result<Hello, LinkError> {
        Ok(Hello {
            version: PROTOCOL_VERSION,
            features: FEATURES,
            conversation: self.conversation,
            summary: view.summary(),
            cursor: view.cursor(self.ends.peer)?,
            reconcile: self.distrust,
        })
    }

    fn on_hello(
        &mut self,
        theirs: Hello,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if theirs.version != PROTOCOL_VERSION {
            return Err(peer(format!(
                "it speaks protocol version {}, this node version {PROTOCOL_VERSION}: upgrade the older one",
                theirs.version
            )));
        }
        let ours = if self.ends.opener {
            match self.state {
                State::Greeting { said: Some(said) }
                    if said.conversation == theirs.conversation =>
                {
                    said
                }
                // The answer to a Hello before the last.
                _ => return Ok(()),
            }
        } else {
            self.conversation = theirs.conversation;
            self.forget_conversation();
            let ours = self.hello(view)?;
            to.push(Ask::Send(Message::Hello(ours)));
            ours
        };
        self.distrust = false;
        self.start(ours, theirs, view, to)
    }

    /// Both sides know both Hellos, and decide alike from them.
    fn start(
        &mut self,
        ours: Hello,
        theirs: Hello,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.applied = Cursor { epoch: theirs.summary.head.epoch, sequence: Sequence(0) };
        self.known = theirs.summary.head.sequence;
        if theirs.summary.digest.count == 0 {
            self.resent = ours.summary.head.sequence;
        }
        let equal = ours.summary.digest == theirs.summary.digest;
        let our_place = place_in_feed(self.ends.theirs, &ours, &theirs);
        let their_place = place_in_feed(self.ends.ours, &theirs, &ours);
        if equal {
            self.go_live(ours.summary.head.sequence, theirs.summary.head.sequence);
            self.cursor_is_stale = ours.cursor != Some(theirs.summary.head);
        } else if let (Some(our_place), Some(their_place), false) =
            (our_place, their_place, ours.reconcile || theirs.reconcile)
        {
            self.go_live(their_place, our_place);
        } else {
            self.sent = ours.summary.head.sequence;
            self.state = if self.ends.opener {
                State::Offering { offer: Offer::default(), theirs }
            } else {
                to.push(Ask::Send(Message::More));
                let comparison = Comparison::default();
                State::Comparing { comparison, batch_is_last: false, asked: true, theirs }
            };
        }
        self.pump(view, to)
    }

    fn on_restart(
        &mut self,
        reconcile: bool,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if !self.ends.opener {
            return Err(peer("only the answerer of a link asks for a Hello".into()));
        }
        self.distrust |= reconcile;
        self.say_hello(view, to)
    }

    /// Forgets everything about the conversation but what it takes to begin the next. Commits that were asked for
    /// still happen, in order, before those of the next one.
    fn forget_conversation(&mut self) {
        let fresh = Self::new(self.ends, 0);
        let old = core::mem::replace(self, fresh);
        self.random = old.random;
        self.conversation = old.conversation;
        self.distrust = old.distrust;
        self.now = old.now;
        self.outstanding = old.outstanding;
        self.outstanding_bytes = old.outstanding_bytes;
        for commit in &mut self.outstanding {
            let bytes = commit.bytes;
            *commit = Outstanding { bytes, counts: false, pushed: None, through: None };
        }
    }

    fn go_live(&mut self, sent: Sequence, applied: Sequence) {
        self.sent = sent;
        self.applied.sequence = applied;
        self.applying = applied;
        self.state = State::Live;
        self.check_at = Some(self.now.instant + FIRST_CHECK_AFTER);
    }

    // ---- Outgoing ----

    /// Sends the next commit of our feed, if the peer lacks it. Returns whether there may be more.
    fn pump_feed(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<bool, LinkError> {
        let head = view.summary().head.sequence;
        if !matches!(self.state, State::Live) || head <= self.sent {
            return Ok(false);
        }
        if self.ends.ours == Access::Read {
            self.sent = head;
            return Ok(false);
        }
        // Twice a commit's bound, so that at least one is whole.
        let rows = view.feed(self.sent, 2 * MAX_COMMIT_BYTES)?;
        let mut silent_through = None;
        for commit in rows.chunk_by(|a, b| a.commit_end == b.commit_end) {
            let end = commit[0].commit_end;
            let last_read = commit.last().map(|row| row.sequence);
            // The last commit may be cut off by the limit. It is not if nothing came before it: then either its end
            // is there, or the versions at its end were replaced since.
            let cut_off = last_read != Some(end)
                && last_read == rows.last().map(|row| row.sequence)
                && commit.len() != rows.len();
            if cut_off {
                break;
            }
            let lacking =
                |row: &&FeedRow| row.via != Some(self.ends.peer) || row.sequence <= self.resent;
            let lacked: Vec<&FeedRow> = commit.iter().filter(lacking).collect();
            self.sent = end;
            if lacked.is_empty() {
                silent_through = Some(end);
                continue;
            }
            silent_through = None;
            let message = if self.lazy {
                let key = &self.ends.fingerprint_key;
                let fingerprints = lacked.iter().map(|row| Fingerprint::of(&row.entry, key));
                Message::Have { fingerprints: fingerprints.collect(), through: end }
            } else {
                let entries = lacked.into_iter().map(|row| row.entry.clone()).collect();
                Message::Versions { entries, through: Some(end) }
            };
            self.send_counted(message, to);
            if !self.in_flight.has_room() {
                return Ok(false);
            }
        }
        if rows.is_empty() {
            // All that came after was replaced by versions that the peer has.
            self.sent = head;
            silent_through = Some(head);
        }
        if let Some(through) = silent_through {
            self.send_counted(Message::Have { fingerprints: Vec::new(), through }, to);
        }
        Ok(true)
    }

    fn send_counted(&mut self, message: Message, to: &mut Vec<Ask>) {
        self.in_flight.add(&message);
        to.push(Ask::Send(message));
    }

    fn on_ack(&mut self, count: u64, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        let news = count.checked_sub(self.acknowledged);
        let news = news.and_then(|news| usize::try_from(news).ok());
        let in_flight = self.in_flight.len() + self.given_in_flight.len();
        let Some(news) = news.filter(|news| *news <= in_flight) else {
            return Err(peer("it acknowledges what it was not sent".into()));
        };
        self.acknowledged = count;
        let news = self.given_in_flight.take_off(news);
        self.in_flight.take_off(news);
        self.pump(view, to)
    }

    fn on_want(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if !self.giving.is_empty() || fingerprints.is_empty() {
            return Err(peer("it wants more before it was given what it wanted".into()));
        }
        self.lazy = false;
        self.giving = fingerprints.into();
        self.pump(view, to)
    }

    fn on_more(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        let State::Offering { offer, .. } = &mut self.state else {
            return Err(peer("it asks for fingerprints outside of a reconciliation".into()));
        };
        to.push(Ask::Send(Message::Fingerprints(offer.next(view)?)));
        Ok(())
    }

    // ---- Incoming ----

    /// Does what the messages in the inbox ask for, in order, as far as possible.
    fn work_off(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        loop {
            let nothing_wanted = self.wanting.is_none() && self.given.is_empty();
            let waiting = if nothing_wanted { &mut self.inbox } else { &mut self.given };
            match waiting.front() {
                None => break,
                Some(Message::Versions { entries, .. } | Message::Given { entries, .. }) => {
                    self.ahead = are_ahead(entries, self.now.wall);
                    if self.ahead {
                        self.retry_at = Some(self.now.instant + RETRY_AHEAD);
                        return Ok(());
                    }
                    // The peer does not wait for acknowledgements, or the store is busy with what came before.
                    if window::KEPT_BYTES < self.outstanding_bytes {
                        return Ok(());
                    }
                }
                // These look at what is in the store, so everything before them must be.
                _ if !self.outstanding.is_empty() => return Ok(()),
                _ => {}
            }
            let Some(message) = waiting.pop() else { break };
            match message {
                Message::Versions { entries, through } => self.on_versions(entries, through, to)?,
                Message::Given { entries, more } => self.on_given(entries, more, to)?,
                Message::Have { fingerprints, through } => {
                    self.on_have(fingerprints, through, view, to)?;
                }
                Message::Fingerprints(batch) => {
                    let State::Comparing { comparison, batch_is_last, asked: asked @ true, .. } =
                        &mut self.state
                    else {
                        return Err(peer("it sends fingerprints that nobody asked for".into()));
                    };
                    *asked = false;
                    *batch_is_last = batch.last;
                    comparison
                        .accepts(&batch)
                        .map_err(|_| peer("its fingerprints are out of order".into()))?;
                    let differences = comparison.compare(&batch, view)?;
                    if !differences.theirs.is_empty() && self.ends.theirs == Access::Write {
                        self.wanting = Some(None);
                        to.push(Ask::Send(Message::Want { fingerprints: differences.theirs }));
                    }
                    if self.ends.ours == Access::Write {
                        self.offering = differences.ours.into();
                        self.pump(view, to)?;
                    }
                    self.advance_comparison(view, to)?;
                }
                Message::Reconciled => {
                    let State::Offering { theirs, .. } = &self.state else {
                        return Err(peer("it ends a reconciliation that nobody began".into()));
                    };
                    let applied = theirs.summary.head.sequence;
                    self.finish_reconciliation(applied, view, to)?;
                }
                _ => unreachable!("only these five are put into an inbox"),
            }
        }
        self.advance_comparison(view, to)
    }

    fn on_versions(
        &mut self,
        entries: Vec<Entry>,
        through: Option<Sequence>,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.check_access()?;
        if through.is_some() && !matches!(self.state, State::Live) {
            return Err(peer("it sends its feed before the reconciliation has ended".into()));
        }
        let pushed = through.map(|_| entries.len());
        self.commit(entries, through, true, pushed, to);
        Ok(())
    }

    fn on_have(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        through: Sequence,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.check_access()?;
        if !matches!(self.state, State::Live) {
            return Err(peer("it announces before the reconciliation has ended".into()));
        }
        let mut lacking = Vec::new();
        for fingerprint in fingerprints {
            if !view.has(fingerprint)? {
                lacking.push(fingerprint);
            }
        }
        if lacking.is_empty() {
            self.applied.sequence = self.applied.sequence.max(through);
            self.applying = self.applying.max(through);
            self.cursor_is_stale = true;
            self.take(to);
        } else {
            self.wanting = Some(Some(through));
            to.push(Ask::Send(Message::Want { fingerprints: lacking }));
        }
        Ok(())
    }

    fn on_given(
        &mut self,
        entries: Vec<Entry>,
        more: bool,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let Some(through) = self.wanting else {
            return Err(peer("it gives what nobody wanted".into()));
        };
        self.check_access()?;
        if more {
            self.commit(entries, None, true, None, to);
            return Ok(());
        }
        self.wanting = None;
        self.commit(entries, through, true, None, to);
        if through.is_some() {
            // The announcement that led to the Want is done with as well.
            self.commit(Vec::new(), None, true, None, to);
        }
        Ok(())
    }

    fn check_access(&self) -> Result<(), LinkError> {
        match self.ends.theirs {
            Access::Write => Ok(()),
            Access::Read => Err(peer("it is a reader of this dataset, and sends versions".into())),
        }
    }

    fn commit(
        &mut self,
        entries: Vec<Entry>,
        through: Option<Sequence>,
        counts: bool,
        pushed: Option<usize>,
        to: &mut Vec<Ask>,
    ) {
        debug_assert!(entries.len() <= MAX_COMMIT_VERSIONS, "the codec bounds them");
        if let Some(through) = through {
            self.applying = self.applying.max(through);
            self.cursor_is_stale = false;
        }
        let cursor = through.map(|_| Cursor { epoch: self.applied.epoch, sequence: self.applying });
        let bytes = window::weight_of(&entries);
        self.outstanding_bytes += bytes;
        self.outstanding.push_back(Outstanding { bytes, counts, pushed, through });
        to.push(Ask::Commit { entries, cursor });
    }

    /// Counts a stream message as done with.
    fn take(&mut self, to: &mut Vec<Ask>) {
        self.taken += 1;
        to.push(Ask::Send(Message::Ack { count: self.taken }));
    }

    // ---- Reconciling ----

    /// Goes on with a comparison once everything that the last batch showed is here: to the next batch, or, when all
    /// of it is durable, to the end.
    fn advance_comparison(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        let State::Comparing { batch_is_last, asked, theirs, .. } = &mut self.state else {
            return Ok(());
        };
        if *asked || self.wanting.is_some() || !self.offering.is_empty() {
            return Ok(());
        }
        if !*batch_is_last {
            *asked = true;
            to.push(Ask::Send(Message::More));
        } else if self.outstanding.is_empty() {
            let applied = theirs.summary.head.sequence;
            to.push(Ask::Send(Message::Reconciled));
            self.finish_reconciliation(applied, view, to)?;
        }
        Ok(())
    }

    fn finish_reconciliation(
        &mut self,
        applied: Sequence,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.go_live(self.sent, applied);
        self.commit(Vec::new(), Some(applied), false, None, to);
        self.pump(view, to)
    }

    // ---- Checking ----

    fn schedule_check(&mut self) {
        let jitter = u64::try_from(CHECK_JITTER.as_micros()).expect("it is seconds");
        let jitter = Duration::from_micros(self.random.below(jitter));
        self.check_at = Some(self.now.instant + CHECK_AFTER + jitter);
    }

    /// Whether nothing is on its way in either direction, as far as this side knows.
    fn is_quiet(&self, summary: &Summary) -> bool {
        matches!(self.state, State::Live)
            && self.inbox.is_empty()
            && self.outstanding.is_empty()
            && self.in_flight.len() == 0
            && self.given_in_flight.len() == 0
            && self.wanting.is_none()
            && summary.head.sequence <= self.sent
    }

    fn on_check(
        &mut self,
        theirs: Summary,
        applied: Sequence,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let ours = view.summary();
        self.known = self.known.max(theirs.head.sequence);
        let we_have_theirs = self.ends.theirs == Access::Read || theirs.head == self.applied;
        let they_have_ours = self.ends.ours == Access::Read || applied == ours.head.sequence;
        let caught_up = self.is_quiet(&ours) && we_have_theirs && they_have_ours;
        if !caught_up || theirs.digest == ours.digest {
            return Ok(());
        }
        if self.ends.opener {
            self.distrust = true;
            self.say_hello(view, to)
        } else {
            to.push(Ask::Send(Message::Restart { reconcile: true }));
            Ok(())
        }
    }
}

/// Where in `feed_of`'s feed the side that said `reader` is, so that sending can go on from there. `access` is what
/// the feed's owner may do: nobody needs the feed of a reader.
fn place_in_feed(access: Access, reader: &Hello, feed_of: &Hello) -> Option<Sequence> {
    let head = feed_of.summary.head;
    if access == Access::Read || feed_of.summary.digest.count == 0 {
        return Some(head.sequence);
    }
    let valid = |cursor: &Cursor| cursor.epoch == head.epoch && cursor.sequence <= head.sequence;
    // Whoever has nothing gets the feed from its start, which is everything.
    let from_the_start = (reader.summary.digest.count == 0).then_some(Sequence(0));
    reader.cursor.filter(valid).map(|cursor| cursor.sequence).or(from_the_start)
}

/// Takes fingerprints off the front and looks up their versions, as many as fit into a commit.
fn take_entries(
    fingerprints: &mut VecDeque<Fingerprint>,
    view: &impl View,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    let mut bytes = Vec::new();
    while entries.len() < MAX_COMMIT_VERSIONS
        && let Some(&fingerprint) = fingerprints.front()
    {
        if let Some(entry) = view.by_fingerprint(fingerprint)? {
            canonical::encode_entry(&entry, &mut bytes);
            if MAX_COMMIT_BYTES < bytes.len() {
                break;
            }
            entries.push(entry);
        }
        fingerprints.pop_front();
    }
    Ok(entries)
}

/// Whether a version, or one that it claims to have seen, lies in the future of our clock.
fn are_ahead(entries: &[Entry], now: WallTime) -> bool {
    entries.iter().any(|Entry { version, .. }| {
        let seen = version.seen.authors().iter().map(|(_, time)| *time);
        seen.chain([version.dot.time]).any(|time| time.is_ahead_of(now))
    })
}

fn peer(reason: String) -> LinkError {
    LinkError::Peer(reason)
}
