//! Whole nodes in one process, over loopback: what is put on one is on the others, whatever happens in between. Every
//! wait is for a condition, with a bound that only a failure reaches.

use std::net::SocketAddr;
use std::time::Duration;

use consort_node::{
    Config, DatasetOptions, ErrorKind, FeedCursor, LinkOptions, Node, NodeError, PutOptions, Role,
    init, join,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};

/// What a test waits for takes milliseconds; this is for a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn any_port() -> Config {
    Config { listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))) }
}

/// A node and its home; none while it is down.
struct Machine {
    home: TempDir,
    node: Option<Node>,
}

impl Machine {
    async fn first() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        init(home.path(), Some("a")).expect("a fresh home");
        let mut machine = Self { home, node: None };
        machine.start().await;
        machine
    }

    async fn joined(&self, name: &str, role: Role) -> Self {
        let ticket = self.invite(role, DAY, 1).await.expect("a ticket");
        let home = tempfile::tempdir().expect("a directory");
        join(home.path(), &ticket, Some(name), None).await.expect("it is let in");
        let mut machine = Self { home, node: None };
        machine.start().await;
        machine
    }

    async fn start(&mut self) {
        self.node = Some(Node::start(self.home.path(), any_port()).await.expect("it starts"));
    }

    async fn stop(&mut self) {
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
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let end = Instant::now() + BOUND;
    while !is_so().await {
        assert!(Instant::now() < end, "{what} did not come about");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn connected(a: &Node, with: &Node) {
    let id = with.identity().node;
    until("the connection", async || {
        let status = a.status().await.expect("a status");
        status.peers.iter().any(|peer| peer.node == id && peer.connected)
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
        let config = Config { listen: Some(addr) };
        a.node = Some(Node::start(a.home.path(), config).await.expect("port and store are free"));
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
