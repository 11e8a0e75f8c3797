//! Blocks to floats, one number after the other: the plain twin of everything that reads blocks.
//!
//! Scales are multiplied out in the order of GGML's own reference, so that the floats are the same to the last bit.

use super::Format;
use crate::threads;

/// The steps that the codes of [`Format::IQ4_NL`] and [`Format::IQ4_XS`] choose from.
pub(super) const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Writes the numbers of `blocks` to `out`. Any bytes are valid blocks; scales that are not finite give numbers that are
/// not finite. Large outputs are shared between all threads.
///
/// # Panics
/// `out` is not a whole number of blocks, or `blocks` is not as long as these are.
pub fn dequantize(format: Format, blocks: &[u8], out: &mut [f32]) {
    const PIECE: usize = 1 << 15; // a whole number of blocks of any format
    assert_eq!(Some(blocks.len()), format.bytes_of(out.len()), "dequantize: {} numbers of {format}", out.len());
    let piece_bytes = PIECE / format.block() * format.bytes();
    threads::run_chunks(out, PIECE, |index, out| {
        let bytes = out.len() / format.block() * format.bytes();
        here(format, &blocks[index * piece_bytes..][..bytes], out);
    });
}

/// [`dequantize`] on this thread.
pub(super) fn here(format: Format, blocks: &[u8], out: &mut [f32]) {
    match format {
        Format::F32 => each::<4, 1>(blocks, out, |b, out| out[0] = f32::from_le_bytes(*b)),
        Format::F16 => each::<2, 1>(blocks, out, |b, out| out[0] = half(u16::from_le_bytes(*b))),
        Format::BF16 => {
            each::<2, 1>(blocks, out, |b, out| out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
        }
        Format::Q4_0 => each(blocks, out, q4_0),
        Format::Q4_1 => each(blocks, out, q4_1),
        Format::Q5_0 => each(blocks, out, q5_0),
        Format::Q5_1 => each(blocks, out, q5_1),
        Format::Q8_0 => each(blocks, out, q8_0),
        Format::Q2_K => each(blocks, out, q2_k),
        Format::Q3_K => each(blocks, out, q3_k),
        Format::Q4_K => each(blocks, out, q4_k),
        Format::Q5_K => each(blocks, out, q5_k),
        Format::Q6_K => each(blocks, out, q6_k),
        Format::IQ4_NL => each(blocks, out, iq4_nl),
        Format::IQ4_XS => each(blocks, out, iq4_xs),
    }
}

fn each<const BYTES: usize, const SIZE: usize>(
    blocks: &[u8],
    out: &mut [f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; SIZE]),
) {
    for (block, out) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        one(block, out);
    }
}

/// An f16 as an f32; exact. NaN stays NaN.
#[inline(always)]
pub(super) fn half(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7FFF) << 13);
    let magnitude = if bits & 0x7C00 == 0x7C00 {
        rest | 0x7F80_0000
    } else {
        // The exponents' biases differ by 112; multiplying also makes subnormal numbers normal.
        (f32::from_bits(rest) * f32::from_bits((127 + 112) << 23)).to_bits()
    };
    f32::from_bits(sign | magnitude)
}

fn half_at(block: &[u8], at: usize) -> f32 {
    half(u16::from_le_bytes([block[at], block[at + 1]]))
}

fn bits_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Code `i` of 32 that lie in 16 bytes: the first half in the lower nibbles, the second in the upper ones.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (i / 16 * 4) & 15
}

fn q4_0(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&b[2..], i)) - 8.0);
    }
}

fn q4_1(b: &[u8; 20], out: &mut [f32; 32]) {
    let (d, offset) = (half_at(b, 0), half_at(b, 2));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&b[4..], i)) + offset;
    }
}

fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let (d, high) = (half_at(b, 0), bits_at(b, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let code = nibble(&b[6..], i) | ((high >> i & 1) as u8 * 16);
        *out = d * (f32::from(code) - 16.0);
    }
}

fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, offset, high) = (half_at(b, 0), half_at(b, 2), bits_at(b, 4));
    for (i, out) in out.iter_mut().enumerate() {
        let code = nibble(&b[8..], i) | ((high >> i & 1) as u8 * 16);
        *out = d * f32::from(code) + offset;
    }
}

fn q8_0(b: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (out, code) in out.iter_mut().zip(&b[2..]) {
        *out = d * f32::from(*code as i8);
    }
}

