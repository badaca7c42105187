<<<<<<< HEAD
//! Placeholder.

pub mod folder;
=======
//! The engine, running. So far: the network.

pub mod net;
>>>>>>> net
