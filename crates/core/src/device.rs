//! Where tensors are computed, as people name it.

use crate::{Device, Error, Result};
use candle_core::DeviceLocation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// The name of a device: `cpu`, `cuda` for the first NVIDIA GPU, `cuda:N` for GPU number N, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// The processor, with the kernels of `conjure-kernels`.
    #[default]
    Cpu,
    /// An NVIDIA GPU, with kernels of its own, and the plain twins of [`crate::ops`] where it has none.
    Cuda(usize),
}

impl DeviceName {
    /// Takes the device into use. A GPU is opened once in a process, as tensors of two devices that were opened apart do not
    /// meet in one operation, even where both are the same GPU. Each thread has a queue of work of its own there, and none waits
    /// for another: a tensor is for the thread that made it.
    ///
    /// # Errors
    /// This build has no GPU support; there is no such GPU, or its driver does not answer.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(Error::request(format!(
                "the device {self} needs a build of conjure with GPU support"
            ))
            .with_help(
                "build it with cargo build --release --features cuda, which needs NVIDIA's CUDA toolkit, or use cpu",
            )),
            Self::Cuda(number) => open_cuda(number).map_err(|error| {
                Error::request(format!("the device {self} cannot be used: {error}")).with_help(
                    "nvidia-smi lists the GPUs that there are and says whether the driver answers; cpu always works",
                )
            }),
        }
    }

    /// The name of a device in use.
    pub fn of(device: &Device) -> Self {
        match device.location() {
            DeviceLocation::Cuda { gpu_id } => Self::Cuda(gpu_id),
            _ => Self::Cpu,
        }
    }
}

/// GPU number `number`, the same one whenever it is asked for.
fn open_cuda(number: usize) -> candle_core::Result<Device> {
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&number) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda(number)?;
    #[cfg(feature = "cuda")]
    keep_freed_memory(&device)?;
    open.insert(number, device.clone());
    Ok(device)
}

/// Has the driver keep memory that tensors gave back for the next ones. By itself it returns all of it to the system whenever
/// the queue of work has run empty, and every training step would ask for gigabytes anew.
#[cfg(feature = "cuda")]
fn keep_freed_memory(device: &Device) -> candle_core::Result<()> {
    use candle_core::cuda_backend::cudarc::driver::sys;
    let stream = device.as_cuda_device()?.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(()); // No pool to keep it in.
    }
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is that of a live context, and both out and in parameters are of the types the driver's manual asks
    // for: a pool handle, and a 64-bit number for this attribute, which is read during the call alone.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device())
            .result()
            .map_err(candle_core::Error::wrap)?;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast())
            .result()
            .map_err(candle_core::Error::wrap)
    }
}

/// Whether products of matrices in f32 on GPUs may round their factors to TF32, which keeps 10 of 23 bits of the mantissa: for
/// the whole process, from now on. False at the start.
pub fn round_gpu_products(round: bool) {
    candle_core::cuda::set_gemm_reduced_precision_f32(round);
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let number = match name {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        number.map(Self::Cuda).ok_or_else(|| {
            Error::request(format!("unknown device {name:?}: not cpu, cuda or cuda:N"))
                .with_help("cpu, cuda for the first NVIDIA GPU, or cuda:1 for the second")
        })
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        name.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, name, written) in [
            ("cpu", DeviceName::Cpu, "cpu"),
            ("cuda", DeviceName::Cuda(0), "cuda"),
            ("cuda:0", DeviceName::Cuda(0), "cuda"),
            ("cuda:3", DeviceName::Cuda(3), "cuda:3"),
        ] {
            assert_eq!(text.parse::<DeviceName>().unwrap(), name);
            assert_eq!(name.to_string(), written);
        }
        for text in ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "metal"] {
            let error = text.parse::<DeviceName>().unwrap_err();
            assert!(error.to_string().contains("unknown device") && error.help().is_some(), "{text}");
        }
        assert_eq!(DeviceName::of(&DeviceName::Cpu.open().unwrap()), DeviceName::Cpu);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_gpu_support_says_how_to_get_it() {
        let error = DeviceName::Cuda(1).open().unwrap_err();
        assert!(error.to_string().contains("cuda:1") && error.help().unwrap().contains("--features cuda"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
