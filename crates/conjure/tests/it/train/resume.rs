//! A run that was interrupted ends like one that was not.

use super::*;

#[test]
fn a_run_that_dies_and_goes_on_ends_like_an_undisturbed_one() {
    let plan = Plan::default();
    let undisturbed = finished(&[], &plan);
    let files: Vec<PathBuf> = left_by(undisturbed.path()).into_keys().collect();
    let names = [
        ".lock",
        "checkpoints/best.safetensors",
        "checkpoints/step-00000025.safetensors",
        "checkpoints/step-00000030.safetensors",
        "export/model.safetensors",
        "loss.svg",
        "metrics.jsonl",
        "recipe.toml",
        "samples/step-00000010.png",
        "samples/step-00000020.png",
        "samples/step-00000030.png",
    ];
    assert_eq!(files, names.map(PathBuf::from));

    let folder = tempfile::tempdir().unwrap();
    dies_at(start(folder.path(), recipe(&[]), &plan).unwrap(), 3);
    for fatal in [5, 6, 12, 13, 20, 30] {
        dies_at(resume(folder.path(), &[], false, &plan).unwrap().0, fatal);
    }
    to_the_end(resume(folder.path(), &[], false, &plan).unwrap().0).unwrap();
    assert_same(undisturbed.path(), folder.path());
}

#[test]
fn a_request_to_stop_is_met_at_once_and_changes_nothing() {
    let plan = Plan::default();
    let undisturbed = finished(&[], &plan);
    let folder = tempfile::tempdir().unwrap();
    let mut training = start(folder.path(), recipe(&[]), &plan).unwrap();
    // At each event in turn, whatever it is.
    for stopped in 0.. {
        let mut events = 0;
        let outcome = training.run(&mut |_| {
            events += 1;
            if events == stopped % 7 + 2 { Control::Stop } else { Control::Continue }
        });
        match outcome {
            Err(Error::Cancelled) => drop(training),
            outcome => {
                outcome.unwrap();
                break;
            }
        }
        training = resume(folder.path(), &[], false, &plan).unwrap().0;
    }
    for step in 0..30 {
        // Checkpoints that only the interruptions made.
        if step % 5 != 0 {
            let _ = fs::remove_file(folder.path().join(format!("checkpoints/step-{step:08}.safetensors")));
        }
    }
    let _ = fs::remove_file(undisturbed.path().join("checkpoints/step-00000025.safetensors"));
    let _ = fs::remove_file(folder.path().join("checkpoints/step-00000025.safetensors"));
    // It may have been saved when its update was not closed yet: the weights are in the last checkpoint as well.
    for root in [undisturbed.path(), folder.path()] {
        fs::remove_file(root.join("checkpoints/best.safetensors")).unwrap();
    }
    drop(training);
    assert_same(undisturbed.path(), folder.path());
}

#[test]
fn a_finished_run_is_exported_again() {
    let plan = Plan::default();
    let folder = finished(&[], &plan);
    let model = folder.path().join("export/model.safetensors");
    let before = fs::read(&model).unwrap();
    fs::remove_file(&model).unwrap();
    to_the_end(resume(folder.path(), &[], false, &plan).unwrap().0).unwrap();
    assert!(fs::read(&model).unwrap() == before);
}

#[test]
fn a_checkpoint_cut_short_is_passed_over_for_the_one_before() {
    let plan = Plan::default();
    let undisturbed = finished(&[], &plan);
    let folder = finished(&["steps=30"], &plan);
    let last = folder.path().join("checkpoints/step-00000030.safetensors");
    let bytes = fs::read(&last).unwrap();
    for length in [0, 7, 300, bytes.len() - 1] {
        fs::write(&last, &bytes[..length]).unwrap();
        let (training, notes) = resume(folder.path(), &[], false, &plan).unwrap();
        assert_eq!(training.step(), 25);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("damaged") && notes[0].contains("step-00000030"), "{notes:?}");
        to_the_end(training).unwrap();
        let aside = folder.path().join("checkpoints/damaged-step-00000030.safetensors");
        assert_eq!(fs::read(&aside).unwrap().len(), length, "nothing is thrown away");
        fs::remove_file(aside).unwrap();
        assert_same(undisturbed.path(), folder.path());
    }
}

