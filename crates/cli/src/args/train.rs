//! `conjure train`.

use super::MachineArgs;
use clap::Args;
use std::path::PathBuf;

/// `conjure train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A TOML file that says what is trained, on what and how; recipes/ has those of the models that ship with Conjure
    #[arg(value_name = "RECIPE", required_unless_present = "resume", conflicts_with = "resume")]
    pub recipe: Option<PathBuf>,

    /// The folder to create for the run [default: out/NAME for NAME.toml]
    #[arg(short, long, value_name = "DIR", conflicts_with = "resume")]
    pub out: Option<PathBuf>,

    /// Go on with the run in this folder, exactly where it stopped
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,

    /// Change an entry of the recipe, such as `optimizer.learning_rate=2e-4`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Go on although the recipe or the data differ from those that the run began with
    #[arg(long, requires = "resume")]
    pub force: bool,

    #[command(flatten)]
    pub machine: MachineArgs,
}
