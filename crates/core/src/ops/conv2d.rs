//! Two-dimensional convolution (cross-correlation, as in every deep-learning library).

use crate::{Result, Tensor};

/// Geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dSpec {
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Zero padding: top, bottom, left, right.
    pub padding: [usize; 4],
    /// Vertical and horizontal dilation.
    pub dilation: [usize; 2],
    /// Number of groups; divides input and output channels.
    pub groups: usize,
}

impl Conv2dSpec {
    /// Stride `stride` and padding `padding` on every side, no dilation, one group.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride: [stride; 2], padding: [padding; 4], dilation: [1; 2], groups: 1 }
    }
}

/// `x (batch, in_channels, height, width)`, `weight (out_channels, in_channels / groups, kernel_h, kernel_w)`,
/// `bias (out_channels)`: `(batch, out_channels, out_h, out_w)` with
/// `out_h = (height + top + bottom - dilation * (kernel_h - 1) - 1) / stride + 1`.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
    plain::conv2d(x, weight, bias, spec)
}

/// The transpose of [`conv2d`]: `x (batch, in_channels, height, width)`,
/// `weight (in_channels, out_channels / groups, kernel_h, kernel_w)`, `bias (out_channels)`:
/// `(batch, out_channels, out_h, out_w)` with
/// `out_h = (height - 1) * stride - top - bottom + dilation * (kernel_h - 1) + 1`.
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
    plain::conv_transpose2d(x, weight, bias, spec)
}

/// Plain twins.
pub mod plain {
    use super::Conv2dSpec;
    use crate::{D, Error, Result, Tensor};

    fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match bias {
            Some(bias) => Ok(y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?),
            None => Ok(y),
        }
    }

    /// Plain twin of [`super::conv2d`]: shifted, strided views times one kernel tap each, summed.
    pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
        let (batch, in_channels, _, _) = x.dims4()?;
        let (out_channels, group_in, kernel_h, kernel_w) = weight.dims4()?;
        let Conv2dSpec { stride: [sh, sw], padding: [top, bottom, left, right], dilation: [dh, dw], groups } = spec;
        if groups == 0 || in_channels != group_in * groups || out_channels % groups != 0 {
            return Err(Error::request(format!(
                "conv2d: {in_channels} input channels do not fit weight {:?} with {groups} groups",
                weight.dims()
            )));
        }
        let padded = x.pad_with_zeros(D::Minus2, top, bottom)?.pad_with_zeros(D::Minus1, left, right)?;
        let (_, _, height, width) = padded.dims4()?;
        let (span_h, span_w) = (dh * (kernel_h - 1) + 1, dw * (kernel_w - 1) + 1);
        if height < span_h || width < span_w || sh == 0 || sw == 0 {
            return Err(Error::request(format!(
                "conv2d: kernel {kernel_h}x{kernel_w} does not fit a padded input of {height}x{width}"
            )));
        }
        let (out_h, out_w) = ((height - span_h) / sh + 1, (width - span_w) / sw + 1);
        let group_out = out_channels / groups;
        let rows: Vec<u32> = (0..out_h).map(|i| (i * sh) as u32).collect();
        let columns: Vec<u32> = (0..out_w).map(|j| (j * sw) as u32).collect();
        let mut sum: Option<Tensor> = None;
        for i in 0..kernel_h {
            for j in 0..kernel_w {
                let row_index = Tensor::new(rows.iter().map(|r| r + (i * dh) as u32).collect::<Vec<_>>(), x.device())?;
                let column_index =
                    Tensor::new(columns.iter().map(|c| c + (j * dw) as u32).collect::<Vec<_>>(), x.device())?;
                let tap = padded.index_select(&row_index, 2)?.index_select(&column_index, 3)?;
                // (batch, groups, group_in, out_h * out_w)
                let tap = tap.reshape((batch, groups, group_in, out_h * out_w))?;
                let w = weight.narrow(2, i, 1)?.narrow(3, j, 1)?.reshape((1, groups, group_out, group_in))?;
                let term = w.broadcast_as((batch, groups, group_out, group_in))?.contiguous()?.matmul(&tap)?;
                sum = Some(match sum {
                    Some(sum) => (sum + term)?,
                    None => term,
                });
            }
        }
        let y = sum.ok_or_else(|| Error::request("conv2d: empty kernel"))?;
        add_bias(y.reshape((batch, out_channels, out_h, out_w))?, bias)
    }

    /// Plain twin of [`super::conv_transpose2d`]: the input spread out by its stride, convolved with the flipped kernel.
    pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
        let (batch, in_channels, height, width) = x.dims4()?;
        let (weight_in, group_out, kernel_h, kernel_w) = weight.dims4()?;
        let Conv2dSpec { stride: [sh, sw], padding: [top, bottom, left, right], dilation: [dh, dw], groups } = spec;
        if groups == 0 || in_channels != weight_in || in_channels % groups != 0 {
            return Err(Error::request(format!(
                "conv_transpose2d: {in_channels} input channels do not fit weight {:?} with {groups} groups",
                weight.dims()
            )));
        }
        // Zeros between the input's elements.
        let spread = x
            .reshape((batch, in_channels, height, 1, width, 1))?
            .pad_with_zeros(3, 0, sh - 1)?
            .pad_with_zeros(5, 0, sw - 1)?
            .reshape((batch, in_channels, height * sh, width * sw))?
            .narrow(2, 0, (height - 1) * sh + 1)?
            .narrow(3, 0, (width - 1) * sw + 1)?;
        let (span_h, span_w) = (dh * (kernel_h - 1), dw * (kernel_w - 1));
        // Full correlation with the flipped kernel, then the padding cut off.
        let flip = |n: usize| Tensor::new((0..n as u32).rev().collect::<Vec<_>>(), x.device());
        let group_in = in_channels / groups;
        let w = weight
            .index_select(&flip(kernel_h)?, 2)?
            .index_select(&flip(kernel_w)?, 3)?
            .reshape((groups, group_in, group_out, kernel_h, kernel_w))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((groups * group_out, group_in, kernel_h, kernel_w))?;
        let full = conv2d(
            &spread,
            &w,
            None,
            Conv2dSpec { stride: [1; 2], padding: [span_h, span_h, span_w, span_w], dilation: [dh, dw], groups },
        )?;
        let (_, _, full_h, full_w) = full.dims4()?;
        if full_h <= top + bottom || full_w <= left + right {
            return Err(Error::request("conv_transpose2d: padding leaves no output"));
        }
        let y = full.narrow(2, top, full_h - top - bottom)?.narrow(3, left, full_w - left - right)?.contiguous()?;
        add_bias(y, bias)
    }
}
