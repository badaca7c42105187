//! The network between the sides of a tool: a network namespace for each, and links that nothing else uses: one between
//! two sides, or one from each of many to a switch. So their counters are what went over the wire, counted alike for every
//! tool: all packets both ways, with their headers, acknowledgements and retransmissions.
//!
//! A namespace has no name. It lives as long as a process is in it: the first is a `cat` that ends when our end of its
//! pipe closes, and all others are killed by the system when this process ends, however that happens. So there is
//! nothing to clean up after a failure, Ctrl-C, or `kill -9`.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use crate::failure::Failure;

/// Addresses that are meant for examples, so that no real machine is ever hidden by them.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

/// The name of the link, on both ends.
const LINK: &str = "wire";

/// A switch has room for so many.
const MOST_AT_A_SWITCH: usize = 32;

const NEEDED: &str = "every tool is measured between two network namespaces, which are made with `unshare`, `nsenter` \
     and `setpriv` (Debian: util-linux) and `ip` and `tc` (Debian: iproute2), by root or somebody with CAP_SYS_ADMIN and \
     CAP_NET_ADMIN";

/// Where the processes of one side run.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// It keeps the namespace.
    keeper: Child,
    pub(crate) address: Ipv4Addr,
}

/// Two namespaces with a link between them, which passes `rate` Mbit/s each way, or whatever the system can.
pub(crate) fn pair(rate: Option<u32>) -> Result<[Namespace; 2], Failure> {
    let pair = [Namespace::new(ADDRESSES[0])?, Namespace::new(ADDRESSES[1])?];
    let [a, b] = &pair;
    a.link(b, LINK)?;
    pair.iter().try_for_each(|namespace| namespace.set_up(30, rate))?;
    Ok(pair)
}

/// Namespaces with a link each to the same switch, which passes `rate` Mbit/s each way, or whatever the system can. The
/// last is the switch.
pub(crate) fn star(
    count: usize,
    rate: Option<u32>,
) -> Result<(Vec<Namespace>, Namespace), Failure> {
    assert!(count < MOST_AT_A_SWITCH, "there are not so many addresses");
    let switch = Namespace::new(Ipv4Addr::UNSPECIFIED)?;
    switch.ip(&["link", "add", "name", "switch", "type", "bridge"])?;
    switch.ip(&["link", "set", "dev", "switch", "addrgenmode", "none"])?;
    switch.ip(&["link", "set", "dev", "switch", "up"])?;
    let mut namespaces = Vec::new();
    for (number, last) in (0..count).zip(1..) {
        let namespace = Namespace::new(Ipv4Addr::new(192, 0, 2, last))?;
        let port = format!("port{number}");
        namespace.link(&switch, &port)?;
        switch.ip(&["link", "set", "dev", &port, "addrgenmode", "none"])?;
        switch.ip(&["link", "set", "dev", &port, "master", "switch", "up"])?;
        if let Some(rate) = rate {
            switch.limit(&port, rate)?;
        }
        namespace.set_up(24, rate)?;
        namespaces.push(namespace);
    }
    Ok((namespaces, switch))
}

