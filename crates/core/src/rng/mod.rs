//! Every random number comes from here: seeded, drawn on the CPU, the same on every machine.

mod philox;

pub use philox::Philox;

/// A source of uniform and normal numbers.
pub trait Generator: Send {
    /// `n` numbers uniform on `[0, 1)`.
    fn uniform(&mut self, n: usize) -> Vec<f32>;

    /// `n` standard normal numbers.
    fn normal(&mut self, n: usize) -> Vec<f32>;
}

/// A generator for one named thing, independent of the order in which things are drawn: Philox keyed by `seed`, its
/// stream chosen by the FNV-1a hash of `name`.
pub fn keyed(seed: u64, name: &str) -> Philox {
    let stream = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Philox::new(seed, stream)
}
