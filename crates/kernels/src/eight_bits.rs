//! Rows of numbers in 8 bits: blocks of 32, each with the factor that its whole numbers from -127 to 127 are multiplied with
//! (GGML's `Q8_0`, but that the factor is a bf16, which has f32's range, and that a row's last block may be shorter).

/// Numbers of a block.
const BLOCK: usize = 32;
/// Bytes of its factor.
const FACTOR: usize = 2;
/// A factor of bits that make all numbers of the block NaN.
const NAN: u16 = 0x7fc0;

/// Bytes of a row of `features` numbers.
pub fn row_bytes(features: usize) -> usize {
    features + FACTOR * features.div_ceil(BLOCK)
}

/// Numbers of a row of so many bytes; `None` if no row has so many.
pub fn row_features(bytes: usize) -> Option<usize> {
    let features = bytes.checked_sub(FACTOR * bytes.div_ceil(BLOCK + FACTOR))?;
    (row_bytes(features) == bytes).then_some(features)
}

/// Rounds rows of `features` numbers: each becomes at most half a factor more or less, where the factor is the largest
/// magnitude of the block over 127, rounded up to a bf16. A block with a number that is not finite becomes NaN.
///
/// # Panics
/// `x` is not whole rows, or `out` does not have as many.
pub fn from_f32(x: &[f32], features: usize, out: &mut [u8]) {
    check(x.len(), features, out.len());
    vectorized(|| {
        for (x, out) in x.chunks_exact(features.max(1)).zip(out.chunks_exact_mut(row_bytes(features).max(1))) {
            for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK + FACTOR)) {
                let finite = x.iter().all(|x| x.is_finite());
                let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                // Rounded up, so that no quotient exceeds 127, but where the largest number would come back as infinite.
                let exact = (most / 127.0).to_bits();
                let up = exact.saturating_add(0xffff) >> 16;
                let bits = if (f32::from_bits(up << 16) * 127.0).is_finite() { up } else { exact >> 16 };
                let bits = if finite { bits as u16 } else { NAN };
                let factor = f32::from_bits(u32::from(bits) << 16);
                let inverse = if factor > 0.0 { 1.0 / factor } else { 0.0 };
                // Of factors below the least normal number the inverse is infinite.
                let inverse = if inverse.is_finite() { inverse } else { 0.0 };
                out[..FACTOR].copy_from_slice(&bits.to_le_bytes());
                for (x, out) in x.iter().zip(&mut out[FACTOR..]) {
                    *out = ((x * inverse).round_ties_even() as i8).cast_unsigned();
                }
            }
        }
    });
}

/// The way back, exactly.
///
/// # Panics
/// `bytes` is not whole rows, or `out` does not have as many.
pub fn to_f32(bytes: &[u8], features: usize, out: &mut [f32]) {
    check(out.len(), features, bytes.len());
    vectorized(|| {
        for (bytes, out) in bytes.chunks_exact(row_bytes(features).max(1)).zip(out.chunks_exact_mut(features.max(1))) {
            for (bytes, out) in bytes.chunks(BLOCK + FACTOR).zip(out.chunks_mut(BLOCK)) {
                let factor = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
                for (byte, out) in bytes[FACTOR..].iter().zip(out) {
                    *out = f32::from(byte.cast_signed()) * factor;
                }
            }
        }
    });
}

fn check(numbers: usize, features: usize, bytes: usize) {
    let rows = numbers.checked_div(features).unwrap_or(0);
    assert!(
        rows * features == numbers && rows * row_bytes(features) == bytes,
        "{numbers} numbers in rows of {features} do not take {bytes} bytes"
    );
}

/// Runs `work` as the compiler writes it for the processor at hand.
#[inline(always)]
fn vectorized(work: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    if crate::isa::isa() != crate::isa::Isa::Portable {
        // SAFETY: the processor has the instructions.
        unsafe { x86::run(work) };
        return;
    }
    work();
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run(work: impl FnOnce()) {
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(x: &[f32], features: usize) -> (Vec<u8>, Vec<f32>) {
        let mut bytes = vec![0; x.len() / features * row_bytes(features)];
        from_f32(x, features, &mut bytes);
        let mut back = vec![0.0; x.len()];
        to_f32(&bytes, features, &mut back);
        (bytes, back)
    }

    #[test]
    fn lengths_of_rows_are_known_both_ways() {
        for features in 0..200 {
            assert_eq!(row_features(row_bytes(features)), Some(features));
        }
        assert_eq!((row_bytes(64), row_features(35), row_features(1), row_features(2)), (68, None, None, None));
    }

    #[test]
    fn numbers_come_back_within_half_a_factor() {
        for features in [1, 32, 40, 64] {
            let x: Vec<f32> =
                (0..3 * features).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.37f32.powi(i as i32 / 7)).collect();
            let (_, back) = there_and_back(&x, features);
            for (x, back) in x.chunks(features).zip(back.chunks(features)) {
                for (x, back) in x.chunks(32).zip(back.chunks(32)) {
                    let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    // bf16 has 8 bits.
                    let factor = most / 127.0 * (1.0 + 1.0 / 128.0);
                    for (x, back) in x.iter().zip(back) {
                        assert!((x - back).abs() <= 0.5001 * factor, "{x} {back} {factor}");
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        let mut x = vec![0.0; 34];
        (x[0], x[1], x[2], x[33]) = (127.0, -64.4, 0.5, -2.0);
        let (bytes, back) = there_and_back(&x, 34);
        assert_eq!(bytes[..5], [0x80, 0x3f, 127, (-64i8).cast_unsigned(), 0]);
        assert_eq!(bytes.len(), 38);
        assert_eq!((back[0], back[1], back[2], back[32]), (127.0, -64.0, 0.0, 0.0));
        assert!((back[33] + 2.0).abs() < 0.01, "{}", back[33]);
    }

    #[test]
    fn extremes_stay_in_bounds_and_what_is_no_number_stays_none() {
        let (_, back) = there_and_back(&[0.0, -0.0, 1e-44, 1e-30], 4);
        assert_eq!((back[0], back[1], back[2]), (0.0, 0.0, 0.0));
        assert!((back[3] - 1e-30).abs() < 1e-32);
        let (_, back) = there_and_back(&[1e-44, 0.0], 2);
        assert_eq!(back, [0.0, 0.0]);
        let (_, back) = there_and_back(&[f32::MAX, -f32::MAX], 2);
        assert!(back.iter().all(|x| x.is_finite() && x.abs() > 3.3e38), "{back:?}");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(there_and_back(&[1.0, bad], 2).1.iter().all(|x| x.is_nan()));
        }
    }
}
