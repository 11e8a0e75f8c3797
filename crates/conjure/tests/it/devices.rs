//! Other devices, tested on a CPU: the plain twins of all operations, which are computed where there is no kernel, train and
//! generate what the CPU's kernels do, and a run goes on from one to the other.

#![allow(clippy::print_stderr, reason = "the measured distances, seen with --nocapture")]

use conjure::generate::image::{Control as Go, Difference, ImageRequest, Pipeline, Sampler};
use conjure::image_file::Picture;
use conjure::train::{Control, Recipe, Resume, Training};
use conjure_core::weights::{Safetensors, TensorSource as _};
use conjure_core::{DType, Device, ops};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// By the plain twins.
fn by_twins<T>(work: impl FnOnce() -> T) -> T {
    ops::with_plain(work)
}

fn text(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// A large `eps`: Adam's first steps otherwise have the size of the learning rate however small a gradient is, and the
/// rounding of one that is almost zero would decide on their sign.
fn recipe(objective: &str, data: &Path, own: &str) -> String {
    let data = text(data);
    format!(
        "objective = \"{objective}\"\nsteps = 3\nbatch = 4\nseed = 2\n\
         data = {{ file = {data}, size = 16 }}\n\
         optimizer = {{ learning_rate = 1e-2, eps = 0.1, average = 0.5 }}\n\
         report = {{ every = 1, validate = 3, samples = 3 }}\n\
         {own}"
    )
}

fn train(recipe: &str, changes: &[&str], folder: &Path) {
    let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
    let recipe = Recipe::parse(recipe, &changes).unwrap();
    Training::start(recipe, folder).unwrap().run(&mut |_| Control::Continue).unwrap();
}

fn go_on(folder: &Path, changes: &[&str]) {
    let changes = changes.iter().map(|&change| change.to_owned()).collect();
    let (mut training, _) = Training::resume(folder, &Resume { changes, force: true }).unwrap();
    training.run(&mut |_| Control::Continue).unwrap();
}

/// All tensors of the last checkpoint: weights, optimizer, averages.
fn state(folder: &Path, step: u64) -> BTreeMap<String, Vec<f32>> {
    let file = Safetensors::open(folder.join(format!("checkpoints/step-{step:08}.safetensors"))).unwrap();
    let load = |name: &String| file.load(name, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1();
    file.infos().keys().map(|name| (name.clone(), load(name).unwrap())).collect()
}

/// The largest difference of any tensor, as a share of that tensor's largest value or of what three updates can change.
fn distance(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f32 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let largest = |values: &[f32]| values.iter().fold(0f32, |most, v| most.max(v.abs()));
    let mut worst = (0f32, "");
    for (name, values) in a {
        // What the optimizer keeps are gradients, many of them almost zero, and their squares.
        let floor = if name.contains("/optimizer/v.") { 1e-6 } else { 1e-3 };
        let other = &b[name];
        let difference = values.iter().zip(other).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
        let share = difference / largest(values).max(floor);
        if share.is_nan() || share > worst.0 {
            worst = (share, name);
        }
    }
    eprintln!("    {:.1e} in {}", worst.0, worst.1);
    worst.0
}

const AUTOENCODER: &str = r#"
[autoencoder_kl]
kl_weight = 1e-3
discriminator = { weight = 0.1, start = 1, model = { in_channels = 3, ndf = 8, n_layers = 1, norm_num_groups = 4 } }
model = { down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"], up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"], block_out_channels = [4, 8], layers_per_block = 1, latent_channels = 4, norm_num_groups = 2 }
"#;

const CLIP: &str = r#"
[clip]
vocabulary_size = 520
context_length = 12
projection_dim = 8
patch_size = 8
text = { hidden_size = 16, intermediate_size = 32, num_hidden_layers = 2, num_attention_heads = 2 }
vision = { hidden_size = 16, intermediate_size = 32, num_hidden_layers = 2, num_attention_heads = 2 }
"#;

const CLASSIFIER: &str = r#"
[image_classifier]
model = { stem_stride = 1, block_out_channels = [8, 16], layers_per_block = 1, norm_num_groups = 4 }
"#;

const SUPER_RESOLUTION: &str = r#"
[super_resolution]
crop = 8
noise = 0.05
model = { model_type = "super_resolution", in_channels = 3, num_feat = 8, num_grow_ch = 4, num_block = 1, scale = 2 }
"#;

fn latent_diffusion(root: &Path) -> String {
    let export = |name: &str| text(&root.join(name).join("export"));
    format!(
        "[latent_diffusion]\nautoencoder = {}\ntext = {}\nprompts = [\"a disc\"]\nsample_steps = 2\n\
         scheduler = {{ _class_name = \"DDIMScheduler\", beta_schedule = \"linear\", beta_start = 1e-4, beta_end = 0.02, \
         num_train_timesteps = 1000, prediction_type = \"v_prediction\" }}\n\
         model = {{ sample_size = 8, in_channels = 4, out_channels = 4, layers_per_block = 1, block_out_channels = [8, 16], \
         down_block_types = [\"CrossAttnDownBlock2D\", \"DownBlock2D\"], \
         up_block_types = [\"UpBlock2D\", \"CrossAttnUpBlock2D\"], cross_attention_dim = 16, attention_head_dim = 2, \
         norm_num_groups = 4 }}\n",
        export("autoencoder_kl"),
        export("clip")
    )
}

/// Whole runs of each objective, with validation, samples and export, by the kernels and by their twins; then a run that
/// begins with one and ends with the other.
#[test]
fn twins_train_what_kernels_train() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let data = crate::train_networks::data_set(root);
    let latent = latent_diffusion(root);
    let text_distillation =
        format!("[text_distillation]\ntext = {}\nconcepts = 0.1\n", text(&root.join("clip/export")));
    for (objective, own) in [
        ("autoencoder_kl", AUTOENCODER),
        ("clip", CLIP),
        ("text_distillation", &text_distillation),
        ("image_classifier", CLASSIFIER),
        ("super_resolution", SUPER_RESOLUTION),
        ("latent_diffusion", &latent),
    ] {
        eprintln!("{objective}:");
        let recipe = recipe(objective, &data, own);
        let kernels = root.join(objective);
        train(&recipe, &[], &kernels);
        let expected = state(&kernels, 3);

        let twins = root.join(format!("{objective} by twins"));
        by_twins(|| train(&recipe, &[], &twins));
        let found = distance(&expected, &state(&twins, 3));
        assert!(found < 5e-5, "{objective}: {found}");

        let mixed = root.join(format!("{objective} by both"));
        by_twins(|| train(&recipe, &["steps=1"], &mixed));
        go_on(&mixed, &["steps=2"]);
        by_twins(|| go_on(&mixed, &["steps=3"]));
        let found = distance(&expected, &state(&mixed, 3));
        assert!(found < 5e-5, "{objective} by both: {found}");
    }
}

