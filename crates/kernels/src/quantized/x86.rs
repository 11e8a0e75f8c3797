//! The vectors of AVX2 and of AVX512-VNNI.

use super::vectors::{Tile, Vectors, Work};
use std::arch::x86_64::*;

/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_vnni(work: impl Work) {
    work.run(X86::<true>(()));
}

/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2(work: impl Work) {
    work.run(X86::<false>(()));
}

/// AVX2, FMA and F16C; with AVX-512's F, BW, DQ, VL and VNNI where `VNNI`.
#[derive(Clone, Copy)]
pub(super) struct X86<const VNNI: bool>(());

// SAFETY of every block below that has no pointer: the token exists, so the processor has the instructions.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Vectors for X86<VNNI> {
    type B = __m256i;
    type F = __m256;
    const LANES: usize = if VNNI { 16 } else { 8 };
    const ROWS: usize = if VNNI { 8 } else { 4 };

    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> __m256i {
        // SAFETY: the caller vouches for the pointer.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // Of an address that is nowhere, nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_twice(self, p: *const u8) -> __m256i {
        // SAFETY: the caller vouches for the pointer.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, mask: u8) -> __m256i {
        unsafe { _mm256_and_si256(a, _mm256_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn flip(self, a: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, _mm256_set1_epi8(i8::MIN)) }
    }
    #[inline(always)]
    fn shr(self, a: __m256i, n: i32) -> __m256i {
        unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    fn shl(self, a: __m256i, n: i32) -> __m256i {
        unsafe { _mm256_sll_epi16(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    fn nibbles(self, a: __m256i) -> __m256i {
        unsafe { self.and(_mm256_srlv_epi64(a, _mm256_setr_epi64x(0, 0, 4, 4)), 15) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], a: __m256i) -> __m256i {
        unsafe { _mm256_shuffle_epi8(self.load_twice(table.as_ptr()), a) }
    }
    #[inline(always)]
    fn sixteens(self, bits: u32) -> __m256i {
        unsafe {
            if VNNI {
                return _mm256_maskz_set1_epi8(bits, 16);
            }
            // Each byte gets the byte of `bits` that has its bit, and looks at that.
            let places = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), places);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            self.and(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), 16)
        }
    }
    #[inline(always)]
    fn dot(self, codes: __m256i, x: __m256i, small: bool) -> __m256 {
        unsafe {
            _mm256_cvtepi32_ps(if VNNI {
                _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, x)
            } else {
                dot_256(codes, x, small)
            })
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, r: [__m256i; 8], out: *mut u8, stride: usize) {
        // SAFETY: the caller vouches for the places.
        unsafe {
            let (mut pairs, mut fours) = (r, r);
            for i in 0..4 {
                pairs[i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]); // words 0, 1 | 4, 5 of two rows
                pairs[i + 4] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]); // words 2, 3 | 6, 7
            }
            for half in 0..2 {
                for i in 0..2 {
                    let (a, b) = (pairs[4 * half + 2 * i], pairs[4 * half + 2 * i + 1]);
                    fours[4 * half + i] = _mm256_unpacklo_epi64(a, b); // word 2 half | 4 + 2 half of four rows
                    fours[4 * half + 2 + i] = _mm256_unpackhi_epi64(a, b);
                }
            }
            for word in 0..4 {
                let (a, b) = (fours[2 * word], fours[2 * word + 1]);
                _mm256_storeu_si256(out.add(word * stride).cast(), _mm256_permute2x128_si256::<0x20>(a, b));
                _mm256_storeu_si256(out.add((word + 4) * stride).cast(), _mm256_permute2x128_si256::<0x31>(a, b));
            }
        }
    }
    #[inline(always)]
    fn unsigned(self, bytes: u64) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64))) }
    }
    #[inline(always)]
    fn signed(self, bytes: u64) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes as i64))) }
    }
    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8, stride: usize, count: usize) -> __m256 {
        // SAFETY: the caller vouches for so many.
        unsafe {
            let at = |i: usize| p.add(i * stride).cast::<i16>().read_unaligned();
            if count == 8 {
                return _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
            }
            let mut words = [0u64; 2];
            for i in 0..count {
                words[i / 4] |= u64::from(at(i) as u16) << (i % 4 * 16);
            }
            _mm256_cvtph_ps(_mm_set_epi64x(words[1] as i64, words[0] as i64))
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn two(self, p: *const f32) -> __m256 {
        // SAFETY: the caller vouches for two floats.
        unsafe { _mm256_set_m128(_mm_set1_ps(*p.add(1)), _mm_set1_ps(*p)) }
    }
    #[inline(always)]
    unsafe fn floats(self, p: *const f32) -> __m256 {
        // SAFETY: the caller vouches for the pointer.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: __m256) {
        // SAFETY: the caller vouches for the pointer.
        unsafe { _mm256_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn half_floats(self, p: *const u8) -> __m256 {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn upper_halves(self, p: *const u8) -> __m256 {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sums(self, a: [__m256; 8]) -> __m256 {
        unsafe {
            let first = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
            let last = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
            // Each half has four sums of half the lanes.
            let low = _mm256_permute2f128_ps::<0x20>(first, last);
            _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(first, last))
        }
    }
    #[inline(always)]
    unsafe fn tile(self, tile: Tile) {
        // SAFETY: the caller's promise, and the token's.
        unsafe { if VNNI { tile_512(tile) } else { tile_256(tile) } }
    }
}

/// Eight sums of four products of unsigned and signed bytes. Two products of codes below 128 fit into 16 bits.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn dot_256(codes: __m256i, x: __m256i, small: bool) -> __m256i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        if small {
            return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1));
        }
        let even = _mm256_and_si256(codes, _mm256_set1_epi16(255));
        let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), _mm256_srai_epi16::<8>(x));
        _mm256_add_epi32(_mm256_madd_epi16(even, x_even), odd)
    }
}

