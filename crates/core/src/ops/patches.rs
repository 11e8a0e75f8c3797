//! Convolution and table look-up where no kernel of ours runs, as on a GPU: made of gathers and one large matrix product
//! each, backwards too.
//!
//! The tensor library's own gradients of a gather add row after row in one thread per column, which would take most of a
//! training step.

use super::Conv2dSpec;
use crate::custom_gradient::with_gradient;
use crate::{DType, Result, Tensor};

/// Whether [`conv2d`] takes these: one group, and no more padding than the kernel can reach over.
pub(super) fn fits(weight: &Tensor, spec: Conv2dSpec) -> Result<bool> {
    let (_, _, kernel_h, kernel_w) = weight.dims4()?;
    let Conv2dSpec { padding: [top, bottom, left, right], dilation: [dh, dw], groups, .. } = spec;
    let (reach_h, reach_w) = (dh * (kernel_h - 1), dw * (kernel_w - 1));
    Ok(groups == 1 && top.max(bottom) <= reach_h && left.max(right) <= reach_w)
}

/// As [`super::conv2d`], for checked shapes that [`fits`] accepts: all patches of the input become the rows of a matrix ("High
/// Performance Convolutional Neural Networks for Document Processing", Chellapilla et al. 2006). They are gathered again
/// in the backward pass rather than kept: they are as many times the input as the kernel has taps.
pub(super) fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
    let y = product(&x.detach(), &weight.detach(), spec)?;
    let y = with_gradient(&[x, weight], y, move |inputs, gradient| {
        let (x, weight) = (inputs[0], inputs[1]);
        let gradient = gradient.detach();
        let gx = x.track_op().then(|| input_gradient(&gradient, &weight.detach(), x.dims(), spec)).transpose();
        let gw = weight.track_op().then(|| weight_gradient(&x.detach(), &gradient, weight.dims(), spec)).transpose();
        Ok(vec![gx.map_err(candle_core::Error::wrap)?, gw.map_err(candle_core::Error::wrap)?])
    })?;
    match bias {
        Some(bias) => Ok(y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?),
        None => Ok(y),
    }
}

/// Output height and width.
fn output_size(height: usize, width: usize, kernel: [usize; 2], spec: Conv2dSpec) -> [usize; 2] {
    let Conv2dSpec { stride: [sh, sw], padding: [top, bottom, left, right], dilation: [dh, dw], .. } = spec;
    let size = |n: usize, padding: usize, dilation: usize, kernel: usize, stride: usize| {
        (n + padding - dilation * (kernel - 1) - 1) / stride + 1
    };
    [size(height, top + bottom, dh, kernel[0], sh), size(width, left + right, dw, kernel[1], sw)]
}

/// The patches of `x (batch, channels, height, width)`: `(batch * out_h * out_w, kernel_h * kernel_w * channels)`.
fn patches(x: &Tensor, kernel: [usize; 2], spec: Conv2dSpec) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let Conv2dSpec { stride: [sh, sw], padding: [top, _, left, _], dilation: [dh, dw], .. } = spec;
    let [out_h, out_w] = output_size(height, width, kernel, spec);
    let pixels = x.reshape((batch, channels, height * width))?;
    if kernel == [1, 1] && spec.stride == [1, 1] {
        return Ok(pixels.transpose(1, 2)?.reshape((batch * height * width, channels))?);
    }
    // One more pixel, of zeros: what lies in the padding.
    let outside = height * width;
    let place = |i: usize, tap: usize, stride: usize, dilation: usize, padding: usize, size: usize| {
        (i * stride + tap * dilation).checked_sub(padding).filter(|place| *place < size)
    };
    let mut places = Vec::with_capacity(out_h * out_w * kernel[0] * kernel[1]);
    for i in 0..out_h {
        for j in 0..out_w {
            for tap_i in 0..kernel[0] {
                for tap_j in 0..kernel[1] {
                    let row = place(i, tap_i, sh, dh, top, height);
                    let column = place(j, tap_j, sw, dw, left, width);
                    let pixel = row.zip(column).map_or(outside, |(row, column)| row * width + column);
                    places.push(pixel as u32);
                }
            }
        }
    }
    let pixels = pixels.pad_with_zeros(2, 0, 1)?.transpose(1, 2)?.contiguous()?; // (batch, pixels, channels)
    let places = Tensor::new(places, x.device())?;
    Ok(pixels.index_select(&places, 1)?.reshape((batch * out_h * out_w, kernel[0] * kernel[1] * channels))?)
}

