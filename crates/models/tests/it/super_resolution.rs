//! Super-resolution against the same network in PyTorch, see `tools/reference/super_resolution.py`.

use crate::fixture::{self, Fixture};
use crate::training::{assert_gradients, descend_adamw};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Tensor, ops};
use conjure_models::super_resolution::{self, SuperResolution, SuperResolutionConfig};
use std::collections::BTreeSet;

const CASES: [&str; 2] = ["double", "fourfold"];
const TOLERANCE: f64 = 1e-4;

fn open(name: &str) -> (SuperResolutionConfig, Fixture) {
    let text = std::fs::read_to_string(fixture::path(&format!("super_resolution/{name}.json"))).unwrap();
    let fixture = Fixture::open(&format!("super_resolution/{name}.safetensors"));
    (SuperResolutionConfig::from_json(&text).unwrap(), fixture)
}

#[test]
fn pictures_and_loss_equal_those_of_the_reference() {
    for name in CASES {
        let (config, fixture) = open(name);
        let params = Params::load(fixture.source("weights"), DType::F32, &Device::Cpu);
        let model = SuperResolution::new(&params, &config).unwrap();
        let mut recorder = Recorder::new(|_: &str, quantity| quantity == Quantity::Activation);
        let made = model.forward(&fixture.get("inputs.pixels").unwrap(), &mut recorder).unwrap();
        let error = fixture::relative_error(&made, &fixture.get("outputs.made").unwrap());
        assert!(error < TOLERANCE, "{name}: {error}");
        let loss = super_resolution::loss(&made, &fixture.get("inputs.target").unwrap()).unwrap();
        let error = fixture::relative_error(&loss, &fixture.get("outputs.loss").unwrap());
        assert!(error < TOLERANCE, "{name}: {error}");
        assert_eq!(recorder.records.len(), config.num_block);
        let stored: BTreeSet<_> =
            fixture.below("weights").into_iter().map(|(key, t)| (key, t.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored);
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for name in CASES {
        let (config, fixture) = open(name);
        let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
        let model = SuperResolution::new(&params, &config).unwrap();
        let made = model.forward(&fixture.get("inputs.pixels").unwrap(), &mut NoProbe).unwrap();
        assert_gradients(&params, &super_resolution::loss(&made, &fixture.get("inputs.target").unwrap()).unwrap());
    }
}

/// Discs with sharp edges, in -1 and 1: what bicubic enlargement blurs.
fn discs(count: usize, size: usize) -> Tensor {
    let mut values = Vec::new();
    for picture in 0..count {
        for channel in 0..3 {
            let radius = 3.0 + (picture * 2 + channel) as f32;
            let (x0, y0) = (8.0 + 3.0 * picture as f32, 14.0 - 2.0 * channel as f32);
            values.extend((0..size * size).map(|i| {
                let (x, y) = ((i % size) as f32 - x0, (i / size) as f32 - y0);
                if x.hypot(y) < radius { 1.0f32 } else { -1.0 }
            }));
        }
    }
    Tensor::from_vec(values, (count, 3, size, size), &Device::Cpu).unwrap()
}

#[test]
fn a_few_pictures_become_sharper_than_bicubic() {
    let target = discs(3, 24);
    let small = ops::resize_bicubic(&target, 12, 12).unwrap();
    let plain = ops::resize_bicubic(&small, 24, 24).unwrap();
    let plain = super_resolution::loss(&plain, &target).unwrap().to_scalar::<f32>().unwrap();
    let config =
        SuperResolutionConfig { num_feat: 12, num_grow_ch: 6, num_block: 1, ..SuperResolutionConfig::small(2) };
    let params = Params::seeded(0, DType::F32, &Device::Cpu).trainable();
    let model = SuperResolution::new(&params, &config).unwrap();
    let losses = descend_adamw(&params, 5e-3, 150, || {
        super_resolution::loss(&model.forward(&small, &mut NoProbe).unwrap(), &target).unwrap()
    });
    assert!(losses[150] < 0.5 * plain, "{plain} and {losses:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (config, fixture) = open("double");
    let params = Params::load(fixture.source("weights"), DType::F32, &Device::Cpu);
    let model = SuperResolution::new(&params, &config).unwrap();
    let of = |shape: [usize; 4]| Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
    assert!(model.forward(&of([1, 4, 8, 8]), &mut NoProbe).unwrap_err().to_string().contains("4 input channels"));
    assert!(model.forward(&of([1, 3, 0, 8]), &mut NoProbe).unwrap_err().to_string().contains("0x8 pixels"));
}
