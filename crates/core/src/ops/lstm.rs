//! One step of a long short-term memory (Hochreiter & Schmidhuber 1997). In ordinary operations it is some
//! twenty of them, on small tensors.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
use crate::{DType, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::lstm as kernel;

/// The next state `(batch, 2, hidden)`, `h` and `c`, from the one before and `raw (batch, 4 hidden)`, what input and state add
/// up to in the gates i, f, g and o:
///
/// ```text
/// c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
/// ```
///
/// Where `present (batch, 1)` is 0 the state stays what it was; elsewhere it is 1.
///
/// # Errors
/// The shapes do not fit.
pub fn lstm_step(raw: &Tensor, state: &Tensor, present: Option<&Tensor>) -> Result<Tensor> {
    let (batch, two, hidden) = state.dims3()?;
    let fits =
        two == 2 && raw.dims() == [batch, 4 * hidden] && present.is_none_or(|present| present.dims() == [batch, 1]);
    if !fits {
        let (raw, state, present) = (raw.shape(), state.shape(), present.map(Tensor::shape));
        return Err(Error::request(format!("lstm_step: {raw:?}, a state {state:?} and a mask {present:?} do not fit")));
    }
    if !on_cpu_in_f32(&[raw, state]) {
        return plain::lstm_step(raw, state, present);
    }
    let present = match present {
        Some(present) => {
            let rows = present.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Some(rows.into_iter().map(|row| row != 0.0).collect())
        }
        None => None,
    };
    Ok(raw.contiguous()?.apply_op2(&state.contiguous()?, Step { hidden, present })?)
}

struct Step {
    hidden: usize,
    present: Option<Vec<bool>>,
}

impl CustomOp2 for Step {
    fn name(&self) -> &'static str {
        "lstm-step"
    }

    fn cpu_fwd(
        &self,
        raw: &CpuStorage,
        raw_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (raw, state) = (contiguous(raw, raw_layout)?, contiguous(state, state_layout)?);
        let mut out = zeros(state.len());
        kernel::step(raw, state, self.hidden, self.present.as_deref(), &mut out);
        Ok((CpuStorage::F32(out), state_layout.shape().clone()))
    }

    fn bwd(
        &self,
        raw: &Tensor,
        state: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut d_raw, mut d_state) = (zeros(raw.elem_count()), zeros(state.elem_count()));
        let mut differentiate = |raw: &[f32], state: &[f32], d_out: &[f32]| {
            let present = self.present.as_deref();
            kernel::step_backward(raw, state, self.hidden, present, d_out, &mut d_raw, &mut d_state);
            Ok(())
        };
        with_slice(raw, |raw| with_slice(state, |state| with_slice(d_out, |d_out| differentiate(raw, state, d_out))))?;
        let to = |data: Vec<f32>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        Ok((Some(to(d_raw, raw)?), Some(to(d_state, state)?)))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{Result, Tensor};

    /// Plain twin of [`super::lstm_step`].
    pub fn lstm_step(raw: &Tensor, state: &Tensor, present: Option<&Tensor>) -> Result<Tensor> {
        let gates = lstm_gates(raw)?;
        let gate = |n: usize| gates.narrow(1, n, 1)?.squeeze(1);
        let (i, f, g, o) = (gate(0)?, gate(1)?, gate(2)?, gate(3)?); // (batch, hidden)
        let c = ((f * state.narrow(1, 1, 1)?.squeeze(1)?)? + (i * g)?)?;
        let next = Tensor::stack(&[(o * c.tanh()?)?, c], 1)?; // (batch, 2, hidden)
        match present {
            Some(present) => {
                let present = present.to_dtype(state.dtype())?.unsqueeze(2)?; // (batch, 1, 1)
                Ok((state + (next - state)?.broadcast_mul(&present)?)?)
            }
            None => Ok(next),
        }
    }

    /// The gates i, f, g and o after their activations, `(batch, 4, hidden)`, of `raw (batch, 4 hidden)`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn lstm_gates(raw: &Tensor) -> Result<Tensor> {
        let (batch, all) = raw.dims2()?;
        let raw = raw.reshape((batch, 4, all / 4))?;
        // sigmoid(x) = (1 + tanh(x / 2)) / 2: one activation for all four.
        let halves = [0.5f32, 0.5, 1.0, 0.5];
        let column = |values: &[f32; 4]| Tensor::new(values, raw.device())?.to_dtype(raw.dtype())?.reshape((1, 4, 1));
        let (factor, offset) = (column(&halves)?, column(&halves.map(|half| 1.0 - half))?);
        Ok(raw.broadcast_mul(&factor)?.tanh()?.broadcast_mul(&factor)?.broadcast_add(&offset)?)
    }
}
