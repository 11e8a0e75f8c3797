//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

use super::Generator;

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

    fn next(&mut self) -> [u32; 4] {
        let block = Self::block(self.key, self.stream, self.block);
        self.block += 1;
        block
    }
}

impl Generator for Philox {
    fn uniform(&mut self, n: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(n + 3);
        while out.len() < n {
            out.extend(self.next().map(|u| (u >> 8) as f32 * (1.0 / 16_777_216.0)));
        }
        out.truncate(n);
        out
    }

    fn normal(&mut self, n: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(n + 3);
        while out.len() < n {
            let block = self.next();
            for pair in [[block[0], block[1]], [block[2], block[3]]] {
                // Box-Muller; the half step keeps the logarithm's argument off zero.
                let u = (f64::from(pair[0]) + 0.5) / 4_294_967_296.0;
                let v = f64::from(pair[1]) / 4_294_967_296.0;
                let (sin, cos) = (2.0 * std::f64::consts::PI * v).sin_cos();
                let radius = (-2.0 * u.ln()).sqrt();
                out.extend([(radius * cos) as f32, (radius * sin) as f32]);
            }
        }
        out.truncate(n);
        out
    }
}
