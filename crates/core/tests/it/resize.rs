//! Resizing against Pillow and PyTorch, see `tools/reference/resize.py`.

use crate::ops::{numbers, values};
use conjure_core::{DType, Device, Tensor, Var, ops};
use std::collections::HashMap;

fn fixture() -> HashMap<String, Tensor> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/resize.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

#[test]
fn bicubic_is_that_of_pillow_and_pytorch() {
    let fixture = fixture();
    let mut cases = 0;
    for (name, want) in &fixture {
        let Some((who, size)) = name.split_once('.').filter(|(who, what)| *who != "inputs" && *what != "shuffle")
        else {
            continue;
        };
        let (_, _, height, width) = want.dims4().unwrap();
        let got = ops::resize_bicubic(&fixture[&format!("inputs.{size}")], height, width).unwrap();
        for (got, want) in values(&got).iter().zip(values(want)) {
            assert!((got - want).abs() < 1e-5, "{who}, {size}: {got} instead of {want}");
        }
        cases += 1;
    }
    assert_eq!(cases, 12);
}

#[test]
fn pixels_are_shuffled_as_in_pytorch() {
    let fixture = fixture();
    let got = ops::pixel_shuffle(&fixture["inputs.shuffle"], 3).unwrap();
    assert_eq!(got.dims(), fixture["torch.shuffle"].dims());
    assert_eq!(values(&got), values(&fixture["torch.shuffle"]));
}

#[test]
fn a_flat_picture_stays_flat_and_gradients_are_shared_out_whole() {
    let x = Var::from_tensor(&Tensor::full(0.75f64, (1, 3, 5, 9), &Device::Cpu).unwrap()).unwrap();
    for (height, width) in [(10, 18), (3, 4), (20, 36)] {
        let y = ops::resize_bicubic(x.as_tensor(), height, width).unwrap();
        assert!(values(&y).iter().all(|y| (y - 0.75).abs() < 1e-6));
        // Every output is a mean, so the gradients of the sum of outputs add up to their number.
        let gradient = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
        let total: f64 = values(&gradient).iter().sum();
        assert!((total - (3 * height * width) as f64).abs() < 1e-4, "{total}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let x = numbers(&[1, 6, 2, 2], 1.0, 1);
    assert!(ops::pixel_shuffle(&x, 2).unwrap_err().to_string().contains("6 channels are not shared out to 2x2"));
    assert!(ops::pixel_shuffle(&x, 0).is_err());
    assert!(ops::resize_bicubic(&x, 0, 4).unwrap_err().to_string().contains("2x2 pixels cannot become 0x4"));
    let empty = Tensor::zeros((1, 3, 0, 2), DType::F32, &Device::Cpu).unwrap();
    assert!(ops::resize_bicubic(&empty, 4, 4).is_err());
}
