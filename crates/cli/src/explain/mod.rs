//! `conjure explain ...`.

mod args;
mod attention;
mod lens;
mod odds;

pub use args::ExplainCommand;

use conjure::Result;
use std::process::ExitCode;

pub fn run(command: ExplainCommand) -> Result<ExitCode> {
    match command {
        ExplainCommand::Attention(args) => attention::run(&args),
        ExplainCommand::Odds(args) => odds::run(&args),
        ExplainCommand::Lens(args) => lens::run(&args),
    }
}
