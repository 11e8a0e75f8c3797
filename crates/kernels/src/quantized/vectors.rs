//! Vectors of 32 bytes and 8 floats, from which codes are unpacked and multiplied. The width is the same for each
//! instruction set, because half a register of AVX-512 is what an instruction handles a block's 32 numbers with.

use super::dequantize::half;
use crate::isa::{has_f16, has_vnni};

/// Instruction sets that quantised products are written for, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Whatever the compiler makes of plain Rust.
    Portable,
    /// AVX2 with FMA and F16C: products of bytes are added by twos in 16 bits.
    Avx2,
    /// AVX-512 with VNNI: products of bytes are added by fours in 32 bits.
    Vnni,
}

impl Level {
    /// Rows of weights in a panel: [`Vectors::LANES`] of the level's token.
    pub fn lanes(self) -> usize {
        if self == Self::Vnni { 16 } else { 8 }
    }

    /// Rows of activations in a tile: [`Vectors::ROWS`] of the level's token.
    pub fn rows(self) -> usize {
        if self == Self::Vnni { 8 } else { 4 }
    }
}

/// The best level of this processor.
pub(super) fn level() -> Level {
    if has_vnni() {
        Level::Vnni
    } else if has_f16() {
        Level::Avx2
    } else {
        Level::Portable
    }
}

/// The arguments of [`Vectors::tile`]; `subs` counts blocks of 32 along the depth, `groups` scales in each.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub subs: usize,
    pub groups: usize,
    /// All codes of the weights are below 128.
    pub small: bool,
    /// Codes `(subs, 8, LANES, 4)` of the weights.
    pub codes: *const u8,
    /// Their scales `(subs, groups, LANES)`.
    pub scales: *const f32,
    /// Their offsets `(subs, groups, LANES)`.
    pub offsets: *const f32,
    /// Codes `(subs, 8, ROWS, 4)` of the activations.
    pub x_codes: *const i8,
    /// Their scales `(subs, groups, ROWS)`.
    pub x_scales: *const f32,
    /// Their sums `(subs, groups, ROWS)`.
    pub x_sums: *const f32,
    /// The products `(ROWS, LANES)`.
    pub out: *mut f32,
}

/// A token for a level that this processor has, with its vector operations. As for [`crate::simd::Simd`], only
/// [`dispatch`] makes tokens, and everything written over this trait is `#[inline(always)]`.
pub(super) trait Vectors: Copy {
    /// 32 bytes.
    type B: Copy;
    /// 8 floats.
    type F: Copy;
    /// Rows of weights in a panel: 8 or 16.
    const LANES: usize;
    /// Rows of activations in a tile.
    const ROWS: usize;

    /// Reads 32 bytes.
    ///
    /// # Safety
    /// `p` is readable for them.
    unsafe fn load(self, p: *const u8) -> Self::B;
    /// Begins to fetch the line of memory at `p`, which may be anywhere.
    fn prefetch(self, p: *const u8);
    /// Reads 16 bytes into both halves.
    ///
    /// # Safety
    /// `p` is readable for them.
    unsafe fn load_twice(self, p: *const u8) -> Self::B;
    /// `a & mask`, for each byte.
    fn and(self, a: Self::B, mask: u8) -> Self::B;
    /// `a | b`.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a` with the highest bit of each byte flipped.
    fn flip(self, a: Self::B) -> Self::B;
    /// Shifts pairs of bytes to the right: the bits that come into the lower bytes at the top are to be masked off.
    fn shr(self, a: Self::B, n: i32) -> Self::B;
    /// Shifts pairs of bytes to the left: the bits that come into the upper bytes at the bottom are to be 0.
    fn shl(self, a: Self::B, n: i32) -> Self::B;
    /// The lower nibbles of the first half, the upper ones of the second.
    fn nibbles(self, a: Self::B) -> Self::B;
    /// `table[a]`, for bytes below 16.
    fn lookup(self, table: &[u8; 16], a: Self::B) -> Self::B;
    /// 16 in each byte whose bit is set, else 0.
    fn sixteens(self, bits: u32) -> Self::B;
    /// Eight sums of four products each of unsigned and signed bytes. `small` vouches for codes below 128.
    fn dot(self, codes: Self::B, x: Self::B, small: bool) -> Self::F;
    /// Writes word `i` of the eight rows one after the other to `out + i * stride`, for the eight words.
    ///
    /// # Safety
    /// Those places are writable.
    unsafe fn transpose(self, rows: [Self::B; 8], out: *mut u8, stride: usize);

