//! The side that compares: it asks until it knows what only the other side has, and what only it has itself.
//!
//! It begins with the method that the digests suggest, and takes another as soon as the symbols tell that it would be
//! shorter. Whatever the other side answers, the finder goes forward: from the prefix to ranges, from one range to the
//! next, and to sorted fingerprints if a range does not come out. Sorted fingerprints always do.

use alloc::vec::Vec;
use core::mem;

use thiserror::Error;

use crate::limits::MAX_BATCH_FINGERPRINTS;
use crate::model::fingerprint::{Digest, Fingerprint};
use crate::reconcile::decoder::Decoder;
use crate::reconcile::encoder::Block;
use crate::reconcile::index::Index;
use crate::reconcile::method::{Method, symbols_next};
use crate::reconcile::sorted::{Comparison, Differences};
use crate::reconcile::symbol::Run;
use crate::reconcile::{
    Answer, Fingerprints, MAX_RANGE_FINGERPRINTS, MAX_RUN_SYMBOLS, MAX_SYMBOLS, Request,
    SCAN_FINGERPRINTS,
};
use crate::store::StoreError;

/// Finds the difference between a peer's set and ours.
#[derive(Clone, Debug)]
pub struct Finder {
    method: Method,
    stage: Stage,
    /// How many of the peer's fingerprints are in no range that is done.
    left: u64,
    /// How many differences there seem to be among how many of the peer's fingerprints.
    density: Density,
    /// What was found and not handed out yet.
    found: Differences,
    asked: Option<Request>,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Symbols of the whole set, or of a range of it.
    Coded {
        part: Part,
        coding: Coding,
    },
    /// Between two ranges.
    Ranges {
        after: Option<Fingerprint>,
    },
    Sorted {
        after: Option<Fingerprint>,
    },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range { after: Option<Fingerprint>, end: Option<Fingerprint> },
}

