//! The classifier and super-resolution, trained for a few steps on a data set of drawn shapes.

use conjure::evaluate::fit::Fit;
use conjure::image_file::{Picture, write_png};
use conjure::train::{Control, Event, Recipe, Training};
use conjure_core::weights::{self, Params};
use conjure_core::{DType, Device};
use conjure_models::autoencoder_kl::AutoencoderKlConfig;
use conjure_models::image_classifier::{ImageClassifier, ImageClassifierConfig};
use conjure_models::super_resolution::{SuperResolution, SuperResolutionConfig};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

const SIZE: usize = 16;

/// Whether concept `c` is inked at a place, seen from the middle.
fn inked(concept: &str, x: f32, y: f32) -> bool {
    match concept {
        "disc" => x.hypot(y) < 5.0,
        "cross" => x.abs() < 2.0 || y.abs() < 2.0,
        "ring" => (4.0..7.0).contains(&x.hypot(y)),
        _ => y > 0.0 && x.abs() < 6.0,
    }
}

/// A concept in a colour on white.
fn drawn(concept: &str, ink: [u8; 3]) -> Vec<u8> {
    let pixel = |i: usize| {
        let (x, y) = ((i % SIZE) as f32 - 7.5, (i / SIZE) as f32 - 7.5);
        if inked(concept, x, y) { ink } else { [255; 3] }
    };
    (0..SIZE * SIZE).flat_map(pixel).collect()
}

/// Four concepts, with names in two languages, in three colours, which are the styles; the red ring is held out, and the slab in every colour.
pub fn data_set(folder: &Path) -> std::path::PathBuf {
    let file = folder.join("shapes.zip");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&file).unwrap());
    let mut lines = String::new();
    let png = folder.join("one.png");
    for concept in ["cross", "disc", "ring", "slab"] {
        for (style, ink) in [("red", [255, 0, 0]), ("green", [0, 160, 0]), ("blue", [0, 0, 255])] {
            write_png(&png, &Picture::new(SIZE, SIZE, drawn(concept, ink)).unwrap(), None).unwrap();
            let split = match (concept, style) {
                ("slab", _) => "held-out-concept",
                ("ring", "red") => "held-out-combination",
                _ => "train",
            };
            let name = format!("{concept}-{style}.png");
            let german = match concept {
                "cross" => "Kreuz",
                "disc" => "Scheibe",
                "ring" => "Reif",
                _ => "Platte",
            };
            let labels = json!({ "en": concept, "de": german });
            let line = json!({
                "file_name": name, "text": concept, "concept": concept, "style": style, "split": split, "labels": labels,
            });
            lines += &line.to_string();
            lines.push('\n');
            archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(&std::fs::read(&png).unwrap()).unwrap();
        }
    }
    archive.start_file("metadata.jsonl", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(lines.as_bytes()).unwrap();
    archive.finish().unwrap();
    file
}

/// The last figures of training and of validation.
type Figures = [BTreeMap<String, f64>; 2];

/// Trains; the model is in `run/export`.
fn train(folder: &Path, recipe: &str) -> Figures {
    let file = data_set(folder);
    let recipe = Recipe::parse(recipe, &[format!("data.file={:?}", file.display().to_string())]).unwrap();
    let mut last = Figures::default();
    Training::start(recipe, &folder.join("run"))
        .unwrap()
        .run(&mut |event| {
            match event {
                Event::Progress { figures, .. } => last[0] = figures.into_iter().collect(),
                Event::Validation { figures, .. } => last[1] = figures.into_iter().collect(),
                _ => {}
            }
            Control::Continue
        })
        .unwrap();
    last
}

const CLASSIFIER: &str = r#"
objective = "image_classifier"
steps = 100
batch = 8
data = { size = 16 }
optimizer = { learning_rate = 1e-2, weight_decay = 0.0 }
report = { every = 20, validate = 100, samples = 0 }
[image_classifier]
model = { stem_stride = 1, block_out_channels = [8, 16], layers_per_block = 1, norm_num_groups = 4 }
label_smoothing = 0.05
augment = { shift = 0.05, scale = 0.05, mirror = true, colour = 0.05 }
"#;

#[test]
fn the_classifier_learns_shapes_and_reports_on_the_combination_that_it_never_saw() {
    let folder = tempfile::tempdir().unwrap();
    let [training, figures] = train(folder.path(), CLASSIFIER);
    assert!(training["top1"] > 0.95 && training["style"] > 0.95, "{training:?}");
    assert_eq!(figures.keys().collect::<Vec<_>>(), ["style", "top1", "top5"]);
    // The colour is plain; all three concepts are among the five likeliest. Eight pictures do not teach that a ring may be
    // red, so the likeliest concept is not asked for.
    assert_eq!((figures["top5"], figures["style"]), (1.0, 1.0), "{figures:?}");
    let export = folder.path().join("run/export");
    let config =
        ImageClassifierConfig::from_json(&std::fs::read_to_string(export.join("config.json")).unwrap()).unwrap();
    assert_eq!(config.heads["concept"], ["cross", "disc", "ring"]);
    assert_eq!(config.heads["style"], ["blue", "green", "red"]);
    let source = weights::open(weights::locate(&export).unwrap()).unwrap();
    ImageClassifier::new(&Params::load(source, DType::F32, &Device::Cpu), &config).unwrap();
}

