//! A line for each thing that happens, if somebody wants to read it: the world's time in microseconds, the node, what.

use std::fmt;
use std::io::Write;

use consort_core::Instant;
use consort_core::protocol::Message;
use consort_core::reconcile::Answer;

use crate::node::NodeIndex;

/// Where lines go.
#[derive(Default)]
pub struct Trace<'t>(Option<&'t mut dyn Write>);

impl<'t> Trace<'t> {
    /// Lines go nowhere, and are not made.
    pub fn off() -> Self {
        Self(None)
    }

    /// Lines go here. What cannot be written is lost.
    pub fn to(lines: &'t mut dyn Write) -> Self {
        Self(Some(lines))
    }

    pub(crate) fn line(&mut self, now: Instant, node: Option<NodeIndex>, what: fmt::Arguments<'_>) {
        let Some(lines) = &mut self.0 else { return };
        let node = node.map_or("-".to_owned(), |node| node.to_string());
        // There is nobody to tell.
        let _ = writeln!(lines, "{:>12} {node:>6} {what}", now.0);
    }
}

impl fmt::Debug for Trace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trace").field(&self.0.is_some()).finish()
    }
}

impl fmt::Display for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` keeps columns.
        f.pad(&format!("n{}", self.0))
    }
}

/// A message in a few words.
pub(crate) struct Brief<'m>(pub(crate) &'m Message);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Message::Hello(hello) => {
                let (head, digest) = (hello.summary.head.sequence.0, hello.summary.digest.count);
                let cursor = hello.cursor.map(|cursor| cursor.sequence.0);
                let reconcile = if hello.reconcile { " reconcile" } else { "" };
                let conversation = hello.conversation;
                write!(
                    f,
                    "Hello {conversation:08x} holds {digest} head {head} cursor {cursor:?}{reconcile}"
                )
            }
            Message::Versions { entries, through } => {
                write!(f, "Versions {}", entries.len())?;
                through.map_or(Ok(()), |through| write!(f, " through {}", through.0))
            }
            Message::Have { fingerprints, through } => {
                write!(f, "Have {} through {}", fingerprints.len(), through.0)
            }
            Message::Want { fingerprints } => write!(f, "Want {}", fingerprints.len()),
            Message::Given { entries, more } => {
                write!(f, "Given {}{}", entries.len(), if *more { " more" } else { "" })
            }
            Message::Description(Answer::Symbols { run, end }) => {
                let (start, until, total) = (run.start, run.end(), run.total);
                let more = if end.is_some() { " more" } else { "" };
                write!(f, "Description by symbols {start}..{until} of {total}{more}")
            }
            Message::Description(Answer::Sorted(batch)) => {
                let more = if batch.last { "" } else { " more" };
                write!(f, "Description by fingerprints {}{more}", batch.fingerprints.len())
            }
            Message::Check { summary, applied } => {
                let (count, head) = (summary.digest.count, summary.head.sequence.0);
                write!(f, "Check holds {count} head {head} applied {}", applied.0)
            }
            other => write!(f, "{other:?}"),
        }
    }
}
