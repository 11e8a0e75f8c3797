//! The blocks of 256 numbers, which [`Blocks`] sees as eight sub-blocks. Layouts are described at their plain twins.

use super::blocks::{Blocks, STEPS_UP, nibbles, read};
use super::vectors::Vectors;

/// Each of the bytes of `x`, `n` bits further right, as far as `mask` lets them through.
#[inline(always)]
fn each(x: u64, n: u32, mask: u8) -> u64 {
    x >> n & u64::from_ne_bytes([mask; 8])
}

/// The scales and the offsets of Q4_K and Q5_K, eight bytes each.
///
/// # Safety
/// 12 bytes are readable.
#[inline(always)]
unsafe fn six_bits(p: *const u8) -> [u64; 2] {
    // SAFETY: the caller's promise.
    let [a, b, c] = unsafe { [read::<u32>(p), read(p.add(4)), read(p.add(8))] }.map(|x| u64::from(u32::from_le(x)));
    let last = [each(c, 0, 15) | each(a, 2, 48), each(c, 4, 15) | each(b, 2, 48)];
    [each(a, 0, 63) | last[0] << 32, each(b, 0, 63) | last[1] << 32]
}

/// Scales and offsets of Q4_K and Q5_K.
///
/// # Safety
/// 16 bytes are readable.
#[inline(always)]
unsafe fn k_scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
    // SAFETY: the caller's promise.
    let ([scales, offsets], d, d_offset) = unsafe { (six_bits(p.add(4)), half_at(v, p), half_at(v, p.add(2))) };
    let (scales, offsets) = (v.mul(v.unsigned(scales), v.splat(d)), v.mul(v.unsigned(offsets), v.splat(-d_offset)));
    [[scales; 2], [offsets; 2]]
}

/// # Safety
/// Two bytes are readable.
#[inline(always)]
unsafe fn half_at<V: Vectors>(v: V, p: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    v.half(u16::from_le(unsafe { read(p) }))
}

/// Offsets of `zero` negative scales.
#[inline(always)]
fn around<V: Vectors>(v: V, scales: [V::F; 2], zero: f32) -> [[V::F; 2]; 2] {
    let zero = v.splat(-zero);
    [scales, [v.mul(scales[0], zero), v.mul(scales[1], zero)]]
}

pub(super) struct Q2K;

impl Blocks for Q2K {
    const GROUPS: usize = 2;
    const BYTES: usize = 84;
    const SUBS: usize = 8;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (bytes, d, d_offset) = ([read(p), read(p.add(8))].map(u64::from_le), half_at(v, p.add(80)), half_at(v, p.add(82)));
            let (d, d_offset) = (v.splat(d), v.splat(-d_offset));
            let [low, high] = bytes.map(|x| each(x, 0, 15));
            let scales = [v.mul(v.unsigned(low), d), v.mul(v.unsigned(high), d)];
            let [low, high] = bytes.map(|x| each(x, 4, 15));
            [scales, [v.mul(v.unsigned(low), d_offset), v.mul(v.unsigned(high), d_offset)]]
        }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            v.and(v.shr(v.load(p.add(16 + j / 4 * 32)), (j % 4 * 2) as i32), 3)
        }
    }
}

pub(super) struct Q3K;

impl Blocks for Q3K {
    const GROUPS: usize = 2;
    const BYTES: usize = 110;
    const SUBS: usize = 8;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (u64::from_le(read(p.add(96))), u32::from_le(read(p.add(104))));
            let high = [high, high >> 2, high >> 4, high >> 6].map(|x| u64::from(x & 0x0303_0303) << 4);
            let scales = [each(low, 0, 15) | high[0] | high[1] << 32, each(low, 4, 15) | high[2] | high[3] << 32];
            let d = half_at(v, p.add(108));
            let (d, zero) = (v.splat(d), v.splat(-32.0));
            let [low, high] = [v.add(v.unsigned(scales[0]), zero), v.add(v.unsigned(scales[1]), zero)];
            around(v, [v.mul(low, d), v.mul(high, d)], 4.0)
        }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let low = v.and(v.shr(v.load(p.add(32 + j / 4 * 32)), (j % 4 * 2) as i32), 3);
            v.or(low, v.shl(v.and(v.shr(v.load(p), j as i32), 1), 2))
        }
    }
}

pub(super) struct Q4K;

impl Blocks for Q4K {
    const GROUPS: usize = 1;
    const BYTES: usize = 144;
    const SUBS: usize = 8;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            k_scales(v, p)
        }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            v.and(v.shr(v.load(p.add(16 + j / 2 * 32)), (j % 2 * 4) as i32), 15)
        }
    }
}

pub(super) struct Q5K;

impl Blocks for Q5K {
    const GROUPS: usize = 1;
    const BYTES: usize = 176;
    const SUBS: usize = 8;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            k_scales(v, p)
        }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let low = v.and(v.shr(v.load(p.add(48 + j / 2 * 32)), (j % 2 * 4) as i32), 15);
            v.or(low, v.shl(v.and(v.shr(v.load(p.add(16)), j as i32), 1), 4))
        }
    }
}

pub(super) struct Q6K;

impl Blocks for Q6K {
    const GROUPS: usize = 2;
    const BYTES: usize = 210;
    const SUBS: usize = 8;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let d = v.splat(half_at(v, p.add(208)));
            let [low, high] = [read(p.add(192)), read(p.add(200))].map(u64::from_le);
            around(v, [v.mul(v.signed(low), d), v.mul(v.signed(high), d)], 32.0)
        }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (v.load(p.add(j / 4 * 64 + j % 2 * 32)), v.load(p.add(128 + j / 4 * 32)));
            let low = v.and(v.shr(low, (j % 4 / 2 * 4) as i32), 15);
            v.or(low, v.shl(v.and(v.shr(high, (j % 4 * 2) as i32), 3), 4))
        }
    }
}

pub(super) struct Iq4Xs;

impl Blocks for Iq4Xs {
    const GROUPS: usize = 1;
    const BYTES: usize = 136;
    const SUBS: usize = 8;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (d, high, low) = (half_at(v, p), u16::from_le(read(p.add(2))), u32::from_le(read(p.add(4))));
            // A nibble of one and two bits of the other for each byte.
            let low = u64::from(low);
            let low = (low | low << 16) & 0x0000_FFFF_0000_FFFF;
            let low = (low | low << 8) & 0x00FF_00FF_00FF_00FF;
            let low = (low | low << 4) & 0x0F0F_0F0F_0F0F_0F0F;
            let high = u64::from(high);
            let high = (high | high << 24) & 0x0000_00FF_0000_00FF;
            let high = (high | high << 12) & 0x000F_000F_000F_000F;
            let high = (high | high << 6) & 0x0303_0303_0303_0303;
            let scales = v.mul(v.add(v.unsigned(low | high << 4), v.splat(-32.0)), v.splat(d));
            around(v, [scales; 2], 128.0)
        }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            v.lookup(&STEPS_UP, nibbles(v, p.add(8 + 16 * j)))
        }
    }
}
