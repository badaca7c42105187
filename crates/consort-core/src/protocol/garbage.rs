//! When a replica forgets deletions: not before all registered replicas say that they account for them.
//!
//! Each replica publishes one time: up to it, it accounts for what any registered replica wrote. These times travel over
//! the links as everything else does, and the least of them is as far as the frontier goes, the same on every node. What
//! an author wrote that is not registered (any more) is collected as far as all account for it alike. Nothing of this is
//! needed for safety, which rests on each replica's own two rules ([`model::frontier`](crate::model::frontier)): a
//! frontier that was formed too early costs a comparison with those who had not heard, and loses nothing.
//!
//! Links pass on what is known and published (`link/knowing.rs`); here stands what a replica makes of it.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::model::frontier::{Frontier, Mark};
use crate::model::hlc::Timestamp;
use crate::model::id::{AuthorId, NodeId};
use crate::protocol::event::Now;
use crate::random::Random;
use crate::store::{Lesson, StoreError, Tombstones, View};
use crate::time::Instant;

/// How long after a deletion its replicas begin to find out whether it can be forgotten: at least, and how much is
/// random. Many deletions share one round.
const BEGIN_AFTER: Duration = Duration::from_secs(20);
const BEGIN_JITTER: Duration = Duration::from_secs(20);
/// What others published and is remembered: more than any cluster has nodes.
const MAX_PUBLISHED: usize = 65_536;

/// A replica that others wait for before they forget a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Registered {
    /// Who writes there.
    pub author: AuthorId,
    /// Whether it may: of one that does not, nobody has to have anything.
    pub writes: bool,
}

/// What a replica says about itself to all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Who writes there.
    pub author: AuthorId,
    /// Whose replica it is.
    pub node: NodeId,
    /// Later for what it says later.
    pub serial: Timestamp,
    /// Stands for the registered replicas, as it knows them.
    pub set: u64,
    /// Up to here it accounts for what any of those wrote.
    pub known: Timestamp,
    /// Stands for what it accounts for of authors that are not registered.
    pub others: Mark,
}

/// What all replicas published last, by author. Links remember which of these they told.
pub(crate) type Table = BTreeMap<AuthorId, Published>;

/// What was published and is to be told.
#[derive(Debug)]
pub(crate) struct ToTell {
    pub(crate) table: Arc<Table>,
    /// It is everything that is known.
    pub(crate) all: bool,
}

/// What holds the frontier up, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdup {
    /// The registered replica.
    pub author: AuthorId,
    /// Its node, if it was ever heard of.
    pub node: Option<NodeId>,
    /// Up to here it accounts for everything; zero if nothing was heard of that.
    pub known: Timestamp,
}

/// One replica's part in forgetting.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    node: NodeId,
    registered: BTreeMap<AuthorId, bool>,
    set: u64,
    table: Arc<Table>,
    /// What of it is of replicas that are not registered.
    strangers: Arc<Table>,
    /// How far the frontier is to be moved, as far as everything is known.
    target: Frontier,
    /// A lesson that moves it is on its way to the store.
    moving: bool,
    promise_at: Option<Instant>,
    /// The latest that others heard of this replica, or say so, and what it said itself.
    echo: Timestamp,
    said: Timestamp,
}

impl Garbage {
    /// All that was published matters as long as there is something to forget; otherwise only who may have to be
    /// registered.
    pub(crate) fn to_tell(&self, view: &impl View) -> ToTell {
        let all = view.tombstones().count != 0;
        ToTell { table: Arc::clone(if all { &self.table } else { &self.strangers }), all }
    }

    /// What all replicas published, as far as it is known here.
    pub(crate) fn published(&self) -> impl Iterator<Item = &Published> {
        self.table.values()
    }

