//! How changes flow between replicas: a *link* is the conversation of two nodes about one dataset.
//!
//! ```text
//!   opener                       answerer
//!     │◀──────── Restart ───────────┤
//!     │ Hello(conversation, what I hold, how far I applied your feed)
//!     ├────────────────────────────▶│
//!     │◀────────────────────────────┤ Hello(the same about itself)
//!     │      both now know: equal, resume from the cursors, or reconcile
//!     │◀─────── Describe ───────────┤ ┐
//!     ├────── Description ─────────▶│ │ reconcile, until all that differs is found
//!     │◀───── Want, Versions ───────┤ │
//!     ├──────── Given ─────────────▶│ │
//!     │◀────── Reconciled ──────────┤ ┘
//!     │ Versions / Have … Want, Given … Ack, both ways, for as long as they are connected
//! ```
//!
//! Catching up and being live are the same thing: each side reads its own feed from where the other side is, and
//! sends what it finds, commit by commit, as far as acknowledgements allow. Announcements are hints: convergence
//! rests on reconciliation, which begins again whenever two sides that have applied all of each other's feed find
//! that their digests differ ([`Message::Check`]).
//!
//! What was deleted everywhere is forgotten in the end: [`garbage`] decides when.
//!
//! [`message`] says what each message obliges its receiver to, [`event`] is the whole interface to the outside,
//! [`link`] is one conversation, [`replica`] all conversations about one dataset, and [`codec`] the bytes.

pub mod codec;
pub mod event;
pub mod garbage;
pub mod link;
pub mod membership;
pub mod message;
mod news;
pub mod replica;
mod wave;
mod window;

pub use event::{Effect, Event, Now};
pub use message::{Envelope, Hello, Message};
pub use replica::Replica;
