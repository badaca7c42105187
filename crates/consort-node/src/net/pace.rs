//! How fast bytes may pass, in one direction, over all connections of a network together. The sockets that they pass
//! are in [`super::socket`]; where a limit comes from, and when another one holds, is the business of whoever runs the
//! node.
//!
//! What passes is paid for afterwards: a clock tells until when what has passed is paid for, and each piece moves it
//! ahead by the time that the piece takes at the limit. The next piece passes when that time has come. So nobody needs
//! to know beforehand how much will pass, and nothing is reserved that might not be used.
//!
//! Control connections move that clock too, so that the limit holds for all, but do not wait for it. They wait for a
//! clock of their own, which only they move: a heartbeat or a small change passes in the midst of a large transfer.
//!
//! Whoever comes too early waits in a line, and is woken when it is its turn. If all were woken, the one that passed
//! last would be the first again, every time. Whoever does not come when it is woken, because its connection has
//! ended or does something else, loses its turn and holds nobody up.
//!
//! Pieces are so small that one is paid for within [`BURST`]. So waits are short, and a new limit holds a moment after
//! it was set, for those who wait as well.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::num::NonZeroU64;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::lock;

/// How much of the time in which nothing passed may be made up for. It has to be more than what a timer is late by, or
/// the limit would not be reached; what is saved up beyond that would come as a flood.
const BURST: Duration = Duration::from_millis(50);

/// The largest piece that passes at a time, in bytes.
const MAX_PIECE_BYTES: u64 = 64 << 10;

/// How long the first in line may take to come once it is woken. More than it takes, and less than would be missed.
const TURN: Duration = Duration::from_millis(1);

/// So many bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// The least that a node can be limited to, in bytes a second. An answer with a large chunk (256 KiB) has to get
    /// through within a minute, and a node may have to answer eight neighbours at once; a peer of which nothing at all
    /// is heard for 15 seconds is taken for gone.
    pub const MIN_BYTES: u64 = 64_000;

    /// None if it is less than [`MIN_BYTES`](Self::MIN_BYTES).
    pub fn new(bytes_per_second: u64) -> Option<Self> {
        let rate = NonZeroU64::new(bytes_per_second)?;
        (Self::MIN_BYTES <= bytes_per_second).then_some(Self(rate))
    }

    /// Bytes a second.
    pub fn bytes(self) -> u64 {
        self.0.get()
    }

    /// How long so many bytes take.
    fn time_of(self, bytes: usize) -> Duration {
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(self.0.get().into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What may pass at a time.
    fn piece(self) -> usize {
        let in_burst = u128::from(self.0.get()) * BURST.as_millis() / 1000;
        usize::try_from(in_burst.min(MAX_PIECE_BYTES.into())).expect("a piece is small")
    }
}

/// How fast a node may send and receive, over all connections together. Datagrams do not count: they are few and small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What it may send; none is no limit.
    pub up: Option<Rate>,
    /// What it may receive; none is no limit.
    pub down: Option<Rate>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Links, handshakes, and whatever else is small and urgent.
    Control,
    /// The bytes of contents.
    Content,
}

/// Paces one direction.
#[derive(Debug)]
pub(super) struct Pacer {
    epoch: Instant,
    lines: Mutex<Lines>,
    /// For each line: somebody has come to wait, or the first has had its turn.
    moved: [Notify; 2],
}

/// Who waits, and until when.
#[derive(Debug, Default)]
struct Lines {
    /// Under the same lock as who waits, so that nobody begins to wait for a limit that is gone.
    limit: Option<Rate>,
    clocks: Clocks,
    /// Who waits in each line, by its number. There is at most one for each direction of a connection.
    waiting: [BTreeMap<u64, Waker>; 2],
    next_number: u64,
}

/// Where one direction of a connection stands in line, if it waits.
#[derive(Debug, Default)]
pub(super) struct Place(Option<u64>);

