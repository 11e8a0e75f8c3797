//! Two-dimensional convolution and its two gradients, each a matrix product whose factors are packed straight from the
//! picture. The transpose of a convolution is its gradient by the input.

mod depthwise;
mod window;

use crate::gemm::pack::{Deeper, Strided};
use crate::gemm::{Grid, Micro, Output, Start, block};
use crate::isa::{Isa, isa};
use crate::{fresh, precision, threads};
use window::{Channels, Pictures, Pixels, Taps, Turned, Window};

/// The shapes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Pictures.
    pub batch: usize,
    /// Channels of the input; a multiple of `groups`.
    pub in_channels: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Channels of the output; a multiple of `groups`.
    pub out_channels: usize,
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Zero rows above and zero columns left of the input. What is below and to the right follows from `output`.
    pub padding: [usize; 2],
    /// Vertical and horizontal dilation.
    pub dilation: [usize; 2],
    /// Number of groups.
    pub groups: usize,
}

impl Geometry {
    fn group_in(&self) -> usize {
        self.in_channels / self.groups
    }

    fn group_out(&self) -> usize {
        self.out_channels / self.groups
    }

    fn input_area(&self) -> usize {
        self.input[0] * self.input[1]
    }

    fn output_area(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn is_depthwise(&self) -> bool {
        self.group_in() == 1 && self.group_out() == 1 && self.groups > 1
    }

    /// Floats in `(batch, in_channels, height, width)`.
    pub fn input_len(&self) -> usize {
        self.batch * self.in_channels * self.input_area()
    }

    /// Floats in `(batch, out_channels, out_height, out_width)`.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_channels * self.output_area()
    }

    /// Floats in `(out_channels, in_channels / groups, kernel height, kernel width)`.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.group_in() * self.taps()
    }

    /// The window of one group over the input.
    fn window(&self) -> Window {
        Window {
            height: self.input[0],
            width: self.input[1],
            out_height: self.output[0],
            out_width: self.output[1],
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            top: self.padding[0] as isize,
            left: self.padding[1] as isize,
        }
    }

    fn check(&self, x: usize, weight: usize, y: usize, bias: Option<&[f32]>, channels: usize) {
        assert!(
            self.groups > 0
                && self.in_channels.is_multiple_of(self.groups)
                && self.out_channels.is_multiple_of(self.groups)
        );
        assert!(self.stride[0] > 0 && self.stride[1] > 0 && self.taps() > 0);
        assert_eq!((x, weight, y), (self.input_len(), self.weight_len(), self.output_len()), "convolution: lengths");
        assert!(bias.is_none_or(|bias| bias.len() == channels), "convolution: length of the bias");
    }
}

/// `y = x * weight + bias`, all contiguous: `x (batch, in_channels, height, width)`,
/// `weight (out_channels, in_channels / groups, kernel height, kernel width)`, `bias (out_channels)`,
/// `y (batch, out_channels, out_height, out_width)`.
///
/// # Panics
/// A slice's length does not fit the geometry.
pub fn forward(g: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    forward_on(isa(), g, x, weight, bias, y);
}

/// [`forward`] into a new buffer.
///
/// # Panics
/// A slice's length does not fit the geometry.
pub fn convolve(g: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    g.check(x.len(), weight.len(), g.output_len(), bias, g.out_channels);
    if g.output_len() == 0 || g.is_depthwise() {
        let mut y = fresh::zeros(g.output_len());
        forward(g, x, weight, bias, &mut y);
        return y;
    }
    // SAFETY: the window slides over every output of every channel.
    unsafe { fresh::written(g.output_len(), |y| slide_forward(isa(), g, x, weight, bias, y.as_mut_ptr().cast())) }
}

fn forward_on(isa: Isa, g: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    g.check(x.len(), weight.len(), y.len(), bias, g.out_channels);
    if y.is_empty() {
        return;
    }
    if g.is_depthwise() {
        return depthwise::forward(g, x, weight, bias, y);
    }
    // SAFETY: the lengths are checked.
    unsafe { slide_forward(isa, g, x, weight, bias, y.as_mut_ptr()) };
}

/// # Safety
/// The lengths fit the geometry; `y` may be written at its whole output, which nobody else accesses meanwhile. The
/// processor has `isa`.
unsafe fn slide_forward(isa: Isa, g: &Geometry, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: *mut f32) {
    let depth = g.group_in() * g.taps();
    let rows =
        |group: usize| Strided { data: &weight[group * g.group_out() * depth..], line_stride: depth, depth_stride: 1 };
    // SAFETY: the caller's promises.
    unsafe { slide(isa, g.window(), g.batch, g.groups, [g.group_in(), g.group_out()], x, rows, bias, y) };
}

