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

/// What a cell remembers.
#[derive(Clone, Debug)]
pub struct LstmState {
    /// What it says, `(batch, hidden_size)`.
    pub h: Tensor,
    /// What it keeps, `(batch, hidden_size)`.
    pub c: Tensor,
}

impl LstmState {
    /// These rows of the batch, in this order.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        Ok(Self { h: self.h.contiguous()?.index_select(rows, 0)?, c: self.c.contiguous()?.index_select(rows, 0)? })
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
    pub fn recurrent(&self, features: usize) -> Result<Tensor> {
        let rest = self.weight_ih.dim(1)?.checked_sub(features);
        match rest {
            Some(0) => Ok(self.weight_hh.clone()),
            Some(rest) => {
                let fed = self.weight_ih.narrow(1, features, rest)?;
                Ok(Tensor::cat(&[&fed, &self.weight_hh], 1)?.contiguous()?)
            }
            None => Err(Error::request(format!("the cell's input has fewer than {features} features"))),
        }
    }

    /// The state of nothing read.
    ///
    /// # Errors
    /// Memory runs out.
    pub fn empty(&self, batch: usize) -> Result<LstmState> {
        let zeros = Tensor::zeros((batch, self.hidden_size), self.weight_hh.dtype(), self.weight_hh.device())?;
        Ok(LstmState { h: zeros.clone(), c: zeros })
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
        let present = present.map(split).transpose()?; // time times (batch, 1)
        let watched = probe.wants(&self.path, Quantity::Gate);
        let mut state = state;
        let (mut said, mut gates) = (Vec::with_capacity(time), Vec::new());
        for n in 0..time {
            let at = if self.reverse { time - 1 - n } else { n };
            let raw = ops::add(&steps[at], &ops::linear(&state.h, &self.weight_hh, None)?)?; // (batch, 4 hidden)
            let (next, open) = step(&raw, &state.c)?;
            if watched {
                gates.push(open.detach());
            }
            match present.as_ref().map(|present| &present[at]) {
                Some(here) => {
                    let kept = |old: &Tensor, new: &Tensor| old + (new - old)?.broadcast_mul(here)?;
                    said.push(next.h.broadcast_mul(here)?);
                    state = LstmState { h: kept(&state.h, &next.h)?, c: kept(&state.c, &next.c)? };
                }
                None => {
                    said.push(next.h.clone());
                    state = next;
                }
            }
        }
        if self.reverse {
            said.reverse();
            gates.reverse();
        }
        if watched {
            probe.observe(&self.path, Quantity::Gate, &Tensor::stack(&gates, 1)?)?; // (batch, time, 4, hidden)
        }
        Ok((Tensor::stack(&said, 1)?, state)) // (batch, time, hidden)
    }
}

/// The equations: `raw (batch, 4 hidden)`, what input and state add up to, and `c (batch, hidden)`: the next state, and the
/// gates `(batch, 4, hidden)`.
///
/// # Errors
/// Shapes that do not fit.
pub fn step(raw: &Tensor, c: &Tensor) -> Result<(LstmState, Tensor)> {
    let (batch, hidden) = c.dims2()?;
    let raw = raw.reshape((batch, 4, hidden))?;
    // sigmoid(x) = (1 + tanh(x / 2)) / 2: one activation for all four.
    let halves = [0.5f32, 0.5, 1.0, 0.5];
    let factor = Tensor::new(&halves, c.device())?.to_dtype(c.dtype())?.reshape((1, 4, 1))?;
    let offset = Tensor::new(&halves.map(|half| 1.0 - half), c.device())?.to_dtype(c.dtype())?.reshape((1, 4, 1))?;
    let gates = raw.broadcast_mul(&factor)?.tanh()?.broadcast_mul(&factor)?.broadcast_add(&offset)?; // (batch, 4, hidden)
    let gate = |n: usize| gates.narrow(1, n, 1)?.squeeze(1);
    let (i, f, g, o) = (gate(0)?, gate(1)?, gate(2)?, gate(3)?); // (batch, hidden)
    let c = ((f * c)? + (i * g)?)?;
    let h = (o * c.tanh()?)?;
    Ok((LstmState { h, c }, gates))
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
