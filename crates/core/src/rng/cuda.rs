//! PyTorch's CUDA generator, imitated: Philox4x32-10 with one stream per GPU thread.

use super::{Generator, Philox};
use std::f32::consts::TAU;

/// What of a GPU decides which thread draws which element. Up to `multiprocessors * threads_per_multiprocessor` elements
/// per call, every GPU gives the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// `multiProcessorCount` of its `cudaDeviceProp`.
    pub multiprocessors: u32,
    /// `maxThreadsPerMultiProcessor` of its `cudaDeviceProp`.
    pub threads_per_multiprocessor: u32,
}

impl Default for Gpu {
    /// A GeForce RTX 4090: 196,608 threads, enough for a latent of 4 x 221 x 221.
    fn default() -> Self {
        Self { multiprocessors: 128, threads_per_multiprocessor: 1536 }
    }
}

const BLOCK: usize = 256;
/// `curand_normal4` and `curand_uniform4` give four numbers a call.
const UNROLL: usize = 4;

/// The numbers of `torch.rand` and `torch.randn` on CUDA in f32 after `manual_seed(seed)`, call by call. CUDA's fast sine
/// and cosine are less exact than ours, so normals agree to about 1e-5, not to the bit.
///
/// A call launches `min(ceil(n / 256), blocks the GPU holds at once)` blocks of 256 threads. Thread `t` reads stream `t`
/// and turns each Philox block into four numbers, for the elements `t`, `t + threads`, `t + 2 threads`, `t + 3 threads`;
/// then it goes on 4 x `threads` further. Numbers for elements past `n` are dropped: for the usual latents, three of four.
#[derive(Clone, Debug)]
pub struct Cuda {
    seed: u64,
    /// Philox blocks that every stream has used up.
    offset: u64,
    max_blocks: usize,
}

impl Cuda {
    /// As after `manual_seed(seed)` on this GPU.
    pub fn new(seed: u64, gpu: Gpu) -> Self {
        let per_multiprocessor = gpu.threads_per_multiprocessor as usize / BLOCK;
        Self { seed, offset: 0, max_blocks: (gpu.multiprocessors as usize * per_multiprocessor).max(1) }
    }

    fn fill(&mut self, n: usize, convert: impl Fn([u32; 4]) -> [f32; 4]) -> Vec<f32> {
        let mut out = vec![0.0; n];
        if n == 0 {
            return out;
        }
        let threads = n.div_ceil(BLOCK).min(self.max_blocks) * BLOCK;
        for (round, stretch) in out.chunks_mut(threads * UNROLL).enumerate() {
            for thread in 0..threads.min(stretch.len()) {
                let numbers = convert(Philox::block(self.seed, thread as u64, self.offset + round as u64));
                for (slot, number) in stretch[thread..].iter_mut().step_by(threads).zip(numbers) {
                    *slot = number;
                }
            }
        }
        self.offset += n.div_ceil(threads * UNROLL) as u64;
        out
    }
}

const TWO_POW_MINUS_32: f32 = 1.0 / 4_294_967_296.0;

/// cuRAND's Box-Muller: the sine comes first.
fn box_muller(x: u32, y: u32) -> [f32; 2] {
    const ANGLE: f32 = TWO_POW_MINUS_32 * TAU;
    let u = x as f32 * TWO_POW_MINUS_32 + TWO_POW_MINUS_32 / 2.0;
    let v = y as f32 * ANGLE + ANGLE / 2.0;
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = v.sin_cos();
    [radius * sin, radius * cos]
}

impl Generator for Cuda {
    fn uniform(&mut self, n: usize) -> Vec<f32> {
        self.fill(n, |words| {
            words.map(|x| {
                // cuRAND's interval excludes 0 and includes 1; PyTorch turns it round.
                let u = x as f32 * TWO_POW_MINUS_32 + TWO_POW_MINUS_32 / 2.0;
                if u == 1.0 { 0.0 } else { u }
            })
        })
    }

    fn normal(&mut self, n: usize) -> Vec<f32> {
        self.fill(n, |[a, b, c, d]| {
            let ([p, q], [r, s]) = (box_muller(a, b), box_muller(c, d));
            [p, q, r, s]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(got.len(), expected.len());
        for (i, (a, b)) in got.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance, "element {i}: {a} is not {b}");
        }
    }

