//! The classifier against the same network out of diffusers' blocks, see `tools/reference/image_classifier.py`.

use crate::fixture::{self, Fixture};
use crate::training::{assert_gradients, descend};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Tensor, Var};
use conjure_models::image_classifier::{self, ImageClassifier, ImageClassifierConfig, perceptual_distance};
use std::collections::{BTreeMap, BTreeSet};

const CASES: [&str; 2] = ["plain", "deep"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    config: ImageClassifierConfig,
    fixture: Fixture,
    pixels: Tensor,
    targets: BTreeMap<String, Tensor>,
}

impl Case {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture::path(&format!("image_classifier/{name}.json"))).unwrap();
        let fixture = Fixture::open(&format!("image_classifier/{name}.safetensors"));
        let pixels = fixture.get("inputs.pixels").unwrap();
        let targets = fixture
            .below("inputs.targets")
            .into_iter()
            .map(|(head, targets)| (head, targets.to_dtype(DType::U32).unwrap()))
            .collect();
        Self { config: ImageClassifierConfig::from_json(&text).unwrap(), fixture, pixels, targets }
    }

    fn model(&self) -> ImageClassifier {
        ImageClassifier::new(&Params::load(self.fixture.source("weights"), DType::F32, &Device::Cpu), &self.config)
            .unwrap()
    }

    #[track_caller]
    fn agrees(&self, got: &Tensor, output: &str) {
        let error = fixture::relative_error(got, &self.fixture.get(&format!("outputs.{output}")).unwrap());
        assert!(error < TOLERANCE, "{output}: {error}");
    }
}

#[test]
fn outputs_and_loss_equal_those_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        let output = model.forward(&case.pixels, &mut NoProbe).unwrap();
        case.agrees(&output.features, "features");
        assert_eq!(output.logits.len(), 2);
        for (head, logits) in &output.logits {
            case.agrees(logits, &format!("logits.{head}"));
        }
        case.agrees(&image_classifier::loss(&output.logits, &case.targets, 0.1).unwrap(), "loss");
        let levels = model.pyramid(&case.pixels, &mut NoProbe).unwrap();
        assert_eq!(levels.len(), case.config.block_out_channels.len());
        for (n, level) in levels.iter().enumerate() {
            case.agrees(level, &format!("pyramid.{n}"));
        }
    }
}

#[test]
fn the_model_asks_for_exactly_the_keys_of_the_reference() {
    for name in CASES {
        let case = Case::open(name);
        let params = Params::outline();
        ImageClassifier::new(&params, &case.config).unwrap();
        let stored: BTreeSet<_> =
            case.fixture.below("weights").into_iter().map(|(key, t)| (key, t.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), stored);
    }
}

#[test]
fn a_probe_sees_the_levels() {
    let case = Case::open("deep");
    let mut recorder = Recorder::new(|_: &str, quantity| quantity == Quantity::Activation);
    case.model().forward(&case.pixels, &mut recorder).unwrap();
    let paths: Vec<_> = recorder.records.iter().map(|(path, _, _)| path.as_str()).collect();
    assert_eq!(paths, ["down_blocks.0", "down_blocks.1", "down_blocks.2"]);
    case.agrees(&recorder.records[2].2, "pyramid.2");
}

#[test]
fn every_parameter_gets_a_gradient() {
    let case = Case::open("deep");
    let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
    let model = ImageClassifier::new(&params, &case.config).unwrap();
    let logits = model.forward(&case.pixels, &mut NoProbe).unwrap().logits;
    assert_gradients(&params, &image_classifier::loss(&logits, &case.targets, 0.1).unwrap());
}

#[test]
fn the_perceptual_distance_is_that_of_the_reference_and_teaches_the_picture() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model();
        // Each picture and the next.
        let next =
            Tensor::cat(&[case.pixels.narrow(0, 1, 2).unwrap(), case.pixels.narrow(0, 0, 1).unwrap()], 0).unwrap();
        let made = Var::from_tensor(&case.pixels).unwrap();
        let levels = |x: &Tensor| model.pyramid(x, &mut NoProbe).unwrap();
        let distance = perceptual_distance(&levels(made.as_tensor()), &levels(&next)).unwrap();
        case.agrees(&distance, "distance");
        let gradient = distance.backward().unwrap().get(&made).unwrap().clone();
        // A small step against the gradient brings the pictures nearer, by about its squared length.
        let square = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let rate = 0.01 / f64::from(square);
        let moved = (made.as_tensor() - (gradient * rate).unwrap()).unwrap();
        let nearer = perceptual_distance(&levels(&moved), &levels(&next)).unwrap();
        let gain = (distance - nearer).unwrap().to_scalar::<f32>().unwrap();
        assert!((0.005..0.015).contains(&gain), "{gain}");
        let same = perceptual_distance(&levels(&next), &levels(&next)).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(same, 0.0);
    }
}

/// Noise, which nobody can tell apart but by learning it by heart.
fn pictures(count: usize, size: usize) -> Tensor {
    let values = (0..count * 3 * size * size)
        .map(|i| (((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 1000) as f32 / 500.0 - 1.0)
        .collect::<Vec<_>>();
    Tensor::from_vec(values, (count, 3, size, size), &Device::Cpu).unwrap()
}

#[test]
fn a_few_pictures_are_learned_by_heart() {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
    let heads = BTreeMap::from([("concept".to_owned(), names("c", 4)), ("style".to_owned(), names("s", 2))]);
    let config = ImageClassifierConfig {
        image_size: 16,
        stem_stride: 1,
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        norm_num_groups: 4,
        ..ImageClassifierConfig::small_64(heads)
    };
    let params = Params::seeded(0, DType::F32, &Device::Cpu).trainable();
    let model = ImageClassifier::new(&params, &config).unwrap();
    let pixels = pictures(8, 16);
    let targets = |t: [u32; 8]| Tensor::new(&t, &Device::Cpu).unwrap();
    let targets = BTreeMap::from([
        ("concept".to_owned(), targets([0, 1, 2, 3, 0, 1, 2, 3])),
        ("style".to_owned(), targets([0, 0, 0, 0, 1, 1, 1, 1])),
    ]);
    let losses = descend(&params, 0.1, 150, || {
        let logits = model.forward(&pixels, &mut NoProbe).unwrap().logits;
        image_classifier::loss(&logits, &targets, 0.0).unwrap()
    });
    // Guessing costs ln 4 + ln 2 = 2.08.
    assert!(losses[0] > 1.8 && losses[150] < 0.1, "{} to {}: {:?}", losses[0], losses[150], losses);
    let logits = model.forward(&pixels, &mut NoProbe).unwrap().logits;
    for (head, targets) in &targets {
        let guesses = logits[head].argmax(1).unwrap();
        assert_eq!(guesses.to_vec1::<u32>().unwrap(), targets.to_vec1::<u32>().unwrap(), "{head}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::open("plain");
    let model = case.model();
    let logits = model.forward(&case.pixels, &mut NoProbe).unwrap().logits;
    let unknown = BTreeMap::from([("colour".to_owned(), case.targets["style"].clone())]);
    let error = image_classifier::loss(&logits, &unknown, 0.0).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.help()),
        ("the classifier has no head colour", Some("it has concept, style"))
    );
    assert!(image_classifier::loss(&logits, &BTreeMap::new(), 0.0).is_err());
    assert!(perceptual_distance(&[], &[]).is_err());
    let grey = Tensor::zeros((1, 1, 16, 16), DType::F32, &Device::Cpu).unwrap();
    assert!(model.forward(&grey, &mut NoProbe).unwrap_err().to_string().contains("1 input channels"));
}
