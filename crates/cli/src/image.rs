//! `conjure image`: request, checks, work, files, report.

use crate::args::{ImageArgs, MachineArgs, ModelArgs, StripArg};
use crate::output::{self, Targets};
use crate::progress::Progress;
use crate::{cache, interrupt, preview, report};
use conjure::generate::image::{
    self, Adapters, BestOf, Chosen, Control, Event, Generation, ImageRequest, Pipeline, Recommended, Strip,
};
use conjure::image_file;
use conjure::tokens::clip_vocabulary;
use conjure::{Device, Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

pub fn run(args: ImageArgs) -> Result<ExitCode> {
    let began = Instant::now();
    let seed = args.seed.unwrap_or_else(image::random_seed);
    let folder = match &args.model.model {
        Some(path) if is_built_in(path) => None,
        Some(path) => Some(path.clone()),
        None => image::find(image::DEFAULT_MODEL)?,
    };
    let recommended = folder.as_deref().map(Recommended::read).transpose()?.unwrap_or_default();
    let request = request(&args, seed, &recommended)?;
    request.validate()?;
    let adapters = Adapters { loras: args.loras.clone(), embeddings: args.embeddings.clone() };
    adapters.validate()?;
    let targets = Targets::choose(args.output.as_deref(), seed, request.batch)?;
    if request.strip.is_some() {
        output::check_writable(&targets.strip)?;
    }
    if let Some(path) = &args.save_latents {
        output::check_writable(path)?;
    }
    set_threads(&args.machine)?;

    let device = args.device.device.open()?;
    // What names one picture, or asks for several, is not chosen from others unless that is asked for.
    let chosen = args.seed.is_some() || args.noise.is_some() || args.batch != 1 || args.strip.is_some();
    let recommended_of = recommended.best_of.filter(|_| !chosen && !args.prompt.trim().is_empty());
    let best_of = BestOf::wanted(args.best_of, args.judge.as_deref(), folder.as_deref(), recommended_of, &device)?;
    best_of.as_ref().map_or(Ok(()), |best_of| best_of.check(&request))?;
    let pipeline = open(&args.model, &device)?.with_adapters(&adapters)?;
    report::note(&format!("seed {seed}"));
    let (generation, chosen) = match &best_of {
        Some(best_of) => {
            let Chosen { generation, candidate, scores } =
                with_progress(|on_event| pipeline.generate_best(&request, best_of, on_event))?;
            report::note(&verdict(candidate, &scores));
            (generation, Some((candidate, scores)))
        }
        None => (generate(&pipeline, &request)?, None),
    };

    let latents = args.save_latents.as_deref();
    write(&generation, &targets, latents)?;
    tell(&generation, &targets, latents, chosen, args.machine.json.then(|| began.elapsed().as_secs_f64()))?;
    Ok(ExitCode::SUCCESS)
}

fn request(args: &ImageArgs, seed: u64, recommended: &Recommended) -> Result<ImageRequest> {
    let usual = ImageRequest::default();
    Ok(ImageRequest {
        prompt: args.prompt.clone(),
        negative: args.negative.clone(),
        steps: args.steps.or(recommended.num_inference_steps).unwrap_or(usual.steps),
        sampler: args.sampler.as_deref().map(str::parse).transpose()?,
        schedule: args.schedule.as_deref().map(str::parse).transpose()?,
        guidance: args.guidance.or(recommended.guidance_scale).unwrap_or(usual.guidance),
        guidance_rescale: args.guidance_rescale,
        eta: args.eta,
        clip_skip: args.clip_skip,
        seed: Some(seed),
        rng: args.rng.parse()?,
        width: args.width,
        height: args.height,
        batch: args.batch,
        init: args.init.clone(),
        strength: args.strength,
        mask: args.mask.clone(),
        noise: args.noise.clone(),
        strip: args.strip.map(|strip| match strip {
            StripArg::Steps => Strip::Steps,
            StripArg::Runs => Strip::Runs,
        }),
        preview: args.preview && preview::possible(),
        tiled: args.tiled,
        upscale: args.upscale.or(recommended.upscale).filter(|factor| *factor != 1),
        upscaler: None,
        chosen: None,
    })
}

/// Makes the threads that kernels run on.
pub fn set_threads(machine: &MachineArgs) -> Result<()> {
    machine.threads.map_or(Ok(()), conjure::set_threads)
}

/// Whether `--model` names the untrained model inside the program, as recipes do.
pub fn is_built_in(path: &Path) -> bool {
    path.as_os_str() == image::BUILT_IN
}

/// Opens the model that is asked for, else the one that comes with Conjure, else makes the built-in one and says what that
/// is.
pub fn open(model: &ModelArgs, device: &Device) -> Result<Pipeline> {
    match &model.model {
        Some(path) if is_built_in(path) => {
            if model.tokenizer.is_some() {
                return Err(
                    Error::request("the built-in model has a tokenizer of its own").with_help("leave out --tokenizer")
                );
            }
            report::note("the built-in model is untrained: its pictures are noise; --model PATH takes a trained one");
            Pipeline::tiny_on(0, device)
        }
        Some(path) => Pipeline::open_on(path, tokenizer(path, model.tokenizer.as_deref())?.as_deref(), device),
        None => {
            if model.tokenizer.is_some() {
                return Err(Error::request("a tokenizer without a model").with_help("add --model FILE"));
            }
            if image::find(image::DEFAULT_MODEL)?.is_some() {
                return Pipeline::shipped(image::DEFAULT_MODEL, device);
            }
            report::note(
                "no --model given, and no folder models/ found: using the built-in untrained model; its pictures are noise",
            );
            report::note(
                "  --model takes a diffusers folder or a single-file checkpoint of Stable Diffusion 1, 2 or XL",
            );
            Pipeline::tiny_on(0, device)
        }
    }
}

/// The tokenizer that is named; for a single file else the one that was fetched before.
pub fn tokenizer(model: &Path, named: Option<&Path>) -> Result<Option<PathBuf>> {
    if named.is_some() || !model.is_file() {
        return Ok(named.map(Path::to_path_buf));
    }
    let cache = cache::folder()?;
    Ok(clip_vocabulary::cached(&cache)?.map(|_| clip_vocabulary::folder(&cache)))
}

/// Runs the request with a progress display, until it is done or the user stops it.
pub fn generate(pipeline: &Pipeline, request: &ImageRequest) -> Result<Generation> {
    with_progress(|on_event| pipeline.generate(request, on_event))
}

fn with_progress<T>(work: impl FnOnce(&mut dyn FnMut(Event) -> Control) -> Result<T>) -> Result<T> {
    let mut progress = Progress::new();
    let outcome = work(&mut |event| {
        match event {
            Event::Candidate { candidate, of } => progress.doing(&format!("candidate {} of {of}", candidate + 1)),
            Event::Step { step, steps } => progress.step(step, steps),
            Event::Preview(picture) => progress.suspend(|| preview::show(&picture)),
            Event::Stage(what) => progress.doing(what),
        }
        if interrupt::requested() { Control::Stop } else { Control::Continue }
    });
    progress.finish();
    outcome
}

/// Which candidate is kept, and how all were judged.
fn verdict(candidate: usize, scores: &[f32]) -> String {
    let scores: Vec<String> = scores.iter().map(|score| format!("{score:.3}")).collect();
    format!("candidate {} of {} fits best: {}", candidate + 1, scores.len(), scores.join(", "))
}

fn write(generation: &Generation, targets: &Targets, latents: Option<&Path>) -> Result<()> {
    for (output, path) in generation.outputs.iter().zip(&targets.pictures) {
        image_file::write_png(path, &output.picture, Some(&output.recipe))?;
    }
    if let Some(strip) = &generation.strip {
        image_file::write_png(&targets.strip, strip, None)?;
    }
    latents.map_or(Ok(()), |path| generation.save_latents(path))
}

fn tell(
    generation: &Generation,
    targets: &Targets,
    latents: Option<&Path>,
    chosen: Option<(usize, Vec<f32>)>,
    seconds_in_json: Option<f64>,
) -> Result<()> {
    let strip = generation.strip.as_ref().map(|_| &targets.strip);
    if let Some(seconds) = seconds_in_json {
        let recipe = generation.outputs.first().map(|output| &output.recipe);
        let mut value = json!({
            "pictures": targets.pictures,
            "strip": strip,
            "latents": latents,
            "recipe": recipe,
            "seconds": seconds,
        });
        if let Some((candidate, scores)) = chosen {
            value["candidate"] = json!(candidate);
            value["scores"] = json!(scores);
        }
        return report::result(&value.to_string());
    }
    let written: Vec<PathBuf> = targets.pictures.iter().chain(strip).cloned().chain(latents.map(Into::into)).collect();
    written.iter().try_for_each(|path| report::result(&path.display().to_string()))
}
