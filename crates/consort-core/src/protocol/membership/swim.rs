//! Foca, as the rest of membership sees it: timers become one deadline, what it calls back becomes lists.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::fmt;
use core::num::{NonZeroU8, NonZeroUsize};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use foca::{Config, Foca, NoCustomBroadcast, Notification, Runtime, State, Timer};
use rand_core::TryRng;

use super::Liveness;
use super::wire::{Bytes, MAX_SWIM_BYTES, Process};
use crate::model::id::NodeId;
use crate::random::Random;
use crate::time::Instant;

/// How often one member is probed. Whoever fails is noticed in about this time, since each is probed by one on average.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take before others are asked to probe.
const ANSWER_WITHIN: Duration = Duration::from_millis(400);
/// How many are asked to, and how many random members are told news at a time.
const HELPERS: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");
/// How long one that is gone is remembered.
const REMEMBER_GONE: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Swim {
    // It is large.
    foca: Box<Foca<Process, Bytes, Seeded, NoCustomBroadcast>>,
    outside: Outside,
    /// What was reported of each last.
    reported: BTreeMap<NodeId, Liveness>,
    /// Something may differ from that.
    written: Arc<AtomicBool>,
}

/// Foca did not understand a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

impl Swim {
    pub(super) fn new(node: NodeId, started: u32, seed: u64) -> Self {
        let process = Process { node, started, renewed: 0 };
        let written = Arc::new(AtomicBool::new(false));
        let bytes = Bytes { written: Arc::clone(&written) };
        let foca = Foca::new(process, config(1), Seeded(Random::new(seed)), bytes);
        Self {
            foca: Box::new(foca),
            outside: Outside::default(),
            reported: BTreeMap::new(),
            written,
        }
    }

    /// The cluster has so many members now.
    pub(super) fn resize(&mut self, members: usize) {
        let kept = self.foca.set_config(config(members));
        debug_assert!(kept.is_ok(), "only what may change does");
    }

    /// Says to a member that this node is there; it answers with others that are.
    pub(super) fn announce(&mut self, node: NodeId, now: Instant) {
        let any = Process { node, started: 0, renewed: 0 };
        self.with(now, |foca, outside| foca.announce(any, outside));
    }

    /// The same, to any that is there.
    pub(super) fn announce_to_any(&mut self, now: Instant) {
        let active = self.foca.num_members() as u64;
        if active == 0 {
            return;
        }
        let choice = self.outside.next_timer % active;
        let chosen = self.foca.iter_members().nth(usize::try_from(choice).unwrap_or(0));
        if let Some(process) = chosen.map(|member| *member.id()) {
            self.with(now, |foca, outside| foca.announce(process, outside));
        }
    }

    pub(super) fn has_something_to_tell(&self) -> bool {
        self.foca.updates_backlog() != 0
    }

    pub(super) fn gossip(&mut self, now: Instant) {
        self.with(now, |foca, outside| foca.gossip(outside));
    }

    pub(super) fn receive(&mut self, datagram: &[u8], now: Instant) -> Result<(), Refused> {
        self.outside.now = now;
        self.foca.handle_data(datagram, &mut self.outside).map_err(|_| Refused)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.outside.timers.first_key_value().map(|((at, ..), _)| *at)
    }

    /// Whatever was due before `now`. One that is connected is not declared gone: that it answers no datagram may be
    /// a firewall's doing, and its connection tells when it is gone.
    pub(super) fn on_time(&mut self, now: Instant, is_connected: impl Fn(NodeId) -> bool) {
        while let Some(entry) = self.outside.timers.first_entry()
            && entry.key().0 <= now
        {
            let timer = entry.remove();
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer
                && is_connected(member_id.node)
            {
                continue;
            }
            self.with(now, |foca, outside| foca.handle_timer(timer, outside));
        }
    }

    /// What foca wants to be sent.
    pub(super) fn take_sends(&mut self) -> Vec<(NodeId, Vec<u8>)> {
        core::mem::take(&mut self.outside.sends)
    }

    /// Who is found to be otherwise than before.
    pub(super) fn take_changes(&mut self) -> Vec<(NodeId, Liveness)> {
        if !self.written.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for member in self.foca.iter_membership_state() {
            let liveness = match member.state() {
                State::Alive => Liveness::Alive,
                State::Suspect => Liveness::Suspected,
                State::Down => Liveness::Gone,
            };
            let node = member.id().node;
            if self.reported.insert(node, liveness) != Some(liveness) {
                changes.push((node, liveness));
            }
        }
        changes
    }

    /// What is found about this node is a change again.
    pub(super) fn report_again(&mut self, node: NodeId) {
        self.reported.remove(&node);
        self.written.store(true, Ordering::Relaxed);
    }

    fn with(
        &mut self,
        now: Instant,
        act: impl FnOnce(
            &mut Foca<Process, Bytes, Seeded, NoCustomBroadcast>,
            &mut Outside,
        ) -> Result<(), foca::Error>,
    ) {
        self.outside.now = now;
        let outcome = act(&mut self.foca, &mut self.outside);
        debug_assert!(outcome.is_ok(), "foca: {outcome:?}");
    }
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim").field("process", self.foca.identity()).finish_non_exhaustive()
    }
}

/// Longer suspicion and more repetition in larger clusters, where rumours take longer; as memberlist does it.
fn config(members: usize) -> Config {
    let bits = usize::BITS - members.leading_zeros();
    let repeat = u8::try_from(3 + bits).unwrap_or(u8::MAX);
    Config {
        probe_period: PROBE_EVERY,
        probe_rtt: ANSWER_WITHIN,
        num_indirect_probes: HELPERS,
        max_transmissions: NonZeroU8::new(repeat).unwrap_or(NonZeroU8::MAX),
        suspect_to_down_after: PROBE_EVERY * (bits * 4 / 3).max(4),
        remove_down_after: Some(REMEMBER_GONE),
        max_packet_size: NonZeroUsize::new(MAX_SWIM_BYTES).expect("it is not zero"),
        notify_down_members: true,
        // Membership does these itself: also while nobody is seen, and with the facts' members.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: None,
    }
}

/// What foca calls.
#[derive(Default)]
struct Outside {
    now: Instant,
    sends: Vec<(NodeId, Vec<u8>)>,
    /// By time, in foca's own order for those of one time, and by number.
    timers: BTreeMap<(Instant, u8, u64), Timer<Process>>,
    next_timer: u64,
}

impl Runtime<Process> for Outside {
    fn notify(&mut self, _: Notification<'_, Process>) {}

    fn send_to(&mut self, to: Process, data: &[u8]) {
        self.sends.push((to.node, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<Process>, after: Duration) {
        // Foca checks that an indirect probe comes before the next probe.
        let order = match timer {
            Timer::SendIndirectProbe { .. } => 0,
            Timer::ProbeRandomMember(_) => 1,
            _ => 2,
        };
        self.timers.insert((self.now + after, order, self.next_timer), timer);
        self.next_timer += 1;
    }
}

/// Our randomness in the form that foca takes.
struct Seeded(Random);

impl TryRng for Seeded {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.0.next_u64() >> 32).unwrap_or(u32::MAX))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        for part in to.chunks_mut(8) {
            part.copy_from_slice(&self.0.next_u64().to_le_bytes()[..part.len()]);
        }
        Ok(())
    }
}
