//! Parquet's encoding of small numbers (levels, and indices into a dictionary): runs of one number, and groups of eight that
//! are packed bit by bit. Apache Parquet, `Encodings.md` ("Run Length Encoding / Bit-Packing Hybrid").
//!
//! Which numbers are made runs is left to the writer. Here it is as the writers of Apache's projects do it: eight or more of
//! a number, counted from a place divisible by eight, are a run; the rest is packed, no more than 63 groups behind one header.
//! If a writer does it otherwise, its bytes do not come back, and whoever needs them has to see that.

use consort_core::content::delta::Runs;

/// Numbers that are packed together, and the fewest of one run.
const GROUP: usize = 8;

/// Groups behind one header: their count fits in its byte.
const MAX_GROUPS: usize = 63;

/// The numbers in `bytes`, which must hold nothing else. The caller bounds `runs.count`.
pub(super) fn decode(mut bytes: &[u8], runs: Runs) -> Option<Vec<u32>> {
    let (width, count) = (usize::from(runs.width), runs.count as usize);
    // A run of a few bytes may stand for all of them; nothing else is believed of the count.
    let mut numbers = Vec::with_capacity(count.min(GROUP * bytes.len()));
    while numbers.len() < count {
        let left = count - numbers.len();
        let header = usize::try_from(varint(&mut bytes)?).ok()?;
        let length = header >> 1;
        if length == 0 {
            return None;
        }
        if header & 1 == 0 {
            let (number, rest) = bytes.split_at_checked(width.div_ceil(8))?;
            bytes = rest;
            let mut value = [0; 4];
            value[..number.len()].copy_from_slice(number);
            if left < length {
                return None;
            }
            numbers.resize(numbers.len() + length, u32::from_le_bytes(value));
        } else {
            let (packed, rest) = bytes.split_at_checked(length.checked_mul(width)?)?;
            bytes = rest;
            if left.div_ceil(GROUP) < length {
                return None;
            }
            unpack(packed, width, left.min(length * GROUP), &mut numbers);
        }
    }
    bytes.is_empty().then_some(numbers)
}

/// The bytes of these numbers. Higher bits than `width` are lost.
pub(super) fn encode(numbers: &[u32], width: u8) -> Vec<u8> {
    let mut encoder = Encoder { width: usize::from(width), bytes: Vec::new(), literals: 0..0 };
    let mut at = 0;
    while at < numbers.len() {
        let rest = &numbers[at..];
        // Whether a run can begin is asked at each group.
        let run = rest.iter().take_while(|&&number| number == rest[0]).count();
        let ends = run == rest.len() && encoder.literals.is_empty();
        if GROUP <= run || ends {
            encoder.flush(numbers);
            encoder.run(rest[0], run);
            at += run;
            encoder.literals = at..at;
        } else {
            at = (at + GROUP).min(numbers.len());
            encoder.literals.end = at;
            if encoder.literals.len() == MAX_GROUPS * GROUP {
                encoder.flush(numbers);
                encoder.literals = at..at;
            }
        }
    }
    encoder.flush(numbers);
    encoder.bytes
}

struct Encoder {
    width: usize,
    bytes: Vec<u8>,
    /// The numbers that are to be packed.
    literals: std::ops::Range<usize>,
}

impl Encoder {
    fn run(&mut self, number: u32, length: usize) {
        let mut header = (length as u64) << 1;
        while 0x80 <= header {
            self.bytes.push(header.to_le_bytes()[0] | 0x80);
            header >>= 7;
        }
        self.bytes.push(header.to_le_bytes()[0]);
        self.bytes.extend_from_slice(&number.to_le_bytes()[..self.width.div_ceil(8)]);
    }

