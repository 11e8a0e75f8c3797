//! `conjure explain ...`.

mod attention;
mod odds;

use crate::args::ExplainCommand;

use conjure::Result;
use std::process::ExitCode;

pub fn run(command: ExplainCommand) -> Result<ExitCode> {
    match command {
        ExplainCommand::Odds(args) => odds::run(&args),
        ExplainCommand::Attention(args) => attention::run(&args),
    }
}
