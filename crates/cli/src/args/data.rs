//! `conjure data ...`.

use super::ReportArgs;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use conjure::data::emoji;
use std::path::PathBuf;

/// `conjure data ...`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Draw emoji in up to seven styles, with names in 28 languages, from openly licensed packages
    Emoji(EmojiArgs),
    /// Collect names and keywords of emoji, flags and symbols in 30 languages, to train translators on
    Translation(TranslationArgs),
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

/// `conjure data translation`.
#[derive(Debug, Args)]
pub struct TranslationArgs {
    /// The folder for translation.zip and summary.json; it is made if needed
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Languages, separated by commas, such as en,de,zh-hant; any that Unicode's annotations have [default: 30 languages]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub languages: Vec<String>,

    /// Read the packages from this folder instead of fetching them with npm
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,

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

    /// Refuse the folder if any picture or caption in it cannot be used, instead of skipping it
    #[arg(long)]
    pub strict: bool,

    #[command(flatten)]
    pub report: ReportArgs,
}