/// Slides a window over every picture: for each group, `y = rows(group) * im2col(x) + bias`. `channels` are those of the
/// input and of the output in one group.
///
/// # Safety
/// `y` may be written at every output of every group and picture, which nobody else accesses meanwhile. The processor has
/// `isa`.
#[allow(clippy::too_many_arguments)] // geometry, factors and result
unsafe fn slide<'a>(
    isa: Isa,
    window: Window,
    batch: usize,
    groups: usize,
    channels: [usize; 2],
    x: &[f32],
    rows: impl Fn(usize) -> Strided<'a> + Sync + Send,
    bias: Option<&[f32]>,
    y: *mut f32,
) {
    let [channels_in, channels_out] = channels;
    let micro = Micro::new(isa, precision::current());
    // All pictures in one product: their outputs are its columns, so that weights are packed for many pictures at once and
    // small pictures fill tiles together.
    let (m, n, k) = (channels_out, batch * window.pixels(), channels_in * window.taps());
    let area = window.height * window.width;
    let (side, next) = (window.pixels().max(1), groups * m * window.pixels());
    let y = Output { data: y, stride: side, rows: m, columns: n, side, next };
    Grid::new(&micro, m, n, k, groups).run(groups, |group, block_rows, columns| {
        let left = rows(group);
        let pictures = Pictures { data: &x[group * channels_in * area..], distance: groups * channels_in * area };
        let start = bias.map_or(Start::Zero, |bias| Start::Rows(&bias[group * m..][..m]));
        // SAFETY: the grid hands each block of each group's outputs to one task; `y` has room for all of them.
        unsafe {
            let y = y.offset(group * m * window.pixels());
            block(&micro, k, &left, &Pixels { window, pictures }, start, y, block_rows, columns);
        }
    });
}

/// The gradient by the input of [`forward`], plus a bias by input channel: `gy` as `y`, `gx` as `x` there.
///
/// This is also the transposed convolution of `gy`, for which the bias is.
///
/// # Panics
/// A slice's length does not fit the geometry.
pub fn input_gradient(g: &Geometry, gy: &[f32], weight: &[f32], bias: Option<&[f32]>, gx: &mut [f32]) {
    input_gradient_on(isa(), g, gy, weight, bias, gx);
}

fn input_gradient_on(isa: Isa, g: &Geometry, gy: &[f32], weight: &[f32], bias: Option<&[f32]>, gx: &mut [f32]) {
    g.check(gx.len(), weight.len(), gy.len(), bias, g.in_channels);
    if gx.is_empty() {
        return;
    }
    if g.is_depthwise() {
        return depthwise::input_gradient(g, gy, weight, bias, gx);
    }
    if g.stride != [1, 1] || gy.is_empty() {
        return scatter(isa, g, gy, weight, bias, gx);
    }
    // The window of the transpose: over `gy`, with the kernel turned around.
    let turned = |axis: usize| ((g.kernel[axis] - 1) * g.dilation[axis]) as isize - g.padding[axis] as isize;
    let window = Window {
        height: g.output[0],
        width: g.output[1],
        out_height: g.input[0],
        out_width: g.input[1],
        top: turned(0),
        left: turned(1),
        ..g.window()
    };
    let (group_in, group_out, taps) = (g.group_in(), g.group_out(), g.taps());
    let channels = [group_out, group_in];
    if taps == 1 {
        let rows = |group: usize| Strided {
            data: &weight[group * group_out * group_in..],
            line_stride: 1,
            depth_stride: group_in,
        };
        // SAFETY: the lengths are checked.
        return unsafe { slide(isa, window, g.batch, g.groups, channels, gy, rows, bias, gx.as_mut_ptr()) };
    }
    // (groups, group_in, group_out, taps), the taps in reverse.
    let mut flipped = vec![0f32; weight.len()];
    threads::run_chunks(&mut flipped, group_out * taps, |row, flipped| {
        let (group, channel) = (row / group_in, row % group_in);
        for (o, flipped) in flipped.chunks_exact_mut(taps).enumerate() {
            let from = ((group * group_out + o) * group_in + channel) * taps;
            for (to, value) in flipped.iter_mut().rev().zip(&weight[from..from + taps]) {
                *to = *value;
            }
        }
    });
    let depth = group_out * taps;
    let rows =
        |group: usize| Strided { data: &flipped[group * group_in * depth..], line_stride: depth, depth_stride: 1 };
    // SAFETY: the lengths are checked.
    unsafe { slide(isa, window, g.batch, g.groups, channels, gy, rows, bias, gx.as_mut_ptr()) };
}

