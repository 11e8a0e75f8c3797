//! `conjure evaluate ...`.

mod reconstruction;
mod translation;

use crate::args::{EvaluateCommand, EvaluatePicturesArgs};
use crate::evaluate_translation;
use crate::progress::Progress;
use crate::{interrupt, output, report};
use conjure::evaluate::{self, Judge, Obedience, Outcome, Settings};
use conjure::generate::image::{BestOf, Control, Pipeline, Recommended};
use conjure::image_file::{write_atomically, write_png};
use conjure::train::pictures::Pictures;
use conjure::train::recipe::Data;
use conjure::{Error, Result};
use std::process::ExitCode;

/// What is written for people and machines to look at.
const FILES: [&str; 4] = ["report.json", "prompts.txt", "samples.png", "neighbours.png"];

pub fn run(command: EvaluateCommand) -> Result<ExitCode> {
    match command {
        EvaluateCommand::Pictures(args) => pictures(&args),
        EvaluateCommand::Reconstruction(args) => reconstruction::run(&args),
        EvaluateCommand::Perplexity(args) => crate::perplexity::run(&args),
        EvaluateCommand::Translation(args) => evaluate_translation::run(&args),
        EvaluateCommand::Bleu(args) => translation::bleu(&args),
        EvaluateCommand::Dictionary(args) => translation::dictionary(&args),
    }
}

fn pictures(args: &EvaluatePicturesArgs) -> Result<ExitCode> {
    if let Some(threads) = args.machine.threads {
        conjure::set_threads(threads)?;
    }
    if args.prompts == 0 || args.languages.is_empty() {
        return Err(
            Error::request("--prompts is 0 or --languages is empty").with_help("20 prompts or more tell something")
        );
    }
    output::check_folder(&args.out, &FILES)?;
    let device = args.device.device.open()?;
    let judge = Judge::open(&args.judge, &device)?;
    let pipeline = Pipeline::open_on(&args.model, None, &device)?;
    let recommended = Recommended::read(&args.model)?;
    let best_of = BestOf::wanted(args.best_of, None, Some(&args.model), recommended.best_of, &device)?;
    let data = Data {
        file: Some(args.data.clone()),
        size: judge.size(),
        styles: args.styles.clone(),
        exclude_groups: args.exclude_groups.clone(),
        ..Data::default()
    };
    let library = Pictures::open(&data, 0)?;
    let usual = Settings::default();
    let settings = Settings {
        languages: args.languages.clone(),
        prompts: args.prompts,
        steps: args.steps.or(recommended.num_inference_steps).unwrap_or(usual.steps),
        guidance: args.guidance.or(recommended.guidance_scale).unwrap_or(usual.guidance),
        seed: args.seed,
    };
    let mut progress = Progress::new();
    progress.step(0, 1);
    let outcome =
        evaluate::picture_model(&pipeline, best_of.as_ref(), &judge, &library, &settings, &mut |done, all| {
            progress.step(done, all);
            if interrupt::requested() { Control::Stop } else { Control::Continue }
        })?;
    write(args, &outcome)?;
    outcome.notes.iter().for_each(|line| report::note(line));
    let text = serde_json::to_string_pretty(&outcome.report).map_err(|e| Error::failure(e.to_string()))?;
    report::result(&if args.machine.json { text } else { readable(&outcome) })?;
    Ok(ExitCode::SUCCESS)
}

fn write(args: &EvaluatePicturesArgs, outcome: &Outcome) -> Result<()> {
    let text = serde_json::to_string_pretty(&outcome.report).map_err(|e| Error::failure(e.to_string()))?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let [report, prompts, samples, neighbours] = FILES.map(|name| args.out.join(name));
    write_atomically(&report, |file| writeln!(file, "{text}"))?;
    write_atomically(&prompts, |file| outcome.prompts.iter().try_for_each(|prompt| writeln!(file, "{prompt}")))?;
    write_png(&samples, &outcome.sheet, None)?;
    write_png(&neighbours, &outcome.neighbours, None)
}

fn readable(outcome: &Outcome) -> String {
    let line = |name: &str, o: &Obedience| {
        format!(
            "{name:<24} {:>3} prompts: {:>3.0} % recognised (top 5), {:>3.0} % first, style {:>3.0} %",
            o.prompts,
            100.0 * o.recognised,
            100.0 * o.recognised_first,
            100.0 * o.style
        )
    };
    let report = &outcome.report;
    let mut lines: Vec<String> = report.languages.iter().map(|(language, o)| line(language, o)).collect();
    lines.extend(report.held_out_combinations.iter().map(|o| line("held-out combinations", o)));
    lines.push(line("the real pictures", &report.real));
    lines.push(line("through the autoencoder", &report.reconstructed));
    if let (Some(mine), Some(floor)) = (&report.kernel_distance, &report.kernel_distance_floor) {
        lines.push(format!(
            "kernel distance to held-out pictures {:.4} +- {:.4}; of real pictures {:.4} +- {:.4}",
            mine.value, mine.deviation, floor.value, floor.deviation
        ));
    }
    lines.push(format!(
        "nearly copies (SSIM {} or more to a training picture): {:.0} %; of held-out pictures {:.0} %",
        evaluate::COPY,
        100.0 * report.memorisation.copies,
        100.0 * report.memorisation_floor.copies
    ));
    lines.push(format!("{:.2} s for a picture (median)", report.seconds));
    lines.join("\n")
}