/// Symbols on their way into a decoder.
#[derive(Clone, Debug)]
struct Coding {
    decoder: Decoder,
    ours: Index,
    /// How many symbols both sides have.
    capacity: usize,
    /// How many fingerprints the other side describes, once it has said so.
    total: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Density {
    differences: u64,
    among: u64,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, and hand the answer to [`Finder::take`].
    Ask(Request),
    /// These differ: at most [`MAX_BATCH_FINGERPRINTS`] on each side. There may be more.
    Found(Differences),
    /// Everything was found.
    Done,
}

/// Why an answer was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FindError {
    /// The peer's fault: it does not answer what it was asked.
    #[error("{0}")]
    Unfit(&'static str),
    /// Our store's.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The differences that a range should have, so that one answer mostly has all of its symbols.
const RANGE_DIFFERENCES: u64 = 10_000;

impl Finder {
    /// Begins a comparison with a peer that holds `theirs`; `ours` is our live index. The caller has seen that the
    /// method is none of [`Method::Equal`] and [`Method::Everything`]; those would be done in other ways.
    pub fn new(theirs: Digest, ours: &Index) -> Self {
        let prefix = ours.symbols().min(Index::length_for(theirs.count));
        let method = Method::choose(theirs, ours.digest(), prefix);
        let stage = match method {
            Method::Equal => Stage::Done,
            Method::Prefix => {
                Stage::Coded { part: Part::Whole, coding: Coding::new(ours.clone(), prefix) }
            }
            Method::Ranges => Stage::Ranges { after: None },
            Method::Everything | Method::Sorted => Stage::Sorted { after: None },
        };
        let differences = theirs.count.abs_diff(ours.digest().count);
        let density = Density { differences, among: theirs.count };
        let found = Differences::default();
        Self { method, stage, left: theirs.count, density, found, asked: None }
    }

    /// How it goes about it at the moment, or went about it last.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What is to be done next. A request is repeated until it is answered.
    pub fn step(&mut self) -> Step {
        let Differences { theirs, ours } = &mut self.found;
        if !theirs.is_empty() || !ours.is_empty() {
            let [theirs, ours] = [theirs, ours].map(take_batch);
            return Step::Found(Differences { theirs, ours });
        }
        if self.asked.is_none() {
            self.asked = self.request();
            self.method = match self.asked {
                Some(Request::Prefix { .. }) => Method::Prefix,
                Some(Request::Range { .. }) => Method::Ranges,
                Some(Request::Sorted { .. }) => Method::Sorted,
                Some(Request::Further { .. }) | None => self.method,
            };
        }
        self.asked.map_or(Step::Done, Step::Ask)
    }

    /// Takes the answer to what was asked for. `set` is ours as it is now. After an error the comparison is over.
    pub fn take(&mut self, answer: Answer, set: &impl Fingerprints) -> Result<(), FindError> {
        let Some(request) = self.asked.take() else {
            return Err(FindError::Unfit("it answers what nobody asked for"));
        };
        match (mem::replace(&mut self.stage, Stage::Done), request, answer) {
            (
                Stage::Coded { part, coding },
                Request::Prefix { symbols } | Request::Further { symbols },
                Answer::Symbols { run, end },
            ) => {
                if end != part.end() {
                    return Err(FindError::Unfit("what it describes ends elsewhere than it did"));
                }
                self.on_symbols(part, coding, run, symbols)
            }
            (
                Stage::Ranges { after },
                Request::Range { width, symbols, .. },
                Answer::Symbols { run, end },
            ) => {
                if end.is_some() && end <= after {
                    return Err(FindError::Unfit("its ranges do not go forward"));
                }
                // An answer makes us go through our set, so many small ones must not be cheap.
                let whole = end.is_none() || run.total == width as u64;
                if !whole || run.symbols.len() != symbols {
                    return Err(FindError::Unfit("its ranges are smaller than they should be"));
                }
                // With more symbols than this, the other side's fingerprints would be shorter.
                let useful = usize::try_from(run.total).unwrap_or(MAX_SYMBOLS).max(symbols);
                let ours = Index::of(block_of(after, end, useful, set)?);
                let capacity = ours.symbols();
                let coding = Coding::new(ours, capacity);
                self.on_symbols(Part::Range { after, end }, coding, run, symbols)
            }
            (Stage::Sorted { after }, _, Answer::Sorted(batch)) => {
                let mut comparison = Comparison::after(after);
                let unfit = |_| FindError::Unfit("its fingerprints are out of order");
                comparison.accepts(&batch).map_err(unfit)?;
                self.found = comparison.compare(&batch, set)?;
                if !batch.last {
                    self.stage = Stage::Sorted { after: batch.fingerprints.last().copied() };
                }
                Ok(())
            }
            _ => Err(FindError::Unfit("it answers something else than it was asked")),
        }
    }

    fn request(&self) -> Option<Request> {
        Some(match &self.stage {
            Stage::Coded { part: Part::Whole, coding } if coding.decoder.taken() == 0 => {
                Request::Prefix { symbols: coding.wanted(self.density.differences) }
            }
            Stage::Coded { coding, .. } => {
                Request::Further { symbols: coding.wanted(self.density.differences) }
            }
            Stage::Ranges { after } => {
                let (width, differences) = self.density.range(self.left);
                let symbols = symbols_next(0, differences).min(MAX_RUN_SYMBOLS);
                Request::Range { after: *after, width, symbols }
            }
            Stage::Sorted { after } => Request::Sorted { after: *after },
            Stage::Done => return None,
        })
    }

    /// Takes the symbols of a part, of which `asked` were asked for, and decides how to go on.
    fn on_symbols(
        &mut self,
        part: Part,
        mut coding: Coding,
        run: Run,
        asked: usize,
    ) -> Result<(), FindError> {
        let described = if part == Part::Whole { self.left } else { run.total };
        match coding.take(run, asked)? {
            Decoded::Done(found) if part.holds(&found) => {
                let differences = (found.theirs.len() + found.ours.len()) as u64;
                self.density = Density { differences, among: described };
                self.left = self.left.saturating_sub(described);
                self.found = found;
                self.stage = part.next();
            }
            Decoded::Done(_) | Decoded::Never => {
                let differences = coding.decoder.estimate().unwrap_or(self.density.differences);
                self.density = Density { differences, among: described };
                self.stage = match Method::cheapest(described, differences, 0, 0) {
                    Method::Sorted => Stage::Sorted { after: part.after() },
                    _ => part.otherwise(),
                };
            }
            Decoded::NotYet => {
                let differences = coding.decoder.estimate().unwrap_or(self.density.differences);
                // Only what is almost certain leads away from the symbols that are there.
                let taken = coding.decoder.taken();
                let doubt = (differences / taken.isqrt() as u64).saturating_mul(3);
                let least = differences.saturating_sub(doubt);
                self.stage = match Method::cheapest(described, least, taken, coding.capacity) {
                    Method::Sorted => Stage::Sorted { after: part.after() },
                    Method::Ranges => {
                        self.density = Density { differences, among: described };
                        part.otherwise()
                    }
                    _ => Stage::Coded { part, coding },
                };
            }
        }
        Ok(())
    }
}

impl Part {
    fn after(self) -> Option<Fingerprint> {
        match self {
            Self::Whole => None,
            Self::Range { after, .. } => after,
        }
    }

    fn end(self) -> Option<Fingerprint> {
        match self {
            Self::Whole => None,
            Self::Range { end, .. } => end,
        }
    }

    /// Whether differences belong to it, so that none is found again in another part.
    fn holds(self, found: &Differences) -> bool {
        let [after, end] = [self.after(), self.end()];
        let within =
            |found: &Fingerprint| after < Some(*found) && end.is_none_or(|end| *found <= end);
        found.theirs.iter().chain(&found.ours).all(within)
    }

    /// After this one.
    fn next(self) -> Stage {
        self.end().map_or(Stage::Done, |end| Stage::Ranges { after: Some(end) })
    }

    /// Instead of this one.
    fn otherwise(self) -> Stage {
        match self {
            Self::Whole => Stage::Ranges { after: None },
            Self::Range { after, .. } => Stage::Sorted { after },
        }
    }
}

/// What has become of symbols.
enum Decoded {
    Done(Differences),
    NotYet,
    /// They contradict each other, or there are no more.
    Never,
}

impl Coding {
    fn new(ours: Index, capacity: usize) -> Self {
        Self { decoder: Decoder::default(), ours, capacity, total: None }
    }

    /// How many symbols to ask for, with at least so many differences.
    fn wanted(&self, least_differences: u64) -> usize {
        let taken = self.decoder.taken();
        let differences = self.decoder.estimate().unwrap_or(least_differences);
        let next = symbols_next(taken, differences).min(self.capacity);
        next.saturating_sub(taken).min(MAX_RUN_SYMBOLS)
    }

    fn take(&mut self, run: Run, asked: usize) -> Result<Decoded, FindError> {
        let total = *self.total.get_or_insert(run.total);
        if run.start != self.decoder.taken() || run.total != total || asked < run.symbols.len() {
            return Err(FindError::Unfit("its symbols are not those that were asked for"));
        }
        let exhausted = run.symbols.len() < asked || run.end() == self.capacity;
        let ours = self.ours.from(run.start, run.symbols.len()).copied();
        let contradictory = self.decoder.take(run.symbols, ours).is_err();
        Ok(if contradictory {
            Decoded::Never
        } else if self.decoder.is_done() {
            Decoded::Done(mem::take(&mut self.decoder).into_differences())
        } else if exhausted {
            Decoded::Never
        } else {
            Decoded::NotYet
        })
    }
}

impl Density {
    /// How many fingerprints a range should span, and how many differences are to be expected if so many are left.
    fn range(self, left: u64) -> (usize, u64) {
        let Self { differences, among } = self;
        let width = among.saturating_mul(RANGE_DIFFERENCES) / differences.max(1);
        let width = width.clamp(1, MAX_RANGE_FINGERPRINTS as u64);
        let expected = u128::from(width.min(left)) * u128::from(differences);
        let expected = expected / u128::from(among.max(1));
        let width = usize::try_from(width).expect("it is clamped");
        (width, u64::try_from(expected).unwrap_or(u64::MAX))
    }
}

/// As many as may be handed out at once.
fn take_batch(fingerprints: &mut Vec<Fingerprint>) -> Vec<Fingerprint> {
    let rest = fingerprints.split_off(fingerprints.len().min(MAX_BATCH_FINGERPRINTS));
    mem::replace(fingerprints, rest)
}

/// The first symbols of our fingerprints above `after` and up to `end`.
fn block_of(
    mut after: Option<Fingerprint>,
    end: Option<Fingerprint>,
    symbols: usize,
    set: &impl Fingerprints,
) -> Result<Block, StoreError> {
    let mut block = Block::new(0..symbols);
    loop {
        let fingerprints = set.above(after, SCAN_FINGERPRINTS)?;
        let within = |own: &&Fingerprint| end.is_none_or(|end| **own <= end);
        block.extend(fingerprints.iter().take_while(within).copied());
        after = fingerprints.last().copied();
        let beyond = end.is_some() && end <= after;
        if beyond || fingerprints.len() < SCAN_FINGERPRINTS {
            return Ok(block);
        }
    }
}
