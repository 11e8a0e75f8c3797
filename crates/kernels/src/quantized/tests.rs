use super::vectors::{Level, level};
use super::*;
use crate::gemm::tests::values;
use proptest::prelude::*;

/// Blocks of each format and what the reference makes of them: `tools/reference/quantized.py`.
const FIXTURE: &[u8] = include_bytes!("../../tests/fixtures/quantized.bin");
/// Numbers of each format in the fixture.
const NUMBERS: usize = 2048;

/// Every level that this processor has.
fn levels() -> Vec<Level> {
    [Level::Portable, Level::Avx2, Level::Vnni].into_iter().filter(|wanted| *wanted <= level()).collect()
}

/// Bytes that are `n` rows of blocks with scales of both signs around 0.01, which differ by up to 8 times.
fn weights(format: Format, n: usize, k: usize, seed: u64) -> Vec<u8> {
    if format.is_float() {
        let floats = values(n * k, seed);
        let bits = floats.iter().map(|x| (x * 0.1).to_bits());
        return match format {
            Format::F32 => bits.flat_map(u32::to_le_bytes).collect(),
            Format::BF16 => bits.flat_map(|x| ((x >> 16) as u16).to_le_bytes()).collect(),
            // Sign, an exponent of -8 to -1, and some digits.
            _ => bits.flat_map(|x| ((x >> 16 & 0x8000 | x >> 3 & 0x1FFF | 0x1C00) as u16).to_le_bytes()).collect(),
        };
    }
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut bytes: Vec<u8> = (0..format.bytes_of(n * k).unwrap()).map(|_| (next() >> 8) as u8).collect();
    let halves: &[usize] = match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(format.bytes()) {
        for at in halves {
            let bits = (0x1C00 + next() % 0x0C00) | ((next() % 2) << 15);
            block[*at..at + 2].copy_from_slice(&(bits as u16).to_le_bytes());
        }
    }
    bytes
}

/// The plain twin in f64, and the norm of the products that each output adds: what a rounding error is measured against.
fn twin(format: Format, w: &[u8], n: usize, k: usize, x: &[f32], m: usize) -> (Vec<f64>, Vec<f64>) {
    let mut floats = vec![0f32; n * k];
    dequantize(format, w, &mut floats);
    let mut norms = Vec::new();
    let mut out = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let products = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(floats[j * k + p]));
            norms.push(products.clone().map(|x| x * x).sum::<f64>().sqrt());
            out.push(products.sum::<f64>());
        }
    }
    (out, norms)
}

fn run(level: Level, format: Format, w: &[u8], n: usize, k: usize, x: &[f32], m: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * n];
    // SAFETY: there is room for all outputs.
    unsafe { multiply(level, format, w, n, k, x, m, out.as_mut_ptr()) };
    out
}

/// Rounding 32 numbers to 8 bits moves each by up to a 254th of the largest of them. Such errors are independent, so a sum's
/// grows like the norm of its products, of which it was at most 0.0145 here. Floats differ by the order of sums alone.
#[test]
fn products_agree_with_the_plain_twin() {
    for format in Format::ALL {
        let (limit, step) = if format.is_float() { (1e-5, 1) } else { (0.02, format.block()) };
        for (m, n, k) in [
            (1, 19, 18),
            (1, 8, 1),
            (2, 33, 3),
            (3, 1, 2),
            (5, 40, 1),
            (7, 17, 9),
            (9, 16, 10),
            (21, 35, 2),
            (1, 9, 70),
        ] {
            let k = k * step + if step == 1 { 13 } else { 0 };
            let (w, x) = (weights(format, n, k, 7 + k as u64), values(m * k, 3));
            let (want, norms) = twin(format, &w, n, k, &x, m);
            for level in levels() {
                let got = run(level, format, &w, n, k, &x, m);
                for (i, (got, (want, norm))) in got.iter().zip(want.iter().zip(&norms)).enumerate() {
                    let error = (f64::from(*got) - want).abs() / norm;
                    assert!(
                        error <= limit,
                        "{format} {level:?} {m} {n} {k}: {got} for {want} at {i}, {error} of {norm}"
                    );
                }
            }
        }
    }
}

