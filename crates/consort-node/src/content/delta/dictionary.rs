//! What the indices of pages mean. Each value of a dictionary has a *tag* that depends on the value, and hardly ever on
//! anything else: a row that comes or goes changes the order in which values appear first, and with it the indices of all pages.

use consort_core::limits::MAX_DICTIONARY_VALUES;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// So often another tag is tried for a value whose tag another one has.
const MAX_TRIES: u8 = 8;

/// So many places are looked at for a tag. Only who wants that would need more.
const MAX_PROBES: usize = 64;

/// The tags of a dictionary's values.
#[derive(Debug)]
pub(super) struct Dictionary {
    tags: Vec<u32>,
    /// Which index has a tag: at the place that the tag says, or behind. The index is one more, and nothing is 0.
    places: Vec<(u32, u32)>,
}

impl Dictionary {
    /// Reads the plain form of a dictionary. Nothing if its values cannot be told from each other.
    pub(super) fn of(plain: &[u8], count: usize) -> Option<Self> {
        // Each value has a byte at least.
        if count == 0 || MAX_DICTIONARY_VALUES < count || plain.len() < count {
            return None;
        }
        let places = vec![(0, 0); (2 * count).next_power_of_two()];
        let mut dictionary = Self { tags: Vec::with_capacity(count), places };
        // The type of the values is said at the end of the file only.
        let texts = texts(plain, count);
        match &texts {
            Some(texts) => texts.iter().try_for_each(|value| dictionary.add(value))?,
            None if plain.len().is_multiple_of(count) && !plain.is_empty() => {
                plain
                    .chunks_exact(plain.len() / count)
                    .try_for_each(|value| dictionary.add(value))?;
            }
            None => return None,
        }
        Some(dictionary)
    }

    /// The tag of what an index means.
    pub(super) fn tag(&self, index: u32) -> Option<u32> {
        self.tags.get(index as usize).copied()
    }

    /// The index that has a tag.
    pub(super) fn index(&self, tag: u32) -> Option<u32> {
        let place = self.place(tag)?;
        self.places[place].1.checked_sub(1)
    }

    /// The place of a tag, or of where it would be.
    fn place(&self, tag: u32) -> Option<usize> {
        let mask = self.places.len() - 1;
        let places = (tag as usize..).map(|place| place & mask).take(MAX_PROBES);
        places.into_iter().find(|&place| {
            let (other, index) = self.places[place];
            index == 0 || other == tag
        })
    }

    fn add(&mut self, value: &[u8]) -> Option<()> {
        for attempt in 0..MAX_TRIES {
            let tag = tag(value, attempt);
            let place = self.place(tag)?;
            if self.places[place].1 == 0 {
                self.tags.push(tag);
                self.places[place] = (tag, u32::try_from(self.tags.len()).ok()?);
                return Some(());
            }
        }
        None
    }
}

/// The lower half of XXH3 with 64 bits, the attempt being the seed. Both sides have to do the same.
fn tag(value: &[u8], attempt: u8) -> u32 {
    let [a, b, c, d, ..] = xxh3_64_with_seed(value, u64::from(attempt)).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Values with their lengths before them, if they are such.
fn texts(mut plain: &[u8], count: usize) -> Option<Vec<&[u8]>> {
    let mut texts = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, rest) = plain.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        texts.push(text);
        plain = rest;
    }
    plain.is_empty().then_some(texts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(values: impl IntoIterator<Item = u64>) -> Dictionary {
        let plain: Vec<u8> = values.into_iter().flat_map(u64::to_le_bytes).collect();
        Dictionary::of(&plain, plain.len() / 8).expect("a dictionary")
    }

    #[test]
    fn values_have_the_same_tags_in_another_order() {
        let (one, other) = (numbers(0..100_000), numbers((0..100_000).rev()));
        let same = (0..100_000).filter(|&n| one.tag(n) == other.tag(99_999 - n)).count();
        assert!(99_990 < same, "{same}");
        for index in 0..100_000 {
            assert_eq!(one.tag(index).and_then(|tag| one.index(tag)), Some(index));
        }
        assert_eq!(one.tag(100_000), None);
    }

    #[test]
    fn a_value_that_is_there_twice_has_two_tags_and_one_that_is_there_often_makes_no_dictionary() {
        let twice = numbers([7, 7]);
        assert_ne!(twice.tag(0), twice.tag(1));
        assert!(Dictionary::of(&[7; 8 * 9], 9).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, count in 0_usize..200, tag: u32) {
            if let Some(dictionary) = Dictionary::of(&bytes, count) {
                let _ = (dictionary.index(tag), dictionary.tag(tag));
            }
        }
    }
}
