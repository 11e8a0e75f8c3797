//! Training in less memory: what is computed inside a segment is not kept for the backward pass but computed again there
//! ("Training Deep Nets with Sublinear Memory Cost", Chen et al. 2016, <https://arxiv.org/abs/1604.06174>).
//!
//! Inside [`with`], the blocks that models are made of ([`crate::blocks::ResnetBlock`],
//! [`crate::blocks::BasicTransformerBlock`]) are such segments. Only their inputs and outputs are kept. Gradients are the
//! same, bit for bit, at the price of a second forward pass; [`backward`] finds those of parameters inside segments too.
//! Probes see nothing of a segment.

use crate::custom_gradient::with_gradient;
use crate::{Result, Tensor, Var};
use candle_core::TensorId;
use candle_core::backprop::GradStore;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

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
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    with_gradient(&inputs, value, move |arguments, gradient| backward_of(&compute, arguments, gradient))
}

/// The entry of what may be a segment, where it is not one: the same tensor, at which the gradients from inside are summed
/// before they join others. As a segment sums them in this order too, both ways give the same bits.
pub(crate) fn entry(x: &Tensor) -> Result<Tensor> {
    if x.track_op() && x.is_contiguous() { Ok(x.reshape(x.shape())?) } else { Ok(x.clone()) }
}

/// Gradients of a segment by the arguments that need one.
fn backward_of(
    compute: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    arguments: &[&Tensor],
    gradient: &Tensor,
) -> candle_core::Result<Vec<Option<Tensor>>> {
    let mut variables: Vec<Option<Var>> = Vec::with_capacity(arguments.len());
    let mut inputs = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let input = argument.detach();
        let variable = argument.track_op().then(|| Var::from_tensor(&input)).transpose()?;
        inputs.push(variable.as_ref().map_or(input, |variable| variable.as_tensor().clone()));
        variables.push(variable);
    }
    let output = with(false, || compute(&inputs)).map_err(candle_core::Error::wrap)?;
    let product = (output * gradient.detach())?.sum_all()?;
    let mut store = product.backward()?;
    let own: Vec<Option<Tensor>> =
        variables.iter().map(|variable| variable.as_ref().and_then(|v| store.remove(v.as_tensor()))).collect();
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
    Ok(own.into_iter().map(|gradient| gradient.map(|gradient| gradient.detach())).collect())
}
