//! Between a request and the recipe that a picture carries.

use super::best_of::Choice;
use super::job::Job;
use super::request::ImageRequest;
use crate::image_file::Recipe;
use crate::image_file::recipe::{FORMAT, Input, Model};
use conjure_core::sampling::Plan;
use conjure_core::{DeviceName, Error, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};

impl Job<'_> {
    /// How to make the first picture of this job's batch again; the others differ in their `index`. Everything that was left to the model or to chance is
    /// named, so that neither a changed default nor a changed config changes the picture.
    pub fn recipe(&self, plan: &Plan, upscaler: Option<&str>) -> Result<Recipe> {
        let request = self.request;
        let mut settings = Map::new();
        settings.insert("eta".into(), json!(request.eta));
        settings.insert("clip-skip".into(), json!(request.clip_skip));
        settings.insert("tiled".into(), json!(request.tiled));
        if let (Some(factor), Some(digest)) = (request.upscale, upscaler) {
            settings.insert("upscale".into(), json!(factor));
            settings.insert("upscaler".into(), json!(digest));
        }
        if let Some(Choice { of, candidate, judge }) = &request.chosen {
            settings.insert("best-of".into(), json!(of));
            settings.insert("candidate".into(), json!(candidate));
            settings.insert("judge".into(), json!(judge));
        }
        let device = self.pipeline.model.device();
        if !device.is_cpu() {
            settings.insert("device".into(), json!(DeviceName::of(device).to_string()));
        }
        Ok(Recipe {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            command: "image".into(),
            model: Model {
                path: self.pipeline.path.clone(),
                digest: self.pipeline.digest()?.to_owned(),
                tokenizer: self.pipeline.tokenizer_path.as_deref().map(display),
            },
            prompt: request.prompt.clone(),
            negative: request.negative.clone(),
            steps: request.steps,
            sampler: plan.sampler().name().into(),
            schedule: plan.schedule().name().into(),
            guidance: request.guidance,
            guidance_rescale: request.guidance_rescale,
            seed: self.seed,
            rng: request.rng.name().into(),
            width: self.inputs.width,
            height: self.inputs.height,
            batch: request.batch,
            index: 0,
            init: input(request.init.as_deref())?,
            strength: request.init.as_ref().map(|_| request.strength()),
            mask: input(request.mask.as_deref())?,
            noise: input(request.noise.as_deref())?,
            loras: self.pipeline.adapters.loras.clone(),
            embeddings: self.pipeline.adapters.embeddings.clone(),
            strip: None,
            settings,
            picture: String::new(),
        })
    }
}

impl ImageRequest {
    /// The request that makes the recipe's batch again, with the recipe's [`super::Adapters`] on its model.
    ///
    /// # Errors
    /// Another command's recipe, a name or a setting that this version does not know, a file that is missing or has changed.
    pub fn from_recipe(recipe: &Recipe) -> Result<Self> {
        if recipe.command != "image" {
            return Err(Error::request(format!("the recipe is for the command {:?}, not image", recipe.command)));
        }
        let mut request = Self {
            prompt: recipe.prompt.clone(),
            negative: recipe.negative.clone(),
            steps: recipe.steps,
            sampler: Some(recipe.sampler.parse()?),
            schedule: Some(recipe.schedule.parse()?),
            guidance: recipe.guidance,
            guidance_rescale: recipe.guidance_rescale,
            seed: Some(recipe.seed),
            rng: recipe.rng.parse()?,
            width: Some(recipe.width),
            height: Some(recipe.height),
            batch: recipe.batch,
            init: unchanged(recipe.init.as_ref())?,
            strength: recipe.strength,
            mask: unchanged(recipe.mask.as_ref())?,
            noise: unchanged(recipe.noise.as_ref())?,
            ..Self::default()
        };
        let mut chosen = Choice { of: 0, candidate: 0, judge: String::new() };
        for (name, value) in &recipe.settings {
            match (name.as_str(), value, value.as_f64(), value.as_u64()) {
                ("eta", _, Some(eta), _) => request.eta = eta,
                ("clip-skip", _, _, Some(layers)) => request.clip_skip = layers as usize,
                ("tiled", Value::Bool(tiled), ..) => request.tiled = *tiled,
                ("upscale", _, _, Some(factor)) => request.upscale = Some(factor as usize),
                ("upscaler", Value::String(digest), ..) => request.upscaler = Some(digest.clone()),
                ("best-of", _, _, Some(count)) => chosen.of = count as usize,
                ("candidate", _, _, Some(candidate)) => chosen.candidate = candidate as usize,
                ("judge", Value::String(digest), ..) => chosen.judge = digest.clone(),
                // Where it was computed rounds the picture, and does not choose it.
                ("device", Value::String(_), ..) => {}
                _ => {
                    let message =
                        format!("the recipe has the setting {name} = {value}, which this version does not know");
                    return Err(Error::request(message).with_help(format!("use Conjure {} or later", recipe.version)));
                }
            }
        }
        request.chosen = (chosen.of > 0).then_some(chosen);
        request.validate()?;
        if recipe.index >= recipe.batch {
            let message = format!("the recipe is for picture {} of {}", recipe.index + 1, recipe.batch);
            return Err(Error::request(message).with_help("the recipe was changed or damaged"));
        }
        Ok(request)
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn input(path: Option<&Path>) -> Result<Option<Input>> {
    path.map(|path| Ok(Input { path: display(path), sha256: sha256(path)? })).transpose()
}

fn sha256(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(crate::digest::hex(&Sha256::digest(bytes)))
}

/// The file, if it is still the one that the picture was made from.
pub(super) fn unchanged(input: Option<&Input>) -> Result<Option<PathBuf>> {
    let Some(input) = input else { return Ok(None) };
    let path = PathBuf::from(&input.path);
    if !path.is_file() {
        return Err(Error::file(&path, "is missing, and the picture was made from it")
            .with_help("put the file back, and run replay in the folder where the picture was made"));
    }
    if sha256(&path)? != input.sha256 {
        return Err(Error::file(&path, "is not the file that the picture was made from")
            .with_help(format!("the picture needs the file with SHA-256 {}", input.sha256)));
    }
    Ok(Some(path))
}
