//! Writers who do not know of each other, and somebody who chooses.

use consort_node::{Conflict, DatasetState, Dot, Finding, OnConflict, Origin};

use super::*;

/// Two nodes whose dataset has this policy, and what was put into `key` on each while they were apart: first on `b`.
async fn apart(policy: OnConflict, of_b: Origin, of_a: Origin) -> (Machine, Machine) {
    let mut a = Machine::first().await;
    let options = DatasetOptions { on_conflict: policy, ..DatasetOptions::default() };
    a.create_dataset("photos", options).await.expect("it is made");
    let mut b = a.joined("b", Role::Writer).await;
    b.in_sync().await;
    assert_eq!(b.dataset("photos").await.expect("it is there").on_conflict, policy);
    a.stop().await;
    put(&b, "of b", of_b).await;
    b.stop().await;
    a.start().await;
    put(&a, "of a", of_a).await;
    b.start().await;
    connected(&a, &b).await;
    in_sync(&a, &b).await;
    (a, b)
}

async fn put(node: &Node, text: &str, origin: Origin) -> Dot {
    let body = std::io::Cursor::new(text.as_bytes().to_vec());
    let options = PutOptions { origin, ..PutOptions::default() };
    node.put("photos", "key", body, options).await.expect("it is put").dot
}

async fn in_sync(a: &Machine, b: &Machine) {
    a.in_sync().await;
    b.in_sync().await;
    assert_eq!(a.digest().await, b.digest().await);
}

async fn conflicts(node: &Node) -> Vec<Conflict> {
    let conflicts = node.conflicts("photos", None, 10).await.expect("a list");
    let status = node.status().await.expect("a status");
    let losers = conflicts.iter().map(|conflict| conflict.losers.len() as u64).sum::<u64>();
    assert_eq!(status.datasets[0].conflicts, losers, "the status counts what is listed");
    conflicts
}