impl Pacer {
    /// Without a limit.
    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), lines: Mutex::default(), moved: Default::default() }
    }

    /// Replaces the limit. What has passed is paid for as it was.
    pub(super) fn set(&self, limit: Option<Rate>) {
        let mut lines = lock(&self.lines);
        lines.limit = limit;
        if limit.is_none() {
            let waiting = std::mem::take(&mut lines.waiting);
            drop(lines);
            waiting.into_iter().flat_map(BTreeMap::into_values).for_each(Waker::wake);
        }
    }

    pub(super) fn limit(&self) -> Option<Rate> {
        lock(&self.lines).limit
    }

    /// Lets `pass` pass a piece when its turn has come, and says what came of it. It is told how many bytes that may be
    /// at most, says how many it were, and must not block: while there is a limit, one piece passes after the other, or
    /// several could take the same time for theirs.
    pub(super) fn poll_pass(
        &self,
        lane: Lane,
        place: &mut Place,
        cx: &mut Context<'_>,
        pass: impl FnOnce(usize) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut lines = lock(&self.lines);
        let Some(rate) = lines.limit else {
            drop(lines);
            place.0 = None;
            return Poll::Ready(pass(usize::MAX));
        };
        let now = self.epoch.elapsed();
        let is_first = match lines.waiting[lane as usize].first_key_value() {
            Some((first, _)) => place.0.is_some_and(|number| number <= *first),
            None => true,
        };
        if !is_first || now < lines.clocks.free_at(lane) {
            let number = *place.0.get_or_insert_with(|| {
                lines.next_number += 1;
                lines.next_number
            });
            lines.waiting[lane as usize].insert(number, cx.waker().clone());
            self.moved[lane as usize].notify_one();
            return Poll::Pending;
        }
        if let Some(number) = place.0.take() {
            lines.waiting[lane as usize].remove(&number);
        }
        let passed = pass(rate.piece());
        if let Ok(bytes) = passed {
            lines.clocks.charge(lane, rate.time_of(bytes), now);
        }
        if !lines.waiting[lane as usize].is_empty() {
            self.moved[lane as usize].notify_one();
        }
        Poll::Ready(passed)
    }

    /// Wakes those who wait, each when it is its turn. Without it nobody who waits goes on.
    pub(super) async fn keep(&self) -> Infallible {
        tokio::select! {
            never = self.keep_line(Lane::Control) => never,
            never = self.keep_line(Lane::Content) => never,
        }
    }

    async fn keep_line(&self, lane: Lane) -> Infallible {
        let moved = &self.moved[lane as usize];
        loop {
            let free = {
                let lines = lock(&self.lines);
                let waits = !lines.waiting[lane as usize].is_empty();
                waits.then(|| lines.clocks.free_at(lane))
            };
            let Some(free) = free else {
                moved.notified().await;
                continue;
            };
            sleep_until(self.epoch + free).await;
            let first = lock(&self.lines).waiting[lane as usize].pop_first();
            if let Some((_, waker)) = first {
                waker.wake();
                // Who was woken and finds that it is too early yet keeps its number, and is the first again.
                let _ = timeout(TURN, moved.notified()).await;
            }
        }
    }
}

/// Until when is paid for what has passed, by the time since some moment.
#[derive(Debug, Default)]
struct Clocks {
    /// For all that has passed.
    all: Duration,
    /// For what has passed on control connections.
    control: Duration,
}

impl Clocks {
    /// When the next piece may pass.
    fn free_at(&self, lane: Lane) -> Duration {
        match lane {
            Lane::Control => self.control,
            Lane::Content => self.all,
        }
    }

