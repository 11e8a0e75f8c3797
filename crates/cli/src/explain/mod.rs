//! `conjure explain ...`.

mod args;
mod attention;
mod odds;

pub use args::ExplainCommand;

use conjure::Result;
use std::process::ExitCode;

pub fn run(command: ExplainCommand) -> Result<ExitCode> {
    match command {
        ExplainCommand::Odds(args) => odds::run(&args),
        ExplainCommand::Attention(args) => attention::run(&args),
    }
}
