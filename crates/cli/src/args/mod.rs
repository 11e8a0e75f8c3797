//! What can be asked for on the command line. Parsing never acts: it returns these structs and nothing else happens.

mod data;
mod embed;
mod evaluate;
mod explain;
mod image;
mod models;
mod replay;
mod text;
mod train;
mod translate;

pub use data::{DataCommand, EmojiArgs, FolderArgs, TranslationArgs};
pub use embed::{EmbedArgs, EncoderArgs, SimilarArgs};
pub use evaluate::{
    BleuArgs, DictionaryArgs, EvaluateCommand, EvaluatePicturesArgs, EvaluateTranslationArgs, PerplexityArgs,
    ReconstructionArgs,
};
pub use explain::{AttentionArgs, ExplainCommand, LensArgs, OddsArgs};
pub use image::{ImageArgs, StripArg};
pub use models::{InspectArgs, ModelsCommand, TinyArgs, TinyKind};
pub use replay::ReplayArgs;
pub use text::{ChatArgs, ConstraintArgs, SamplingArgs, TextArgs};
pub use train::TrainArgs;
pub use translate::TranslateArgs;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use conjure::DeviceName;
use std::path::PathBuf;

/// Turns words into pictures and text on your own machine.
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
    /// Go on with a text
    Text(Box<TextArgs>),
    /// Talk with a language model
    Chat(Box<ChatArgs>),
    /// Put a text into another language
    Translate(Box<TranslateArgs>),
    /// See how a model does what it does
    #[command(subcommand)]
    Explain(ExplainCommand),
    /// Make a picture again from the recipe it carries, and say whether it is identical
    Replay(ReplayArgs),
    /// Turn texts into vectors that tell how alike they are in meaning
    Embed(EmbedArgs),
    /// Find the lines of a file that mean nearly the same as a text
    Similar(SimilarArgs),
    /// Look at models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Train a model from a recipe, or go on with a run
    Train(TrainArgs),
    /// Measure how well a model does
    #[command(subcommand, visible_alias = "eval")]
    Evaluate(EvaluateCommand),
    /// Make data sets to train on
    #[command(subcommand)]
    Data(DataCommand),
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

/// How to report.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Report as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// One of several token ids between commas, with spaces or without.
fn token_id(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "token ids are whole numbers, for example 5,17,4".to_owned())
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
    fn token_ids_may_have_spaces() {
        let ids = |list: &str| Arguments::try_parse_from(["conjure", "text", "--tokens", list]);
        let Command::Text(text) = ids("1, 2,3 ").unwrap().command else { panic!() };
        assert_eq!(text.tokens, [1, 2, 3]);
        assert!(ids("1,x").unwrap_err().to_string().contains("whole numbers"));
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
