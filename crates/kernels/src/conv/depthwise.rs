//! One input channel and one output channel in each group: no product of matrices, so direct loops, a row at a time.

use super::Geometry;
use crate::threads;
use std::ops::Range;

/// For one kernel tap along one axis: which outputs see a pixel, and which pixel the first of them sees.
fn reach(g: &Geometry, axis: usize, tap: usize) -> (Range<usize>, usize) {
    let (stride, padding) = (g.stride[axis], g.padding[axis]);
    let shift = tap * g.dilation[axis];
    let first = padding.saturating_sub(shift).div_ceil(stride).min(g.output[axis]);
    // Output o sees pixel o * stride + shift - padding, which must be below the input's size.
    let last = (g.input[axis] + padding).saturating_sub(shift).div_ceil(stride).clamp(first, g.output[axis]);
    (first..last, (first * stride + shift).saturating_sub(padding))
}

/// Calls `each(tap, output row, first output column, input row, first input column, columns)`.
fn rows(g: &Geometry, mut each: impl FnMut(usize, usize, usize, usize, usize, usize)) {
    for i in 0..g.kernel[0] {
        let (ys, first_row) = reach(g, 0, i);
        for j in 0..g.kernel[1] {
            let (xs, first_column) = reach(g, 1, j);
            for (count, y) in ys.clone().enumerate() {
                let row = first_row + count * g.stride[0];
                each(i * g.kernel[1] + j, y, xs.start, row, first_column, xs.len());
            }
        }
    }
}

pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    let (input, output, stride) = (g.input_area(), g.output_area(), g.stride[1]);
    threads::run_chunks(out, output, |plane, out| {
        let channel = plane % g.groups;
        let x = &x[plane * input..][..input];
        let weight = &weight[channel * g.taps()..][..g.taps()];
        out.fill(bias.map_or(0.0, |bias| bias[channel]));
        rows(g, |tap, y, first, row, column, count| {
            let out = &mut out[y * g.output[1] + first..][..count];
            let x = &x[row * g.input[1]..][..g.input[1]];
            for (out, x) in out.iter_mut().zip(x.get(column..).unwrap_or(&[]).iter().step_by(stride)) {
                *out += weight[tap] * x;
            }
        });
    });
}

pub(super) fn input_gradient(g: &Geometry, gy: &[f32], weight: &[f32], bias: Option<&[f32]>, gx: &mut [f32]) {
    let (input, output, stride) = (g.input_area(), g.output_area(), g.stride[1]);
    threads::run_chunks(gx, input, |plane, gx| {
        let channel = plane % g.groups;
        let gy = &gy[plane * output..][..output];
        let weight = &weight[channel * g.taps()..][..g.taps()];
        gx.fill(bias.map_or(0.0, |bias| bias[channel]));
        rows(g, |tap, y, first, row, column, count| {
            let gy = &gy[y * g.output[1] + first..][..count];
            let gx = &mut gx[row * g.input[1]..][..g.input[1]];
            for (gx, gy) in gx.get_mut(column..).unwrap_or(&mut []).iter_mut().step_by(stride).zip(gy) {
                *gx += weight[tap] * gy;
            }
        });
    });
}

pub(super) fn weight_gradient(g: &Geometry, x: &[f32], gy: &[f32], gw: &mut [f32]) {
    let (input, output, stride) = (g.input_area(), g.output_area(), g.stride[1]);
    threads::run_chunks(gw, g.taps(), |channel, gw| {
        let mut sums = vec![0f64; gw.len()];
        for picture in 0..g.batch {
            let plane = picture * g.groups + channel;
            let (x, gy) = (&x[plane * input..][..input], &gy[plane * output..][..output]);
            rows(g, |tap, y, first, row, column, count| {
                let gy = &gy[y * g.output[1] + first..][..count];
                let x = &x[row * g.input[1]..][..g.input[1]];
                let x = x.get(column..).unwrap_or(&[]).iter().step_by(stride);
                sums[tap] += f64::from(x.zip(gy).map(|(x, gy)| x * gy).sum::<f32>());
            });
        }
        for (gw, sum) in gw.iter_mut().zip(sums) {
            *gw = sum as f32;
        }
    });
}
