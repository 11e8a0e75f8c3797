//! The autoencoder against diffusers.

use crate::fixture::{self, Fixture};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::{MemorySource, Params, Renamed, TensorSource, View};
use conjure_core::{DType, Device, Tensor};
use conjure_models::autoencoder_kl::{self, AutoencoderKl, AutoencoderKlConfig, DiagonalGaussian, Tiling};
use std::collections::BTreeSet;
use std::sync::Arc;

const CASES: [&str; 3] = ["sd", "shift", "statistics"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    config: AutoencoderKlConfig,
    fixture: Fixture,
}

impl Case {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("autoencoder_kl/{name}.json"))).unwrap();
        let fixture = Fixture::open(&format!("autoencoder_kl/{name}.safetensors"));
        Self { config: AutoencoderKlConfig::from_json(&text).unwrap(), fixture }
    }

    fn model(&self) -> AutoencoderKl {
        let params = Params::load(self.fixture.source("weights"), DType::F32, &Device::Cpu);
        AutoencoderKl::new(&params, &self.config).unwrap()
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
fn outputs_equal_those_of_diffusers() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        let posterior = model.encode(&case.input("x"), &mut NoProbe).unwrap();
        case.agrees(&posterior.mean, "mean");
        case.agrees(posterior.mode(), "mean");
        case.agrees(&posterior.logvar, "logvar");
        case.agrees(&posterior.sample(&case.input("noise")).unwrap(), "sample");
        case.agrees(&posterior.kl().unwrap(), "kl");
        case.agrees(&model.decode(&case.input("z"), &mut NoProbe).unwrap(), "decoded");
    }
}

#[test]
fn tiles_equal_those_of_diffusers() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        let tiling = model.tiling();
        assert_eq!(tiling.latent_side(), 8);
        let posterior = model.encode_tiled(&case.input("x"), tiling).unwrap();
        case.agrees(&posterior.mean, "tiled_mean");
        case.agrees(&posterior.logvar, "tiled_logvar");
        case.agrees(&model.decode_tiled(&case.input("z"), tiling).unwrap(), "tiled_decoded");
    }
    // The comparison above is of tiles indeed: they differ from the whole.
    let case = Case::open("sd");
    let whole = case.fixture.get("outputs.decoded").unwrap();
    assert!(fixture::relative_error(&case.fixture.get("outputs.tiled_decoded").unwrap(), &whole) > 1e-2);
}

#[test]
fn latents_are_scaled_as_in_the_pipelines_of_diffusers() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        let z = case.input("z");
        let unscaled = model.unscale_latents(&z).unwrap();
        case.agrees(&unscaled, "unscaled");
        assert!(fixture::relative_error(&model.scale_latents(&unscaled).unwrap(), &z) < 1e-6);
    }
}

#[test]
fn the_model_asks_for_exactly_the_keys_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::outline();
        AutoencoderKl::new(&params, &case.config).unwrap();
        let stored: BTreeSet<_> =
            case.fixture.below("weights").into_iter().map(|(key, t)| (key, t.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored);
    }
}

#[test]
fn the_public_model_has_its_known_size() {
    for config in [AutoencoderKlConfig::stable_diffusion(), AutoencoderKlConfig::stable_diffusion_xl()] {
        let params = Params::outline();
        AutoencoderKl::new(&params, &config).unwrap();
        let count: usize = params.asked().iter().map(|p| p.shape.elem_count()).sum();
        assert_eq!(count, 83_653_863);
    }
}

#[test]
fn old_names_of_the_attention_are_understood() {
    let case = Case::open("sd");
    let mut renamed = 0;
    let old = case.fixture.below("weights").into_iter().map(|(key, tensor)| {
        let mut name = key.clone();
        for (new, old) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")] {
            name = name.replace(&format!(".{new}."), &format!(".{old}."));
        }
        renamed += usize::from(name != key);
        (name, tensor)
    });
    let source: Arc<dyn TensorSource> = Arc::new(MemorySource::new(old));
    assert_eq!(renamed, 16);
    let views: Vec<_> =
        source.infos().keys().map(|stored| (autoencoder_kl::canonical_key(stored), View::as_is(stored))).collect();
    let params = Params::load(Arc::new(Renamed::new(source, views).unwrap()), DType::F32, &Device::Cpu);
    let model = AutoencoderKl::new(&params, &case.config).unwrap();
    case.agrees(&model.decode(&case.input("z"), &mut NoProbe).unwrap(), "decoded");
}

