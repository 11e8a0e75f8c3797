//! How a kernel is called on tensors.

use crate::ops::slices::wants_plain;
use crate::{DType, Result, Tensor};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Shape, Storage};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
/// Threads of a block, where a kernel does not say.
const BLOCK: u32 = 256;
/// Blocks at most where threads stride over elements: some for each of a GPU's multiprocessors.
const BLOCKS: u32 = 4096;

/// Whether the kernels can take these: f32 on one GPU, no more elements than 31 bits count, and no plain twins wanted.
pub(crate) fn takes(tensors: &[&Tensor]) -> bool {
    let place = tensors.first().map(|x| x.device().location());
    let fits = |x: &Tensor| x.dtype() == DType::F32 && counted(x.elem_count()) && Some(x.device().location()) == place;
    !wants_plain() && tensors.iter().all(|x| x.device().is_cuda() && fits(x))
}

/// Whether there are numbers, and 31 bits count them.
pub(super) fn counted(n: usize) -> bool {
    n > 0 && n < 1 << 31
}

/// How many threads a kernel wants.
#[derive(Clone, Copy)]
pub(super) enum Threads {
    /// Enough for this many elements, which they stride over.
    Elements(usize),
    /// A warp for each.
    Warps(usize),
    /// A block for each, of this many threads.
    Blocks(usize, u32),
    /// A grid of blocks of 32 x 8 threads.
    Tiles(usize, usize),
}

impl Threads {
    /// Blocks for `count` sums of `n` numbers each.
    pub fn sums(count: usize, n: usize) -> Self {
        Self::Blocks(count, (n as u32).next_multiple_of(32).clamp(32, 1024))
    }

    fn config(self) -> LaunchConfig {
        let config = |grid: (u32, u32, u32), block: (u32, u32, u32)| LaunchConfig {
            grid_dim: grid,
            block_dim: block,
            shared_mem_bytes: 0,
        };
        match self {
            Self::Elements(n) => config(((n as u32).div_ceil(BLOCK).clamp(1, BLOCKS), 1, 1), (BLOCK, 1, 1)),
            Self::Warps(n) => config(((n as u32).div_ceil(BLOCK / 32), 1, 1), (BLOCK, 1, 1)),
            Self::Blocks(n, threads) => config((n as u32, 1, 1), (threads, 1, 1)),
            Self::Tiles(columns, rows) => config((columns as u32, rows as u32, 1), (32, 8, 1)),
        }
    }
}

/// A number that a kernel takes after its tensors.
#[derive(Clone, Copy)]
pub(super) enum Number {
    /// A size, a choice, or bits.
    Int(u32),
    Float(f32),
}

impl From<usize> for Number {
    fn from(n: usize) -> Self {
        Self::Int(n as u32)
    }
}

impl From<bool> for Number {
    fn from(choice: bool) -> Self {
        Self::Int(u32::from(choice))
    }
}

impl From<f64> for Number {
    fn from(x: f64) -> Self {
        Self::Float(x as f32)
    }
}

/// What a kernel wrote, before it becomes part of a tensor.
pub(super) struct Written {
    slice: CudaSlice<f32>,
    device: CudaDevice,
}

impl Written {
    /// Uninitialised memory for `n` numbers on the device of `like`.
    ///
    /// # Errors
    /// More than the kernels count, or than the device has.
    pub fn new(n: usize, like: &Tensor) -> candle_core::Result<Self> {
        if !counted(n) {
            candle_core::bail!(
                "{n} numbers in one tensor are more than the kernels for GPUs take, 2^31: use smaller batches"
            )
        }
        let device = like.device().as_cuda_device()?.clone();
        // SAFETY: every kernel here writes all elements of what it is to write before anything reads them.
        let slice = unsafe { device.alloc::<f32>(n)? };
        Ok(Self { slice, device })
    }

    pub fn storage(self) -> Storage {
        Storage::Cuda(CudaStorage::wrap_cuda_slice(self.slice, self.device))
    }

    pub fn tensor(self, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(self.storage(), shape, BackpropOp::none(), false)
    }
}

/// Calls the kernel `name` with `inputs`, contiguous f32 tensors on one GPU, then `outputs`, then `numbers`. A kernel that works
/// in place has what it changes among its inputs.
///
/// The arguments must be those that the kernel in `kernels.cu` takes, as many elements as it reads and writes: the compiler
/// cannot see that.
pub(super) fn launch(
    name: &str,
    threads: Threads,
    inputs: &[&Tensor],
    outputs: &mut [&mut Written],
    numbers: &[Number],
) -> candle_core::Result<()> {
    let device = inputs[0].device().as_cuda_device()?;
    let guards: Vec<_> = inputs.iter().map(|input| input.storage_and_layout()).collect();
    let mut views: Vec<CudaView<f32>> = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        let (Storage::Cuda(storage), Some((start, end))) = (&**storage, layout.contiguous_offsets()) else {
            candle_core::bail!("{name}: an argument is not contiguous on a GPU")
        };
        views.push(storage.as_cuda_slice::<f32>()?.slice(start..end));
    }
    let function = device.get_or_load_custom_func(name, "conjure", PTX)?;
    let mut call = function.builder();
    for view in &views {
        call.arg(view);
    }
    for output in outputs.iter_mut() {
        call.arg(&mut output.slice);
    }
    for number in numbers {
        match number {
            Number::Int(n) => call.arg(n),
            Number::Float(x) => call.arg(x),
        };
    }
    // SAFETY: the callers in `operations` give each kernel the arguments that it declares, of the sizes that its numbers state;
    // the tests with the feature `cuda` compare all of them with the CPU's kernels.
    unsafe { call.launch(threads.config()) }.map_err(candle_core::Error::wrap)?;
    Ok(())
}

/// A contiguous tensor outside the graph.
pub(super) fn plain(x: &Tensor) -> Result<Tensor> {
    Ok(x.detach().contiguous()?)
}
