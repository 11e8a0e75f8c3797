//! Numbers of 16 bits (IEEE 754 binary16) to 32.

use crate::isa::has_f16;

/// Converts each of `bits` exactly, infinities and NaN too.
///
/// # Panics
/// `out` is not as long.
pub fn to_f32(bits: &[u16], out: &mut [f32]) {
    assert_eq!(bits.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    if has_f16() {
        // SAFETY: the processor has the instructions, and the lengths are equal.
        unsafe { x86::to_f32(bits, out) };
        return;
    }
    for (bits, out) in bits.iter().zip(out) {
        *out = one(*bits);
    }
}

/// One number.
fn one(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10 & 0x1f), u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        // Below the least normal number, steps of 2^-24.
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        0x1f => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor has AVX and F16C; `out` is as long as `bits`.
    #[target_feature(enable = "avx,f16c")]
    pub(super) unsafe fn to_f32(bits: &[u16], out: &mut [f32]) {
        let whole = bits.len() / 8 * 8;
        for i in (0..whole).step_by(8) {
            // SAFETY: eight numbers from `i` on are in both slices.
            unsafe {
                let eight = _mm_loadu_si128(bits.as_ptr().add(i).cast());
                _mm256_storeu_ps(out.as_mut_ptr().add(i), _mm256_cvtph_ps(eight));
            }
        }
        for (bits, out) in bits[whole..].iter().zip(&mut out[whole..]) {
            *out = super::one(*bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_converted_the_same_by_both_ways() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut fast = vec![0.0; all.len()];
        to_f32(&all, &mut fast);
        for (bits, fast) in all.iter().zip(fast) {
            let plain = one(*bits);
            assert!(plain.to_bits() == fast.to_bits() || plain.is_nan() && fast.is_nan(), "{bits:#x}: {plain} {fast}");
        }
        assert_eq!(
            [0x3c00, 0xc000, 0x7bff, 0x0001, 0xfc00].map(one),
            [1.0, -2.0, 65504.0, 2f32.powi(-24), f32::NEG_INFINITY]
        );
    }
}
