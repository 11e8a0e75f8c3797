//! Every random number comes from here: seeded, drawn on the CPU, the same on every machine. A GPU draws dropout's alone, by
//! the same generator.
//!
//! | mode | initial noise | noise that a sampler adds later |
//! |---|---|---|
//! | [`Mode::Torch`] | PyTorch's CPU generator | the same generator, continued: as diffusers does |
//! | [`Mode::Philox`] | PyTorch's CUDA generator | the same generator, continued: as diffusers does |
//! | [`Mode::Comfy`] | PyTorch's CPU generator | another CPU generator, seeded `seed + 1`: as ComfyUI does |
//!
//! What is verified: `torch` against values recorded from PyTorch 2.15 on a CPU; the Philox function against Random123's
//! known answers; `philox` as a whole against values of `torch.randn` on CUDA that others published, in the four to eight
//! digits that they printed. No GPU of ours took part.

mod cuda;
mod mt19937;
mod philox;
mod torch;

pub use cuda::{Cuda, Gpu};
pub use philox::Philox;
pub use torch::Torch;

use crate::{Device, Error, Result, Shape, Tensor};
use std::fmt::{self, Display};
use std::str::FromStr;

/// A source of uniform and normal numbers. Where PyTorch is imitated, one call here is one call of `rand` or `randn`
/// there: two calls for `n` numbers each need not equal one for `2 n`.
pub trait Generator: Send {
    /// `n` numbers uniform on `[0, 1)`.
    fn uniform(&mut self, n: usize) -> Vec<f32>;

    /// `n` standard normal numbers.
    fn normal(&mut self, n: usize) -> Vec<f32>;
}

/// Whose random numbers a picture is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// As PyTorch draws on CUDA; see [`Cuda`].
    Philox,
    /// As PyTorch draws on a CPU; see [`Torch`].
    #[default]
    Torch,
    /// As ComfyUI draws: PyTorch's CPU generator for the initial noise, a second one for the samplers' noise.
    Comfy,
}

impl Mode {
    /// Every mode, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Philox, Self::Torch, Self::Comfy];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Philox => "philox",
            Self::Torch => "torch",
            Self::Comfy => "comfy",
        }
    }
}

impl Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| {
            Error::request(format!("unknown random number mode {name:?}")).with_help("choose philox, torch or comfy")
        })
    }
}

/// The generator of the initial noise. All 64 bits of `seed` count for `philox`; PyTorch's CPU generator, and so `torch`
/// and `comfy`, uses the low 32.
pub fn generator(mode: Mode, seed: u64) -> Box<dyn Generator> {
    match mode {
        Mode::Philox => Box::new(Cuda::new(seed, Gpu::default())),
        Mode::Torch | Mode::Comfy => Box::new(Torch::new(seed)),
    }
}

/// The generator of the noise that samplers add after the initial noise, where it is a separate one: ComfyUI, when it
/// samples on a CPU, seeds it with `seed + 1`. `None` where the initial generator goes on, as in diffusers.
pub fn sampler_generator(mode: Mode, seed: u64) -> Option<Box<dyn Generator>> {
    match mode {
        Mode::Philox | Mode::Torch => None,
        Mode::Comfy => Some(Box::new(Torch::new(seed.wrapping_add(1)))),
    }
}

/// Standard normal f32 numbers of this shape, by one call of the generator.
///
/// # Errors
/// The device refuses the tensor.
pub fn randn(generator: &mut dyn Generator, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    Ok(Tensor::from_vec(generator.normal(shape.elem_count()), shape, device)?)
}

/// Initial noise `(indices.len(), item...)` as ComfyUI draws it for a latent that carries a batch index: item `i` is the
/// `i`-th draw of `item` numbers from the generator of `seed`, whatever else is in the batch, so one picture of a batch
/// can be made again alone. Equal to one draw of the whole batch when `indices` counts from 0 and an item's element
/// count is a multiple of 16.
///
/// # Errors
/// The device refuses the tensor.
pub fn comfy_batch(seed: u64, indices: &[usize], item: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let item = item.into();
    let n = item.elem_count();
    let mut generator = Torch::new(seed);
    let mut values = vec![0.0; indices.len() * n];
    for i in 0..indices.iter().max().map_or(0, |last| last + 1) {
        let drawn = generator.normal(n);
        for (slot, _) in indices.iter().enumerate().filter(|&(_, &index)| index == i) {
            values[slot * n..][..n].copy_from_slice(&drawn);
        }
    }
    let dims: Vec<usize> = std::iter::once(indices.len()).chain(item.dims().iter().copied()).collect();
    Ok(Tensor::from_vec(values, dims, device)?)
}

/// A generator for one named thing, independent of the order in which things are drawn: Philox keyed by `seed`, its
/// stream chosen by the FNV-1a hash of `name`.
pub fn keyed(seed: u64, name: &str) -> Philox {
    let stream = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Philox::new(seed, stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_and_written_by_name() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        let error = "cuda".parse::<Mode>().unwrap_err();
        assert_eq!(error.to_string(), "unknown random number mode \"cuda\"");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn comfy_splits_off_the_samplers_noise() {
        assert!(sampler_generator(Mode::Torch, 7).is_none());
        assert!(sampler_generator(Mode::Philox, 7).is_none());
        assert_eq!(generator(Mode::Comfy, 7).normal(64), generator(Mode::Torch, 7).normal(64));
        assert_eq!(sampler_generator(Mode::Comfy, 7).unwrap().normal(64), generator(Mode::Torch, 8).normal(64));
    }

    #[test]
    fn comfy_draws_an_item_of_a_batch_again() {
        let draw = |indices: &[usize]| comfy_batch(3, indices, (4, 8), &Device::Cpu).unwrap();
        let whole = randn(&mut Torch::new(3), (3, 4, 8), &Device::Cpu).unwrap().to_vec3::<f32>().unwrap();
        let again = draw(&[2, 0, 2]).to_vec3::<f32>().unwrap();
        assert_eq!(again, [whole[2].clone(), whole[0].clone(), whole[2].clone()]);
        assert_eq!(draw(&[]).dims(), [0, 4, 8]);
    }

    #[test]
    fn keyed_generators_depend_on_seed_and_name_only() {
        assert_eq!(keyed(1, "a").normal(5), keyed(1, "a").normal(5));
        assert_ne!(keyed(1, "a").normal(5), keyed(1, "b").normal(5));
        assert_ne!(keyed(1, "a").normal(5), keyed(2, "a").normal(5));
    }
}
