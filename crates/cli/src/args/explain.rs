//! What can be asked of `conjure explain`.

use super::{MachineArgs, token_id};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Ways to look into a model.
#[derive(Debug, Subcommand)]
pub enum ExplainCommand {
    /// Show a Transformer's attention on a sentence, as one HTML page that needs no network
    Attention(AttentionArgs),
    /// Show how likely a model finds each token of a text
    Odds(OddsArgs),
    /// Show what each layer of a language model would say comes next
    Lens(LensArgs),
}

/// `conjure explain attention`.
#[derive(Debug, Args)]
pub struct AttentionArgs {
    /// The sentence; `-` reads it from stdin
    #[arg(value_name = "SENTENCE", allow_hyphen_values = true)]
    pub text: String,

    /// The model: a folder with config.json, weights and tokenizer, a .gguf file, or the folder of a picture model
    /// [default: the text encoder that comes with Conjure]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// A translator's target language, such as de
    #[arg(long, value_name = "LANGUAGE")]
    pub to: Option<String>,

    /// The sentence's language, for translators that want to know
    #[arg(long, value_name = "LANGUAGE")]
    pub from: Option<String>,

    /// Where to write the page; an existing file is replaced
    #[arg(short, long, value_name = "FILE.html", default_value = "attention.html")]
    pub out: PathBuf,

    /// A second sentence to show beside the first, with the differences
    #[arg(long, value_name = "SENTENCE", allow_hyphen_values = true)]
    pub compare: Option<String>,

    /// The layer shown first, counted from 0 [default: the last]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub layer: Option<usize>,

    /// The head shown first, counted from 0 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub head: Option<usize>,

    /// The word shown first [default: "it" where the sentence has it, else the last token]
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub word: Option<String>,

    /// Hide a word from all other positions in every layer, and show what changes; may be given several times
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub mask: Vec<String>,

    /// Switch heads off, and show what changes; layer and head are counted from 0
    #[arg(long, value_name = "LAYER.HEAD,...", value_delimiter = ',', value_parser = layer_and_head)]
    pub ablate: Vec<(usize, usize)>,

    /// Write all weights as CSV too, at most 20 million; with --layer and --head only theirs
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Write all weights, at most 20 million, and weighted sums as JSON too; with --layer and --head only theirs
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Draw the head that is shown first as SVG too: lines and heat map, of at most 300 tokens
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// Megabytes that the numbers may take in the page; layers of long texts that do not fit are shown as small pictures
    #[arg(long, value_name = "MB", allow_negative_numbers = true, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub budget: u16,

    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<usize>,
}

fn layer_and_head(text: &str) -> Result<(usize, usize), String> {
    text.split_once('.')
        .and_then(|(layer, head)| Some((layer.trim().parse().ok()?, head.trim().parse().ok()?)))
        .ok_or_else(|| "a head is written as LAYER.HEAD, for example 5.3".to_owned())
}

/// `conjure explain odds`.
#[derive(Debug, Args)]
pub struct OddsArgs {
    /// The text; `-` reads it from stdin
    #[arg(value_name = "TEXT", allow_hyphen_values = true, required_unless_present = "tokens")]
    pub text: Option<String>,

    /// These token ids instead, separated by commas; nothing is added to them
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = token_id, conflicts_with = "text")]
    pub tokens: Vec<u32>,

    /// A folder with config.json, safetensors and a tokenizer, or a .gguf file
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// For an encoder-decoder, which reads TEXT: tell the odds of this text, which it might write
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "target_tokens")]
    pub target: Option<String>,

    /// The same as token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = token_id)]
    pub target_tokens: Vec<u32>,

    /// The language of TEXT, for an encoder-decoder that is told it
    #[arg(long, value_name = "LANGUAGE", conflicts_with = "tokens")]
    pub from: Option<String>,

    /// The language of the target, for an encoder-decoder that is told it
    #[arg(long, value_name = "LANGUAGE", conflicts_with = "tokens")]
    pub to: Option<String>,

    /// How many alternatives to tell for each token
    #[arg(long, value_name = "K", default_value_t = 5, allow_negative_numbers = true)]
    pub top: usize,

    /// Also write a page that shows the text in colour, with the alternatives of each token; it needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// `conjure explain lens`.
#[derive(Debug, Args)]
pub struct LensArgs {
    /// The text, of at most 2048 tokens; `-` reads it from stdin
    #[arg(value_name = "TEXT", allow_hyphen_values = true, required_unless_present = "tokens")]
    pub text: Option<String>,

    /// These token ids instead, separated by commas; nothing is added to them
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = token_id, conflicts_with = "text")]
    pub tokens: Vec<u32>,

    /// A folder with config.json, safetensors and a tokenizer, or a .gguf file
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// How many tokens to tell for each layer
    #[arg(long, value_name = "K", default_value_t = 5, allow_negative_numbers = true)]
    pub top: usize,

    #[command(flatten)]
    pub machine: MachineArgs,
}
