//! How exactly products are computed: in f32, or with factors rounded to bf16 first.
//!
//! In bf16 everything stays f32 in memory, and so do all sums; only the two factors of a matrix product or convolution lose
//! bits, while they are packed. That is what mixed precision training rounds as well (Micikevicius et al. 2017; Kalamkar et
//! al. 2019 for bf16), and processors with AVX512-BF16 multiply twice as many of them at once. Others round and multiply in
//! f32: sums differ by their order alone.

use std::cell::Cell;

/// The type that products round their factors to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bfloat16: 8 bits of precision, the range of f32.
    Bf16,
}

thread_local! {
    static CURRENT: Cell<Precision> = const { Cell::new(Precision::F32) };
}

/// Runs `work` with the products that this thread starts in `precision`, whichever threads they then run on. A backward
/// pass belongs inside together with its forward pass.
pub fn with<T>(precision: Precision, work: impl FnOnce() -> T) -> T {
    /// Also restores after a panic.
    struct Restore(Precision);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(precision));
    work()
}

/// The precision of products that this thread starts.
pub fn current() -> Precision {
    CURRENT.get()
}

/// `x` rounded to the nearest bf16, ties to even. NaN stays NaN.
pub fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return f32::from_bits(bits | 0x0040_0000);
    }
    f32::from_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_to_the_nearest_and_ties_to_even() {
        let ulp = 1.0 / 128.0; // of bf16 between 1 and 2
        let cases = [(1.0 + 0.4 * ulp, 1.0), (1.0 + 0.6 * ulp, 1.0 + ulp), (1.0 + 0.5 * ulp, 1.0)];
        for (x, want) in cases.into_iter().chain([(1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp), (f32::MAX, f32::INFINITY)]) {
            assert_eq!(rounded(x), want);
            assert_eq!(rounded(-x), -want);
        }
        assert!(rounded(f32::from_bits(0x7F80_0001)).is_nan());
    }

    #[test]
    fn the_scope_ends_even_by_a_panic() {
        with(Precision::Bf16, || {
            assert_eq!(current(), Precision::Bf16);
            with(Precision::F32, || assert_eq!(current(), Precision::F32));
            assert_eq!(current(), Precision::Bf16);
        });
        let _ = std::panic::catch_unwind(|| with(Precision::Bf16, || panic!("expected")));
        assert_eq!(current(), Precision::F32);
    }
}
