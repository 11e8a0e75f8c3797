//! `conjure explain ...`.

mod attention;
mod lens;
mod odds;

use crate::args::ExplainCommand;
use crate::interrupt;

use conjure::{Error, Result};
use std::path::Path;
use std::process::ExitCode;

pub fn run(command: ExplainCommand) -> Result<ExitCode> {
    interrupt::end_at_once();
    match command {
        ExplainCommand::Attention(args) => attention::run(&args),
        ExplainCommand::Odds(args) => odds::run(&args),
        ExplainCommand::Lens(args) => lens::run(&args),
    }
}

/// Formats by the end of a file's name, and who writes them.
const FORMATS: [(&str, &str, &str); 6] = [
    ("html", "HTML", "explain attention --out writes HTML"),
    ("htm", "HTML", "explain attention --out writes HTML"),
    ("csv", "CSV", "explain attention --csv writes CSV"),
    ("json", "JSON", "explain attention --json writes JSON"),
    ("svg", "SVG", "explain attention --svg writes SVG"),
    ("png", "PNG", "explain attention --svg draws, and its page saves PNG"),
];

/// Refuses a file whose name is plainly that of another format than what this flag writes.
fn check_format(path: &Path, flag: &str, format: &str) -> Result<()> {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default().to_lowercase();
    match FORMATS.iter().find(|(known, name, _)| *known == end && *name != format) {
        None => Ok(()),
        Some((_, other, writer)) => {
            let message = format!("{}: {flag} writes {format}, not {other}", path.display());
            let name = path.with_extension(format.to_lowercase());
            Err(Error::request(message).with_help(format!("name it {}; {writer}", name.display())))
        }
    }
}

/// A token's text in quotes, or its id where there is no text: of models without a tokenizer.
fn spelt(id: u32, text: &str) -> String {
    if text.is_empty() { format!("[{id}]") } else { format!("{text:?}") }
}