    /// Packs what is to be packed.
    fn flush(&mut self, numbers: &[u32]) {
        let literals = &numbers[self.literals.clone()];
        if literals.is_empty() {
            return;
        }
        let groups = literals.len().div_ceil(GROUP);
        let header = u8::try_from(groups << 1 | 1).expect("63 groups at the most");
        self.bytes.push(header);
        let end = self.bytes.len() + groups * self.width;
        let mask = (1_u64 << self.width) - 1;
        let (mut bits, mut filled) = (0_u64, 0);
        for &number in literals {
            bits |= (u64::from(number) & mask) << filled;
            filled += self.width;
            while 8 <= filled {
                self.bytes.push(bits.to_le_bytes()[0]);
                bits >>= 8;
                filled -= 8;
            }
        }
        if filled != 0 {
            self.bytes.push(bits.to_le_bytes()[0]);
        }
        self.bytes.resize(end, 0);
        self.literals.start = self.literals.end;
    }
}

/// Appends `count` numbers, all of which are in `packed`.
fn unpack(packed: &[u8], width: usize, count: usize, to: &mut Vec<u32>) {
    let mask = (1_u64 << width) - 1;
    let mut bytes = packed.iter();
    let (mut bits, mut filled) = (0_u64, 0);
    for _ in 0..count {
        while filled < width {
            bits |= u64::from(bytes.next().copied().unwrap_or(0)) << filled;
            filled += 8;
        }
        to.push(u32::try_from(bits & mask).expect("32 bits at the most"));
        bits >>= width;
        filled -= width;
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same rule, number by number, as the writers state it.
    fn one_by_one(numbers: &[u32], width: u8) -> Vec<u8> {
        let mut encoder = Encoder { width: usize::from(width), bytes: Vec::new(), literals: 0..0 };
        // The numbers that are not yet known to be packed, and how many of the last one there are.
        let (mut waiting, mut repeated, mut last) = (0, 0, 0);
        for (at, &number) in numbers.iter().enumerate() {
            if repeated != 0 && number == last {
                repeated += 1;
                if 8 < repeated {
                    continue;
                }
            } else {
                if 8 <= repeated {
                    encoder.run(last, repeated);
                    encoder.literals = at..at;
                    waiting = 0;
                }
                (repeated, last) = (1, number);
            }
            waiting += 1;
            if waiting == 8 {
                waiting = 0;
                if 8 <= repeated {
                    encoder.flush(numbers);
                } else {
                    repeated = 0;
                    encoder.literals.end = at + 1;
                    if encoder.literals.len() == 63 * 8 {
                        encoder.flush(numbers);
                    }
                }
            }
        }
        let only_repeated = encoder.literals.is_empty() && (repeated == waiting || waiting == 0);
        if repeated != 0 && only_repeated {
            encoder.run(last, repeated);
        } else {
            encoder.literals.end += waiting;
            encoder.flush(numbers);
        }
        encoder.bytes
    }

    fn numbers() -> impl Strategy<Value = Vec<u32>> {
        let stretch = (any::<u32>(), 1_u32..40, any::<bool>()).prop_map(|(first, length, same)| {
            let step = if same { 0 } else { 0x9e37_79b9 };
            (0..length).map(|n| first.wrapping_add(n.wrapping_mul(step))).collect::<Vec<_>>()
        });
        proptest::collection::vec(stretch, 0..60).prop_map(|stretches| stretches.concat())
    }

    proptest! {
        #[test]
        fn numbers_come_back(numbers in numbers(), width in 1_u8..=32) {
            let mask = u32::try_from((1_u64 << width) - 1).expect("32 bits");
            let numbers: Vec<u32> = numbers.into_iter().map(|number| number & mask).collect();
            let bytes = encode(&numbers, width);
            let runs = Runs { width, count: u32::try_from(numbers.len()).expect("few") };
            prop_assert_eq!(&bytes, &one_by_one(&numbers, width));
            prop_assert_eq!(decode(&bytes, runs), Some(numbers));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, width in 1_u8..=32, count in 0_u32..100_000) {
            let _ = decode(&bytes, Runs { width, count });
        }
    }

    #[test]
    fn a_run_that_claims_too_much_is_refused() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0x0e, 1];
        assert_eq!(decode(&bytes, Runs { width: 1, count: 100 }), None);
    }
}
