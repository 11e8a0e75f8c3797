//! Packing straight from the picture: the im2col matrix (Chellapilla et al. 2006) is never stored, its blocks are read
//! from a zero-padded copy of the few rows and channels that a block needs.

use crate::gemm::pack::{MAX_WIDTH, Pack, Panels, transpose};
use crate::gemm::resized;
use crate::isa::Isa;
use crate::{fresh, threads};
use std::ops::Range;

/// A sliding window over a picture `(channels, height, width)`. Output `(y, x)` under tap `(i, j)` sees the pixel
/// `(y * stride[0] + i * dilation[0] - top, x * stride[1] + j * dilation[1] - left)`, zero outside the picture.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub height: usize,
    pub width: usize,
    pub out_height: usize,
    pub out_width: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Zero rows above the picture; negative where the window begins inside it.
    pub top: isize,
    /// Zero columns left of the picture; negative where the window begins inside it.
    pub left: isize,
}

impl Window {
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    pub fn pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Whether every tap of every output is a pixel.
    fn is_inside(&self) -> bool {
        let fits = |axis: usize, before: isize, input: usize, output: usize| {
            let reach =
                output.saturating_sub(1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1;
            before <= 0 && reach + before.unsigned_abs() <= input
        };
        fits(0, self.top, self.height, self.out_height) && fits(1, self.left, self.width, self.out_width)
    }

    /// Rows and columns that `rows` rows of outputs see.
    fn seen(&self, rows: usize) -> [usize; 2] {
        let reach = |axis: usize, outputs: usize| {
            outputs.saturating_sub(1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
        };
        [reach(0, rows), reach(1, self.out_width)]
    }

    /// What outputs of `channels` channels see of one picture `(channels, height, width)`, from the output row `first_row`
    /// on: `padded (channels, reach, pitch)` gets the pixels, and zeros around them.
    fn pad(
        &self,
        picture: &[f32],
        channels: Range<usize>,
        first_row: usize,
        pitch: usize,
        plane: usize,
        padded: &mut [f32],
    ) {
        let area = self.height * self.width;
        let first_row = (first_row * self.stride[0]) as isize - self.top;
        // Columns of the padded copy that show the picture: column `c` shows the picture's column `c - left`.
        let from = self.left.clamp(0, pitch as isize) as usize;
        let to = (self.width as isize + self.left).clamp(from as isize, pitch as isize) as usize;
        let source_column = from.wrapping_add_signed(-self.left);
        for (channel, padded) in channels.zip(padded.chunks_exact_mut(plane)) {
            for (r, out) in padded.chunks_exact_mut(pitch).enumerate() {
                let row = first_row + r as isize;
                if row < 0 || row >= self.height as isize || from == to {
                    out.fill(0.0);
                } else {
                    let at = channel * area + row as usize * self.width + source_column;
                    out[..from].fill(0.0);
                    out[from..to].copy_from_slice(&picture[at..at + to - from]);
                    out[to..].fill(0.0);
                }
            }
        }
    }

    /// What the output rows `rows(picture)` see of the channels `channels` of each of the pictures.
    fn view<'a>(
        &self,
        pictures: Pictures<'a>,
        range: Range<usize>,
        channels: Range<usize>,
        rows: impl Fn(usize) -> Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> View<'a> {
        let area = self.height * self.width;
        if self.is_inside() {
            let skipped = self.top.unsigned_abs() * self.width + self.left.unsigned_abs();
            let begin = range.start * pictures.distance + channels.start * area + skipped;
            let data = &pictures.data[begin..];
            return View { data, pitch: self.width, plane: area, picture: pictures.distance, whole: true };
        }
        let [reach, pitch] = self.seen(range.clone().map(|picture| rows(picture).len()).max().unwrap_or(0));
        let (plane, picture) = (reach * pitch, channels.len() * reach * pitch);
        let padded = resized(scratch, range.len() * picture);
        for (index, padded) in range.zip(padded.chunks_exact_mut(picture.max(1))) {
            let source = &pictures.data[index * pictures.distance..];
            self.pad(source, channels.clone(), rows(index).start, pitch, plane, padded);
        }
        View { data: padded, pitch, plane, picture, whole: false }
    }

    fn tap_offset(&self, view: &View, tap: usize) -> usize {
        tap / self.kernel[1] * self.dilation[0] * view.pitch + tap % self.kernel[1] * self.dilation[1]
    }
}

/// Pictures `(channels, height, width)` in a slice, at equal distances.
#[derive(Clone, Copy)]
pub(super) struct Pictures<'a> {
    pub data: &'a [f32],
    pub distance: usize,
}

