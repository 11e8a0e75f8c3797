//! How a model does what it does, shown.

pub mod attention;
pub mod lens;
pub mod odds;

use crate::generate::text::Prompt;
use crate::{Error, Result};

/// Refuses a text with nothing in it: a model may still read a token that begins every text, and what is told of that one is
/// told of no text.
///
/// # Errors
/// The text is empty.
pub fn check_text(text: &Prompt) -> Result<()> {
    match text {
        Prompt::Text(text) if text.is_empty() => Err(Error::request("the text is empty").with_help("give a sentence")),
        _ => Ok(()),
    }
}
