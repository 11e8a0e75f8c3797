//! Long short-term memory: Hochreiter & Schmidhuber 1997, "Long Short-Term Memory", Neural Computation 9(8), with the forget
//! gate of Gers et al. 2000, "Learning to Forget". Names and order of the gates are PyTorch's (`torch.nn.LSTM`).
//!
//! ```text
//! i, f, o = sigmoid(W_i x_t + U_i h_{t-1} + b), g = tanh(W_g x_t + U_g h_{t-1} + b)
//! c_t = f * c_{t-1} + i * g
//! h_t = o * tanh(c_t)
//! ```

use crate::probe::{Probe, Quantity};
use crate::weights::{Init, Params};
use crate::{D, Error, Result, Tensor, ops};

/// Sizes of an [`Lstm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LstmConfig {
    /// Features of the input.
    pub input_size: usize,
    /// Features of the state, in each direction.
    pub hidden_size: usize,
    /// Layers, each reading what the one below it says.
    pub num_layers: usize,
    /// Whether a second net reads every layer's input from its end.
    pub bidirectional: bool,
}

/// What a cell remembers: `h`, what it says, and `c`, what it keeps.
#[derive(Clone, Debug)]
pub struct LstmState(Tensor); // (batch, 2, hidden_size)

impl LstmState {
    /// Of `h` and `c`, both `(batch, hidden_size)`.
    ///
    /// # Errors
    /// Their shapes differ.
    pub fn new(h: &Tensor, c: &Tensor) -> Result<Self> {
        Ok(Self(Tensor::stack(&[h, c], 1)?))
    }

    /// What it says, `(batch, hidden_size)`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn h(&self) -> Result<Tensor> {
        Ok(self.0.narrow(1, 0, 1)?.squeeze(1)?)
    }

    /// What it keeps, `(batch, hidden_size)`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn c(&self) -> Result<Tensor> {
        Ok(self.0.narrow(1, 1, 1)?.squeeze(1)?)
    }

    /// The states of two cells side by side, as if they were one cell's.
    ///
    /// # Errors
    /// They are of different batches.
    pub fn beside(&self, other: &Self) -> Result<Self> {
        Ok(Self(Tensor::cat(&[&self.0, &other.0], 2)?))
    }

    /// The state after a step: see [`ops::lstm_step`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn step(&self, raw: &Tensor, present: Option<&Tensor>) -> Result<Self> {
        Ok(Self(ops::lstm_step(raw, &self.0, present)?))
    }

    /// These rows of the batch, in this order.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        Ok(Self(self.0.contiguous()?.index_select(rows, 0)?))
    }
}

/// One layer in one direction: `weight_ih_lN (4 hidden, input)`, `weight_hh_lN (4 hidden, hidden)`, `bias_ih_lN` and
/// `bias_hh_lN (4 hidden)`, with `_reverse` after them in the second direction. Rows are the gates i, f, g, o.
#[derive(Clone, Debug)]
pub struct LstmCell {
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    hidden_size: usize,
    reverse: bool,
    path: String,
}

impl LstmCell {
    fn new(params: &Params, layer: usize, reverse: bool, input_size: usize, hidden_size: usize) -> Result<Self> {
        let name = format!("l{layer}{}", if reverse { "_reverse" } else { "" });
        let init = Init::Uniform { bound: 1.0 / (hidden_size.max(1) as f64).sqrt() };
        let gates = hidden_size * 4;
        let path = if params.path().is_empty() { name.clone() } else { format!("{}.{name}", params.path()) };
        Ok(Self {
            weight_ih: params.get(&format!("weight_ih_{name}"), (gates, input_size), init)?,
            weight_hh: params.get(&format!("weight_hh_{name}"), (gates, hidden_size), init)?,
            bias_ih: params.get(&format!("bias_ih_{name}"), gates, init)?,
            bias_hh: params.get(&format!("bias_hh_{name}"), gates, init)?,
            hidden_size,
            reverse,
            path,
        })
    }

    /// What the input adds to the gates, at all times in one product: `x (..., features)`, the first `features` of the input:
    /// `(..., 4 hidden)`.
    ///
    /// # Errors
    /// More features than the input has.
    pub fn products(&self, x: &Tensor) -> Result<Tensor> {
        let (features, all) = (x.dim(D::Minus1)?, self.weight_ih.dim(1)?);
        let bias = self.bias()?;
        if features == all {
            return ops::linear(x, &self.weight_ih, Some(&bias));
        }
        ops::linear(x, &self.weight_ih.narrow(1, 0, features)?.contiguous()?, Some(&bias))
    }

