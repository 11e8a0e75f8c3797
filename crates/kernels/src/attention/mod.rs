//! Attention without the score matrix in memory (Dao et al. 2022, FlashAttention; its second version's loop order).
//!
//! A task has a block of queries, one in each lane of three vectors, and walks over the keys block by block. With
//! queries in the lanes, keys and values are read where they lie, one number broadcast at a time; the row maximum and
//! the row sum of softmax are sums over vectors, never across lanes; and a head's width needs no padding.
//! The gradient for keys and values swaps the roles: keys in the lanes, a walk over the queries.
//!
//! Where few queries read a key head, as when a text is written token by token, most lanes would be idle: `few` then takes
//! one pass over the keys with their features in the lanes.

mod backward;
mod few;
mod forward;
mod tile;

pub use backward::{Gradients, backward};
pub use few::Rows;
pub use forward::{forward, forward_few, suits_few};

/// Sizes and the meaning of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Independent sequences.
    pub batch: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads: query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Queries.
    pub t: usize,
    /// Keys.
    pub s: usize,
    /// Features of a query and of a key.
    pub head_dim: usize,
    /// Features of a value.
    pub value_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether query `i` sees only the keys up to `i + s - t`.
    pub causal: bool,
    /// Of the keys up to `i + s - t`, how many query `i` sees, from the last back; all if `None`.
    pub window: Option<usize>,
    /// `c` in `c tanh(score / c)`, which the scaled scores are squeezed by. Not together with a mask in the gradient.
    pub soft_cap: Option<f32>,
    /// Added to the scaled, squeezed scores.
    pub mask: Option<Mask<'a>>,
}

/// A mask over `(batch, heads, t, s)`, by strides; a stride of 0 broadcasts.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Elements between neighbours in batch, head, query and key.
    pub strides: [usize; 4],
}

/// A tensor `(batch, heads, rows, features)`, by strides; the features of a row are contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T> {
    /// The numbers.
    pub data: &'a [T],
    /// Elements between neighbours in batch, head and row.
    pub strides: [usize; 3],
}

/// Rows of floats.
pub type View<'a> = Strided<'a, f32>;

/// Rows of IEEE 754's numbers of 16 bits.
pub type HalfView<'a> = Strided<'a, u16>;

/// Rows of bytes.
pub type ByteView<'a> = Strided<'a, u8>;

impl<'a, T> Strided<'a, T> {
    fn offset(&self, batch: usize, head: usize, row: usize) -> usize {
        batch * self.strides[0] + head * self.strides[1] + row * self.strides[2]
    }

    fn row(&self, batch: usize, head: usize, row: usize, features: usize) -> &'a [T] {
        &self.data[self.offset(batch, head, row)..][..features]
    }

    /// Panics unless all of `(batch, heads, rows, features)` lies in the data.
    fn check(&self, batch: usize, heads: usize, rows: usize, features: usize) {
        if batch * heads * rows * features > 0 {
            let last = self.offset(batch - 1, heads - 1, rows - 1) + features;
            assert!(last <= self.data.len(), "a view of {last} elements into {}", self.data.len());
        }
    }
}

/// What the backward pass needs to know of each softmax row: `probability = exp(score - max) * inverse_sum`.
/// Both are `(batch, heads, t)`. (Their union, the log-sum-exp, would lose the sum where a mask is very negative.)
#[derive(Clone, Debug, Default)]
pub struct RowStatistics {
    /// The largest score.
    pub max: Vec<f32>,
    /// 1 over the sum of exponentials; 0 for a row that sees no key.
    pub inverse_sum: Vec<f32>,
}

impl Problem<'_> {
    /// Query heads per key head.
    fn group(&self) -> usize {
        if self.heads == self.kv_heads { 1 } else { self.heads / self.kv_heads }
    }

    fn check(&self, q: &View<'_>, k: &View<'_>, v: &View<'_>) {
        self.check_queries(q);
        k.check(self.batch, self.kv_heads, self.s, self.head_dim);
        v.check(self.batch, self.kv_heads, self.s, self.value_dim);
    }

    fn check_queries(&self, q: &View<'_>) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{} heads, {} key heads",
            self.heads,
            self.kv_heads
        );
        q.check(self.batch, self.heads, self.t, self.head_dim);
        if let Some(mask) = self.mask
            && self.batch * self.heads * self.t * self.s > 0
        {
            let sizes = [self.batch, self.heads, self.t, self.s];
            let last: usize = mask.strides.iter().zip(sizes).map(|(stride, size)| stride * (size - 1)).sum();
            assert!(last < mask.data.len(), "a mask of {} elements into {}", last + 1, mask.data.len());
        }
    }

    /// The number of keys, from the first, that query `i` sees under the causal rule.
    fn visible(&self, i: usize) -> usize {
        if self.causal { (i + 1 + self.s).saturating_sub(self.t).min(self.s) } else { self.s }
    }

    /// The number of keys, from the first, that query `i` does not see because they are outside its window.
    fn hidden(&self, i: usize) -> usize {
        self.window.map_or(0, |window| (i + 1 + self.s).saturating_sub(self.t.saturating_add(window)).min(self.s))
    }

    /// What is added to the score of query `i` and key `j`.
    fn bias(&self, batch: usize, head: usize, i: usize, j: usize) -> f32 {
        if j >= self.visible(i) || j < self.hidden(i) {
            return f32::NEG_INFINITY;
        }
        self.mask.map_or(0.0, |mask| {
            let [b, h, t, s] = mask.strides;
            mask.data[batch * b + head * h + i * t + j * s]
        })
    }
}

/// The size of equal blocks of at most `most`, rounded up to a positive multiple of 8, that cover `n`.
fn block_size(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(8).max(8)
}
