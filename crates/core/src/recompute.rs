//! Training in less memory: what is computed inside a segment is not kept for the backward pass but computed again there
//! ("Training Deep Nets with Sublinear Memory Cost", Chen et al. 2016, <https://arxiv.org/abs/1604.06174>).
//!
//! Inside [`with`], the blocks that models are made of ([`crate::blocks::ResnetBlock`],
//! [`crate::blocks::BasicTransformerBlock`]) are such segments. Only their inputs and outputs are kept. Gradients are the
//! same, bit for bit, at the price of a second forward pass; [`backward`] finds those of parameters inside segments too.
//! Probes see nothing of a segment.

use crate::{Error, Result, Shape, Tensor, Var};
use candle_core::backend::BackendStorage as _;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Storage, TensorId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    /// Gradients of parameters inside segments, while a backward pass runs.
    static FOUND: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
}

/// Runs `work`, on this thread, with segments computed again in the backward pass, or not.
pub fn with<T>(active: bool, work: impl FnOnce() -> T) -> T {
    /// Also restores after a panic.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _restore = Restore(ACTIVE.replace(active));
    work()
}

/// Whether segments are computed again in the backward pass.
pub fn active() -> bool {
    ACTIVE.get()
}

/// The gradients of `loss`, those of parameters inside segments included. Everywhere else the same as `loss.backward()`.
///
/// # Errors
/// A tensor operation fails.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let before = FOUND.replace(Some(HashMap::new()));
    let store = loss.backward();
    let found = FOUND.replace(before).unwrap_or_default();
    let mut store = store?;
    for (id, gradient) in found {
        let gradient = match store.get_id(id) {
            Some(outside) => (outside + gradient)?,
            None => gradient,
        };
        store.insert_id(id, gradient);
    }
    Ok(store)
}

/// `compute(inputs)`, of one to three inputs. Inside [`with`] nothing but inputs and output is kept of it; it must then give
/// the same whenever it is called, and use no variables but parameters.
///
/// # Errors
/// Those of `compute`; more inputs.
pub fn segment(
    inputs: &[&Tensor],
    compute: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !active() {
        return compute(&inputs.iter().map(|&input| input.clone()).collect::<Vec<_>>());
    }
    let detached: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let value = compute(&detached)?.detach();
    let mut inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
    if let (false, Some(first)) = (inputs.iter().any(Tensor::track_op), inputs.first_mut()) {
        // The tensor library passes over what depends on no variable, and does not know of the parameters inside.
        *first = Var::from_tensor(first)?.into_inner();
    }
    let again = Again { compute: Box::new(compute), value: Mutex::new(Some(value)) };
    Ok(match inputs.as_slice() {
        [a] => a.apply_op1(again)?,
        [a, b] => a.apply_op2(b, again)?,
        [a, b, c] => a.apply_op3(b, c, again)?,
        _ => return Err(Error::failure(format!("a segment has {} inputs, not one to three", inputs.len()))),
    })
}

/// The entry of what may be a segment, where it is not one: the same tensor, at which the gradients from inside are summed
/// before they join others. As a segment sums them in this order too, both ways give the same bits.
pub(crate) fn entry(x: &Tensor) -> Result<Tensor> {
    if x.track_op() && x.is_contiguous() { Ok(x.reshape(x.shape())?) } else { Ok(x.clone()) }
}

type Compute = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// A segment's place in the graph.
struct Again {
    compute: Compute,
    /// The output, until it is in the graph.
    value: Mutex<Option<Tensor>>,
}

impl Again {
    fn value(&self) -> candle_core::Result<Tensor> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| candle_core::Error::Msg("a segment was computed twice".into()).bt())
    }

    fn on_cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let value = self.value()?.contiguous()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((exactly(storage, layout, value.elem_count())?, value.shape().clone())),
            _ => candle_core::bail!("a segment's output is on another device than its input"),
        }
    }

    fn on_cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        // A copy of its own begins at the first element of its memory.
        let value = self.value()?.copy()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, value.shape().clone())),
            _ => candle_core::bail!("a segment's output is on another device than its input"),
        }
    }

    /// Gradients by the arguments that need one.
    fn backward<const N: usize>(
        &self,
        arguments: [&Tensor; N],
        gradient: &Tensor,
    ) -> candle_core::Result<[Option<Tensor>; N]> {
        let mut variables = [const { None }; N];
        let mut inputs = Vec::with_capacity(N);
        for (variable, argument) in variables.iter_mut().zip(arguments) {
            let input = argument.detach();
            inputs.push(if argument.track_op() {
                variable.insert(Var::from_tensor(&input)?).as_tensor().clone()
            } else {
                input
            });
        }
        let output = with(false, || (self.compute)(&inputs)).map_err(candle_core::Error::wrap)?;
        let product = (output * gradient.detach())?.sum_all()?;
        let mut store = product.backward()?;
        let own = variables.each_ref().map(|variable| variable.as_ref().and_then(|v| store.remove(v.as_tensor())));
        for node in product.sorted_nodes() {
            let Some(gradient) = node.is_variable().then(|| store.remove(node)).flatten() else { continue };
            FOUND.with_borrow_mut(|found| {
                let Some(found) = found else {
                    candle_core::bail!("gradients inside a segment are found by recompute::backward only")
                };
                let gradient = match found.remove(&node.id()) {
                    Some(before) => (before + gradient.detach())?,
                    None => gradient.detach(),
                };
                found.insert(node.id(), gradient);
                Ok(())
            })?;
        }
        Ok(own.map(|gradient| gradient.map(|gradient| gradient.detach())))
    }
}

/// The numbers of a contiguous tensor in memory of their own.
fn exactly(storage: &CpuStorage, layout: &Layout, count: usize) -> candle_core::Result<CpuStorage> {
    let start = layout.start_offset();
    Ok(match storage {
        CpuStorage::F32(data) => CpuStorage::F32(data[start..start + count].to_vec()),
        CpuStorage::F64(data) => CpuStorage::F64(data[start..start + count].to_vec()),
        CpuStorage::F16(data) => CpuStorage::F16(data[start..start + count].to_vec()),
        CpuStorage::BF16(data) => CpuStorage::BF16(data[start..start + count].to_vec()),
        _ => candle_core::bail!("a segment's output is of a type without gradients"),
    })
}

const NAME: &str = "recompute";

impl CustomOp1 for Again {
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
        let [a] = self.backward([a], gradient)?;
        Ok(a)
    }
}

impl CustomOp2 for Again {
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
        let [a, b] = self.backward([a, b], gradient)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Again {
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
        let [a, b, c] = self.backward([a, b, c], gradient)?;
        Ok((a, b, c))
    }
}
