//! lsyncd: watches the side that has the data, and calls rsync, which writes to a daemon on the other side.
//!
//! `delay = 1`, the value in its manual's examples; by default it waits 15 seconds, to do many changes in one call.

use crate::failure::Failure;
use crate::machine::Machines;
use crate::tool::{Driver, rsync};

#[derive(Debug)]
pub(super) struct Lsyncd;

impl Driver for Lsyncd {
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        rsync::start_daemon(&mut machines.b, "read only = no")
    }

    fn link(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        let Machines { a, b } = machines;
        let text = format!(
            "settings {{ nodaemon = true }}\n\
             sync {{ default.rsync, source = {:?}, target = \"rsync://{}/{}/\", delay = 1, rsync = {{ archive = true }} }}\n",
            a.dir_text()?,
            b.address(),
            rsync::MODULE,
        );
        let configuration = a.write("lsyncd.lua", &text)?;
        let mut lsyncd = a.command("lsyncd");
        lsyncd.arg(configuration);
        a.start("lsyncd", lsyncd)
    }

    /// It says that only of its first copy; whoever waits for a later change has to look at the target.
    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        machines.a.until("the first copy", |a| Ok(a.said("lsyncd").contains("finished.")))
    }
}
