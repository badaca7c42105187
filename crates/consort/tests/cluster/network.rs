//! A network of the test's own: each node in a network namespace, half of them at one switch and half at another, and
//! one cable between the two. Whoever pulls the cable splits the cluster as a broken line would: no process is told.
//!
//! It takes root. All names carry the id of the test's process, so that runs beside each other have networks of their
//! own.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where `ip` keeps namespaces by name.
const NAMESPACES: &str = "/run/netns";

/// What the names of ours begin with.
const PREFIX: &str = "consort-";

/// The port that every node listens on; each has an address of its own.
const PORT: u16 = 7440;

/// Two switches, a cable between them, and places for nodes at both.
#[derive(Debug)]
pub(crate) struct Network {
    switches: [String; 2],
    /// The first half is at the first switch.
    pub(crate) places: Vec<Place>,
}

/// Where a node runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    namespace: String,
    pub(crate) listen: SocketAddr,
}

impl Network {
    /// A network with so many places; says why if there can be none here.
    pub(crate) fn new(places: u8) -> Option<Self> {
        remove_leftovers();
        let name = |what: &str| format!("{PREFIX}{}-{what}", std::process::id());
        let place = |number: u8| Place {
            namespace: name(&number.to_string()),
            listen: (Ipv4Addr::new(10, 77, 0, number), PORT).into(),
        };
        let network = Self {
            switches: [name("left"), name("right")],
            places: (1..=places).map(place).collect(),
        };
        match network.build() {
            Ok(()) => Some(network),
            Err(reason) => {
                println!("skipped: no network namespaces can be made here: {}", reason.trim());
                None
            }
        }
    }

    /// The numbers of the places at each switch.
    pub(crate) fn sides(&self) -> [Vec<usize>; 2] {
        let middle = self.places.len().div_ceil(2);
        [(0..middle).collect(), (middle..self.places.len()).collect()]
    }

    /// Pulls the cable between the switches.
    pub(crate) fn cut(&self) {
        self.set_cable("down");
    }

    /// Plugs it in again.
    pub(crate) fn mend(&self) {
        self.set_cable("up");
    }

    fn set_cable(&self, state: &str) {
        let set = ip(Some(&self.switches[0]), &[format!("link set cable {state}")]);
        set.expect("the cable is there");
    }

    fn build(&self) -> Result<(), String> {
        let namespaces = self.switches.iter().chain(self.places.iter().map(|p| &p.namespace));
        ip(None, &namespaces.map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
        let [left, right] = &self.switches;
        for switch in &self.switches {
            ip(Some(switch), &["link add bridge type bridge", "link set bridge up"])?;
        }
        ip(Some(left), &[format!("link add cable type veth peer name cable netns {right}")])?;
        for (switch, side) in self.switches.iter().zip(self.sides()) {
            ip(Some(switch), &["link set cable master bridge", "link set cable up"])?;
            for number in side {
                let Place { namespace, listen } = &self.places[number];
                let port = format!("port{number}");
                ip(
                    Some(switch),
                    &[
                        format!("link add {port} type veth peer name eth0 netns {namespace}"),
                        format!("link set {port} master bridge"),
                        format!("link set {port} up"),
                    ],
                )?;
                ip(
                    Some(namespace),
                    &[
                        "link set lo up".to_owned(),
                        format!("addr add {}/24 dev eth0", listen.ip()),
                        "link set eth0 up".to_owned(),
                    ],
                )?;
            }
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What is in them goes with them, as soon as the last process there has ended.
        let places = self.places.iter().map(|place| &place.namespace);
        remove(self.switches.iter().chain(places));
    }
}

impl Place {
    /// A command that runs here. Its process is that of `program`.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMESPACES}/{}", self.namespace)).arg(program);
        command
    }
}

/// Runs commands of `ip` in a namespace.
fn ip<C: AsRef<str>>(namespace: Option<&str>, commands: &[C]) -> Result<(), String> {
    let mut child = Command::new("ip")
        .args(namespace.into_iter().flat_map(|name| ["-n", name]))
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run ip: {error}"))?;
    let lines: String = commands.iter().map(|command| format!("{}\n", command.as_ref())).collect();
    let mut stdin = child.stdin.take().expect("piped");
    // If it ended before it read them, it says why.
    let _ = stdin.write_all(lines.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn remove<'n>(namespaces: impl Iterator<Item = &'n String>) {
    for name in namespaces.filter(|name| Path::new(NAMESPACES).join(name).exists()) {
        if let Err(reason) = ip(None, &[format!("netns del {name}")]) {
            eprintln!("cannot remove the network namespace {name}: {reason}");
        }
    }
}

/// A run that was killed could not remove its network.
fn remove_leftovers() {
    let names = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let left: Vec<String> = names
        .filter(|name| {
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            let owner = owner.and_then(|id| id.parse::<u32>().ok());
            owner.is_some_and(|id| !PathBuf::from(format!("/proc/{id}")).exists())
        })
        .collect();
    remove(left.iter());
}
