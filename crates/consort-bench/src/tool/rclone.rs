//! rclone: `rclone serve sftp` on the side that gets the data, and `rclone sync` to it.
//!
//! SFTP, because of what rclone can serve it is the one that is encrypted, keeps modification times (to the second) and
//! knows checksums, which rclone compares after each file by itself. Packets are of 32 KiB, since its documentation
//! says that this server takes no others.
//!
//! The server is on the target, as its memory of directories is good for minutes, and there nobody else changes them.
//!
//! `--transfers` and `--checkers` as many as help on a fast link: the default of 4 is meant for the limits of cloud
//! services. `--track-renames`, because otherwise every renamed file is sent again.

use crate::failure::Failure;
use crate::machine::{Machines, ask};
use crate::tool::Driver;

const PORT: u16 = 2022;

#[derive(Debug)]
pub(super) struct Rclone;

impl Driver for Rclone {
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let Machines { a, b } = machines;
        let mut server = b.command("rclone");
        server.args(["serve", "sftp"]).arg(&b.dir);
        server.args(["--addr", &format!("{}:{PORT}", b.address())]);
        server.args(["--user", "bench", "--pass", "bench"]);
        b.start("rclone-server", server)?;

        let mut obscure = a.command("rclone");
        obscure.args(["obscure", "bench"]);
        // With what rclone would otherwise find out by its first call, in two seconds, and write here.
        let configuration = format!(
            "[b]\ntype = sftp\nhost = {}\nport = {PORT}\nuser = bench\npass = {}\nshell_type = unix\n\
             md5sum_command = md5sum\nsha1sum_command = sha1sum\n",
            b.address(),
            ask(obscure)?.trim(),
        );
        a.write("rclone.conf", &configuration)?;
        b.until_listening(PORT)
    }

    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let a = &mut machines.a;
        let mut client = a.command("rclone");
        client.arg("--config").arg(a.home.join("rclone.conf"));
        client.args(["--transfers", "16", "--checkers", "16", "--track-renames", "sync"]);
        client.arg(&a.dir).arg("b:");
        a.run("rclone", client)
    }
}
