//! `conjure image`.

use super::{DeviceArgs, MachineArgs, ModelArgs, names};
use clap::{Args, ValueEnum};
use conjure::generate::image::{LoraFile, RngMode, Sampler, Schedule};
use std::path::PathBuf;

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

    /// Make N candidates with the seeds from --seed on, and keep the one that the judge says fits the prompt best
    /// [default: 1 with --seed, --batch, --noise or --strip, else the model's, else 1]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Picture")]
    pub best_of: Option<usize>,

    /// A CLIP model with both towers that judges the candidates, as recipes/clip.toml makes it or transformers saves it
    /// [default: the model's own, if it has an image_encoder/]
    #[arg(long, value_name = "DIR", requires = "best_of", help_heading = "Picture")]
    pub judge: Option<PathBuf>,

    /// Make the finished picture 2 or 4 times as wide and high, with a super-resolution network; 1 leaves it as it is
    /// [default: the model's, else 1]
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

/// Which strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StripArg {
    /// What the model predicts at steps 1, 2, 3, 5, 8, ... of the one run
    Steps,
    /// Separate runs of 1, 2, 3, 5, 8, ... steps
    Runs,
}
