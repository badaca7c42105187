//! The engine, running. So far: the network.

pub mod net;
