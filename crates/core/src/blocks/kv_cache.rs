//! Keys and values of the tokens that a decoder has read, so that each new token costs one position and not the whole text
//! (Shazeer 2019, "Fast Transformer Decoding", <https://arxiv.org/abs/1911.02150>, section 2.4.1).

use crate::{DType, Error, Result, Tensor, ops};

/// Rows by which memory grows at least.
const CHUNK: usize = 256;

/// How many tokens a layer with a sliding window can go back beyond its window.
const KEPT_BEHIND: usize = 256;

/// How rows are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeptAs {
    /// As they come.
    #[default]
    Given,
    /// As f16: half the memory of f32. Rounded to 11 bits; beyond 65504 they become infinite.
    Half,
    /// As whole numbers of 8 bits with a factor for every 32 of them ([`ops::to_eight_bits`]): not much more than a quarter.
    EightBits,
}

impl KeptAs {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Given => Ok(x.detach().contiguous()?),
            Self::Half => Ok(x.detach().to_dtype(DType::F16)?.contiguous()?),
            Self::EightBits => ops::to_eight_bits(x),
        }
    }
}

/// One layer's rows.
#[derive(Debug)]
struct Layer {
    /// How many positions a query sees, itself included.
    window: Option<usize>,
    /// Position of row 0: what a window has left behind is gone.
    first: usize,
    /// Keys `(batch, kv_heads, capacity, head_dim)` and values `(batch, kv_heads, capacity, value_dim)`.
    rows: Option<(Tensor, Tensor)>,
}

/// The keys and values of all layers, for a batch of equally long texts.
///
/// A layer writes its rows with [`KvCache::append`]; when all have, [`KvCache::advance`] makes them count. A forward pass that
/// fails before leaves the length as it was.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Layer>,
    len: usize,
    context: usize,
    kept: KeptAs,
}

impl KvCache {
    /// An empty cache for at most `context` tokens, with a layer for each entry of `windows`: how many positions a query of
    /// the layer sees, itself included, or `None` for all. Takes memory only as it fills, and little more than two windows for
    /// a layer that has one.
    pub fn new(windows: impl IntoIterator<Item = Option<usize>>, context: usize) -> Self {
        let layers = windows.into_iter().map(|window| Layer { window, first: 0, rows: None }).collect();
        Self { layers, len: 0, context, kept: KeptAs::Given }
    }

    /// The same, empty, that keeps its rows so.
    pub fn keeping(self, kept: KeptAs) -> Self {
        Self { kept, ..Self::new(self.layers.iter().map(|layer| layer.window), self.context) }
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most tokens that fit.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        let bytes = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        self.layers.iter().filter_map(|layer| layer.rows.as_ref()).map(|(k, v)| bytes(k) + bytes(v)).sum()
    }

    /// Whether `time` more tokens fit.
    ///
    /// # Errors
    /// They do not.
    pub fn check_room(&self, time: usize) -> Result<()> {
        if time <= self.context.saturating_sub(self.len) {
            return Ok(());
        }
        let (all, context) = (self.len.saturating_add(time), self.context);
        Err(Error::request(format!("{all} tokens do not fit into a context of {context}"))
            .with_help("shorten the text, or choose a longer context if the model was made for one"))
    }

