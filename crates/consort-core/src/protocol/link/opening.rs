//! How a conversation begins: Hello, and what follows from the two of them. What is compared if they do not tell
//! stands in `comparing.rs`.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use super::checking::FIRST_CHECK_AFTER;
use super::{Ask, Begin, Link, LinkError, State, peer};
use crate::protocol::event::Access;
use crate::protocol::message::{FEATURES, Hello, Message, PROTOCOL_VERSION};
use crate::protocol::news::Elsewhere;
use crate::reconcile::{Describer, Finder};
use crate::store::{Cursor, Sequence, View};

impl Link {
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

    pub(super) fn say_hello(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
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
            reconcile: self.distrust || self.is_adopting(),
            announce: self.elsewhere != Elsewhere::Nobody,
        })
    }

    pub(super) fn on_hello(
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
        (self.begun, self.asked_to_announce) = (self.known, ours.announce);
        if theirs.announce {
            self.backlog = ours.summary.head.sequence;
        }
        self.begin_telling(&ours.summary, &theirs.summary, view)?;
        if ours.summary.digest.count == 0 {
            self.kept_from = self.begun;
        }
        if theirs.summary.digest.count == 0 {
            self.resent = self.resent.max(ours.summary.head.sequence);
        }
        let equal = ours.summary.digest == theirs.summary.digest;
        // Who comes back has the first of its links push, and the others announce.
        self.lazy = !equal && ours.announce && theirs.announce;
        let our_place = place_in_feed(self.ends.theirs, &ours, &theirs);
        let their_place = place_in_feed(self.ends.ours, &theirs, &ours);
        if equal {
            self.go_live(ours.summary.head.sequence, theirs.summary.head.sequence);
            self.cursor_is_stale = ours.cursor != Some(theirs.summary.head);
            self.conclude_at(theirs.summary.head.sequence, to);
        } else if let (Some(our_place), Some(their_place), false) =
            (our_place, their_place, ours.reconcile || theirs.reconcile)
        {
            // What is dead shows in no feed.
            self.buries = false;
            self.go_live(their_place, our_place);
        } else {
            self.sent = ours.summary.head.sequence;
            let difference = theirs.summary.digest.minus(&ours.summary.digest);
            let begin = Begin { head: theirs.summary.head.sequence, difference };
            self.state = if self.ends.opener {
                State::Describing { describer: Describer::default(), begin }
            } else {
                let finder = Box::new(Finder::new(theirs.summary.digest, view.index()));
                State::Comparing { finder, asked: false, begin }
            };
            self.advance_comparison(view, to)?;
        }
        self.pump(view, to)
    }

    pub(super) fn on_restart(
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
    pub(super) fn forget_conversation(&mut self) {
        let fresh = Self::new(self.ends, 0);
        let mut old = core::mem::replace(self, fresh);
        self.inherit(old.take_outstanding());
        self.random = old.random;
        self.conversation = old.conversation;
        self.distrust = old.distrust;
        self.compared = old.compared;
        (self.now, self.heard_at) = (old.now, old.heard_at);
        (self.elsewhere, self.news) = (old.elsewhere, core::mem::take(&mut old.news));
        self.news.forget(self.ends.peer);
        self.adopting = old.adopting;
        (self.came_on_at, self.rests_until) = (old.came_on_at, old.rests_until);
        self.unsettled = self.is_adopting() && !self.outstanding.is_empty();
        (self.held, self.forgets) = (old.held, old.forgets);
    }

    pub(super) fn go_live(&mut self, sent: Sequence, applied: Sequence) {
        self.sent = sent;
        self.applied.sequence = applied;
        self.applying = applied;
        self.state = State::Live;
        self.flooded = self.news.flood();
        self.live_since = self.now.instant;
        self.check_at = Some(self.now.instant + FIRST_CHECK_AFTER);
        self.tell_soon();
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
