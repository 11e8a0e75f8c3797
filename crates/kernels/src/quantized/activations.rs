//! The other factor, rounded to bytes: each 32 numbers of a row are `scale * code`, with codes from -127 to 127.
//!
//! A block with a number that is not finite gets a scale of NaN, so that the products say so.

use super::vectors::{Level, Vectors, Work, dispatch};
use crate::threads;

/// Rounded rows, in tiles of some rows each. A tile has its codes `(subs, 8, rows)`, four in a word; its scales
/// `(subs, groups, rows)`; and the sums of what the codes stand for, `(subs, groups, rows)`, all in words. Rows after the last
/// are 0.
pub(super) struct Activations {
    words: Vec<u32>,
    subs: usize,
    groups: usize,
    rows: usize,
}

impl Activations {
    /// Rounds `x` `(m, k)` to tiles of `rows` rows, whose sub-blocks of 32 have `groups` sums each.
    pub fn new(level: Level, x: &[f32], k: usize, rows: usize, groups: usize) -> Self {
        const PIECE: usize = 1 << 14; // words that are worth a task
        let (m, subs) = (x.len() / k, k / 32);
        let tile = tile_words(subs, groups, rows);
        let mut words = vec![0; m.div_ceil(rows) * tile];
        let tiles = PIECE.div_ceil(tile);
        threads::run_chunks(&mut words, tiles * tile, |index, words| {
            let x = &x[index * tiles * rows * k..];
            dispatch(level, Round { x: &x[..x.len().min(tiles * rows * k)], words, k, rows, groups });
        });
        Self { words, subs, groups, rows }
    }

    /// How many tiles there are.
    pub fn tiles(&self) -> usize {
        self.words.len() / tile_words(self.subs, self.groups, self.rows)
    }

    /// Codes, scales and sums of a tile.
    pub fn tile(&self, index: usize) -> (&[u32], &[u32], &[u32]) {
        let tile = tile_words(self.subs, self.groups, self.rows);
        let (codes, rest) = self.words[index * tile..][..tile].split_at(self.subs * 8 * self.rows);
        let (scales, sums) = rest.split_at(rest.len() / 2);
        (codes, scales, sums)
    }
}

fn tile_words(subs: usize, groups: usize, rows: usize) -> usize {
    subs * (8 + 2 * groups) * rows
}

struct Round<'a> {
    x: &'a [f32],
    words: &'a mut [u32],
    k: usize,
    rows: usize,
    groups: usize,
}

impl Work for Round<'_> {
    #[inline(always)]
    fn run<V: Vectors>(self, _: V) {
        let Self { x, words, k, rows, groups } = self;
        let subs = k / 32;
        let tiles = words.chunks_exact_mut(tile_words(subs, groups, rows));
        for (x, words) in x.chunks(rows * k).zip(tiles) {
            let (codes, rest) = words.split_at_mut(subs * 8 * rows);
            let (scales, sums) = rest.split_at_mut(subs * groups * rows);
            for (row, x) in x.chunks_exact(k).enumerate() {
                for (sub, x) in x.as_chunks::<32>().0.iter().enumerate() {
                    let block = rounded(x);
                    for (word, four) in block.codes.as_chunks::<4>().0.iter().enumerate() {
                        codes[(sub * 8 + word) * rows + row] = u32::from_le_bytes(*four);
                    }
                    let [first, second] = block.sums;
                    let block_sums = if groups == 1 { [first + second, 0] } else { [first, second] };
                    for (group, sum) in block_sums.iter().enumerate().take(groups) {
                        let at = (sub * groups + group) * rows + row;
                        scales[at] = block.scale.to_bits();
                        sums[at] = (block.scale * *sum as f32).to_bits();
                    }
                }
            }
        }
    }
}

/// 32 numbers `scale * code`.
struct Block {
    codes: [u8; 32],
    scale: f32,
    /// Of the codes of each half.
    sums: [i32; 2],
}

/// The nearest block to 32 numbers.
#[inline(always)]
fn rounded(x: &[f32; 32]) -> Block {
    /// Below this, 127 / largest would overflow.
    const NOTHING: f32 = 1e-36;
    /// Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits.
    const SHIFT: f32 = 12_582_912.0;
    // As integers, magnitudes have the same order, with infinity and NaN above all numbers.
    let largest = x.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(0, u32::max);
    let largest = f32::from_bits(largest);
    let (scale, inverse) = if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < NOTHING {
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    };
    let codes = x.map(|x| (x * inverse + SHIFT).to_bits() as u8);
    let sum = |codes: &[u8]| codes.iter().map(|code| i32::from(*code as i8)).sum();
    Block { codes, scale, sums: [sum(&codes[..16]), sum(&codes[16..])] }
}
