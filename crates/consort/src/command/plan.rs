//! `consort plan`: asks the simulator how a deployment would fare, and shows it. How the picture is drawn stands in
//! [`svg`].

mod svg;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use consort_sim::plan::{Deployment, Forecast, MAX_NODES, PlanError, simulate};

use crate::command::Context;
use crate::error::Error;
use crate::json;
use crate::text::{self, Table, bytes, count, counted, duration};
use crate::ui::{Style, Tone, Unit};

/// Simulate a deployment: how soon, and at what cost, do all nodes converge?
///
/// The real protocol runs on simulated machines, disks and links. One seed gives one result.
///
/// Times: from when a write is acknowledged until it is durable on another node.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The table:
  time       over all writes and all other nodes, those that failed among them
  hops       the links that a write passes on its way to a node
  received   the bytes of a node, and how many times those of all writes that is (×)
  sent       the same for the node that sends most, and the part of its uplink that it uses

Examples:
  consort plan
  consort plan --nodes 50,500,5000 --svg plan.svg
  consort plan --nodes 200 --writers 200 --writes-per-second 100 --size 1KiB --duration 30s
  consort plan --nodes 30 --latency 80ms --link-speed 20Mbit --loss 2% --failures 10%")]
pub(crate) struct Plan {
    /// How many nodes; several numbers are shown together
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(2..=i64::from(MAX_NODES)),
        default_value = "50",
        value_name = "N,..."
    )]
    nodes: Vec<u32>,

    /// How many of them write
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), default_value = "10", value_name = "N")]
    writers: u32,

    /// Writes of all writers together
    #[arg(long, value_parser = rate, default_value = "20", value_name = "RATE")]
    writes_per_second: f64,

    /// The size of a write, at most 16KiB (larger contents travel apart, which is not simulated)
    #[arg(long, value_parser = size, default_value = "2KiB", value_name = "SIZE")]
    size: u32,

    /// How long they write
    #[arg(long, value_parser = text::parse_duration, default_value = "10s", value_name = "TIME")]
    duration: Duration,

    /// The speed of a node's uplink, such as 1Gbit or 50Mbit
    #[arg(long, value_parser = speed, default_value = "1Gbit", value_name = "SPEED")]
    link_speed: u64,

    /// How long a packet is under way, give or take half of it for each two nodes
    #[arg(long, value_parser = text::parse_duration, default_value = "20ms", value_name = "TIME")]
    latency: Duration,

    /// Packets that are lost, and sent again
    #[arg(long, value_parser = percent, default_value = "1%", value_name = "PERCENT")]
    loss: u64,

    /// Nodes that fail meanwhile, and start again after 1 to 5 seconds
    #[arg(long, value_parser = percent, default_value = "1%", value_name = "PERCENT")]
    failures: u64,

    /// How many neighbours a node has, at least and at most
    #[arg(long, value_parser = degree, default_value = "3..8", value_name = "LEAST..MOST")]
    degree: (usize, usize),

    /// Decides what is random: another one shows how much is chance
    #[arg(long, default_value = "1", value_name = "N")]
    seed: u64,

    /// Draw it as well
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Plan {
    pub(crate) fn run(self, context: &Context) -> Result<(), Error> {
        let forecasts = self
            .nodes
            .iter()
            .map(|nodes| self.forecast(*nodes, context))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(path) = &self.svg {
            let picture = svg::draw(&self.about(), &forecasts);
            fs::write(path, picture).map_err(|error| Error::io("write", path, &error))?;
        }
        let result = json::Plan {
            writers: self.writers,
            writes_per_second: self.writes_per_second,
            size: self.size,
            duration_ms: u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            bytes_per_second: self.link_speed,
            latency_ms: u64::try_from(self.latency.as_millis()).unwrap_or(u64::MAX),
            loss_ppm: self.loss,
            failures_ppm: self.failures,
            least_degree: self.degree.0,
            greatest_degree: self.degree.1,
            seed: self.seed,
            forecasts: forecasts.iter().map(json::Forecast::from).collect(),
        };
        context.ui.result(&result, |_, style| show(&self.about(), &forecasts, style))
    }

    fn forecast(&self, nodes: u32, context: &Context) -> Result<Forecast, Error> {
        let deployment = Deployment {
            nodes,
            writers: self.writers,
            writes_per_second: self.writes_per_second,
            size: self.size,
            duration: self.duration,
            bytes_per_second: self.link_speed,
            latency: self.latency,
            loss_ppm: self.loss,
            failures_ppm: self.failures,
            degree: self.degree,
            seed: self.seed,
        };
        let mut bar = context.ui.progress(&format!("simulating {} nodes", count(nodes.into())));
        let forecast = simulate(&deployment, &mut |progress| {
            let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            bar.set(Unit::Entries, ms(progress.done), Some(ms(progress.total)), "ms");
        });
        forecast.map_err(|error| match error {
            PlanError::Unfit(_) => Error::usage(error.to_string()),
            PlanError::NotConverged { .. } => Error::failed(error.to_string())
                .hint("the links cannot carry that much: fewer or smaller writes, faster links"),
            PlanError::Broken(_) => {
                Error::failed(error.to_string()).hint("this is a bug: please report it")
            }
        })
    }

    /// What is simulated, in a line.
    fn about(&self) -> String {
        let of_a_hundred = |ppm: u64| ppm as f64 / 10_000.0;
        format!(
            "{}, {} writes/s of {} for {}; {}bit/s, {} ± 50 %; {} % lost, {} % of nodes fail",
            counted(self.writers.into(), "writer", "writers"),
            self.writes_per_second,
            bytes(self.size.into()),
            duration(self.duration),
            decimal(self.link_speed * 8),
            duration(self.latency),
            of_a_hundred(self.loss),
            of_a_hundred(self.failures),
        )
    }
}

