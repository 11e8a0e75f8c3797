//! What can be asked for on the command line. Parsing never acts: it returns these structs and nothing else happens.

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use conjure::DeviceName;
use conjure::data::emoji;
use conjure::generate::image::{LoraFile, RngMode, Sampler, Schedule};
use std::path::PathBuf;

/// Turns words into pictures on your own machine.
#[derive(Debug, Parser)]
#[command(name = "conjure", version, arg_required_else_help = true, max_term_width = 110)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a picture from words
    Image(Box<ImageArgs>),
    /// Make a picture again from the recipe it carries, and say whether it is identical
    Replay(ReplayArgs),
    /// Look at models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Train a model from a recipe, or go on with a run
    Train(TrainArgs),
    /// Measure how well a model does
    #[command(subcommand)]
    Evaluate(EvaluateCommand),
    /// Make data sets to train on
    #[command(subcommand)]
    Data(DataCommand),
}

/// `conjure image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// What the picture shows; `(word:1.3)` weighs a word more, `[word]` less
    #[arg(value_name = "PROMPT", allow_hyphen_values = true)]
    pub prompt: String,

    /// Where to write the picture; an existing file is replaced [default: conjure-SEED.png, numbered if taken]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub model: ModelArgs,

    /// Change the model by a LoRA file, with its weight after a colon if it is not 1; several work together
    #[arg(long = "lora", value_name = "FILE[:WEIGHT]", value_parser = str::parse::<LoraFile>, help_heading = "Adapters")]
    pub loras: Vec<LoraFile>,

    /// Add the learned tokens of a textual inversion file: write the token that the file names, or the file's own name, in
    /// the prompt
    #[arg(long = "embedding", value_name = "FILE", help_heading = "Adapters")]
    pub embeddings: Vec<PathBuf>,

    /// What the picture should not show
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub negative: String,

    /// Width in pixels, a multiple of 8 [default: the model's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Picture")]
    pub width: Option<usize>,

    /// Height in pixels, a multiple of 8 [default: the model's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Picture")]
    pub height: Option<usize>,

    /// How many pictures to make at once
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1, help_heading = "Picture")]
    pub batch: usize,

    /// Make N candidates with the seeds from --seed on, and keep the one that --judge says fits the prompt best
    #[arg(long, allow_negative_numbers = true, value_name = "N", requires = "judge", help_heading = "Picture")]
    pub best_of: Option<usize>,

    /// A CLIP model with both towers that judges the candidates, as recipes/clip.toml makes it or transformers saves it
    #[arg(long, value_name = "DIR", requires = "best_of", help_heading = "Picture")]
    pub judge: Option<PathBuf>,

    /// Make the finished picture 2 or 4 times as wide and high, with a super-resolution network
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, help_heading = "Picture")]
    pub upscale: Option<usize>,

    /// Number of denoising steps [default: the model's, else 50]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Sampling")]
    pub steps: Option<usize>,

    /// How the noise is removed [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = names(Sampler::ALL.map(Sampler::name)), help_heading = "Sampling")]
    pub sampler: Option<String>,

    /// How the noise levels are spaced [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = names(Schedule::ALL.map(Schedule::name)), help_heading = "Sampling")]
    pub schedule: Option<String>,

    /// How strongly the prompt steers; 1 means not at all beyond the model's own reading, at half the work
    /// [default: the model's, else 7.5]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "Sampling")]
    pub guidance: Option<f64>,

    /// How far to undo the overexposure that strong guidance causes, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true, help_heading = "Sampling")]
    pub guidance_rescale: f64,

    /// Noise that DDIM adds back at each step, 0 (none) to 1 (as DDPM)
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true, help_heading = "Sampling")]
    pub eta: f64,

    /// Layers of the text encoder to leave out at its end
    #[arg(long, allow_negative_numbers = true, value_name = "LAYERS", default_value_t = 0, help_heading = "Sampling")]
    pub clip_skip: usize,

    /// The same seed and settings make the same picture [default: random, and printed]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Randomness")]
    pub seed: Option<u64>,

    /// Whose random numbers to draw: PyTorch's on a GPU (philox), on a CPU (torch), or ComfyUI's (comfy)
    #[arg(long, value_name = "MODE", value_parser = names(RngMode::ALL.map(RngMode::name)),
        default_value = RngMode::default().name(), help_heading = "Randomness")]
    pub rng: String,

    /// Start from the noise in this safetensors file instead of drawing it
    #[arg(long, value_name = "FILE", help_heading = "Randomness")]
    pub noise: Option<PathBuf>,

    /// Start from this picture instead of from noise alone
    #[arg(long, value_name = "IMAGE", help_heading = "From a picture")]
    pub init: Option<PathBuf>,

    /// How much of the start picture to replace, over 0 (nothing) to 1 (everything)
    /// [default: 0.8 with --init, 1 with --mask]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "From a picture")]
    pub strength: Option<f64>,

    /// Repaint only where this picture is white; needs --init
    #[arg(long, value_name = "IMAGE", help_heading = "From a picture")]
    pub mask: Option<PathBuf>,

    /// Also write one picture of the image appearing, step by step: as predicted during the run, or of separate runs
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, default_missing_value = "steps", help_heading = "Looking inside")]
    pub strip: Option<StripArg>,

    /// Show the picture in the terminal while it is made
    #[arg(long, help_heading = "Looking inside")]
    pub preview: bool,

    /// Write the final latents to this safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Looking inside")]
    pub save_latents: Option<PathBuf>,

    /// Decode in overlapping tiles: less memory for large pictures
    #[arg(long, help_heading = "Machine")]
    pub tiled: bool,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Which model.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A diffusers folder, or a single .safetensors or .ckpt file; `built-in` is the untrained model inside the program, and
    /// `./built-in` a folder of that name [default: the model that comes with Conjure]
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// A folder with vocab.json and merges.txt, for single files, which carry no tokenizer
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
}