    /// Adds the keys `k (batch, kv_heads, time, head_dim)` and values `v (batch, kv_heads, time, value_dim)` of the next
    /// tokens to a layer, detached. Returns, as they are kept, those that the tokens can see, in order, the new ones last:
    /// `(batch, kv_heads, source, head_dim)` and `(batch, kv_heads, source, value_dim)`. They are views of the cache, which
    /// hold until it is truncated.
    ///
    /// # Errors
    /// No such layer, no room, shapes that differ from those before, or a failed call before this one that dropped rows.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, kv_heads, time, _) = k.dims4()?;
        self.check_room(time)?;
        let (len, context, layers) = (self.len, self.context, self.layers.len());
        let layer = self
            .layers
            .get_mut(layer)
            .ok_or_else(|| Error::request(format!("the cache has {layers} layers, no layer {layer}")))?;
        let behind = layer.window.map_or(len, |window| (window.max(1) - 1).min(len)); // old rows that are seen
        if layer.first + behind > len {
            return Err(Error::failure("the cache lost keys in a forward pass that failed")
                .with_help("clear the cache and read the text again"));
        }
        if let Some((keys, _)) = &layer.rows
            && keys.dims()[..2] != [batch, kv_heads]
        {
            let (now, before) = (&k.dims()[..2], &keys.dims()[..2]);
            return Err(Error::request(format!("the cache holds (batch, kv_heads) {before:?}, not {now:?}")));
        }
        let (k, v) = (self.kept.apply(k)?, self.kept.apply(v)?);
        let used = len - layer.first;
        if let Some(window) = layer.window
            && used + time > 2 * (window + KEPT_BEHIND)
        {
            return layer.slide(&k, &v, used, behind, window);
        }
        layer.grow(&k, &v, used, time, context)?;
        let Some((keys, values)) = &layer.rows else { return Ok((k, v)) };
        keys.slice_set(&k, 2, used)?;
        values.slice_set(&v, 2, used)?;
        let (from, count) = (used - behind, behind + time);
        Ok((keys.narrow(2, from, count)?, values.narrow(2, from, count)?))
    }

    /// Makes the `time` tokens count whose keys and values all layers have got.
    pub fn advance(&mut self, time: usize) {
        self.len += time;
    }

    /// Forgets all tokens from number `len` on; no more happens if there are not as many. Memory is kept.
    ///
    /// # Errors
    /// A layer with a sliding window no longer has what the tokens from `len` on would see. [`KvCache::clear`] always works.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            self.clear();
        }
        if len >= self.len {
            return Ok(());
        }
        for layer in &self.layers {
            let seen_from = layer.window.map_or(0, |window| (len + 1).saturating_sub(window.max(1)));
            if seen_from < layer.first {
                let (have, first) = (self.len, layer.first);
                return Err(Error::request(format!(
                    "cannot go back from {have} tokens to {len}: a layer with a sliding window has dropped the first {first}"
                ))
                .with_help("clear the cache and read the text again"));
            }
        }
        self.len = len;
        Ok(())
    }

    /// Forgets all tokens. Memory is kept.
    pub fn clear(&mut self) {
        self.len = 0;
        for layer in &mut self.layers {
            layer.first = 0;
        }
    }

    /// Keeps these texts of the batch, in this order: for beam search, where a text may go on twice or not at all.
    ///
    /// # Errors
    /// A text that is not there.
    pub fn select(&mut self, texts: &[u32]) -> Result<()> {
        for (keys, values) in self.layers.iter_mut().filter_map(|layer| layer.rows.as_mut()) {
            let batch = keys.dim(0)?;
            if let Some(text) = texts.iter().find(|text| **text as usize >= batch) {
                return Err(Error::request(format!("the cache holds {batch} texts, no text {text}")));
            }
            let chosen = Tensor::new(texts, keys.device())?;
            (*keys, *values) = (keys.index_select(&chosen, 0)?, values.index_select(&chosen, 0)?);
        }
        Ok(())
    }

    /// The same tokens in memory of their own, for texts that go on differently.
    ///
    /// # Errors
    /// Memory on a device runs out.
    pub fn copy(&self) -> Result<Self> {
        let copy = |layer: &Layer| -> Result<Layer> {
            let rows = layer.rows.as_ref().map(|(k, v)| Ok::<_, Error>((k.copy()?, v.copy()?))).transpose()?;
            Ok(Layer { window: layer.window, first: layer.first, rows })
        };
        let layers = self.layers.iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { layers, ..*self })
    }
}

impl Layer {
    /// Makes room for `time` rows after the `used` ones, in a larger copy if need be.
    fn grow(&mut self, k: &Tensor, v: &Tensor, used: usize, time: usize, context: usize) -> Result<()> {
        let capacity = self.rows.as_ref().map_or(0, |(keys, _)| keys.dims()[2]);
        if self.rows.is_some() && used + time <= capacity {
            return Ok(());
        }
        let most = self.window.map_or(context, |window| 2 * (window + KEPT_BEHIND));
        let capacity = (used + time).max(capacity + capacity / 2).next_multiple_of(CHUNK).min(most.max(used + time));
        let larger = |new: &Tensor, old: Option<&Tensor>| -> Result<Tensor> {
            let (batch, heads, _, dim) = new.dims4()?;
            let larger = Tensor::zeros((batch, heads, capacity, dim), new.dtype(), new.device())?;
            if let Some(old) = old
                && used > 0
            {
                larger.slice_set(&old.narrow(2, 0, used)?.contiguous()?, 2, 0)?;
            }
            Ok(larger)
        };
        let (keys, values) = self.rows.as_ref().map(|(k, v)| (k, v)).unzip();
        self.rows = Some((larger(k, keys)?, larger(v, values)?));
        Ok(())
    }

