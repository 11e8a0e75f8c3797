//! `conjure explain ...`.

mod args;
mod attention;

pub use args::ExplainCommand;

use conjure::Result;
use std::process::ExitCode;

pub fn run(command: ExplainCommand) -> Result<ExitCode> {
    match command {
        ExplainCommand::Attention(args) => attention::run(&args),
    }
}