    /// Eight unsigned bytes, the first in the lowest bits.
    fn unsigned(self, bytes: u64) -> Self::F;
    /// Eight signed bytes, the first in the lowest bits.
    fn signed(self, bytes: u64) -> Self::F;
    /// An f16.
    fn half(self, bits: u16) -> f32;
    /// Up to eight f16, `stride` bytes apart, then zeros.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn halves(self, p: *const u8, stride: usize, count: usize) -> Self::F;
    /// All lanes equal to `x`.
    fn splat(self, x: f32) -> Self::F;
    /// The first float in the first four lanes, the next in the others.
    ///
    /// # Safety
    /// `p` is readable for two floats.
    unsafe fn two(self, p: *const f32) -> Self::F;
    /// Reads 8 floats.
    ///
    /// # Safety
    /// `p` is readable for them.
    unsafe fn floats(self, p: *const f32) -> Self::F;
    /// Writes 8 floats.
    ///
    /// # Safety
    /// `p` is writable for them.
    unsafe fn store(self, p: *mut f32, a: Self::F);
    /// Reads eight f16.
    ///
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn half_floats(self, p: *const u8) -> Self::F;
    /// Reads eight floats without their lower 16 bits.
    ///
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn upper_halves(self, p: *const u8) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sums of the lanes of eight vectors, added in a fixed order.
    fn sums(self, a: [Self::F; 8]) -> Self::F;

    /// The product of a panel of weights and a tile of activations: for each sub-block and group, the products of codes,
    /// added, times both scales, plus the offset times the activations' sum.
    ///
    /// # Safety
    /// The pointers are good for the shapes that [`Tile`] names.
    unsafe fn tile(self, tile: Tile);
}

/// Work that can be compiled for any level.
pub(super) trait Work {
    /// Does the work. Implementations are `#[inline(always)]`.
    fn run<V: Vectors>(self, v: V);
}

