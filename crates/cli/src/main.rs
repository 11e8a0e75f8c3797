//! The command `conjure`: reads what is asked for, has the library do it, and reports.

mod args;
mod cache;
mod data;
mod image;
mod interrupt;
mod models;
mod output;
mod preview;
mod progress;
mod replay;
mod report;
mod train;

use args::{Arguments, Command};
use clap::Parser as _;
use std::process::ExitCode;

// Every tensor operation allocates: a good allocator shows in the run time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    interrupt::listen();
    let outcome = match arguments.command {
        Command::Image(args) => image::run(*args),
        Command::Replay(args) => replay::run(args),
        Command::Models(command) => models::run(command),
        Command::Train(args) => train::run(&args),
        Command::Data(command) => data::run(command),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => report::failure(&error),
    }
}
