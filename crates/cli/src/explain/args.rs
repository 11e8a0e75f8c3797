//! What can be asked of `conjure explain`.

use crate::args::MachineArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Ways to look into a model.
#[derive(Debug, Subcommand)]
pub enum ExplainCommand {
    /// Show how likely a language model finds each token of a text
    Odds(OddsArgs),
}

/// `conjure explain odds`.
#[derive(Debug, Args)]
pub struct OddsArgs {
    /// The text; `-` reads it from stdin
    #[arg(value_name = "TEXT", allow_hyphen_values = true, required_unless_present = "tokens")]
    pub text: Option<String>,

    /// These token ids instead, separated by commas; nothing is added to them
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "text")]
    pub tokens: Vec<u32>,

    /// A folder with config.json, safetensors and a tokenizer, or a .gguf file
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// How many alternatives to tell for each token
    #[arg(long, value_name = "K", default_value_t = 5, allow_negative_numbers = true)]
    pub top: usize,

    /// Also write a page that shows the text in colour, with the alternatives of each token; it needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    #[command(flatten)]
    pub machine: MachineArgs,
}
