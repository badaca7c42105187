//! `consort status`

use std::fmt::Write as _;
use std::time::Duration;

use crate::command::{Context, NOTHING_HEARD};
use crate::control::wire::Request;
use crate::error::Error;
use crate::json::{self, DatasetState};
use crate::limits::rate;
use crate::text::{Table, bytes, count, counted, duration, plain, time_left};
use crate::ui::{Style, Tone, json_line};

/// Older news of a member are shown with their age. Members repeat them every ten seconds, in larger clusters less often.
const OLD_NEWS_SECONDS: u64 = 30;

/// Show how things stand: this node, its peers, its datasets, and what is under way.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort status
  consort status photos --watch
  consort status --json | jq '.datasets[] | {name, state, pending}'")]
pub(crate) struct Status {
    /// Only this dataset
    name: Option<String>,

    /// Show it again whenever it changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let Context { ui, .. } = context;
        let request = Request::Status { name: self.name, watch: self.watch };
        let mut answers = context.node().ask(request).await?;
        let redraws = self.watch && ui.is_terminal() && !ui.is_json();
        while let Some(status) = answers.next::<json::Status>().await? {
            if ui.is_json() {
                ui.write(json_line(&status).as_bytes())?;
                ui.flush()?;
                continue;
            }
            // Who knows not even itself as a member has heard nothing.
            let has_heard = !status.peers.is_empty()
                || !context.node().all::<json::Member>(Request::Members).await?.is_empty();
            let text = render(&status, has_heard, ui.style());
            if redraws {
                ui.redraw(&text)?;
            } else {
                ui.write(text.as_bytes())?;
            }
            ui.flush()?;
        }
        Ok(())
    }
}

fn render(status: &json::Status, has_heard: bool, style: Style) -> String {
    let mut text = String::new();
    let identity = &status.identity;
    let _ = writeln!(
        text,
        "{} {}  {} of cluster {}, at {}, sent {}, received {}",
        style.paint(Tone::Strong, format_args!("node {}", plain(&identity.name))),
        short(&identity.node),
        identity.role.as_str(),
        plain(&identity.cluster),
        status.listen,
        bytes(status.sent_bytes),
        bytes(status.received_bytes)
    );
    limits(&mut text, status.limit_up_bytes, status.limit_down_bytes);
    if let Some(error) = &status.config_error {
        let told = format!("{}; what was settled before holds on", plain(error));
        let _ = writeln!(text, "config   {}", style.paint(Tone::Bad, told));
    }
    let is_admin = identity.role == json::Role::Admin;
    match (has_heard, status.peers.is_empty()) {
        (false, _) => {
            let _ = writeln!(text, "{}", style.paint(Tone::Notice, NOTHING_HEARD));
        }
        (true, true) if is_admin => text.push_str("no peers yet: consort invite\n"),
        (true, true) => text.push_str("no peers yet\n"),
        (true, false) => peers(&mut text, &status.peers, style),
    }
    if status.datasets.is_empty() && has_heard {
        let how = if is_admin { "" } else { "an admin makes them with " };
        let _ = writeln!(text, "\nno datasets yet: {how}consort dataset create NAME");
    }
    for dataset in &status.datasets {
        text.push('\n');
        render_dataset(&mut text, dataset, &status.peers, style);
    }
    text
}

/// The limits that hold now, if any do.
fn limits(text: &mut String, up: Option<u64>, down: Option<u64>) {
    let limit = |direction, limit: Option<u64>| Some(format!("{direction} {}", rate(limit?)));
    let limits: Vec<String> =
        [limit("up", up), limit("down", down)].into_iter().flatten().collect();
    if !limits.is_empty() {
        let _ = writeln!(text, "limits   {}", limits.join(", "));
    }
}

/// How an identity begins: enough to tell nodes apart, and what conflict copies are named by.
fn short(identity: &str) -> String {
    plain(identity.get(..8).unwrap_or(identity))
}

fn peers(text: &mut String, peers: &[json::PeerStatus], style: Style) {
    let there = peers.iter().filter(|peer| peer.presence == "alive").count();
    let neighbours = peers.iter().filter(|peer| peer.neighbour).count() as u64;
    let others = counted(peers.len() as u64, "other", "others");
    let neighbours = counted(neighbours, "neighbour", "neighbours");
    let _ = writeln!(text, "members  {there} of {others} alive, {neighbours}");
    let mut table = Table::default();
    for peer in peers {
        table.row([
            format!("  {}", plain(&peer.peer.name)),
            short(&peer.peer.node),
            peer.role.as_str().to_string(),
            peer.address.map_or_else(|| "no address".to_string(), |address| address.to_string()),
            standing(peer, style),
            datasets(peer, style),
        ]);
    }
    text.push_str(&table.to_string());
}