/// Where to compute.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to compute: cpu, cuda for the first NVIDIA GPU, cuda:1 for the second (in builds with the feature `cuda`)
    #[arg(long, value_name = "DEVICE", default_value_t, value_parser = str::parse::<DeviceName>, help_heading = "Machine")]
    pub device: DeviceName,
}

/// How to run and report.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Threads to use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Machine")]
    pub threads: Option<usize>,

    /// Report the result as JSON on stdout
    #[arg(long, help_heading = "Machine")]
    pub json: bool,
}

/// Which strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StripArg {
    /// What the model predicts at steps 1, 2, 3, 5, 8, ... of the one run
    Steps,
    /// Separate runs of 1, 2, 3, 5, 8, ... steps
    Runs,
}

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
    pub device: DeviceArgs,

    #[command(flatten)]
    pub machine: MachineArgs,
}

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

    /// Where to compute: cpu, cuda or cuda:N; a run may go on on another device [default: the recipe's, else cpu]
    #[arg(long, value_name = "DEVICE", value_parser = str::parse::<DeviceName>, help_heading = "Machine")]
    pub device: Option<DeviceName>,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// `conjure evaluate ...`.
#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Ask a picture model for pictures, have a classifier look at them, and compare them with those it was trained on
    Pictures(EvaluatePicturesArgs),
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

/// `conjure models ...`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// The model families that Conjure knows
    List(ReportArgs),
    /// Explain a model: what it is, what it needs, and what is wrong with it
    Inspect(InspectArgs),
    /// Fetch CLIP's vocabulary with pip, once: single-file checkpoints carry none
    Tokenizer(ReportArgs),
    /// Write the built-in untrained model as a diffusers folder
    Tiny(TinyArgs),
}

/// How to report.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Report as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// `conjure models inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A diffusers folder, or a single .safetensors or .ckpt file
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

    /// Seed of the random weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// `conjure data ...`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Draw emoji in up to seven styles, with names in 28 languages, from openly licensed packages
    Emoji(EmojiArgs),
    /// Check your own pictures with captions, or pack them into one file
    Folder(FolderArgs),
}

/// `conjure data emoji`.
#[derive(Debug, Args)]
pub struct EmojiArgs {
    /// The folder for emoji.zip, sheet.png and summary.json; it is made if needed
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Pixels a side
    #[arg(long, value_name = "PIXELS", default_value_t = 128, allow_negative_numbers = true)]
    pub size: usize,

    /// Styles to draw, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = PossibleValuesParser::new(emoji::style_names()))]
    pub styles: Vec<String>,

    /// Groups and subgroups of emoji to leave out, separated by commas, such as flags or country-flag
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub exclude_groups: Vec<String>,

    /// Languages of names and keywords, separated by commas, such as en,de,zh [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub languages: Vec<String>,

    /// Read the packages from this folder instead of fetching them with npm
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,

    /// Threads to use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub threads: Option<usize>,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// `conjure data folder`.
#[derive(Debug, Args)]
pub struct FolderArgs {
    /// Pictures, each with a text file of the same name, or with one metadata.jsonl (file_name, text)
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// Also pack the pictures into this file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Refuse the folder if any picture is broken or has no caption
    #[arg(long)]
    pub strict: bool,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// The library's names: what the parser takes, and what the help lists.
fn names<const N: usize>(names: [&'static str; N]) -> PossibleValuesParser {
    PossibleValuesParser::new(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn negative_numbers_are_refused_by_their_value() {
        for flag in ["--width", "--height", "--batch", "--steps", "--seed", "--threads", "--clip-skip"] {
            let error = Arguments::try_parse_from(["conjure", "image", "a cat", flag, "-1"]).unwrap_err().to_string();
            assert!(error.contains(&format!("invalid value '-1' for '{flag}")), "{error}");
        }
    }

    #[test]
    fn loras_come_with_weights_and_are_many() {
        let args = ["conjure", "image", "a cat", "--lora", "a.safetensors:0.8", "--lora", "b.safetensors"];
        let Command::Image(image) = Arguments::try_parse_from(args).unwrap().command else { panic!() };
        let found: Vec<_> = image.loras.iter().map(|lora| (lora.path.to_str().unwrap(), lora.weight)).collect();
        assert_eq!(found, [("a.safetensors", 0.8), ("b.safetensors", 1.0)]);
        let error = Arguments::try_parse_from(["conjure", "image", "a cat", "--lora", ":0.8"]).unwrap_err().to_string();
        assert!(error.contains("the file's name is missing"), "{error}");
    }

    #[test]
    fn strip_takes_an_optional_word() {
        let strip = |words: &[&str]| match Arguments::try_parse_from(words).unwrap().command {
            Command::Image(image) => (image.prompt, image.strip),
            other => panic!("{other:?}"),
        };
        assert_eq!(strip(&["conjure", "image", "a cat", "--strip"]), ("a cat".into(), Some(StripArg::Steps)));
        assert_eq!(strip(&["conjure", "image", "--strip", "runs", "a cat"]), ("a cat".into(), Some(StripArg::Runs)));
        assert_eq!(strip(&["conjure", "image", "a cat"]), ("a cat".into(), None));
    }
}
