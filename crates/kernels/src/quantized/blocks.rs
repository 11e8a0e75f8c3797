//! Blocks as the products see them: in sub-blocks of 32 numbers `scale * code + offset`, with codes from 0 on. Numbers
//! around 0 get an offset of so many negative scales. Where 16 numbers share a scale, a sub-block has two groups.

use super::dequantize::STEPS;
use super::vectors::Vectors;

/// A format whose numbers are codes.
pub(super) trait Blocks {
    /// Scales in a sub-block: 1 or 2.
    const GROUPS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Sub-blocks in a block: 1 or 8.
    const SUBS: usize;
    /// Whether all codes are below 128.
    const SMALL: bool;

    /// The scales and offsets of the eight sub-blocks from `p` on, in one vector where these have one group, else in two.
    ///
    /// # Safety
    /// Eight sub-blocks are readable there.
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2];

    /// The scale and offset of a single sub-block. Blocks of eight are never asked.
    ///
    /// # Safety
    /// A block is readable there.
    #[inline(always)]
    unsafe fn scale<V: Vectors>(_: V, _: *const u8) -> [f32; 2] {
        [f32::NAN; 2]
    }

    /// The codes of sub-block `j` from `p` on.
    ///
    /// # Safety
    /// So many are readable there.
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B;
}

/// # Safety
/// `p` is readable for an integer `T`.
#[inline(always)]
pub(super) unsafe fn read<T: Copy>(p: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { p.cast::<T>().read_unaligned() }
}

/// Scale of each of eight small blocks, and an offset of `zero` negative scales.
///
/// # Safety
/// The blocks are readable.
#[inline(always)]
unsafe fn around<V: Vectors>(v: V, p: *const u8, stride: usize, zero: f32) -> [[V::F; 2]; 2] {
    // SAFETY: the caller's promise.
    let d = unsafe { v.halves(p, stride) };
    let offset = v.mul(d, v.splat(-zero));
    [[d, d], [offset, offset]]
}

/// # Safety
/// Two bytes are readable.
#[inline(always)]
unsafe fn around_one<V: Vectors>(v: V, p: *const u8, zero: f32) -> [f32; 2] {
    // SAFETY: the caller's promise.
    let d = v.half(u16::from_le(unsafe { read(p) }));
    [d, -zero * d]
}

/// Scale and offset of each of eight small blocks, one after the other in each.
///
/// # Safety
/// The blocks are readable.
#[inline(always)]
unsafe fn both<V: Vectors>(v: V, p: *const u8, stride: usize) -> [[V::F; 2]; 2] {
    // SAFETY: the caller's promise.
    let (d, offset) = unsafe { (v.halves(p, stride), v.halves(p.add(2), stride)) };
    [[d, d], [offset, offset]]
}

/// # Safety
/// Four bytes are readable.
#[inline(always)]
unsafe fn both_one<V: Vectors>(v: V, p: *const u8) -> [f32; 2] {
    // SAFETY: the caller's promise.
    unsafe { [v.half(u16::from_le(read(p))), v.half(u16::from_le(read(p.add(2))))] }
}

/// Codes of 32 numbers in 16 bytes.
///
/// # Safety
/// They are readable.
#[inline(always)]
pub(super) unsafe fn nibbles<V: Vectors>(v: V, p: *const u8) -> V::B {
    // SAFETY: the caller's promise.
    v.nibbles(unsafe { v.load_twice(p) })
}

/// [`STEPS`] from 0 on: 128 more.
pub(super) const STEPS_UP: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (STEPS[i] as i16 + 128) as u8;
        i += 1;
    }
    table
};

pub(super) struct Q4_0;

impl Blocks for Q4_0 {
    const GROUPS: usize = 1;
    const BYTES: usize = 18;
    const SUBS: usize = 1;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { around(v, p, Self::BYTES, 8.0) }
    }
    #[inline(always)]
    unsafe fn scale<V: Vectors>(v: V, p: *const u8) -> [f32; 2] {
        // SAFETY: the caller's promise.
        unsafe { around_one(v, p, 8.0) }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let p = p.add(j * Self::BYTES);
            nibbles(v, p.add(2))
        }
    }
}

pub(super) struct Q4_1;

impl Blocks for Q4_1 {
    const GROUPS: usize = 1;
    const BYTES: usize = 20;
    const SUBS: usize = 1;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { both(v, p, Self::BYTES) }
    }
    #[inline(always)]
    unsafe fn scale<V: Vectors>(v: V, p: *const u8) -> [f32; 2] {
        // SAFETY: the caller's promise.
        unsafe { both_one(v, p) }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let p = p.add(j * Self::BYTES);
            nibbles(v, p.add(4))
        }
    }
}

pub(super) struct Q5_0;

impl Blocks for Q5_0 {
    const GROUPS: usize = 1;
    const BYTES: usize = 22;
    const SUBS: usize = 1;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { around(v, p, Self::BYTES, 16.0) }
    }
    #[inline(always)]
    unsafe fn scale<V: Vectors>(v: V, p: *const u8) -> [f32; 2] {
        // SAFETY: the caller's promise.
        unsafe { around_one(v, p, 16.0) }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let p = p.add(j * Self::BYTES);
            v.or(nibbles(v, p.add(6)), v.sixteens(u32::from_le(read(p.add(2)))))
        }
    }
}

pub(super) struct Q5_1;

impl Blocks for Q5_1 {
    const GROUPS: usize = 1;
    const BYTES: usize = 24;
    const SUBS: usize = 1;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { both(v, p, Self::BYTES) }
    }
    #[inline(always)]
    unsafe fn scale<V: Vectors>(v: V, p: *const u8) -> [f32; 2] {
        // SAFETY: the caller's promise.
        unsafe { both_one(v, p) }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let p = p.add(j * Self::BYTES);
            v.or(nibbles(v, p.add(8)), v.sixteens(u32::from_le(read(p.add(4)))))
        }
    }
}

pub(super) struct Q8_0;

impl Blocks for Q8_0 {
    const GROUPS: usize = 1;
    const BYTES: usize = 34;
    const SUBS: usize = 1;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { around(v, p, Self::BYTES, 128.0) }
    }
    #[inline(always)]
    unsafe fn scale<V: Vectors>(v: V, p: *const u8) -> [f32; 2] {
        // SAFETY: the caller's promise.
        unsafe { around_one(v, p, 128.0) }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let p = p.add(j * Self::BYTES);
            v.flip(v.load(p.add(2)))
        }
    }
}

pub(super) struct Iq4Nl;

impl Blocks for Iq4Nl {
    const GROUPS: usize = 1;
    const BYTES: usize = 18;
    const SUBS: usize = 1;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn scales<V: Vectors>(v: V, p: *const u8) -> [[V::F; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { around(v, p, Self::BYTES, 128.0) }
    }
    #[inline(always)]
    unsafe fn scale<V: Vectors>(v: V, p: *const u8) -> [f32; 2] {
        // SAFETY: the caller's promise.
        unsafe { around_one(v, p, 128.0) }
    }
    #[inline(always)]
    unsafe fn codes<V: Vectors>(v: V, p: *const u8, j: usize) -> V::B {
        // SAFETY: the caller's promise.
        unsafe {
            let p = p.add(j * Self::BYTES);
            v.lookup(&STEPS_UP, nibbles(v, p.add(2)))
        }
    }
}