    /// A piece has passed that takes so long at the limit.
    fn charge(&mut self, lane: Lane, takes: Duration, now: Duration) {
        let charge =
            |clock: &mut Duration| *clock = takes + (*clock).max(now.saturating_sub(BURST));
        charge(&mut self.all);
        if lane == Lane::Control {
            charge(&mut self.control);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// What a piece was, and when it passed.
    #[derive(Clone, Copy, Debug)]
    struct Passed {
        at: Duration,
        lane: Lane,
        bytes: usize,
    }

    /// Somebody comes, after so many microseconds, with so many bytes.
    type Coming = (u64, bool, usize);

    fn comings() -> impl Strategy<Value = (u64, Vec<Coming>)> {
        let rates = prop_oneof![
            Rate::MIN_BYTES..1_000_000,
            1_000_000..100_000_000u64,
            Just(Rate::MIN_BYTES),
            Just(10_000_000_000)
        ];
        let pause = prop_oneof![Just(0), 0..2_000u64, 0..300_000u64];
        let coming = (pause, any::<bool>(), 1..100_000usize);
        (rates, prop::collection::vec(coming, 1..120))
    }

    /// All that passes when those who come wait as long as they are told, and no longer. `waited` sees each wait: what
    /// passed before, who waits, and until when.
    fn run(
        rate: Rate,
        comings: &[Coming],
        lane: impl Fn(bool) -> Lane,
        mut waited: impl FnMut(&[Passed], Lane, Duration),
    ) -> Vec<Passed> {
        let (mut clocks, mut all) = (Clocks::default(), Vec::new());
        let mut now = Duration::from_secs(1);
        for (pause, control, bytes) in comings {
            now += Duration::from_micros(*pause);
            let lane = lane(*control);
            let free = clocks.free_at(lane);
            if now < free {
                waited(&all, lane, free);
                now = free;
            }
            let bytes = rate.piece().min(*bytes);
            clocks.charge(lane, rate.time_of(bytes), now);
            all.push(Passed { at: now, lane, bytes });
        }
        all
    }

    /// The most that passes within any interval, beyond what the rate gives in it.
    fn excess(rate: Rate, passed: &[Passed]) -> f64 {
        let mut most = 0f64;
        for (index, first) in passed.iter().enumerate() {
            let mut bytes = 0;
            for last in &passed[index..] {
                bytes += last.bytes;
                let given = rate.bytes() as f64 * (last.at - first.at).as_secs_f64();
                most = most.max(bytes as f64 - given);
            }
        }
        most
    }

    fn allowed(rate: Rate) -> f64 {
        rate.bytes() as f64 * BURST.as_secs_f64() + rate.piece() as f64 + 1.0
    }

    proptest! {
        #[test]
        fn over_any_interval_no_more_passes_than_the_rate_gives_with_one_burst_and_one_piece(
            (rate, comings) in comings()
        ) {
            let rate = Rate::new(rate).expect("enough");
            for lane in [Lane::Content, Lane::Control] {
                let passed = run(rate, &comings, |_| lane, |_, _, _| {});
                prop_assert!(excess(rate, &passed) <= allowed(rate));
            }
        }

        #[test]
        fn control_that_does_not_wait_for_content_adds_no_more_than_a_burst_and_a_piece_of_its_own(
            (rate, comings) in comings()
        ) {
            let rate = Rate::new(rate).expect("enough");
            let lane = |control| if control { Lane::Control } else { Lane::Content };
            let passed = run(rate, &comings, lane, |_, _, _| {});
            prop_assert!(excess(rate, &passed) <= 2.0 * allowed(rate));
        }

        #[test]
        fn nobody_waits_unless_more_than_the_rate_gives_has_passed_and_control_waits_for_control_only(
            (rate, comings) in comings()
        ) {
            let rate = Rate::new(rate).expect("enough");
            let lane = |control| if control { Lane::Control } else { Lane::Content };
            run(rate, &comings, lane, |passed, lane, until| {
                let counts = |passed: &Passed| lane == Lane::Content || passed.lane == lane;
                let mut bytes = 0;
                let is_too_much = passed.iter().rev().filter(|passed| counts(passed)).any(|passed| {
                    bytes += passed.bytes;
                    // Each piece's time is rounded up to a nanosecond.
                    let spare = Duration::from_nanos(comings.len() as u64);
                    until <= passed.at + rate.time_of(bytes) + spare
                });
                assert!(is_too_much, "a wait until {until:?} for nothing");
            });
        }

        #[test]
        fn waits_are_short(
            (rate, comings) in comings()
        ) {
            let rate = Rate::new(rate).expect("enough");
            let lane = |control| if control { Lane::Control } else { Lane::Content };
            run(rate, &comings, lane, |passed, lane, until| {
                let last = passed.last().expect("nobody waits for nothing").at;
                let most = if lane == Lane::Control { BURST } else { 3 * BURST };
                assert!(until <= last + most + Duration::from_micros(1), "{until:?} {last:?}");
            });
        }
    }

    /// Lets so many bytes pass.
    async fn transfer(pacer: &Pacer, lane: Lane, bytes: usize) {
        let (mut place, mut left) = (Place::default(), bytes);
        while left != 0 {
            let passed =
                poll_fn(|cx| pacer.poll_pass(lane, &mut place, cx, |most| Ok(most.min(left))));
            left -= passed.await.expect("nothing fails");
        }
    }

    fn limited(bytes_per_second: u64) -> Arc<Pacer> {
        let pacer = Pacer::new();
        pacer.set(Rate::new(bytes_per_second));
        let pacer = Arc::new(pacer);
        let keeper = Arc::clone(&pacer);
        tokio::spawn(async move { keeper.keep().await });
        pacer
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_takes_as_long_as_the_limit_says_by_a_clock_that_the_test_turns() {
        let (pacer, began) = (limited(2_500_000), Instant::now());
        let one = transfer(&pacer, Lane::Content, 8_000_000);
        let other = transfer(&pacer, Lane::Content, 12_000_000);
        tokio::join!(one, other);
        let took = began.elapsed().as_millis();
        assert!((7_900..8_050).contains(&took), "{took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_all_passes_at_once_and_nothing_is_charged() {
        let pacer = Pacer::new();
        let began = Instant::now();
        transfer(&pacer, Lane::Content, 1 << 30).await;
        assert_eq!(
            (began.elapsed(), lock(&pacer.lines).clocks.all),
            (Duration::ZERO, Duration::ZERO)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn control_passes_in_the_midst_of_content_and_is_charged_to_it() {
        let pacer = limited(1_000_000);
        let content = tokio::spawn({
            let pacer = Arc::clone(&pacer);
            async move { transfer(&pacer, Lane::Content, 1_000_000).await }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        transfer(&pacer, Lane::Control, 1000).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let (before, after) = {
            let clocks = &mut lock(&pacer.lines).clocks;
            let before = clocks.all;
            clocks.charge(Lane::Control, Duration::from_millis(7), pacer.epoch.elapsed());
            (before, clocks.all)
        };
        assert_eq!(after - before, Duration::from_millis(7));
        assert!(!content.is_finished());
        content.await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_limit_holds_for_those_who_wait() {
        let pacer = limited(Rate::MIN_BYTES);
        let content = tokio::spawn({
            let pacer = Arc::clone(&pacer);
            async move { transfer(&pacer, Lane::Content, 1 << 30).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        pacer.set(None);
        content.await.expect("it ends");
        assert!(began.elapsed() <= 2 * BURST, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_wait_together_get_about_the_same() {
        let (pacer, shares) = (limited(1_000_000), [0; 4].map(|_| Arc::new(AtomicUsize::new(0))));
        for share in shares.clone() {
            let pacer = Arc::clone(&pacer);
            tokio::spawn(async move {
                loop {
                    transfer(&pacer, Lane::Content, 1000).await;
                    share.fetch_add(1000, Ordering::Relaxed);
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let shares = shares.map(|share| share.load(Ordering::Relaxed));
        assert!(shares.iter().all(|share| (10_000_000..20_000_000).contains(share)), "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_come_when_it_is_its_turn_holds_nobody_up() {
        let pacer = limited(1_000_000);
        transfer(&pacer, Lane::Content, 200_000).await;
        let mut gone = [0; 20].map(|_| Place::default());
        for place in &mut gone {
            // Polled once, and never again.
            let asked = poll_fn(|cx| Poll::Ready(pacer.poll_pass(Lane::Content, place, cx, Ok)));
            assert!(asked.await.is_pending());
        }
        let began = Instant::now();
        transfer(&pacer, Lane::Content, 1_000_000).await;
        let took = began.elapsed().as_millis();
        assert!((950..1_100).contains(&took), "{took} ms");
        assert!(lock(&pacer.lines).waiting.iter().all(BTreeMap::is_empty));
    }

    #[test]
    fn pieces_are_paid_for_within_a_burst() {
        for bytes in [Rate::MIN_BYTES, 1_000_000, 10_000_000, u64::MAX] {
            let rate = Rate::new(bytes).expect("enough");
            assert!(rate.time_of(rate.piece()) <= BURST, "{bytes}");
        }
        assert_eq!(Rate::new(Rate::MIN_BYTES - 1), None);
    }
}
