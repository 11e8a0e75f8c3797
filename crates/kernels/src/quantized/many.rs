//! Products with many rows of activations: a panel of weights is unpacked once, in the order in which the micro-kernel reads
//! it, and multiplied with all tiles of activations while it is near.

use super::activations::Activations;
use super::blocks::Blocks;
use super::vectors::{Tile, Vectors, Work};
use crate::gemm::Output;
use std::marker::PhantomData;
use std::ops::Range;

/// Panels that a tile of activations is multiplied with while it is near.
const PANELS: usize = 4;
/// Numbers in the largest tile of the output.
const MAX_TILE: usize = 16 * 8;

/// `out (m, n) = x (m, k) w^T` for some rows of `w`.
pub(super) struct Many<'a, B> {
    /// Rows `(n, k)` of blocks.
    pub w: &'a [u8],
    pub k: usize,
    /// In tiles of the level's rows.
    pub x: &'a Activations,
    pub out: Output,
    /// Rows of `w` to multiply, from the first of a panel on; nobody else writes these columns of `out`.
    pub rows: Range<usize>,
    pub blocks: PhantomData<B>,
}

/// Panels as [`Tile`] describes them, one after the other.
struct Panels {
    codes: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl<B: Blocks> Work for Many<'_, B> {
    #[inline(always)]
    fn run<V: Vectors>(self, v: V) {
        let subs = self.k / 32;
        let (codes, scales) = (subs * 32 * V::LANES, subs * B::GROUPS * V::LANES);
        let mut panels = Panels {
            codes: vec![0; codes * PANELS],
            scales: vec![0.0; scales * PANELS],
            offsets: vec![0.0; scales * PANELS],
        };
        for first in self.rows.clone().step_by(V::LANES * PANELS) {
            let rows = first..self.rows.end.min(first + V::LANES * PANELS);
            for (panel, first) in rows.clone().step_by(V::LANES).enumerate() {
                // SAFETY: rows of `w` have whole blocks; the token is for this processor.
                unsafe { self.pack(v, first, panel, &mut panels) };
            }
            for tile in 0..self.x.tiles() {
                let (x_codes, x_scales, x_sums) = self.x.tile(tile);
                assert!(x_codes.len() == subs * 8 * V::ROWS && x_sums.len() == subs * B::GROUPS * V::ROWS);
                for (panel, first) in rows.clone().step_by(V::LANES).enumerate() {
                    let mut products = [0f32; MAX_TILE];
                    let arguments = Tile {
                        subs,
                        groups: B::GROUPS,
                        small: B::SMALL,
                        codes: panels.codes[panel * codes..].as_ptr(),
                        scales: panels.scales[panel * scales..].as_ptr(),
                        offsets: panels.offsets[panel * scales..].as_ptr(),
                        x_codes: x_codes.as_ptr().cast(),
                        x_scales: x_scales.as_ptr().cast(),
                        x_sums: x_sums.as_ptr().cast(),
                        out: products.as_mut_ptr(),
                    };
                    let (row, count) = (tile * V::ROWS, V::LANES.min(rows.end - first));
                    assert!(first + count <= self.out.columns);
                    // SAFETY: the panels and the tile of activations have the shapes that `Tile` names, as they are made and
                    // asserted; the outputs lie in rows and columns that there are, and only this task writes there.
                    unsafe {
                        v.tile(arguments);
                        for i in 0..V::ROWS.min(self.out.rows - row) {
                            let to = self.out.data.add((row + i) * self.out.stride + first);
                            std::ptr::copy_nonoverlapping(products.as_ptr().add(i * V::LANES), to, count);
                        }
                    }
                }
            }
        }
    }
}

impl<B: Blocks> Many<'_, B> {
    /// Unpacks the rows from `first` on into a panel; the last row again where there are no more.
    ///
    /// # Safety
    /// `w` holds rows of whole blocks.
    #[inline(always)]
    unsafe fn pack<V: Vectors>(&self, v: V, first: usize, panel: usize, panels: &mut Panels) {
        let subs = self.k / 32;
        let row_bytes = subs / B::SUBS * B::BYTES;
        assert!(self.rows.end * row_bytes <= self.w.len());
        let codes = &mut panels.codes[panel * subs * 32 * V::LANES..][..subs * 32 * V::LANES];
        let groups = subs * B::GROUPS * V::LANES;
        let scales = &mut panels.scales[panel * groups..][..groups];
        let offsets = &mut panels.offsets[panel * groups..][..groups];
        for lane in (0..V::LANES).step_by(8) {
            let starts: [_; 8] = std::array::from_fn(|i| {
                let row = (first + lane + i).min(self.rows.end - 1);
                self.w[row * row_bytes..].as_ptr()
            });
            for sub in (0..subs).step_by(8) {
                let skip = sub / B::SUBS * B::BYTES;
                let count = 8.min(subs - sub);
                for (i, start) in starts.iter().enumerate() {
                    let (mut s, mut o) = ([0f32; 16], [0f32; 16]);
                    // SAFETY: `count` sub-blocks of the row begin here, all of one block unless blocks are single ones.
                    unsafe {
                        let p = start.add(skip);
                        if count == 8 {
                            let [scale, offset] = B::scales(v, p);
                            for group in 0..B::GROUPS {
                                v.store(s.as_mut_ptr().add(8 * group), scale[group]);
                                v.store(o.as_mut_ptr().add(8 * group), offset[group]);
                            }
                        } else {
                            for j in 0..count {
                                [s[j], o[j]] = B::scale(v, p.add(j * B::BYTES));
                            }
                        }
                    }
                    for j in 0..count * B::GROUPS {
                        let at = (sub * B::GROUPS + j) * V::LANES + lane + i;
                        scales[at] = s[j];
                        offsets[at] = o[j];
                    }
                }
                let to = codes[sub * 32 * V::LANES + lane * 4..].as_mut_ptr();
                for j in 0..count {
                    // SAFETY: as above; the eight words of the sub-block have `LANES` places of four bytes each in the panel.
                    unsafe {
                        let mut rows = [B::codes(v, starts[0].add(skip), j); 8];
                        for i in 1..8 {
                            rows[i] = B::codes(v, starts[i].add(skip), j);
                        }
                        v.transpose(rows, to.add(j * 32 * V::LANES), V::LANES * 4);
                    }
                }
            }
        }
    }
}
