//! How commands talk to the node that `consort up` runs: over a Unix socket in the node's home directory, which only
//! its owner may use.
//!
//! [`wire`] is the language, [`server`] speaks it for the node, [`client`] for the commands, and [`service`] is the
//! one place that turns requests into calls of [`consort_node::Node`].

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod wire;

use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

pub(crate) use client::Client;

use crate::error::Error;

/// The longest path that a Unix socket can have on Linux.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Where the socket of the node with this home is.
pub(crate) fn socket_path(home: &Path) -> PathBuf {
    home.join("control.sock")
}

/// Refuses a home in which no socket can be: the system allows for short paths of sockets only.
pub(crate) fn check_home(home: &Path) -> Result<(), Error> {
    let path = socket_path(home);
    if SocketAddr::from_pathname(&path).is_ok() {
        return Ok(());
    }
    let (length, home) = (path.as_os_str().len(), home.display());
    let message = format!("the path of the home is too long: {home}");
    Err(Error::usage(message).hint(format!(
        "choose a shorter one with --home: the socket in it would have a path of {length} bytes, and a system allows for {MAX_SOCKET_PATH_BYTES}"
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;
    use tokio::sync::{Notify, watch};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::control::server::{Reply, RequestBody, Service, Socket};
    use crate::control::wire::Request;
    use crate::error::Kind;
    use crate::json;

    /// Answers without a node, and counts what it is doing.
    #[derive(Clone, Debug, Default)]
    struct Fake {
        under_way: Arc<AtomicUsize>,
        changed: Arc<Notify>,
    }

    /// Counts one request under way for as long as it lives.
    struct UnderWay(Fake);

    impl Drop for UnderWay {
        fn drop(&mut self) {
            self.0.under_way.fetch_sub(1, Ordering::SeqCst);
            self.0.changed.notify_one();
        }
    }

    impl Service for Fake {
        async fn answer(
            &self,
            request: Request,
            body: Option<RequestBody>,
            reply: &mut Reply,
        ) -> Result<(), Error> {
            self.under_way.fetch_add(1, Ordering::SeqCst);
            self.changed.notify_one();
            let _under_way = UnderWay(self.clone());
            match request {
                Request::Put { name, .. } if name == "full" => {
                    Err(Error::new(Kind::NotAllowed, "no room").hint("make some"))
                }
                Request::Put { .. } => {
                    let mut bytes = Vec::new();
                    body.expect("a put has one")
                        .read_to_end(&mut bytes)
                        .await
                        .map_err(|error| Error::failed(error.to_string()))?;
                    let size = bytes.len() as u64;
                    reply.item(&json::Put { version: "v".into(), size }).await
                }
                Request::Get { key, .. } if key == "rotten" => {
                    reply.item(&json::Ticket { ticket: key }).await?;
                    let rot = std::io::Error::other("rot");
                    let half = failing_after(b"half", rot);
                    reply.body(half).await
                }
                Request::Get { key, .. } if key == "late" => {
                    reply.item(&json::Ticket { ticket: key }).await?;
                    let (body, _writer) = tokio::io::duplex(1);
                    reply.body(body).await
                }
                Request::Get { key, .. } => {
                    reply.item(&json::Ticket { ticket: key }).await?;
                    reply.body(&vec![7; 1_000_000][..]).await
                }
                Request::Feed { .. } => {
                    reply.item(&json::Ticket { ticket: "1".into() }).await?;
                    reply.flush().await?;
                    std::future::pending().await
                }
                _ => Ok(()),
            }
        }
    }

    /// Reads `first` and then fails.
    fn failing_after(
        first: &'static [u8],
        error: std::io::Error,
    ) -> impl tokio::io::AsyncRead + Unpin {
        struct Failing(Option<std::io::Error>);
        impl tokio::io::AsyncRead for Failing {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(self.0.take().map_or(Ok(()), Err))
            }
        }
        first.chain(Failing(Some(error)))
    }

    struct Up {
        place: tempfile::TempDir,
        fake: Fake,
        stop: watch::Sender<bool>,
        server: JoinHandle<()>,
    }

    impl Up {
        fn start() -> Self {
            let place = tempfile::tempdir().expect("a temporary directory");
            let socket = Socket::bind(&socket_path(place.path())).expect("a new socket");
            let (stop, stopped) = watch::channel(false);
            let fake = Fake::default();
            let server = tokio::spawn(socket.serve(fake.clone(), stopped));
            Self { place, fake, stop, server }
        }

        fn client(&self) -> Client {
            Client::new(self.place.path())
        }

        async fn stop(self) {
            self.stop.send_replace(true);
            self.server.await.expect("it ends in good order");
            assert!(!socket_path(self.place.path()).exists(), "the socket is gone");
        }

        /// What the server says to raw bytes.
        async fn answer_to(&self, bytes: &[u8]) -> String {
            let stream = UnixStream::connect(socket_path(self.place.path())).await;
            let mut stream = stream.expect("it listens");
            // The server may close before it has taken everything.
            let _ = stream.write_all(bytes).await;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer and an end");
            answer
        }
    }

    fn put(name: &str) -> Request {
        Request::Put {
            name: name.into(),
            key: "k".into(),
            media_type: None,
            origin: json::Origin::Real,
            metadata: Vec::new(),
            mode: None,
        }
    }

    fn get(key: &str) -> Request {
        Request::Get { name: "set".into(), key: key.into(), version: None }
    }

    fn message(error: Error) -> String {
        error.to_string()
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_and_replaces_a_stale_one() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = socket_path(place.path());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(!Client::new(place.path()).is_up().await);
        let socket = Socket::bind(&path).expect("the stale one is replaced");
        assert!(Client::new(place.path()).is_up().await);
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn bodies_travel_both_ways() {
        let up = Up::start();
        let content = vec![9; 700_001];
        let mut sent = 0;
        let stored: json::Put = up
            .client()
            .one_with_body(put("set"), &mut &content[..], |bytes| sent = bytes)
            .await
            .expect("stored");
        assert_eq!((stored.size, sent), (700_001, 700_001));

        let mut answers = up.client().ask(get("k")).await.expect("asked");
        let _: json::Ticket = answers.first().await.expect("the head");
        let mut bytes = Vec::new();
        answers.body().read_to_end(&mut bytes).await.expect("the body");
        assert_eq!(bytes, vec![7; 1_000_000]);
        answers.end().await.expect("the end");
        up.stop().await;
    }

    #[tokio::test]
    async fn the_head_of_an_answer_does_not_wait_for_its_body() {
        let up = Up::start();
        let mut answers = up.client().ask(get("late")).await.expect("asked");
        let head: json::Ticket = answers.first().await.expect("the head");
        assert_eq!(head.ticket, "late");
        up.stop().await;
    }

    #[tokio::test]
    async fn an_error_within_a_body_is_told_apart_from_its_end() {
        let up = Up::start();
        let mut answers = up.client().ask(get("rotten")).await.expect("asked");
        let _: json::Ticket = answers.first().await.expect("the head");
        let mut bytes = Vec::new();
        answers.body().read_to_end(&mut bytes).await.expect("what could be read");
        assert_eq!(bytes, b"half");
        assert!(message(answers.end().await.expect_err("not whole")).contains("rot"));
        up.stop().await;
    }

    #[tokio::test]
    async fn a_refused_body_need_not_be_sent_to_its_end() {
        let up = Up::start();
        let mut endless = tokio::io::repeat(1);
        let result =
            up.client().one_with_body::<json::Put>(put("full"), &mut endless, |_| {}).await;
        match result {
            Err(Error::Told { kind, message, hint }) => {
                assert_eq!((kind, &*message), (Kind::NotAllowed, "no room"));
                assert_eq!(hint.as_deref(), Some("make some"));
            }
            other => panic!("{other:?}"),
        }
        up.stop().await;
    }

    #[tokio::test]
    async fn a_body_whose_sender_fails_is_not_taken_for_whole() {
        let up = Up::start();
        let mut failing = failing_after(b"half", std::io::Error::other("disk"));
        let result = up.client().one_with_body::<json::Put>(put("set"), &mut failing, |_| {}).await;
        assert!(message(result.expect_err("not stored")).contains("disk"));

        // The same as bytes on the wire: a request, half a frame, and nobody any more.
        let envelope = wire::Envelope { version: wire::VERSION, request: put("set") };
        let mut bytes = serde_json::to_vec(&envelope).expect("plain data");
        bytes.extend(b"\n\0\0\0\x08half");
        let path = socket_path(up.place.path());
        let mut stream = UnixStream::connect(path).await.expect("it listens");
        stream.write_all(&bytes).await.expect("taken");
        stream.shutdown().await.expect("closed");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("{\"error\""), "{answer}");
        up.stop().await;
    }

    #[tokio::test]
    async fn garbage_is_answered_with_an_error_and_the_connection_closed() {
        let up = Up::start();
        for garbage in [
            &b"\n"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff\xfe\x00\n",
            b"{}\n",
            br#"{"version":1,"request":{"op":"format_disk"}}
"#,
            b"[[[[[[[[[[[[[[[[\n",
        ] {
            let answer = up.answer_to(garbage).await;
            assert!(answer.contains("not a request"), "{garbage:?}: {answer}");
            assert!(answer.ends_with('\n'));
        }
        let answer = up.answer_to(b"{\"version\":2,\"request\":{\"op\":\"members\"}}\n").await;
        assert!(answer.contains("speaks version 2"), "{answer}");
        up.stop().await;
    }

    #[tokio::test]
    async fn a_request_line_that_is_too_long_is_refused() {
        let up = Up::start();
        let answer = up.answer_to(&vec![b'x'; wire::MAX_REQUEST_BYTES + 1]).await;
        assert!(answer.contains("a line of more than"), "{answer}");

        let name = "x".repeat(wire::MAX_REQUEST_BYTES);
        let refused = up.client().one::<json::Unlinked>(Request::Unlink { name }).await;
        assert!(message(refused.expect_err("not sent")).contains("too long"));
        up.stop().await;
    }

    #[tokio::test]
    async fn a_command_that_goes_away_cancels_its_request() {
        let up = Up::start();
        let feed = Request::Feed { name: "set".into(), since: None, follow: true };
        let mut answers = up.client().ask(feed).await.expect("asked");
        let first: Option<json::Ticket> = answers.next().await.expect("an item");
        assert!(first.is_some());
        assert_eq!(up.fake.under_way.load(Ordering::SeqCst), 1);
        drop(answers);
        while up.fake.under_way.load(Ordering::SeqCst) != 0 {
            up.fake.changed.notified().await;
        }
        up.stop().await;
    }

    #[tokio::test]
    async fn a_node_that_stops_says_so_to_those_who_follow() {
        let up = Up::start();
        let feed = Request::Feed { name: "set".into(), since: None, follow: true };
        let mut answers = up.client().ask(feed).await.expect("asked");
        let _: Option<json::Ticket> = answers.next().await.expect("an item");
        up.stop().await;
        let error = answers.next::<json::Ticket>().await.expect_err("an end");
        assert!(message(error).contains("stopping"));
    }
}
