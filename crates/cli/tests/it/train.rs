//! `conjure train`, on an autoencoder of a few thousand parameters.

use crate::command::{Desk, Outcome};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const RECIPE: &str = r#"
objective = "autoencoder_kl"
seed = 5
steps = 40
batch = 4

[data]
folder = "pictures"
size = 16

[optimizer]
learning_rate = 2e-3
average = 0.9

[checkpoint]
every = 3
best = "psnr"

[report]
every = 2
validate = 10
samples = 20

[autoencoder_kl.model]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
block_out_channels = [4, 8]
layers_per_block = 1
latent_channels = 2
norm_num_groups = 2
"#;

/// A desk with the recipe `tiny.toml` and a folder of pictures.
fn desk() -> Desk {
    let desk = Desk::new();
    fs::write(desk.path("tiny.toml"), RECIPE).unwrap();
    fs::create_dir(desk.path("pictures")).unwrap();
    let mut table = String::new();
    for i in 0..12u8 {
        let name = format!("{i}.png");
        // A square of its own colour and place.
        let picture = image::RgbImage::from_fn(16, 16, |x, y| {
            let inside = |at: u32, from: u8| (u32::from(from)..u32::from(from) + 7).contains(&at);
            let colour = [20 * i, 255 - 20 * i, 90];
            image::Rgb(if inside(x, i % 4 * 2) && inside(y, i / 4 * 3) { colour } else { [255; 3] })
        });
        picture.save(desk.path("pictures").join(&name)).unwrap();
        let split = if i % 4 == 3 { "held-out-concept" } else { "train" };
        table += &format!("{{\"file_name\": \"{name}\", \"text\": \"square {i}\", \"split\": \"{split}\"}}\n");
    }
    fs::write(desk.path("pictures/metadata.jsonl"), table).unwrap();
    desk
}

/// Every file of a run by name, the log without its timings.
fn left_by(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            if path.ends_with("metrics.jsonl") {
                bytes = log(&path).iter().flat_map(|line| serde_json::to_vec(line).unwrap()).collect();
            }
            files.insert(path.strip_prefix(run).unwrap().to_owned(), bytes);
        }
    }
    files
}

fn log(path: &Path) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let text = fs::read_to_string(path).unwrap();
    let line = |text: &str| {
        let mut line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
        line.remove("seconds");
        line.remove("examples_per_second");
        line
    };
    text.lines().map(line).collect()
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (left_by(a), left_by(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{} differs", name.display());
    }
}

