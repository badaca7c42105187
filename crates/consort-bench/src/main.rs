//! Measures Consort's real processes, side by side with other tools on the same input.
//!
//! - [`case`]: what is measured; one file per kind of work.
//! - [`workload`]: the data, which depends on nothing but its seed.
//! - [`tool`]: how each tool is configured, started and asked; one file each.
//! - [`machine`]: one side of a tool: its processes, and what they use.
//! - [`network`]: the link between two sides, whose counters are the bytes on the wire.
//! - [`process`]: what the system says about a process: time, memory, bytes.
//! - [`verify`]: whether two directories are equal, by reading both.
//! - [`table`], [`chart`]: the results, for people and as JSON, and as a picture.
//!
//! Nothing is estimated: a number that cannot be measured is not there.

mod case;
mod chart;
mod failure;
mod machine;
mod network;
mod process;
mod table;
mod tool;
mod verify;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::case::{Bench, Case};
use crate::failure::Failure;
use crate::tool::Tool;

/// Measure Consort, also against other tools.
///
/// Runs of different tools alternate. Caches of the system are not dropped: all tools find the input in memory, if it
/// fits there. Dirty pages are written out before each run. Each tool runs in two network namespaces with a link of their
/// own, which takes root.
#[derive(Debug, Parser)]
#[command(name = "consort-bench")]
struct Args {
    /// What to measure
    case: Case,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Measure these tools on the same input
    #[arg(long, value_delimiter = ',', value_name = "TOOL")]
    against: Vec<Tool>,

    /// How often; medians are shown [default: what suits the case]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,

    /// How many files, in cases that consist of files [default: what the case promises]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    files: Option<u32>,

    /// The versions of a file, in the case that replaces one by the next
    #[arg(long, num_args = 2.., value_name = "FILE", required_if_eq("case", "replaced"))]
    versions: Vec<PathBuf>,

    /// Limit every link to so many Mbit/s each way [default: no limit]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Also draw the times as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Where the data goes [default: a new directory in $TMPDIR, or else beside this program]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Leave the data there
    #[arg(long)]
    keep: bool,

    /// The program to measure [default: built beside this one]
    #[arg(long, value_name = "FILE")]
    consort: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match measure(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<(), Failure> {
    // What needs no process needs no program and no network. All others hear at once if there is none.
    let binary = match args.case {
        Case::Reconcile | Case::Formats => PathBuf::new(),
        _ => {
            network::pair(args.rate)?;
            tool::binary(args.consort.as_deref())?
        }
    };
    let mut against = Vec::new();
    for tool in &args.against {
        tool.version(&binary)?;
        if !against.contains(tool) {
            against.push(*tool);
        }
    }
    let mut place = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(place(args.dir.as_deref())?)
        .map_err(|error| Failure::io("make a directory for the data", error))?;
    place.disable_cleanup(args.keep);
    let bench = Bench {
        binary,
        place: place.path().to_path_buf(),
        against,
        runs: args.runs.map(|runs| runs as usize),
        files: args.files.map(|files| files as usize),
        versions: args.versions.clone(),
        rate: args.rate,
    };
    let table = bench.run(args.case)?;
    print!("{}", if args.json { table.json() } else { table.text() });
    if let Some(path) = &args.svg {
        let picture = chart::draw(&table)?;
        std::fs::write(path, picture)
            .map_err(|error| Failure::io(format!("write {}", path.display()), error))?;
    }
    if args.keep {
        eprintln!("The data is in {}.", place.path().display());
    }
    if table.is_verified() { Ok(()) } else { Err(Failure::new("a result was not verified")) }
}

/// Where data goes: as asked, or to `$TMPDIR`, or beside this program, which is the target directory.
fn place(asked: Option<&std::path::Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = asked {
        std::fs::create_dir_all(dir).map_err(|error| Failure::io("make --dir", error))?;
        return std::path::absolute(dir).map_err(|error| Failure::io("use --dir", error));
    }
    if let Some(dir) = std::env::var_os("TMPDIR") {
        return Ok(dir.into());
    }
    let program = std::env::current_exe().map_err(|error| Failure::io("find myself", error))?;
    Ok(program.parent().unwrap_or(&program).to_path_buf())
}
