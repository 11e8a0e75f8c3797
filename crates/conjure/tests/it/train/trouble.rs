//! What a run does about losses that fail, data that cannot be read, and wishes that cannot be met.

use super::*;
use serde_json::Value;

fn failing(changes: &[&str], plan: &Plan) -> (tempfile::TempDir, Error) {
    let folder = tempfile::tempdir().unwrap();
    let error = refusal(to_the_end(start(folder.path(), recipe(changes), plan).unwrap()));
    (folder, error)
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_with_step_batch_and_state_saved() {
    let plan = Plan { nan_at: Some(17), ..Plan::default() };
    let (folder, error) = failing(&["checkpoint.every=1", "checkpoint.keep=99"], &plan);
    assert!(error.to_string().starts_with("update 17: the loss of model is NaN"), "{error}");
    assert!(error.help().unwrap().contains("failed-00000017.json"), "{error}");
    assert_eq!(error.exit_code(), 1);
    let kept = folder.path().join("checkpoints");
    let account: Value = serde_json::from_slice(&fs::read(kept.join("failed-00000017.json")).unwrap()).unwrap();
    assert_eq!(account["step"], 17);
    // Two micro-batches of four.
    let batch = account["batch"].as_array().unwrap();
    assert_eq!(batch.len(), 8);
    let index = batch[0]["index"].as_u64().unwrap();
    assert_eq!(batch[0]["what"], format!("row {index}"));
    let state = |name: &str| fs::read(kept.join(name)).unwrap();
    assert!(state("failed-00000017.safetensors") == state("step-00000017.safetensors"));
    // The run goes on when the cause is gone, and ends as if there had been none.
    let well = Plan::default();
    to_the_end(resume(folder.path(), &[], false, &well).unwrap().0).unwrap();
    let undisturbed = finished(&["checkpoint.every=1", "checkpoint.keep=99"], &well);
    for name in ["failed-00000017.json", "failed-00000017.safetensors"] {
        fs::remove_file(kept.join(name)).unwrap();
    }
    assert_same(undisturbed.path(), folder.path());
}

#[test]
fn an_exploding_loss_stops_the_run() {
    let plan = Plan { explode_at: Some(120), ..Plan::default() };
    let (folder, error) = failing(&["steps=130"], &plan);
    assert!(error.to_string().starts_with("update 120: the loss of model exploded"), "{error}");
    assert!(folder.path().join("checkpoints/failed-00000120.safetensors").is_file());
}

#[test]
fn a_network_that_joins_late_has_not_exploded() {
    let plan = Plan { critic_from: 120, ..Plan::default() };
    let folder = finished(&["steps=125", "report.every=125"], &plan);
    let log = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    assert!(log.contains("\"critic\":"), "{log}");
}

#[test]
fn data_that_cannot_be_read_stop_the_run_with_the_state_saved() {
    let plan = Plan { unreadable_at: Some(13), ..Plan::default() };
    let (folder, error) = failing(&[], &plan);
    assert_eq!(error.to_string(), "example 7 cannot be read");
    assert!(folder.path().join("checkpoints/step-00000013.safetensors").is_file());
    to_the_end(resume(folder.path(), &[], false, &Plan::default()).unwrap().0).unwrap();
    assert_same(finished(&[], &Plan::default()).path(), folder.path());
}

/// The state is saved with the weights, not with the averages that the validation looked at; the validation is made up for.
#[test]
fn a_validation_that_fails_loses_nothing() {
    let (folder, error) = failing(&[], &Plan { blind: true, ..Plan::default() });
    assert_eq!(error.to_string(), "the held-out data cannot be read");
    to_the_end(resume(folder.path(), &[], false, &Plan::default()).unwrap().0).unwrap();
    let undisturbed = finished(&[], &Plan::default());
    let log = |folder: &Path| without_timings(&fs::read(folder.join("metrics.jsonl")).unwrap());
    assert!(log(undisturbed.path()) == log(folder.path()));
    let last = |folder: &Path| fs::read(folder.join("checkpoints/step-00000030.safetensors")).unwrap();
    assert!(last(undisturbed.path()) == last(folder.path()));
}

#[test]
fn an_unknown_figure_to_choose_the_best_by_is_named() {
    let (folder, error) = failing(&["checkpoint.best=\"psnr\""], &Plan::default());
    assert_eq!(error.to_string(), "checkpoint.best: the validation gives no figure psnr");
    assert!(error.help().unwrap().contains("error"), "{error}");
    to_the_end(resume(folder.path(), &["checkpoint.best=\"-error\""], false, &Plan::default()).unwrap().0).unwrap();
    assert!(folder.path().join("checkpoints/best.safetensors").is_file());
}

/// As with a folder of the user's own pictures, in a recipe that keeps the best.
#[test]
fn without_held_out_data_a_run_says_that_it_keeps_no_best_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { all_trained: true, ..Plan::default() };
    let mut told = Vec::new();
    start(folder.path(), recipe(&["checkpoint.best=\"-psnr\""]), &plan)
        .unwrap()
        .run(&mut |event| {
            if let Event::Warning(warning) = event {
                told.push(warning);
            }
            Control::Continue
        })
        .unwrap();
    assert_eq!(told, ["no data are held out, so there is no psnr by which to keep the best state"]);
    assert!(folder.path().join("export").is_dir() && !folder.path().join("checkpoints/best.safetensors").exists());
}

