//! `consort dev`: a cluster on this machine. [`cluster`] starts and ends the nodes in a [`place`] of their own,
//! [`compare`] looks at the directories with eyes of its own, [`live`] shows what happens.

mod cluster;
mod compare;
mod live;
mod mark;
mod place;
mod sample;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::command::interrupt::Interrupt;
use crate::command::{Context, path_text};
use crate::error::Error;
use crate::json;
use crate::text::{self, bytes, counted, plain};
use crate::ui::{Style, Tone};

use cluster::Cluster;
use compare::Tally;

/// The most nodes of one cluster: each is a process with a store and sockets of its own.
const MAX_NODES: u32 = 16;

/// Differences that are shown; the rest is counted.
const SHOWN_DIFFERENCES: usize = 20;

/// Run a cluster on this machine: a few nodes, one directory each, kept identical.
///
/// The first node keeps DIR itself, not a copy: what changes in any node's directory changes in DIR.
///
/// A directory that a node keeps already, running or not, is refused.
///
/// Without DIR, an example is made for it.
///
/// The others keep copies under a temporary directory (or --home); those are removed in the end.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort dev                       an example directory, three nodes; Ctrl-C ends it
  consort dev ./photos --nodes 5
  consort dev ./photos --once       converge, compare every byte, say how it went")]
pub(crate) struct Dev {
    /// The directory that the first node keeps; it is worked on itself
    dir: Option<PathBuf>,

    /// How many nodes
    #[arg(
        long,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NODES)),
        default_value_t = 3,
        value_name = "N"
    )]
    nodes: u32,

    /// Converge, verify every byte, print a summary, and end; exit code 1 if anything differs
    #[arg(long)]
    once: bool,
}

impl Dev {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let mut interrupt = Interrupt::new()?;
        let dir = self.dir.as_deref().map(existing).transpose()?;
        dir.as_deref().map_or(Ok(()), mark::refuse_foreign)?;
        let parent =
            if context.home_is_chosen { context.home.clone() } else { std::env::temp_dir() };
        let left = parent.clone();
        for root in blocking(move || Ok(place::remove_abandoned(&left))).await? {
            let root = plain(&root.display().to_string());
            context.ui.say(format_args!(
                "Removed {root}, which a `consort dev` that was killed had left."
            ));
        }
        let mut cluster = Cluster::new(&parent, dir)?;
        let worked = tokio::select! {
            worked = self.work(&mut cluster, context) => worked,
            () = interrupt.next() => {
                if self.once { Err(Error::failed("interrupted before it was done").hint("call it again and let it end")) } else { Ok(()) }
            }
        };
        context.ui.say("Ending the nodes. Ctrl-C again ends them at once.");
        let ended = tokio::select! {
            ended = cluster.end() => ended,
            () = interrupt.next() => {
                let root = cluster.root().display();
                Err(Error::failed("ended at once, as asked").hint(format!("remove {root}, which is left")))
            }
        };
        worked.and(ended)
    }

    async fn work(&self, cluster: &mut Cluster, context: &Context) -> Result<(), Error> {
        cluster.start(self.nodes, &context.ui).await?;
        let began = Instant::now();
        cluster.link().await?;
        cluster.converge(&context.ui).await?;
        let seconds = began.elapsed().as_secs_f64();
        if self.once {
            return verify(cluster, context, seconds).await;
        }
        let (tally, dir) = (Tally::default(), cluster.nodes()[0].dir.clone());
        let tally = blocking(move || compare::count(&dir, tally)).await?;
        let ready = ready(cluster, tally, seconds)?;
        context.ui.result(&ready, welcome)?;
        live::show(cluster, &context.ui).await
    }
}

/// The directory, absolute and real.
fn existing(dir: &Path) -> Result<PathBuf, Error> {
    let real = dir.canonicalize().map_err(|error| {
        Error::io("use", dir, &error)
            .hint("`consort dev` needs a directory that exists, or none at all to make an example")
    })?;
    if real.is_dir() {
        Ok(real)
    } else {
        Err(Error::usage(format!("{} is not a directory", dir.display()))
            .hint("name a directory, or none at all to make an example"))
    }
}

