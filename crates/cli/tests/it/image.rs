//! `conjure image` as it should go.

use crate::command::{Desk, Outcome, fixture};
use std::process::Stdio;

fn png_size(bytes: &[u8]) -> (u32, u32) {
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn the_built_in_model_makes_a_picture_and_says_what_it_is() {
    let desk = Desk::new();
    let args = ["image", "a red heart", "--model", "built-in", "-o", "heart.png", "--seed", "7", "--steps", "2"];
    let outcome = desk.conjure(&args).succeeded();
    assert_eq!(outcome.stdout, "heart.png\n");
    assert!(outcome.stderr.contains("untrained"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--model"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("seed 7"), "{}", outcome.stderr);
    // PLMS evaluates the model once more than there are steps.
    assert!(outcome.stderr.contains("step 3/3"), "{}", outcome.stderr);
    assert_eq!(png_size(&std::fs::read(desk.path("heart.png")).unwrap()), (64, 64));
    assert_eq!(desk.files(), ["heart.png"]);
}

/// Whether the model that comes with the program is there or not, both can be asked for; the shipped one is the default.
#[test]
fn the_shipped_model_is_the_default_and_the_built_in_one_has_a_name() {
    let desk = Desk::new();
    std::fs::rename(desk.model(), desk.path("emoji")).unwrap();
    std::fs::write(desk.path("emoji/generation_config.json"), r#"{ "num_inference_steps": 2 }"#).unwrap();
    let run = |args: &[&str]| {
        let output = desk.command().env("CONJURE_MODELS", desk.0.path()).args(args).args(["--json"]).output().unwrap();
        let json: serde_json::Value = serde_json::from_str(&Outcome::of(output).succeeded().stdout).unwrap();
        (json["recipe"]["model"]["path"].as_str().unwrap().to_owned(), json["recipe"]["steps"].as_u64().unwrap())
    };
    assert_eq!(run(&["image", "x", "--seed", "1", "-o", "a.png"]), ("shipped:emoji".to_owned(), 2));
    let built_in = ["image", "x", "--seed", "1", "--steps", "1", "--model", "built-in", "-o", "b.png"];
    assert_eq!(run(&built_in), ("built-in".to_owned(), 1));
    // A folder of that name is given with its path.
    std::fs::rename(desk.path("emoji"), desk.path("built-in")).unwrap();
    assert_eq!(run(&["image", "x", "--model", "./built-in", "-o", "c.png"]), ("./built-in".to_owned(), 2));
    desk.conjure(&["replay", "b.png"]).succeeded();
}

#[test]
fn a_variable_that_leads_to_no_model_is_refused() {
    let desk = Desk::new();
    std::fs::create_dir_all(desk.path("models/emoji")).unwrap();
    let run = |variable: &str, args: &[&str]| {
        Outcome::of(desk.command().env("CONJURE_MODELS", variable).args(args).output().unwrap())
    };
    let image = ["image", "x", "--steps", "1", "-o", "x.png"];
    run("/nonexistent", &image).failed(2, &["CONJURE_MODELS is /nonexistent, and there is no such folder", "help:"]);
    run("models", &image)
        .failed(2, &["CONJURE_MODELS is models, and no model emoji is in it", "emoji/model_index.json"]);
    assert_eq!(desk.files(), ["models"]);
    // Who names a model does not ask the variable.
    run("/nonexistent", &[&image[..], &["--model", "built-in"]].concat()).succeeded();
}

#[test]
fn the_same_seed_makes_the_same_file_and_another_seed_another() {
    let desk = Desk::new();
    for (name, seed, threads) in [("a.png", "1", "1"), ("b.png", "1", "3"), ("c.png", "2", "1")] {
        let args =
            ["image", "x", "--model", "built-in", "-o", name, "--seed", seed, "--steps", "2", "--threads", threads];
        desk.conjure(&args).succeeded();
    }
    let read = |name: &str| std::fs::read(desk.path(name)).unwrap();
    assert!(read("a.png") == read("b.png"), "the number of threads changes the picture");
    assert!(read("a.png") != read("c.png"));
}

#[test]
fn without_a_name_nothing_is_replaced() {
    let desk = Desk::new();
    for _ in 0..2 {
        desk.conjure(&["image", "x", "--model", "built-in", "--seed", "5", "--steps", "1"]).succeeded();
    }
    assert_eq!(desk.files(), ["conjure-5-v2.png", "conjure-5.png"]);
}

#[test]
fn a_random_seed_is_told_and_makes_the_picture_again() {
    let desk = Desk::new();
    let outcome = desk.conjure(&["image", "x", "--model", "built-in", "--steps", "1", "-o", "a.png"]).succeeded();
    let seed = outcome.stderr.lines().find_map(|line| line.strip_prefix("seed ")).unwrap().to_owned();
    desk.conjure(&["image", "x", "--model", "built-in", "--steps", "1", "-o", "b.png", "--seed", &seed]).succeeded();
    assert!(std::fs::read(desk.path("a.png")).unwrap() == std::fs::read(desk.path("b.png")).unwrap());
}

#[test]
fn a_batch_a_strip_latents_and_json_come_together() {
    let desk = Desk::new();
    let model = fixture("");
    let args = [
        "image",
        "a red heart",
        "--model",
        model.to_str().unwrap(),
        "--steps",
        "5",
        "--batch",
        "2",
        "--sampler",
        "euler",
        "--strip",
        "--save-latents",
        "latents.safetensors",
        "--seed",
        "3",
        "--json",
        "-o",
        "heart.png",
        "--width",
        "48",
    ];
    let outcome = desk.conjure(&args).succeeded();
    assert_eq!(desk.files(), ["heart-1.png", "heart-2.png", "heart-strip.png", "latents.safetensors"]);
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["pictures"], serde_json::json!(["heart-1.png", "heart-2.png"]));
    assert_eq!(json["strip"], "heart-strip.png");
    assert_eq!(json["latents"], "latents.safetensors");
    assert_eq!(json["recipe"]["seed"], 3);
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(png_size(&std::fs::read(desk.path("heart-1.png")).unwrap()), (48, 64));
    // Steps 1, 2, 3 and 5 side by side.
    let (width, height) = png_size(&std::fs::read(desk.path("heart-strip.png")).unwrap());
    assert!(width >= 4 * 48 && height > 64, "{width} x {height}");
    let latents = std::fs::read(desk.path("latents.safetensors")).unwrap();
    assert!(String::from_utf8_lossy(&latents[..200]).contains("[2,4,16,12]"));
}

#[test]
fn latents_of_one_run_serve_as_noise_of_another() {
    let desk = Desk::new();
    let model = fixture("");
    let model = model.to_str().unwrap();
    desk.conjure(&["image", "x", "-m", model, "--steps", "1", "--save-latents", "n.safetensors", "-o", "a.png"])
        .succeeded();
    for (name, seed) in [("b.png", "1"), ("c.png", "2")] {
        let args = ["image", "x", "-m", model, "--steps", "2", "--noise", "n.safetensors", "--seed", seed, "-o", name];
        desk.conjure(&args).succeeded();
    }
    let pixels = |name: &str| image::open(desk.path(name)).unwrap().into_rgb8();
    assert!(
        pixels("b.png") == pixels("c.png"),
        "with given noise and a sampler without noise the seed changes nothing"
    );
    assert!(pixels("a.png") != pixels("b.png"));
}

#[test]
fn runs_of_few_steps_make_a_strip() {
    let desk = Desk::new();
    let args = ["image", "x", "--model", "built-in", "--steps", "3", "--strip", "runs", "--seed", "1", "-o", "a.png"];
    desk.conjure(&args).succeeded();
    assert_eq!(desk.files(), ["a-strip.png", "a.png"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_within_a_step_and_leaves_nothing_behind() {
    use std::io::{BufRead as _, BufReader};
    let desk = Desk::new();
    let mut child = desk
        .command()
        .args(["image", "x", "--model", "built-in", "--steps", "900", "--sampler", "ddim", "-o", "a.png"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first step's line says that work has begun.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("step ")).unwrap();
    assert!(first.starts_with("step 1/"), "{first}");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let outcome = Outcome::of(child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{rest:?}");
    assert_eq!(outcome.stdout, "");
    assert_eq!(rest.iter().filter(|line| line.as_str() == "error: stopped on request").count(), 1, "{rest:?}");
    assert!(!rest.iter().any(|line| line.starts_with("step 900/")));
    assert_eq!(desk.files(), [""; 0]);
}

#[test]
fn help_names_every_sampler_and_schedule() {
    let help = Desk::new().conjure(&["image", "--help"]).succeeded().stdout;
    for name in
        "ddpm ddim pndm euler euler-a heun dpm2 dpm2-a lms dpmpp-2m dpmpp-2m-sde dpmpp-3m-sde dpmpp-2s-a dpmpp-sde \
                 unipc lcm default karras exponential beta philox torch comfy"
            .split_whitespace()
    {
        assert!(help.contains(name), "{name}");
    }
}

#[test]
fn a_strip_of_runs_from_a_picture_leaves_out_the_runs_that_would_change_nothing() {
    let desk = Desk::new();
    desk.conjure(&["image", "x", "--model", "built-in", "--steps", "1", "--seed", "1", "-o", "a.png"]).succeeded();
    let base = ["image", "x", "--model", "built-in", "--init", "a.png", "--seed", "1", "--strip", "runs"];
    // At strength 0.8 a run of 1 step has none to take: 2 and 3 remain, as does a last one that no strip shows otherwise.
    desk.conjure(&[&base[..], &["--steps", "3", "-o", "b.png"]].concat()).succeeded();
    let two = png_size(&std::fs::read(desk.path("b-strip.png")).unwrap());
    desk.conjure(&[&base[..], &["--steps", "4", "--strength", "0.25", "-o", "c.png"]].concat()).succeeded();
    let one = png_size(&std::fs::read(desk.path("c-strip.png")).unwrap());
    assert!(two.0 > one.0, "{two:?} {one:?}");
}

/// A terminal that never answers, as `script` (of every Linux's base system) makes one: asking it which picture protocols
/// it knows would wait for ever.
#[cfg(target_os = "linux")]
#[test]
fn a_preview_is_shown_in_a_terminal_that_answers_no_questions() {
    let desk = Desk::new();
    let line =
        format!("{} image x --model built-in --steps 2 --seed 1 --preview -o x.png", env!("CARGO_BIN_EXE_conjure"));
    let output = std::process::Command::new("timeout")
        .args(["120", "script", "--quiet", "--return", "--command", &line, "/dev/null"])
        .current_dir(desk.0.path())
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {shown}", output.status);
    assert!(shown.contains('▄'), "no half blocks in {shown}");
    assert!(desk.files().contains(&"x.png".to_owned()));
}

/// A CLIP of a few thousand parameters after one update, as the recipe of the shipped one exports it.
fn judge(desk: &Desk) {
    let recipe = r#"
        objective = "clip"
        steps = 1
        batch = 4
        data = { shapes = 8, size = 16 }
        report = { validate = 0, samples = 0 }
        [clip]
        vocabulary_size = 520
        context_length = 12
        projection_dim = 8
        patch_size = 8
        text = { hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2 }
        vision = { hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2 }
    "#;
    std::fs::write(desk.path("clip.toml"), recipe).unwrap();
    desk.conjure(&["train", "clip.toml", "--out", "clip"]).succeeded();
}

#[test]
fn of_several_candidates_the_best_is_kept_and_made_again() {
    let desk = Desk::new();
    judge(&desk);
    let model = fixture("");
    let image = ["image", "a (red:1.2) heart", "--model", model.to_str().unwrap(), "--steps", "1"];
    let best = ["--best-of", "4", "--judge", "clip/export", "--seed", "10", "--json", "-o", "best.png"];
    let outcome = desk.conjure(&[&image[..], &best].concat()).succeeded();
    assert!(outcome.stderr.contains("candidate 4 of 4") && outcome.stderr.contains("fits best"), "{}", outcome.stderr);
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let scores: Vec<f64> = json["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect();
    let candidate = json["candidate"].as_u64().unwrap() as usize;
    assert_eq!(scores.len(), 4);
    assert!(scores.iter().all(|score| *score <= scores[candidate] && score.abs() <= 1.0), "{scores:?}");
    assert!(scores.iter().any(|score| *score < scores[candidate]), "{scores:?}");
    // The recipe is that of the candidate's own seed, and says how it was chosen.
    let recipe = &json["recipe"];
    assert_eq!(recipe["seed"], 10 + candidate);
    assert_eq!(recipe["settings"]["best-of"], 4);
    assert_eq!(recipe["settings"]["candidate"], candidate);
    assert_eq!(recipe["settings"]["judge"].as_str().unwrap().len(), 64);
    let seed = (10 + candidate).to_string();
    desk.conjure(&[&image[..], &["--seed", &seed, "-o", "alone.png"]].concat()).succeeded();
    let pixels = |name: &str| image::open(desk.path(name)).unwrap().into_rgb8();
    assert!(pixels("best.png") == pixels("alone.png"));
    // Made again without the judge; the new file remembers the choice, too.
    std::fs::rename(desk.path("clip"), desk.path("away")).unwrap();
    desk.conjure(&["replay", "best.png", "-o", "again.png"]).succeeded();
    let read = |name: &str| std::fs::read(desk.path(name)).unwrap();
    assert!(read("best.png") == read("again.png"));
}

/// A picture tower trained to the model's own text encoder makes the model its own judge.
#[test]
fn a_model_that_brings_a_judge_keeps_the_best_unless_a_seed_is_given() {
    let desk = Desk::new();
    desk.model();
    let recipe = r#"
        objective = "image_classifier"
        steps = 2
        batch = 4
        data = { shapes = 8, size = 16 }
        report = { validate = 0, samples = 0 }
        [image_classifier]
        text = "model"
        model = { block_out_channels = [8, 16], layers_per_block = 1 }
    "#;
    std::fs::write(desk.path("judge.toml"), recipe).unwrap();
    let image = ["image", "a heart", "--model", "model", "--steps", "1", "--json", "-o", "x.png"];
    let scores = |args: &[&str]| {
        let printed = desk.conjure(&[&image[..], args].concat()).succeeded().stdout;
        let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
        json.get("scores").map_or(0, |scores| scores.as_array().unwrap().len())
    };
    desk.conjure(&[&image[..], &["--best-of", "2"]].concat()).failed(2, &["image_encoder", "--judge"]);
    assert_eq!(scores(&["--best-of", "1"]), 0);
    let text = std::fs::read(desk.path("model/text_encoder/model.safetensors")).unwrap();
    desk.conjure(&["train", "judge.toml", "--out", "run"]).succeeded();
    let mut made: Vec<String> = std::fs::read_dir(desk.path("run/export"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    made.sort();
    assert_eq!(made, ["image_encoder"]);
    assert!(text == std::fs::read(desk.path("model/text_encoder/model.safetensors")).unwrap());
    std::fs::rename(desk.path("run/export/image_encoder"), desk.path("model/image_encoder")).unwrap();
    // A judge is there, but the model does not ask for it; one candidate is not judged.
    assert_eq!((scores(&[]), scores(&["--best-of", "2"]), scores(&["--best-of", "1"])), (0, 2, 0));
    std::fs::write(desk.path("model/generation_config.json"), r#"{ "best_of": 3 }"#).unwrap();
    assert_eq!((scores(&[]), scores(&["--best-of", "2"])), (3, 2));
    // What names one picture, or asks for several, is not chosen from others.
    assert_eq!((scores(&["--seed", "1"]), scores(&["--batch", "2"])), (0, 0));
    assert_eq!(scores(&["--seed", "1", "--best-of", "2"]), 2);
}

#[test]
fn a_judge_that_cannot_judge_is_refused_before_work() {
    let desk = Desk::new();
    judge(&desk);
    let image = |prompt: &str, args: &[&str]| {
        desk.conjure(&[&["image", prompt, "--model", "built-in", "--steps", "1", "-o", "x.png"], args].concat())
    };
    let with = |count: &str, judge: &str| image("x", &["--best-of", count, "--judge", judge]);
    with("0", "clip/export").failed(2, &["the best of 0 candidates", "help:"]);
    with("9999", "clip/export").failed(2, &["the best of 9999 candidates", "1024"]);
    with("2", "absent").failed(2, &["absent: there is no such folder", "help:"]);
    // The text tower alone is no judge.
    with("2", "clip/export/text_encoder").failed(2, &["text_encoder", "help:"]);
    image("x", &["--best-of", "2"]).failed(2, &["--judge"]);
    image("x", &["--judge", "clip/export"]).failed(2, &["--best-of"]);
    image("x", &["--best-of", "2", "--judge", "clip/export", "--batch", "2"])
        .failed(2, &["one picture, not 2", "help:"]);
    image(" ", &["--best-of", "2", "--judge", "clip/export"]).failed(2, &["without words", "help:"]);
    assert!(!desk.path("x.png").exists());
}

#[test]
fn a_finished_picture_is_made_larger_and_made_again() {
    let desk = Desk::new();
    let small = ["image", "x", "--model", "built-in", "--seed", "5", "--steps", "1"];
    for (name, factor, size) in [("two.png", "2", (128, 128)), ("four.png", "4", (256, 256))] {
        desk.conjure(&[&small[..], &["--upscale", factor, "-o", name]].concat()).succeeded();
        assert_eq!(png_size(&std::fs::read(desk.path(name)).unwrap()), size);
        assert_eq!(desk.conjure(&["replay", name]).succeeded().stdout, "identical\n");
    }
    desk.conjure(&[&small[..], &["--upscale", "3", "-o", "three.png"]].concat()).failed(2, &["3 times", "2 or 4"]);
    assert_eq!(desk.files(), ["four.png", "two.png"]);
}
