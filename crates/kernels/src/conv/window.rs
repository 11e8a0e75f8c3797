//! Packing straight from the picture: the im2col matrix (Chellapilla et al. 2006) is never stored, its blocks are read
//! from a zero-padded copy of the few rows and channels that a block needs.

use crate::gemm::pack::{MAX_WIDTH, Pack, transpose};
use crate::gemm::resized;
use crate::isa::Isa;
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

    /// Whether the outputs are the pixels themselves.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1]
            && self.stride == [1, 1]
            && (self.top, self.left) == (0, 0)
            && (self.out_height, self.out_width) == (self.height, self.width)
    }

    /// What the output rows `rows` see of the channels `channels`.
    fn view<'a>(
        &self,
        picture: &'a [f32],
        channels: Range<usize>,
        rows: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> View<'a> {
        let reach = (rows.len() - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1;
        let pitch = (self.out_width - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1;
        let first_row = (rows.start * self.stride[0]) as isize - self.top;
        let area = self.height * self.width;
        if first_row >= 0
            && first_row as usize + reach <= self.height
            && self.left <= 0
            && pitch + self.left.unsigned_abs() <= self.width
        {
            let begin = channels.start * area + first_row as usize * self.width + self.left.unsigned_abs();
            return View { data: &picture[begin..channels.end * area], pitch: self.width, plane: area };
        }
        let plane = reach * pitch;
        let padded = resized(scratch, channels.len() * plane);
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
        View { data: padded, pitch, plane }
    }

    fn tap_offset(&self, view: &View, tap: usize) -> usize {
        tap / self.kernel[1] * self.dilation[0] * view.pitch + tap % self.kernel[1] * self.dilation[1]
    }
}

/// Rows of some channels, such that every tap of every output is a valid position.
struct View<'a> {
    data: &'a [f32],
    /// Distance between rows.
    pitch: usize,
    /// Distance between channels.
    plane: usize,
}

/// im2col with outputs as lines and `(channel, tap)` as depth: the right factor of a convolution.
pub(super) struct Pixels<'a> {
    pub window: Window,
    pub picture: &'a [f32],
}

impl Pack for Pixels<'_> {
    fn pack(
        &self,
        isa: Isa,
        width: usize,
        lines: Range<usize>,
        depth: Range<usize>,
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
        let window = &self.window;
        let taps = window.taps();
        let channels = depth.start / taps..depth.end.div_ceil(taps);
        let rows = lines.start / window.out_width..(lines.end - 1) / window.out_width + 1;
        let view = window.view(self.picture, channels.clone(), rows.clone(), scratch);
        let offsets: Vec<usize> =
            (0..channels.len() * taps).map(|d| d / taps * view.plane + window.tap_offset(&view, d % taps)).collect();
        for (first, panel) in lines.clone().step_by(width).zip(out.chunks_exact_mut(width * offsets.len())) {
            let used = width.min(lines.end - first);
            let mut positions = [0; MAX_WIDTH];
            for (lane, position) in positions[..used].iter_mut().enumerate() {
                let (y, x) = ((first + lane) / window.out_width - rows.start, (first + lane) % window.out_width);
                *position = y * window.stride[0] * view.pitch + x * window.stride[1];
            }
            copy_runs(isa, view.data, &positions[..used], &offsets, width, panel);
        }
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

/// im2col with `(channel, tap)` as lines and outputs as depth: the right factor of a weight gradient.
pub(super) struct Taps<'a> {
    pub window: Window,
    pub picture: &'a [f32],
}

impl Pack for Taps<'_> {
    fn pack(
        &self,
        isa: Isa,
        width: usize,
        lines: Range<usize>,
        depth: Range<usize>,
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
        let window = &self.window;
        let taps = window.taps();
        let channels = lines.start / taps..lines.end.div_ceil(taps);
        let rows = depth.start / window.out_width..depth.end / window.out_width;
        let view = window.view(self.picture, channels.clone(), rows.clone(), scratch);
        for (first, panel) in lines.clone().step_by(width).zip(out.chunks_exact_mut(width * depth.len())) {
            let used = width.min(lines.end - first);
            let mut starts = [0; MAX_WIDTH];
            for (lane, start) in starts[..used].iter_mut().enumerate() {
                let line = first + lane;
                *start = (line / taps - channels.start) * view.plane + window.tap_offset(&view, line % taps);
            }
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

    fn depth_step(&self) -> usize {
        self.window.out_width
    }
}