async fn verify(cluster: &Cluster, context: &Context, seconds: f64) -> Result<(), Error> {
    let dirs: Vec<PathBuf> = cluster.nodes().iter().map(|node| node.dir.clone()).collect();
    let nodes = dirs.len();
    let sent_bytes = cluster.sent_bytes().await?;
    let found = blocking(move || compare::compare(&dirs)).await?;
    let verified = json::DevVerified {
        equal: found.differences.is_empty(),
        nodes,
        files: found.tally.files,
        bytes: found.tally.bytes,
        seconds,
        sent_bytes,
        not_compared: found.not_compared,
        differences: found.differences,
    };
    context.ui.result(&verified, summary)?;
    if verified.equal { Ok(()) } else { Err(Error::Shown) }
}

fn summary(verified: &json::DevVerified, style: Style) -> String {
    let mut text = format!(
        "{}, {} on each of {}, converged in {:.2} s; the nodes sent each other {}\n",
        counted(verified.files, "file", "files"),
        bytes(verified.bytes),
        counted(verified.nodes as u64, "node", "nodes"),
        verified.seconds,
        bytes(verified.sent_bytes)
    );
    if verified.equal {
        let equal = "equal: every name, byte, mode and link target, and the modification time of every file";
        text.push_str(&(style.paint(Tone::Good, equal) + "\n"));
    }
    if verified.not_compared != 0 {
        let number = counted(verified.not_compared, "name", "names");
        text.push_str(&format!("not compared: {number} only in the first directory, which are ignored or cannot be synced\n"));
    }
    for difference in verified.differences.iter().take(SHOWN_DIFFERENCES) {
        text.push_str(&format!("{} {}\n", style.paint(Tone::Bad, "differs:"), plain(difference)));
    }
    let more = verified.differences.len().saturating_sub(SHOWN_DIFFERENCES);
    if more != 0 {
        text.push_str(&format!("and {}\n", counted(more as u64, "more", "more")));
    }
    text
}

fn ready(cluster: &Cluster, tally: Tally, seconds: f64) -> Result<json::DevEvent, Error> {
    let nodes = cluster.nodes().iter().map(|node| {
        Ok(json::DevNode {
            name: node.name.clone(),
            listen: node.listen,
            home: path_text(&node.home)?,
            dir: path_text(&node.dir)?,
        })
    });
    Ok(json::DevEvent::Ready {
        dataset: cluster.dataset().to_string(),
        files: tally.files,
        bytes: tally.bytes,
        seconds,
        nodes: nodes.collect::<Result<_, Error>>()?,
    })
}

fn welcome(event: &json::DevEvent, style: Style) -> String {
    let json::DevEvent::Ready { dataset, files, bytes: size, seconds, nodes } = event else {
        return String::new();
    };
    let mut table = text::Table::default();
    for node in nodes {
        table.row([format!("  {}", node.name), node.listen.to_string(), plain(&node.dir)]);
    }
    let [first, .., last] = &nodes[..] else {
        return format!("One node keeps {}. Ctrl-C ends it.\n", plain(dataset));
    };
    format!(
        "\n{}\n{table}
Try, in another terminal:
  echo hello > {last}/hello.txt && sleep 1 && cat {first}/hello.txt
  consort --home {home} status
  consort --home {home} feed {dataset} --follow

Changes appear below, with the time from the write on one node to its arrival on the other.
Ctrl-C ends the nodes and removes what they made.\n\n",
        style.paint(
            Tone::Good,
            format_args!(
                "{} hold the same {} ({}), after {seconds:.2} s.",
                counted(nodes.len() as u64, "node", "nodes"),
                counted(*files, "file", "files"),
                bytes(*size)
            )
        ),
        last = plain(&last.dir),
        first = plain(&first.dir),
        home = plain(&first.home),
        dataset = plain(dataset),
    )
}

/// Runs what reads many files beside the commands that are under way.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        Error::failed(format!("reading the directories broke off: {error}"))
            .hint("report this as a defect")
    })?
}