/// The folder of a small text encoder.
fn text_encoder(folder: &Path) -> std::path::PathBuf {
    let clip = folder.join("clip");
    let recipe = r#"
objective = "clip"
steps = 150
batch = 8
data = { size = 16 }
optimizer = { learning_rate = 1e-2 }
report = { validate = 0, samples = 0 }
[clip]
vocabulary_size = 600
projection_dim = 16
patch_size = 8
text = { hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2 }
vision = { hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2 }
"#;
    std::fs::create_dir(&clip).unwrap();
    train(&clip, recipe);
    clip.join("run/export")
}

/// Beside a text encoder the classifier says how well pictures and words fit.
#[test]
fn a_classifier_beside_a_text_encoder_judges_candidates() {
    let folder = tempfile::tempdir().unwrap();
    let text = text_encoder(folder.path());
    let recipe = format!("{CLASSIFIER}text = {:?}\n", text.display().to_string());
    let [training, _] = train(folder.path(), &recipe);
    assert!(training["top1"] > 0.95 && training["style"] > 0.95, "{training:?}");

    let export = folder.path().join("run/export/image_encoder");
    std::fs::rename(export, text.join("image_encoder")).unwrap();
    let (judge, digest) = Fit::open(&text, &Device::Cpu).unwrap();
    let things = [("cross", "blue", [0, 0, 255]), ("disc", "green", [0, 160, 0]), ("ring", "blue", [0, 0, 255])];
    let pictures = things.map(|(concept, _, ink)| Picture::new(SIZE, SIZE, drawn(concept, ink)).unwrap());
    for (right, (concept, style, _)) in things.iter().enumerate() {
        let words = judge.read(&format!("{concept}, {style} style")).unwrap();
        let scores = judge.scores(&words, &pictures).unwrap();
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        for (picture, score) in scores.iter().enumerate() {
            assert!(picture == right || *score < scores[right], "{concept}: {scores:?}");
        }
    }

    // Its answers hang on the text encoder as well.
    let merges = std::fs::read_to_string(text.join("tokenizer/merges.txt")).unwrap();
    std::fs::write(text.join("tokenizer/merges.txt"), merges + "\n").unwrap();
    assert_ne!(Fit::open(&text, &Device::Cpu).unwrap().1, digest);
    // A classifier alone is no judge of words.
    let alone = folder.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    train(&alone, CLASSIFIER);
    std::fs::remove_dir_all(text.join("image_encoder")).unwrap();
    std::fs::rename(alone.join("run/export"), text.join("image_encoder")).unwrap();
    let error = Fit::open(&text, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("names"), "{error}");
}

/// Latents stay what they were, and their scale; the decoder's pictures come nearer to the real ones in a classifier's features.
#[test]
fn a_decoder_is_trained_on_alone() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, recipe: &str| {
        let own = folder.path().join(name);
        std::fs::create_dir(&own).unwrap();
        (train(&own, recipe)[0].clone(), own.join("run/export"))
    };
    let (_, network) = made("classifier", CLASSIFIER);
    let recipe = |rest: &str| {
        format!(
            r#"
objective = "autoencoder_kl"
steps = 40
batch = 8
data = {{ size = 16 }}
optimizer = {{ learning_rate = 5e-3, weight_decay = 0.0 }}
report = {{ every = 10, validate = 0, samples = 0 }}
[autoencoder_kl]
perceptual = {{ network = {:?}, weight = 0.5 }}
model = {{ down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"], up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"], block_out_channels = [4, 8], layers_per_block = 1, latent_channels = 4, norm_num_groups = 2 }}
{rest}
"#,
            network.display().to_string()
        )
    };
    let (before, first) = made("first", &recipe(""));
    let (after, second) =
        made("second", &recipe(&format!("part = \"decoder\"\nstart = {:?}", first.display().to_string())));
    assert!(after["perceptual"] < 0.8 * before["perceptual"], "{before:?} {after:?}");
    let read = |folder: &Path| {
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        (AutoencoderKlConfig::from_json(&config).unwrap(), weights::open(weights::locate(folder).unwrap()).unwrap())
    };
    let ((config, weights), (new_config, new_weights)) = (read(&first), read(&second));
    assert!(config.scaling_factor != AutoencoderKlConfig::default().scaling_factor);
    assert_eq!(new_config.scaling_factor, config.scaling_factor);
    let mut changed = 0;
    for name in weights.infos().keys() {
        let values = |weights: &dyn weights::TensorSource| {
            let tensor = weights.load(name, DType::F32, &Device::Cpu).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let decodes = name.starts_with("decoder.") || name.starts_with("post_quant_conv.");
        let same = values(&*weights) == values(&*new_weights);
        assert!(decodes || same, "{name} is the encoder's");
        changed += usize::from(!same);
    }
    assert!(changed > 20, "{changed} of the decoder's tensors changed");
}

