//! `consort`, the program. Start reading at [`args`] for what can be asked, then at [`command`] for what is done.

mod args;
mod command;
mod config;
mod control;
mod error;
mod json;
mod limits;
mod pace;
mod text;
mod ui;

fn main() -> std::process::ExitCode {
    command::main()
}