/// [`input_gradient`] for strides above 1: a matrix product gives what each output sends to each tap, which is then added
/// to the picture. Channels are independent, so each task has some of them and adds in a fixed order.
fn scatter(isa: Isa, g: &Geometry, gy: &[f32], weight: &[f32], bias: Option<&[f32]>, gx: &mut [f32]) {
    let micro = Micro::new(isa, precision::current());
    let (group_in, taps, area, pixels) = (g.group_in(), g.taps(), g.input_area(), g.output_area());
    const BUFFER: usize = 1 << 20; // floats that a task may hold
    let channels = (BUFFER / (taps * pixels).max(1)).clamp(1, group_in.div_ceil(4));
    let blocks = group_in.div_ceil(channels);
    let gx = Output::matrix(gx.as_mut_ptr(), g.batch * g.in_channels, area);
    threads::run(g.batch * g.groups * blocks, |task| {
        let (index, first) = (task / blocks, task % blocks * channels);
        let last = group_in.min(first + channels);
        let group = index % g.groups;
        let (m, k) = ((last - first) * taps, g.group_out());
        let left = Strided {
            data: &weight[group * k * group_in * taps + first * taps..],
            line_stride: 1,
            depth_stride: group_in * taps,
        };
        let right = Strided { data: &gy[index * k * pixels..][..k * pixels], line_stride: 1, depth_stride: pixels };
        let mut sent = vec![0f32; m * pixels];
        let out = Output::matrix(sent.as_mut_ptr(), m, pixels);
        // SAFETY: `sent` is this task's own and has room for the block.
        unsafe { block(&micro, k, &left, &right, Start::Zero, out, 0..m, 0..pixels) };
        for channel in first..last {
            let sent = &sent[(channel - first) * taps * pixels..][..taps * pixels];
            // SAFETY: this task alone has this channel of this picture.
            let picture =
                unsafe { std::slice::from_raw_parts_mut(gx.offset((index * group_in + channel) * area).data, area) };
            picture.fill(bias.map_or(0.0, |bias| bias[group * group_in + channel]));
            for (tap, sent) in sent.chunks_exact(pixels.max(1)).enumerate() {
                for (y, sent) in sent.chunks_exact(g.output[1]).enumerate() {
                    let row = y * g.stride[0] + tap / g.kernel[1] * g.dilation[0];
                    let Some(row) = row.checked_sub(g.padding[0]).filter(|row| *row < g.input[0]) else { continue };
                    let row = &mut picture[row * g.input[1]..][..g.input[1]];
                    let shift = tap % g.kernel[1] * g.dilation[1];
                    for (x, value) in sent.iter().enumerate() {
                        let column = (x * g.stride[1] + shift).wrapping_sub(g.padding[1]);
                        if let Some(pixel) = row.get_mut(column) {
                            *pixel += value;
                        }
                    }
                }
            }
        }
    });
}

/// The gradient by the weight of [`forward`]: `x` and `gy` as `x` and `y`, `gw` as `weight` there.
///
/// The sum over the batch is made in parts of whole pictures, as many as the shapes decide, added in order.
///
/// # Panics
/// A slice's length does not fit the geometry.
pub fn weight_gradient(g: &Geometry, x: &[f32], gy: &[f32], gw: &mut [f32]) {
    weight_gradient_on(isa(), g, x, gy, gw);
}

