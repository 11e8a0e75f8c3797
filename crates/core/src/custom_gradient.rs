//! Values with a backward pass of their own (what JAX calls `custom_vjp`): computed outside the graph, on any device.

use crate::{Error, Result, Shape, Tensor};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Storage};
use std::sync::{Mutex, PoisonError};

/// `value`, with the gradients that `backward` computes for `inputs`, one to three, from the inputs and the gradient of
/// `value`; nothing where an input needs none. First derivatives only.
///
/// # Errors
/// More inputs; the device refuses memory.
pub(crate) fn with_gradient(
    inputs: &[&Tensor],
    value: Tensor,
    backward: impl Fn(&[&Tensor], &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    // In memory of its own, which begins with its first element and ends with its last.
    let value = value.detach().force_contiguous()?;
    let storage = {
        let (storage, layout) = value.storage_and_layout();
        storage.try_clone(layout)?
    };
    with_gradient_of(inputs, storage, value.shape(), backward)
}

/// As [`with_gradient`], for a value that is no tensor yet: contiguous memory with its elements and no more.
///
/// # Errors
/// As for [`with_gradient`]; `storage` is on another device than the inputs.
pub(crate) fn with_gradient_of(
    inputs: &[&Tensor],
    storage: Storage,
    shape: impl Into<Shape>,
    backward: impl Fn(&[&Tensor], &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let node = Node { value: Mutex::new(Some((storage, shape.into()))), backward: Box::new(backward) };
    Ok(match inputs {
        [a] => a.apply_op1(node)?,
        [a, b] => a.apply_op2(b, node)?,
        [a, b, c] => a.apply_op3(b, c, node)?,
        _ => return Err(Error::failure(format!("a gradient for {} inputs, not one to three", inputs.len()))),
    })
}

type Backward = Box<dyn Fn(&[&Tensor], &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> + Send + Sync>;

/// The value's place in the graph.
struct Node {
    /// The value, until it is in the graph.
    value: Mutex<Option<(Storage, Shape)>>,
    backward: Backward,
}

impl Node {
    fn value(&self) -> candle_core::Result<(Storage, Shape)> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| candle_core::Error::Msg("a value was put into the graph twice".into()).bt())
    }

    fn on_cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        match self.value()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => candle_core::bail!("a value is on another device than the inputs it was computed from"),
        }
    }

    fn on_cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        match self.value()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => candle_core::bail!("a value is on another device than the inputs it was computed from"),
        }
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        gradient: &Tensor,
    ) -> candle_core::Result<[Option<Tensor>; N]> {
        let gradients = (self.backward)(&inputs, gradient)?;
        gradients.try_into().map_err(|gradients: Vec<_>| {
            candle_core::Error::Msg(format!("{} gradients for {N} inputs", gradients.len())).bt()
        })
    }
}

const NAME: &str = "custom-gradient";

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [a] = self.gradients([a], gradient)?;
        Ok(a)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients([a, b], gradient)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients([a, b, c], gradient)?;
        Ok((a, b, c))
    }
}