    /// `torch.randn(3, 4)` on CUDA, seed 0, as the documentation of stable-diffusion-webui's emulation prints it.
    #[test]
    fn published_values_of_seed_0() {
        let expected = [
            -0.924_662_6,
            -0.425_344_15,
            -2.643_845_8,
            0.145_183_88,
            -0.120_866_47,
            -0.579_725_6,
            -0.622_851_2,
            -0.328_387_1,
            -1.074_542_3,
            -0.363_144_07,
            -1.671_050_7,
            2.265_505,
        ];
        assert_close(&Cuda::new(0, Gpu::default()).normal(12), &expected, 1e-6);
    }

    /// The corners of `torch.randn([1, 64, 2048])` on CUDA, seed 42, printed to four digits in PyTorch's issue 158398. The
    /// card is not named there; of all block counts only 168 fits, an RTX 3060's.
    #[test]
    fn published_values_of_seed_42() {
        let gpu = Gpu { multiprocessors: 28, threads_per_multiprocessor: 1536 };
        let drawn = Cuda::new(42, gpu).normal(64 * 2048);
        let rows: [(usize, [f32; 6]); 6] = [
            (0, [0.1940, 2.1614, -0.1721, 1.4540, -2.7733, -0.8932]),
            (1, [-0.4574, 0.8063, 0.1580, 0.1124, 0.2769, -1.2535]),
            (2, [1.1346, -0.6329, -0.9147, -1.0001, -1.1552, -0.6955]),
            (61, [-0.4861, 0.3358, 1.0578, -0.7282, 0.5087, 0.1318]),
            (62, [0.7881, 0.8339, -1.1424, -0.6297, -1.1112, -0.4091]),
            (63, [-1.2356, -0.4083, -0.4695, -0.4841, 1.2850, -0.0282]),
        ];
        for (row, expected) in rows {
            let row = &drawn[row * 2048..][..2048];
            assert_close(&[&row[..3], &row[2045..]].concat(), &expected, 1e-4);
        }
    }

    /// The ends of `torch.randn(1, 49 * 12 * 112 * 144)` on CUDA, seed 1, on two cards: PyTorch's issue 143086. Each thread
    /// takes many turns here, and the cards part.
    #[test]
    fn published_values_of_seed_1_on_two_cards() {
        let n = 49 * 12 * 112 * 144;
        for (multiprocessors, end) in [(132, [-0.6970, -0.7780, 0.3267]), (108, [0.1549, -0.6797, -0.1656])] {
            let drawn = Cuda::new(1, Gpu { multiprocessors, threads_per_multiprocessor: 2048 }).normal(n);
            assert_close(&drawn[..3], &[-0.2963, 2.6764, -0.1408], 1e-4);
            assert_close(&drawn[n - 3..], &end, 1e-4);
        }
    }

    /// Past one wave of threads the elements of a GPU with two blocks are spread over its threads' four numbers, and
    /// then over the threads' next Philox blocks.
    #[test]
    fn a_small_gpu_takes_turns() {
        let gpu = Gpu { multiprocessors: 2, threads_per_multiprocessor: 256 };
        let n = 512 * 4 + 100;
        let mut generator = Cuda::new(9, gpu);
        let drawn = generator.normal(n);
        let numbers = |thread: usize, block: u64| {
            let [a, b, c, d] = Philox::block(9, thread as u64, block);
            [box_muller(a, b), box_muller(c, d)].concat()
        };
        for (element, thread, block, which) in [
            (0, 0, 0, 0),
            (511, 511, 0, 0),
            (512, 0, 0, 1),
            (1535, 511, 0, 2),
            (1540, 4, 0, 3),
            (2048, 0, 1, 0),
            (2147, 99, 1, 0),
        ] {
            assert_eq!(drawn[element], numbers(thread, block)[which], "element {element}");
        }
        // Two Philox blocks of every stream are spent.
        assert_eq!(generator.normal(1), [numbers(0, 2)[0]]);
    }

    #[test]
    fn calls_advance_every_stream_by_one_block() {
        let mut generator = Cuda::new(5, Gpu::default());
        let (first, second) = (generator.normal(300), generator.normal(300));
        assert_ne!(first, second);
        let [a, b, ..] = Philox::block(5, 299, 1);
        assert_eq!(second[299], box_muller(a, b)[0]);
    }

    #[test]
    fn uniforms_stay_below_one() {
        let drawn = Cuda::new(1, Gpu::default()).uniform(100_000);
        assert!(drawn.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = drawn.iter().map(|&u| f64::from(u)).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
    }
}
