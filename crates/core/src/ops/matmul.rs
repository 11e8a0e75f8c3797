//! Matrix products.

use super::slices::{contiguous, from_first, on_cpu_in_f32};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{D, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape};
use conjure_kernels::elementwise::sum_rows;
use conjure_kernels::fresh::zeros;
use conjure_kernels::gemm::{Matrices, Start, product};

/// Batched product of `a (..., m, k)` and `b (..., k, n)`: `(..., m, n)`. Leading dimensions must be equal.
///
/// # Errors
/// Shapes do not fit.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let fits = match (a.dims(), b.dims()) {
        ([a_batch @ .., _, a_k], [b_batch @ .., b_k, _]) => a_batch == b_batch && a_k == b_k,
        _ => false,
    };
    if !fits {
        return Err(Error::request(format!("matmul: shapes {:?} and {:?} do not fit", a.dims(), b.dims())));
    }
    if !on_cpu_in_f32(&[a, b]) {
        return plain::matmul(a, b);
    }
    Ok(a.apply_op2(b, Product)?)
}

/// `x (..., in_features)` times `weight (out_features, in_features)` transposed, plus `bias (out_features)`:
/// `(..., out_features)`.
///
/// # Errors
/// Shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    if x.rank() == 0 || x.dim(D::Minus1)? != in_features || bias.is_some_and(|bias| bias.dims() != [out_features]) {
        return Err(Error::request(format!(
            "linear: input {:?} and bias {:?} do not fit weight {:?}",
            x.dims(),
            bias.map(|bias| bias.dims()),
            weight.dims()
        )));
    }
    #[cfg(feature = "cuda")]
    if let Some(bias) = bias.filter(|bias| cuda::takes(&[x, weight, bias])) {
        return cuda::linear(x, weight, bias);
    }
    if !on_cpu_in_f32(&[x, weight]) || bias.is_some_and(|bias| !on_cpu_in_f32(&[bias])) {
        return plain::linear(x, weight, bias);
    }
    let x = if row_stride(x.layout()).is_some() { x.clone() } else { x.contiguous()? };
    Ok(match bias {
        Some(bias) => x.apply_op3(weight, &bias.contiguous()?, Linear)?,
        None => x.apply_op2(weight, Linear)?,
    })
}

/// The product of two equally long batches of matrices.
pub(super) struct Product;

/// A matrix, or one for each index of the leading dimensions, wherever strides put it.
struct Operand {
    offsets: Vec<usize>,
    rows: usize,
    columns: usize,
    strides: [usize; 2],
}

impl Operand {
    fn new(layout: &Layout) -> Self {
        let (dims, strides) = (layout.dims(), layout.stride());
        let leading = dims.len() - 2;
        let mut offsets = vec![0];
        for (size, stride) in dims.iter().zip(strides).take(leading) {
            offsets = offsets.iter().flat_map(|offset| (0..*size).map(move |i| offset + i * stride)).collect();
        }
        Self {
            offsets,
            rows: dims[leading],
            columns: dims[leading + 1],
            strides: [strides[leading], strides[leading + 1]],
        }
    }

