//! Attention with offsets that learn, and with keys and values that are kept from step to step.

use conjure_core::blocks::{AttentionNames, Linear, attend};
use conjure_core::ops::{self, AttentionSpec};
use conjure_core::probe::Probe;
use conjure_core::weights::Params;
use conjure_core::{Result, Tensor};

/// Keys and values, each `(batch, heads, source, head_dim)`.
#[derive(Clone, Debug)]
pub(super) struct KeysValues {
    pub keys: Tensor,
    pub values: Tensor,
}

impl KeysValues {
    /// Those of the rows `rows (n)` of the batch.
    pub fn selected(&self, rows: &Tensor) -> Result<Self> {
        let select = |x: &Tensor| Ok::<_, conjure_core::Error>(x.contiguous()?.index_select(rows, 0)?);
        Ok(Self { keys: select(&self.keys)?, values: select(&self.values)? })
    }
}

/// What is added to the scores before the softmax.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offsets<'a> {
    /// Of relative positions, `(1, heads, time, source)`; gradients flow into it.
    pub bias: Option<&'a Tensor>,
    /// Of padding, broadcastable to `(batch, heads, time, source)`.
    pub mask: Option<&'a Tensor>,
    /// Whether no query sees a later key.
    pub causal: bool,
}

/// Section 3.2.2: `MultiHead(Q, K, V) = Concat(head_1, ..., head_h) W^O`.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
    head_dim: usize,
    scale: f64,
    path: String,
}

impl Attention {
    /// The layer below `params`. Without `scaled` the scores are the bare products, as T5 has it.
    pub fn new(
        params: &Params,
        names: AttentionNames,
        (d_model, heads, head_dim): (usize, usize, usize),
        bias: bool,
        scaled: bool,
    ) -> Result<Self> {
        let inner = heads * head_dim;
        let projection = |name: &str| Linear::new(&params.sub(name), d_model, inner, bias);
        Ok(Self {
            q: projection(names.q)?,
            k: projection(names.k)?,
            v: projection(names.v)?,
            out: Linear::new(&params.sub(names.out), inner, d_model, bias)?,
            heads,
            head_dim,
            scale: if scaled { 1.0 / (head_dim as f64).sqrt() } else { 1.0 },
            path: params.path().to_owned(),
        })
    }

    /// Of `context (batch, source, d_model)`.
    pub fn keys_values(&self, context: &Tensor) -> Result<KeysValues> {
        Ok(KeysValues {
            keys: self.split_heads(&self.k.forward(context)?)?, // (batch, heads, source, head_dim)
            values: self.split_heads(&self.v.forward(context)?)?, // (batch, heads, source, head_dim)
        })
    }

    /// `x (batch, time, d_model)`, shape unchanged.
    pub fn forward(
        &self,
        x: &Tensor,
        source: &KeysValues,
        offsets: Offsets<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let KeysValues { keys: k, values: v } = source;
        let q = self.split_heads(&self.q.forward(x)?)?; // (batch, heads, time, head_dim)
        let added = match (offsets.bias, offsets.mask) {
            (Some(bias), Some(mask)) => Some(bias.broadcast_add(mask)?), // (batch, heads, time, source)
            (bias, mask) => bias.or(mask).cloned(),
        };
        let plain = AttentionSpec::new(self.head_dim);
        let spec = AttentionSpec { scale: self.scale, causal: offsets.causal, mask: added.as_ref(), ..plain };
        let y = match added.as_ref().filter(|_| offsets.bias.is_some_and(Tensor::track_op)) {
            Some(added) => self.with_learned_offsets(&q, source, added, offsets.causal)?,
            None => attend(&q, k, v, spec, &|y| self.out.forward(y), &self.path, probe)?,
        }; // (batch, heads, time, head_dim)
        let (batch, heads, time, head_dim) = y.dims4()?;
        self.out.forward(&y.transpose(1, 2)?.reshape((batch, time, heads * head_dim))?) // (batch, time, d_model)
    }

    /// The same in single steps: the fused kernel has no gradient for what is added to its scores.
    fn with_learned_offsets(&self, q: &Tensor, source: &KeysValues, added: &Tensor, causal: bool) -> Result<Tensor> {
        let scores = (ops::matmul(q, &source.keys.t()?)? * self.scale)?; // (batch, heads, time, source)
        let mut scores = scores.broadcast_add(added)?;
        if causal {
            let (_, _, t, s) = scores.dims4()?;
            let hidden = |i: usize, j: usize| if j + t > i + s { f32::NEG_INFINITY } else { 0.0 };
            let hidden: Vec<f32> = (0..t).flat_map(|i| (0..s).map(move |j| hidden(i, j))).collect();
            scores = scores.broadcast_add(&Tensor::from_vec(hidden, (t, s), q.device())?.to_dtype(q.dtype())?)?;
        }
        ops::matmul(&ops::softmax(&scores)?, &source.values)
    }

    fn split_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        Ok(x.reshape((batch, time, self.heads, self.head_dim))?.transpose(1, 2)?)
    }
}
