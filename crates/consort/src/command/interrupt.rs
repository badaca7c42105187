//! The signals by which a user or a supervisor asks a program to stop, or to look at its settings again.

use std::future::pending;
use std::io::{self, IsTerminal as _};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// Ctrl-C and SIGTERM, from the moment this is made.
#[derive(Debug)]
pub(crate) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// Takes over the signals: from now on they do not end the process by themselves.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// SIGHUP, from the moment this is made, to a program that does not run in a terminal. In one, the signal says that the
/// terminal was closed, and ends the process by itself.
#[derive(Debug)]
pub(crate) struct Hangup(Option<Signal>);

impl Hangup {
    pub(crate) fn new() -> Result<Self, Error> {
        let watched = !io::stdin().is_terminal();
        Ok(Self(watched.then(|| listen(SignalKind::hangup())).transpose()?))
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
            }
            None => pending().await,
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(|error| {
        Error::failed(format!("cannot watch for signals: {error}"))
            .hint("see how many open files this user may have (`ulimit -n`)")
    })
}
