//! Which text is certain while ids are still coming?
//!
//! A character can be spread over several tokens, and some tokens read differently after others. The stream therefore decodes
//! the few ids since the last certain place again with each new one, and holds back an end that is not a whole character.

use super::Tokenizer;
use crate::Result;

/// Ids held back at most. Whole characters need four; the rest is for marks in between that decode to nothing.
const MAX_WAITING: usize = 64;
/// Ids decoded again at most.
const MAX_CONTEXT: usize = 256;
/// What decoders write for bytes that are no character.
const HALF: char = '\u{fffd}';

/// Decodes ids one after the other: [`Tokenizer::stream`].
///
/// The texts of all steps and [`DecodeStream::finish`], one after the other, are the text that [`Tokenizer::decode`] gives for
/// all ids at once.
#[derive(Debug)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// Ids whose text is out, kept because what follows may depend on them, and then those that wait.
    ids: Vec<u32>,
    /// How many of `ids` are out.
    out: usize,
    /// Their text.
    before: String,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), out: 0, before: String::new() }
    }

    /// As if the end of these ids had been pushed already.
    pub(super) fn after(tokenizer: &'t Tokenizer, ids: &[u32], skip_special: bool) -> Result<Self> {
        let ids = ids[ids.len().saturating_sub(MAX_WAITING)..].to_vec();
        Ok(Self { before: tokenizer.decode(&ids, skip_special)?, out: ids.len(), ids, tokenizer, skip_special })
    }

    /// The text that is certain now that `id` has come: empty while it ends in half a character.
    ///
    /// # Errors
    /// A decoder that fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let now = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let full = self.ids.len() - self.out >= MAX_WAITING;
        if now.ends_with(HALF) && !full {
            return Ok(String::new());
        }
        let new = rest(&self.before, &now);
        if !new.is_empty() {
            let context = self.tokenizer.decode(&self.ids[self.out..], self.skip_special)?;
            // Without text of its own an id does not show whether a space comes first in the text.
            if !context.is_empty() || self.ids.len() >= MAX_CONTEXT {
                self.ids.drain(..self.out);
                self.before = context;
            } else {
                self.before = now;
            }
            self.out = self.ids.len();
        } else if full {
            // Marks that decode to nothing, one after the other.
            self.ids.truncate(self.out);
        }
        Ok(new)
    }

    /// The text that was held back: U+FFFD for a character that was never finished.
    ///
    /// # Errors
    /// A decoder that fails.
    pub fn finish(self) -> Result<String> {
        Ok(rest(&self.before, &self.tokenizer.decode(&self.ids, self.skip_special)?))
    }
}

/// What `now` has after what it shares with `before`.
fn rest(before: &str, now: &str) -> String {
    let shared = before.chars().zip(now.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
    now[shared..].to_owned()
}