#[test]
fn an_empty_data_set_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("run");
    let error = refusal(start(&inner, recipe(&[]), &Plan { examples: 0, ..Plan::default() }));
    assert!(error.to_string().contains("no training example") && error.exit_code() == 2, "{error}");
    assert!(!inner.exists());
}

#[test]
fn an_unknown_objective_is_refused_with_those_that_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let error = refusal(Training::start(recipe(&[]), &folder.path().join("run")));
    assert_eq!(error.to_string(), "unknown objective \"toy\"");
    assert!(error.help().is_some());
}

/// The critic's loss depends on the model, and the model must not follow it.
#[test]
fn a_network_follows_its_own_loss_only() {
    let exported = |critic_from: u64| {
        let folder = finished(&[], &Plan { critic_from, ..Plan::default() });
        fs::read(folder.path().join("export/model.safetensors")).unwrap()
    };
    assert!(exported(0) == exported(u64::MAX));
}

/// Two micro-batches of four are one of eight: the gradients' average is the same but for the order of its sums.
#[test]
fn accumulated_gradients_are_those_of_the_larger_batch() {
    let weights = |changes: &[&str]| {
        let plan = Plan { noise: false, critic_from: u64::MAX, ..Plan::default() };
        let folder = finished(changes, &plan);
        let path = folder.path().join("export/model.safetensors");
        let file = conjure_core::weights::Safetensors::open(&path).unwrap();
        use conjure_core::weights::TensorSource as _;
        let tensor = file.load("model.a", conjure_core::DType::F32, &conjure_core::Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (small, large) = (weights(&["batch=4", "accumulate=2"]), weights(&["batch=8", "accumulate=1"]));
    let other = weights(&["batch=8", "accumulate=2"]);
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance(&small, &large) < 1e-5, "{}", distance(&small, &large));
    assert!(distance(&small, &other) > 1e-3, "{}", distance(&small, &other));
}

/// Micro-batches at the same time give what they give one after the other, also where the last group is short.
#[test]
fn parallel_micro_batches_give_the_same_bits() {
    let checkpoints = |parallel: usize| {
        let folder = finished(&["accumulate=5", &format!("parallel={parallel}")], &Plan::default());
        let exported = fs::read(folder.path().join("export/model.safetensors")).unwrap();
        let log = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        let figures: Vec<[Value; 3]> =
            log.lines().map(|text| ["step", "figures", "validation"].map(|entry| line(text)[entry].clone())).collect();
        (exported, figures)
    };
    let serial = checkpoints(1);
    assert!(serial.1.len() > 1);
    for parallel in [2, 3, 5] {
        assert!(checkpoints(parallel) == serial, "parallel = {parallel}");
    }
    let error =
        Recipe::parse("objective = \"toy\"\nsteps = 1\nbatch = 1\naccumulate = 2\nparallel = 3", &[]).unwrap_err();
    assert_eq!(error.to_string(), "parallel is 3, not 1 to accumulate, which is 2");
}

#[test]
fn a_loss_for_a_network_that_there_is_not_is_an_error() {
    use conjure::train::{Batch, Losses, Network, Objective};
    struct Stray(Toy);
    impl Objective for Stray {
        fn networks(&self) -> &[Network] {
            self.0.networks()
        }
        fn examples(&self) -> usize {
            1
        }
        fn data_digest(&self) -> String {
            String::new()
        }
        fn losses(&self, batch: &Batch) -> Result<Losses> {
            let mut losses = self.0.losses(batch)?;
            losses.terms[0].0 = 5;
            Ok(losses)
        }
        fn export(&mut self, _: &Path) -> Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&[]);
    let stray = Stray(Toy::new(&recipe, &Plan::default()));
    let training = Training::with_objective(recipe, Box::new(stray), folder.path()).unwrap();
    assert!(refusal(to_the_end(training)).to_string().contains("network 5"));
}

#[test]
fn losses_are_computed_in_the_recipes_precision_and_validations_in_f32() {
    for (precision, expected) in [("f32", "0.0"), ("bf16", "1.0")] {
        let folder = finished(&[&format!("precision={precision}")], &Plan::default());
        let log = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        for line in log.lines() {
            let wanted = if line.contains("validation") { "0.0" } else { expected };
            assert!(line.contains(&format!("\"bf16\":{wanted}")), "{line}");
        }
    }
}