/// Does `work` with the instructions of a level, or of the best one below it that this processor has.
pub(super) fn dispatch(wanted: Level, work: impl Work) {
    match wanted.min(level()) {
        // SAFETY: `level` has found the instructions on this processor.
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => unsafe { super::x86::run_vnni(work) },
        // SAFETY: as above; what VNNI comes with includes AVX2, FMA and F16C.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { super::x86::run_avx2(work) },
        _ => work.run(Portable),
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
struct Portable;

impl Portable {
    /// `out[i] = f(i)`.
    #[inline(always)]
    fn bytes(f: impl Fn(usize) -> u8) -> [u8; 32] {
        std::array::from_fn(f)
    }
}

impl Vectors for Portable {
    type B = [u8; 32];
    type F = [f32; 8];
    const LANES: usize = 8;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> [u8; 32] {
        // SAFETY: the caller vouches for 32 bytes.
        unsafe { p.cast::<[u8; 32]>().read_unaligned() }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    unsafe fn load_twice(self, p: *const u8) -> [u8; 32] {
        // SAFETY: the caller vouches for 16 bytes.
        let half = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        Self::bytes(|i| half[i % 16])
    }
    #[inline(always)]
    fn and(self, a: [u8; 32], mask: u8) -> [u8; 32] {
        a.map(|x| x & mask)
    }
    #[inline(always)]
    fn or(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        Self::bytes(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn flip(self, a: [u8; 32]) -> [u8; 32] {
        a.map(|x| x ^ 128)
    }
    #[inline(always)]
    fn shr(self, a: [u8; 32], n: i32) -> [u8; 32] {
        a.map(|x| x >> n)
    }
    #[inline(always)]
    fn shl(self, a: [u8; 32], n: i32) -> [u8; 32] {
        a.map(|x| x << n)
    }
    #[inline(always)]
    fn nibbles(self, a: [u8; 32]) -> [u8; 32] {
        Self::bytes(|i| a[i] >> (i / 16 * 4) & 15)
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], a: [u8; 32]) -> [u8; 32] {
        a.map(|x| table[usize::from(x & 15)])
    }
    #[inline(always)]
    fn sixteens(self, bits: u32) -> [u8; 32] {
        Self::bytes(|i| (bits >> i & 1) as u8 * 16)
    }
    #[inline(always)]
    fn dot(self, codes: [u8; 32], x: [u8; 32], _: bool) -> [f32; 8] {
        let products: [i32; 32] = std::array::from_fn(|i| i32::from(codes[i]) * i32::from(x[i] as i8));
        std::array::from_fn(|i| products[4 * i..4 * i + 4].iter().sum::<i32>() as f32)
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: [[u8; 32]; 8], out: *mut u8, stride: usize) {
        for (row, bytes) in rows.iter().enumerate() {
            for (word, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
                // SAFETY: the caller vouches for eight words in each of eight places.
                unsafe { out.add(word * stride + row * 4).cast::<[u8; 4]>().write(*bytes) };
            }
        }
    }
    #[inline(always)]
    fn unsigned(self, bytes: u64) -> [f32; 8] {
        bytes.to_le_bytes().map(f32::from)
    }
    #[inline(always)]
    fn signed(self, bytes: u64) -> [f32; 8] {
        bytes.to_le_bytes().map(|x| f32::from(x as i8))
    }
    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        half(bits)
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8, stride: usize, count: usize) -> [f32; 8] {
        let mut out = [0.0; 8];
        for (i, out) in out.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for so many.
            *out = half(u16::from_le_bytes(unsafe { p.add(i * stride).cast::<[u8; 2]>().read() }));
        }
        out
    }
    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn two(self, p: *const f32) -> [f32; 8] {
        // SAFETY: the caller vouches for two floats.
        let [a, b] = unsafe { p.cast::<[f32; 2]>().read() };
        [a, a, a, a, b, b, b, b]
    }
    #[inline(always)]
    unsafe fn floats(self, p: *const f32) -> [f32; 8] {
        // SAFETY: the caller vouches for eight floats.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: [f32; 8]) {
        // SAFETY: the caller vouches for eight floats.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn half_floats(self, p: *const u8) -> [f32; 8] {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { self.halves(p, 2, 8) }
    }
    #[inline(always)]
    unsafe fn upper_halves(self, p: *const u8) -> [f32; 8] {
        // SAFETY: the caller vouches for 16 bytes.
        let words = unsafe { p.cast::<[[u8; 2]; 8]>().read() };
        words.map(|word| f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16))
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn sums(self, a: [[f32; 8]; 8]) -> [f32; 8] {
        a.map(|a| ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7])))
    }
    #[inline(always)]
    unsafe fn tile(self, t: Tile) {
        let mut sums = [[0f32; 8]; 4];
        // SAFETY: every place lies within the shapes that the caller vouches for.
        unsafe {
            for group in 0..t.subs * t.groups {
                let mut dots = [[0i32; 8]; 4];
                for step in group * 8 / t.groups..(group + 1) * 8 / t.groups {
                    let codes = t.codes.add(step * 32).cast::<[[u8; 4]; 8]>().read();
                    let x = t.x_codes.add(step * 16).cast::<[[i8; 4]; 4]>().read();
                    for (dots, x) in dots.iter_mut().zip(x) {
                        for (dot, codes) in dots.iter_mut().zip(codes) {
                            *dot += (0..4).map(|i| i32::from(codes[i]) * i32::from(x[i])).sum::<i32>();
                        }
                    }
                }
                let scales = self.floats(t.scales.add(group * 8));
                let offsets = self.floats(t.offsets.add(group * 8));
                for (row, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                    let (scale, sum) = (*t.x_scales.add(group * 4 + row), *t.x_sums.add(group * 4 + row));
                    for lane in 0..8 {
                        sums[lane] += dots[lane] as f32 * (scales[lane] * scale) + offsets[lane] * sum;
                    }
                }
            }
            t.out.cast::<[[f32; 8]; 4]>().write(sums);
        }
    }
}
