//! The bytes of requests and answers; `docs/reconciliation.md` states them.

use alloc::vec::Vec;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::limits::MAX_BATCH_FINGERPRINTS;
use crate::model::fingerprint::Fingerprint;
use crate::reconcile::sorted::Batch;
use crate::reconcile::symbol::Run;
use crate::reconcile::{Answer, MAX_RANGE_FINGERPRINTS, MAX_RUN_SYMBOLS, Request};

const PREFIX: u8 = 0;
const RANGE: u8 = 1;
const FURTHER: u8 = 2;
const SORTED: u8 = 3;

const SYMBOLS: u8 = 0;
const FINGERPRINTS: u8 = 1;

/// Set beside the kind of a request or an answer of symbols if a fingerprint follows.
const BOUNDED: u8 = 4;
/// Set beside the kind of an answer of fingerprints if nothing is above them.
const LAST: u8 = 8;

impl Request {
    /// Appends the bytes.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match *self {
            Self::Prefix { symbols } => {
                to.push(PREFIX);
                Writer(to).count(symbols);
            }
            Self::Range { after, width, symbols } => {
                encode_bound(RANGE, after, to);
                Writer(to).count(width);
                Writer(to).count(symbols);
            }
            Self::Further { symbols } => {
                to.push(FURTHER);
                Writer(to).count(symbols);
            }
            Self::Sorted { after } => encode_bound(SORTED, after, to),
        }
    }

    /// Reads them back.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = from.u8("request")?;
        let number = |from: &mut Reader<'_>, limit: usize| {
            let number = from.varint("request")?;
            let number = usize::try_from(number).ok().filter(|number| (1..=limit).contains(number));
            number.ok_or(DecodeError::Invalid { what: "request" })
        };
        match kind & !BOUNDED {
            PREFIX if kind == PREFIX => {
                Ok(Self::Prefix { symbols: number(from, MAX_RUN_SYMBOLS)? })
            }
            RANGE => Ok(Self::Range {
                after: decode_bound(kind, from)?,
                width: number(from, MAX_RANGE_FINGERPRINTS)?,
                symbols: number(from, MAX_RUN_SYMBOLS)?,
            }),
            FURTHER if kind == FURTHER => {
                Ok(Self::Further { symbols: number(from, MAX_RUN_SYMBOLS)? })
            }
            SORTED => Ok(Self::Sorted { after: decode_bound(kind, from)? }),
            _ => Err(DecodeError::Invalid { what: "request" }),
        }
    }
}

impl Answer {
    /// Appends the bytes.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Symbols { run, end } => {
                encode_bound(SYMBOLS, *end, to);
                run.encode(to);
            }
            Self::Sorted(batch) => {
                to.push(if batch.last { FINGERPRINTS | LAST } else { FINGERPRINTS });
                Writer(to).count(batch.fingerprints.len());
                batch.fingerprints.iter().for_each(|fingerprint| Writer(to).u128(fingerprint.0));
            }
        }
    }

    /// Reads them back.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = from.u8("answer")?;
        if kind & !BOUNDED == SYMBOLS {
            let end = decode_bound(kind, from)?;
            return Ok(Self::Symbols { run: Run::decode(from)?, end });
        }
        if kind & !LAST != FINGERPRINTS {
            return Err(DecodeError::Invalid { what: "answer" });
        }
        let count = from.count(16, MAX_BATCH_FINGERPRINTS, "fingerprints")?;
        let fingerprints = (0..count).map(|_| from.u128("fingerprint").map(Fingerprint));
        let fingerprints = fingerprints.collect::<Result<_, _>>()?;
        Ok(Self::Sorted(Batch { fingerprints, last: kind & LAST != 0 }))
    }
}

fn encode_bound(kind: u8, bound: Option<Fingerprint>, to: &mut Vec<u8>) {
    match bound {
        None => to.push(kind),
        Some(bound) => {
            to.push(kind | BOUNDED);
            Writer(to).u128(bound.0);
        }
    }
}

fn decode_bound(kind: u8, from: &mut Reader<'_>) -> Result<Option<Fingerprint>, DecodeError> {
    if kind & BOUNDED == 0 { Ok(None) } else { from.u128("fingerprint").map(Fingerprint).map(Some) }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::reconcile::generators::{any_answer, any_request};
    use crate::reconcile::symbol::Symbol;

    fn encoded(encode: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn requests_and_answers_come_back_from_their_bytes(
            request in any_request(),
            answer in any_answer(),
        ) {
            let mut bytes = encoded(|to| request.encode(to));
            answer.encode(&mut bytes);
            let mut from = Reader::new(&bytes);
            prop_assert_eq!(Request::decode(&mut from), Ok(request));
            prop_assert_eq!(Answer::decode(&mut from), Ok(answer));
            prop_assert_eq!(from.finish(), Ok(()));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            request in any_request(),
            answer in any_answer(),
            place in any::<prop::sample::Index>(),
            value: u8,
        ) {
            let change = |mut bytes: Vec<u8>| {
                let place = place.index(bytes.len());
                bytes[place] = value;
                bytes
            };
            let bytes = change(encoded(|to| request.encode(to)));
            let mut from = Reader::new(&bytes);
            if let Ok(request) = Request::decode(&mut from) {
                let read = bytes.len() - from.remaining();
                prop_assert_eq!(&encoded(|to| request.encode(to)), &bytes[..read]);
            }
            let bytes = change(encoded(|to| answer.encode(to)));
            let mut from = Reader::new(&bytes);
            if let Ok(answer) = Answer::decode(&mut from) {
                let read = bytes.len() - from.remaining();
                prop_assert_eq!(&encoded(|to| answer.encode(to)), &bytes[..read]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Request::decode(&mut Reader::new(&bytes));
            let _ = Answer::decode(&mut Reader::new(&bytes));
        }
    }

    #[test]
    fn these_bytes_never_change() {
        let after = Some(Fingerprint(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100));
        let bound: Vec<u8> = (0..16).collect();
        let request = |request: Request| encoded(|to| request.encode(to));
        assert_eq!(request(Request::Prefix { symbols: 32 }), [0, 32]);
        assert_eq!(request(Request::Further { symbols: 300 }), [2, 0xac, 2]);
        assert_eq!(request(Request::Sorted { after: None }), [3]);
        assert_eq!(request(Request::Sorted { after }), [&[7], &bound[..]].concat());
        let range = request(Request::Range { after, width: 1, symbols: 2 });
        assert_eq!(range, [&[5], &bound[..], &[1, 2]].concat());

        let answer = |answer: Answer| encoded(|to| answer.encode(to));
        let run = || Run { total: 3, start: 4, symbols: vec![Symbol::ZERO] };
        let zeros = [0; 24];
        // A set of three is expected once in the fifth symbol.
        let coded = [&[3, 4, 1], &zeros[..], &[1]].concat();
        assert_eq!(answer(Answer::Symbols { run: run(), end: None }), [&[0], &coded[..]].concat());
        let bounded = answer(Answer::Symbols { run: run(), end: after });
        assert_eq!(bounded, [&[4], &bound[..], &coded[..]].concat());
        let batch = |last| Batch { fingerprints: after.into_iter().collect(), last };
        assert_eq!(answer(Answer::Sorted(batch(false))), [&[1, 1], &bound[..]].concat());
        assert_eq!(answer(Answer::Sorted(batch(true))), [&[9, 1], &bound[..]].concat());
    }
}