impl Namespace {
    fn new(address: Ipv4Addr) -> Result<Self, Failure> {
        let mut keeper = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| impossible(&error.to_string()))?;
        // It can answer when the namespace is there.
        let _ = keeper.stdin.as_ref().expect("piped").write_all(b"\n");
        let answer = keeper.stdout.as_mut().expect("piped").read_exact(&mut [0]);
        // From here on it is ended when this is dropped.
        let mut namespace = Self { keeper, address };
        if answer.is_err() {
            let mut why = String::new();
            let _ = namespace.keeper.stderr.take().expect("piped").read_to_string(&mut why);
            return Err(impossible(why.trim()));
        }
        Ok(namespace)
    }

    /// Makes a link to another one, where it has the name `port`.
    fn link(&self, other: &Self, port: &str) -> Result<(), Failure> {
        let [own, other] = [self, other].map(|namespace| namespace.keeper.id().to_string());
        let mut link = Command::new("ip");
        link.args(["link", "add", "name", LINK, "netns", &own, "type", "veth"]);
        link.args(["peer", "name", port, "netns", &other]);
        succeed(link)
    }

    /// Lets packets pass its end of the link, to those whose address has the same first bits.
    fn set_up(&self, bits: u8, rate: Option<u32>) -> Result<(), Failure> {
        // No IPv6, which would talk by itself.
        self.ip(&["link", "set", "dev", LINK, "addrgenmode", "none"])?;
        self.ip(&["address", "add", &format!("{}/{bits}", self.address), "dev", LINK])?;
        self.ip(&["link", "set", "dev", "lo", "up"])?;
        self.ip(&["link", "set", "dev", LINK, "up"])?;
        rate.map_or(Ok(()), |rate| self.limit(LINK, rate))
    }

    /// A program in this namespace, which does not outlive this process.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.keeper.id()));
        command.args(["setpriv", "--pdeathsig", "KILL"]).arg(program);
        command
    }

    /// Bytes that have passed its end of the link, both ways.
    pub(crate) fn passed(&self) -> Result<u64, Failure> {
        self.counters().map(|(received, sent)| received + sent)
    }

    /// Bytes that it has sent.
    pub(crate) fn sent(&self) -> Result<u64, Failure> {
        self.counters().map(|(_, sent)| sent)
    }

    fn counters(&self) -> Result<(u64, u64), Failure> {
        let path = format!("/proc/{}/net/dev", self.keeper.id());
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::io("read the counters of the link", error))?;
        let line =
            text.lines().find_map(|line| line.trim_start().strip_prefix(LINK)?.strip_prefix(':'));
        let fields: Vec<u64> =
            line.unwrap_or("").split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match fields[..] {
            [received, _, _, _, _, _, _, _, sent, ..] => Ok((received, sent)),
            _ => Err(Failure::new(format!("{path} is not as expected"))),
        }
    }

    /// Whether a program waits for connections to a TCP port.
    pub(crate) fn is_listening(&self, port: u16) -> bool {
        let port = format!(":{port:04X}");
        // The second field is the own address, the fourth the state.
        let listens = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|own| own.ends_with(&port)) && fields.nth(1) == Some("0A")
        };
        ["tcp", "tcp6"].into_iter().any(|protocol| {
            let path = format!("/proc/{}/net/{protocol}", self.keeper.id());
            fs::read_to_string(path).is_ok_and(|sockets| sockets.lines().any(listens))
        })
    }

    fn limit(&self, device: &str, rate: u32) -> Result<(), Failure> {
        // What may pass at once: five milliseconds' worth, but never less than the largest packet.
        let burst = (u64::from(rate) * 1_000_000 / 8 / 200).max(70_000);
        let mut tc = self.command("tc");
        tc.args(["qdisc", "add", "dev", device, "root", "tbf", "rate", &format!("{rate}mbit")]);
        tc.args(["burst", &burst.to_string(), "latency", "50ms"]);
        succeed(tc)
    }

    fn ip(&self, args: &[&str]) -> Result<(), Failure> {
        let mut command = self.command("ip");
        command.args(args);
        succeed(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn succeed(mut command: Command) -> Result<(), Failure> {
    let output = command.output().map_err(|error| impossible(&error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(impossible(String::from_utf8_lossy(&output.stderr).trim()))
}

fn impossible(why: &str) -> Failure {
    Failure::new(format!("cannot make a network to measure in ({why}): {NEEDED}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn what_passes_the_link_is_counted_and_nothing_else_is_there() {
        let [a, b] = match pair(Some(1000)) {
            Ok(pair) => pair,
            Err(failure) => return println!("skipped: {failure}"),
        };
        assert_eq!(a.passed().unwrap(), 0);
        let mut ping = a.command("bash");
        ping.args(["-c", &format!("echo > /dev/udp/{}/9", b.address)]);
        succeed(ping).unwrap();
        assert!((1..1000).contains(&a.passed().unwrap()));
        assert_eq!(a.passed().unwrap(), b.passed().unwrap());
        assert!(TcpStream::connect((a.address, 9)).is_err());
    }
}