async fn text_of(node: &Node, version: Dot) -> String {
    let (_, mut body) = node.get_version("photos", "key", version).await.expect("it is there");
    let mut text = String::new();
    body.read_to_string(&mut text).await.expect("all of it");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn both_are_listed_and_read_and_one_is_chosen_for_all() {
    let (a, b) = apart(OnConflict::KeepBoth, Origin::Real, Origin::Synthetic).await;
    let (listed, at_b) = (conflicts(&a).await, conflicts(&b).await);
    assert_eq!(listed, at_b);
    let [Conflict { key, winner, losers, more: 0 }] = &listed[..] else { panic!("{listed:?}") };
    let [loser] = &losers[..] else { panic!("{losers:?}") };
    assert_eq!((&**key, &*winner.author, &*loser.author), ("key", "a", "b"));
    assert_eq!(loser.node, Some(b.identity().node));
    assert_eq!((winner.entry.origin, loser.entry.origin), (Origin::Synthetic, Origin::Real));
    assert_eq!(text_of(&a, loser.entry.dot).await, "of b");
    let stat = a.stat_version("photos", "key", loser.entry.dot).await.expect("it is there");
    assert_eq!((stat.dot, stat.size), (loser.entry.dot, 4));

    let resolved = b.resolve("photos", "key", loser.entry.dot, &[]).await.expect("it is resolved");
    assert_eq!(resolved.replaced, 1);
    in_sync(&a, &b).await;
    for node in [&a, &b] {
        assert_eq!(conflicts(node).await, []);
        assert_eq!(node.text("key").await.expect("it is there"), "of b");
        let stat = node.stat("photos", "key").await.expect("it is there");
        assert_eq!((stat.dot, stat.origin, stat.conflicts), (resolved.dot, Origin::Real, 0));
    }
    // Nothing is left to choose from.
    for gone in [loser.entry.dot, winner.entry.dot] {
        let error = a.resolve("photos", "key", gone, &[]).await.expect_err("it was replaced");
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(a.get_version("photos", "key", gone).await.is_err());
    }
    let again =
        a.resolve("photos", "key", resolved.dot, &[]).await.expect("there is nothing to do");
    assert_eq!((again.dot, again.replaced), (resolved.dot, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_after_somebody_looked_stays_beside_what_was_chosen() {
    let (mut a, mut b) = apart(OnConflict::KeepBoth, Origin::Real, Origin::Real).await;
    let [Conflict { winner, losers, .. }] = &conflicts(&a).await[..] else { panic!("one") };
    let (winner, loser) = (winner.entry.dot, losers[0].entry.dot);
    let seen = [winner, loser];
    // A third one, by somebody who replaced the winner only.
    b.stop().await;
    let unseen = put(&a, "of a, later", Origin::Real).await;
    a.stop().await;
    b.start().await;
    let error = b.resolve("photos", "key", winner, &[winner]).await.expect_err("the loser stays");
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains(&loser.to_string()), "{error}");
    b.resolve("photos", "key", loser, &seen).await.expect("all that is here was seen");
    a.start().await;
    connected(&a, &b).await;
    in_sync(&a, &b).await;
    for node in [&a, &b] {
        let [Conflict { winner, losers, .. }] = &conflicts(node).await[..] else { panic!("one") };
        let versions = [winner.entry.dot, losers[0].entry.dot];
        assert_eq!(losers.len(), 1);
        assert!(versions.contains(&unseen), "{versions:?}");
    }
    let error = a.resolve("photos", "key", unseen, &seen).await.expect_err("one was not seen");
    assert_eq!(error.kind, ErrorKind::Conflict);
    let unseen = a.stat("photos", "key").await.expect("it is there").dot;
    a.resolve("photos", "key", unseen, &[]).await.expect("all are seen");
    assert_eq!(conflicts(&a).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_is_no_conflict_and_covers_the_others_when_it_is_written() {
    let (a, b) = apart(OnConflict::Latest, Origin::Real, Origin::Synthetic).await;
    for node in [&a, &b] {
        assert_eq!(conflicts(node).await, []);
        assert_eq!(node.text("key").await.expect("it is there"), "of a");
        assert_eq!(node.dataset("photos").await.expect("it is there").versions, 2);
    }
    b.write("key", "next").await;
    in_sync(&a, &b).await;
    assert_eq!(a.text("key").await.expect("it is there"), "next");
    assert_eq!(a.dataset("photos").await.expect("it is there").versions, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_one_wins_over_a_later_synthetic_one_where_that_is_preferred() {
    let (a, b) = apart(OnConflict::PreferReal, Origin::Real, Origin::Synthetic).await;
    for node in [&a, &b] {
        assert_eq!(conflicts(node).await, []);
        assert_eq!(node.text("key").await.expect("it is there"), "of b");
    }
    // Who saw the real one may replace it.
    put(&a, "made on purpose", Origin::Synthetic).await;
    in_sync(&a, &b).await;
    assert_eq!(b.text("key").await.expect("it is there"), "made on purpose");
    assert_eq!(b.dataset("photos").await.expect("it is there").versions, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_what_is_to_be_chosen_and_sends_nobody_to_the_doctor() {
    let (a, mut b) = apart(OnConflict::KeepBoth, Origin::Real, Origin::Real).await;
    b.stop().await;
    until("a to be alone", async || {
        let status = a.status().await.expect("a status");
        status.datasets[0].state == DatasetState::Waiting
    })
    .await;
    let findings = a.doctor().await.expect("findings");
    let told = |what: &str, todo: &str| {
        let says = |f: &Finding| f.what.contains(what) && f.todo.iter().any(|t| t.contains(todo));
        findings.iter().any(says)
    };
    assert!(told("photos has 1 conflict ", "`consort conflicts photos`"), "{findings:#?}");
    let todos: Vec<&String> = findings.iter().filter_map(|f| f.todo.as_ref()).collect();
    assert!(todos.iter().all(|todo| !todo.contains("consort doctor")), "{findings:#?}");
    let different: HashSet<&&String> = todos.iter().collect();
    assert_eq!(different.len(), todos.len(), "something is said twice: {findings:#?}");
}