/// Convolution without bias: `x (batch, in_channels, height, width)`, `weight (out_channels, in_channels, kernel_h, kernel_w)`.
fn product(x: &Tensor, weight: &Tensor, spec: Conv2dSpec) -> Result<Tensor> {
    let (batch, _, height, width) = x.dims4()?;
    let (out_channels, in_channels, kernel_h, kernel_w) = weight.dims4()?;
    let [out_h, out_w] = output_size(height, width, [kernel_h, kernel_w], spec);
    let rows = weight.permute((0, 2, 3, 1))?.reshape((out_channels, kernel_h * kernel_w * in_channels))?;
    let y = patches(x, [kernel_h, kernel_w], spec)?.matmul(&rows.t()?)?; // (batch * out_h * out_w, out_channels)
    Ok(y.reshape((batch, out_h, out_w, out_channels))?.permute((0, 3, 1, 2))?)
}

/// The gradient by the input of shape `dims`: the output's gradient, spread by the stride, convolved with the flipped kernel.
fn input_gradient(gy: &Tensor, weight: &Tensor, dims: &[usize], spec: Conv2dSpec) -> Result<Tensor> {
    let (_, _, kernel_h, kernel_w) = weight.dims4()?;
    let Conv2dSpec { stride: [sh, sw], padding: [top, _, left, _], dilation: [dh, dw], .. } = spec;
    let spread = spread(gy, [sh, sw])?;
    let (_, _, height, width) = spread.dims4()?;
    // Before the first row lie as many as the kernel reaches over less the padding; after the last, as many as make up `dims`.
    let before = [dh * (kernel_h - 1) - top, dw * (kernel_w - 1) - left];
    let after = [dims[2] + top - height, dims[3] + left - width];
    let flip = |n: usize| Tensor::new((0..n as u32).rev().collect::<Vec<_>>(), gy.device());
    let flipped = weight.contiguous()?.index_select(&flip(kernel_h)?, 2)?.index_select(&flip(kernel_w)?, 3)?;
    let spec = Conv2dSpec {
        stride: [1; 2],
        padding: [before[0], after[0], before[1], after[1]],
        dilation: spec.dilation,
        groups: 1,
    };
    product(&spread, &flipped.transpose(0, 1)?, spec)
}

/// `x (batch, channels, height, width)` with `stride - 1` zeros between neighbours.
fn spread(x: &Tensor, [sh, sw]: [usize; 2]) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if [sh, sw] == [1, 1] {
        return Ok(x.clone());
    }
    Ok(x.reshape((batch, channels, height, 1, width, 1))?
        .pad_with_zeros(3, 0, sh - 1)?
        .pad_with_zeros(5, 0, sw - 1)?
        .reshape((batch, channels, height * sh, width * sw))?
        .narrow(2, 0, (height - 1) * sh + 1)?
        .narrow(3, 0, (width - 1) * sw + 1)?
        .contiguous()?)
}

/// The gradient by the weight of shape `dims`.
fn weight_gradient(x: &Tensor, gy: &Tensor, dims: &[usize], spec: Conv2dSpec) -> Result<Tensor> {
    let [out_channels, in_channels, kernel_h, kernel_w] = [dims[0], dims[1], dims[2], dims[3]];
    let patches = patches(x, [kernel_h, kernel_w], spec)?; // (batch * out_h * out_w, kernel_h * kernel_w * in_channels)
    let gy = gy.transpose(0, 1)?.reshape((out_channels, patches.dim(0)?))?;
    let rows = gy.matmul(&patches)?.reshape((out_channels, kernel_h, kernel_w, in_channels))?;
    Ok(rows.permute((0, 3, 1, 2))?.contiguous()?)
}

/// Elements of the matrix that says which row of the table a position reads, at most: 512 MiB in f32.
const CHOICES: usize = 1 << 27;

/// As [`super::embedding`]. The gradient of the table is a product with the matrix that has a one where a position (row) reads
/// a row of the table (column), in as many parts of the table as keep that matrix small.
pub(super) fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (vocabulary, features) = table.dims2()?;
    let shape = [ids.dims(), &[features]].concat();
    let ids = ids.flatten_all()?;
    let rows = table.detach().index_select(&ids, 0)?;
    let rows = with_gradient(&[table], rows, move |_, gradient| {
        let gradient = gradient.detach();
        let count = ids.elem_count();
        let part = (CHOICES / count.max(1)).clamp(1, vocabulary);
        let mut parts = Vec::with_capacity(vocabulary.div_ceil(part));
        for first in (0..vocabulary).step_by(part) {
            let last = vocabulary.min(first + part);
            let candidates = Tensor::arange(first as u32, last as u32, ids.device())?;
            let choices = ids.reshape((count, 1))?.broadcast_eq(&candidates.reshape((1, last - first))?)?;
            parts.push(choices.to_dtype(gradient.dtype())?.t()?.matmul(&gradient)?);
        }
        Ok(vec![Some(Tensor::cat(&parts, 0)?)])
    })?;
    Ok(rows.reshape(shape)?)
}

/// Whether [`embedding`] takes these.
pub(super) fn can_look_up(ids: &Tensor, table: &Tensor) -> bool {
    ids.dtype() == DType::U32 && ids.elem_count() > 0 && table.is_contiguous() && table.dtype().is_float()
}
