//! Random requests and answers, for property tests.

use proptest::prelude::*;

use crate::model::fingerprint::Fingerprint;
use crate::reconcile::{
    Answer, Batch, MAX_RANGE_FINGERPRINTS, MAX_RUN_SYMBOLS, Request, Run, Symbol,
};

fn any_bound() -> impl Strategy<Value = Option<Fingerprint>> {
    prop::option::of(any::<u128>().prop_map(Fingerprint))
}

/// Any request.
pub(crate) fn any_request() -> impl Strategy<Value = Request> {
    let symbols = || 1..=MAX_RUN_SYMBOLS;
    prop_oneof![
        symbols().prop_map(|symbols| Request::Prefix { symbols }),
        symbols().prop_map(|symbols| Request::Further { symbols }),
        (any_bound(), 1..=MAX_RANGE_FINGERPRINTS, symbols())
            .prop_map(|(after, width, symbols)| Request::Range { after, width, symbols }),
        any_bound().prop_map(|after| Request::Sorted { after }),
    ]
}

/// Any answer that can be sent.
pub(crate) fn any_answer() -> impl Strategy<Value = Answer> {
    let fingerprints = prop::collection::vec(any::<u128>().prop_map(Fingerprint), 0..5);
    let symbol = (any::<(u128, u64)>(), 0i64..=9).prop_map(|((sum, check), count)| Symbol {
        sum,
        check,
        count,
    });
    let symbols = prop::collection::vec(symbol, 0..5);
    prop_oneof![
        (any_bound(), 0usize..9, symbols).prop_map(|(end, start, symbols)| {
            Answer::Symbols { run: Run { total: 9, start, symbols }, end }
        }),
        (fingerprints, any::<bool>())
            .prop_map(|(fingerprints, last)| Answer::Sorted(Batch { fingerprints, last })),
    ]
}
