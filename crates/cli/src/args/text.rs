//! `conjure text` and `conjure chat`.

use super::{MachineArgs, token_id};
use clap::{ArgGroup, Args};
use conjure::generate::image::LoraFile;
use std::path::PathBuf;

/// `conjure text`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("begun").args(["prompt", "tokens", "file"]).required(true).multiple(true))]
pub struct TextArgs {
    /// What the text begins with; `-` reads it from stdin
    #[arg(value_name = "PROMPT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// Begin with these token ids instead, separated by commas; nothing is added to them
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = token_id, conflicts_with = "prompt")]
    pub tokens: Vec<u32>,

    /// A file with a prompt on each line, or `-` for stdin: a text for each, several at the same time
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "tokens", "beams"])]
    pub file: Option<PathBuf>,

    /// With --file, how many texts are made at the same time [default: 8]; with quantised weights several round
    /// differently than one alone, so that a text may depend on those beside it: with 1 it is as alone
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub together: Option<usize>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub constraint: ConstraintArgs,

    /// Search for the likeliest whole text along so many beginnings, instead of sampling
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Beam search",
        conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "typical", "seed", "logprobs", "json_schema", "grammar"])]
    pub beams: Option<usize>,

    /// With --beams, texts compete by log-probability / length ^ PENALTY: 0 favours short ones, over 1 long ones
    /// [default: 1]
    #[arg(long, value_name = "PENALTY", allow_negative_numbers = true, help_heading = "Beam search")]
    pub length_penalty: Option<f64>,

    /// Tell each token's log-probability and rank, with the N likeliest tokens [N: 5 if not given]; beside --file it
    /// takes --json
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "5", help_heading = "Looking inside")]
    pub logprobs: Option<usize>,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// `conjure chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Tell the model how to behave
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub constraint: ConstraintArgs,

    /// Threads to use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Machine")]
    pub threads: Option<usize>,
}

/// Which model, and how its tokens are chosen.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// A folder with config.json, safetensors and a tokenizer, or a .gguf file
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// Change the model by this LoRA, a folder with adapter_config.json; may be repeated
    #[arg(long = "lora", value_name = "DIR[:WEIGHT]", value_parser = str::parse::<LoraFile>)]
    pub loras: Vec<LoraFile>,

    /// How keys and values of what was read are kept: f16 takes half the memory and q8 little more than a quarter, and they round
    /// [default: f16 for a .gguf file, f32 for a folder]
    #[arg(long, value_name = "TYPE", value_parser = super::names(["f32", "f16", "q8"]))]
    pub cache: Option<String>,

    /// Most tokens to generate [default: 256 in text, or as many as fit; until the answer or the context ends in chat]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_tokens: Option<usize>,

    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,

    /// How bold the choice is; 0 always takes the likeliest token [default: 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true, help_heading = "Sampling")]
    pub temperature: Option<f32>,

    /// Choose among the K likeliest tokens; 0 is all [default: 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true, help_heading = "Sampling")]
    pub top_k: Option<usize>,

    /// Choose among the likeliest tokens that have this probability together; 1 is all [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling")]
    pub top_p: Option<f32>,

    /// Leave out tokens less likely than this share of the likeliest; 0 leaves out none [default: 0.05]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Sampling")]
    pub min_p: Option<f32>,

    /// Choose among tokens of typical information that have this probability together; 1 is all [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling")]
    pub typical: Option<f32>,

    /// Make tokens less likely that occurred in prompt or answer; 1 changes nothing [default: 1]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, help_heading = "Sampling")]
    pub repeat_penalty: Option<f32>,

    /// Subtract this from the scores of tokens that the answer has [default: 0]
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true, help_heading = "Sampling")]
    pub presence: Option<f32>,

    /// Subtract this for each time that the answer has the token [default: 0]
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true, help_heading = "Sampling")]
    pub frequency: Option<f32>,

    /// The same seed and settings make the same text, but see --together [default: random, and printed]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling")]
    pub seed: Option<u64>,
}

/// What the text has to match.
#[derive(Debug, Args)]
pub struct ConstraintArgs {
    /// Write JSON that matches this JSON schema
    #[arg(long, value_name = "FILE", help_heading = "Form", conflicts_with = "grammar")]
    pub json_schema: Option<PathBuf>,

    /// Write what matches this grammar: Lark with the rule start, or GBNF with the rule root
    #[arg(long, value_name = "FILE", help_heading = "Form")]
    pub grammar: Option<PathBuf>,
}
