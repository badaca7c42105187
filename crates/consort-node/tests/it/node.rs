//! Whole nodes in one process, over loopback: what is put on one is on the others, whatever happens in between. Every
//! wait is for a condition, with a bound that only a failure reaches.

mod conflicts;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consort_core::ChunkHash;
use consort_core::content::chunker::Chunker;
use consort_core::protocol::membership::Word;
use consort_core::protocol::message::Message;
use consort_core::protocol::{Envelope, codec};
use consort_core::random::Random;
use consort_node::net::{Identity, KnownPeer, NetEvent, Network, NetworkConfig};
use consort_node::{
    Config, DatasetOptions, ErrorKind, FeedCursor, Limits, LinkOptions, Node, NodeError, NodeId,
    PutOptions, Rate, Role, init, join,
};
use consort_store::DiskStore;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// What a test waits for takes milliseconds; this is for a machine that is busy with other things.
pub(crate) const BOUND: Duration = Duration::from_secs(60);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn any_port() -> Config {
    Config { listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..Config::default() }
}

/// A node and its home; none while it is down.
pub(crate) struct Machine {
    pub(crate) home: TempDir,
    pub(crate) node: Option<Node>,
}

impl Machine {
    pub(crate) async fn first() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        init(home.path(), Some("a")).expect("a fresh home");
        let mut machine = Self { home, node: None };
        machine.start_with(any_port()).await;
        machine
    }

    pub(crate) async fn joined(&self, name: &str, role: Role) -> Self {
        let ticket = self.invite(role, DAY, 1).await.expect("a ticket");
        let home = tempfile::tempdir().expect("a directory");
        join(home.path(), &ticket, Some(name), None).await.expect("it is let in");
        let mut machine = Self { home, node: None };
        machine.start_with(any_port()).await;
        machine
    }

    /// Starts it where it listened last.
    pub(crate) async fn start(&mut self) {
        self.start_with(Config::default()).await;
    }

    async fn start_with(&mut self, config: Config) {
        self.node = Some(Node::start(self.home.path(), config).await.expect("it starts"));
    }

    pub(crate) async fn stop(&mut self) {
        self.node.take().expect("it runs").shutdown().await;
    }

    async fn text(&self, key: &str) -> Result<String, NodeError> {
        let (_, mut body) = self.get("photos", key).await?;
        let mut text = String::new();
        body.read_to_string(&mut text).await.expect("all of it");
        Ok(text)
    }

    async fn write(&self, key: &str, text: &str) {
        let body = std::io::Cursor::new(text.as_bytes().to_vec());
        self.put("photos", key, body, PutOptions::default()).await.expect("it is put");
    }

    async fn in_sync(&self) {
        self.wait("photos", BOUND).await.expect("it comes into sync");
    }

    async fn digest(&self) -> String {
        self.dataset("photos").await.expect("it is there").digest
    }
}

impl std::ops::Deref for Machine {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node.as_ref().expect("it runs")
    }
}

