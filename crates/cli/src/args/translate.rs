//! `conjure translate`.

use super::MachineArgs;
use clap::{ArgGroup, Args};
use std::path::PathBuf;

/// `conjure translate`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("given").args(["text", "file"]).required(true))]
pub struct TranslateArgs {
    /// What is translated, line by line; `-` reads it from stdin
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    pub text: Option<String>,

    /// Translate the lines of a file instead
    #[arg(long, value_name = "LINES", conflicts_with = "text")]
    pub file: Option<PathBuf>,

    /// Language to translate to, as the model calls it, such as de
    #[arg(long, value_name = "LANGUAGE")]
    pub to: Option<String>,

    /// Language of the text, for models that want to know, such as T5
    #[arg(long, value_name = "LANGUAGE")]
    pub from: Option<String>,

    /// The folder of a Marian or T5 model as transformers saves it [default: the model that comes with Conjure]
    #[arg(short, long, value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// Search along so many beginnings; 1 takes the likeliest token each time [default: what the model's folder says]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub beams: Option<usize>,

    /// Texts compete by log-probability / length ^ PENALTY: 0 favours short ones, over 1 long ones [default: what the model's
    /// folder says]
    #[arg(long, value_name = "PENALTY", allow_negative_numbers = true)]
    pub length_penalty: Option<f64>,

    /// Most tokens of a line's translation [default: what the model's folder says]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_tokens: Option<usize>,

    #[command(flatten)]
    pub machine: MachineArgs,
}
