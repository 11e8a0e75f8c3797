//! The arguments of `conjure embed` and `conjure similar`.

use clap::{ArgGroup, Args};
use std::path::PathBuf;

/// `conjure embed`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("given").args(["texts", "file"]).required(true).multiple(true))]
pub struct EmbedArgs {
    /// The texts; - reads one from stdin
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,

    /// A file whose lines are texts too, after those above; - is stdin
    #[arg(long, value_name = "LINES")]
    pub file: Option<PathBuf>,

    #[command(flatten)]
    pub encoder: EncoderArgs,
}

/// `conjure similar`.
#[derive(Debug, Args)]
pub struct SimilarArgs {
    /// The text to find others like; - reads it from stdin
    #[arg(value_name = "QUERY", allow_hyphen_values = true)]
    pub query: String,

    /// The file whose lines are searched; empty lines are left out; - is stdin
    #[arg(long = "in", value_name = "FILE")]
    pub file: PathBuf,

    /// How many lines to show
    #[arg(long, value_name = "K", default_value_t = 10, allow_negative_numbers = true)]
    pub top: usize,

    #[command(flatten)]
    pub encoder: EncoderArgs,
}

/// Which encoder, and how to report.
#[derive(Debug, Args)]
pub struct EncoderArgs {
    /// The folder of a sentence encoder, as sentence-transformers saves it
    #[arg(short, long, value_name = "FOLDER")]
    pub model: Option<PathBuf>,

    /// Threads to use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Machine")]
    pub threads: Option<usize>,

    /// Report the result as JSON on stdout
    #[arg(long, help_heading = "Machine")]
    pub json: bool,
}
