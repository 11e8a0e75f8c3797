//! The patch discriminator against the same network in PyTorch, see `tools/reference/patch_discriminator.py`.

use crate::fixture::{self, Fixture};
use crate::training::{assert_gradients, descend};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Tensor, Var};
use conjure_models::patch_discriminator::{
    PatchDiscriminator, PatchDiscriminatorConfig, discriminator_loss, generator_loss,
};
use std::collections::BTreeSet;

const CASES: [&str; 2] = ["norms", "no_norms"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    config: PatchDiscriminatorConfig,
    fixture: Fixture,
}

impl Case {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("patch_discriminator/{name}.json"))).unwrap();
        let fixture = Fixture::open(&format!("patch_discriminator/{name}.safetensors"));
        Self { config: serde_json::from_str(&text).unwrap(), fixture }
    }

    fn input(&self, name: &str) -> Tensor {
        self.fixture.get(&format!("inputs.{name}")).unwrap()
    }

    #[track_caller]
    fn agrees(&self, got: &Tensor, output: &str) {
        let error = fixture::relative_error(got, &self.fixture.get(&format!("outputs.{output}")).unwrap());
        assert!(error < TOLERANCE, "{output}: {error}");
    }
}

#[test]
fn judgements_and_losses_equal_those_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::load(case.fixture.source("weights"), DType::F32, &Device::Cpu);
        let model = PatchDiscriminator::new(&params, &case.config).unwrap();
        let real = model.forward(&case.input("real")).unwrap();
        let made = model.forward(&case.input("made")).unwrap();
        case.agrees(&real, "real");
        case.agrees(&made, "made");
        case.agrees(&discriminator_loss(&real, &made).unwrap(), "discriminator_loss");
        case.agrees(&generator_loss(&made).unwrap(), "generator_loss");
        let stored: BTreeSet<_> =
            case.fixture.below("weights").into_iter().map(|(key, t)| (key, t.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored);
        let (rows, columns) = (51 / (1 << case.config.n_layers) - 2, 62 / (1 << case.config.n_layers) - 2);
        assert_eq!(real.dims(), [2, 1, rows, columns]);
    }
}

#[test]
fn every_parameter_gets_a_gradient_and_so_does_the_made_picture() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
        let model = PatchDiscriminator::new(&params, &case.config).unwrap();
        let made = Var::from_tensor(&case.input("made")).unwrap();
        let judged = model.forward(made.as_tensor()).unwrap();
        let loss = discriminator_loss(&model.forward(&case.input("real")).unwrap(), &judged).unwrap();
        // The bias of the result cancels where the hinge lets both sides through alike, so the sides weigh differently here.
        assert_gradients(&params, &(loss + (generator_loss(&judged).unwrap() * 0.25).unwrap()).unwrap());
        let gradient = generator_loss(&judged).unwrap().backward().unwrap().get(&made).unwrap().clone();
        let size = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size.is_finite() && size > 0.0, "{size}");
    }
}

#[test]
fn real_and_made_patches_are_told_apart() {
    let case = Case::open("norms");
    let params = Params::seeded(0, DType::F32, &Device::Cpu).trainable();
    let model = PatchDiscriminator::new(&params, &case.config).unwrap();
    // Flat areas beside noise.
    let real = Tensor::full(0.5f32, (2, 3, 24, 24), &Device::Cpu).unwrap();
    let made = case.input("made").narrow(2, 0, 24).unwrap().narrow(3, 0, 24).unwrap();
    let losses = descend(&params, 0.02, 60, || {
        discriminator_loss(&model.forward(&real).unwrap(), &model.forward(&made).unwrap()).unwrap()
    });
    // Saying nothing costs 1.
    assert!(losses[0] > 0.8 && losses[60] < 0.1, "{losses:?}");
}

#[test]
fn pictures_too_small_for_a_patch_are_refused() {
    let params = Params::seeded(0, DType::F32, &Device::Cpu);
    let model = PatchDiscriminator::new(&params, &PatchDiscriminatorConfig::small_64()).unwrap();
    let of = |h: usize, w: usize| Tensor::zeros((1, 3, h, w), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(model.forward(&of(64, 64)).unwrap().dims(), [1, 1, 14, 14]);
    assert_eq!(model.forward(&of(12, 12)).unwrap().dims(), [1, 1, 1, 1]);
    let error = model.forward(&of(11, 64)).unwrap_err().to_string();
    assert_eq!(error, "a discriminator of 2 layers cannot judge 11x64 pixels");
}