/// Levels round activations alike and add integers exactly: only sums of floats differ.
#[test]
fn levels_agree_closely() {
    for format in Format::ALL {
        let k = 512;
        for m in [1, 4, 13] {
            let (w, x) = (weights(format, 21, k, 5), values(m * k, 6));
            let (_, norms) = twin(format, &w, 21, k, &x, m);
            let all: Vec<_> = levels().into_iter().map(|level| run(level, format, &w, 21, k, &x, m)).collect();
            for other in &all[1..] {
                for ((a, b), norm) in all[0].iter().zip(other).zip(&norms) {
                    assert!(f64::from((a - b).abs()) <= 1e-5 * norm, "{format} {m}: {a} {b} {norm}");
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_bits() {
    let (n, k) = (700, 768);
    for format in Format::ALL {
        let w = weights(format, n, k, 1);
        for m in [1, 3, 18] {
            let x = values(m * k, 2);
            let one = threads::Shares::new(threads::count()).unwrap();
            let alone = one.run(|_| product(format, &w, n, k, &x, m)).pop().unwrap();
            let together = product(format, &w, n, k, &x, m);
            let mut written = vec![f32::NAN; m * n];
            matmul(format, &w, n, k, &x, m, &mut written);
            for other in [together, written] {
                assert!(alone.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits()), "{format} {m}");
            }
        }
    }
}

#[test]
fn a_number_that_is_not_finite_is_not_hidden() {
    for format in Format::ALL {
        let k = 256;
        let w = weights(format, 9, k, 1);
        for (m, bad) in [(2, f32::NAN), (9, f32::INFINITY), (1, f32::NEG_INFINITY)] {
            let mut x = values(m * k, 1);
            x[k - 1] = bad;
            for level in levels() {
                let out = run(level, format, &w, 9, k, &x, m);
                for (i, y) in out.iter().enumerate() {
                    assert_eq!(y.is_finite(), i >= 9, "{format} {level:?} {m} {bad}: {y} at {i}");
                }
            }
        }
    }
}

#[test]
fn tiny_and_huge_activations_keep_their_scale() {
    let (format, k) = (Format::Q8_0, 64);
    let (w, ones) = (weights(Format::Q8_0, 4, k, 1), values(k, 1));
    for scale in [0.0, 1e-30, 1e-20, 1e20, 1e35] {
        let x: Vec<f32> = ones.iter().map(|x| x * scale).collect();
        let (want, norms) = twin(format, &w, 4, k, &x, 1);
        for level in levels() {
            for (got, (want, norm)) in run(level, format, &w, 4, k, &x, 1).iter().zip(want.iter().zip(&norms)) {
                assert!((f64::from(*got) - want).abs() <= 0.02 * norm, "{level:?} {scale}: {got} for {want}");
            }
        }
    }
}

#[test]
fn empty_products_are_zero_or_nothing() {
    assert_eq!(product(Format::Q4_0, &[], 3, 0, &[], 2), [0.0; 6]);
    assert!(product(Format::Q4_K, &[0; 144], 1, 256, &[], 0).is_empty());
    assert!(product(Format::F16, &[], 0, 2, &[1.0, 2.0], 1).is_empty());
}

/// The reference's floats, bit for bit; NaN for NaN.
#[test]
fn blocks_mean_what_the_reference_says() {
    let mut rest = FIXTURE;
    for format in Format::ALL {
        let (blocks, more) = rest.split_at(format.bytes_of(NUMBERS).unwrap());
        let (floats, more) = more.split_at(NUMBERS * 4);
        rest = more;
        let mut out = vec![0f32; NUMBERS];
        dequantize(format, blocks, &mut out);
        for (i, (got, want)) in out.iter().zip(floats.as_chunks().0).enumerate() {
            let want = f32::from_le_bytes(*want);
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{format}: {got} for {want} at {i}");
        }
    }
    assert!(rest.is_empty());
}

#[test]
fn numbers_and_names_belong_to_one_format_each() {
    for (i, format) in Format::ALL.into_iter().enumerate() {
        assert_eq!(Format::from_number(format.number()), Some(format));
        assert!(Format::ALL[..i].iter().all(|other| other.name() != format.name()));
        assert_eq!(format.bytes_of(256), Some(256 / format.block() * format.bytes()));
    }
    for unknown in [4, 5, 9, 15, 24, 31, u32::MAX] {
        assert_eq!(Format::from_number(unknown), None);
    }
    assert_eq!(Format::Q4_0.bytes_of(33), None);
    assert_eq!(Format::Q4_0.bytes_of(usize::MAX / 32 * 32), Some(usize::MAX / 32 * 18));
    assert_eq!(Format::F32.bytes_of(usize::MAX), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Files come from strangers: whatever a block holds, it has numbers and products.
    #[test]
    fn any_bytes_are_blocks(
        format in proptest::sample::select(&Format::ALL[..]),
        bytes in proptest::collection::vec(any::<u8>(), 420..1200),
        m in 1usize..10,
    ) {
        let count = bytes.len() / format.bytes() / 2;
        let (k, bytes) = (count * format.block(), &bytes[..2 * count * format.bytes()]);
        let mut out = vec![0f32; 2 * k];
        dequantize(format, bytes, &mut out);
        let x = values(m * k, 9);
        for level in levels() {
            run(level, format, bytes, 2, k, &x, m);
        }
    }
}