/// What a text encoder makes of German names is taught by what it makes of the English ones, and concepts are told apart.
#[test]
fn a_text_encoder_learns_another_language() {
    let folder = tempfile::tempdir().unwrap();
    let text = text_encoder(folder.path());
    let recipe = format!(
        r#"
objective = "text_distillation"
steps = 200
batch = 8
data = {{ size = 16 }}
optimizer = {{ learning_rate = 1e-2, weight_decay = 0.0 }}
report = {{ every = 20, validate = 200, samples = 0 }}
[text_distillation]
text = {:?}
languages = ["de"]
concepts = 0.05
english = 0.3
"#,
        text.display().to_string()
    );
    let [training, figures] = train(folder.path(), &recipe);
    assert!(training["distance"] < 0.3 && training["told_apart"] < 0.5, "{training:?}");
    assert_eq!((figures["en"], figures["others"]), (1.0, 1.0), "{figures:?}");
    let export = folder.path().join("run/export");
    let tensors = weights::open(weights::locate(export.join("text_encoder")).unwrap()).unwrap();
    let before = weights::open(weights::locate(text.join("text_encoder")).unwrap()).unwrap();
    let names = |source: &std::sync::Arc<dyn weights::TensorSource>| source.infos().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&tensors), names(&before), "the directions of concepts stay behind");
}

/// Wishes in people's own words are read as the names that they mean, nearer than before.
#[test]
fn a_text_encoder_learns_how_people_ask() {
    let folder = tempfile::tempdir().unwrap();
    let text = text_encoder(folder.path());
    let learned = |steps: usize, rate: f64| {
        let own = folder.path().join(format!("asked-{steps}"));
        std::fs::create_dir(&own).unwrap();
        let recipe = format!(
            r#"
objective = "text_distillation"
steps = {steps}
batch = 8
data = {{ size = 16 }}
optimizer = {{ learning_rate = {rate}, weight_decay = 0.0 }}
report = {{ every = 20, validate = {steps}, samples = 0 }}
[text_distillation]
text = {:?}
languages = ["de"]
asked = 1.0
english = 0.5
"#,
            text.display().to_string()
        );
        train(&own, &recipe)
    };
    let [before, _] = learned(20, 1e-9);
    let [after, figures] = learned(200, 1e-2);
    let figure = |of: &BTreeMap<String, f64>| of["text_encoder"];
    assert!(figure(&after) < 0.5 * figure(&before), "{before:?} {after:?}");
    assert_eq!(figures.keys().collect::<Vec<_>>(), ["asked", "en", "others"]);
}

#[test]
fn super_resolution_learns_and_is_compared_with_bicubic() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = r#"
objective = "super_resolution"
steps = 60
batch = 4
data = { size = 16 }
optimizer = { learning_rate = 5e-3, weight_decay = 0.0 }
report = { every = 20, validate = 60, samples = 60 }
[super_resolution]
crop = 12
noise = 0.01
[super_resolution.model]
model_type = "super_resolution"
in_channels = 3
num_feat = 8
num_grow_ch = 4
num_block = 1
scale = 2
"#;
    let [_, figures] = train(folder.path(), recipe);
    assert_eq!(figures.keys().collect::<Vec<_>>(), ["psnr", "psnr_bicubic", "ssim", "ssim_bicubic"]);
    assert!(figures["psnr"] > figures["psnr_bicubic"], "{figures:?}");
    assert!(folder.path().join("run/samples/step-00000060.png").is_file());
    let export = folder.path().join("run/export");
    let config =
        SuperResolutionConfig::from_json(&std::fs::read_to_string(export.join("config.json")).unwrap()).unwrap();
    let source = weights::open(weights::locate(&export).unwrap()).unwrap();
    SuperResolution::new(&Params::load(source, DType::F32, &Device::Cpu), &config).unwrap();
}

#[test]
fn recipes_that_cannot_work_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("data.file={:?}", data_set(folder.path()).display().to_string());
    let enlarge = "objective = \"super_resolution\"\nsteps = 1\nbatch = 1\ndata = { size = 16 }\n\
                   [super_resolution]\ncrop = 8";
    for (recipe, change, said) in [
        (CLASSIFIER, "image_classifier.augment.shift=2", "augment.shift is 2, not 0 to below 1"),
        (CLASSIFIER, "image_classifier.label_smoothing=1", "label_smoothing is 1, not 0 to below 1"),
        (CLASSIFIER, "image_classifier.model.norm_num_groups=3", "block_out_channels has 8, which is not a multiple"),
        (enlarge, "super_resolution.crop=32", "crop is 32, more than data.size 16"),
        (enlarge, "super_resolution.crop=7", "crop is 7, not a multiple of the scale 2"),
        (enlarge, "super_resolution.noise=3", "noise is 3, not 0 to 1"),
    ] {
        let error = Recipe::parse(recipe, &[file.clone(), change.to_owned()])
            .and_then(|recipe| Training::start(recipe, &folder.path().join("run")).map(|_| ()))
            .unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}
