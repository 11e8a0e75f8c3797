//! What cannot be used is refused with one clear error, the right exit code, and nothing left behind.

use crate::command::{Desk, Outcome, fixture};
use std::fs;
use std::path::Path;

const REFUSED: i32 = 2;
const FAILED: i32 = 1;

/// `conjure image` with these arguments and a model that works.
fn image(desk: &Desk, args: &[&str]) -> Outcome {
    let model = fixture("");
    let all = [&["image", "x", "--model", model.to_str().unwrap(), "--steps", "2", "-o", "out.png"], args].concat();
    desk.conjure(&all)
}

/// `conjure image` with this model.
fn with_model(desk: &Desk, model: &Path) -> Outcome {
    desk.conjure(&["image", "x", "--model", model.to_str().unwrap(), "--steps", "2", "-o", "out.png"])
}

#[test]
fn numbers_out_of_range_are_refused_by_name_and_value() {
    let desk = Desk::new();
    for (args, words) in [
        (&["--width", "100"][..], &["width 100 is not a multiple of 8", "help: the nearest is 104"][..]),
        (&["--height", "0"], &["height 0"]),
        (&["--steps", "0"], &["steps 0", "help:"]),
        (&["--steps", "1001"], &["steps 1001", "help:"]),
        (&["--batch", "0"], &["batch 0", "help:"]),
        (&["--guidance", "nan"], &["guidance NaN", "help:"]),
        (&["--guidance", "inf"], &["guidance inf", "help:"]),
        (&["--guidance-rescale", "-1"], &["guidance rescale -1", "help:"]),
        (&["--eta", "2", "--sampler", "ddim"], &["eta 2", "help:"]),
        (&["--sampler", "ddim", "--schedule", "karras"], &["karras", "ddim", "help:"]),
        (&["--strength", "0.5"], &["a strength needs a start picture", "help: add --init"]),
        (&["--clip-skip", "99"], &["cannot skip 99 layers", "help:"]),
    ] {
        // clap takes the last of a repeated option only where told so: leave the first out.
        let model = fixture("");
        let mut all = vec!["image", "x", "--model", model.to_str().unwrap(), "-o", "out.png"];
        if !args.contains(&"--steps") {
            all.extend(["--steps", "2"]);
        }
        all.extend(args);
        desk.conjure(&all).failed(REFUSED, words);
    }
    assert_eq!(desk.files(), [""; 0]);
}

#[test]
fn unknown_names_list_the_known_ones() {
    let desk = Desk::new();
    image(&desk, &["--sampler", "euler_a"]).failed(REFUSED, &["euler_a", "euler-a", "dpmpp-2m", "unipc"]);
    image(&desk, &["--schedule", "kerras"]).failed(REFUSED, &["kerras", "karras", "exponential"]);
    let own = ["image", "x", "--model", "built-in", "--tokenizer", "."];
    desk.conjure(&own).failed(REFUSED, &["a tokenizer of its own", "help:"]);
    image(&desk, &["--rng", "mersenne"]).failed(REFUSED, &["mersenne", "philox", "torch", "comfy"]);
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let desk = Desk::new();
    image(&desk, &["--device", "gpu"]).failed(REFUSED, &["unknown device", "gpu"]);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/shapes.toml");
    let recipe = recipe.to_str().unwrap();
    desk.conjure(&["train", recipe, "--set", "device=gpu"]).failed(REFUSED, &["unknown device", "gpu"]);
    #[cfg(not(feature = "cuda"))]
    {
        let words = ["the device cuda:1 needs a build of conjure with GPU support", "help:", "--features cuda"];
        image(&desk, &["--device", "cuda:1"]).failed(REFUSED, &words);
        desk.conjure(&["train", recipe, "--device", "cuda:1", "--out", "run"]).failed(REFUSED, &words);
        let (model, data) = (fixture(""), "data.zip");
        let args =
            ["evaluate", "pictures", model.to_str().unwrap(), "--judge", "judge", "--data", data, "-o", "report"];
        desk.conjure(&[&args[..], &["--device", "cuda:1"]].concat()).failed(REFUSED, &words);
    }
    assert_eq!(desk.files(), [""; 0]);
}

