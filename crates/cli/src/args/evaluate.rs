//! `conjure evaluate ...`.

use super::{DeviceArgs, MachineArgs, ReportArgs};
use clap::{Args, Subcommand};
use conjure::evaluate::translation::Tokenizer;
use conjure::generate::image::LoraFile;
use std::path::PathBuf;

/// `conjure evaluate ...`.
#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Ask a picture model for pictures, have a classifier look at them, and compare them with those it was trained on
    Pictures(EvaluatePicturesArgs),
    /// Measure how like themselves held-out pictures come back: through an autoencoder, or made small and enlarged again
    Reconstruction(ReconstructionArgs),
    /// Measure how well a language model predicts texts
    Perplexity(PerplexityArgs),
    /// Have translators translate names that they have not seen: BLEU, chrF and perplexity, side by side
    Translation(EvaluateTranslationArgs),
    /// Compare translations with what people wrote: BLEU and chrF, as sacreBLEU computes them
    Bleu(BleuArgs),
    /// Translate held-out names with a dictionary learned from the rest, and by copying: the baselines of translators
    Dictionary(DictionaryArgs),
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

    /// Tokens by which the window moves on: as many are scored anew, each with the others before it; with as many as the
    /// context, a window's first token has none before it and is not scored [default: half of the context]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub stride: Option<usize>,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// `conjure evaluate bleu`.
#[derive(Debug, Args)]
pub struct BleuArgs {
    /// Translations, one in each line; - for stdin
    #[arg(value_name = "HYPOTHESES")]
    pub hypotheses: PathBuf,

    /// What they should be, line by line; several files where there are several good translations; - for stdin
    #[arg(value_name = "REFERENCES", required = true)]
    pub references: Vec<PathBuf>,

    /// What BLEU takes for a word: 13a for languages with spaces, zh for Chinese, char for Japanese, Thai and others without
    #[arg(long, value_name = "NAME", default_value = "13a", value_parser = super::names(Tokenizer::ALL.map(Tokenizer::name)))]
    pub tokenize: String,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// `conjure evaluate dictionary`.
#[derive(Debug, Args)]
pub struct DictionaryArgs {
    /// What `conjure data translation` wrote, or a .tsv or .jsonl of sentences
    #[arg(value_name = "DATA")]
    pub data: PathBuf,

    /// Directions, such as en-de,de-en [default: ten between en, de, fr, es, ru, ja and zh, as far as the data has them,
    /// else English, or the first language, into and out of each other]
    #[arg(long, value_name = "FROM-TO,...", value_delimiter = ',')]
    pub pairs: Vec<String>,

    #[command(flatten)]
    pub report: ReportArgs,
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

    /// Number of denoising steps [default: the model's, else 20]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub steps: Option<usize>,

    /// How strongly the prompt steers [default: the model's, else 4]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub guidance: Option<f64>,

    /// Candidates for each picture, of which the judge that the model brings keeps the best [default: the model's, else 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub best_of: Option<usize>,

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

    /// Take the texts that they were trained on instead: what they know, not what they make of what is new
    #[arg(long)]
    pub trained: bool,

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

/// `conjure evaluate reconstruction`.
#[derive(Debug, Args)]
pub struct ReconstructionArgs {
    /// The folder of an autoencoder, of a picture model, whose autoencoder is measured, or of a super-resolution network
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// A file of pictures that `conjure data` wrote, of which the held-out concepts count, or a folder of pictures
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,

    /// Side of the pictures in pixels [default: that of the autoencoder's training; 128 for super-resolution]
    #[arg(long, value_name = "PIXELS")]
    pub size: Option<usize>,

    /// Styles of the pictures [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub styles: Vec<String>,

    /// Groups to leave out
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub exclude_groups: Vec<String>,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub machine: MachineArgs,
}
