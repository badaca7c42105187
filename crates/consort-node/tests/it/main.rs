//! The node from outside, over loopback.
//!
//! - `net`: networks that find, refuse and lose each other; joining; hostile bytes on the port.

mod net;