/// Looks again and again until it is so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let end = Instant::now() + BOUND;
    while !is_so().await {
        assert!(Instant::now() < end, "{what} did not come about");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn connected(a: &Node, with: &Node) {
    let id = with.identity().node;
    until("the connection", async || {
        let status = a.status().await.expect("a status");
        status.peers.iter().any(|peer| peer.node == id && peer.connected)
    })
    .await;
}

/// Waits until `a` is connected to the other, and shows the address where that listens.
async fn is_shown_where_it_listens(a: &Node, other: &Node) {
    let (id, listens) = (other.identity().node, other.listen_addr());
    until("its address to be shown", async || {
        let status = a.status().await.expect("a status");
        status.peers.iter().any(|p| p.node == id && p.connected && p.addr == Some(listens))
    })
    .await;
}

/// Two writers with one dataset that both know.
async fn pair() -> (Machine, Machine) {
    let a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let b = a.joined("b", Role::Writer).await;
    b.in_sync().await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_shut_down_has_released_everything() {
    let mut a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let dir = tempfile::tempdir().expect("a directory");
    a.link("photos", dir.path(), LinkOptions::default()).await.expect("it is linked");
    a.write("key", "value").await;
    for _ in 0..3 {
        let addr = a.listen_addr();
        a.stop().await;
        a.start().await;
        assert_eq!(a.listen_addr(), addr);
        assert_eq!(a.text("key").await.expect("it is kept"), "value");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_on_one_node_is_on_all() {
    let (a, b) = pair().await;
    let c = a.joined("c", Role::Writer).await;
    a.write("from/a", "1").await;
    b.write("from/b", "2").await;
    c.in_sync().await;
    c.write("from/c", "3").await;
    for machine in [&a, &b, &c] {
        machine.in_sync().await;
        for (key, text) in [("from/a", "1"), ("from/b", "2"), ("from/c", "3")] {
            assert_eq!(machine.text(key).await.expect("it is there"), text);
        }
    }
    assert_eq!(a.digest().await, b.digest().await);
    assert_eq!(a.digest().await, c.digest().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_while_cut_off_come_through_and_concurrent_ones_are_both_kept() {
    let (mut a, mut b) = pair().await;
    a.write("key", "old").await;
    b.in_sync().await;
    a.stop().await;
    b.write("key", "of b").await;
    b.stop().await;
    a.start().await;
    a.write("key", "of a").await;
    b.start().await;
    connected(&a, &b).await;
    a.in_sync().await;
    b.in_sync().await;
    let (at_a, at_b) = (a.stat("photos", "key").await, b.stat("photos", "key").await);
    assert_eq!(at_a.as_ref().expect("it is there").conflicts, 1);
    assert_eq!(at_a, at_b);
    assert_eq!(a.text("key").await, b.text("key").await);
    assert_eq!(a.digest().await, b.digest().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_goes_on_where_it_was_after_a_restart() {
    let (mut a, mut b) = pair().await;
    a.write("one", "1").await;
    b.in_sync().await;
    let seen = b.feed("photos", FeedCursor::START, 10).await.expect("a page");
    let cursor = seen.last().expect("one change").cursor;
    b.stop().await;
    a.write("two", "2").await;
    b.start().await;
    b.in_sync().await;
    let news = b.feed("photos", cursor, 10).await.expect("a page");
    assert_eq!(news.iter().map(|change| change.entry.key.as_str()).collect::<Vec<_>>(), ["two"]);
    let error = a.feed("photos", cursor, 10).await.expect_err("it is another node's");
    assert_eq!(error.kind, ErrorKind::Conflict);
    let beyond = FeedCursor { sequence: u64::MAX, ..cursor };
    let error = b.feed("photos", beyond, 10).await.expect_err("it is beyond the end");
    assert_eq!(error.kind, ErrorKind::Conflict);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moved_to_another_port_is_found_again() {
    let (a, mut b) = pair().await;
    let c = a.joined("c", Role::Writer).await;
    c.in_sync().await;
    b.stop().await;
    b.start_with(any_port()).await;
    b.write("key", "value").await;
    for machine in [&a, &c] {
        connected(machine, &b).await;
        machine.in_sync().await;
        assert_eq!(machine.text("key").await.expect("it is there"), "value");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_shown_where_it_listens_whoever_dialed_and_wherever_it_was_before() {
    let (mut a, mut b) = pair().await;
    b.stop().await;
    b.start_with(any_port()).await;
    // If both moved before either had heard where the other is, neither would be found.
    is_shown_where_it_listens(&a, &b).await;
    a.stop().await;
    a.start_with(any_port()).await;
    for (one, other) in [(&a, &b), (&b, &a)] {
        is_shown_where_it_listens(one, other).await;
        let members = one.members().await.expect("a list");
        for member in members {
            let node = if member.this_node { one } else { other };
            assert_eq!(member.addresses, [node.listen_addr()], "{}", member.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_was_made_just_now_on_another_node_is_found() {
    let (a, b) = pair().await;
    for number in 0..10 {
        // What is on its way before it takes its time to become durable.
        let writes: Vec<_> = (0..50)
            .map(|write| {
                let (node, body) = ((*a).clone(), std::io::Cursor::new(vec![7; 10_000]));
                let key = format!("{number}/{write}");
                tokio::spawn(async move {
                    node.put("photos", &key, body, PutOptions::default()).await.expect("it is put");
                })
            })
            .collect();
        let name = format!("photos-{number}");
        a.create_dataset(&name, DatasetOptions::default()).await.expect("it is made");
        b.dataset(&name).await.expect("it is found");
        for write in writes {
            write.await.expect("it ends");
        }
    }
    let error = b.dataset("photoz").await.expect_err("nobody made it");
    assert!(error.message.contains("no dataset photoz"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_restart_and_find_each_other() {
    let (mut a, mut b) = pair().await;
    a.write("key", "value").await;
    b.in_sync().await;
    a.stop().await;
    b.stop().await;
    b.start().await;
    a.start().await;
    connected(&a, &b).await;
    assert_eq!(b.wait("photos", BOUND).await.expect("in sync").peers, 1);
    assert_eq!(a.digest().await, b.digest().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_can_be_linked_and_waited_for_right_after_joining() {
    let a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    a.write("key", "value").await;
    let b = a.joined("b", Role::Writer).await;
    let dir = tempfile::tempdir().expect("a directory");
    b.link("photos", dir.path(), LinkOptions::default()).await.expect("it is linked");
    b.in_sync().await;
    assert_eq!(std::fs::read_to_string(dir.path().join("key")).expect("a file"), "value");
    let error = b.dataset("other").await.expect_err("there is none");
    assert_eq!(error.kind, ErrorKind::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_and_cannot_write() {
    let a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    a.write("key", "value").await;
    let b = a.joined("b", Role::Reader).await;
    b.in_sync().await;
    assert_eq!(b.text("key").await.expect("it is there"), "value");
    let dir = tempfile::tempdir().expect("a directory");
    let refused = [
        b.put("photos", "x", std::io::Cursor::new(b"x"), PutOptions::default()).await.err(),
        b.remove("photos", "key").await.err(),
        b.link("photos", dir.path(), LinkOptions::default()).await.err(),
        b.create_dataset("other", DatasetOptions::default()).await.err(),
        b.drop_dataset("photos").await.err(),
        b.revoke("a").await.err(),
        b.invite(Role::Reader, DAY, 1).await.err(),
    ];
    for error in refused {
        assert_eq!(error.expect("it is refused").kind, ErrorKind::NotAllowed);
    }
    let read_only = LinkOptions { read_only: true, ..LinkOptions::default() };
    b.link("photos", dir.path(), read_only).await.expect("it may look");
    b.in_sync().await;
    std::fs::write(dir.path().join("mine"), "not taken").expect("written");
    b.in_sync().await;
    a.in_sync().await;
    assert_eq!(a.list("photos", "", None, 10).await.expect("a list").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_directory_could_show_is_refused() {
    let a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    for key in [".consort", ".consort/id", "2026/.consort/x"] {
        let body = std::io::Cursor::new(b"text".to_vec());
        let put = a.put("photos", key, body, PutOptions::default()).await;
        let error = put.expect_err("it is reserved");
        assert_eq!(error.kind, ErrorKind::Usage, "{key}");
        assert!(error.message.contains(".consort") && error.hint.is_some(), "{error:?}");
    }
    a.write(".consorted/x", "another name").await;
    assert_eq!(a.list("photos", "", None, 10).await.expect("a list").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_passes_on_what_others_wrote_and_writes_nothing() {
    let a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let b = a.joined("b", Role::Relay).await;
    let dir = tempfile::tempdir().expect("a directory");
    let refused = [
        b.put("photos", "x", std::io::Cursor::new(b"x"), PutOptions::default()).await.err(),
        b.link("photos", dir.path(), LinkOptions::default()).await.err(),
    ];
    for error in refused {
        assert_eq!(error.expect("it is refused").kind, ErrorKind::NotAllowed);
    }
    let read_only = LinkOptions { read_only: true, ..LinkOptions::default() };
    b.link("photos", dir.path(), read_only).await.expect("it may look");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_at_least_as_long_as_was_asked() {
    let a = Machine::first().await;
    a.invite(Role::Reader, Duration::from_millis(1), 1).await.expect("a ticket, if a short one");
    let never = a.invite(Role::Reader, Duration::ZERO, 1).await.expect_err("of no use");
    assert_eq!(never.kind, ErrorKind::Usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_its_owners_alone_whatever_the_home_is() {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().expect("a directory");
    let mode = |path: &std::path::Path| path.metadata().expect("it is there").permissions().mode();
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).expect("it is ours");
    init(home.path(), Some("a")).expect("a fresh home");
    for part in ["identity", "store"] {
        assert_eq!(mode(&home.path().join(part)) & 0o077, 0, "{part}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_cut_off_is_told_so_and_does_not_come_back() {
    let a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let ticket = a.invite(Role::Writer, DAY, 1).await.expect("a ticket");
    let home = tempfile::tempdir().expect("a directory");
    join(home.path(), &ticket, Some("b"), None).await.expect("it is let in");
    let mut b = Machine { home, node: None };
    b.start_with(any_port()).await;
    b.in_sync().await;
    a.revoke("b").await.expect("it is revoked");
    until("the end of the membership", async || {
        let findings = b.doctor().await.expect("findings");
        findings.iter().any(|finding| finding.what.contains("revoked"))
    })
    .await;
    let late = b.put("photos", "late", "value".as_bytes(), PutOptions::default()).await;
    assert_eq!(late.expect_err("it could reach nobody").kind, ErrorKind::NotAllowed);
    assert!(a.status().await.expect("a status").peers.is_empty());
    assert!(a.stat("photos", "late").await.is_err());
    // Its ticket is good for its key, and yet does not let it in again.
    b.stop().await;
    for file in ["node.crt", "cluster.crt"] {
        let _ = std::fs::remove_file(b.home.path().join("identity").join(file));
    }
    assert!(join(b.home.path(), &ticket, Some("b"), None).await.is_err());
    assert!(a.members().await.expect("members").iter().any(|m| m.name == "b" && m.revoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_two_admins_do_not_let_each_other_go() {
    let a = Machine::first().await;
    let b = a.joined("b", Role::Admin).await;
    let knows_both = async |machine: &Machine| {
        let members = machine.members().await.expect("members");
        members.len() == 2 && members.iter().all(|member| member.connected || member.this_node)
    };
    until("both to be there", async || knows_both(&a).await && knows_both(&b).await).await;
    let (left_a, left_b) = tokio::join!(a.leave(BOUND, true), b.leave(BOUND, true));
    assert!(left_a.is_err() || left_b.is_err(), "nobody is left who can change the cluster");
    for (machine, left) in [(&a, left_a), (&b, left_b)] {
        let findings = machine.doctor().await.expect("findings");
        let is_revoked = findings.iter().any(|finding| finding.what.contains("revoked"));
        assert_eq!(is_revoked, left.is_ok(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_that_is_leaving_itself_is_passed_over() {
    let a = Machine::first().await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let (b, c) = (a.joined("b", Role::Admin).await, a.joined("c", Role::Admin).await);
    b.in_sync().await;
    for admin in [&a, &b] {
        connected(&c, admin).await;
    }
    let dir = tempfile::tempdir().expect("a directory");
    b.link("photos", dir.path(), LinkOptions::default()).await.expect("it is linked");
    // Nobody else has this, so that leaving takes a while, and fails.
    std::fs::write(dir.path().join("precious"), vec![7; 300_000]).expect("written");
    let passes_over = async {
        until_it_is_leaving(&b).await;
        c.leave(BOUND, true).await.expect("the other admin lets it go");
    };
    let (left, ()) = tokio::join!(b.leave(BOUND, false), passes_over);
    assert!(left.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_count_on_each_others_contents_do_not_both_leave() {
    let (a, b) = pair().await;
    let c = a.joined("c", Role::Writer).await;
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    std::fs::write(dirs[0].path().join("precious"), vec![7; 300_000]).expect("written");
    for (machine, dir) in [&b, &c].into_iter().zip(&dirs) {
        machine.in_sync().await;
        machine.link("photos", dir.path(), LinkOptions::default()).await.expect("it is linked");
        machine.in_sync().await;
    }
    let counts_on = async |machine: &Machine, other: &str| {
        let peers = machine.status().await.expect("a status").peers;
        let mut told = peers.iter().filter(|p| p.name == other).flat_map(|p| &p.datasets);
        told.any(|dataset| dataset.linked && dataset.in_sync && 0 < dataset.versions)
    };
    until("both to have it", async || counts_on(&b, "c").await && counts_on(&c, "b").await).await;
    let (left_b, left_c) = tokio::join!(b.leave(BOUND, false), c.leave(BOUND, false));
    assert!(left_b.is_ok() != left_c.is_ok(), "{left_b:?} {left_c:?}");
    let gone = if left_b.is_ok() { &b } else { &c };
    let again = gone.leave(BOUND, false).await;
    assert_eq!(again.expect_err("it has left").kind, ErrorKind::NotAllowed);
}

/// Waits until a node that was told to leave takes no writes any more.
async fn until_it_is_leaving(machine: &Machine) {
    until("it to be about to leave", async || {
        let removed = machine.remove("photos", "not there").await;
        removed.expect_err("it is not there").kind == ErrorKind::NotAllowed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_begins_to_be_put_before_its_node_leaves_is_not_acknowledged_after() {
    let (_a, b) = pair().await;
    let dir = tempfile::tempdir().expect("a directory");
    b.link("photos", dir.path(), LinkOptions::default()).await.expect("it is linked");
    // Nobody else has this, so that leaving takes a while, and fails.
    std::fs::write(dir.path().join("precious"), vec![7; 300_000]).expect("written");
    let (sender, body) = tokio::io::duplex(16);
    let put = b.put("photos", "late", body, PutOptions::default());
    let leave = b.leave(BOUND, false);
    let end_of_body = async {
        until_it_is_leaving(&b).await;
        drop(sender);
    };
    let (put, left, ()) = tokio::join!(put, leave, end_of_body);
    assert_eq!(put.expect_err("it would go nowhere").kind, ErrorKind::NotAllowed);
    assert!(left.is_err() && b.stat("photos", "late").await.is_err());
    b.write("late", "it stays").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_away_for_too_long_is_evicted_by_an_admin_that_sees_the_majority() {
    let mut a = Machine::first().await;
    a.stop().await;
    let evict_after = Some(Duration::from_secs(1));
    a.start_with(Config { evict_after, ..any_port() }).await;
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let (b, mut c) = (a.joined("b", Role::Writer).await, a.joined("c", Role::Writer).await);
    for machine in [&b, &c] {
        until("the dataset", async || !machine.datasets().await.expect("a list").is_empty()).await;
    }
    let waited_for = async |machine: &Machine| {
        let members = machine.members().await.expect("members");
        let waited_for = members.into_iter().filter(|member| member.waited_for);
        waited_for.map(|member| member.name).collect::<Vec<_>>()
    };
    until("all to be waited for", async || waited_for(&b).await == ["a", "b", "c"]).await;
    c.stop().await;
    until("c to be evicted", async || waited_for(&b).await == ["a", "b"]).await;
    // Nobody knows better than the node itself, once it is back.
    c.start().await;
    a.write("key", "value").await;
    a.remove("photos", "key").await.expect("it is removed");
    until("c to be waited for again", async || waited_for(&b).await == ["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_dropped_everywhere_and_its_name_can_be_used_again() {
    let (a, b) = pair().await;
    let dir = tempfile::tempdir().expect("a directory");
    b.link("photos", dir.path(), LinkOptions::default()).await.expect("it is linked");
    a.write("old", "value").await;
    b.in_sync().await;
    a.drop_dataset("photos").await.expect("it is dropped");
    until("the drop", async || b.datasets().await.expect("datasets").is_empty()).await;
    assert!(dir.path().join("old").exists());
    a.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    until("the news", async || !b.datasets().await.expect("datasets").is_empty()).await;
    b.in_sync().await;
    assert_eq!(a.list("photos", "", None, 10).await.expect("a list").len(), 0);
    until("the link", async || b.link("photos", dir.path(), LinkOptions::default()).await.is_ok())
        .await;
    b.in_sync().await;
    a.in_sync().await;
    assert_eq!(a.text("old").await.expect("it is taken in"), "value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_can_be_linked_unlinked_and_linked_again_but_never_twice() {
    let a = Machine::first().await;
    for name in ["photos", "others"] {
        a.create_dataset(name, DatasetOptions::default()).await.expect("it is made");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (sub, file) = (dir.path().join("photos/sub"), dir.path().join("file"));
    let linked = dir.path().join("photos");
    std::fs::write(&file, "").expect("written");
    let options = LinkOptions::default;
    a.link("photos", &linked, options()).await.expect("it is linked");
    a.write("key", "value").await;
    for overlap in [&linked, &sub, &dir.path().to_owned()] {
        let error = a.link("others", overlap, options()).await.expect_err("it overlaps");
        assert_eq!(error.kind, ErrorKind::Conflict, "{overlap:?}");
    }
    assert!(!sub.exists());
    assert_eq!(
        a.link("others", &file, options()).await.expect_err("a file").kind,
        ErrorKind::Usage
    );
    let home = a.home.path().join("inside");
    assert_eq!(a.link("others", &home, options()).await.expect_err("home").kind, ErrorKind::Usage);
    let other = Machine::first().await;
    other.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let error = other.link("photos", &linked, options()).await.expect_err("it is in use");
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(other.dataset("photos").await.expect("it is there").link.is_none());
    a.in_sync().await;
    a.unlink("photos").await.expect("it is unlinked");
    assert!(a.unlink("photos").await.is_err());
    assert_eq!(std::fs::read_to_string(linked.join("key")).expect("a file"), "value");
    a.link("photos", &linked, options()).await.expect("it is linked again");
    a.link("photos", &linked, options()).await.expect("it is linked already");
    a.in_sync().await;
    assert_eq!(a.stat("photos", "key").await.expect("it is there").conflicts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_many_files_share_cross_the_wire_once() {
    let mut random = Random::new(7);
    let large = bytes(&mut random, 2 << 20);
    let mut files = vec![("repeats".to_owned(), large.repeat(4))];
    for number in 0..6 {
        let head = bytes(&mut random, 64 << 10);
        files.push((format!("shares-{number}"), [head, large.clone()].concat()));
    }
    for number in 0..20 {
        let small = bytes(&mut random, 60 << 10);
        files.extend((0..25).map(|copy| (format!("copy-{copy}-of-{number}"), small.clone())));
    }
    let (mut total, mut unique) = (0, 0);
    let mut known = HashSet::new();
    for (_, bytes) in &files {
        total += bytes.len() as u64;
        for chunk in Chunker::default().chunks(bytes) {
            unique += if known.insert(ChunkHash::of(chunk)) { chunk.len() as u64 } else { 0 };
        }
    }
    assert!(8 * unique < total, "{unique} of {total} bytes");
    let sent = first_copy(&files).await;
    assert!(sent < unique + unique / 10 + (1 << 19), "{sent} bytes for {unique} of {total}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_cross_the_wire_once() {
    let mut random = Random::new(8);
    let path = |number: usize| format!("directory-{}/{number}", number / 300);
    let files: Vec<_> =
        (0..3000).map(|number| (path(number), bytes(&mut random, 8 << 10))).collect();
    let total = files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let sent = first_copy(&files).await;
    assert!(sent < total + total / 20 + (1 << 20), "{sent} bytes for {total}");
}

fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    let words = std::iter::repeat_with(|| random.next_u64().to_le_bytes());
    words.take(count / 8).flatten().collect()
}

/// Copies files from the directory of one node to that of another. How many bytes both have sent: also for versions,
/// requests, frames and encryption.
async fn first_copy(files: &[(String, Vec<u8>)]) -> u64 {
    let (a, b) = pair().await;
    let (from, to) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
    for (name, bytes) in files {
        let path = from.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, bytes).expect("written");
    }
    a.link("photos", from.path(), LinkOptions::default()).await.expect("it is linked");
    a.in_sync().await;
    b.link("photos", to.path(), LinkOptions::default()).await.expect("it is linked");
    b.in_sync().await;
    for (name, bytes) in files {
        assert!(std::fs::read(to.path().join(name)).expect("a file") == *bytes, "{name} differs");
    }
    let mut sent = 0;
    for node in [&a, &b] {
        sent += node.status().await.expect("a status").traffic.sent;
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_directory_that_is_away_waits_no_longer_than_its_link() {
    let (a, b) = pair().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (linked, away) = (dir.path().join("linked"), dir.path().join("away"));
    a.link("photos", &linked, LinkOptions::default()).await.expect("it is linked");
    a.write("key", "value").await;
    b.in_sync().await;
    std::fs::rename(&linked, &away).expect("renamed");
    until("its absence", async || {
        let status = a.status().await.expect("a status");
        status.datasets[0].state == consort_node::DatasetState::Paused
    })
    .await;
    let error = b.wait("photos", Duration::from_secs(2)).await.expect_err("nobody can look");
    assert_eq!(error.kind, ErrorKind::TimedOut);
    let unlinked = async { a.unlink("photos").await.expect("it is unlinked") };
    tokio::join!(b.in_sync(), a.in_sync(), unlinked);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_arrived_of_a_file_is_read_without_asking_for_it_again() {
    let (mut a, b) = pair().await;
    let (from, to) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
    let content = bytes(&mut Random::new(9), 32 << 20);
    std::fs::write(from.path().join("large"), &content).expect("written");
    a.link("photos", from.path(), LinkOptions::default()).await.expect("it is linked");
    a.in_sync().await;
    a.set_limits(Limits { up: Rate::new(20_000_000), down: None });
    b.link("photos", to.path(), LinkOptions::default()).await.expect("it is linked");
    until("a part of it", async || {
        let status = b.status().await.expect("a status");
        8 << 20 < status.traffic.received
    })
    .await;
    // What is kept of its manifest is known with the next commit.
    b.write("key", "value").await;
    a.stop().await;
    let (_, mut body) = b.get("photos", "large").await.expect("it is known");
    let mut read = vec![0; 1 << 20];
    body.read_exact(&mut read).await.expect("it is here");
    assert!(read == content[..read.len()], "something else is read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_streams_through_and_one_that_fails_leaves_nothing() {
    let (a, b) = pair().await;
    let size = 64 << 20;
    let body = tokio::io::repeat(7).take(size);
    let put = a.put("photos", "large", body, PutOptions::default()).await.expect("it is put");
    assert_eq!(put.size, size);
    b.in_sync().await;
    let (entry, mut body) = b.get("photos", "large").await.expect("it is there");
    assert_eq!(entry.size, size);
    let (mut buffer, mut read) = (vec![0; 1 << 16], 0);
    loop {
        let length = body.read(&mut buffer).await.expect("it can be had");
        if length == 0 {
            break;
        }
        assert!(buffer[..length].iter().all(|byte| *byte == 7));
        read += length as u64;
    }
    assert_eq!(read, size);

    let broken = tokio::io::repeat(1).take(4 << 20).chain(Broken);
    let error = a.put("photos", "broken", broken, PutOptions::default()).await;
    assert!(error.expect_err("it breaks").message.contains("nothing was written"));
    assert!(a.stat("photos", "broken").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_sends_garbage_is_disconnected_and_the_others_are_served() {
    let (a, b) = pair().await;
    let ticket = a.invite(Role::Writer, DAY, 1).await.expect("a ticket");
    let home = tempfile::tempdir().expect("a directory");
    join(home.path(), &ticket, Some("hostile"), None).await.expect("it is let in");
    let identity = Identity::load(&home.path().join("identity")).expect("it is a member");
    let (sender, mut events) = mpsc::channel(16);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NetworkConfig { listen, on_content: Arc::new(|_, _| {}), join: None };
    let network = Network::start(config, &identity, sender).await.expect("it starts");
    let node = a.identity().node;
    let known = vec![KnownPeer { node, addresses: vec![a.listen_addr()] }];
    let photos = a.dataset("photos").await.expect("it is there").id;
    let message = |message| {
        let mut bytes = Vec::new();
        codec::encode(&Envelope { dataset: photos, message }, &mut bytes);
        bytes
    };
    let mut cut = message(Message::Reconciled { taken: true, given: true });
    cut.pop();
    // Each of these ends the connection: no message at all, half of one, and some at the wrong time.
    let bad = [
        Vec::new(),
        vec![0xff; 1000],
        cut,
        message(Message::Reject { reason: "\u{1b}[2J".repeat(10) }),
        [message(Message::Lazy { lazy: true }), vec![0]].concat(),
    ];
    for bytes in bad {
        network.set_peers(known.clone());
        let connection = next(&mut events, |event| match event {
            NetEvent::Connected { connection, .. } => Some(connection),
            _ => None,
        })
        .await;
        network.send_word(node, connection, vec![Word::Ask { needy: false }.encode()]);
        network.send(node, connection, bytes).expect("it is connected");
        next(&mut events, |event| matches!(event, NetEvent::Disconnected { .. }).then_some(()))
            .await;
        network.forget(node);
        b.write("key", "value").await;
        a.in_sync().await;
    }
    // Requests without end cost nothing but the answers.
    network.set_peers(known);
    let connection = next(&mut events, |event| match event {
        NetEvent::Connected { connection, .. } => Some(connection),
        _ => None,
    })
    .await;
    network.send_word(node, connection, vec![Word::Ask { needy: false }.encode()]);
    for id in 0..10_000 {
        let _ = network.send(node, connection, message(Message::Flush { id }));
    }
    b.write("key", "after the flood").await;
    until("the write", async || a.text("key").await.is_ok_and(|text| text == "after the flood"))
        .await;
    network.shutdown().await;
    a.in_sync().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_strangers_is_not_kept() {
    let mut a = Machine::first().await;
    let ticket = a.invite(Role::Writer, DAY, 1).await.expect("a ticket");
    let home = tempfile::tempdir().expect("a directory");
    join(home.path(), &ticket, Some("hostile"), None).await.expect("it is let in");
    let identity = Identity::load(&home.path().join("identity")).expect("it is a member");
    let (sender, mut events) = mpsc::channel(16);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NetworkConfig { listen, on_content: Arc::new(|_, _| {}), join: None };
    let network = Network::start(config, &identity, sender).await.expect("it starts");
    // It tells of nodes that nobody else has heard of, before it says where it is itself.
    let invented = NodeId([0xee; 16]);
    let stranger = KnownPeer { node: invented, addresses: vec![SocketAddr::from(([9; 4], 9))] };
    let known = KnownPeer { node: a.identity().node, addresses: vec![a.listen_addr()] };
    network.set_peers(vec![stranger.clone(), known.clone()]);
    let connected = |event| matches!(event, NetEvent::Connected { .. }).then_some(());
    next(&mut events, connected).await;
    network.forget(known.node);
    network.set_peers(vec![stranger, known]);
    next(&mut events, connected).await;
    a.stop().await;
    let store = DiskStore::open(&a.home.path().join("store")).expect("it is closed");
    let kept = store.setting("peers").expect("it can be read").unwrap_or_default();
    let holds = |node: NodeId| kept.windows(16).any(|bytes| bytes == node.0);
    assert!(holds(identity.node()), "a member's own word is kept");
    assert!(!holds(invented));
}

/// The first event that `choose` wants.
pub(crate) async fn next<T>(
    events: &mut mpsc::Receiver<NetEvent>,
    mut choose: impl FnMut(NetEvent) -> Option<T>,
) -> T {
    let chosen = async {
        loop {
            if let Some(chosen) = choose(events.recv().await.expect("the network runs")) {
                return chosen;
            }
        }
    };
    tokio::time::timeout(BOUND, chosen).await.expect("the event comes")
}

struct Broken;

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
    }
}