/// Twenty times SIGKILL at a random moment, and after each end of a run everything in its folder as an undisturbed run left
/// it: weights, optimizer, average, log, curves, samples, best state and export.
#[test]
fn a_run_killed_at_random_moments_ends_like_an_undisturbed_one() {
    let desk = desk();
    let began = Instant::now();
    desk.conjure(&["train", "tiny.toml", "--out", "undisturbed"]).succeeded();
    let whole = began.elapsed();
    let mut draws = std::hash::DefaultHasher::new();
    let mut moment = || {
        use std::hash::Hasher as _;
        draws.write_u8(1);
        whole.mul_f64((draws.finish() >> 11) as f64 / (1u64 << 53) as f64 * 0.9)
    };
    let (mut kills, mut runs) = (0, 0);
    loop {
        let run = format!("killed-{runs}");
        let begun = desk.path(&run).join("recipe.toml").exists();
        let args = if begun { vec!["train", "--resume", &run] } else { vec!["train", "tiny.toml", "--out", &run] };
        let mut child =
            desk.command().args(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        let patience = if kills < 20 { moment() } else { Duration::from_secs(300) };
        let spawned = Instant::now();
        let ended = loop {
            if child.try_wait().unwrap().is_some() {
                break true;
            }
            if spawned.elapsed() >= patience {
                break false;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if !ended {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            continue;
        }
        Outcome::of(child.wait_with_output().unwrap()).succeeded();
        assert_same(&desk.path("undisturbed"), &desk.path(&run));
        runs += 1;
        if kills >= 20 {
            break;
        }
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_the_state_and_a_full_disk_loses_nothing() {
    let desk = desk();
    desk.conjure(&["train", "tiny.toml", "--out", "undisturbed"]).succeeded();

    let mut child = desk
        .command()
        .args(["train", "tiny.toml", "--out", "run"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("update 2/40")).unwrap();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(Outcome::of(child.wait_with_output().unwrap()).code, Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("conjure train --resume run")), "{rest:?}");

    // No file may grow past 24 KiB: a checkpoint does not fit.
    let run = |args: &str| {
        let line = format!("trap '' XFSZ; ulimit -f 24; exec {} {args}", env!("CARGO_BIN_EXE_conjure"));
        let command = std::process::Command::new("bash").args(["-c", &line]).current_dir(desk.0.path()).output();
        Outcome::of(command.unwrap())
    };
    let before = left_by(&desk.path("run/checkpoints"));
    assert!(before.values().any(|bytes| bytes.len() > 24 << 10), "the checkpoint is smaller than the limit");
    let outcome = run("train --resume run").failed(1, &["File too large", "help: ", "the run goes on"]);
    assert!(outcome.stderr.contains("update 40/40"), "{}", outcome.stderr);
    assert!(left_by(&desk.path("run/checkpoints")) == before, "checkpoints were touched");
    desk.conjure(&["train", "--resume", "run"]).succeeded();
    let end = |run: &str| {
        let run = desk.path(run);
        (fs::read(run.join("checkpoints/step-00000040.safetensors")).unwrap(), log(&run.join("metrics.jsonl")))
    };
    assert!(end("run") == end("undisturbed"));
}

#[test]
fn events_are_lines_of_json() {
    let desk = desk();
    let outcome = desk.conjure(&["train", "tiny.toml", "--set", "steps=12", "--json"]).succeeded();
    let events: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("begin", "end"));
    assert_eq!(events[0]["steps"], 12);
    assert!(events[0]["parameters"]["autoencoder"].as_u64().unwrap() > 1000);
    assert_eq!(kinds.iter().filter(|kind| **kind == "progress").count(), 6);
    let progress = events.iter().find(|event| event["event"] == "progress").unwrap();
    assert!(progress["figures"]["autoencoder"].as_f64().unwrap() > 0.0, "{progress}");
    assert!(progress["examples_per_second"].as_f64().unwrap() > 0.0, "{progress}");
    let validation = events.iter().rfind(|event| event["event"] == "validation").unwrap();
    assert_eq!(validation["step"], 12);
    assert!(validation["figures"]["psnr"].as_f64().unwrap() > 0.0, "{validation}");
    assert_eq!(events[events.len() - 1]["export"], "out/tiny/export");
    assert!(desk.path("out/tiny/export/config.json").is_file());
}

#[test]
fn recomputing_activations_changes_nothing_but_memory() {
    let desk = desk();
    let weights = |recompute: &str| {
        let args = ["train", "tiny.toml", "--out", recompute, "--set", "steps=6", "--set", recompute];
        desk.conjure(&args).succeeded();
        fs::read(desk.path(recompute).join("export/diffusion_pytorch_model.safetensors")).unwrap()
    };
    assert!(weights("recompute=true") == weights("recompute=false"));
}

#[test]
fn a_run_that_explodes_names_the_pictures_it_saw() {
    let desk = desk();
    let args = ["train", "tiny.toml", "--out", "run", "--set", "optimizer.learning_rate=1e30"];
    desk.conjure(&args).failed(1, &["update ", "the loss of autoencoder is", "names the batch", "learning_rate"]);
    let kept: Vec<String> =
        left_by(&desk.path("run/checkpoints")).into_keys().map(|p| p.display().to_string()).collect();
    let account = kept.iter().find(|name| name.starts_with("failed-") && name.ends_with(".json")).unwrap();
    assert!(fs::read_to_string(desk.path("run/checkpoints").join(account)).unwrap().contains("square "));
}

#[test]
fn recipes_that_cannot_be_trained_are_refused_before_anything_is_made() {
    let desk = desk();
    let cases: &[(&[&str], &[&str])] = &[
        (&["bach=3"], &["tiny.toml", "bach"]),
        (&["autoencoder_kl.learning_rate=1"], &["[autoencoder_kl]", "learning_rate"]),
        (&["autoencoder_kl.model.colour=1"], &["colour"]),
        (&["steps=-1"], &["steps", "-1"]),
        (&["steps"], &["key=value"]),
        (&["objective=\"autoencoder\""], &["autoencoder"]),
        (&["batch=0"], &["batch is 0"]),
        (&["data.size=0"], &["data.size is 0"]),
        (&["data.size=15"], &["data.size is 15", "multiple of 2"]),
        (&["data.file=\"emoji.zip\""], &["emoji.zip: there is no such file"]),
        (&["autoencoder_kl.model.block_out_channels=[1000000, 1000000]"], &["million parameters", "smaller width"]),
        (&["data.styles=[\"oil\"]"], &["data.styles", "oil"]),
        (&["autoencoder_kl.model.block_out_channels=[4, 8, 8]"], &["block_out_channels"]),
        (&["autoencoder_kl.model.block_out_channels=[]"], &["block_out_channels"]),
        (&["autoencoder_kl.model.block_out_channels=[0, 8]"], &["block_out_channels"]),
        (&["autoencoder_kl.model.block_out_channels=[3, 8]"], &["norm_num_groups"]),
        (&["autoencoder_kl.model.block_out_channels=[4, 4000000000000]"], &["block_out_channels"]),
        (&["autoencoder_kl.model.latent_channels=0"], &["latent_channels"]),
        (&["autoencoder_kl.model.norm_num_groups=0"], &["norm_num_groups"]),
        (&["autoencoder_kl.model.layers_per_block=99999999"], &["layers_per_block"]),
        (&["autoencoder_kl.model.down_block_types=[\"Up\", \"Down\"]"], &["Up"]),
    ];
    for (changes, words) in cases {
        let mut args = vec!["train", "tiny.toml", "--out", "run"];
        args.extend(changes.iter().flat_map(|change| ["--set", change]));
        desk.conjure(&args).failed(2, words);
        assert!(!desk.path("run").exists(), "{changes:?}");
    }
    fs::write(desk.path("broken.toml"), "objective = ").unwrap();
    desk.conjure(&["train", "broken.toml"]).failed(2, &["broken.toml", "not TOML"]);
    desk.conjure(&["train", "missing.toml"]).failed(2, &["missing.toml: not found", "help:"]);
    for key in ["data.folder", "autoencoder_kl.start"] {
        let change = format!("{key}=\"nowhere\"");
        let outcome = desk.conjure(&["train", "tiny.toml", "--out", "run", "--set", &change]);
        assert!(matches!(outcome.code, Some(1 | 2)), "{}", outcome.stderr);
        assert!(outcome.stderr.starts_with("error: nowhere"), "{}", outcome.stderr);
    }
    fs::create_dir(desk.path("empty")).unwrap();
    desk.conjure(&["train", "tiny.toml", "--set", "data.folder=\"empty\""]).failed(2, &["empty", "no pictures"]);
}

#[test]
fn folders_that_cannot_be_trained_in_are_refused() {
    let desk = desk();
    desk.conjure(&["train", "tiny.toml", "--out", "pictures"]).failed(2, &["pictures", "is not empty", "--out"]);
    desk.conjure(&["train", "--resume", "pictures"]).failed(2, &["holds no training run"]);
    desk.conjure(&["train", "--resume", "nowhere"]).failed(2, &["nowhere", "holds no training run"]);
    desk.conjure(&["train", "tiny.toml", "--out", "run", "--set", "steps=4"]).succeeded();
    desk.conjure(&["train", "--resume", "run", "--set", "batch=2"]).failed(2, &["batch: 4 -> 2", "--force"]);
    // Other pictures under the same name.
    fs::remove_file(desk.path("pictures/metadata.jsonl")).unwrap();
    fs::write(desk.path("pictures/0.txt"), "square").unwrap();
    desk.conjure(&["train", "--resume", "run"]).failed(2, &["the data differ", "--force"]);
    for entry in fs::read_dir(desk.path("run/checkpoints")).unwrap() {
        fs::write(entry.unwrap().path(), b"cut").unwrap();
    }
    desk.conjure(&["train", "--resume", "run"]).failed(2, &["no checkpoint can be read"]);
}

/// A terminal, as `script` (of every Linux's base system) makes one.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_gets_a_bar() {
    let desk = desk();
    let line = format!("{} train tiny.toml --out run --set steps=6", env!("CARGO_BIN_EXE_conjure"));
    let output = std::process::Command::new("timeout")
        .args(["120", "script", "--quiet", "--return", "--command", &line, "/dev/null"])
        .current_dir(desk.0.path())
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {shown}", output.status);
    assert!(shown.contains('█') && shown.contains("validation after update 6"), "{shown}");
}
