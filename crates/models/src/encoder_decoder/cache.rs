//! What the decoder keeps from step to step, so that a token costs one position and not the whole target.

use super::attention::KeysValues;
use conjure_core::blocks::KvCache;
use conjure_core::{Error, Result, Tensor};

/// Keys and values of the decoder's layers: of the tokens so far, and of the source.
#[derive(Debug)]
pub struct Cache {
    own: KvCache,
    source: Vec<Option<KeysValues>>,
}

impl Cache {
    pub(super) fn new(layers: usize, context: usize) -> Self {
        Self { own: KvCache::new((0..layers).map(|_| None), context), source: vec![None; layers] }
    }

    /// Tokens of the target, the one that begins it included.
    pub fn len(&self) -> usize {
        self.own.len()
    }

    /// Whether no token of the target has been read.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty()
    }

    /// Forgets the tokens from number `len` on.
    ///
    /// # Errors
    /// None that these layers can cause.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.own.truncate(len)
    }

    /// Keeps these rows of the batch, in this order: for beam search, where a row may go on twice or not at all.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        self.own.select(rows)?;
        for kept in self.source.iter_mut().flatten() {
            let batch = kept.keys.dim(0)?;
            if let Some(row) = rows.iter().find(|row| **row as usize >= batch) {
                return Err(Error::request(format!("the cache has {batch} rows, no row {row}")));
            }
            *kept = kept.selected(&Tensor::new(rows, kept.keys.device())?)?;
        }
        Ok(())
    }

    pub(super) fn append(&mut self, layer: usize, new: KeysValues) -> Result<KeysValues> {
        let (keys, values) = self.own.append(layer, &new.keys, &new.values)?;
        Ok(KeysValues { keys, values })
    }

    /// Those of the source, which `compute` gives the first time.
    pub(super) fn source(&mut self, layer: usize, compute: impl FnOnce() -> Result<KeysValues>) -> Result<KeysValues> {
        let Some(kept) = self.source.get_mut(layer) else { return compute() };
        match kept {
            Some(kept) => Ok(kept.clone()),
            None => Ok(kept.insert(compute()?).clone()),
        }
    }

    pub(super) fn advance(&mut self, time: usize) {
        self.own.advance(time);
    }
}