/// [`Vectors::tile`] of 16 rows of weights and 8 of activations.
///
/// # Safety
/// As there, and the processor has AVX-512 with VNNI.
#[inline(always)]
unsafe fn tile_512(t: Tile) {
    const ROWS: usize = 8;
    // SAFETY: every place lies within the shapes that the caller vouches for.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); ROWS];
        for group in 0..t.subs * t.groups {
            let mut dots = [_mm512_setzero_si512(); ROWS];
            for step in 0..8 / t.groups {
                let step = group * (8 / t.groups) + step;
                let codes = _mm512_loadu_si512(t.codes.add(step * 64).cast());
                let x = t.x_codes.add(step * 4 * ROWS).cast::<i32>();
                for (row, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm512_dpbusd_epi32(*dot, codes, _mm512_set1_epi32(x.add(row).read_unaligned()));
                }
            }
            let scales = _mm512_loadu_ps(t.scales.add(group * 16));
            let offsets = _mm512_loadu_ps(t.offsets.add(group * 16));
            for (row, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*t.x_scales.add(group * ROWS + row)));
                let x_sum = _mm512_set1_ps(*t.x_sums.add(group * ROWS + row));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *sum);
                *sum = _mm512_fmadd_ps(offsets, x_sum, *sum);
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(t.out.add(16 * row), sum);
        }
    }
}

/// [`Vectors::tile`] of 8 rows of weights and 4 of activations.
///
/// # Safety
/// As there, and the processor has AVX2 and FMA.
#[inline(always)]
unsafe fn tile_256(t: Tile) {
    const ROWS: usize = 4;
    // SAFETY: every place lies within the shapes that the caller vouches for.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); ROWS];
        for group in 0..t.subs * t.groups {
            let mut dots = [_mm256_setzero_si256(); ROWS];
            for step in 0..8 / t.groups {
                let step = group * (8 / t.groups) + step;
                let codes = _mm256_loadu_si256(t.codes.add(step * 32).cast());
                let x = t.x_codes.add(step * 4 * ROWS).cast::<i32>();
                for (row, dot) in dots.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(x.add(row).read_unaligned());
                    *dot = _mm256_add_epi32(*dot, dot_256(codes, x, t.small));
                }
            }
            let scales = _mm256_loadu_ps(t.scales.add(group * 8));
            let offsets = _mm256_loadu_ps(t.offsets.add(group * 8));
            for (row, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps(*t.x_scales.add(group * ROWS + row)));
                let x_sum = _mm256_set1_ps(*t.x_sums.add(group * ROWS + row));
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, *sum);
                *sum = _mm256_fmadd_ps(offsets, x_sum, *sum);
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(t.out.add(8 * row), sum);
        }
    }
}
