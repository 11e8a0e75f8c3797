//! `conjure replay`: the picture again, and how far it is from the first.

use crate::args::{ModelArgs, ReplayArgs};
use crate::{image, output, report};
use conjure::generate::image::{Adapters, BUILT_IN, Difference, ImageRequest, Pipeline, SHIPPED};
use conjure::image_file::{self, Picture, Recipe};
use conjure::{Device, DeviceName, Error, Result};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

pub fn run(args: ReplayArgs) -> Result<ExitCode> {
    if !args.file.is_file() {
        return Err(Error::file(&args.file, "there is no such file").with_help("name a PNG that conjure image wrote"));
    }
    let recipe = image_file::read_recipe(&args.file)?;
    let before = Picture::read(&args.file)?;
    let request = ImageRequest::from_recipe(&recipe)?;
    let adapters = Adapters::from_recipe(&recipe)?;
    if let Some(path) = &args.output {
        output::check_writable(path)?;
    }
    image::set_threads(&args.machine)?;
    let device = args.device.device.open()?;
    tell_other_device(&recipe, args.device.device);

    let pipeline = open(&args.model, &recipe, &device)?.with_adapters(&adapters)?;
    let digest = pipeline.digest()?;
    let same_model = digest == recipe.model.digest;
    if !same_model {
        report::note(&format!(
            "note: the model's digest is {digest}, the picture was made with {}: expect another picture",
            recipe.model.digest
        ));
    }
    let generation = image::generate(&pipeline, &request)?;
    let again = generation
        .outputs
        .get(recipe.index)
        .ok_or_else(|| Error::failure("the replay made fewer pictures than the recipe says"))?;
    if let Some(path) = &args.output {
        image_file::write_png(path, &again.picture, Some(&again.recipe))?;
    }
    let difference = Difference::between(&before, &again.picture);
    if args.machine.json {
        let mut value = json!({ "file": args.file, "same_model": same_model, "output": args.output });
        if let (Some(object), Some(serde_json::Value::Object(more))) =
            (value.as_object_mut(), difference.map(|difference| json!(difference)))
        {
            object.extend(more);
        }
        report::result(&value.to_string())?;
    } else {
        report::result(&sentence(difference))?;
    }
    Ok(if difference.is_some_and(|difference| difference.identical) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The model that is named, or else the recipe's.
fn open(model: &ModelArgs, recipe: &Recipe, device: &Device) -> Result<Pipeline> {
    if let (None, Some(name)) = (&model.model, recipe.model.path.strip_prefix(SHIPPED)) {
        return Pipeline::shipped(name, device);
    }
    let built_in = match &model.model {
        Some(path) => image::is_built_in(path),
        // The longer name is that of earlier versions.
        None => [BUILT_IN, "built-in tiny"].contains(&recipe.model.path.as_str()),
    };
    if built_in {
        return Pipeline::tiny_on(0, device);
    }
    let path = model.model.clone().unwrap_or_else(|| PathBuf::from(&recipe.model.path));
    if !path.exists() {
        return Err(Error::file(&path, "the picture's model is not there").with_help("name it with --model PATH"));
    }
    let named = model.tokenizer.clone().or_else(|| recipe.model.tokenizer.as_ref().map(PathBuf::from));
    Pipeline::open_on(&path, image::tokenizer(&path, named.as_deref())?.as_deref(), device)
}

/// Sums are rounded otherwise on a GPU: a picture of another device is not made again bit for bit.
fn tell_other_device(recipe: &Recipe, here: DeviceName) {
    let there = recipe.settings.get("device").and_then(|name| name.as_str()).unwrap_or("cpu");
    let kind = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    if kind(there) != kind(&here.to_string()) {
        report::note(&format!(
            "note: the picture was made on {there} and is made again on {here}: expect small differences"
        ));
    }
}

fn sentence(difference: Option<Difference>) -> String {
    match difference {
        None => "different: the file's picture has another size than its recipe says".to_owned(),
        Some(Difference { identical: true, .. }) => "identical".to_owned(),
        Some(Difference { max_difference, share, psnr, .. }) => format!(
            "different: by up to {max_difference} of 255 in {:.1} % of all values, PSNR {:.1} dB",
            100.0 * share,
            psnr.unwrap_or(f64::INFINITY)
        ),
    }
}
