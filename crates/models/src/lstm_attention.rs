//! Recurrent translation with attention: "Effective Approaches to Attention-based Neural Machine Translation", Luong, Pham &
//! Manning 2015, <https://arxiv.org/abs/1508.04025>: global attention with the score "general", and input feeding (section 3.3).
//! The encoder reads in both directions, as in "Neural Machine Translation by Jointly Learning to Align and Translate",
//! Bahdanau, Cho & Bengio 2015, <https://arxiv.org/abs/1409.0473>, section 3.2.
//!
//! | in the paper | here |
//! |---|---|
//! | `x`, the source; `h_bar_s`, its states | `source`; [`Memory`] |
//! | `h_t`, the decoder's state | `decoder`, what its top layer says |
//! | `score(h_t, h_bar_s) = h_t^T W_a h_bar_s`, equation 8 | `attention`, which makes keys `W_a h_bar_s` once for a source |
//! | `a_t(s) = softmax(score)`, equation 7; `c_t`, its mean of `h_bar_s` | [`attend`] |
//! | `h~_t = tanh(W_c [c_t; h_t])`, equation 5 | `combine` |
//! | `p(y_t \| y_<t, x) = softmax(W_s h~_t)`, equation 6 | `embed` transposed, or `out` |
//! | input feeding: `h~_{t-1}` beside the embedding of `y_{t-1}` | the last columns of `decoder.weight_ih_l0` |
//!
//! Where dropout is asked for ([`dropout`]), it is on the embeddings and on `h~` before the logits, not on what is fed from
//! step to step (Zaremba et al. 2014, <https://arxiv.org/abs/1409.2329>).
//!
//! What differs: a direction of the encoder has half the features, so that its states, side by side,
//! are the decoder's first; source and target have one table of embeddings, multiplied by the root of their size, and it makes the
//! logits, unless the config says otherwise. The products of all embeddings with the input's weights are one product of matrices; step by step remain what
//! depends on the step before and the attention.

use conjure_core::blocks::lstm::{self, split};
use conjure_core::blocks::{Embedding, Linear, Lstm, LstmConfig, LstmState, attend, padding_mask};
use conjure_core::ops::AttentionSpec;
use conjure_core::probe::{Probe, Quantity};
use conjure_core::weights::Params;
use conjure_core::{Device, Error, Result, Tensor, dropout, ops};

mod config;
mod decoding;

pub use config::LstmAttentionConfig;
pub use decoding::Decoding;

/// What the encoder says of a batch of sources.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `h_bar_s`, `(batch, source, hidden_size)`; zero at padding.
    pub states: Tensor,
    /// `W_a h_bar_s`, `(batch, source, hidden_size)`.
    keys: Tensor,
    /// `(batch, 1, 1, source)`, 0 at a token and negative infinity at padding; `None` without padding.
    pub mask: Option<Tensor>,
    /// With what the decoder's layers begin.
    ends: Vec<LstmState>,
}

/// The decoder between two tokens.
#[derive(Clone, Debug)]
struct Progress {
    states: Vec<LstmState>,
    /// `h~_{t-1}`, `(batch, hidden_size)`.
    fed: Tensor,
}

/// The encoder-decoder.
#[derive(Clone, Debug)]
pub struct LstmAttention {
    embed: Embedding,
    encoder: Lstm,
    decoder: Lstm,
    attention: Linear,
    combine: Linear,
    /// A matrix of its own for the logits.
    out: Option<Linear>,
    config: LstmAttentionConfig,
    path: String,
}

