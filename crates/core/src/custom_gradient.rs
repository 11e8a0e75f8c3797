//! Values with a backward pass of their own (what JAX calls `custom_vjp`): computed outside the graph, on any device.

use crate::{Error, Result, Shape, Tensor};
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Storage};
use std::sync::{Mutex, PoisonError};

/// `value`, with the gradients that `backward` computes for `inputs`, one to three, from the inputs and the gradient of
/// `value`; nothing where an input needs none. The inputs come as they are, tracked where they are: what `backward` computes
/// from them without [`Tensor::detach`] goes into the graph of a second derivative.
///
/// # Errors
/// More inputs; the device refuses memory.
pub(crate) fn with_gradient(
    inputs: &[&Tensor],
    value: Tensor,
    backward: impl Fn(&[&Tensor], &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let node = Node { value: Mutex::new(Some(value.detach())), backward: Box::new(backward) };
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
    value: Mutex<Option<Tensor>>,
    backward: Backward,
}

impl Node {
    /// The value in memory of its own, which begins with its first element and ends with its last.
    fn value(&self) -> candle_core::Result<Tensor> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        let value = value.ok_or_else(|| candle_core::Error::Msg("a value was put into the graph twice".into()).bt())?;
        value.force_contiguous()
    }

    fn on_cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let value = self.value()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, value.shape().clone())),
            _ => candle_core::bail!("a value is on another device than the inputs it was computed from"),
        }
    }

    fn on_cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        let value = self.value()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, value.shape().clone())),
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
