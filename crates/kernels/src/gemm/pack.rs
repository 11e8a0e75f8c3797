//! Packing: laying a block of a factor out in the order in which the micro-kernel reads it.
//!
//! A factor is seen as `lines` (rows of the left factor, columns of the right one) by `depth` (the summed index). A
//! packed block is a sequence of panels of `width` lines; a panel holds its lines' values depth step by depth step:
//! `out[panel * width * depth + step * width + lane]`. Lanes beyond the last line are zero.

use super::micro::{Format, Micro};
use super::resized;
use crate::isa::Isa;
use crate::precision::rounded;
use std::ops::Range;

/// A factor of a matrix product.
pub(crate) trait Pack: Sync {
    /// Packs a block. The scratch buffer may be grown and used as the packing likes.
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, scratch: &mut Vec<f32>);

    /// Depth is only ever cut at multiples of this.
    fn depth_step(&self) -> usize {
        1
    }
}

/// Where the panels of a block go, in the format of a micro-kernel. Factors write floats; these are rounded, and put
/// together by twos, a panel at a time, while they are near.
pub(crate) struct Panels<'a> {
    /// Lines of a panel.
    pub width: usize,
    format: Format,
    /// Steps of depth.
    steps: usize,
    out: &'a mut [f32],
    unpacked: &'a mut Vec<f32>,
}

impl<'a> Panels<'a> {
    /// Panels of `width` lines and `steps` of depth in `out`, which has room for whole panels, `micro.words(steps)` long.
    pub fn new(micro: &Micro, width: usize, steps: usize, out: &'a mut [f32], unpacked: &'a mut Vec<f32>) -> Self {
        assert!(out.len().is_multiple_of((width * micro.words(steps)).max(1)));
        Self { width, format: micro.format, steps, out, unpacked }
    }

    /// Panels, and floats in one.
    fn sizes(&self) -> (usize, usize) {
        let words = if self.format == Format::Pairs { self.steps.div_ceil(2) } else { self.steps };
        (self.out.len() / (self.width * words).max(1), self.width * self.steps)
    }

    /// Has each panel written: `fill(i, panel)` writes panel `i`, whole.
    pub fn fill_each(&mut self, mut fill: impl FnMut(usize, &mut [f32])) {
        let (count, size) = self.sizes();
        if self.format == Format::Pairs {
            let panel = resized(self.unpacked, size);
            for (i, out) in self.out.chunks_exact_mut(self.out.len() / count.max(1)).enumerate() {
                fill(i, panel);
                pair(panel, self.width, out);
            }
            return;
        }
        for (i, out) in self.out.chunks_exact_mut(size.max(1)).enumerate() {
            fill(i, out);
            if self.format == Format::Rounded {
                out.iter_mut().for_each(|x| *x = rounded(*x));
            }
        }
    }

    /// Has all panels written at once, one after the other.
    pub fn fill_all(&mut self, fill: impl FnOnce(&mut [f32])) {
        let (count, size) = self.sizes();
        if self.format == Format::F32 {
            return fill(self.out);
        }
        let mut all = std::mem::take(self.unpacked);
        fill(resized(&mut all, count * size));
        // `fill_each` is to have a buffer of its own.
        self.fill_each(|i, panel| panel.copy_from_slice(&all[i * size..][..size]));
        *self.unpacked = all;
    }
}

/// A factor from some depth on; `first` is a multiple of the factor's depth step.
pub(crate) struct Deeper<P> {
    pub factor: P,
    pub first: usize,
}

impl<P: Pack> Pack for Deeper<P> {
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, scratch: &mut Vec<f32>) {
        let depth = self.first + depth.start..self.first + depth.end;
        self.factor.pack(isa, lines, depth, panels, scratch);
    }

    fn depth_step(&self) -> usize {
        self.factor.depth_step()
    }
}

impl<P: Pack> Pack for &P {
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, scratch: &mut Vec<f32>) {
        (**self).pack(isa, lines, depth, panels, scratch);
    }

    fn depth_step(&self) -> usize {
        (**self).depth_step()
    }
}

