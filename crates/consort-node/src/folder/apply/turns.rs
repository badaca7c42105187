//! Which large files have their turn, where there are more than may be begun at a time: as many as that, in the order
//! of their keys, and those after them when they have ended, however they ended. So files that nobody has keep no others
//! from being begun, and small ones have no turn to wait for.

use consort_core::Key;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Those up to here have had their turn.
    after: Option<Key>,
    /// The last one that was begun.
    last: Option<Key>,
    /// One was put off that has not had its turn.
    more: bool,
    /// One was put off that has had its turn.
    again: bool,
}

/// Where those are that were put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Some of them have not had their turn.
    More,
    /// All of them have had their turn, and begin again.
    Again,
}

impl Turns {
    /// Whether a large file is begun now, if there is `room` for it. Keys that come in order are `listed`.
    pub(super) fn take(&mut self, key: &Key, room: bool, listed: bool) -> bool {
        if listed && self.after.as_ref().is_some_and(|after| key <= after) {
            self.again = true;
            return false;
        }
        self.more |= !room;
        if room && listed && self.last.as_ref() < Some(key) {
            self.last = Some(key.clone());
        }
        room
    }

    /// There is room for those that were put off, if there are such.
    pub(super) fn next(&mut self) -> Option<Next> {
        let next = match (self.more, self.again) {
            (true, _) => Next::More,
            (false, true) => Next::Again,
            (false, false) => return None,
        };
        self.after = self.last.take().filter(|_| next == Next::More);
        (self.more, self.again) = (false, false);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_turn_although_none_of_them_ever_comes() {
        let keys: Vec<Key> = (0..10).map(|n| Key::new(format!("key-{n}")).unwrap()).collect();
        let mut turns = Turns::default();
        let mut round = || {
            let mut begun = Vec::new();
            for key in &keys {
                let room = begun.len() < 4;
                if turns.take(key, room, true) {
                    begun.push(key.clone());
                }
            }
            (begun, turns.next())
        };
        for _ in 0..2 {
            assert_eq!(round(), (keys[..4].to_vec(), Some(Next::More)));
            assert_eq!(round(), (keys[4..8].to_vec(), Some(Next::More)));
            assert_eq!(round(), (keys[8..].to_vec(), Some(Next::Again)));
        }
    }
}