    pub(crate) fn set_registered(&mut self, node: NodeId, replicas: &[Registered]) {
        self.node = node;
        self.registered = replicas.iter().map(|r| (r.author, r.writes)).collect();
        let mut hasher = blake3::Hasher::new();
        for (author, writes) in &self.registered {
            hasher.update(&author.0);
            hasher.update(&[u8::from(*writes)]);
        }
        let hash = hasher.finalize();
        let (front, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        self.set = u64::from_le_bytes(*front);
        let strangers =
            self.table.iter().filter(|(author, _)| !self.registered.contains_key(author));
        self.strangers = Arc::new(strangers.map(|(author, said)| (*author, *said)).collect());
    }

    /// Whether anything is ever forgotten here: it is known which replicas are registered.
    pub(crate) fn is_on(&self) -> bool {
        self.node != NodeId::default()
    }

    /// Takes note of what others published; this replica is `author`. Whether any of it is news. What is later than now
    /// is not heard: nothing true would ever replace it.
    pub(crate) fn hear(&mut self, published: &[Published], author: AuthorId, now: Now) -> bool {
        let mut is_news = false;
        for said in published.iter().filter(|said| !said.serial.is_ahead_of(now.wall)) {
            if said.author == author {
                // Nobody knows better than this replica: what it says itself has to be later.
                is_news |= self.echo < said.serial;
                self.echo = self.echo.max(said.serial);
                continue;
            }
            let is_later = match self.table.get(&said.author) {
                Some(known) => known.serial < said.serial || known.serial.is_ahead_of(now.wall),
                None => self.table.len() < MAX_PUBLISHED,
            };
            if is_later {
                is_news = true;
                self.note(*said);
            }
        }
        is_news
    }

    fn note(&mut self, said: Published) {
        Arc::make_mut(&mut self.table).insert(said.author, said);
        if !self.registered.contains_key(&said.author) {
            Arc::make_mut(&mut self.strangers).insert(said.author, said);
        }
    }

    /// A peer has collected this far.
    pub(crate) fn aim(&mut self, frontier: &Frontier) {
        self.target.join(frontier);
    }

    /// A lesson that was asked for here is durable.
    pub(crate) fn moved(&mut self) {
        self.moving = false;
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.promise_at
    }

    /// There may be new tombstones: what they wait for first is that all writers say what they will not write any more.
    pub(crate) fn grew(&mut self, now: Now, view: &impl View, random: &mut Random) {
        if self.promise_at.is_none() && view.tombstones().count != 0 && !self.registered.is_empty()
        {
            let jitter = u64::try_from(BEGIN_JITTER.as_micros()).expect("it is seconds");
            let after = BEGIN_AFTER + Duration::from_micros(random.below(jitter));
            self.promise_at = Some(now.instant + after);
        }
    }

    /// Whatever was due before `now`: a promise, if one is needed, and whether to look at what is known.
    pub(crate) fn on_deadline(
        &mut self,
        now: Now,
        view: &impl View,
    ) -> Result<(Option<Lesson>, bool), StoreError> {
        if self.promise_at.is_none_or(|at| now.instant < at) {
            // When the clock is mended, others hear of what was said before.
            return Ok((None, self.said.is_ahead_of(now.wall)));
        }
        let (author, reading) = view.own()?;
        let writes = self.registered.get(&author).is_some_and(|writes| *writes);
        let Tombstones { count, latest } = view.tombstones();
        let needed = writes && count != 0 && reading < latest;
        // A clock does not follow one that is far ahead, so once may not be enough.
        self.promise_at = needed.then(|| now.instant + BEGIN_AFTER);
        Ok((needed.then(|| Lesson { promise: Some(now.wall), ..Lesson::default() }), true))
    }

    /// Looks at what is known: publishes how far that is, and moves the frontier if all others are as far. The lesson to
    /// learn then, and whether something was published.
    pub(crate) fn look(
        &mut self,
        now: Now,
        view: &impl View,
        forms: bool,
    ) -> Result<(Option<Lesson>, bool), StoreError> {
        if !self.is_on() {
            return Ok((None, false));
        }
        let (author, _) = view.own()?;
        let has_tombstones = view.tombstones().count != 0;
        let said = self.table.get(&author).copied();
        // Without anything to forget, nobody asks what a registered replica accounts for.
        if !has_tombstones && self.registered.contains_key(&author) {
            return Ok((self.lesson(view)?, false));
        }
        let known = account(view)?;
        let upto = self.writers().map(|author| known.of(author)).min().unwrap_or_default();
        let others: Frontier =
            known.times().filter(|(author, _)| !self.registered.contains_key(author)).collect();
        let mark = others.mark();
        let says = |said: Published| {
            (said.set, said.node, said.known, said.others) == (self.set, self.node, upto, mark)
        };
        // Of what was said when the clock was wrong, nobody has heard whose clock is right.
        let said = said.filter(|said| !said.serial.is_ahead_of(now.wall));
        let publishes = !said.is_some_and(|said| says(said) && self.echo <= said.serial);
        if publishes {
            let before = said.map_or(Timestamp(0), |said| said.serial).max(self.echo);
            let (node, set) = (self.node, self.set);
            let serial = Timestamp(before.0.saturating_add(1)).max(Timestamp::at(now.wall));
            self.said = serial;
            let own = Published { author, node, serial, set, known: upto, others: mark };
            self.note(own);
        }
        if forms && has_tombstones {
            let said: Option<Vec<&Published>> = self
                .registered
                .keys()
                .map(|author| self.table.get(author).filter(|said| said.set == self.set))
                .collect();
            if let Some(said) = said.filter(|said| !said.is_empty()) {
                let upto = said.iter().map(|said| said.known).min().unwrap_or_default();
                let mut frontier: Frontier = self.writers().map(|author| (author, upto)).collect();
                // Of those others nobody takes what a reader accounts for, so it may be ahead of everybody for good.
                let counts = |said: &&&Published| self.registered.get(&said.author) == Some(&true);
                if said.iter().filter(counts).all(|said| said.others == mark) {
                    frontier.join(&others);
                }
                self.target.join(&frontier);
            }
        }
        Ok((self.lesson(view)?, publishes))
    }

    fn writers(&self) -> impl Iterator<Item = AuthorId> {
        self.registered.iter().filter(|(_, writes)| **writes).map(|(author, _)| *author)
    }

    /// Moves the frontier towards where it should be, as far as everything is known.
    fn lesson(&mut self, view: &impl View) -> Result<Option<Lesson>, StoreError> {
        if self.moving || self.target.is_empty() {
            return Ok(None);
        }
        let frontier = self.target.meet(&account(view)?);
        let knowledge = view.knowledge()?;
        if frontier.is_within(&knowledge.frontier) {
            if self.target.is_within(&knowledge.frontier) {
                self.target = Frontier::new();
            }
            return Ok(None);
        }
        self.moving = true;
        Ok(Some(Lesson { frontier, ..Lesson::default() }))
    }

    /// Whom forgetting waits for, if there is something to forget: the registered writer that was heard of least lately,
    /// or, if another replica accounts for less than this one, that one.
    pub(crate) fn holdup(&self, view: &impl View) -> Option<Holdup> {
        if view.tombstones().count == 0 {
            return None;
        }
        let known = account(view).ok()?;
        let heard = |author: AuthorId| {
            let node = self.table.get(&author).map(|said| said.node);
            Holdup { author, node, known: known.of(author) }
        };
        let told = |author: &AuthorId| {
            let said = self.table.get(author);
            let known = said.filter(|said| said.set == self.set).map(|said| said.known);
            Holdup {
                author: *author,
                node: said.map(|said| said.node),
                known: known.unwrap_or_default(),
            }
        };
        let writer = self.writers().map(heard).min_by_key(|holdup| holdup.known);
        let replica = self.registered.keys().map(told).min_by_key(|holdup| holdup.known);
        writer.into_iter().chain(replica).min_by_key(|holdup| holdup.known)
    }
}

/// Everything that a replica accounts for.
pub(crate) fn account(view: &impl View) -> Result<Frontier, StoreError> {
    let (author, reading) = view.own()?;
    let mut known = view.knowledge()?.known.clone();
    known.raise(author, reading);
    Ok(known)
}
