//! `conjure explain ...`.

mod attention;
mod lens;
mod odds;

use crate::args::ExplainCommand;
use crate::interrupt;

use conjure::Result;
use std::process::ExitCode;

pub fn run(command: ExplainCommand) -> Result<ExitCode> {
    interrupt::end_at_once();
    match command {
        ExplainCommand::Attention(args) => attention::run(&args),
        ExplainCommand::Odds(args) => odds::run(&args),
        ExplainCommand::Lens(args) => lens::run(&args),
    }
}

/// A token's text in quotes, or its id where there is no text: of models without a tokenizer.
fn spelt(id: u32, text: &str) -> String {
    if text.is_empty() { format!("[{id}]") } else { format!("{text:?}") }
}