/// Rows of some channels of some pictures, such that every tap of every output is a valid position.
struct View<'a> {
    data: &'a [f32],
    /// Distance between rows.
    pitch: usize,
    /// Distance between channels.
    plane: usize,
    /// Distance between pictures.
    picture: usize,
    /// Whether it begins with the first row of every picture, and not with the first that is needed.
    whole: bool,
}

/// im2col with the outputs of all pictures as lines and `(channel, tap)` as depth: the right factor of a convolution.
pub(super) struct Pixels<'a> {
    pub window: Window,
    pub pictures: Pictures<'a>,
}

impl Pack for Pixels<'_> {
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, scratch: &mut Vec<f32>) {
        let window = &self.window;
        let (taps, pixels, out_width) = (window.taps(), window.pixels(), window.out_width);
        let channels = depth.start / taps..depth.end.div_ceil(taps);
        let pictures = lines.start / pixels..(lines.end - 1) / pixels + 1;
        let (first, last) = (pictures.start, pictures.end - 1);
        let (first_row, last_row) = (lines.start % pixels / out_width, (lines.end - 1) % pixels / out_width);
        let rows = |picture: usize| {
            let from = if picture == first { first_row } else { 0 };
            from..if picture == last { last_row + 1 } else { window.out_height }
        };
        let view = window.view(self.pictures, pictures, channels.clone(), rows, scratch);
        let mut offsets = Vec::with_capacity(channels.len() * taps);
        for channel in 0..channels.len() {
            offsets.extend((0..taps).map(|tap| channel * view.plane + window.tap_offset(&view, tap)));
        }
        let width = panels.width;
        // The output that the next lane is for.
        let (mut picture, mut y, mut x) = (first, first_row, lines.start % out_width);
        panels.fill_each(|index, panel| {
            let used = width.min(lines.end - lines.start - index * width);
            let mut positions = [0; MAX_WIDTH];
            for position in &mut positions[..used] {
                let row = if picture == first && !view.whole { y - first_row } else { y };
                *position =
                    (picture - first) * view.picture + row * window.stride[0] * view.pitch + x * window.stride[1];
                x += 1;
                if x == out_width {
                    (x, y) = (0, y + 1);
                }
                if y == window.out_height {
                    (y, picture) = (0, picture + 1);
                }
            }
            copy_runs(isa, view.data, &positions[..used], &offsets, width, panel);
        });
    }

    fn depth_step(&self) -> usize {
        self.window.taps()
    }
}