    /// Both biases, `(4 hidden)`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn bias(&self) -> Result<Tensor> {
        Ok((&self.bias_ih + &self.bias_hh)?)
    }

    /// The matrix `(4 hidden, rest + hidden)` for the inputs after the first `features` and the state before, which are known
    /// only step by step.
    ///
    /// # Errors
    /// More features than the input has.
    pub fn recurrent(&self, features: usize) -> Result<ops::RepeatedLinear> {
        let all = self.weight_ih.dim(1)?;
        if features > all {
            return Err(Error::request(format!("the cell's input has fewer than {features} features")));
        }
        let fed = self.weight_ih.narrow(1, features, all - features)?;
        ops::RepeatedLinear::new(&Tensor::cat(&[&fed, &self.weight_hh], 1)?)
    }

    /// The state of nothing read.
    ///
    /// # Errors
    /// Memory runs out.
    pub fn empty(&self, batch: usize) -> Result<LstmState> {
        let like = &self.weight_hh;
        Ok(LstmState(Tensor::zeros((batch, 2, self.hidden_size), like.dtype(), like.device())?))
    }

    /// The path at which a probe sees the gates, such as `encoder.l0_reverse`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// All times of one batch. `products (batch, time, 4 hidden)` come from [`LstmCell::products`] of the whole input;
    /// `present (batch, time, 1)` is 1 at a token and 0 at padding, which changes no state and is answered by zeros.
    /// Returns `(batch, time, hidden)` and the state at the end. A probe that wants gates sees `(batch, time, 4, hidden)`:
    /// i, f, g and o after their activations.
    fn forward(
        &self,
        products: &Tensor,
        present: Option<&Tensor>,
        state: LstmState,
        probe: &mut dyn Probe,
    ) -> Result<(Tensor, LstmState)> {
        let time = products.dim(1)?;
        let steps = split(products)?; // time times (batch, 4 hidden)
        let each = present.map(split).transpose()?; // time times (batch, 1)
        let watched = probe.wants(&self.path, Quantity::Gate);
        let recurrent = ops::RepeatedLinear::new(&self.weight_hh)?;
        let mut state = state;
        let (mut said, mut gates) = (Vec::with_capacity(time), Vec::new());
        for n in 0..time {
            let at = if self.reverse { time - 1 - n } else { n };
            let raw = ops::add(&steps[at], &recurrent.forward(&state.h()?)?)?; // (batch, 4 hidden)
            if watched {
                gates.push(ops::plain::lstm_gates(&raw.detach())?);
            }
            state = state.step(&raw, each.as_ref().map(|each| &each[at]))?;
            said.push(state.h()?);
        }
        if self.reverse {
            said.reverse();
            gates.reverse();
        }
        if watched {
            probe.observe(&self.path, Quantity::Gate, &Tensor::stack(&gates, 1)?)?; // (batch, time, 4, hidden)
        }
        let said = Tensor::stack(&said, 1)?; // (batch, time, hidden)
        Ok((if let Some(present) = present { said.broadcast_mul(present)? } else { said }, state))
    }
}

/// The slices of dimension 1, in halves of halves: each cut passes its gradient on in a tensor of its own size, which for one
/// cut per step would be as much work as the square of the steps.
pub fn split(x: &Tensor) -> Result<Vec<Tensor>> {
    match x.dim(1)? {
        0 => Ok(Vec::new()),
        1 => Ok(vec![x.squeeze(1)?]),
        time => {
            let half = time / 2;
            let mut steps = split(&x.narrow(1, 0, half)?)?;
            steps.extend(split(&x.narrow(1, half, time - half)?)?);
            Ok(steps)
        }
    }
}

/// Layers of [`LstmCell`]s, as `torch.nn.LSTM` with `batch_first`.
#[derive(Clone, Debug)]
pub struct Lstm {
    cells: Vec<LstmCell>,
    config: LstmConfig,
}

impl Lstm {
    /// The net below `params`.
    ///
    /// # Errors
    /// A missing or misshapen parameter.
    pub fn new(params: &Params, config: LstmConfig) -> Result<Self> {
        let directions = if config.bidirectional { 2 } else { 1 };
        let mut cells = Vec::with_capacity(config.num_layers * directions);
        for layer in 0..config.num_layers {
            let input = if layer == 0 { config.input_size } else { config.hidden_size * directions };
            for reverse in [false, true].into_iter().take(directions) {
                cells.push(LstmCell::new(params, layer, reverse, input, config.hidden_size)?);
            }
        }
        Ok(Self { cells, config })
    }

    /// The cells: layer by layer, forwards before backwards.
    pub fn cells(&self) -> &[LstmCell] {
        &self.cells
    }

    /// The states of nothing read, one for each cell.
    ///
    /// # Errors
    /// Memory runs out.
    pub fn empty(&self, batch: usize) -> Result<Vec<LstmState>> {
        self.cells.iter().map(|cell| cell.empty(batch)).collect()
    }

    /// `x (batch, time, input_size)`, `mask (batch, time)` of type u32, 1 at a token and 0 at padding, which must stand at the
    /// end: `(batch, time, directions * hidden_size)`, zero at padding, and the states of the cells after each row's last
    /// token (in the reverse direction its first). `states` are those before, of nothing read unless given. A probe sees the
    /// gates at [`LstmCell::path`], `(batch, time, 4, hidden_size)`.
    ///
    /// # Errors
    /// No time, or shapes that do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        states: Option<Vec<LstmState>>,
        probe: &mut dyn Probe,
    ) -> Result<(Tensor, Vec<LstmState>)> {
        let (batch, time, _) = x.dims3()?;
        if time == 0 {
            return Err(Error::request("an LSTM was given no time step"));
        }
        let present = mask.map(|mask| mask.to_dtype(x.dtype())?.unsqueeze(2)).transpose()?; // (batch, time, 1)
        let states = match states {
            Some(states) if states.len() == self.cells.len() => states,
            Some(states) => {
                return Err(Error::request(format!("{} states do not fit {} cells", states.len(), self.cells.len())));
            }
            None => self.empty(batch)?,
        };
        let directions = if self.config.bidirectional { 2 } else { 1 };
        let (mut x, mut ends, mut states) = (x.clone(), Vec::with_capacity(self.cells.len()), states.into_iter());
        for layer in self.cells.chunks(directions) {
            let mut said = Vec::with_capacity(directions);
            for (cell, state) in layer.iter().zip(states.by_ref()) {
                let products = cell.products(&x)?; // (batch, time, 4 hidden)
                let (y, end) = cell.forward(&products, present.as_ref(), state, probe)?;
                said.push(y);
                ends.push(end);
            }
            x = if directions == 1 { said.swap_remove(0) } else { Tensor::cat(&said, D::Minus1)? };
        }
        Ok((x, ends))
    }
}
