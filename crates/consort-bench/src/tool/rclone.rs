//! rclone: `rclone serve sftp` on the side that has the data, and `rclone sync` from it.
//!
//! SFTP, because of what rclone can serve it is the one that is encrypted, keeps modification times (to the second) and
//! knows checksums, which rclone compares after each file by itself. Packets are of 32 KiB, since its documentation
//! says that this server takes no others.
//!
//! `--transfers` and `--checkers` as many as help on a fast link: the default of 4 is meant for the limits of cloud
//! services. `--track-renames`, because otherwise every renamed file is sent again. `--dir-cache-time 0`, because what
//! is served is also changed behind the server's back, which it would not notice for 5 minutes.

use crate::failure::Failure;
use crate::machine::{Machines, ask};
use crate::tool::Driver;

const PORT: u16 = 2022;

#[derive(Debug)]
pub(super) struct Rclone;

impl Driver for Rclone {
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let Machines { a, b } = machines;
        let mut server = a.command("rclone");
        server.args(["serve", "sftp"]).arg(&a.dir);
        server.args(["--addr", &format!("{}:{PORT}", a.address())]);
        server.args(["--user", "bench", "--pass", "bench", "--read-only", "--dir-cache-time", "0"]);
        a.start("rclone-server", server)?;

        let mut obscure = b.command("rclone");
        obscure.args(["obscure", "bench"]);
        // With what rclone would otherwise find out by its first call, in two seconds, and write here.
        let configuration = format!(
            "[a]\ntype = sftp\nhost = {}\nport = {PORT}\nuser = bench\npass = {}\nshell_type = unix\n\
             md5sum_command = md5sum\nsha1sum_command = sha1sum\n",
            a.address(),
            ask(obscure)?.trim(),
        );
        b.write("rclone.conf", &configuration)?;
        a.until_listening(PORT)
    }

    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let mut client = machines.b.command("rclone");
        client.arg("--config").arg(machines.b.home.join("rclone.conf"));
        client.args(["--transfers", "16", "--checkers", "16", "--track-renames"]);
        client.args(["sync", "a:"]).arg(&machines.b.dir);
        machines.b.run("rclone", client)
    }
}
