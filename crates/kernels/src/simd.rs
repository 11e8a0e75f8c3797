//! Vectors of f32 whose width is chosen at run time: a kernel is written once over [`Simd`] and compiled for each
//! instruction set.

use crate::isa::{Isa, isa};

/// A token for an instruction set that this processor has, with its vector operations.
///
/// Whoever holds a token may use the instructions: only [`dispatch`] makes tokens, after it has asked the processor.
/// All methods are inlined into a function compiled for the instruction set, so kernels written over this trait must be
/// `#[inline(always)]` themselves and must not pass vectors through closures.
pub(crate) trait Simd: Copy {
    /// A vector of [`Self::LANES`] floats.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of a register tile three vectors wide that fit into the registers.
    const TILE_ROWS: usize;

    /// All lanes equal to `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Reads `LANES` floats.
    ///
    /// # Safety
    /// `p` is readable for that many floats.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Writes `LANES` floats.
    ///
    /// # Safety
    /// `p` is writable for that many floats.
    unsafe fn store(self, p: *mut f32, x: Self::V);
    /// Reads `count < LANES` floats; the other lanes are 0.
    ///
    /// # Safety
    /// `p` is readable for `count` floats.
    unsafe fn load_first(self, p: *const f32, count: usize) -> Self::V;
    /// Writes the first `count < LANES` floats.
    ///
    /// # Safety
    /// `p` is writable for `count` floats.
    unsafe fn store_first(self, p: *mut f32, count: usize, x: Self::V);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `|a|`.
    fn abs(self, a: Self::V) -> Self::V;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Nearest integer.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for integers `n <= 127`; 0 where `n < -126`, or less.
    fn scale_by_power(self, a: Self::V, n: Self::V) -> Self::V;
    /// `positive` where `sign > 0`, else `negative`; `negative` where `sign` is NaN.
    fn select_positive(self, sign: Self::V, positive: Self::V, negative: Self::V) -> Self::V;
    /// Sum of the lanes, always added in the same order.
    fn sum(self, a: Self::V) -> f32;
    /// Largest lane.
    fn largest(self, a: Self::V) -> f32;
}

/// Work that can be compiled for any instruction set.
pub(crate) trait Kernel {
    /// What the work returns.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` with the best instruction set.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match isa() {
        // SAFETY: `isa` has found the instructions on this processor.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
        _ => kernel.run(Portable),
    }
}

