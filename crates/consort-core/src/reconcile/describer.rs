//! The side that describes its set: it answers what it is asked, and decides nothing.
//!
//! It holds on to one moment of the set between answers, so that all symbols of a comparison are of the same set
//! although commits go on: a clone of the live index, or the symbols of one range (2 MiB at the most).
//!
//! A peer may ask for the prefix once, then for ranges in rising order, then for fingerprints in rising order. So
//! whatever it asks, it makes us go through our set no more than twice.

use crate::model::fingerprint::Fingerprint;
use crate::reconcile::encoder::Block;
use crate::reconcile::index::Index;
use crate::reconcile::method::Method;
use crate::reconcile::sorted::Batch;
use crate::reconcile::{
    Answer, Fingerprints, MAX_RANGE_FINGERPRINTS, MAX_RUN_SYMBOLS, Request, SCAN_FINGERPRINTS,
};
use crate::store::StoreError;

/// Answers the requests of one comparison.
#[derive(Clone, Debug, Default)]
pub struct Describer {
    progress: Progress,
    /// What the last symbols were of, and how many of them were sent.
    source: Option<Source>,
}

/// How far the peer has come. Requests never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    #[default]
    Nothing,
    Prefix,
    Ranges(Option<Fingerprint>),
    Sorted(Option<Fingerprint>),
}

#[derive(Clone, Debug)]
struct Source {
    index: Index,
    end: Option<Fingerprint>,
    sent: usize,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DescribeError {
    /// The peer's fault: it asks for what was passed already, or for more than one may ask for.
    OutOfOrder,
    /// Our store's.
    Store(StoreError),
}

impl From<StoreError> for DescribeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Describer {
    /// Answers a request about the set as it is now. `index` is its live index.
    pub fn answer(
        &mut self,
        request: Request,
        set: &impl Fingerprints,
        index: &Index,
    ) -> Result<Answer, DescribeError> {
        match request {
            Request::Prefix { symbols } => {
                self.advance(Progress::Prefix)?;
                self.source = Some(Source { index: index.clone(), end: None, sent: 0 });
                self.symbols(symbols)
            }
            Request::Range { after, width, symbols } => {
                self.advance(Progress::Ranges(after))?;
                let width = width.min(MAX_RANGE_FINGERPRINTS);
                let (block, end) = describe_range(after, width, symbols, set)?;
                self.source = Some(Source { index: Index::of(block), end, sent: 0 });
                self.symbols(symbols)
            }
            Request::Further { symbols } => self.symbols(symbols),
            Request::Sorted { after } => {
                self.advance(Progress::Sorted(after))?;
                self.source = None;
                Ok(Answer::Sorted(Batch::above(after, set)?))
            }
        }
    }

    /// How the other side goes about it at the moment, once it has asked.
    pub fn method(&self) -> Option<Method> {
        match self.progress {
            Progress::Nothing => None,
            Progress::Prefix => Some(Method::Prefix),
            Progress::Ranges(_) => Some(Method::Ranges),
            Progress::Sorted(_) => Some(Method::Sorted),
        }
    }

    fn advance(&mut self, to: Progress) -> Result<(), DescribeError> {
        if to <= self.progress {
            return Err(DescribeError::OutOfOrder);
        }
        self.progress = to;
        Ok(())
    }

    fn symbols(&mut self, symbols: usize) -> Result<Answer, DescribeError> {
        let source = self.source.as_mut().ok_or(DescribeError::OutOfOrder)?;
        let run = source.index.run(source.sent, symbols.min(MAX_RUN_SYMBOLS));
        source.sent = run.end();
        Ok(Answer::Symbols { run, end: source.end })
    }
}

/// The symbols of the first `width` fingerprints above `after`, and where they end: at least as many as were asked for
/// and as there are fingerprints, since more symbols than that would be longer than the fingerprints themselves.
fn describe_range(
    mut after: Option<Fingerprint>,
    mut width: usize,
    symbols: usize,
    set: &impl Fingerprints,
) -> Result<(Block, Option<Fingerprint>), StoreError> {
    let mut fingerprints = set.above(after, width.min(SCAN_FINGERPRINTS))?;
    let few = fingerprints.len() < SCAN_FINGERPRINTS;
    let most = if few { fingerprints.len() } else { width };
    let mut block = Block::new(0..most.max(symbols.min(MAX_RUN_SYMBOLS)));
    loop {
        let last = fingerprints.len() < width.min(SCAN_FINGERPRINTS);
        width -= fingerprints.len().min(width);
        after = fingerprints.last().copied().or(after);
        block.extend(fingerprints);
        if last || width == 0 {
            return Ok((block, after.filter(|_| !last)));
        }
        fingerprints = set.above(after, width.min(SCAN_FINGERPRINTS))?;
    }
}