#[test]
fn pictures_that_cannot_be_used_are_refused() {
    let desk = Desk::new();
    let init = fixture("init.png");
    let init = init.to_str().unwrap();
    fs::write(desk.path("text.png"), "this is no picture").unwrap();
    let whole = fs::read(fixture("init.png")).unwrap();
    fs::write(desk.path("half.png"), &whole[..whole.len() / 2]).unwrap();
    image(&desk, &["--init", "absent.png"]).failed(REFUSED, &["absent.png"]);
    image(&desk, &["--init", "text.png"]).failed(REFUSED, &["text.png", "help:"]);
    image(&desk, &["--init", "half.png"]).failed(REFUSED, &["half.png"]);
    image(&desk, &["--init", init, "--mask", "text.png"]).failed(REFUSED, &["text.png"]);
    image(&desk, &["--mask", init]).failed(REFUSED, &["a mask needs the picture that it masks", "help: add --init"]);
    for strength in ["0", "-0.1", "1.5", "nan"] {
        image(&desk, &["--init", init, "--strength", strength]).failed(REFUSED, &["strength", "help:"]);
    }
    image(&desk, &["--init", init, "--noise", "n.safetensors"]).failed(REFUSED, &["--noise", "--init"]);
    assert_eq!(desk.files(), ["half.png", "text.png"]);
}

#[test]
fn prompts_beyond_all_measure_are_refused() {
    let desk = Desk::new();
    let endless = "a ".repeat(50_000);
    desk.conjure(&["image", &endless]).failed(REFUSED, &["the prompt has 100000 characters", "help:"]);
    let model = fixture("");
    desk.conjure(&["image", "x", "--negative", &endless, "--model", model.to_str().unwrap()])
        .failed(REFUSED, &["the negative prompt has 100000 characters"]);
    assert_eq!(desk.files(), [""; 0]);
}

#[test]
fn noise_of_another_shape_is_refused() {
    let desk = Desk::new();
    image(&desk, &["--save-latents", "small.safetensors", "--width", "32"]).succeeded();
    image(&desk, &["--noise", "small.safetensors"]).failed(REFUSED, &["[1, 4, 16, 8]", "[1, 4, 16, 16]", "help:"]);
    fs::write(desk.path("short.safetensors"), b"abc").unwrap();
    image(&desk, &["--noise", "short.safetensors"]).failed(REFUSED, &["short.safetensors"]);
}

#[test]
fn places_that_cannot_be_written_are_refused_before_work() {
    let desk = Desk::new();
    fs::create_dir(desk.path("folder")).unwrap();
    for (output, words) in [
        ("folder", &["folder: is a folder", "help:"][..]),
        ("no/such/place.png", &["no/such does not exist", "help:"]),
        ("picture.jpg", &["PNG only", "help: name it picture.png"]),
        ("/proc/picture.png", &["cannot be written", "help:"]),
    ] {
        desk.conjure(&["image", "x", "--model", "built-in", "-o", output]).failed(REFUSED, words);
    }
    desk.conjure(&["image", "x", "--model", "built-in", "--save-latents", "folder"])
        .failed(REFUSED, &["folder: is a folder"]);
    assert_eq!(desk.files(), ["folder"]);
}

#[test]
fn broken_weight_files_are_refused() {
    let desk = Desk::new();
    let weights = fs::read(fixture("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let lying = |from: &str, to: &str| {
        let text = String::from_utf8(weights[8..8 + header].to_vec()).unwrap();
        assert!(text.contains(from), "{from}");
        let text = text.replacen(from, to, 1);
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &weights[8 + header..]].concat()
    };
    let truncated = weights[..weights.len() - 1000].to_vec();
    let oversized = [&weights[..], &[0; 4096]].concat();
    let long_header = [&u64::MAX.to_le_bytes()[..], &weights[8..]].concat();
    let wrong_shape = lying("\"shape\":[4]", "\"shape\":[4000000000,4000000000]");
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("truncated", truncated),
        ("oversized", oversized),
        ("long-header", long_header),
        ("wrong-shape", wrong_shape),
    ] {
        // Alone, and as a component of a folder.
        let single = desk.path(&format!("{name}.safetensors"));
        fs::write(&single, &bytes).unwrap();
        with_model(&desk, &single).failed(REFUSED, &[&format!("{name}.safetensors")]);
        let inspected = desk.conjure(&["models", "inspect", single.to_str().unwrap()]);
        inspected.failed(REFUSED, &[&format!("{name}.safetensors")]);
        let folder = desk.model();
        fs::write(folder.join("unet/diffusion_pytorch_model.safetensors"), &bytes).unwrap();
        with_model(&desk, &folder).failed(REFUSED, &["diffusion_pytorch_model.safetensors"]);
        fs::remove_dir_all(folder).unwrap();
    }
    for (name, bytes) in [
        ("text.ckpt", b"this is not a checkpoint".to_vec()),
        // A zip file's beginning, without the rest.
        ("zip.ckpt", b"PK\x03\x04\x14\x00\x00\x00\x00\x00".to_vec()),
        // An old pickle that would run a command when Python loads it.
        ("evil.ckpt", b"cposix\nsystem\n(S'touch evil'\ntR.".to_vec()),
    ] {
        fs::write(desk.path(name), bytes).unwrap();
        with_model(&desk, &desk.path(name)).failed(REFUSED, &[name]);
    }
    assert!(!desk.path("evil").exists());
    with_model(&desk, &desk.path("absent")).failed(REFUSED, &["absent"]);
    assert!(!desk.path("out.png").exists());
}

