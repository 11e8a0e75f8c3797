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
        Prompt::Text(text) => not_empty(text),
        Prompt::Ids(_) => Ok(()),
    }
}

fn not_empty(text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::request("the text is empty").with_help("give a sentence"));
    }
    Ok(())
}
