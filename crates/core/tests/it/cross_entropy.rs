//! Cross-entropy against PyTorch, see `tools/reference/cross_entropy.py`.

use crate::ops::values;
use conjure_core::{DType, Device, Tensor, Var, ops};

#[track_caller]
fn agree(got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims());
    for (got, want) in values(got).iter().zip(values(want)) {
        assert!((got - want).abs() < 1e-6 * (1.0 + want.abs()), "{got} instead of {want}");
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cross_entropy.safetensors");
    let fixture = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let logits = Var::from_tensor(&fixture["logits"]).unwrap();
    let targets = fixture["targets"].to_dtype(DType::U32).unwrap();
    agree(&ops::log_softmax(logits.as_tensor()).unwrap(), &fixture["log_softmax"]);
    for smoothing in ["0.0", "0.1"] {
        let loss = ops::cross_entropy(logits.as_tensor(), &targets, smoothing.parse().unwrap()).unwrap();
        agree(&loss, &fixture[&format!("loss.{smoothing}")]);
        agree(loss.backward().unwrap().get(&logits).unwrap(), &fixture[&format!("gradient.{smoothing}")]);
    }
}

#[test]
fn huge_logits_stay_finite_and_targets_are_checked() {
    let logits = Tensor::new(&[[1e30f32, 0.0, -1e30], [3e3, 3e3, 3e3]], &Device::Cpu).unwrap();
    let targets = |t: &[u32]| Tensor::new(t, &Device::Cpu).unwrap();
    let loss = values(&ops::cross_entropy(&logits, &targets(&[0, 2]), 0.0).unwrap())[0];
    assert!((loss - 3f64.ln() / 2.0).abs() < 1e-6, "{loss}");
    let refused = |t: &[u32], smoothing| ops::cross_entropy(&logits, &targets(t), smoothing).unwrap_err().to_string();
    assert_eq!(refused(&[0, 3], 0.0), "cross_entropy: target 3 is none of 3 classes");
    assert_eq!(refused(&[0], 0.0), "cross_entropy: targets [1] do not fit logits [2, 3]");
    assert_eq!(refused(&[0, 1], 1.0), "cross_entropy: label smoothing is 1, not 0 to below 1");
}