#[test]
fn incomplete_and_inconsistent_folders_are_refused() {
    let component = |change: &dyn Fn(&Path), words: &[&str]| {
        let desk = Desk::new();
        let folder = desk.model();
        change(&folder);
        with_model(&desk, &folder).failed(REFUSED, words);
        assert_eq!(desk.files(), ["model"]);
    };
    component(&|folder| fs::remove_dir_all(folder.join("vae")).unwrap(), &["vae", "help:"]);
    component(&|folder| fs::remove_dir_all(folder.join("text_encoder")).unwrap(), &["text_encoder", "help:"]);
    component(&|folder| fs::remove_dir_all(folder.join("tokenizer")).unwrap(), &["tokenizer"]);
    component(
        &|folder| fs::remove_file(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap(),
        &["unet", "diffusion_pytorch_model.safetensors"],
    );
    component(&|folder| fs::write(folder.join("unet/config.json"), "{\"in_chan").unwrap(), &["unet/config.json"]);
    // A U-Net that attends to vectors of another width than the text encoder makes.
    let edit = |folder: &Path, file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        assert!(text.contains(from), "{from} is not in {file}");
        fs::write(folder.join(file), text.replacen(from, to, 1)).unwrap();
    };
    component(
        &|folder| edit(folder, "unet/config.json", "\"cross_attention_dim\": 16", "\"cross_attention_dim\": 32"),
        &["32", "16", "help:"],
    );
    component(
        &|folder| edit(folder, "vae/config.json", "\"latent_channels\": 4", "\"latent_channels\": 8"),
        &["8", "4"],
    );
    component(&|folder| edit(folder, "scheduler/scheduler_config.json", "scaled_linear", "curved"), &["curved"]);
}

#[test]
fn weights_that_are_not_numbers_are_a_failure_with_their_name() {
    let desk = Desk::new();
    let folder = desk.model();
    let path = folder.join("unet/diffusion_pytorch_model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    let at = weights.len() - 400;
    for value in weights[at..].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(&path, weights).unwrap();
    with_model(&desk, &folder).failed(FAILED, &["the weights of the unet are broken", "help:"]);
    assert_eq!(desk.files(), ["model"]);
}

/// A file-size limit stands for a full disk: writing fails in the middle of the file.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_broken_file() {
    let desk = Desk::new();
    let program = env!("CARGO_BIN_EXE_conjure");
    let model = fixture("");
    let limited = |args: &str| {
        // The signal that the limit raises is ignored, as where a disk is full: writing returns an error.
        let script = format!(
            "trap '' XFSZ; ulimit -f 1; exec '{program}' image x --model '{}' --steps 1 {args}",
            model.display()
        );
        let output =
            std::process::Command::new("sh").arg("-c").arg(script).current_dir(desk.0.path()).output().unwrap();
        Outcome::of(output)
    };
    fs::write(desk.path("old.png"), "kept").unwrap();
    limited("-o old.png").failed(FAILED, &["old.png", "help:"]);
    assert_eq!(fs::read(desk.path("old.png")).unwrap(), b"kept");
    assert_eq!(desk.files(), ["old.png"]);
}
