//! `conjure replay`.

use super::{MachineArgs, ModelArgs};
use clap::Args;
use std::path::PathBuf;

/// `conjure replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A PNG that Conjure wrote
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    #[command(flatten)]
    pub model: ModelArgs,

    /// Also write the new picture to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub machine: MachineArgs,
}
