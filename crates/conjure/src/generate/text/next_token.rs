//! What a model is to the loop that generates text.

use conjure_core::{Error, Result};

/// A model that reads token ids and says how likely each next one is. It remembers what it has read.
pub trait NextToken {
    /// Reads `ids` after those before: the logits `(vocabulary)` of the token that follows.
    ///
    /// # Errors
    /// `ids` is empty, holds an id beyond the vocabulary, or does not fit the context; the model fails.
    fn next(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// Forgets all but the first `len` ids.
    ///
    /// # Errors
    /// The model has not read so many, or cannot go back so far.
    fn rewind(&mut self, len: usize) -> Result<()>;

    /// How many ids it has read and remembers.
    fn len(&self) -> usize;

    /// Whether it has read nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many ids it can remember.
    fn context(&self) -> usize;

    /// How many tokens it knows.
    fn vocabulary(&self) -> usize;

    /// Whether a prompt must be read in one piece, as what a token means to the model depends on how many come after it.
    fn reads_whole(&self) -> bool {
        false
    }

    /// The same model with a memory of its own, which has read the same; `None` where that is not possible. With it, beam
    /// search reads nothing twice.
    ///
    /// # Errors
    /// Memory runs out.
    fn fork(&self) -> Result<Option<Self>>
    where
        Self: Sized,
    {
        Ok(None)
    }
}

/// A model beside the ids that it has read, so that a text that begins like the one before is not read again.
pub struct Cached<M> {
    model: M,
    ids: Vec<u32>,
}

impl<M: NextToken> Cached<M> {
    /// Around a model that has read nothing.
    ///
    /// # Errors
    /// It has, and cannot forget.
    pub fn new(mut model: M) -> Result<Self> {
        model.rewind(0)?;
        Ok(Self { model, ids: Vec::new() })
    }

    /// The ids that were read.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Goes back to where what was read and `prompt` part, and at least one id before the prompt's end, as the last is to
    /// be read for its logits. How many ids of the prompt need not be read again.
    ///
    /// # Errors
    /// The model cannot even forget everything.
    pub fn reuse(&mut self, prompt: &[u32]) -> Result<usize> {
        let common = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = common.min(prompt.len().saturating_sub(1));
        // A model with a sliding window may have dropped what it would see there: then all is read again.
        if self.rewind(keep).is_err() {
            self.rewind(0)?;
            return Ok(0);
        }
        Ok(keep)
    }
}

impl<M: NextToken> NextToken for Cached<M> {
    fn next(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let logits = self.model.next(ids);
        match &logits {
            Ok(_) => self.ids.extend_from_slice(ids),
            // What a model that failed remembers is not known.
            Err(_) => {
                self.model.rewind(0)?;
                self.ids.clear();
            }
        }
        logits
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        if len > self.ids.len() {
            return Err(Error::failure(format!("cannot go back to {len} of {} tokens", self.ids.len())));
        }
        if len < self.ids.len() {
            self.model.rewind(len)?;
            self.ids.truncate(len);
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn context(&self) -> usize {
        self.model.context()
    }

    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }

    fn reads_whole(&self) -> bool {
        self.model.reads_whole()
    }

    fn fork(&self) -> Result<Option<Self>> {
        Ok(self.model.fork()?.map(|model| Self { model, ids: self.ids.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::toy::Toy;
    use super::*;

    #[test]
    fn only_what_differs_is_read_again() {
        let mut model = Cached::new(Toy::new("abcabd", 100)).unwrap();
        assert_eq!(model.reuse(&[0, 1, 2]).unwrap(), 0);
        let first = model.next(&[0, 1, 2]).unwrap();
        // The same again: the last is read for its logits.
        assert_eq!(model.reuse(&[0, 1, 2]).unwrap(), 2);
        assert_eq!(model.next(&[2]).unwrap(), first);
        assert_eq!(model.reuse(&[0, 1, 3, 3]).unwrap(), 2);
        assert_eq!(model.ids(), [0, 1]);
        model.next(&[3, 3]).unwrap();
        assert_eq!(model.reuse(&[2]).unwrap(), 0);
        assert_eq!(model.len(), 0);
        assert!(model.rewind(1).is_err());
    }

    #[test]
    fn a_failure_forgets_everything() {
        let mut model = Cached::new(Toy::new("ab", 3)).unwrap();
        model.next(&[0, 1]).unwrap();
        assert!(model.next(&[0, 1]).is_err(), "four do not fit into three");
        assert_eq!((model.len(), model.ids()), (0, &[][..]));
        model.next(&[0, 1, 0]).unwrap();
    }
}
