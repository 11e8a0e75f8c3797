//! Writing a target token by token.

use super::{Cache, EncoderDecoder, Memory};
use conjure_core::probe::NoProbe;
use conjure_core::{DType, Result, Tensor};

/// Targets that grow, one for each row of a memory. Which token comes next is the caller's choice.
#[derive(Debug)]
pub struct Decoding {
    model: EncoderDecoder,
    memory: Memory,
    cache: Cache,
}

impl Decoding {
    /// Targets of which nothing is written yet: the first token to give is `decoder_start_token_id`.
    pub fn new(model: &EncoderDecoder, memory: Memory) -> Self {
        Self { model: model.clone(), cache: model.cache(), memory }
    }

    /// Logits `(vocabulary)` of the token after `ids`, which follow the tokens given before. For a memory of one row.
    ///
    /// # Errors
    /// No token, more tokens than [`Decoding::context`], an id beyond the vocabulary.
    pub fn next(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let ids = Tensor::new(ids, self.memory.states.device())?.unsqueeze(0)?; // (1, time)
        self.advance(&ids).map(|mut rows| rows.pop().unwrap_or_default())
    }

    /// Logits `(vocabulary)` of each row's next token, after the row's token in `ids` was added.
    ///
    /// # Errors
    /// Not as many tokens as rows, and those of [`Decoding::next`].
    pub fn next_rows(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.advance(&Tensor::new(ids, self.memory.states.device())?.unsqueeze(1)?) // (batch, 1)
    }

    fn advance(&mut self, ids: &Tensor) -> Result<Vec<Vec<f32>>> {
        let logits = self.model.decode_last(ids, &self.memory, Some(&mut self.cache), &mut NoProbe)?; // (batch, vocabulary)
        Ok(logits.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Goes on with these rows, in this order: for beam search, where a row may go on twice or not at all.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        self.memory = self.memory.select(rows)?;
        self.cache.select(rows)
    }

    /// Takes the tokens from number `len` on back.
    ///
    /// # Errors
    /// None that these models can cause.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        self.cache.truncate(len)
    }

    /// Tokens of each target, the one that begins it included.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// The most tokens that fit.
    pub fn context(&self) -> usize {
        self.model.config().max_tokens().unwrap_or(super::LONGEST)
    }

    /// How many tokens the model can write.
    pub fn vocabulary(&self) -> usize {
        self.model.config().target_vocabulary()
    }
}
