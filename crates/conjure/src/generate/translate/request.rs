//! What can be asked of a translator, and what it answers.

use crate::generate::text::Finish;
use crate::generate::text::request::MAX_BEAMS;
use crate::{Error, Result};

/// What is asked of a translator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TranslateRequest {
    /// Target language, as the model calls it.
    pub to: Option<String>,
    /// Source language, for models that want to know.
    pub from: Option<String>,
    /// Texts that are followed at once; 1 takes the likeliest token each time. What the model's folder says unless given.
    pub beams: Option<usize>,
    /// Texts compete by `log p / length ^ penalty`. What the model's folder says unless given.
    pub length_penalty: Option<f64>,
    /// Most tokens of a translation. What the model's folder says, or as many as the model can, unless given.
    pub max_tokens: Option<usize>,
}

impl TranslateRequest {
    /// Refuses what no model could do.
    ///
    /// # Errors
    /// Names the value and the remedy.
    pub fn validate(&self) -> Result<()> {
        if let Some(beams) = self.beams.filter(|beams| !(1..=MAX_BEAMS).contains(beams)) {
            return Err(Error::request(format!("beams {beams} is outside 1 to {MAX_BEAMS}")).with_help("4 are usual"));
        }
        if let Some(penalty) = self.length_penalty.filter(|penalty| !penalty.is_finite()) {
            return Err(Error::request(format!("length penalty {penalty} is no number"))
                .with_help("1 is usual; 0 favours short texts"));
        }
        if self.max_tokens == Some(0) {
            return Err(Error::request("max tokens 0 leaves nothing to do").with_help("name 1 or more"));
        }
        Ok(())
    }
}

/// A translated line.
#[derive(Clone, Debug, PartialEq)]
pub struct Translation {
    /// What the encoder read.
    pub source_ids: Vec<u32>,
    /// What the decoder wrote, the end among them; the token that begins a target is not.
    pub ids: Vec<u32>,
    /// The text.
    pub text: String,
    /// `log p / length ^ penalty`.
    pub score: f64,
    /// Why it ended: [`Finish::End`], [`Finish::Length`] or [`Finish::Cancelled`].
    pub finish: Finish,
}

/// What happens while lines are translated.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// More of a line's translation, where the likeliest token is taken each time.
    Piece {
        /// Number of the line, from 0.
        line: usize,
        /// What is new.
        text: &'a str,
    },
    /// A step of a search, which knows its text at the end only.
    Step {
        /// Number of the line, from 0.
        line: usize,
        /// Tokens of the texts that are followed.
        tokens: usize,
    },
    /// A line is finished. Lines may come in another order than they were given.
    Line {
        /// Its number, from 0.
        line: usize,
        /// What came of it.
        translation: &'a Translation,
    },
}

impl Translation {
    /// Of an empty line.
    pub(super) fn empty() -> Self {
        Self { source_ids: Vec::new(), ids: Vec::new(), text: String::new(), score: 0.0, finish: Finish::End }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_no_model_could_fulfil_are_refused() {
        let refusal = |request: TranslateRequest| request.validate().unwrap_err().to_string();
        let usual = TranslateRequest::default;
        assert_eq!(refusal(TranslateRequest { beams: Some(0), ..usual() }), "beams 0 is outside 1 to 64");
        assert_eq!(refusal(TranslateRequest { max_tokens: Some(0), ..usual() }), "max tokens 0 leaves nothing to do");
        let infinite = TranslateRequest { length_penalty: Some(f64::INFINITY), ..usual() };
        assert_eq!(refusal(infinite), "length penalty inf is no number");
    }
}
