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

/// A folder of a model that comes with the program.
fn shipped(name: &str) -> String {
    format!("{}/../../models/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_models_that_come_with_conjure_are_known_whole() {
    let desk = Desk::new();
    let text = desk.conjure(&["models", "inspect", &shipped("emoji")]).succeeded().stdout;
    for words in ["image_encoder", "the judge of candidates", "recommended num_inference_steps 20, guidance_scale 3.0"]
    {
        assert!(text.contains(words), "{words} is not in: {text}");
    }
    let json = desk.conjure(&["models", "inspect", &shipped("emoji"), "--json"]).succeeded().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let components = json["components"].as_array().unwrap();
    let sum: u64 = components.iter().map(|component| component["parameters"].as_u64().unwrap()).sum();
    assert_eq!((components.len(), &json["parameters"]), (4, &sum.into()));
    assert_eq!(json["recommended"]["upscale"], 2);
    let encoder = components.iter().find(|component| component["name"] == "image_encoder").unwrap();
    assert_eq!((&encoder["missing"], &encoder["unexpected"]), (&serde_json::json!([]), &serde_json::json!([])));
    for (name, words) in [
        ("super_resolution", "network that makes pictures bigger, super_resolution"),
        ("translator", "translator of texts, marian"),
        ("emoji/image_encoder", "classifier of pictures, image_classifier"),
        ("emoji/vae", "part of a picture model, AutoencoderKL"),
    ] {
        let text = desk.conjure(&["models", "inspect", &shipped(name)]).succeeded().stdout;
        assert!(text.contains(words) && !text.contains("problem") && !text.contains("ignored"), "{text}");
    }
}

#[test]
fn inspect_tells_what_a_picture_model_lacks_beside_its_networks() {
    let desk = Desk::new();
    let folder = desk.model();
    let problems = || {
        let outcome = desk.conjure(&["models", "inspect", "model", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let problems: Vec<String> = serde_json::from_value(json["problems"].clone()).unwrap();
        assert_eq!(outcome.code, Some(i32::from(!problems.is_empty())));
        problems
    };
    assert_eq!(problems(), [""; 0]);
    std::fs::create_dir(folder.join("image_encoder")).unwrap();
    let copy = |name: &str| {
        std::fs::copy(shipped("emoji/image_encoder") + "/" + name, folder.join("image_encoder").join(name))
    };
    copy("config.json").unwrap();
    let missing = problems();
    assert!(missing.len() == 1 && missing[0].contains("image_encoder: the folder holds no weights"), "{missing:?}");
    // The names' vectors are those of another text encoder.
    copy("model.safetensors").unwrap();
    let misshapen = problems();
    assert!(
        misshapen.len() == 1 && misshapen[0].starts_with("image_encoder: 0 tensors missing, 1 of another shape;"),
        "{misshapen:?}"
    );
    std::fs::remove_dir_all(folder.join("image_encoder")).unwrap();
    std::fs::write(folder.join("generation_config.json"), "{ \"best_of\": \"many\" }").unwrap();
    let broken = problems();
    assert!(broken.len() == 1 && broken[0].contains("generation_config.json: cannot be read"), "{broken:?}");
    std::fs::remove_file(folder.join("generation_config.json")).unwrap();
    std::fs::remove_dir_all(folder.join("tokenizer")).unwrap();
    let tokenizer = problems();
    assert!(tokenizer.len() == 1 && tokenizer[0].contains("tokenizer"), "{tokenizer:?}");
}

#[test]
fn inspect_knows_what_changes_a_model() {
    let desk = Desk::new();
    let adapters = fixture("../adapters");
    let inspect =
        |path: &std::path::Path| desk.conjure(&["models", "inspect", path.to_str().unwrap()]).succeeded().stdout;
    let lora = inspect(&adapters.join("kohya.safetensors"));
    assert!(lora.contains("kohya.safetensors: LoRA\n") && lora.contains("used        with --lora"), "{lora}");
    let learned = inspect(&adapters.join("one_vector.safetensors"));
    assert!(learned.contains("learned tokens") && learned.contains("with --embedding"), "{learned}");
    // As conjure train exports it, in two layouts.
    std::fs::create_dir(desk.path("export")).unwrap();
    for name in ["pytorch_lora_weights.safetensors", "lora.safetensors"] {
        std::fs::copy(adapters.join("kohya.safetensors"), desk.path("export").join(name)).unwrap();
    }
    let export = inspect(&desk.path("export"));
    assert!(export.contains("export/pytorch_lora_weights.safetensors: LoRA"), "{export}");
}

#[test]
fn inspect_says_of_other_files_what_they_are() {
    let desk = Desk::new();
    let picture = fixture("init.png");
    let picture = picture.to_str().unwrap();
    let words = ["init.png: is a PNG picture, neither a safetensors nor a GGUF file", "help:"];
    desk.conjure(&["models", "inspect", picture]).failed(2, &words);
    desk.conjure(&["image", "x", "--model", picture, "-o", "x.png"]).failed(2, &words);
    std::fs::write(desk.path("notes.txt"), "what I wanted to say").unwrap();
    desk.conjure(&["models", "inspect", "notes.txt"]).failed(2, &["notes.txt: is text, neither"]);
}