    fn of<'a>(&'a self, data: &'a [f32]) -> Matrices<'a> {
        Matrices { data, offsets: &self.offsets, row_stride: self.strides[0], column_stride: self.strides[1] }
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (left, right) = (Operand::new(a_layout), Operand::new(b_layout));
        let (a, b) = (from_first(a, a_layout)?, from_first(b, b_layout)?);
        let (m, n, k) = (left.rows, right.columns, left.columns);
        let out = product(m, n, k, left.of(a), right.of(b), Start::Zero);
        let mut shape = a_layout.dims().to_vec();
        *shape.last_mut().expect("a matrix has two dimensions") = n;
        Ok((CpuStorage::F32(out), shape.into()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let ga = if a.track_op() { Some(g.apply_op2(&b.t()?, Product)?) } else { None };
        let gb = if b.track_op() { Some(a.t()?.apply_op2(g, Product)?) } else { None };
        Ok((ga, gb))
    }
}

/// The distance between consecutive rows, if the tensor is a matrix `(leading dimensions, last dimension)` with one.
pub(super) fn row_stride(layout: &Layout) -> Option<usize> {
    let leading = layout.dims().len().checked_sub(1)?;
    let mut rows = layout.dims()[..leading].iter().zip(layout.stride()).filter(|(size, _)| **size != 1).rev();
    let Some((size, row_stride)) = rows.next() else { return Some(0) };
    let mut reach = size * row_stride;
    for (size, stride) in rows {
        if *stride != reach {
            return None;
        }
        reach *= size;
    }
    Some(*row_stride)
}

/// `x weight^T`, with or without a bias.
pub(super) struct Linear;

impl Linear {
    pub(super) fn forward(
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let ((x, x_layout), (weight, weight_layout)) = (x, weight);
        let (n, k) = weight_layout.shape().dims2()?;
        let mut shape = x_layout.dims().to_vec();
        let last = shape.last_mut().expect("checked to have a last dimension");
        *last = n;
        let m = x_layout.dims()[..x_layout.dims().len() - 1].iter().product();
        let Some(row_stride) = row_stride(x_layout) else {
            candle_core::bail!("linear: the rows of the input are not evenly spaced")
        };
        let column_stride = *x_layout.stride().last().expect("checked to have a last dimension");
        let x = Matrices { data: from_first(x, x_layout)?, offsets: &[0], row_stride, column_stride };
        let weight = Matrices {
            data: from_first(weight, weight_layout)?,
            offsets: &[0],
            row_stride: weight_layout.stride()[0],
            column_stride: weight_layout.stride()[1],
        };
        let out = product(m, n, k, x, weight.transposed(), bias.map_or(Start::Zero, Start::Columns));
        Ok((CpuStorage::F32(out), shape.into()))
    }

    /// Gradients by input and weight, and that of the output as a matrix.
    fn backward(
        x: &Tensor,
        weight: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Tensor)> {
        let (n, k) = weight.dims2()?;
        let rows = x.elem_count() / k.max(1);
        let g = g.reshape((rows, n))?;
        let gx = if x.track_op() { Some(g.apply_op2(weight, Product)?.reshape(x.dims())?) } else { None };
        let gw = if weight.track_op() { Some(g.t()?.apply_op2(&x.reshape((rows, k))?, Product)?) } else { None };
        Ok((gx, gw, g))
    }
}

/// `(rows, n)` to `(n)`.
struct RowSums;

impl CustomOp1 for RowSums {
    fn name(&self) -> &'static str {
        "linear bias gradient"
    }

    fn cpu_fwd(&self, g: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let n = layout.shape().dims2()?.1;
        let mut sums = zeros(n);
        sum_rows(contiguous(g, layout)?, &mut sums);
        Ok((CpuStorage::F32(sums), n.into()))
    }

    fn bwd(&self, g: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(dy.broadcast_as(g.shape())?))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Self::forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (gx, gw, _) = Self::backward(x, weight, g)?;
        Ok((gx, gw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Self::forward((x, x_layout), (weight, weight_layout), Some(contiguous(bias, bias_layout)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (gx, gw, g) = Self::backward(x, weight, g)?;
        let gb = if bias.track_op() { Some(g.contiguous()?.apply_op1(RowSums)?) } else { None };
        Ok((gx, gw, gb))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::matmul`].
    pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.contiguous()?.matmul(&b.contiguous()?)?)
    }

    /// Plain twin of [`super::linear`].
    pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let mut out_shape = x.dims().to_vec();
        let in_features = x.dim(D::Minus1)?;
        let out_features = weight.dim(0)?;
        *out_shape.last_mut().expect("dim(-1) succeeded, so there is a last dimension") = out_features;
        let rows = x.elem_count() / in_features.max(1);
        let y = x.reshape((rows, in_features))?.matmul(&weight.t()?)?; // (rows, out_features)
        let y = match bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape(out_shape)?)
    }
}
