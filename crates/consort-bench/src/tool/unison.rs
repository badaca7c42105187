//! Unison: a server on a socket on the side that gets the data, and a client on the side that has it.
//!
//! `-batch -auto` ask nothing. `-times` and `-perms` keep what Consort keeps of files, modification times to the second.
//! `-confirmbigdel=false`, because a renamed top directory is meant to go. `-fastcheck` is on by default: unchanged
//! files are known by their time and inode. Not encrypted: for that, its manual recommends a secure shell instead of
//! the socket.

use crate::failure::Failure;
use crate::machine::{Machine, Machines};
use crate::tool::Driver;

const PORT: u16 = 5000;

#[derive(Debug)]
pub(super) struct Unison;

impl Driver for Unison {
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let machine = &mut machines.b;
        let mut server = unison(machine);
        server.args(["-socket", &PORT.to_string(), "-listen", &machine.address().to_string()]);
        machine.start("unison-server", server)?;
        machine.until_listening(PORT)
    }

    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let Machines { a, b } = machines;
        let mut client = unison(a);
        client.args(["-ui", "text", "-batch", "-auto", "-confirmbigdel=false", "-times"]);
        // All bits, of which the default leaves out those beyond read, write and execute.
        client.args(["-perms", "-1"]).arg(&a.dir);
        client.arg(format!("socket://{}:{PORT}/{}", b.address(), b.dir_text()?));
        a.run("unison", client)
    }
}

fn unison(machine: &Machine) -> std::process::Command {
    let mut command = machine.command("unison");
    command.env("UNISON", machine.home.join("unison"));
    command
}