/// 16 bytes of scales (lower nibble) and offsets (upper), 64 of codes, f16 units of both. Each 32 bytes of codes hold four
/// times 32 numbers, the first in the lowest bits.
fn q2_k(b: &[u8; 84], out: &mut [f32; 256]) {
    let (d, d_offset) = (half_at(b, 80), half_at(b, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, offset) = (d * f32::from(b[group] & 15), d_offset * f32::from(b[group] >> 4));
        let codes = &b[16 + group / 8 * 32 + group % 2 * 16..];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(code >> (group % 8 / 2 * 2) & 3) - offset;
        }
    }
}

/// 32 bytes of the codes' highest bits (bit `j` of byte `i` for number `32 j + i`), 64 of their lower two as in Q2_K, 12 of
/// scales, an f16 unit.
fn q3_k(b: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(b, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = b[96 + group % 8] >> (group / 8 * 4) & 15;
        let high = b[104 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (codes, highest) = (&b[32 + group / 8 * 32 + group % 2 * 16..], &b[group % 2 * 16..]);
        for ((out, code), highest) in out.iter_mut().zip(codes).zip(highest) {
            let code = code >> (group % 8 / 2 * 2) & 3 | (highest >> (group / 2) & 1) << 2;
            *out = scale * (f32::from(code) - 4.0);
        }
    }
}

/// Scale and offset `j` of the eight in 12 bytes: the first four scales in the lower 6 bits of bytes 0 to 3, the first four
/// offsets in those of bytes 4 to 7; of the others the lower 4 bits in bytes 8 to 11, the upper 2 in the bits left over.
fn six_bits(b: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (b[j] & 63, b[j + 4] & 63)
    } else {
        (b[j + 4] & 15 | b[j - 4] >> 6 << 4, b[j + 4] >> 4 | b[j] >> 6 << 4)
    }
}

/// f16 units of scales and offsets, 12 bytes of both, 128 of codes: each 32 bytes hold 32 numbers in the lower nibbles, then
/// 32 in the upper.
fn q4_k(b: &[u8; 144], out: &mut [f32; 256]) {
    let (d, d_offset) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = six_bits(&b[4..], j);
        let (scale, offset) = (d * f32::from(scale), d_offset * f32::from(offset));
        for (out, code) in out.iter_mut().zip(&b[16 + j / 2 * 32..]) {
            *out = scale * f32::from(code >> (j % 2 * 4) & 15) - offset;
        }
    }
}

/// As Q4_K, with 32 bytes of the codes' highest bits before the others: bit `j` of byte `i` for number `32 j + i`.
fn q5_k(b: &[u8; 176], out: &mut [f32; 256]) {
    let (d, d_offset) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = six_bits(&b[4..], j);
        let (scale, offset) = (d * f32::from(scale), d_offset * f32::from(offset));
        for ((out, code), highest) in out.iter_mut().zip(&b[48 + j / 2 * 32..]).zip(&b[16..]) {
            let code = code >> (j % 2 * 4) & 15 | (highest >> j & 1) << 4;
            *out = scale * f32::from(code) - offset;
        }
    }
}

/// 128 bytes of the codes' lower 4 bits, 64 of their upper 2, 16 signed bytes of scales, an f16 unit. Half a block has 64
/// bytes of the former (64 numbers in the lower nibbles, then 64 in the upper) and 32 of the latter (32 numbers in the lowest
/// bits, and so on).
fn q6_k(b: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(b, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(b[192 + group] as i8);
        let (part, at) = (group / 2, group % 2 * 16); // of 32 numbers
        let (half, quarter) = (part / 4, part % 4);
        let (low, high) = (&b[half * 64 + quarter % 2 * 32 + at..], &b[128 + half * 32 + at..]);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let code = low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4;
            *out = scale * (f32::from(code) - 32.0);
        }
    }
}

fn iq4_nl(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(STEPS[usize::from(nibble(&b[2..], i))]);
    }
}

/// An f16 unit, 2 bytes of the scales' upper 2 bits, 4 of their lower 4, then 16 bytes of codes for each 32 numbers.
fn iq4_xs(b: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let scale = b[4 + j / 2] >> (j % 2 * 4) & 15 | ((high >> (2 * j) & 3) as u8) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(STEPS[usize::from(nibble(&b[8 + 16 * j..], i))]);
        }
    }
}
