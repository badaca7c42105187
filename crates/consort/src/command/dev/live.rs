//! What happens in the cluster, as it happens: one line for each change that arrives at a node, or for many at once.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::command::dev::cluster::Cluster;
use crate::control::Client;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{bytes, count, now_ms, plain};
use crate::ui::{Ui, json_line};

/// Changes that wait to be shown. Beyond that, reading the feeds pauses.
const QUEUE: usize = 1024;

/// How long changes are gathered, so that many at once become one line.
const WINDOW: Duration = Duration::from_millis(100);

/// A change that arrived at a node.
#[derive(Debug)]
struct Arrival {
    node: usize,
    lag_ms: u64,
    change: json::Change,
}

/// Shows changes until a node goes away.
pub(crate) async fn show(cluster: &Cluster, ui: &Ui) -> Result<(), Error> {
    let (sender, mut arrivals) = mpsc::channel(QUEUE);
    let mut feeds = JoinSet::new();
    for (node, running) in cluster.nodes().iter().enumerate() {
        let (client, dataset) = (running.client.clone(), cluster.dataset().to_string());
        feeds.spawn(follow(node, client, dataset, sender.clone()));
    }
    drop(sender);
    let mut batch = Vec::new();
    while arrivals.recv_many(&mut batch, QUEUE).await != 0 {
        if !ui.is_json() {
            tokio::time::sleep(WINDOW).await;
            while let (true, Ok(arrival)) = (batch.len() < QUEUE, arrivals.try_recv()) {
                batch.push(arrival);
            }
        }
        for (node, running) in cluster.nodes().iter().enumerate() {
            let (ours, rest) =
                batch.into_iter().partition(|arrival: &Arrival| arrival.node == node);
            batch = rest;
            show_batch(&running.name, ours, ui)?;
        }
        ui.flush()?;
    }
    // Feeds that are followed do not end, unless something is wrong.
    match feeds.join_next().await {
        Some(Ok(Err(error))) => Err(error),
        _ => Err(Error::failed("the nodes do not tell any more what changes")
            .hint("start `consort dev` again")),
    }
}

async fn follow(
    node: usize,
    client: Client,
    name: String,
    sender: mpsc::Sender<Arrival>,
) -> Result<(), Error> {
    let dataset: json::Dataset = client.one(Request::Dataset { name: name.clone() }).await?;
    let request = Request::Feed { name, since: Some(dataset.head), follow: true };
    let mut answers = client.ask(request).await?;
    while let Some(change) = answers.next::<json::Change>().await? {
        // One machine, one clock: the difference means something.
        let lag_ms = now_ms().saturating_sub(change.entry.written_ms);
        if sender.send(Arrival { node, lag_ms, change }).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn show_batch(name: &str, batch: Vec<Arrival>, ui: &Ui) -> Result<(), Error> {
    if ui.is_json() {
        for Arrival { lag_ms, change, .. } in batch {
            let event = json::DevEvent::Change { node: name.to_string(), lag_ms, change };
            ui.write(json_line(&event).as_bytes())?;
        }
        return Ok(());
    }
    let slowest = batch.iter().map(|arrival| arrival.lag_ms).max();
    let size: u64 = batch.iter().map(|arrival| arrival.change.entry.size).sum();
    let (Some(first), Some(slowest)) = (batch.first(), slowest) else { return Ok(()) };
    let what = match (&batch[..], first.change.entry.deleted) {
        ([_], true) => format!("deleted {}", plain(&first.change.entry.key)),
        ([_], false) => plain(&first.change.entry.key),
        (many, _) => format!("{} changes", count(many.len() as u64)),
    };
    ui.write(format!("{name}  {slowest:>5} ms  {:>10}  {what}\n", bytes(size)).as_bytes())
}
