//! Boundaries that are known from an earlier content. Where the bytes are the same on both sides of one, it is one again, and
//! hashes show that they are: those have to be taken anyway, and looking for a boundary takes longer than hashing. Whether an earlier
//! content may be followed is for the caller to know: this node's own [`Chunker`] has cut it, and it [was
//! plain](Chunker::is_plain).

use alloc::collections::VecDeque;

use super::Chunker;
use crate::content::{ChunkHash, ChunkRef};

/// Chunks of the earlier content that are kept in mind to fall back into step: after as much of it is gone, about 32 MiB.
const MAX_AHEAD: usize = 512;

/// Chunks after which it is not likely any more that the earlier content comes back: about 64 MiB.
const MAX_MISSES: usize = 1024;

/// Finds the boundaries that a [`Chunker`] finds, with the help of those of an earlier content.
#[derive(Debug)]
pub struct Follower<I> {
    chunker: Chunker,
    /// The chunks of the earlier content that have not come, in order; none if it is not followed any more.
    earlier: Option<I>,
    /// The first of them.
    ahead: VecDeque<ChunkRef>,
    /// Chunks since the last one that both have.
    misses: usize,
    /// The first of `ahead` was seen to be what comes next.
    is_next: bool,
}

impl<I: Iterator<Item = ChunkRef>> Follower<I> {
    /// Follows a content with these chunks, if there is one.
    pub fn new(earlier: Option<I>) -> Self {
        Self {
            chunker: Chunker::default(),
            earlier,
            ahead: VecDeque::new(),
            misses: 0,
            is_next: false,
        }
    }

    /// The length of the next chunk, as [`Chunker::next`]; and its hash, where that was needed to find it.
    pub fn next(&mut self, bytes: &[u8]) -> (usize, Option<ChunkHash>) {
        if self.earlier.is_none() {
            return (self.chunker.next(bytes), None);
        }
        self.look_ahead();
        // Where a chunk ends depends on the first byte behind it, too, so the one after it has to be the same. The last one
        // ended because the content did.
        let is_next = core::mem::take(&mut self.is_next);
        if self.chunker.is_plain()
            && self.misses == 0
            && let (Some(next), Some(after)) = (self.ahead.front().copied(), self.ahead.get(1))
            && let Some((same, rest)) = bytes.split_at_checked(next.length as usize)
            && (is_next || next.is(same))
            && rest.get(..after.length as usize).is_some_and(|rest| after.is(rest))
        {
            self.ahead.pop_front();
            self.chunker.pass(same.len());
            self.is_next = true;
            return (same.len(), Some(next.hash));
        }
        let length = self.chunker.next(bytes);
        let chunk = ChunkRef::to(&bytes[..length]);
        match self.ahead.iter().position(|ahead| *ahead == chunk) {
            Some(at) => {
                self.ahead.drain(..=at);
                self.misses = 0;
            }
            None => self.misses += 1,
        }
        if !self.chunker.is_plain() || MAX_MISSES < self.misses {
            self.earlier = None;
            self.ahead = VecDeque::new();
        }
        (length, Some(chunk.hash))
    }

    /// Whether the content is [plain](Chunker::is_plain).
    pub fn is_plain(&self) -> bool {
        self.chunker.is_plain()
    }