/// Rounds a panel and puts every two of its steps together: [`Format::Pairs`].
fn pair(panel: &[f32], width: usize, out: &mut [f32]) {
    assert!(
        width <= MAX_WIDTH
            && out.len() == panel.len() / width.max(1) / 2 * width + panel.len() / width.max(1) % 2 * width
    );
    #[cfg(target_arch = "x86_64")]
    // SAFETY: this format is chosen only where the processor has AVX512-BF16; the lengths are asserted.
    unsafe {
        x86::pair(panel, width, out);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("pairs of bf16 are multiplied on x86-64 only");
}

/// A matrix anywhere in a slice: the value at line `l`, depth `d` is `data[l * line_stride + d * depth_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub data: &'a [f32],
    pub line_stride: usize,
    pub depth_stride: usize,
}

impl Pack for Strided<'_> {
    fn pack(&self, isa: Isa, lines: Range<usize>, depth: Range<usize>, panels: &mut Panels, _: &mut Vec<f32>) {
        let (width, steps) = (panels.width, depth.len());
        panels.fill_each(|index, panel| {
            let first = lines.start + index * width;
            let used = width.min(lines.end - first);
            let start = first * self.line_stride + depth.start * self.depth_stride;
            if self.line_stride == 1 {
                for (step, row) in panel.chunks_exact_mut(width).enumerate() {
                    let from = start + step * self.depth_stride;
                    row[..used].copy_from_slice(&self.data[from..from + used]);
                    row[used..].fill(0.0);
                }
            } else if self.depth_stride == 1 {
                let mut starts = [0; MAX_WIDTH];
                for (lane, at) in starts[..used].iter_mut().enumerate() {
                    *at = start + lane * self.line_stride;
                }
                transpose(isa, self.data, &starts[..used], steps, width, panel);
            } else {
                for (step, row) in panel.chunks_exact_mut(width).enumerate() {
                    let from = start + step * self.depth_stride;
                    for (lane, out) in row[..used].iter_mut().enumerate() {
                        *out = self.data[from + lane * self.line_stride];
                    }
                    row[used..].fill(0.0);
                }
            }
        });
    }
}

/// The widest panel of any micro-kernel.
pub(crate) const MAX_WIDTH: usize = 32;

