//! Two-dimensional convolution (cross-correlation, as in every deep-learning library).
//!
//! Convolution, its gradient by the input and its gradient by the weight are each linear in two of (input, weight,
//! output), and the gradients of each are the other two: so derivatives of any order run on the CPU's kernels.

use super::slices::{contiguous, on_cpu_in_f32};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape};
use conjure_kernels::conv::{self, Geometry};
use conjure_kernels::fresh::zeros;

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
///
/// # Errors
/// Shapes do not fit, or the kernel is larger than the padded input.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
    let (batch, in_channels, height, width) = x.dims4()?;
    let (out_channels, group_in, kernel_h, kernel_w) = weight.dims4()?;
    let Conv2dSpec { stride: [sh, sw], padding: [top, bottom, left, right], dilation: [dh, dw], groups } = spec;
    let fits = groups > 0 && in_channels == group_in * groups && out_channels % groups == 0;
    if !fits || bias.is_some_and(|bias| bias.dims() != [out_channels]) {
        return Err(Error::request(format!(
            "conv2d: {in_channels} input channels and bias {:?} do not fit weight {:?} with {groups} groups",
            bias.map(|bias| bias.dims()),
            weight.dims()
        )));
    }
    check_numbers("conv2d", weight, spec)?;
    let (span_h, span_w) = (dh * (kernel_h - 1) + 1, dw * (kernel_w - 1) + 1);
    let (padded_h, padded_w) = (height + top + bottom, width + left + right);
    if padded_h < span_h || padded_w < span_w {
        return Err(Error::request(format!(
            "conv2d: kernel {kernel_h}x{kernel_w} does not fit a padded input of {padded_h}x{padded_w}"
        )));
    }
    #[cfg(feature = "cuda")]
    if cuda::convolves(x, weight, spec) && bias.is_none_or(|bias| cuda::takes(&[bias])) {
        return cuda::conv2d(x, weight, bias, spec);
    }
    if !all_on_cpu_in_f32(x, weight, bias) {
        return plain::conv2d(x, weight, bias, spec);
    }
    let geometry = Geometry {
        batch,
        in_channels,
        input: [height, width],
        out_channels,
        output: [(padded_h - span_h) / sh + 1, (padded_w - span_w) / sw + 1],
        kernel: [kernel_h, kernel_w],
        stride: spec.stride,
        padding: [top, left],
        dilation: spec.dilation,
        groups,
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Forward(geometry))?,
        None => x.apply_op2(&weight, Forward(geometry))?,
    })
}

/// The transpose of [`conv2d`]: `x (batch, in_channels, height, width)`,
/// `weight (in_channels, out_channels / groups, kernel_h, kernel_w)`, `bias (out_channels)`:
/// `(batch, out_channels, out_h, out_w)` with
/// `out_h = (height - 1) * stride - top - bottom + dilation * (kernel_h - 1) + 1`.
///
/// # Errors
/// Shapes do not fit, or padding leaves no output.
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: Conv2dSpec) -> Result<Tensor> {
    let (batch, in_channels, height, width) = x.dims4()?;
    let (weight_in, group_out, kernel_h, kernel_w) = weight.dims4()?;
    let Conv2dSpec { stride: [sh, sw], padding: [top, bottom, left, right], dilation: [dh, dw], groups } = spec;
    let out_channels = group_out * groups;
    let fits = groups > 0 && in_channels == weight_in && in_channels % groups == 0;
    if !fits || bias.is_some_and(|bias| bias.dims() != [out_channels]) {
        return Err(Error::request(format!(
            "conv_transpose2d: {in_channels} input channels and bias {:?} do not fit weight {:?} with {groups} groups",
            bias.map(|bias| bias.dims()),
            weight.dims()
        )));
    }
    check_numbers("conv_transpose2d", weight, spec)?;
    let size = |n: usize, stride: usize, dilation: usize, kernel: usize, padding: usize| {
        (n.checked_sub(1)? * stride + dilation * (kernel - 1) + 1).checked_sub(padding).filter(|size| *size > 0)
    };
    let (Some(out_h), Some(out_w)) =
        (size(height, sh, dh, kernel_h, top + bottom), size(width, sw, dw, kernel_w, left + right))
    else {
        return Err(Error::request(format!(
            "conv_transpose2d: padding {:?} leaves no output of an input of {height}x{width}",
            spec.padding
        )));
    };
    if !all_on_cpu_in_f32(x, weight, bias) {
        return plain::conv_transpose2d(x, weight, bias, spec);
    }
    let geometry = Geometry {
        batch,
        in_channels: out_channels,
        input: [out_h, out_w],
        out_channels: in_channels,
        output: [height, width],
        kernel: [kernel_h, kernel_w],
        stride: spec.stride,
        padding: [top, left],
        dilation: spec.dilation,
        groups,
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, InputGradient(geometry))?,
        None => x.apply_op2(&weight, InputGradient(geometry))?,
    })
}

fn all_on_cpu_in_f32(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
    on_cpu_in_f32(&[x, weight]) && bias.is_none_or(|bias| on_cpu_in_f32(&[bias]))
}

