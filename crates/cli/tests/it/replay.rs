//! A picture carries its recipe, and the recipe makes it again.

use crate::command::{Desk, fixture};
use std::fs;

fn model() -> String {
    fixture("").to_str().unwrap().to_owned()
}

#[test]
fn a_picture_of_the_built_in_model_is_made_again_identically() {
    let desk = Desk::new();
    let args =
        ["image", "a (red:1.3) heart", "--model", "built-in", "--negative", "blue", "-o", "a.png", "--steps", "3"];
    desk.conjure(&args).succeeded();
    let outcome = desk.conjure(&["replay", "a.png"]).succeeded();
    assert!(outcome.stdout.starts_with("identical"), "{}", outcome.stdout);
    assert_eq!(desk.files(), ["a.png"]);
}

#[test]
fn every_setting_survives_in_the_recipe() {
    let desk = Desk::new();
    let (init, mask) = (fixture("init.png"), fixture("mask.png"));
    let args = [
        "image",
        "a heart",
        "-m",
        &model(),
        "--negative",
        "green",
        "--steps",
        "4",
        "--sampler",
        "dpmpp-2m-sde",
        "--schedule",
        "karras",
        "--guidance",
        "3.5",
        "--guidance-rescale",
        "0.4",
        "--seed",
        "18446744073709551615",
        "--rng",
        "comfy",
        "--batch",
        "2",
        "--init",
        init.to_str().unwrap(),
        "--mask",
        mask.to_str().unwrap(),
        "--strength",
        "0.75",
        "--clip-skip",
        "1",
        "--width",
        "48",
        "--height",
        "72",
        "-o",
        "a.png",
    ];
    desk.conjure(&args).succeeded();
    // The second picture of the batch: it depends on the first one's random numbers.
    let outcome = desk.conjure(&["replay", "a-2.png", "--model", &model(), "-o", "again.png", "--json"]).succeeded();
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["identical"], true);
    assert_eq!(json["max_difference"], 0);
    let pixels = |name: &str| image::open(desk.path(name)).unwrap().into_rgb8();
    assert!(pixels("a-2.png") == pixels("again.png"));
}

#[test]
fn another_model_makes_another_picture_and_that_is_said() {
    let desk = Desk::new();
    desk.conjure(&["image", "x", "-m", &model(), "--steps", "2", "-o", "a.png"]).succeeded();
    let other = desk.model();
    let weights = other.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let at = bytes.len() - 100;
    bytes[at..].chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&0.5f32.to_le_bytes()));
    fs::write(&weights, bytes).unwrap();
    let outcome = desk.conjure(&["replay", "a.png", "--model", "model"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("digest"), "{}", outcome.stderr);
    assert!(outcome.stdout.starts_with("different"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("dB"), "{}", outcome.stdout);
}

#[test]
fn what_is_missing_for_a_replay_is_named() {
    let desk = Desk::new();
    fs::copy(fixture("init.png"), desk.path("start.png")).unwrap();
    let args = ["image", "x", "-m", &model(), "--init", "start.png", "--steps", "2", "-o", "a.png", "--seed", "1"];
    desk.conjure(&args).succeeded();
    desk.conjure(&["replay", "a.png"]).succeeded();
    // The start picture changed since.
    fs::copy(fixture("mask.png"), desk.path("start.png")).unwrap();
    desk.conjure(&["replay", "a.png"]).failed(2, &["start.png", "help:"]);
    fs::remove_file(desk.path("start.png")).unwrap();
    desk.conjure(&["replay", "a.png"]).failed(2, &["start.png"]);
    // A picture without a recipe.
    desk.conjure(&["replay", fixture("init.png").to_str().unwrap()]).failed(2, &["init.png", "help:"]);
    desk.conjure(&["replay", "absent.png"]).failed(2, &["absent.png"]);
}

#[test]
fn loras_and_learned_tokens_are_recorded_and_honoured() {
    let desk = Desk::new();
    for file in ["kohya.safetensors", "spiky.pt"] {
        fs::copy(fixture("../adapters").join(file), desk.path(file)).unwrap();
    }
    let args = ["image", "a spiky heart", "-m", &model(), "--steps", "2", "--seed", "4"];
    desk.conjure(&[&args[..], &["-o", "plain.png"]].concat()).succeeded();
    let adapted = ["--lora", "kohya.safetensors:0.7", "--embedding", "spiky.pt", "-o", "a.png"];
    desk.conjure(&[&args[..], &adapted].concat()).succeeded();
    assert!(fs::read(desk.path("plain.png")).unwrap() != fs::read(desk.path("a.png")).unwrap());
    let outcome = desk.conjure(&["replay", "a.png"]).succeeded();
    assert!(outcome.stdout.starts_with("identical"), "{}", outcome.stdout);
    // Another file under the same name.
    fs::copy(fixture("../adapters/diffusers.safetensors"), desk.path("kohya.safetensors")).unwrap();
    desk.conjure(&["replay", "a.png"]).failed(2, &["kohya.safetensors", "is not the file", "help:"]);
    // The built-in model is another one: nothing is made.
    let other = ["image", "x", "--model", "built-in", "--lora", "kohya.safetensors:0.7", "-o", "b.png"];
    desk.conjure(&other).failed(2, &["kohya.safetensors", "help:"]);
    desk.conjure(&["image", "x", "--lora", "absent.safetensors:0.7"])
        .failed(2, &["absent.safetensors", "no such file"]);
    assert!(!desk.path("b.png").exists());
}