/// `out[step * width + lane] = data[starts[lane] + step]` for `step < steps`; lanes without a start become zero.
pub(crate) fn transpose(isa: Isa, data: &[f32], starts: &[usize], steps: usize, width: usize, out: &mut [f32]) {
    assert!(starts.len() <= width && out.len() >= width * steps);
    assert!(starts.iter().all(|start| start + steps <= data.len()));
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: `Isa::Avx512` is only ever handed in where the processor has it; the bounds are asserted above.
        unsafe { x86::transpose(data.as_ptr(), starts, steps, width, out.as_mut_ptr()) };
        return;
    }
    let _ = isa;
    for lane in starts.len()..width {
        for row in out.chunks_exact_mut(width).take(steps) {
            row[lane] = 0.0;
        }
    }
    // Eight steps at a time, so that each cache line of the output is finished while it is near.
    for step in (0..steps).step_by(8) {
        let count = 8.min(steps - step);
        for (lane, start) in starts.iter().enumerate() {
            let from = &data[start + step..start + step + count];
            for (i, value) in from.iter().enumerate() {
                out[(step + i) * width + lane] = *value;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor has AVX512-BF16, BW and F; `out` has `width` floats for every two steps of the panel.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn pair(panel: &[f32], width: usize, out: &mut [f32]) {
        let mut interleaved = [0i16; 32];
        for (i, index) in interleaved.iter_mut().enumerate() {
            *index = (i / 2 + i % 2 * 16) as i16;
        }
        // SAFETY: masks cover the lanes of a step, and steps lie within the panel and the output.
        unsafe {
            let interleaved = _mm512_loadu_si512(interleaved.as_ptr().cast());
            for (steps, out) in panel.chunks(2 * width).zip(out.chunks_exact_mut(width)) {
                for first in (0..width).step_by(16) {
                    let mask = (u32::MAX >> (32 - (width - first).min(16) as u32)) as u16;
                    let low = _mm512_maskz_loadu_ps(mask, steps.as_ptr().add(first));
                    let high = if steps.len() > width {
                        _mm512_maskz_loadu_ps(mask, steps.as_ptr().add(width + first))
                    } else {
                        _mm512_setzero_ps()
                    };
                    let halves: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                    let words = _mm512_permutexvar_epi16(interleaved, halves);
                    _mm512_mask_storeu_epi32(out.as_mut_ptr().add(first).cast(), mask, words);
                }
            }
        }
    }

    /// Sixteen lanes by sixteen steps at a time, transposed in registers.
    ///
    /// # Safety
    /// The processor has AVX-512 F. `data` may be read at `steps` floats from each start; `out` may be written at
    /// `steps * width` floats; `starts.len() <= width`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn transpose(data: *const f32, starts: &[usize], steps: usize, width: usize, out: *mut f32) {
        for first in (0..width).step_by(16) {
            let lanes = 16.min(width - first);
            let rows = starts.get(first..).unwrap_or(&[]);
            let rows = &rows[..rows.len().min(16)];
            let store = (u32::MAX >> (32 - lanes as u32)) as u16;
            for step in (0..steps).step_by(16) {
                let count = 16.min(steps - step);
                // SAFETY: each load stays within the `steps` floats from its start: whole vectors only where 16 steps are
                // left. A whole store of a narrow panel runs into the next step, which is written after it, and so only
                // where there is a next step.
                unsafe {
                    let t = match (count, rows.len()) {
                        (16, 16) => transpose_16(load::<16>(data.add(step), rows)),
                        (16, 12) => transpose_16(load::<12>(data.add(step), rows)),
                        _ => {
                            let mask = (u32::MAX >> (32 - count as u32)) as u16;
                            let mut r = [_mm512_setzero_ps(); 16];
                            for (r, start) in r.iter_mut().zip(rows) {
                                *r = _mm512_maskz_loadu_ps(mask, data.add(start + step));
                            }
                            transpose_16(r)
                        }
                    };
                    let out = out.add(step * width + first);
                    if count == 16 && (lanes == 16 || ((8..16).contains(&width) && step + 16 < steps)) {
                        for (i, t) in t.iter().enumerate() {
                            _mm512_storeu_ps(out.add(i * width), *t);
                        }
                    } else {
                        for (i, t) in t.iter().enumerate().take(count) {
                            _mm512_mask_storeu_ps(out.add(i * width), store, *t);
                        }
                    }
                }
            }
        }
    }

    /// Sixteen steps of the first `R` rows; the others are zero.
    ///
    /// # Safety
    /// `data` may be read at 16 floats from each of the first `R` starts, of which there are as many.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<const R: usize>(data: *const f32, starts: &[usize]) -> [__m512; 16] {
        let mut r = [_mm512_setzero_ps(); 16];
        for i in 0..R {
            // SAFETY: the caller's promise.
            r[i] = unsafe { _mm512_loadu_ps(data.add(starts[i])) };
        }
        r
    }

    /// Transposes a 16 x 16 matrix: pairs, then quadruples within 128-bit lanes, then the lanes themselves.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose_16(r: [__m512; 16]) -> [__m512; 16] {
        let mut t = [_mm512_setzero_ps(); 16];
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        // q[4 * g + c]: column c of each 128-bit lane, rows 4 g to 4 g + 3.
        let mut q = [_mm512_setzero_ps(); 16];
        for g in 0..4 {
            let (a, b, c, d) = (t[4 * g], t[4 * g + 1], t[4 * g + 2], t[4 * g + 3]);
            q[4 * g] = _mm512_shuffle_ps::<0x44>(a, c);
            q[4 * g + 1] = _mm512_shuffle_ps::<0xEE>(a, c);
            q[4 * g + 2] = _mm512_shuffle_ps::<0x44>(b, d);
            q[4 * g + 3] = _mm512_shuffle_ps::<0xEE>(b, d);
        }
        let mut out = [_mm512_setzero_ps(); 16];
        for c in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x88>(q[c], q[4 + c]); // lanes 0, 2 of rows 0-3 and of rows 4-7
            let high = _mm512_shuffle_f32x4::<0xDD>(q[c], q[4 + c]); // lanes 1, 3
            let low2 = _mm512_shuffle_f32x4::<0x88>(q[8 + c], q[12 + c]);
            let high2 = _mm512_shuffle_f32x4::<0xDD>(q[8 + c], q[12 + c]);
            out[c] = _mm512_shuffle_f32x4::<0x88>(low, low2);
            out[8 + c] = _mm512_shuffle_f32x4::<0xDD>(low, low2);
            out[4 + c] = _mm512_shuffle_f32x4::<0x88>(high, high2);
            out[12 + c] = _mm512_shuffle_f32x4::<0xDD>(high, high2);
        }
        out
    }
}