/// A bit that flips changes no length: only the digest of the whole file tells.
#[test]
fn a_checkpoint_with_a_flipped_bit_is_passed_over_for_the_one_before() {
    let plan = Plan::default();
    let undisturbed = finished(&[], &plan);
    let folder = finished(&[], &plan);
    let last = folder.path().join("checkpoints/step-00000030.safetensors");
    let bytes = fs::read(&last).unwrap();
    let at = |text: &str| bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    // In the header's length; in the seal, in its name, in the record; in the first, some and the last of the numbers.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let inside = (0..5).map(|part| header + part * (bytes.len() - 1 - header) / 4);
    let places = [1, at("conjure.sha256") + 4, at("conjure.sha256") + 20, at("step = 30") + 8];
    for place in places.into_iter().chain(inside) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1;
        fs::write(&last, &flipped).unwrap();
        let (training, notes) = resume(folder.path(), &[], false, &plan).unwrap();
        assert_eq!(training.step(), 25, "byte {place}");
        assert!(notes[0].contains("damaged") && notes[0].contains("step-00000030"), "{notes:?}");
        to_the_end(training).unwrap();
        fs::remove_file(folder.path().join("checkpoints/damaged-step-00000030.safetensors")).unwrap();
        assert_same(undisturbed.path(), folder.path());
    }
}

#[test]
fn with_every_checkpoint_damaged_the_run_is_refused_and_nothing_is_touched() {
    let plan = Plan::default();
    let folder = finished(&[], &plan);
    for step in [25, 30] {
        fs::write(folder.path().join(format!("checkpoints/step-{step:08}.safetensors")), b"short").unwrap();
    }
    let before = left_by(folder.path());
    let error = refusal(resume(folder.path(), &[], false, &plan));
    assert!(error.to_string().contains("no checkpoint can be read"), "{error}");
    assert!(error.to_string().contains("step-00000025") && error.help().is_some(), "{error}");
    assert!(left_by(folder.path()) == before);
}

