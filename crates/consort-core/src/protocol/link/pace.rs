//! Saying something not too often: at once if nothing like it was said for a while, else together with what comes until
//! then. So what is said costs so much a second at the most, however much happens, and nothing rare is late.

use core::time::Duration;

use crate::time::Instant;

/// When something was said, and whether there is more to say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    next: Option<Instant>,
    due: Option<Instant>,
}

impl Pace {
    /// Whether it may be said now. If not, it is due later.
    pub(super) fn may(&mut self, now: Instant, every: Duration) -> bool {
        self.due = self.next.filter(|next| now < *next);
        if self.due.is_none() {
            self.next = Some(now + every);
        }
        self.due.is_none()
    }

    /// When something that had to wait is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether something that had to wait is due now. Whoever asks says it, or it is gone.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_micros(100);

    #[test]
    fn what_is_rare_is_said_at_once_and_what_is_frequent_together() {
        let mut pace = Pace::default();
        assert!(pace.may(Instant(5), EVERY));
        assert_eq!(pace.due(), None);
        assert!(!pace.may(Instant(6), EVERY) && !pace.may(Instant(104), EVERY));
        assert_eq!(pace.due(), Some(Instant(105)));
        assert!(!pace.take_due(Instant(104)) && pace.take_due(Instant(105)));
        assert!(pace.may(Instant(105), EVERY));
        assert!(pace.may(Instant(300), EVERY));
    }
}