/// Whether a member is there, and how it belongs to this node.
fn standing(peer: &json::PeerStatus, style: Style) -> String {
    let since = duration(Duration::from_secs(peer.for_seconds));
    let reason =
        peer.reason.as_ref().map_or_else(String::new, |reason| format!(": {}", plain(reason)));
    match peer.presence.as_str() {
        "alive" => {
            let link = match (peer.neighbour, peer.connected) {
                (true, _) => ", neighbour",
                (false, true) => ", connected",
                (false, false) => "",
            };
            style.paint(Tone::Good, format_args!("alive{link}"))
        }
        "unheard" => style.paint(Tone::Notice, format_args!("not heard of yet{reason}")),
        presence => style.paint(Tone::Notice, format_args!("{presence} for {since}{reason}")),
    }
}

/// Whether a member was heard of, and nobody knows that it is gone.
fn is_there(peer: &json::PeerStatus) -> bool {
    matches!(peer.presence.as_str(), "alive" | "suspected")
}

/// Where a member differs from this node, and how old that news is, if it is old.
fn datasets(peer: &json::PeerStatus, style: Style) -> String {
    let Some(ago) = peer.told_seconds_ago else {
        return "told nothing yet".to_string();
    };
    // It may hold more by now.
    if !is_there(peer) {
        let ago = duration(Duration::from_secs(ago));
        return style.paint(Tone::Notice, format_args!("heard last {ago} ago"));
    }
    let describe = |dataset: &json::PeerDataset| {
        let name = plain(&dataset.name);
        let mut parts = Vec::new();
        if dataset.behind != 0 {
            parts.push(format!("{} fewer", counted(dataset.behind, "version", "versions")));
        }
        if dataset.pending != 0 {
            parts.push(format!("{} to come", counted(dataset.pending, "entry", "entries")));
        }
        let parts =
            if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
        format!("{name} differs{parts}")
    };
    let differing: Vec<String> =
        peer.datasets.iter().filter(|dataset| !dataset.in_sync).map(describe).collect();
    let (tone, mut text) = match (differing.is_empty(), peer.datasets.is_empty()) {
        (true, true) => (Tone::Notice, "knows no datasets".to_string()),
        (true, false) => (Tone::Good, "in sync".to_string()),
        (false, _) => (Tone::Notice, differing.join("; ")),
    };
    if OLD_NEWS_SECONDS < ago {
        let _ = write!(text, ", {} ago", duration(Duration::from_secs(ago)));
    }
    style.paint(tone, text)
}

fn render_dataset(
    text: &mut String,
    dataset: &json::DatasetStatus,
    peers: &[json::PeerStatus],
    style: Style,
) {
    let tone = match dataset.state {
        DatasetState::InSync => Tone::Good,
        DatasetState::Syncing | DatasetState::Scanning | DatasetState::Waiting => Tone::Notice,
        DatasetState::Paused | DatasetState::Degraded => Tone::Bad,
    };
    let _ = writeln!(
        text,
        "{}  {}",
        style.paint(Tone::Strong, format_args!("dataset {}", plain(&dataset.name))),
        style.paint(tone, state(dataset, peers))
    );
    let mut table = Table::default();
    let mut row = |name: &str, value: String| table.row([format!("  {name}"), value]);
    if let Some(reason) = &dataset.reason {
        row("because", style.paint(tone, plain(reason)));
    }
    let read_only = if dataset.read_only { " (read only)" } else { "" };
    let dir = dataset.dir.as_ref().map_or_else(|| "not linked".to_string(), |dir| plain(dir));
    row("directory", dir + read_only);
    if dataset.on_conflict != json::OnConflict::KeepBoth {
        row("on conflict", dataset.on_conflict.as_str().to_string());
    }
    row("versions", format!("{}, digest {}", count(dataset.versions), plain(&dataset.digest)));
    if let Some(total) = dataset.to_index {
        row(
            "scan",
            format!("{} of {}", count(dataset.indexed), counted(total, "entry", "entries")),
        );
    }
    if dataset.pending != 0 {
        let pending = counted(dataset.pending, "entry", "entries");
        row("to come", pending + &rate_and_time(dataset.pending_bytes, dataset.rate_bytes));
    }
    if dataset.conflicts != 0 {
        row("conflicts", style.paint(Tone::Notice, conflicts(dataset)));
    }
    for problem in &dataset.problems {
        row("problem", style.paint(Tone::Bad, plain(problem)));
    }
    for link in &dataset.links {
        let difference = match link.behind {
            0 => String::new(),
            behind => format!(", lacks {}", count(behind)),
        };
        let method = link.method.as_ref().map(|method| format!(" ({})", plain(method)));
        let method = method.unwrap_or_default();
        let standing = format!("{}{method}{difference}", plain(&link.phase));
        row(&format!("with {}", plain(&link.peer.name)), standing);
    }
    text.push_str(&table.to_string());
}