impl LstmAttention {
    /// The model below `params`: `embed`, `encoder`, `decoder`, `attention`, `combine`, and `out` where the table of embeddings
    /// does not make the logits.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &LstmAttentionConfig) -> Result<Self> {
        config.check()?;
        let (embedding, hidden) = (config.embedding_size, config.hidden_size);
        let encoder = LstmConfig {
            input_size: embedding,
            hidden_size: hidden / 2,
            num_layers: config.num_layers,
            bidirectional: true,
        };
        let decoder = LstmConfig {
            input_size: embedding + hidden,
            hidden_size: hidden,
            num_layers: config.num_layers,
            bidirectional: false,
        };
        let attention = params.sub("attention");
        let out = (!config.tie_word_embeddings)
            .then(|| Linear::new(&params.sub("out"), hidden, config.vocab_size, false))
            .transpose()?;
        Ok(Self {
            embed: Embedding::new(&params.sub("embed"), config.vocab_size, embedding)?,
            encoder: Lstm::new(&params.sub("encoder"), encoder)?,
            decoder: Lstm::new(&params.sub("decoder"), decoder)?,
            path: attention.path().to_owned(),
            attention: Linear::new(&attention, hidden, hidden, false)?,
            combine: Linear::new(&params.sub("combine"), 2 * hidden, hidden, false)?,
            out,
            config: config.clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &LstmAttentionConfig {
        &self.config
    }

    /// Where the model computes.
    pub fn device(&self) -> &Device {
        self.embed.weight().device()
    }

    /// Encodes `source (batch, source)` of type u32. `mask (batch, source)` is 1 at tokens and 0 at padding, which stands at the
    /// end; 1 everywhere unless given. The probe sees gates at `encoder.lN` and `encoder.lN_reverse`.
    ///
    /// # Errors
    /// No token, more tokens than the model takes, an id beyond the vocabulary, a mask of another shape.
    pub fn encode(&self, source: &Tensor, mask: Option<&Tensor>, probe: &mut dyn Probe) -> Result<Memory> {
        self.check("source", source, 0)?;
        if let Some(mask) = mask
            && mask.dims() != source.dims()
        {
            let (mask, source) = (mask.dims(), source.dims());
            return Err(Error::request(format!("the mask has shape {mask:?}, the source {source:?}")));
        }
        let x = self.embedded(source)?; // (batch, source, embedding_size)
        let added = mask.map(|mask| padding_mask(mask, x.dtype())).transpose()?.flatten(); // (batch, 1, 1, source)
        let present = mask.filter(|_| added.is_some());
        let (states, ends) = self.encoder.forward(&x, present, None, probe)?; // (batch, source, hidden_size)
        let both = |pair: &[LstmState]| pair[0].beside(&pair[1]); // (batch, hidden_size)
        let ends = ends.chunks_exact(2).map(both).collect::<Result<_>>()?;
        Ok(Memory { keys: self.attention.forward(&states)?, states, mask: added, ends })
    }

    /// Teacher forcing: logits `(batch, time, vocabulary)` of `labels (batch, time)`, each given the source and the labels
    /// before it.
    ///
    /// # Errors
    /// Those of [`LstmAttention::encode`] and [`LstmAttention::decode`].
    pub fn forward(
        &self,
        source: &Tensor,
        source_mask: Option<&Tensor>,
        labels: &Tensor,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        self.logits(&self.guesses(source, source_mask, labels, probe)?)
    }

    /// As [`LstmAttention::forward`], of the labels at `places (n)` of type u32 alone, counted row by row: `(n, vocabulary)`.
    /// Logits of padding are not computed.
    ///
    /// # Errors
    /// Those of [`LstmAttention::forward`]; a place beyond the labels.
    pub fn forward_at(
        &self,
        source: &Tensor,
        source_mask: Option<&Tensor>,
        labels: &Tensor,
        places: &Tensor,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let said = self.guesses(source, source_mask, labels, probe)?; // (batch, time, hidden_size)
        self.logits(&said.flatten(0, 1)?.index_select(places, 0)?) // (n, vocabulary)
    }

    /// `h~ (batch, time, hidden_size)` before each of `labels (batch, time)`.
    fn guesses(
        &self,
        source: &Tensor,
        source_mask: Option<&Tensor>,
        labels: &Tensor,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        // 1. The encoder reads the source.
        let memory = self.encode(source, source_mask, probe)?; // (batch, source, hidden_size)
        // 2. The decoder guesses each label from those before it.
        let (batch, time) = labels.dims2()?;
        let start = Tensor::full(self.config.decoder_start_token_id, (batch, time.min(1)), labels.device())?;
        let before = Tensor::cat(&[&start, &labels.narrow(1, 0, time.saturating_sub(1))?], 1)?;
        let said = self.advance(&before, &memory, &mut Self::begin(&memory)?, 0, probe)?; // (batch, time, hidden_size)
        dropout::apply(&said)
    }

    /// Logits of the token after each of `ids (batch, time)` of type u32: `(batch, time, vocabulary)`. The first id of a target
    /// is `decoder_start_token_id`. Step by step the probe sees the attention at `attention`, with one head,
    /// and the gates `(batch, 4, hidden_size)` at `decoder.lN`.
    ///
    /// # Errors
    /// No token, more tokens than the model takes, an id beyond the vocabulary, a memory of another batch.
    pub fn decode(&self, ids: &Tensor, memory: &Memory, probe: &mut dyn Probe) -> Result<Tensor> {
        let mut progress = Self::begin(memory)?;
        let said = self.advance(ids, memory, &mut progress, 0, probe)?; // (batch, time, hidden_size)
        self.logits(&said)
    }

    /// Nothing is written: the decoder begins with the encoder's last states, and is fed zeros.
    fn begin(memory: &Memory) -> Result<Progress> {
        let fed = match memory.ends.first() {
            Some(state) => state.h()?.zeros_like()?,
            None => return Err(Error::failure("the decoder has no layer")),
        };
        Ok(Progress { states: memory.ends.clone(), fed })
    }

    /// Reads `ids (batch, time)`, which follow `before` others: `h~ (batch, time, hidden_size)`.
    fn advance(
        &self,
        ids: &Tensor,
        memory: &Memory,
        progress: &mut Progress,
        before: usize,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        self.check("target", ids, before)?;
        let (batch, sources) = (ids.dim(0)?, memory.states.dim(0)?);
        if batch != sources {
            return Err(Error::request(format!("{batch} targets do not fit {sources} sources")));
        }
        let cells = self.decoder.cells();
        // 1. What the embeddings add to the first layer's gates, at all times at once.
        let products = cells[0].products(&self.embedded(ids)?)?; // (batch, time, 4 hidden)
        // The other matrices side by side: what is fed, or said by the layer below, and the state before.
        let recurrent =
            |(n, cell): (usize, &lstm::LstmCell)| cell.recurrent(if n == 0 { self.config.embedding_size } else { 0 });
        let recurrent = cells.iter().enumerate().map(recurrent).collect::<Result<Vec<_>>>()?;
        let biases = cells.iter().map(lstm::LstmCell::bias).collect::<Result<Vec<_>>>()?;
        let mut said = Vec::with_capacity(ids.dim(1)?);
        for product in split(&products)? {
            // 2. The layers, the first fed with h~ of the step before.
            let mut below = progress.fed.clone(); // (batch, hidden_size)
            for (n, cell) in cells.iter().enumerate() {
                let state = &mut progress.states[n];
                let input = Tensor::cat(&[&below, &state.h()?], 1)?; // (batch, 2 hidden)
                let raw = recurrent[n].forward(&input)?; // (batch, 4 hidden)
                let raw = if n == 0 { ops::add(&raw, &product.contiguous()?)? } else { raw.broadcast_add(&biases[n])? };
                if probe.wants(cell.path(), Quantity::Gate) {
                    probe.observe(cell.path(), Quantity::Gate, &ops::plain::lstm_gates(&raw.detach())?)?; // (batch, 4, hidden)
                }
                *state = state.step(&raw, None)?;
                below = state.h()?;
            }
            // 3. Which part of the source matters: equations 7 and 8.
            let context = self.attended(&below, memory, probe)?; // (batch, hidden_size)
            // 4. Equation 5.
            progress.fed = self.combine.forward(&Tensor::cat(&[&context, &below], 1)?)?.tanh()?; // (batch, hidden_size)
            said.push(progress.fed.clone());
        }
        Ok(Tensor::stack(&said, 1)?) // (batch, time, hidden_size)
    }

    /// `ids (batch, time)`: `(batch, time, embedding_size)`.
    fn embedded(&self, ids: &Tensor) -> Result<Tensor> {
        dropout::apply(&self.scaled(self.embed.forward(ids)?)?)
    }

    /// What the table of embeddings takes or gives, scaled: its entries begin small. With the scale they are of the size with
    /// which Luong et al. begin, on the way in and, as `h~` is between -1 and 1, on the way out.
    fn scaled(&self, x: Tensor) -> Result<Tensor> {
        Ok(if self.config.scale_embedding { (x * (self.config.embedding_size as f64).sqrt())? } else { x })
    }

    /// The mean of the source's states, weighted by what `h (batch, hidden_size)` finds in them; same shape.
    fn attended(&self, h: &Tensor, memory: &Memory, probe: &mut dyn Probe) -> Result<Tensor> {
        let q = h.unsqueeze(1)?.unsqueeze(1)?; // (batch, 1, 1, hidden_size)
        let (k, v) = (memory.keys.unsqueeze(1)?, memory.states.unsqueeze(1)?); // (batch, 1, source, hidden_size)
        let plain = AttentionSpec::new(self.config.hidden_size);
        let spec = AttentionSpec { scale: 1.0, causal: false, mask: memory.mask.as_ref(), ..plain };
        let to_out = |y: &Tensor| Ok(y.clone());
        let y = attend(&q, &k, &v, spec, &to_out, &self.path, probe)?; // (batch, 1, 1, hidden_size)
        Ok(y.squeeze(1)?.squeeze(1)?)
    }

    /// Equation 6 without its softmax: `h~ (..., hidden_size)`: `(..., vocabulary)`.
    fn logits(&self, h: &Tensor) -> Result<Tensor> {
        match &self.out {
            Some(out) => out.forward(h),
            None => self.embed.logits(&self.scaled(h.clone())?),
        }
    }

    fn check(&self, what: &str, ids: &Tensor, before: usize) -> Result<()> {
        let rows = ids.to_vec2::<u32>()?;
        let time = ids.dim(1)?;
        if rows.is_empty() || time == 0 {
            return Err(Error::request(format!("the {what} has no token")));
        }
        let (all, most) = (before.saturating_add(time), self.config.max_position_embeddings);
        if all > most {
            return Err(Error::request(format!(
                "{all} tokens of the {what} are more than the {most} that the model takes"
            ))
            .with_help("give the model a shorter piece of the text at a time"));
        }
        let vocabulary = self.config.vocab_size;
        if let Some(id) = rows.iter().flatten().find(|id| **id as usize >= vocabulary) {
            return Err(Error::request(format!(
                "token {id} of the {what} is beyond the {vocabulary} tokens that the model knows"
            ))
            .with_help("the tokenizer does not belong to this model"));
        }
        Ok(())
    }
}
