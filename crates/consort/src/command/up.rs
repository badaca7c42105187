//! `consort up`

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use consort_node::{Config, Node};
use jiff::Zoned;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::command::interrupt::{Hangup, Interrupt};
use crate::command::{Context, path_text};
use crate::config;
use crate::control::server::Socket;
use crate::control::service::NodeService;
use crate::control::wire::Request;
use crate::control::{check_home, socket_path};
use crate::error::Error;
use crate::json;
use crate::limits::{Ceiling, Ceilings, Moment, Timetable};
use crate::text::{self, Patience, plain};

/// How long a running node may take to say that it runs.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Run the node in the foreground until SIGTERM or Ctrl-C.
///
/// Stopping loses nothing. A second Ctrl-C while it stops ends it at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort up
  consort up --listen 127.0.0.1:0             any free port, this machine only
  consort up --limit-up 10MB/s --limit-down 80Mbit/s
  consort up --evict-after 7d                 on an admin's node
  consort --log info --log-format json up     with a log for machines on stderr

An admin's node does by itself what `consort member evict` does: if it has heard nothing of a
member for the time of --evict-after, in one run of its own, nobody waits for that member any more
before deletions are forgotten. It evicts nobody unless it and the members that it sees are the
majority: it may be the one that is cut off.

The limits are for all connections together. They win over those of config.toml in the home, which
can also say at which times of the week which limits hold (docs/operating.md). Links do not wait
for contents: what changed is known everywhere at once, and its bytes follow.")]
pub(crate) struct Up {
    /// Where to listen for other nodes [default: as before, or 0.0.0.0:7440]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,

    /// When an admin's node evicts members that are away, such as 12h or 7d, or never
    #[arg(long, value_parser = text::parse_patience, default_value = "30d", value_name = "TIME")]
    evict_after: Patience,

    /// The most to send, such as 10MB/s, 10MiB/s or 80Mbit/s, or unlimited [default: config.toml]
    #[arg(long, value_name = "RATE")]
    limit_up: Option<Ceiling>,

    /// The most to receive, in the same form [default: config.toml]
    #[arg(long, value_name = "RATE")]
    limit_down: Option<Ceiling>,

    /// Stop when stdin closes: for a parent that may be killed
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

impl Up {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        check_home(&context.home)?;
        let socket = socket_path(&context.home);
        if is_up(context).await {
            let home = plain(&context.home.display().to_string());
            return Err(Error::failed(format!("a node runs already with the home {home}"))
                .hint("stop that one first, or name another home with --home"));
        }
        let limits = config::Config::read(&context.home)?.limits;
        let mistake = config::Mistake::default();
        let asked = Ceilings { up: self.limit_up, down: self.limit_down };
        // From here on a signal waits until the node has started, and then stops it in good order.
        let mut interrupt = Interrupt::new()?;
        let hangup = Hangup::new()?;
        raise_open_files();
        let config = Config {
            listen: self.listen,
            evict_after: self.evict_after.limit(),
            limits: limits.limits(Moment::of(&Zoned::now()), asked),
        };
        let node = Node::start(&context.home, config).await?;
        let served = match Socket::bind(&socket) {
            Ok(served) => served,
            Err(error) => {
                node.shutdown().await;
                return Err(Error::io("make the socket", &socket, &error).hint(
                    "a home's path may have about 90 bytes; choose a shorter one with --home",
                ));
            }
        };
        let (stopper, stop) = watch::channel(false);
        let server =
            tokio::spawn(served.serve(NodeService::new(node.clone(), mistake.clone()), stop));
        let announced = announce(&node, context);
        if announced.is_ok() {
            tokio::select! {
                () = interrupt.next() => {}
                () = parent_gone(), if self.exit_with_parent => {}
                never = keep_limits(&node, limits, asked, &context.home, hangup, &mistake) => {
                    match never {}
                }
            }
            context.ui.say("Stopping. Ctrl-C again ends it at once.");
        }
        let stopped = async {
            stopper.send_replace(true);
            let served = server.await;
            node.shutdown().await;
            served
        };
        tokio::select! {
            served = stopped => {
                served.map_err(|error| {
                    Error::failed(format!("the control socket broke: {error}"))
                        .hint("start the node again, and report this as a defect")
                })?;
            }
            () = interrupt.next() => {
                return Err(Error::failed("ended at once, as asked, before everything was put away")
                    .hint("acknowledged writes are safe; the next start takes a little longer"));
            }
        }
        announced
    }
}

/// Whether a node runs with this home. One that was killed just now may take a connection yet, but it answers nothing.
async fn is_up(context: &Context) -> bool {
    let node = context.node();
    if !node.is_up().await {
        return false;
    }
    let answers = node.all::<json::Dataset>(Request::Datasets);
    // One that takes longer is busy, not gone.
    timeout(ANSWER_TIME, answers).await.map_or(true, |answered| answered.is_ok())
}

fn announce(node: &Node, context: &Context) -> Result<(), Error> {
    let (identity, listen) = (json::Identity::from(node.identity()), node.listen_addr());
    let home = path_text(&context.home)?;
    let message = format!(
        "Node {} ({}) of cluster {} is up.\n  address  {listen}\n  home     {}\nCtrl-C stops it.",
        plain(&identity.name),
        identity.role.as_str(),
        plain(&identity.cluster),
        plain(&home),
    );
    context.ui.outcome(&json::Up { identity, listen, home }, message)
}

/// Sees to it that the limits of the hour hold: looks at the clock whenever it shows another minute, and at the file
/// again on SIGHUP. A file with a mistake changes nothing, and is told of as long as it is the one that was read last.
async fn keep_limits(
    node: &Node,
    mut limits: Timetable,
    asked: Ceilings,
    home: &Path,
    mut hangup: Hangup,
    mistake: &config::Mistake,
) -> Infallible {
    loop {
        let now = Zoned::now();
        node.set_limits(limits.limits(Moment::of(&now), asked));
        let rest_of_minute = Duration::from_secs(60 - u64::from(now.second().unsigned_abs()));
        tokio::select! {
            () = sleep(rest_of_minute) => {}
            () = hangup.next() => match config::Config::read(home) {
                Ok(config) => {
                    tracing::info!("config.toml was read again");
                    limits = config.limits;
                    mistake.set(None);
                }
                Err(error) => {
                    tracing::error!(%error, "what was settled before holds on");
                    mistake.set(Some(error.to_string()));
                }
            }
        }
    }
}

/// Returns when stdin closes.
async fn parent_gone() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 64];
    // A read error means the same as the end: nobody is there.
    while matches!(stdin.read(&mut ignored).await, Ok(1..)) {}
}

/// Lets this process have as many files open as it may grant itself: the usual limit is meant for programs that cannot
/// do with more. If it stays as it is, the node gets along with that.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
