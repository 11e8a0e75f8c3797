//! `conjure models ...`.

use super::ReportArgs;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `conjure models ...`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// The model families that Conjure knows
    List(ReportArgs),
    /// Explain a model: what it is, what it needs, and what is wrong with it
    Inspect(InspectArgs),
    /// Fetch CLIP's vocabulary with pip, once: single-file checkpoints carry none
    Tokenizer(ReportArgs),
    /// Write a smallest untrained model as a folder: for pictures as diffusers has it, for text as transformers
    Tiny(TinyArgs),
}

/// `conjure models inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A diffusers folder, a single .safetensors or .ckpt file, a folder of a text model or of another network, or a .gguf
    /// file
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// `conjure models tiny`.
#[derive(Debug, Args)]
pub struct TinyArgs {
    /// The folder to create
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// What the model makes
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = TinyKind::Image)]
    pub kind: TinyKind,

    /// Seed of the random weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// What a smallest model makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TinyKind {
    /// Pictures, by Stable Diffusion
    Image,
    /// Text, by a decoder of Llama's kind
    Text,
}