/// `out[step * width + lane] = data[offsets[step] + positions[lane]]`, zero in lanes without a position; consecutive
/// positions are copied together.
fn copy_runs(isa: Isa, data: &[f32], positions: &[usize], offsets: &[usize], width: usize, out: &mut [f32]) {
    let far = positions.iter().max().zip(offsets.iter().max()).map_or(0, |(p, o)| p + o);
    assert!(far < data.len() && positions.len() <= width && out.len() >= offsets.len() * width);
    // (first lane, position, length), at most 16 long.
    let mut runs = [(0, 0, 0); MAX_WIDTH];
    let mut count = 0;
    for (lane, position) in positions.iter().enumerate() {
        match runs[..count].last_mut() {
            Some((_, start, length)) if *start + *length == *position && *length < 16 => *length += 1,
            _ => {
                runs[count] = (lane, *position, 1);
                count += 1;
            }
        }
    }
    let runs = &runs[..count];
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: `Isa::Avx512` is only ever handed in where the processor has it; the bounds are asserted above.
        unsafe { x86::copy_runs(data.as_ptr(), runs, positions.len(), offsets, width, out.as_mut_ptr()) };
        return;
    }
    let _ = isa;
    for (row, offset) in out.chunks_exact_mut(width).zip(offsets) {
        for (lane, position, length) in runs {
            for i in 0..*length {
                row[lane + i] = data[offset + position + i];
            }
        }
        row[positions.len()..].fill(0.0);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor has AVX-512 F; every run (lane, position, length at most 16) may be read at every offset; `out` has
    /// `width` floats for each offset, and the runs' lanes lie below `used <= width <= 32`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn copy_runs(
        data: *const f32,
        runs: &[(usize, usize, usize)],
        used: usize,
        offsets: &[usize],
        width: usize,
        out: *mut f32,
    ) {
        let whole = used == 32 && width == 32 && runs.len() == 2 && runs[0].2 == 16;
        for (step, offset) in offsets.iter().enumerate() {
            // SAFETY: the caller's promises; masks cover exactly the runs and the lanes after them.
            unsafe {
                let out = out.add(step * width);
                let from = data.add(*offset);
                if whole {
                    let (low, high) = (_mm512_loadu_ps(from.add(runs[0].1)), _mm512_loadu_ps(from.add(runs[1].1)));
                    _mm512_storeu_ps(out, low);
                    _mm512_storeu_ps(out.add(16), high);
                    continue;
                }
                for (lane, position, length) in runs {
                    let mask = (u32::MAX >> (32 - *length as u32)) as u16;
                    let value = _mm512_maskz_loadu_ps(mask, from.add(*position));
                    _mm512_mask_storeu_ps(out.add(*lane), mask, value);
                }
                for lane in used..width {
                    *out.add(lane) = 0.0;
                }
            }
        }
    }
}

/// im2col with `(channel, tap)` as lines and the outputs of all pictures as depth: the right factor of a weight gradient.
pub(super) struct Taps<'a> {
    pub window: Window,
    pub pictures: Pictures<'a>,
}

impl Pack for Taps<'_> {
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, scratch: &mut Vec<f32>) {
        let window = &self.window;
        let (taps, steps, width) = (window.taps(), depth.len(), panels.width);
        let channels = lines.start / taps..lines.end.div_ceil(taps);
        panels.fill_all(|out| {
            for (picture, part, done) in pictures_of(depth, window.pixels()) {
                let rows = part.start / window.out_width..part.end / window.out_width;
                let range = picture..picture + 1;
                let view = window.view(self.pictures, range, channels.clone(), |_| rows.clone(), scratch);
                let first_row = if view.whole { rows.start * window.stride[0] * view.pitch } else { 0 };
                for (first, panel) in lines.clone().step_by(width).zip(out.chunks_exact_mut(width * steps)) {
                    let used = width.min(lines.end - first);
                    let mut starts = [0; MAX_WIDTH];
                    for (lane, start) in starts[..used].iter_mut().enumerate() {
                        let line = first + lane;
                        let channel = line / taps - channels.start;
                        *start = channel * view.plane + window.tap_offset(&view, line % taps) + first_row;
                    }
                    let panel = &mut panel[done * width..][..part.len() * width];
                    for out in panel.chunks_exact_mut(width * window.out_width) {
                        if window.stride[1] == 1 {
                            transpose(isa, view.data, &starts[..used], window.out_width, width, out);
                        } else {
                            for (x, out) in out.chunks_exact_mut(width).enumerate() {
                                for (out, start) in out.iter_mut().zip(&starts[..used]) {
                                    *out = view.data[start + x * window.stride[1]];
                                }
                                out[used..].fill(0.0);
                            }
                        }
                        for start in &mut starts[..used] {
                            *start += window.stride[0] * view.pitch;
                        }
                    }
                }
            }
        });
    }

    fn depth_step(&self) -> usize {
        self.window.out_width
    }
}

/// Cuts a range of `(picture, pixel)` into pictures: picture, range of its pixels, and how many came before.
fn pictures_of(range: Range<usize>, pixels: usize) -> impl Iterator<Item = (usize, Range<usize>, usize)> {
    (range.start / pixels..range.end.div_ceil(pixels)).map(move |picture| {
        let part = range.start.max(picture * pixels)..range.end.min((picture + 1) * pixels);
        (picture, part.start - picture * pixels..part.end - picture * pixels, part.start - range.start)
    })
}

