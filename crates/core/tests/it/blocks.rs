//! Blocks against those of diffusers, recorded by `tools/reference/blocks.py`.

use conjure_core::blocks::{Downsample, ResnetBlock, ResnetBlockConfig, TimeEmbeddingNorm, Upsample};
use conjure_core::weights::{Params, TensorSource, open};
use conjure_core::{DType, Device, Tensor};
use std::collections::BTreeSet;
use std::sync::Arc;

const TOLERANCE: f32 = 1e-5;

struct Case {
    source: Arc<dyn TensorSource>,
    name: &'static str,
    params: Params,
}

impl Case {
    fn new(name: &'static str) -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/blocks.safetensors");
        let source = open(path).unwrap();
        let params = Params::load(source.clone(), DType::F32, &Device::Cpu).sub(name).sub("weights");
        Self { source, name, params }
    }

    fn get(&self, name: &str) -> Tensor {
        self.source.load(&format!("{}.{name}", self.name), DType::F32, &Device::Cpu).unwrap()
    }

    /// The recorded output, to 1e-5 of its largest value, from exactly the recorded weights.
    #[track_caller]
    fn agrees(&self, got: &Tensor) {
        let want = self.get("y");
        assert_eq!(got.dims(), want.dims(), "{}", self.name);
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (got, want) = (flat(got), flat(&want));
        let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() <= TOLERANCE * scale, "{}: {g} is not {w}", self.name);
        }
        let asked: BTreeSet<_> = self.params.asked().into_iter().map(|spec| spec.name).collect();
        let weights = format!("{}.weights.", self.name);
        let stored = self.source.infos().keys().filter(|key| key.starts_with(&weights)).cloned().collect();
        assert_eq!(asked, stored);
    }
}

#[test]
fn resnet_block() {
    let case = Case::new("resnet_plain");
    let block = ResnetBlock::new(&case.params, ResnetBlockConfig::new(12, 12, 3)).unwrap();
    case.agrees(&block.forward(&case.get("x"), None).unwrap());

    let case = Case::new("resnet_add");
    let config = ResnetBlockConfig {
        temb_channels: Some(9),
        eps: 1e-5,
        output_scale_factor: 1.7,
        ..ResnetBlockConfig::new(12, 20, 4)
    };
    let block = ResnetBlock::new(&case.params, config).unwrap();
    case.agrees(&block.forward(&case.get("x"), Some(&case.get("temb"))).unwrap());

    let case = Case::new("resnet_scale_shift");
    let config = ResnetBlockConfig {
        temb_channels: Some(9),
        eps: 1e-3,
        time_embedding_norm: TimeEmbeddingNorm::from_name("scale_shift").unwrap(),
        ..ResnetBlockConfig::new(12, 8, 2)
    };
    let block = ResnetBlock::new(&case.params, config).unwrap();
    case.agrees(&block.forward(&case.get("x"), Some(&case.get("temb"))).unwrap());
    let error = block.forward(&case.get("x"), None).unwrap_err();
    assert_eq!(error.to_string(), "resnet block: it needs a time embedding, and got none");
}

#[test]
fn downsample_of_odd_sizes() {
    for (name, padding) in [("downsample_1", 1), ("downsample_0", 0)] {
        let case = Case::new(name);
        let block = Downsample::new(&case.params, 12, 8, padding).unwrap();
        case.agrees(&block.forward(&case.get("x")).unwrap());
    }
}

#[test]
fn upsample_twice_and_to_a_size() {
    let case = Case::new("upsample_twice");
    case.agrees(&Upsample::new(&case.params, 12, 8).unwrap().forward(&case.get("x"), None).unwrap());
    let case = Case::new("upsample_to");
    case.agrees(&Upsample::new(&case.params, 12, 12).unwrap().forward(&case.get("x"), Some((13, 9))).unwrap());
}

#[test]
fn unknown_time_embedding_norms_are_refused() {
    let error = TimeEmbeddingNorm::from_name("spatial").unwrap_err();
    assert_eq!(error.to_string(), "unknown time embedding norm `spatial`");
}