/// Both networks follow one loss: the U-Net's first step is the same whether the text encoder moves or not.
#[test]
fn a_text_encoder_is_trained_along_or_stays() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let data = crate::train_networks::data_set(root);
    for (objective, own) in [("autoencoder_kl", AUTOENCODER), ("clip", CLIP)] {
        train(&recipe(objective, &data, own), &[], &root.join(objective));
    }
    let recipe = recipe("latent_diffusion", &data, &latent_diffusion(root));
    let text = |folder: &Path| std::fs::read(folder.join("export/text_encoder/model.safetensors")).unwrap();
    let (alone, along) = (root.join("alone"), root.join("along"));
    train(&recipe, &["steps=1"], &alone);
    train(&recipe, &["steps=1", "latent_diffusion.text_rate=0.5"], &along);
    assert!(text(&alone) == text(&root.join("clip")));
    assert!(text(&along) != text(&alone));
    let state_of = |folder: &Path, network: &str| {
        let mut state = state(folder, 1);
        state.retain(|name, _| name.starts_with(network));
        state
    };
    let (unet, same) = (state_of(&alone, "unet/"), state_of(&along, "unet/"));
    assert!(!unet.is_empty() && unet == same);
    assert!(state_of(&alone, "text_encoder/").is_empty() && !state_of(&along, "text_encoder/").is_empty());

    let twins = root.join("by twins");
    train(&recipe, &["latent_diffusion.text_rate=0.5"], &along.join("longer"));
    by_twins(|| train(&recipe, &["latent_diffusion.text_rate=0.5"], &twins));
    let found = distance(&state(&along.join("longer"), 3), &state(&twins, 3));
    assert!(found < 5e-5, "{found}");

    let refused = Recipe::parse(&recipe, &["latent_diffusion.text_rate=-1".to_owned()])
        .and_then(|recipe| Training::start(recipe, &root.join("refused")).map(|_| ()));
    assert!(refused.unwrap_err().to_string().contains("text_rate is -1, not 0 to 10"));
}