fn check_numbers(operation: &str, weight: &Tensor, spec: Conv2dSpec) -> Result<()> {
    let kernel = &weight.dims()[2..];
    if kernel.contains(&0) || spec.stride.contains(&0) || spec.dilation.contains(&0) {
        return Err(Error::request(format!(
            "{operation}: kernel {kernel:?}, stride {:?} and dilation {:?} must not be 0",
            spec.stride, spec.dilation
        )));
    }
    Ok(())
}

type Stored<'a> = (&'a CpuStorage, &'a Layout);

/// `(x, weight[, bias])` to `y`.
struct Forward(Geometry);

/// `(gy, weight[, bias])` to `gx`: the transposed convolution.
struct InputGradient(Geometry);

/// `(x, gy)` to `gw`.
struct WeightGradient(Geometry);

/// `(batch, channels, height, width)` to `(channels)`.
struct ChannelSums;

fn input_shape(g: &Geometry) -> Shape {
    (g.batch, g.in_channels, g.input[0], g.input[1]).into()
}

fn output_shape(g: &Geometry) -> Shape {
    (g.batch, g.out_channels, g.output[0], g.output[1]).into()
}

fn weight_shape(g: &Geometry) -> Shape {
    (g.out_channels, g.in_channels / g.groups, g.kernel[0], g.kernel[1]).into()
}

/// Applies `op` if the gradient it gives is wanted.
fn if_tracked<C>(argument: &Tensor, a: &Tensor, b: &Tensor, op: C) -> candle_core::Result<Option<Tensor>>
where
    C: 'static + CustomOp2 + Send + Sync,
{
    if argument.track_op() { Ok(Some(a.contiguous()?.apply_op2(&b.contiguous()?, op)?)) } else { Ok(None) }
}

fn bias_gradient(bias: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
    if bias.track_op() { Ok(Some(g.contiguous()?.apply_op1(ChannelSums)?)) } else { Ok(None) }
}

impl Forward {
    fn run(&self, x: Stored, weight: Stored, bias: Option<Stored>) -> candle_core::Result<(CpuStorage, Shape)> {
        let bias = bias.map(|bias| contiguous(bias.0, bias.1)).transpose()?;
        let y = conv::convolve(&self.0, contiguous(x.0, x.1)?, contiguous(weight.0, weight.1)?, bias);
        Ok((CpuStorage::F32(y), output_shape(&self.0)))
    }
}

impl InputGradient {
    fn run(&self, gy: Stored, weight: Stored, bias: Option<Stored>) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut gx = zeros(self.0.input_len());
        let bias = bias.map(|bias| contiguous(bias.0, bias.1)).transpose()?;
        conv::input_gradient(&self.0, contiguous(gy.0, gy.1)?, contiguous(weight.0, weight.1)?, bias, &mut gx);
        Ok((CpuStorage::F32(gx), input_shape(&self.0)))
    }
}

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.run((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((if_tracked(x, g, weight, InputGradient(self.0))?, if_tracked(weight, x, g, WeightGradient(self.0))?))
    }
}

impl CustomOp3 for Forward {
    fn name(&self) -> &'static str {
        "conv2d with bias"
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
        self.run((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (gx, gw) = CustomOp2::bwd(self, x, weight, y, g)?;
        Ok((gx, gw, bias_gradient(bias, g)?))
    }
}

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "conv_transpose2d"
    }

    fn cpu_fwd(
        &self,
        gy: &CpuStorage,
        gy_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.run((gy, gy_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        gy: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((if_tracked(gy, g, weight, Forward(self.0))?, if_tracked(weight, g, gy, WeightGradient(self.0))?))
    }
}

impl CustomOp3 for InputGradient {
    fn name(&self) -> &'static str {
        "conv_transpose2d with bias"
    }

    fn cpu_fwd(
        &self,
        gy: &CpuStorage,
        gy_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.run((gy, gy_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        gy: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        gx: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (ggy, gw) = CustomOp2::bwd(self, gy, weight, gx, g)?;
        Ok((ggy, gw, bias_gradient(bias, g)?))
    }
}

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "conv2d weight gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gy: &CpuStorage,
        gy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut gw = zeros(self.0.weight_len());
        conv::weight_gradient(&self.0, contiguous(x, x_layout)?, contiguous(gy, gy_layout)?, &mut gw);
        Ok((CpuStorage::F32(gw), weight_shape(&self.0)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gy: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((if_tracked(x, gy, g, InputGradient(self.0))?, if_tracked(gy, x, g, Forward(self.0))?))
    }
}

impl CustomOp1 for ChannelSums {
    fn name(&self) -> &'static str {
        "conv2d bias gradient"
    }

    fn cpu_fwd(&self, gy: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let mut gb = zeros(channels);
        conv::bias_gradient(batch, height * width, contiguous(gy, layout)?, &mut gb);
        Ok((CpuStorage::F32(gb), channels.into()))
    }

    fn bwd(&self, gy: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(g.reshape((1, (), 1, 1))?.broadcast_as(gy.shape())?))
    }
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
        let padded = x.pad_with_zeros(D::Minus2, top, bottom)?.pad_with_zeros(D::Minus1, left, right)?.contiguous()?;
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
