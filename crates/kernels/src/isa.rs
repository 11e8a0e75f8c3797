//! Which instructions this processor has, found out once.

use std::sync::OnceLock;

/// Instruction sets that kernels are written for, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler makes of plain Rust.
    Portable,
    /// AVX2 with FMA: 8 floats a register, 16 registers.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 16 floats a register, 32 registers.
    Avx512,
}

/// The best instruction set that this processor has. The environment variable `CONJURE_ISA` (`portable`, `avx2`,
/// `avx512`) can lower it, for tests and comparisons; it never raises it.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let wanted = match std::env::var("CONJURE_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => Isa::Avx2,
            _ => Isa::Avx512,
        };
        wanted.min(detected())
    })
}

/// Whether this processor multiplies bf16 (AVX512-BF16), and AVX-512 may be used.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether this processor multiplies bytes (AVX512-VNNI) and converts f16, and AVX-512 may be used.
pub(crate) fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa() == Isa::Avx512 && is_x86_feature_detected!("avx512vnni") && has_f16();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether this processor converts f16 (F16C), and AVX2 may be used.
pub(crate) fn has_f16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa() >= Isa::Avx2 && is_x86_feature_detected!("f16c") && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Isa {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        Isa::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Isa::Avx2
    } else {
        Isa::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Isa {
    Isa::Portable
}