/// Less memory, and several micro-batches an update.
#[test]
fn twins_are_recomputed_and_accumulated() {
    let root = tempfile::tempdir().unwrap();
    let data = crate::train_networks::data_set(root.path());
    let recipe = recipe("autoencoder_kl", &data, AUTOENCODER);
    let (kernels, twins) = (root.path().join("kernels"), root.path().join("twins"));
    train(&recipe, &["accumulate=2", "batch=2"], &kernels);
    by_twins(|| train(&recipe, &["accumulate=2", "batch=2", "recompute=true"], &twins));
    let found = distance(&state(&kernels, 3), &state(&twins, 3));
    assert!(found < 5e-5, "{found}");
}

#[test]
fn twins_fine_tune_what_kernels_fine_tune() {
    let root = tempfile::tempdir().unwrap();
    let pictures = root.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for (name, rgb) in [("a", [250, 240, 10]), ("b", [20, 50, 230])] {
        let mut picture = Picture::filled(64, 64, rgb);
        picture.rgb[..64 * 3 * 20].fill(255);
        conjure::image_file::write_png(&pictures.join(format!("{name}.png")), &picture, None).unwrap();
        std::fs::write(pictures.join(format!("{name}.txt")), "my heart").unwrap();
    }
    for (objective, own) in [("lora", "rank = 2\ntext_layers = [\"q_proj\"]"), ("textual_inversion", "vectors = 2")] {
        eprintln!("{objective}:");
        let recipe = format!(
            "objective = \"{objective}\"\nsteps = 3\nbatch = 2\nseed = 3\n\
             data = {{ folder = {}, size = 64 }}\noptimizer = {{ learning_rate = 1e-2, eps = 0.1 }}\n\
             report = {{ validate = 3, samples = 3 }}\n[{objective}]\n{own}\n\
             [{objective}.base]\nmodel = {}\nsample_steps = 2\nprompts = [\"my heart\"]\n",
            text(&pictures),
            text(&model())
        );
        let (kernels, twins) = (root.path().join(objective), root.path().join(format!("{objective} by twins")));
        train(&recipe, &[], &kernels);
        by_twins(|| train(&recipe, &[], &twins));
        let found = distance(&state(&kernels, 3), &state(&twins, 3));
        assert!(found < 5e-5, "{objective}: {found}");
    }
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable_diffusion")
}

#[test]
fn twins_make_the_pictures_that_kernels_make() {
    let usual = ImageRequest {
        prompt: "a (red:1.3) heart".into(),
        negative: "blue".into(),
        seed: Some(4),
        steps: 3,
        ..ImageRequest::default()
    };
    let init = Some(model().join("init.png"));
    let requests = [
        ImageRequest { batch: 2, upscale: Some(2), ..usual.clone() },
        ImageRequest { sampler: Some(Sampler::ALL[3]), tiled: true, ..usual.clone() },
        ImageRequest { init: init.clone(), mask: Some(model().join("mask.png")), strength: Some(0.7), ..usual },
    ];
    for request in requests {
        let make = || {
            let pipeline = Pipeline::open(&model(), None).unwrap();
            pipeline.generate(&request, &mut |_| Go::Continue).unwrap().outputs
        };
        let (kernels, twins) = (make(), by_twins(make));
        assert_eq!(kernels.len(), twins.len());
        for (a, b) in kernels.iter().zip(&twins) {
            let difference = Difference::between(&a.picture, &b.picture).unwrap();
            eprintln!("    {difference:?}");
            // Roundings end up on both sides of a byte's border, and making the picture larger does not make them smaller.
            assert!(difference.max_difference <= 2 && difference.share < 0.01, "{difference:?}");
            assert_eq!(a.recipe, b.recipe);
        }
    }
}