#[test]
fn a_probe_sees_the_attention_and_changes_no_bit() {
    let case = Case::open("sd");
    let model = case.model();
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let mut recorder = Recorder::new(|_: &str, _| true);
    let z = case.input("z");
    let seen = model.decode(&z, &mut recorder).unwrap();
    assert_eq!(bits(&seen), bits(&model.decode(&z, &mut NoProbe).unwrap()));
    let find = |wanted: &str, quantity| {
        let record = recorder.records.iter().find(|(path, q, _)| path == wanted && *q == quantity);
        record.unwrap_or_else(|| panic!("{wanted} was not observed")).2.clone()
    };
    let probabilities = find("decoder.mid_block.attentions.0", Quantity::AttentionProbabilities);
    assert_eq!(probabilities.dims(), [1, 1, 380, 380]);
    let rows = probabilities.sum(3).unwrap();
    assert!(fixture::relative_error(&rows, &rows.ones_like().unwrap()) < 1e-5);
    assert_eq!(find("decoder.up_blocks.0", Quantity::Activation).dims(), [1, 20, 40, 38]);

    let mut recorder = Recorder::new(|_: &str, _| true);
    let x = case.input("x");
    let seen = model.encode(&x, &mut recorder).unwrap();
    assert_eq!(bits(&seen.mean), bits(&model.encode(&x, &mut NoProbe).unwrap().mean));
    assert!(recorder.records.iter().any(|(path, _, _)| path == "encoder.mid_block.attentions.0"));
}

#[test]
fn every_parameter_gets_a_gradient() {
    let case = Case::open("sd");
    let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
    let model = AutoencoderKl::new(&params, &case.config).unwrap();
    let x = case.input("x").narrow(2, 0, 16).unwrap().narrow(3, 0, 12).unwrap().contiguous().unwrap();
    let noise = case.input("noise").narrow(2, 0, 8).unwrap().narrow(3, 0, 6).unwrap();
    let posterior = model.encode(&x, &mut NoProbe).unwrap();
    let reconstruction = model.decode(&posterior.sample(&noise).unwrap(), &mut NoProbe).unwrap();
    let loss = autoencoder_kl::loss(&x, &reconstruction, &posterior, 1e-6).unwrap();
    let gradients = loss.backward().unwrap();
    let variables = params.variables();
    assert_eq!(variables.len(), params.asked().len());
    for (name, variable) in variables {
        let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        // The same offset on every key cancels in the softmax: its gradient is rounding error.
        let zero = name.ends_with("to_k.bias");
        assert!(size.is_finite() && (zero || size > 0.0), "{name}: {size}");
    }
}

#[test]
fn the_loss_follows_its_equations() {
    // One picture of two pixels, one latent channel; mu = 1, sigma^2 = e: KL = (1 + e - 1 - 1) / 2 for each of 2 latents.
    let tensor = |values: &[f32], shape: (usize, usize, usize, usize)| Tensor::from_slice(values, shape, &Device::Cpu);
    let posterior = DiagonalGaussian::new(&tensor(&[1.0, 1.0, 1.0, 1.0], (1, 2, 1, 2)).unwrap()).unwrap();
    let kl = posterior.kl().unwrap().to_vec1::<f32>().unwrap();
    let expected = std::f32::consts::E - 1.0;
    assert!((kl[0] - expected).abs() < 1e-6, "{kl:?}");
    let x = tensor(&[0.5, -0.5], (1, 1, 1, 2)).unwrap();
    let y = tensor(&[0.25, 0.5], (1, 1, 1, 2)).unwrap();
    let loss = autoencoder_kl::loss(&x, &y, &posterior, 0.5).unwrap().to_scalar::<f32>().unwrap();
    assert!((loss - (1.25 + 0.5 * expected)).abs() < 1e-6, "{loss}");
    // Variances are bounded.
    let extreme = DiagonalGaussian::new(&tensor(&[0.0, 0.0, -100.0, 100.0], (1, 2, 1, 2)).unwrap()).unwrap();
    assert_eq!(extreme.logvar.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-30.0, 20.0]);
}

#[test]
fn tiles_that_cannot_be_are_refused() {
    assert_eq!(Tiling::new(6).unwrap_err().to_string(), "tiles of 6 latent pixels cannot overlap by a quarter");
    let case = Case::open("sd");
    let model = case.model();
    let x = Tensor::zeros((1, 3, 33, 16), DType::F32, &Device::Cpu).unwrap();
    let error = model.encode_tiled(&x, model.tiling()).unwrap_err();
    assert_eq!(error.to_string(), "cannot encode 16x33 in tiles");
}