    fn look_ahead(&mut self) {
        let lacking = MAX_AHEAD - self.ahead.len();
        self.ahead.extend(self.earlier.iter_mut().flatten().take(lacking));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::super::tests::{files, noise};
    use super::*;
    use crate::limits::MAX_CHUNK_BYTES;

    fn chunks(bytes: &[u8]) -> Vec<ChunkRef> {
        Chunker::default().chunks(bytes).map(ChunkRef::to).collect()
    }

    /// The chunks that a follower finds, and how many of them it did not expect.
    fn follow(earlier: &[ChunkRef], bytes: &[u8]) -> (Vec<ChunkRef>, usize) {
        let mut follower = Follower::new(Some(earlier.iter().copied()));
        let (mut found, mut unexpected, mut at) = (Vec::new(), 0, 0);
        while at < bytes.len() {
            // No more than must be there.
            let (length, hash) = follower.next(&bytes[at..bytes.len().min(at + MAX_CHUNK_BYTES)]);
            let chunk = ChunkRef::to(&bytes[at..at + length]);
            assert!(hash.is_none_or(|hash| hash == chunk.hash));
            unexpected += usize::from(follower.earlier.is_none() || follower.misses != 0);
            found.push(chunk);
            at += length;
        }
        (found, unexpected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn whoever_follows_finds_the_boundaries_that_everybody_finds(
            length in 0usize..2_000_000,
            alphabet in 1u8..=255,
            edits in prop::collection::vec(
                (any::<prop::sample::Index>(), any::<bool>(), 0usize..300_000, 0usize..3_000),
                0..4,
            ),
        ) {
            let few = |bytes: Vec<u8>| -> Vec<u8> { bytes.into_iter().map(|byte| byte % alphabet).collect() };
            let before = few(noise(length, 0));
            let mut after = before.clone();
            for (seed, (at, is_at_boundary, gone, more)) in (1..).zip(edits) {
                let mut at = at.index(after.len() + 1);
                if is_at_boundary {
                    let ends = chunks(&after).iter().scan(0, |end, chunk| {
                        *end += chunk.length as usize;
                        Some(*end)
                    }).collect::<Vec<_>>();
                    at = ends.into_iter().find(|end| at <= *end).unwrap_or(at);
                }
                let end = after.len().min(at + gone);
                after.splice(at..end, few(noise(more, seed)));
            }
            prop_assert_eq!(follow(&chunks(&before), &after).0, chunks(&after));
        }
    }

    #[test]
    fn a_chunk_does_not_end_where_only_the_first_byte_behind_it_has_changed() {
        let before = noise(4_000_000, 0);
        let earlier = chunks(&before);
        let mut at = 0;
        for chunk in &earlier[..earlier.len() - 1] {
            at += chunk.length as usize;
            let mut replaced = before.clone();
            replaced[at] ^= 1;
            let mut inserted = before.clone();
            inserted.insert(at, 7);
            let deleted = [&before[..at], &before[at + 1..]].concat();
            for after in [replaced, inserted, deleted, before[..at].to_vec()] {
                assert_eq!(follow(&earlier, &after).0, chunks(&after));
            }
        }
    }

    #[test]
    fn a_follower_falls_back_into_step_behind_a_change() {
        let before = noise(4_000_000, 0);
        let earlier = chunks(&before);
        assert_eq!(follow(&earlier, &before).1, 0);
        let mut inserted = before.clone();
        inserted.splice(0..0, noise(1024, 1));
        let mut replaced = before.clone();
        replaced[2_000_000] ^= 1;
        let appended = [before.clone(), noise(100_000, 1)].concat();
        let deleted = [&before[..1_000_000], &before[3_000_000..]].concat();
        for after in [inserted, replaced, appended, deleted] {
            let (found, unexpected) = follow(&earlier, &after);
            assert_eq!(found, chunks(&after));
            assert!(unexpected < 6, "{unexpected} of {} chunks", found.len());
        }
    }

    #[test]
    fn what_shows_a_format_follows_nothing() {
        let bodies: Vec<_> = (1..20).map(|seed| noise(90_000, seed)).collect();
        for file in files(&bodies) {
            // As it was before somebody wrote its first bytes.
            let mut plain = file.clone();
            plain[..300].fill(0);
            assert_ne!(chunks(&plain), chunks(&file));
            let (found, unexpected) = follow(&chunks(&plain), &file);
            assert_eq!(found, chunks(&file));
            assert_eq!(unexpected, found.len());
        }
    }

    #[test]
    fn what_has_nothing_in_common_is_followed_no_more() {
        let bytes = noise(90_000_000, 1);
        let mut follower = Follower::new(Some(chunks(&noise(1_000_000, 0)).into_iter()));
        let (mut at, mut hashed) = (0, 0);
        while at < bytes.len() {
            let (length, hash) = follower.next(&bytes[at..bytes.len().min(at + MAX_CHUNK_BYTES)]);
            at += length;
            hashed += usize::from(hash.is_some());
        }
        assert_eq!(hashed, MAX_MISSES + 1);
    }
}
