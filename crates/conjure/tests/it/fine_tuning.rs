//! Training beside a finished model, from recipe to picture.

#![allow(clippy::print_stdout, reason = "the measured figures, seen with --nocapture")]

use conjure::generate::image::{Adapters, Control, ImageRequest, LoraFile, Pipeline};
use conjure::image_file::{Picture, write_png};
use conjure::train::{Control as Go, Recipe, Training};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stable_diffusion")
}

/// Runs the committed recipe of this name on two small pictures of one thing; the fixed error after the first and after
/// the last update.
fn train(objective: &str, folder: &Path, changes: &[&str]) -> (f64, f64) {
    let pictures = folder.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for (name, rgb) in [("a", [250, 240, 10]), ("b", [240, 250, 30])] {
        let mut picture = Picture::filled(64, 64, [20, 20, 40]);
        for y in 16..48 {
            picture.rgb[(y * 64 + 12) * 3..(y * 64 + 52) * 3].as_chunks_mut::<3>().0.fill(rgb);
        }
        write_png(&pictures.join(format!("{name}.png")), &picture, None).unwrap();
        std::fs::write(pictures.join(format!("{name}.txt")), "my heart").unwrap();
    }
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/{objective}.toml"));
    let mut all: Vec<String> = [
        format!("data.folder={:?}", pictures.display().to_string()),
        format!("{objective}.base.model={:?}", model().display().to_string()),
        format!("{objective}.base.prompts=[\"my heart\"]"),
        format!("{objective}.base.sample_steps=2"),
    ]
    .to_vec();
    let common = ["data.size=64", "steps=40", "batch=2", "accumulate=1", "report.validate=1", "report.samples=40"];
    all.extend(common.iter().chain(changes).map(|change| (*change).to_owned()));
    let recipe = Recipe::read(&recipe, &all).unwrap();
    let run = folder.join("run");
    let mut training = Training::start(recipe, &run).unwrap();
    training.run(&mut |_| Go::Continue).unwrap();
    assert!(run.join("samples/step-00000040.png").is_file());
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let errors: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["validation"]["train"].as_f64())
        .collect();
    assert_eq!(errors.len(), 40);
    println!("{objective}: {:.4} to {:.4}", errors[0], errors[39]);
    (errors[0], errors[39])
}

fn picture(prompt: &str, adapters: &Adapters) -> Picture {
    let pipeline = Pipeline::open(&model(), None).unwrap().with_adapters(adapters).unwrap();
    let request = ImageRequest { prompt: prompt.into(), seed: Some(3), steps: 3, ..ImageRequest::default() };
    pipeline.generate(&request, &mut |_| Control::Continue).unwrap().outputs.remove(0).picture
}

#[test]
fn a_lora_is_trained_by_its_recipe_and_changes_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let (first, last) = train("lora", folder.path(), &["optimizer.learning_rate=1e-2"]);
    assert!(last < 0.97 * first, "{first} {last}");
    let made = |file: &str, weight| {
        let path = folder.path().join("run/export").join(file);
        picture("my heart", &Adapters { loras: vec![LoraFile { path, weight }], embeddings: vec![] })
    };
    let plain = picture("my heart", &Adapters::default());
    let trained = made("lora.safetensors", 1.0);
    assert!(trained.rgb != plain.rgb);
    assert!(made("lora.safetensors", 0.0).rgb == plain.rgb, "nothing but the factors was changed");
    let worst =
        made("pytorch_lora_weights.safetensors", 1.0).rgb.iter().zip(&trained.rgb).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst <= Some(1), "{worst:?}");
}

#[test]
fn a_word_is_learned_by_its_recipe_and_changes_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["optimizer.learning_rate=5e-2", "textual_inversion.initial=heart"];
    let (first, last) = train("textual_inversion", folder.path(), &changes);
    assert!(last < 0.999 * first, "{first} {last}");
    let embeddings = vec![folder.path().join("run/export/learned_embeds.safetensors")];
    let adapters = Adapters { loras: vec![], embeddings };
    assert!(picture("a red heart", &adapters).rgb == picture("a red heart", &Adapters::default()).rgb);
    assert!(picture("a <new>", &adapters).rgb != picture("a <new>", &Adapters::default()).rgb);
}
