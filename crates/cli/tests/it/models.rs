//! `conjure models ...`.

use crate::command::{Desk, fixture};

#[test]
fn inspect_explains_a_folder() {
    let desk = Desk::new();
    let path = fixture("");
    let path = path.to_str().unwrap();
    let text = desk.conjure(&["models", "inspect", path]).succeeded().stdout;
    for word in ["Stable Diffusion", "unet", "vae", "text_encoder", "f32", "PNDM", "epsilon", "parameters", "memory"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    let json = desk.conjure(&["models", "inspect", path, "--json"]).succeeded().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["problems"], serde_json::json!([]));
    let unet = json["components"].as_array().unwrap().iter().find(|c| c["name"] == "unet").unwrap();
    assert_eq!(unet["precision"], "f32");
    assert!(unet["parameters"].as_u64().unwrap() > 50_000);
}

#[test]
fn the_tiny_model_is_written_whole_and_makes_the_same_picture_from_disk() {
    let desk = Desk::new();
    desk.conjure(&["models", "tiny", "--out", "tiny"]).succeeded();
    desk.conjure(&["models", "inspect", "tiny"]).succeeded();
    for (model, name) in [("built-in", "memory.png"), ("tiny", "disk.png")] {
        desk.conjure(&["image", "a heart", "--seed", "4", "--steps", "2", "-m", model, "-o", name]).succeeded();
    }
    let pixels = |name: &str| image::open(desk.path(name)).unwrap().into_rgb8();
    assert!(pixels("memory.png") == pixels("disk.png"));
    desk.conjure(&["models", "tiny", "--out", "tiny"]).failed(2, &["tiny", "help:"]);
    desk.conjure(&["models", "tiny", "--out", "disk.png/tiny"]).failed(2, &["disk.png/tiny: cannot be made", "help:"]);
}

#[test]
fn list_names_the_families() {
    let desk = Desk::new();
    let text = desk.conjure(&["models", "list"]).succeeded().stdout;
    assert!(text.contains("unet_2d_condition") && text.contains("Rombach"), "{text}");
    let json = desk.conjure(&["models", "list", "--json"]).succeeded().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json.as_array().unwrap().iter().any(|family| family["name"] == "clip_text"));
}

#[test]
fn inspect_explains_a_gguf_file() {
    let desk = Desk::new();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../core/tests/fixtures/types.gguf");
    // It holds a tensor of each type, and not what a model needs to be run.
    let outcome = desk.conjure(&["models", "inspect", path]);
    assert_eq!(outcome.code, Some(1));
    let text = outcome.stdout;
    for word in [
        "GGUF language model of architecture llama",
        "128 tokens",
        "gpt2, 5 tokens",
        "1 Q4_K",
        "1 IQ4_XS",
        "for the weights as they are stored",
        "problem: ",
    ] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    let json = desk.conjure(&["models", "inspect", path, "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["details"]["architecture"], "llama");
    assert_eq!(json["parameters"], 11_538);
    std::fs::write(desk.path("cut.gguf"), &std::fs::read(path).unwrap()[..5000]).unwrap();
    let cut = desk.path("cut.gguf");
    desk.conjure(&["models", "inspect", cut.to_str().unwrap()])
        .failed(2, &["cut.gguf", "after the end of the file", "help:"]);
    desk.conjure(&["image", "a heart", "-m", path, "-o", "x.png"]).failed(2, &["types.gguf"]);
}

#[test]
fn inspect_tells_what_does_not_fit() {
    let desk = Desk::new();
    let folder = desk.model();
    let config = std::fs::read_to_string(folder.join("unet/config.json")).unwrap();
    // Another number of residual blocks: more tensors than the file holds.
    let other = config.replacen("\"layers_per_block\": 1", "\"layers_per_block\": 2", 1);
    assert_ne!(config, other);
    std::fs::write(folder.join("unet/config.json"), other).unwrap();
    let outcome = desk.conjure(&["models", "inspect", "model"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("problem: unet:"), "{}", outcome.stdout);
    let json = desk.conjure(&["models", "inspect", "model", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let unet = json["components"].as_array().unwrap().iter().find(|c| c["name"] == "unet").unwrap();
    let missing = unet["missing"].as_array().unwrap();
    assert!(missing.iter().any(|name| name == "down_blocks.0.resnets.1.conv1.weight"), "{missing:?}");
}
