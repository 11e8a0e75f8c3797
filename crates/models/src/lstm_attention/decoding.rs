//! Writing a target token by token.

use super::{LstmAttention, Memory, Progress};
use conjure_core::probe::NoProbe;
use conjure_core::{DType, Error, Result, Tensor};

/// Targets that grow, one for each row of a memory. Which token comes next is the caller's choice.
#[derive(Debug)]
pub struct Decoding {
    model: LstmAttention,
    memory: Memory,
    progress: Progress,
    len: usize,
}

impl Decoding {
    /// Targets of which nothing is written yet: the first token to give is `decoder_start_token_id`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn new(model: &LstmAttention, memory: Memory) -> Result<Self> {
        Ok(Self { model: model.clone(), progress: LstmAttention::begin(&memory)?, memory, len: 0 })
    }

    /// Logits `(vocabulary)` of each row's next token, after the row's token in `ids` was added.
    ///
    /// # Errors
    /// Not as many tokens as rows, more tokens than the model takes, an id beyond the vocabulary.
    pub fn next_rows(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let ids = Tensor::new(ids, self.memory.states.device())?.unsqueeze(1)?; // (batch, 1)
        let said = self.model.advance(&ids, &self.memory, &mut self.progress, self.len, &mut NoProbe)?;
        self.len += 1;
        Ok(self.model.logits(&said.squeeze(1)?)?.to_dtype(DType::F32)?.to_vec2()?) // (batch, vocabulary)
    }

    /// Goes on with these rows, in this order: for beam search, where a row may go on twice or not at all.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        let batch = self.memory.states.dim(0)?;
        if let Some(row) = rows.iter().find(|row| **row as usize >= batch) {
            return Err(Error::request(format!("there are {batch} targets, no target {row}")));
        }
        let rows = Tensor::new(rows, self.memory.states.device())?;
        let select = |x: &Tensor| Ok::<_, Error>(x.contiguous()?.index_select(&rows, 0)?);
        let memory = &self.memory;
        self.memory = Memory {
            states: select(&memory.states)?,
            keys: select(&memory.keys)?,
            mask: memory.mask.as_ref().map(select).transpose()?,
            ends: Vec::new(),
        };
        for state in &mut self.progress.states {
            *state = state.select(&rows)?;
        }
        self.progress.fed = select(&self.progress.fed)?;
        Ok(())
    }

    /// Tokens of each target, the one that begins it included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most tokens that fit.
    pub fn context(&self) -> usize {
        self.model.config().max_position_embeddings
    }
}