fn weight_gradient_on(isa: Isa, g: &Geometry, x: &[f32], gy: &[f32], gw: &mut [f32]) {
    g.check(x.len(), gw.len(), gy.len(), None, 0);
    if gw.is_empty() || gy.is_empty() || x.is_empty() {
        return gw.fill(0.0);
    }
    if g.is_depthwise() {
        return depthwise::weight_gradient(g, x, gy, gw);
    }
    let micro = Micro::new(isa, precision::current());
    let window = g.window();
    let (m, n) = (g.group_out(), g.group_in() * g.taps());
    let parts = parts(g.batch, g.output_area(), m, n, gw.len());
    let pictures = g.batch.div_ceil(parts);
    let parts = g.batch.div_ceil(pictures);
    // Where channels fill whole panels, the columns of the product are (tap, channel), else (channel, tap) as in `gw`.
    let turns = g.group_in().is_multiple_of(micro.columns);
    let mut partial = if parts > 1 || turns { fresh::zeros(parts * gw.len()) } else { Vec::new() };
    let sums = if partial.is_empty() { gw.as_mut_ptr() } else { partial.as_mut_ptr() };
    let sums = Output::matrix(sums, m, n);
    for group in 0..g.groups {
        let (in_group, out_group) = (group * g.group_in() * g.input_area(), group * m * g.output_area());
        let x = Pictures { data: &x[in_group..], distance: g.in_channels * g.input_area() };
        let gy = Pictures { data: &gy[out_group..], distance: g.out_channels * g.output_area() };
        let turned = turns.then(|| Turned::new(isa, window, x, g.batch, g.group_in(), micro.columns));
        Grid::new(&micro, m, n, pictures * g.output_area(), parts).run(parts, |part, rows, columns| {
            let range = part * pictures * g.output_area()..g.batch.min((part + 1) * pictures) * g.output_area();
            let left = Deeper { factor: Channels { pictures: gy, pixels: g.output_area() }, first: range.start };
            // SAFETY: the grid hands each block of each part's sum to one task.
            unsafe {
                let sums = sums.offset((part * g.groups + group) * m * n);
                if let Some(turned) = &turned {
                    let right = Deeper { factor: turned, first: range.start };
                    block(&micro, range.len(), &left, &right, Start::Zero, sums, rows, columns);
                } else {
                    let right = Deeper { factor: Taps { window, pictures: x }, first: range.start };
                    block(&micro, range.len(), &left, &right, Start::Zero, sums, rows, columns);
                }
            }
        });
    }
    if partial.is_empty() {
        return;
    }
    let (size, taps, channels) = (gw.len(), g.taps(), g.group_in());
    const CHUNK: usize = 1 << 14; // weights that a task adds up, at least
    let at_once = CHUNK.next_multiple_of(n);
    threads::run_chunks(gw, at_once, |chunk, out| {
        let first = chunk * at_once;
        let mut sum = vec![0f32; n];
        for (row, out) in out.chunks_exact_mut(n).enumerate() {
            sum.fill(0.0);
            for part in partial.chunks_exact(size) {
                for (sum, value) in sum.iter_mut().zip(&part[first + row * n..]) {
                    *sum += value;
                }
            }
            if turns {
                for (tap, sum) in sum.chunks_exact(channels).enumerate() {
                    for (to, value) in out[tap..].iter_mut().step_by(taps).zip(sum) {
                        *to = *value;
                    }
                }
            } else {
                out.copy_from_slice(&sum);
            }
        }
    });
}

/// How many parts the sum of a weight gradient is made in, which tasks share without packing anything twice: as many as
/// cost less, to write and to add, than packing the factors does. Depends on the shapes alone.
fn parts(batch: usize, pixels: usize, m: usize, n: usize, weights: usize) -> usize {
    const PARTIAL_SUMS: usize = 1 << 22; // floats for all parts together
    const MOST: usize = 16;
    let worth = batch * pixels * (m + n) / (2 * m * n);
    let parts = worth.min(batch).min(MOST).min(PARTIAL_SUMS / weights).max(1);
    // A power of two, so that two or four threads finish together.
    1 << parts.ilog2()
}

/// The gradient by the bias: `gy (batch, channels, area)` summed over pictures and pixels, into `gb (channels)`.
///
/// # Panics
/// `gy.len()` is not `batch * gb.len() * area`.
pub fn bias_gradient(batch: usize, area: usize, gy: &[f32], gb: &mut [f32]) {
    let channels = gb.len();
    assert_eq!(gy.len(), batch * channels * area, "bias gradient: length");
    threads::run_chunks(gb, channels.div_ceil(16).max(1), |chunk, gb| {
        let first = chunk * channels.div_ceil(16).max(1);
        for (channel, gb) in (first..).zip(gb) {
            // Sixteen running sums for each picture, so that the compiler can keep them in registers.
            let mut total = 0f64;
            for picture in 0..batch {
                let row = &gy[(picture * channels + channel) * area..][..area];
                let mut sums = [0f32; 16];
                for values in row.chunks_exact(16) {
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += value;
                    }
                }
                total += f64::from(sums.iter().chain(row.chunks_exact(16).remainder()).sum::<f32>());
            }
            *gb = total as f32;
        }
    });
}

#[cfg(test)]
mod tests;