/// Plain Rust on four floats at a time, which every common processor has vectors for.
#[derive(Clone, Copy)]
struct Portable;

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for four floats; arrays of floats may be read unaligned.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: [f32; 4]) {
        // SAFETY: as in `load`.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, count: usize) -> [f32; 4] {
        let mut x = [0.0; 4];
        for (i, lane) in x.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` floats.
            *lane = unsafe { *p.add(i) };
        }
        x
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, count: usize, x: [f32; 4]) {
        for (i, lane) in x.iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` floats.
            unsafe { *p.add(i) = *lane };
        }
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]]
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]]
    }
    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] / b[0], a[1] / b[1], a[2] / b[2], a[3] / b[3]]
    }
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // Two roundings: without the instruction, `mul_add` would be a slow library call.
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: [f32; 4]) -> [f32; 4] {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; 4]) -> [f32; 4] {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn round(self, a: [f32; 4]) -> [f32; 4] {
        // Adding 1.5 * 2^23 leaves no bits for a fraction; exact for |a| < 2^22.
        const SHIFT: f32 = 12_582_912.0;
        a.map(|x| (x + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale_by_power(self, a: [f32; 4], n: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| {
            let n = if n[i] > -127.0 { n[i] as i32 } else { -127 };
            a[i] * f32::from_bits(((n + 127) << 23) as u32)
        })
    }
    #[inline(always)]
    fn select_positive(self, sign: [f32; 4], positive: [f32; 4], negative: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if sign[i] > 0.0 { positive[i] } else { negative[i] })
    }
    #[inline(always)]
    fn sum(self, a: [f32; 4]) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn largest(self, a: [f32; 4]) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Simd};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    // SAFETY of every block below that has no pointer: the token exists, so the processor has the instructions.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const TILE_ROWS: usize = 8;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m512 {
            // SAFETY: the caller vouches for the pointer.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, x: __m512) {
            // SAFETY: the caller vouches for the pointer.
            unsafe { _mm512_storeu_ps(p, x) }
        }
        #[inline(always)]
        unsafe fn load_first(self, p: *const f32, count: usize) -> __m512 {
            // SAFETY: the caller vouches for `count` floats; masked lanes are not touched.
            unsafe { _mm512_maskz_loadu_ps(((1u32 << count) - 1) as __mmask16, p) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, count: usize, x: __m512) {
            // SAFETY: as in `load_first`.
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << count) - 1) as __mmask16, x) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        fn abs(self, a: __m512) -> __m512 {
            unsafe { _mm512_abs_ps(a) }
        }
        #[inline(always)]
        fn sqrt(self, a: __m512) -> __m512 {
            unsafe { _mm512_sqrt_ps(a) }
        }
        #[inline(always)]
        fn round(self, a: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        fn scale_by_power(self, a: __m512, n: __m512) -> __m512 {
            unsafe { _mm512_scalef_ps(a, n) }
        }
        #[inline(always)]
        fn select_positive(self, sign: __m512, positive: __m512, negative: __m512) -> __m512 {
            unsafe {
                let mask = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(sign, _mm512_setzero_ps());
                _mm512_mask_blend_ps(mask, negative, positive)
            }
        }
        #[inline(always)]
        fn sum(self, a: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(a) }
        }
        #[inline(always)]
        fn largest(self, a: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(a) }
        }
    }

    /// `count` lanes of all ones, then zeros.
    #[inline(always)]
    fn first_lanes(count: usize) -> __m256i {
        const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: `count <= 8`, so the eight values from `8 - count` lie in the table; only AVX2 code calls this.
        unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - count.min(8)).cast()) }
    }

    // SAFETY of every block below that has no pointer: the token exists, so the processor has the instructions.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const TILE_ROWS: usize = 4;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m256 {
            // SAFETY: the caller vouches for the pointer.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, x: __m256) {
            // SAFETY: the caller vouches for the pointer.
            unsafe { _mm256_storeu_ps(p, x) }
        }
        #[inline(always)]
        unsafe fn load_first(self, p: *const f32, count: usize) -> __m256 {
            // SAFETY: the caller vouches for `count` floats; masked lanes are not touched.
            unsafe { _mm256_maskload_ps(p, first_lanes(count)) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, count: usize, x: __m256) {
            // SAFETY: as in `load_first`.
            unsafe { _mm256_maskstore_ps(p, first_lanes(count), x) }
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        fn abs(self, a: __m256) -> __m256 {
            unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        }
        #[inline(always)]
        fn sqrt(self, a: __m256) -> __m256 {
            unsafe { _mm256_sqrt_ps(a) }
        }
        #[inline(always)]
        fn round(self, a: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        fn scale_by_power(self, a: __m256, n: __m256) -> __m256 {
            unsafe {
                let n = _mm256_cvtps_epi32(_mm256_max_ps(n, _mm256_set1_ps(-127.0)));
                let bits = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)));
                _mm256_mul_ps(a, _mm256_castsi256_ps(bits))
            }
        }
        #[inline(always)]
        fn select_positive(self, sign: __m256, positive: __m256, negative: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(negative, positive, _mm256_cmp_ps::<_CMP_GT_OQ>(sign, _mm256_setzero_ps())) }
        }
        #[inline(always)]
        fn sum(self, a: __m256) -> f32 {
            unsafe {
                let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
            }
        }
        #[inline(always)]
        fn largest(self, a: __m256) -> f32 {
            unsafe {
                let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
            }
        }
    }
}