/// Channels as lines and the pixels of all pictures as depth: the left factor of a weight gradient.
pub(super) struct Channels<'a> {
    pub pictures: Pictures<'a>,
    /// Pixels of a picture, and so the distance between channels.
    pub pixels: usize,
}

impl Pack for Channels<'_> {
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, _: &mut Vec<f32>) {
        let width = panels.width;
        panels.fill_each(|index, panel| {
            let first = lines.start + index * width;
            let used = width.min(lines.end - first);
            for (picture, part, done) in pictures_of(depth.clone(), self.pixels) {
                let mut starts = [0; MAX_WIDTH];
                for (lane, start) in starts[..used].iter_mut().enumerate() {
                    *start = picture * self.pictures.distance + (first + lane) * self.pixels + part.start;
                }
                let panel = &mut panel[done * width..][..part.len() * width];
                transpose(isa, self.pictures.data, &starts[..used], part.len(), width, panel);
            }
        });
    }
}

/// [`Taps`] with `(tap, channel)` as lines, from pictures in which the channels of a pixel lie side by side: to pack them
/// is to copy whole rows, where [`Taps`] transposes each pixel once for every tap. For channels that fill panels of `width`.
pub(super) struct Turned {
    window: Window,
    width: usize,
    /// Blocks of `width` channels.
    blocks: usize,
    /// Width of a padded picture.
    pitch: usize,
    /// Floats in a block of channels of a padded picture.
    block: usize,
    /// `(pictures, blocks, padded height, padded width, width)`.
    data: Vec<f32>,
}

impl Turned {
    /// Turns `count` pictures of `channels` channels, a multiple of `width`, around on all threads.
    pub fn new(isa: Isa, window: Window, pictures: Pictures<'_>, count: usize, channels: usize, width: usize) -> Self {
        assert!(width > 0 && channels.is_multiple_of(width), "{channels} channels do not fill panels of {width}");
        let [height, pitch] = window.seen(window.out_height);
        let (blocks, plane) = (channels / width, height * pitch);
        let mut data = fresh::zeros(count * blocks * plane * width);
        threads::run_chunks(&mut data, (plane * width).max(1), |index, out| {
            let (picture, first) = (index / blocks, index % blocks * width);
            let mut padded = vec![0f32; width * plane];
            let source = &pictures.data[picture * pictures.distance..];
            window.pad(source, first..first + width, 0, pitch, plane, &mut padded);
            let starts: [usize; MAX_WIDTH] = std::array::from_fn(|lane| lane * plane);
            transpose(isa, &padded, &starts[..width], plane, width, out);
        });
        Self { window, width, blocks, pitch, block: plane * width, data }
    }
}

impl Pack for Turned {
    fn pack(&self, _: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, _: &mut Vec<f32>) {
        let width = panels.width;
        assert!(width == self.width && lines.start.is_multiple_of(width), "panels of another width");
        let (window, channels) = (&self.window, self.blocks * width);
        panels.fill_each(|index, panel| {
            let line = lines.start + index * width;
            let (tap, block) = (line / channels, line % channels / width);
            let (tap_row, tap_column) =
                (tap / window.kernel[1] * window.dilation[0], tap % window.kernel[1] * window.dilation[1]);
            for (picture, part, mut done) in pictures_of(depth.clone(), window.pixels()) {
                let data = &self.data[(picture * self.blocks + block) * self.block..][..self.block];
                let mut pixel = part.start;
                while pixel < part.end {
                    let (y, x) = (pixel / window.out_width, pixel % window.out_width);
                    let count = (window.out_width - x).min(part.end - pixel);
                    let at = (y * window.stride[0] + tap_row) * self.pitch + x * window.stride[1] + tap_column;
                    let out = &mut panel[done * width..][..count * width];
                    if window.stride[1] == 1 {
                        out.copy_from_slice(&data[at * width..][..count * width]);
                    } else {
                        for (i, out) in out.chunks_exact_mut(width).enumerate() {
                            out.copy_from_slice(&data[(at + i * window.stride[1]) * width..][..width]);
                        }
                    }
                    (pixel, done) = (pixel + count, done + count);
                }
            }
        });
    }
}
