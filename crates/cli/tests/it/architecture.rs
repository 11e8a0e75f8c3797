//! The rules of the house that a compiler does not enforce.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From the top of the program to the bottom. A crate may use only crates that stand after it.
const ORDER: [&str; 5] = ["conjure-cli", "conjure", "conjure-models", "conjure-core", "conjure-kernels"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/cli lies two folders deep").to_path_buf()
}

/// Names of the normal and development dependencies of each workspace crate.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |v: &serde_json::Value| v["name"].as_str().expect("a name").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|p| (text(p), p["dependencies"].as_array().expect("dependencies").iter().map(text).collect()))
        .collect()
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace").map(|e| e.expect("an entry").path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&entry).expect("UTF-8 source");
            found.push((entry, text));
        }
    }
    found
}

/// The part of a file above its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn dependencies_point_one_way() {
    let dependencies = dependencies();
    assert_eq!(dependencies.len(), ORDER.len(), "a new crate needs a place in the order");
    for (rank, name) in ORDER.iter().enumerate() {
        for upper in &ORDER[..=rank] {
            assert!(!dependencies[*name].iter().any(|d| d == upper), "{name} must not depend on {upper}");
        }
    }
}

#[test]
fn kernels_know_no_tensor_library_and_no_crate_uses_modules_that_drop_gradients() {
    let dependencies = dependencies();
    assert!(!dependencies["conjure-kernels"].iter().any(|d| d.starts_with("candle")));
    for (name, list) in &dependencies {
        for banned in ["candle-nn", "candle-transformers"] {
            assert!(!list.iter().any(|d| d == banned), "{name} must not depend on {banned}");
        }
    }
}

#[test]
fn lower_crates_print_nothing_and_know_no_files() {
    for layer in ["kernels", "core", "models"] {
        for (path, text) in sources(&root().join("crates").join(layer).join("src")) {
            let code = without_tests(&text);
            for banned in ["println!", "eprintln!", "print!(", "dbg!("] {
                assert!(!code.contains(banned), "{}: {banned} belongs in the program", path.display());
            }
            if !path.components().any(|c| c.as_os_str() == "weights") {
                assert!(!code.contains("std::fs"), "{}: only core::weights reads files", path.display());
            }
        }
    }
}

/// What is computed is computed where it was asked to be: tensors are made on a device that somebody handed in.
#[test]
fn pictures_and_training_name_no_device_of_their_own() {
    let folder = root().join("crates/conjure/src");
    // The defaults of calls without a device, random weights that become a source, and files read to be checked.
    let allowed =
        ["generate/image/open.rs", "generate/image/tiny.rs", "generate/image/inputs.rs", "train/textual_inversion.rs"];
    for place in ["generate/image", "train", "evaluate"] {
        for (path, text) in sources(&folder.join(place)) {
            let inside = path.strip_prefix(&folder).expect("below the folder").to_string_lossy().into_owned();
            if !allowed.contains(&inside.as_str()) {
                assert!(!without_tests(&text).contains("Device::Cpu"), "{inside} computes on the CPU only");
            }
        }
    }
}

#[test]
fn models_do_not_import_models() {
    let folder = root().join("crates/models/src");
    let models: Vec<String> = std::fs::read_dir(&folder)
        .expect("models")
        .map(|e| e.expect("an entry").path())
        .filter_map(|p| p.file_stem().map(|s| s.to_string_lossy().into_owned()))
        .filter(|name| name != "lib")
        .collect();
    for (path, text) in sources(&folder) {
        let inside = path.strip_prefix(&folder).expect("below the folder").to_string_lossy().into_owned();
        if inside.starts_with("stable_diffusion") || inside == "lib.rs" {
            continue;
        }
        for other in models.iter().filter(|m| !inside.starts_with(m.as_str())) {
            assert!(!without_tests(&text).contains(&format!("crate::{other}")), "{inside} imports {other}");
        }
    }
}
