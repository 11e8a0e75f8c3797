//! What every test of training needs: gradients looked at, and a few steps of descent.

use conjure_core::optim::{AdamW, AdamWConfig};
use conjure_core::weights::Params;
use conjure_core::{Tensor, Var};

/// Every parameter's gradient is finite and not zero.
#[track_caller]
pub fn assert_gradients(params: &Params, loss: &Tensor) {
    let gradients = loss.backward().unwrap();
    let variables = params.variables();
    assert!(!variables.is_empty());
    for (name, variable) in variables {
        let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        assert!(size.is_finite() && size > 1e-9, "{name}: {size}");
    }
}

/// So many steps of gradient descent; the loss after each, and before the first.
pub fn descend(params: &Params, rate: f64, steps: usize, loss: impl Fn() -> Tensor) -> Vec<f32> {
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = loss();
        losses.push(loss.to_scalar().unwrap());
        let gradients = loss.backward().unwrap();
        for variable in params.variables().values() {
            let step = (gradients.get(variable).unwrap() * rate).unwrap();
            variable.set(&(variable.as_tensor() - step).unwrap().detach()).unwrap();
        }
    }
    losses.push(loss().to_scalar().unwrap());
    losses
}

/// As [`descend`], with AdamW, without weight decay.
pub fn descend_adamw(params: &Params, rate: f64, steps: usize, loss: impl Fn() -> Tensor) -> Vec<f32> {
    let config = AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(params.variables(), config).unwrap();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = loss();
        losses.push(loss.to_scalar().unwrap());
        let gradients = loss.backward().unwrap();
        let gradient = |variable: &Var| gradients.get(variable).unwrap().clone();
        let gradients = params.variables().iter().map(|(name, v)| (name.clone(), gradient(v))).collect();
        optimizer.step(&gradients, rate, 1.0).unwrap();
    }
    losses.push(loss().to_scalar().unwrap());
    losses
}