/// The state in words. What is in sync is so with those that are there; without a directory, as far as metadata goes.
fn state(dataset: &json::DatasetStatus, peers: &[json::PeerStatus]) -> String {
    let mut state = dataset.state.as_str().replace('-', " ");
    if dataset.state == DatasetState::InSync {
        let away = peers.iter().filter(|peer| !is_there(peer)).count();
        if away != 0 {
            let _ = write!(state, " with those that are there; {away} of {} are not", peers.len());
        }
        state.push_str(contents(dataset));
    }
    state
}

/// What is known of the contents, where they are not all here.
fn contents(dataset: &json::DatasetStatus) -> &'static str {
    match (dataset.metadata_only, dataset.complete_peers) {
        (false, _) => "",
        // What is in no directory is where it was put, or nowhere.
        (true, Some(0)) if dataset.versions != 0 => {
            " (metadata only: neither here nor on another node that is there is all of it in a directory; whether contents can be had, `consort doctor` finds out)"
        }
        (true, None) => " (metadata only: not linked here)",
        (true, Some(_)) => " (not linked here: contents are fetched when read)",
    }
}

/// How many versions wait for somebody to choose, where they are, and how to choose.
fn conflicts(dataset: &json::DatasetStatus) -> String {
    let name = plain(&dataset.name);
    let not_shown = dataset.conflicts.saturating_sub(dataset.conflict_copies);
    let copies = match (&dataset.dir, not_shown) {
        (None, _) => String::new(),
        (Some(_), 0) => ", each beside the file that won".to_string(),
        // They may just not be there yet.
        (Some(_), not_shown) => format!(", {} without a copy in the directory", count(not_shown)),
    };
    format!(
        "{}{copies}: `consort conflicts {name}` shows what to choose from",
        count(dataset.conflicts)
    )
}

/// How much is to come; and where something comes, how fast, and how long that will take.
fn rate_and_time(left: u64, rate: u64) -> String {
    let shown = bytes(rate);
    match (left, rate) {
        (0, 0) => String::new(),
        (left, 0) => format!(", {}", bytes(left)),
        // How many bytes is not always known.
        (0, _) => format!(", {shown}/s"),
        (left, rate) => {
            format!(", {}, {shown}/s, about {} left", bytes(left), time_left(left, rate))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_if_there_are_any() {
        let told = |up, down| {
            let mut text = String::new();
            limits(&mut text, up, down);
            text
        };
        assert_eq!(told(None, None), "");
        assert_eq!(told(Some(2_500_000), None), "limits   up 2.5 MB/s\n");
        assert_eq!(told(Some(64_000), Some(10_000_000)), "limits   up 64 kB/s, down 10 MB/s\n");
    }

    #[test]
    fn how_long_it_takes_is_told_only_where_something_comes() {
        assert_eq!(rate_and_time(3_100_000, 0), format!(", {}", bytes(3_100_000)));
        assert_eq!(rate_and_time(0, 0), "");
        let told = rate_and_time(640_000, 64_000);
        assert!(told.ends_with(&format!("{}/s, about 10 s left", bytes(64_000))), "{told}");
    }

    #[test]
    fn one_neighbour_is_told_as_one() {
        let peer = serde_json::json!({
            "node": "5f3a90c2d1e84b7796a0c3de12f48b60", "name": "b", "role": "writer",
            "address": "127.0.0.1:7440", "connected": true, "reason": null, "presence": "alive",
            "for_seconds": 1, "neighbour": true, "told_seconds_ago": 1, "neighbours": 1,
            "rate_bytes": 0, "datasets": [],
        });
        let told = |number: usize| {
            let peer = || serde_json::from_value(peer.clone()).expect("a peer");
            let all: Vec<json::PeerStatus> = (0..number).map(|_| peer()).collect();
            let mut text = String::new();
            peers(&mut text, &all, Style::Plain);
            text.lines().next().map(str::to_owned)
        };
        assert_eq!(told(1).as_deref(), Some("members  1 of 1 other alive, 1 neighbour"));
        assert_eq!(told(2).as_deref(), Some("members  2 of 2 others alive, 2 neighbours"));
    }
}
