//! Products with, and rows of, matrices that are stored in GGML's block formats. Gradients do not pass through them.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
use crate::weights::Quantized;
use crate::{D, DType, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::quantized::{dequantize, product};

/// `x (..., in_features)` times `weight (out_features, in_features)` transposed, plus `bias (out_features)`:
/// `(..., out_features)`. On a CPU in f32 the blocks are read where they lie, elsewhere they are made floats first.
///
/// # Errors
/// Shapes do not fit. Backpropagation through the result fails and says so.
pub fn quantized_linear(x: &Tensor, weight: &Quantized, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = (weight.rows(), weight.columns());
    if x.rank() == 0 || x.dim(D::Minus1)? != in_features || bias.is_some_and(|bias| bias.dims() != [out_features]) {
        return Err(Error::request(format!(
            "linear: input {:?} and bias {:?} do not fit weight {:?}",
            x.dims(),
            bias.map(|bias| bias.dims()),
            [out_features, in_features]
        )));
    }
    if !on_cpu_in_f32(&[x]) || bias.is_some_and(|bias| !on_cpu_in_f32(&[bias])) {
        return plain::quantized_linear(x, weight, bias);
    }
    let op = Linear { weight: weight.clone(), bias: bias.cloned() };
    Ok(x.contiguous()?.apply_op1(op)?)
}

/// Rows of `table (vocabulary, features)` for `ids (...)` of type u32 on a CPU: `(..., features)` in f32. No other row is read.
///
/// # Errors
/// An id beyond the table.
pub fn quantized_embedding(ids: &Tensor, table: &Quantized) -> Result<Tensor> {
    let (vocabulary, features) = (table.rows(), table.columns());
    let mut shape = ids.dims().to_vec();
    shape.push(features);
    let wanted = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if let Some(id) = wanted.iter().find(|id| **id as usize >= vocabulary) {
        return Err(Error::request(format!("embedding: id {id} is beyond the table of {vocabulary} rows")));
    }
    let mut out = zeros(wanted.len() * features);
    if features > 0 {
        for (id, out) in wanted.iter().zip(out.chunks_exact_mut(features)) {
            dequantize(table.format(), table.row(*id as usize), out);
        }
    }
    Ok(Tensor::from_vec(out, shape, ids.device())?)
}

/// `x weight^T`, with or without a bias.
struct Linear {
    weight: Quantized,
    bias: Option<Tensor>,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear with quantised weights"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n, k) = (self.weight.rows(), self.weight.columns());
        let mut shape = layout.dims().to_vec();
        *shape.last_mut().expect("checked to have a last dimension") = n;
        let m = layout.dims()[..shape.len() - 1].iter().product();
        let mut out = product(self.weight.format(), self.weight.bytes(), n, k, contiguous(x, layout)?, m);
        if let Some(bias) = &self.bias {
            with_slice(bias, |bias| {
                for row in out.chunks_exact_mut(n.max(1)) {
                    row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                }
                Ok(())
            })?;
        }
        Ok((CpuStorage::F32(out), shape.into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let format = self.weight.format();
        candle_core::bail!(
            "gradients do not pass through weights in {format} blocks; train a model whose weights are floats, from \
             safetensors, or load this one with trainable parameters"
        )
    }
}

/// Plain twins.
pub mod plain {
    use crate::weights::Quantized;
    use crate::{Result, Tensor};

    /// Plain twin of [`super::quantized_linear`].
    pub fn quantized_linear(x: &Tensor, weight: &Quantized, bias: Option<&Tensor>) -> Result<Tensor> {
        let weight = weight.dequantize()?.to_dtype(x.dtype())?.to_device(x.device())?;
        crate::ops::plain::linear(x, &weight, bias)
    }

    /// Plain twin of [`super::quantized_embedding`].
    pub fn quantized_embedding(ids: &Tensor, table: &Quantized) -> Result<Tensor> {
        crate::ops::plain::embedding(ids, &table.dequantize()?.to_device(ids.device())?)
    }
}
