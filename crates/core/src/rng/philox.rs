//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

use super::Generator;
use conjure_kernels::threads::run_chunks;

/// Blocks that a thread takes at once.
const BLOCKS: usize = 4096;

/// A counter-based generator: block `i` of stream `s` under key `seed` is a pure function of the three.
#[derive(Clone, Debug)]
pub struct Philox {
    key: u64,
    stream: u64,
    block: u64,
}

impl Philox {
    /// The generator at the start of `stream`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: seed, stream, block: 0 }
    }

    /// Ten rounds on the counter `(block, stream)`.
    pub fn block(key: u64, stream: u64, block: u64) -> [u32; 4] {
        let mut c = [block as u32, (block >> 32) as u32, stream as u32, (stream >> 32) as u32];
        let mut k = [key as u32, (key >> 32) as u32];
        for _ in 0..10 {
            let p0 = u64::from(c[0]) * 0xD251_1F53;
            let p1 = u64::from(c[2]) * 0xCD9E_8D57;
            c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }

    /// Leaves out the next `n` numbers. Returns the first block of theirs: number `i` is word `i % 4` of block `i / 4` after it.
    pub(crate) fn skip(&mut self, n: usize) -> u64 {
        let first = self.block;
        self.block += n.div_ceil(4) as u64;
        first
    }

    /// The key and the stream.
    #[cfg(feature = "cuda")]
    pub(crate) fn key_and_stream(&self) -> [u64; 2] {
        [self.key, self.stream]
    }

    /// `n` numbers, four of each block's bits.
    fn draw(&mut self, n: usize, four_of: impl Fn([u32; 4]) -> [f32; 4] + Sync) -> Vec<f32> {
        let mut out = vec![0.0; n];
        let (key, stream, first) = (self.key, self.stream, self.skip(n));
        // Each block depends on its number alone, so threads can share them.
        run_chunks(&mut out, 4 * BLOCKS, |part, numbers| {
            for (place, four) in numbers.chunks_mut(4).enumerate() {
                let block = Self::block(key, stream, first + (part * BLOCKS + place) as u64);
                four.copy_from_slice(&four_of(block)[..four.len()]);
            }
        });
        out
    }
}

impl Generator for Philox {
    fn uniform(&mut self, n: usize) -> Vec<f32> {
        self.draw(n, |block| block.map(|u| (u >> 8) as f32 * (1.0 / 16_777_216.0)))
    }

    fn normal(&mut self, n: usize) -> Vec<f32> {
        self.draw(n, normals)
    }
}

/// Four normal numbers of a block's bits (Box & Muller 1958); the half step keeps the logarithm's argument off zero.
fn normals(block: [u32; 4]) -> [f32; 4] {
    let pair = |bits: [u32; 2]| {
        let u = (f64::from(bits[0]) + 0.5) / 4_294_967_296.0;
        let v = f64::from(bits[1]) / 4_294_967_296.0;
        let (sin, cos) = (2.0 * std::f64::consts::PI * v).sin_cos();
        let radius = (-2.0 * u.ln()).sqrt();
        [(radius * cos) as f32, (radius * sin) as f32]
    };
    let ([a, b], [c, d]) = (pair([block[0], block[1]]), pair([block[2], block[3]]));
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many threads share the work, and wherever one draw ends and the next begins.
    #[test]
    fn many_numbers_are_those_of_few_at_a_time() {
        let draws: [fn(&mut Philox, usize) -> Vec<f32>; 2] = [Philox::normal, Philox::uniform];
        for draw in draws {
            let all = draw(&mut Philox::new(3, 5), 3 * 4 * BLOCKS + 7);
            let mut few = Philox::new(3, 5);
            let parts: Vec<f32> = all.chunks(100).flat_map(|part| draw(&mut few, part.len())).collect();
            assert_eq!(all, parts);
        }
    }

    /// Random123's `kat_vectors`, philox4x32 with 10 rounds.
    #[test]
    fn known_answers() {
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        let wide = |low: u32, high: u32| (u64::from(high) << 32) | u64::from(low);
        for (counter, key, answer) in cases {
            let [a, b, c, d] = counter;
            assert_eq!(Philox::block(wide(key[0], key[1]), wide(c, d), wide(a, b)), answer);
        }
    }

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let drawn = Philox::new(1, 2).normal(100_000);
        let mean = drawn.iter().map(|&z| f64::from(z)).sum::<f64>() / 1e5;
        let variance = drawn.iter().map(|&z| (f64::from(z) - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
