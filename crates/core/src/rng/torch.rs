//! PyTorch's CPU generator: MT19937, and two ways from its words to normal numbers, chosen by how many are asked for.

use super::Generator;
use super::mt19937::Mt19937;
use std::f32::consts::TAU as TAU_F32;
use std::f64::consts::TAU;

/// The numbers of `torch.rand` and `torch.randn` on a CPU in f32 after `manual_seed(seed)`, call by call. Normals agree to
/// 1e-6; uniforms are bit-identical.
#[derive(Clone)]
pub struct Torch {
    engine: Mt19937,
    /// The second value of the last scalar Box-Muller pair. It outlives calls, also those that do not use it.
    spare: Option<f64>,
}

impl Torch {
    /// As after `manual_seed(seed)`: PyTorch seeds its engine with the low 32 bits.
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed as u32), spare: None }
    }

    /// Uniform on `[0, 1)`, from 24 bits of one word.
    fn uniform_f32(&mut self) -> f32 {
        (self.engine.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform on `[0, 1)`, from 53 bits of two words.
    fn uniform_f64(&mut self) -> f64 {
        (self.engine.next_u64() & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// One number, in f64, keeping the pair's other half for the next call.
    fn scalar_normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare as f32;
        }
        let angle = TAU * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        (radius * angle.cos()) as f32
    }

    /// Fills 16 slots with uniforms.
    fn fill_uniform(&mut self, block: &mut [f32]) {
        block.fill_with(|| self.uniform_f32());
    }
}

/// Box-Muller on a block of 16 uniforms: slot `j` gives the radius and slot `j + 8` the angle of slots `j` and `j + 8`.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (a, b) in radii.iter_mut().zip(angles) {
        // The angle is rounded to f32 as PyTorch rounds it; a finer one would differ in the sixth digit.
        let (sin, cos) = f64::from(TAU_F32 * *b).sin_cos();
        let radius = (-2.0 * f64::from(1.0 - *a).ln()).sqrt();
        (*a, *b) = ((radius * cos) as f32, (radius * sin) as f32);
    }
}

impl Generator for Torch {
    fn uniform(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform_f32()).collect()
    }

    fn normal(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.scalar_normal()).collect();
        }
        let mut out = vec![0.0; n];
        self.fill_uniform(&mut out);
        out.chunks_exact_mut(16).for_each(box_muller);
        if !n.is_multiple_of(16) {
            // A ragged end is not filled up: the last 16 are drawn anew, over part of the block before.
            let tail = &mut out[n - 16..];
            self.fill_uniform(tail);
            box_muller(tail);
        }
        out
    }
}
