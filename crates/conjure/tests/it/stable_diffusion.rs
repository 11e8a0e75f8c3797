//! The whole pipeline against diffusers: the pictures that `tools/reference/stable_diffusion.py` rendered with the same
//! weights, prompt and `torch.Generator("cpu").manual_seed(seed)`.

#![allow(clippy::print_stdout, reason = "the measured figures, seen with --nocapture")]

use conjure::generate::image::{Control, Difference, ImageRequest, Pipeline, RngMode};
use conjure::image_file::Picture;
use conjure_core::{DType, Device, Tensor, weights};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Two pictures agree when their PSNR is above this, in decibels.
const PSNR: f64 = 45.0;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable_diffusion").join(name)
}

struct Reference {
    defaults: Value,
    cases: Vec<Value>,
    pictures: BTreeMap<String, Vec<Picture>>,
}

impl Reference {
    fn load() -> Self {
        let json: Value = serde_json::from_str(&std::fs::read_to_string(fixture("cases.json")).unwrap()).unwrap();
        let mut pictures = BTreeMap::new();
        for part in ["pictures_0.safetensors", "pictures_1.safetensors"] {
            let source = weights::open(fixture(part)).unwrap();
            for name in source.infos().keys() {
                pictures.insert(name.clone(), split(&source.load(name, DType::U8, &Device::Cpu).unwrap()));
            }
        }
        Self { defaults: json["defaults"].clone(), cases: json["cases"].as_array().unwrap().clone(), pictures }
    }

    fn request(&self, case: &Value) -> ImageRequest {
        let size = |name: &str| case[name].as_u64().map(|n| n as usize);
        let number = |name: &str| case[name].as_f64();
        let name = |name: &str| case[name].as_str();
        let task = name("task").unwrap();
        let text = |name: &str| self.defaults[name].as_str().unwrap().to_owned();
        let whole = |name: &str| self.defaults[name].as_u64().unwrap();
        let default = ImageRequest::default();
        ImageRequest {
            prompt: text("prompt"),
            negative: text("negative"),
            steps: whole("steps") as usize,
            sampler: name("sampler").map(|s| s.parse().unwrap()),
            schedule: name("schedule").map(|s| s.parse().unwrap()),
            guidance: number("guidance").unwrap_or(default.guidance),
            guidance_rescale: number("guidance_rescale").unwrap_or(0.0),
            eta: number("eta").unwrap_or(0.0),
            clip_skip: size("clip_skip").unwrap_or(0),
            seed: Some(whole("seed")),
            rng: RngMode::Torch,
            width: size("width"),
            height: size("height"),
            batch: size("batch").unwrap_or(1),
            init: (task != "text").then(|| fixture("init.png")),
            strength: number("strength"),
            mask: task.starts_with("mask").then(|| fixture("mask.png")),
            ..default
        }
    }
}

/// `(batch, height, width, 3)` bytes as pictures.
fn split(bytes: &Tensor) -> Vec<Picture> {
    let (batch, height, width, _) = bytes.dims4().unwrap();
    let rgb = bytes.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    assert_eq!(rgb.len(), batch * height * width * 3);
    rgb.chunks_exact(height * width * 3).map(|rgb| Picture::new(width, height, rgb.to_vec()).unwrap()).collect()
}

/// The fixture's folder with some files replaced: `(file, content)`.
fn variant(changes: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in ["tokenizer", "text_encoder", "unet", "vae", "scheduler"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
        for entry in fixture(part).read_dir().unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::copy(fixture("model_index.json"), folder.path().join("model_index.json")).unwrap();
    for (file, content) in changes {
        std::fs::write(folder.path().join(file), content).unwrap();
    }
    folder
}

fn inpainting_model() -> tempfile::TempDir {
    let read = |name: &str| std::fs::read(fixture("unet_inpaint").join(name)).unwrap();
    variant(&[
        ("unet/config.json", read("config.json")),
        ("unet/diffusion_pytorch_model.safetensors", read("diffusion_pytorch_model.safetensors")),
    ])
}

fn v_prediction_model() -> tempfile::TempDir {
    let config = std::fs::read_to_string(fixture("scheduler/scheduler_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["prediction_type"] = "v_prediction".into();
    variant(&[("scheduler/scheduler_config.json", config.to_string().into_bytes())])
}

fn render(pipeline: &Pipeline, request: &ImageRequest) -> Vec<Picture> {
    let generation = pipeline.generate(request, &mut |_| Control::Continue).unwrap();
    generation.outputs.into_iter().map(|output| output.picture).collect()
}

fn psnr(a: &Picture, b: &Picture) -> f64 {
    Difference::between(a, b).expect("pictures of one size").psnr.unwrap_or(f64::INFINITY)
}

#[test]
fn pictures_equal_those_of_diffusers() {
    let reference = Reference::load();
    let plain = Pipeline::open(&fixture(""), None).unwrap();
    let (inpainting, v_prediction) = (inpainting_model(), v_prediction_model());
    let inpainting = Pipeline::open(inpainting.path(), None).unwrap();
    let v_prediction = Pipeline::open(v_prediction.path(), None).unwrap();
    let mut failures = Vec::new();
    for case in &reference.cases {
        let name = case["name"].as_str().unwrap();
        let pipeline = match case["task"].as_str() {
            Some("mask9") => &inpainting,
            _ if case["prediction_type"] == "v_prediction" => &v_prediction,
            _ => &plain,
        };
        let expected = &reference.pictures[name];
        let got = render(pipeline, &reference.request(case));
        assert_eq!(got.len(), expected.len(), "{name}");
        let worst = got.iter().zip(expected).map(|(got, expected)| psnr(got, expected)).fold(f64::INFINITY, f64::min);
        println!("{name:24} {worst:6.1} dB");
        if worst <= PSNR {
            failures.push(format!("{name}: {worst:.1} dB"));
        }
    }
    assert!(reference.cases.len() >= 30);
    assert!(failures.is_empty(), "{failures:?}");
}

/// The bar of 45 dB is one that a wrong picture does not reach: each setting moves the picture far below it.
#[test]
fn every_setting_shows_in_the_picture() {
    let reference = Reference::load();
    let pipeline = Pipeline::open(&fixture(""), None).unwrap();
    let case = reference.cases.iter().find(|case| case["name"] == "text-euler").unwrap();
    let base = reference.request(case);
    let expected = &reference.pictures["text-euler"][0];
    type Change = fn(&mut ImageRequest);
    let changes: [(&str, Change); 9] = [
        ("prompt", |r| r.prompt = "a red heart, on red".into()),
        ("weight", |r| r.prompt = "a (red:1.5) heart, on blue".into()),
        ("negative", |r| r.negative = "red".into()),
        ("seed", |r| r.seed = Some(43)),
        ("rng", |r| r.rng = RngMode::Philox),
        ("steps", |r| r.steps = 7),
        ("sampler", |r| r.sampler = Some("euler-a".parse().unwrap())),
        ("guidance", |r| r.guidance = 7.0),
        ("clip-skip", |r| r.clip_skip = 1),
    ];
    for (name, change) in changes {
        let mut request = base.clone();
        change(&mut request);
        let psnr = psnr(&render(&pipeline, &request)[0], expected);
        println!("{name:12} {psnr:6.1} dB");
        assert!(psnr < PSNR, "{name}: {psnr:.1} dB");
    }
}