#[test]
fn a_changed_recipe_is_refused_unless_forced_and_then_remembered() {
    let plan = Plan::default();
    let folder = finished(&["steps=10"], &plan);
    let before = left_by(folder.path());
    let error = refusal(resume(folder.path(), &["batch=8"], false, &plan));
    assert_eq!(error.to_string(), "the recipe differs from the run's: batch: 4 -> 8");
    assert!(error.help().unwrap().contains("--force") && error.exit_code() == 2);
    // An edited file counts like a flag.
    let path = folder.path().join("recipe.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("steps = 10", "steps = 12")).unwrap();
    let error = refusal(resume(folder.path(), &[], false, &plan));
    assert!(error.to_string().contains("steps: 10 -> 12"), "{error}");
    fs::write(&path, text).unwrap();
    assert!(left_by(folder.path()) == before);

    // What is only kept and shown may change.
    resume(folder.path(), &["report.every=1", "checkpoint.keep=7"], false, &plan).unwrap();
    let (training, _) = resume(folder.path(), &["steps=12"], true, &plan).unwrap();
    to_the_end(training).unwrap();
    let last = fs::read(folder.path().join("checkpoints/step-00000012.safetensors")).unwrap();
    assert!(String::from_utf8_lossy(&last).contains("steps: 10 -> 12"));
    assert!(fs::read_to_string(&path).unwrap().contains("steps = 12"));
    // From now on that is the run's recipe.
    resume(folder.path(), &[], false, &plan).unwrap();
}

#[test]
fn other_data_are_refused_unless_forced() {
    let folder = finished(&["steps=10"], &Plan::default());
    let other = Plan { data_seed: 2, ..Plan::default() };
    let error = refusal(resume(folder.path(), &["steps=12"], true, &Plan { examples: 0, ..other.clone() }));
    assert!(error.to_string().contains("nothing to train on"), "{error}");
    let error = refusal(resume(folder.path(), &[], false, &other));
    assert_eq!(error.to_string(), "the data differ from the run's: digest toy 2 instead of toy 1");
    let (training, notes) = resume(folder.path(), &["steps=12"], true, &other).unwrap();
    assert!(notes.iter().any(|note| note.contains("data differ")), "{notes:?}");
    to_the_end(training).unwrap();
}

#[test]
fn one_process_at_a_time_works_on_a_run() {
    let plan = Plan::default();
    let folder = tempfile::tempdir().unwrap();
    let training = start(folder.path(), recipe(&[]), &plan).unwrap();
    let error = refusal(resume(folder.path(), &[], false, &plan));
    assert!(error.to_string().contains("another process is training in this folder"), "{error}");
    let error = refusal(start(folder.path(), recipe(&[]), &plan));
    assert!(error.to_string().contains("is not empty") && error.help().unwrap().contains("--resume"), "{error}");
    drop(training);
    let (training, notes) = resume(folder.path(), &[], false, &plan).unwrap();
    assert_eq!((training.step(), notes.len()), (0, 1));
    let error = refusal(resume(&folder.path().join("samples"), &[], false, &plan));
    assert!(error.to_string().contains("holds no training run"), "{error}");
}

#[test]
fn what_killed_processes_left_unfinished_is_removed() {
    let plan = Plan::default();
    let folder = finished(&[], &plan);
    let before: Vec<PathBuf> = left_by(folder.path()).into_keys().collect();
    for name in ["checkpoints/step-00000035.safetensors.99.tmp", ".conjure-x.tmp", "samples/.conjure-y.tmp"] {
        fs::write(folder.path().join(name), b"half").unwrap();
    }
    drop(resume(folder.path(), &[], false, &plan).unwrap());
    assert_eq!(left_by(folder.path()).into_keys().collect::<Vec<_>>(), before);
}

/// Checkpoints of the first version told the seconds, and neither the open update nor the unfinished stretch, and had no digest.
#[test]
fn checkpoints_of_the_first_version_are_read() {
    use conjure_core::weights::{Safetensors, TensorSource as _, save};
    use conjure_core::{DType, Device};
    let plan = Plan::default();
    let undisturbed = finished(&[], &plan);
    let folder = finished(&["steps=30"], &plan);
    let path = folder.path().join("checkpoints/step-00000025.safetensors");
    let file = Safetensors::open(&path).unwrap();
    let mut metadata = file.metadata().clone();
    metadata.remove("conjure.sha256").unwrap();
    let record = metadata.get_mut("conjure.training").unwrap();
    let mut old: serde_json::Map<String, serde_json::Value> = toml::from_str(record).unwrap();
    old.remove("open").unwrap();
    old.remove("stretch").unwrap();
    old.remove("sealed").unwrap();
    old.insert("seconds".into(), 12.5.into());
    let old_recipe = old["recipe"].as_str().unwrap().replace("recompute = false\n", "");
    old.insert("recipe".into(), old_recipe.into());
    *record = serde_json::to_string(&old).unwrap();
    let tensors =
        file.infos().keys().map(|name| (name.clone(), file.load(name, DType::F32, &Device::Cpu).unwrap())).collect();
    save(&path, &tensors, &metadata).unwrap();
    drop(file);
    fs::remove_file(folder.path().join("checkpoints/step-00000030.safetensors")).unwrap();
    to_the_end(resume(folder.path(), &[], false, &plan).unwrap().0).unwrap();
    let last = |folder: &Path| fs::read(folder.join("checkpoints/step-00000030.safetensors")).unwrap();
    assert!(last(folder.path()) == last(undisturbed.path()));
}
