//! Syncthing: two instances, driven through their REST API.
//!
//! They are as installed, with the watcher on and every file synced to the disk, except:
//!
//! - The target knows the address of the source and connects to it, as two that connect to each other at the same time
//!   cut each other off at first. They talk to no other host: no discovery, relays, NAT traversal, STUN,
//!   upgrades, crash reports or usage reports.
//! - It tries to connect every second instead of every minute; both run at normal priority instead of a low one.
//! - The watcher waits one second for more changes instead of ten. Where a change is made by the case and
//!   not only seen, a scan is asked for at once, as its documentation recommends to programs that know.
//!
//! A change has arrived when the target knows of all that the source knows, needs nothing of it, and both are idle. The
//! API is reached through a socket in the file system, so that none of this passes the link.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::machine::{Machine, Machines, ask};
use crate::tool::Driver;

const PORT: u16 = 22000;
const FOLDER: &str = "bench";
const API_KEY: &str = "bench";

/// How often it is asked whether it is done, which takes time from it too.
const POLL: Duration = Duration::from_millis(20);

/// The name that each instance has made for itself.
#[derive(Debug, Default)]
pub(super) struct Syncthing {
    a: String,
    b: String,
}

impl Driver for Syncthing {
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        (self.a, self.b) = (identity(&machines.a)?, identity(&machines.b)?);
        let devices = format!(
            "<device id=\"{}\" name=\"a\"><address>tcp://{}:{PORT}</address></device>\n\
             <device id=\"{}\" name=\"b\"><address>dynamic</address></device>\n",
            self.a,
            machines.a.address(),
            self.b,
        );
        let text = |own: &Machine| configuration(own, &devices);
        machines.a.write("config.xml", &text(&machines.a))?;
        machines.b.write("config.xml", &text(&machines.b))?;
        self.start_again(machines)
    }

    fn link(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let devices = json!([{ "deviceID": self.a }, { "deviceID": self.b }]);
        for machine in [&machines.a, &machines.b] {
            let folder = json!({
                "id": FOLDER,
                "path": machine.dir_text()?,
                "devices": devices,
                "fsWatcherEnabled": true,
                "fsWatcherDelayS": 1,
            });
            request(machine, "PUT", &format!("config/folders/{FOLDER}"), &folder.to_string())?;
        }
        Ok(())
    }

    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let scan = format!("db/scan?folder={FOLDER}");
        // It answers when the scan is done; before the folder has started, it refuses.
        machines.a.until("a scan", |a| Ok(request(a, "POST", &scan, "").is_ok()))?;
        while !self.is_complete(machines)? {
            machines.a.expect_running()?;
            machines.b.expect_running()?;
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn stop(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        machines.stop()
    }

    fn start_again(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        for machine in [&mut machines.a, &mut machines.b] {
            let mut serve = command(machine, "serve");
            serve.args(["--no-browser", "--no-restart", "--no-upgrade"]);
            machine.start("syncthing", serve)?;
        }
        for (machine, peer) in [(&mut machines.a, &self.b), (&mut machines.b, &self.a)] {
            machine.until("the instances to meet", |machine| {
                let connections: Result<Value, _> = get(machine, "system/connections");
                Ok(connections.is_ok_and(|all| all["connections"][peer]["connected"] == true))
            })?;
        }
        Ok(())
    }
}

impl Syncthing {
    /// Whether the target has all that the source has, and both rest.
    fn is_complete(&self, machines: &Machines) -> Result<bool, Failure> {
        let status = format!("db/status?folder={FOLDER}");
        let source: Status = get(&machines.a, &status)?;
        let of_source = format!("db/completion?folder={FOLDER}&device={}", self.a);
        let heard: Heard = get(&machines.b, &of_source)?;
        let target: Status = get(&machines.b, &status)?;
        Ok(source.state == "idle"
            && heard.sequence == source.sequence
            && target.state == "idle"
            && target.need_total_items == 0)
    }
}

/// What of its JSON is used here: how things stand with a folder.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    state: String,
    /// The number of the last change that this instance knows of itself.
    sequence: u64,
    need_total_items: u64,
}

/// The number of the last change that was heard of another instance.
#[derive(Deserialize)]
struct Heard {
    sequence: u64,
}

/// Lets an instance make its keys; returns its name.
fn identity(machine: &Machine) -> Result<String, Failure> {
    let mut generate = command(machine, "generate");
    generate.args(["--no-default-folder", "--skip-port-probing"]);
    ask(generate)?;
    let mut serve = command(machine, "serve");
    serve.arg("--device-id");
    Ok(ask(serve)?.trim().to_string())
}

fn configuration(machine: &Machine, devices: &str) -> String {
    format!(
        "<configuration version=\"36\">\n{devices}\
         <gui enabled=\"true\" tls=\"false\"><address>{}</address><apikey>{API_KEY}</apikey></gui>\n\
         <options>\n\
         <listenAddress>tcp://{}:{PORT}</listenAddress>\n\
         <globalAnnounceEnabled>false</globalAnnounceEnabled>\n\
         <localAnnounceEnabled>false</localAnnounceEnabled>\n\
         <relaysEnabled>false</relaysEnabled>\n\
         <natEnabled>false</natEnabled>\n\
         <stunKeepaliveStartS>0</stunKeepaliveStartS>\n\
         <autoUpgradeIntervalH>0</autoUpgradeIntervalH>\n\
         <crashReportingEnabled>false</crashReportingEnabled>\n\
         <urAccepted>-1</urAccepted>\n\
         <startBrowser>false</startBrowser>\n\
         <reconnectionIntervalS>1</reconnectionIntervalS>\n\
         <setLowPriority>false</setLowPriority>\n\
         </options>\n</configuration>\n",
        machine.home.join(SOCKET).display(),
        machine.address(),
    )
}

const SOCKET: &str = "api.socket";

fn command(machine: &Machine, subcommand: &str) -> std::process::Command {
    let mut command = machine.command("syncthing");
    command.arg(subcommand).arg("--home").arg(&machine.home);
    // Not below another process that would only watch over it, and not always end together with it.
    command.env("STMONITORED", "yes");
    command
}

fn get<T: DeserializeOwned>(machine: &Machine, path: &str) -> Result<T, Failure> {
    let text = request(machine, "GET", path, "")?;
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("{error} in {text}")))
}

/// Asks the API, and returns the body of an answer that says that all went well.
fn request(machine: &Machine, method: &str, path: &str, body: &str) -> Result<String, Failure> {
    // HTTP 1.0, so that the body is whatever comes until the end.
    let request = format!(
        "{method} /rest/{path} HTTP/1.0\r\nX-API-Key: {API_KEY}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    UnixStream::connect(machine.home.join(SOCKET))
        .and_then(|mut socket| {
            socket.write_all(request.as_bytes())?;
            socket.read_to_string(&mut answer)
        })
        .map_err(|error| Failure::io("ask syncthing", error))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_string()),
        _ => Err(Failure::new(format!("syncthing answered {method} {path} with: {answer}"))),
    }
}
