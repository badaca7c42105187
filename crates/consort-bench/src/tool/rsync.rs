//! rsync: a daemon on the side that has the data, and a client that copies from it, as `man rsync` shows for servers.
//!
//! `--archive`, because that is what Consort keeps of files; `--delete`, because the result is to be equal. Not
//! encrypted: that takes another program, a shell or a proxy. Nothing is compressed: the data cannot be.

use crate::failure::Failure;
use crate::machine::{Machine, Machines};
use crate::tool::Driver;

pub(super) const PORT: u16 = 873;

#[derive(Debug)]
pub(super) struct Rsync;

impl Driver for Rsync {
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        start_daemon(&mut machines.a, "read only = yes")
    }

    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let from = format!("rsync://{}/{MODULE}/", machines.a.address());
        let mut client = machines.b.command("rsync");
        client.args(["--archive", "--delete", &from]).arg(&machines.b.dir);
        machines.b.run("rsync", client)
    }
}

/// What the daemon calls the directory that it serves.
pub(super) const MODULE: &str = "bench";

/// Serves the directory of a machine.
pub(super) fn start_daemon(machine: &mut Machine, access: &str) -> Result<(), Failure> {
    // As the user who measures, since nobody may not read everything.
    let text = format!(
        "address = {}\nport = {PORT}\nuse chroot = no\nreverse lookup = no\nlog file = /dev/null\nuid = 0\ngid = 0\n\
         [{MODULE}]\npath = {}\n{access}\n",
        machine.address(),
        machine.dir_text()?,
    );
    let configuration = machine.write("rsyncd.conf", &text)?;
    let mut daemon = machine.command("rsync");
    daemon.args(["--daemon", "--no-detach", "--config"]).arg(configuration);
    machine.start("rsync-daemon", daemon)?;
    machine.until_listening(PORT)
}
