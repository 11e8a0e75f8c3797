//! From tensors to the slices that kernels take, and back.

use candle_core::{CpuStorage, Error, Layout, Result, Storage};

use crate::{DType, Tensor};
use std::cell::Cell;

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with every operation, optimizer and average that begins on this thread done by its plain twin.
/// An optimizer or average that was made outside keeps what it was made with.
pub fn with_plain<T>(work: impl FnOnce() -> T) -> T {
    /// Also restores after a panic.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAIN.set(self.0);
        }
    }
    let _restore = Restore(PLAIN.replace(true));
    work()
}

/// Whether work on this thread is to be done by plain twins.
#[cfg(feature = "cuda")]
pub(crate) fn wants_plain() -> bool {
    PLAIN.get()
}

/// Whether kernels can take these tensors: f32 in main memory.
pub(crate) fn on_cpu_in_f32(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.dtype() == DType::F32 && x.device().is_cpu()) && !PLAIN.get()
}

/// The numbers of a contiguous tensor.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => Err(Error::Msg("a kernel was given a tensor that is not f32 and contiguous".into()).bt()),
    }
}

/// The numbers from a tensor's first on, to be read by its strides.
pub(crate) fn from_first<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        CpuStorage::F32(data) => Ok(&data[layout.start_offset().min(data.len())..]),
        _ => Err(Error::Msg("a kernel was given a tensor that is not f32".into()).bt()),
    }
}

/// Calls `read` with the storage and layout of a tensor in main memory.
pub(crate) fn with_storage<T>(x: &Tensor, read: impl FnOnce(&CpuStorage, &Layout) -> Result<T>) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(storage, layout),
        _ => Err(Error::Msg("a kernel was given a tensor that is not in main memory".into()).bt()),
    }
}

/// Calls `read` with the numbers of a tensor, made contiguous.
pub(crate) fn with_slice<T>(x: &Tensor, read: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let x = x.contiguous()?;
    with_storage(&x, |storage, layout| read(contiguous(storage, layout)?))
}
