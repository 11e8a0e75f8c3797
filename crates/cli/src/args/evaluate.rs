//! `conjure evaluate ...`.

use super::{DeviceArgs, MachineArgs};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `conjure evaluate ...`.
#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Ask a picture model for pictures, have a classifier look at them, and compare them with those it was trained on
    Pictures(EvaluatePicturesArgs),
    /// Have translators translate names that they have not seen: BLEU, chrF and perplexity, side by side
    Translation(EvaluateTranslationArgs),
}

/// `conjure evaluate pictures`.
#[derive(Debug, Args)]
pub struct EvaluatePicturesArgs {
    /// The model, a diffusers folder
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// A classifier of concepts and styles that was trained apart, as recipes/judge.toml makes it
    #[arg(long, value_name = "DIR")]
    pub judge: PathBuf,

    /// The file of pictures that the model was trained on
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,

    /// The folder for report and sheets
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,

    /// Styles that the model was trained on [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub styles: Vec<String>,

    /// Groups that it was not trained on
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub exclude_groups: Vec<String>,

    /// Languages to ask in
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "en,de,es,ja")]
    pub languages: Vec<String>,

    /// Prompts in each language
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub prompts: usize,

    /// Number of denoising steps
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: usize,

    /// How strongly the prompt steers
    #[arg(long, value_name = "SCALE", default_value_t = 4.0)]
    pub guidance: f64,

    /// Seed of the first picture
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// `conjure evaluate translation`.
#[derive(Debug, Args)]
pub struct EvaluateTranslationArgs {
    /// The models: folders of Marian, T5 or our LSTMs
    #[arg(value_name = "MODEL", required_unless_present = "dictionary")]
    pub models: Vec<PathBuf>,

    /// The file of parallel texts that they were trained on, a part of which they have not seen
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,

    /// Directions, such as en-de,de-en
    #[arg(long, value_name = "FROM-TO,...", value_delimiter = ',', required = true)]
    pub pairs: Vec<String>,

    /// At most so many texts of each direction, evenly spread
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub limit: Option<usize>,

    /// Search along so many beginnings; 1 takes the likeliest token each time [default: what each model's folder says]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub beams: Option<usize>,

    /// Also measure a dictionary of the training texts, which knows no grammar
    #[arg(long)]
    pub dictionary: bool,

    #[command(flatten)]
    pub machine: MachineArgs,
}