    /// Appends where the memory of a window is full: what the new rows see is joined in memory of its own, and only the last
    /// rows stay.
    fn slide(&mut self, k: &Tensor, v: &Tensor, used: usize, behind: usize, window: usize) -> Result<(Tensor, Tensor)> {
        let time = k.dim(2)?;
        let (old_keys, old_values) = match &self.rows {
            Some((keys, values)) => (keys.narrow(2, 0, used)?, values.narrow(2, 0, used)?),
            None => (k.narrow(2, 0, 0)?, v.narrow(2, 0, 0)?),
        };
        let (keys, values) = (Tensor::cat(&[&old_keys, k], 2)?, Tensor::cat(&[&old_values, v], 2)?);
        let total = used + time;
        let kept = (window.max(1) - 1 + KEPT_BEHIND).min(total);
        let last = |x: &Tensor| -> Result<Tensor> { Ok(x.narrow(2, total - kept, kept)?.force_contiguous()?) };
        let (kept_keys, kept_values) = (last(&keys)?, last(&values)?);
        self.rows = None;
        self.grow(&kept_keys, &kept_values, 0, 2 * (window + KEPT_BEHIND), 0)?;
        if let Some((keys, values)) = &self.rows {
            keys.slice_set(&kept_keys, 2, 0)?;
            values.slice_set(&kept_values, 2, 0)?;
        }
        self.first += total - kept;
        let (from, count) = (used - behind, behind + time);
        Ok((keys.narrow(2, from, count)?, values.narrow(2, from, count)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    /// Rows that hold their own position.
    fn rows(first: usize, time: usize) -> Tensor {
        let data: Vec<f32> = (0..2 * time).map(|i| (first + i % time) as f32).collect();
        Tensor::from_vec(data, (1, 2, time, 1), &Device::Cpu).unwrap()
    }

    fn push(cache: &mut KvCache, time: usize) -> Vec<f32> {
        let new = rows(cache.len(), time);
        let (k, v) = cache.append(0, &new, &new).unwrap();
        cache.advance(time);
        let values = |x: &Tensor| x.contiguous().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&k), values(&v));
        let seen = values(&k);
        let (one, other) = seen.split_at(seen.len() / 2);
        assert_eq!(one, other);
        one.to_vec()
    }

    fn positions(range: std::ops::Range<usize>) -> Vec<f32> {
        range.map(|at| at as f32).collect()
    }

    #[test]
    fn rows_come_back_in_order_across_growth() {
        let mut cache = KvCache::new([None], 2000);
        for (n, time) in [3, 1, 500, 1, 700].into_iter().enumerate() {
            let end = cache.len() + time;
            assert_eq!(push(&mut cache, time), positions(0..end), "call {n}");
        }
        cache.truncate(2).unwrap();
        assert_eq!(push(&mut cache, 2), positions(0..4));
        cache.clear();
        assert!(cache.is_empty());
        assert_eq!(push(&mut cache, 1), [0.0]);
    }

    #[test]
    fn a_window_shows_its_last_rows_and_takes_little_memory() {
        for time in [1, 7, 300] {
            let mut cache = KvCache::new([Some(5)], 1 << 20);
            while cache.len() < 4000 {
                let len = cache.len();
                assert_eq!(push(&mut cache, time), positions(len.saturating_sub(4)..len + time));
            }
            assert!(cache.bytes() <= 2 * 2 * 4 * 2 * (5 + KEPT_BEHIND), "{}", cache.bytes());
            // Some way back is possible, not all of it.
            let len = cache.len();
            cache.truncate(len - 100).unwrap();
            assert_eq!(push(&mut cache, 2), positions(len - 104..len - 98));
            let error = cache.truncate(20).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot go back from {} tokens to 20", len - 98)), "{error}");
            assert_eq!(cache.len(), len - 98);
            cache.truncate(0).unwrap();
            assert_eq!(push(&mut cache, 3), positions(0..3));
        }
    }

    #[test]
    fn an_overfull_context_and_another_batch_are_refused() {
        let mut cache = KvCache::new([None], 4);
        push(&mut cache, 3);
        let new = rows(3, 2);
        let error = cache.append(0, &new, &new).unwrap_err();
        assert_eq!(error.to_string(), "5 tokens do not fit into a context of 4");
        assert!(error.help().is_some());
        let two = Tensor::cat(&[&rows(3, 1), &rows(3, 1)], 0).unwrap();
        let error = cache.append(0, &two, &two).unwrap_err().to_string();
        assert_eq!(error, "the cache holds (batch, kv_heads) [1, 2], not [2, 2]");
        assert!(cache.append(1, &rows(3, 1), &rows(3, 1)).is_err());
        let other = cache.copy().unwrap();
        push(&mut cache, 1);
        assert_eq!((cache.len(), other.len()), (4, 3));
    }
}