fn show(about: &str, forecasts: &[Forecast], style: Style) -> String {
    let mut table = Table::default();
    let row = |cells: [&str; 12]| cells.map(str::to_owned);
    table.row(row(["", "time", "", "", "hops", "", "received", "", "", "sent", "", "messages"]));
    table.row(row([
        "nodes",
        "p50",
        "p99",
        "last",
        "mean",
        "most",
        "a node",
        "×",
        "most ×",
        "most ×",
        "uplink",
        "a node and s",
    ]));
    for forecast in forecasts {
        let times = |bytes: f64| format!("{:.2}", bytes / forecast.version_bytes as f64);
        let seconds = forecast.measured.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let received = forecast.received.mean_bytes as u64;
        table.row([
            count(forecast.nodes.into()),
            duration(forecast.convergence.p50),
            duration(forecast.convergence.p99),
            duration(forecast.convergence.last),
            format!("{:.1}", forecast.mean_hops),
            forecast.hops.last.to_string(),
            bytes(received),
            times(forecast.received.mean_bytes),
            times(forecast.received.most_bytes as f64),
            times(forecast.sent.most_bytes as f64),
            format!("{:.2} %", 100.0 * forecast.busiest_uplink),
            format!("{:.0}", forecast.received.mean_messages / seconds),
        ]);
    }
    let mut text = format!("{}\n\n{table}\n", style.paint(Tone::Strong, about));
    for forecast in forecasts {
        let _ = writeln!(text, "{}", conclusion(forecast));
    }
    text
}

/// What a forecast comes to, in a sentence.
fn conclusion(forecast: &Forecast) -> String {
    let versions = counted(forecast.versions, "write", "writes");
    let mut text = format!(
        "{} nodes: all have the {versions} ({}) {} after the last one",
        count(forecast.nodes.into()),
        bytes(forecast.version_bytes),
        duration(forecast.settled_after),
    );
    if forecast.failures != 0 {
        let _ = write!(text, ", also the {} that failed", forecast.failures);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes")]
    let beyond = forecast.beyond.max(0.0).ceil() as u64;
    let _ = match beyond {
        0 => write!(text, "; nobody received more than 1.5 times that."),
        beyond => {
            write!(text, "; nobody received more than 1.5 times that and {}/s.", bytes(beyond))
        }
    };
    text
}

/// A number with a decimal prefix.
fn decimal(number: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")];
    let unit = units.into_iter().find(|(unit, _)| *unit <= number && number.is_multiple_of(*unit));
    unit.map_or(format!("{number} "), |(unit, prefix)| format!("{} {prefix}", number / unit))
}

/// A number, and the unit behind it.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

/// A number times its unit's, if it is one that makes sense.
fn whole(text: &str, units: &[(&str, f64)], most: f64) -> Option<u64> {
    let (number, unit) = number(text)?;
    let (_, times) = units.iter().find(|(name, _)| *name == unit)?;
    let value = (number * times).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded")]
    (value <= most).then_some(value as u64)
}

fn size(text: &str) -> Result<u32, String> {
    let size = whole(text, &[("", 1.0), ("B", 1.0), ("KiB", 1024.0)], 16.0 * 1024.0);
    let size = size.and_then(|size| u32::try_from(size).ok());
    size.ok_or_else(|| "a size is a number with B or KiB, such as 2KiB; at most 16KiB".to_owned())
}

fn speed(text: &str) -> Result<u64, String> {
    let units = [("Kbit", 125.0), ("Mbit", 125e3), ("Gbit", 125e6)];
    let speed = whole(text, &units, 125e9).filter(|speed| *speed != 0);
    speed.ok_or_else(|| "a speed is a number with Kbit, Mbit or Gbit, such as 1Gbit".to_owned())
}

fn percent(text: &str) -> Result<u64, String> {
    let ppm = whole(text, &[("%", 1e4)], 1e6);
    ppm.ok_or_else(|| "a part is a number of percent, such as 1% or 0.5%".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "a rate is a number of writes in a second, such as 20 or 0.5".to_owned())
}

fn degree(text: &str) -> Result<(usize, usize), String> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|degree| (1..=1000).contains(degree));
    let degree = number(least).zip(number(most)).filter(|(least, most)| least <= most);
    degree.ok_or_else(|| "a degree is one number or two, such as 4 or 3..8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_units_that_people_write() {
        assert_eq!([size("2KiB"), size("1.5KiB"), size("7")], [Ok(2048), Ok(1536), Ok(7)]);
        assert_eq!([speed("1Gbit"), speed("0.5Mbit")], [Ok(125_000_000), Ok(62_500)]);
        assert_eq!([percent("1%"), percent("0.01%"), percent("0%")], [Ok(10_000), Ok(100), Ok(0)]);
        assert_eq!([degree("4"), degree("3..8")], [Ok((4, 4)), Ok((3, 8))]);
        for wrong in ["", "17KiB", "2MB", "-1", "1e9"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
        assert!(speed("0Gbit").is_err() && speed("1G").is_err() && percent("101%").is_err());
        assert!(degree("8..3").is_err() && degree("0").is_err() && rate("NaN").is_err());
        assert_eq!([decimal(1_000_000_000), decimal(2_500_000)], ["1 G", "2500 k"]);
    }
}
