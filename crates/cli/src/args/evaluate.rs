//! `conjure evaluate ...`.

use super::{DeviceArgs, MachineArgs};
use clap::{Args, Subcommand};
use conjure::generate::image::LoraFile;
use std::path::PathBuf;

/// `conjure evaluate ...`.
#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Ask a picture model for pictures, have a classifier look at them, and compare them with those it was trained on
    Pictures(EvaluatePicturesArgs),
    /// Measure how well a language model predicts texts
    Perplexity(PerplexityArgs),
}

/// `conjure evaluate perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// The texts; `-` reads one from stdin
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// A folder with config.json, safetensors and a tokenizer, or a .gguf file
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// Change the model by this LoRA, a folder with adapter_config.json; may be repeated
    #[arg(long = "lora", value_name = "DIR[:WEIGHT]", value_parser = str::parse::<LoraFile>)]
    pub loras: Vec<LoraFile>,

    /// Tokens that are read at once [default: 1024, or what the model reads if that is less]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub context: Option<usize>,

    /// Tokens by which the window moves on: as many are scored anew, each with the others before it [default: half of the
    /// context]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub stride: Option<usize>,

    #[command(flatten)]
    pub machine: MachineArgs,
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
