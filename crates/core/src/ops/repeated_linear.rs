//! A matrix that a recurrent net uses at each step. The gradient of [`super::linear`] by its weight is a matrix of the weight's
//! size for each step, which are then added. Here the backward pass keeps what each step read and was told, and makes one product
//! of all steps when the first step is done: a tenth less time for an update of LSTMs with attention, in batches of 64.

use super::matmul::{Linear, Product, row_stride};
use super::slices::{contiguous, on_cpu_in_f32, with_storage};
use crate::{D, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape};
use std::sync::{Arc, Mutex, PoisonError};

/// What steps read, `(rows, in_features)`, and the gradients of what they said, `(rows, out_features)`.
type Steps = Arc<Mutex<Vec<(Tensor, Tensor)>>>;

/// A weight for many calls of [`RepeatedLinear::forward`].
#[derive(Clone, Debug)]
pub struct RepeatedLinear {
    weight: Tensor,
    /// Whose gradient, a number that means nothing, every step has a part in, so that it comes after all of them; and the steps.
    collected: Option<(Tensor, Steps)>,
}

impl RepeatedLinear {
    /// Of `weight (out_features, in_features)`.
    ///
    /// # Errors
    /// It is no matrix.
    pub fn new(weight: &Tensor) -> Result<Self> {
        weight.dims2()?;
        if !on_cpu_in_f32(&[weight]) || !weight.track_op() {
            return Ok(Self { weight: weight.clone(), collected: None });
        }
        let (weight, steps) = (weight.contiguous()?, Steps::default());
        let token = weight.apply_op1(Collected(steps.clone()))?;
        Ok(Self { weight: weight.detach(), collected: Some((token, steps)) })
    }

    /// `x (..., in_features)` times the weight transposed: `(..., out_features)`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.collected {
            Some((token, steps)) if on_cpu_in_f32(&[x]) => {
                let in_features = self.weight.dim(1)?;
                if x.rank() == 0 || x.dim(D::Minus1)? != in_features {
                    let (x, weight) = (x.dims(), self.weight.dims());
                    return Err(Error::request(format!("linear: input {x:?} does not fit weight {weight:?}")));
                }
                let x = if row_stride(x.layout()).is_some() { x.clone() } else { x.contiguous()? };
                Ok(x.apply_op2(token, Step { weight: self.weight.clone(), steps: steps.clone() })?)
            }
            _ => super::linear(x, &self.weight, None),
        }
    }
}

/// The weight, as something that is differentiated after all steps.
struct Collected(Steps);

impl CustomOp1 for Collected {
    fn name(&self) -> &'static str {
        "repeated-linear weight"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), 1.into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let steps = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if steps.is_empty() {
            return Ok(None);
        }
        let (read, told): (Vec<Tensor>, Vec<Tensor>) = steps.into_iter().unzip();
        Ok(Some(Tensor::cat(&told, 0)?.t()?.apply_op2(&Tensor::cat(&read, 0)?, Product)?))
    }
}

struct Step {
    weight: Tensor,
    steps: Steps,
}

impl CustomOp2 for Step {
    fn name(&self) -> &'static str {
        "repeated-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        token: &CpuStorage,
        token_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        contiguous(token, token_layout)?;
        with_storage(&self.weight, |weight, layout| Linear::forward((x, x_layout), (weight, layout), None))
    }

    fn bwd(
        &self,
        x: &Tensor,
        token: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, k) = self.weight.dims2()?;
        let rows = x.elem_count() / k.max(1);
        let g = g.reshape((rows, n))?;
        let gx = if x.track_op() { Some(g.apply_op2(&self.weight, Product)?.reshape(x.dims())?) } else { None };
        let read = x.detach().reshape((rows, k))?;
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push((read, g));
        Ok((gx, Some(token.zeros_like()?)))
    }
}
