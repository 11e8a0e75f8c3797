//! What a model is, what it needs, and what is wrong with it; no memory is taken for its weights.

use crate::evaluate::fit::{self, IMAGE_ENCODER, NAMES, has_image_encoder};
use crate::generate::image::Recommended;
use crate::generate::image::open::{Opened, open_tokenizers};
use crate::generate::translate::SequenceModel;
use crate::model_folder;
use conjure_core::weights::{self, Fit, ParameterSpec, Params, TensorSource};
use conjure_core::{Error, Result};
use conjure_models::decoder::{self, DecoderConfig, ModelType};
use conjure_models::image_classifier::{ImageClassifier, ImageClassifierConfig};
use conjure_models::stable_diffusion::StableDiffusion;
use conjure_models::super_resolution::{SuperResolution, SuperResolutionConfig};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names shown of a longer list.
const SHOWN: usize = 8;
/// The file that diffusers, and we, save a picture model's LoRA as.
const LORA_FILE: &str = "pytorch_lora_weights.safetensors";

/// An explanation of a model, for people ([`fmt::Display`]) and machines ([`Serialize`]).
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The file or folder.
    pub path: PathBuf,
    /// What it is.
    pub family: String,
    /// The scheduler that its config names.
    pub scheduler: Option<String>,
    /// What the U-Net predicts: `epsilon`, `v_prediction` or `sample`.
    pub prediction_type: Option<String>,
    /// Whether it repaints masked parts of pictures.
    pub inpainting: bool,
    /// Its parts; a single one for a file that holds no whole model.
    pub components: Vec<Component>,
    /// What a picture model's folder recommends for its use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended: Option<Recommended>,
    /// What else is to be said: of a GGUF file name, architecture, context, tokenizer and tensors by format; of what only
    /// changes a model, how it is used.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<&'static str, String>,
    /// Elements of all weights.
    pub parameters: usize,
    /// Bytes of all weights as they are stored.
    pub stored_bytes: usize,
    /// Bytes of memory that all weights take when loaded: as f32, or those of a GGUF file as they are stored.
    pub memory_bytes: usize,
    /// Why it cannot be used; empty if it can.
    pub problems: Vec<String>,
}

/// A part of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Component {
    /// Its folder's name in diffusers' layout.
    pub name: String,
    /// What its tensors' names say it is.
    pub family: Option<String>,
    /// How most weights are stored: an element type, or a quantised format of GGUF.
    pub precision: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Elements of all its weights.
    pub parameters: usize,
    /// Bytes as stored.
    pub stored_bytes: usize,
    /// Tensors that the model asks for and the file lacks.
    pub missing: Vec<String>,
    /// Tensors that the file has and the model does not ask for; they are ignored.
    pub unexpected: Vec<String>,
    /// Tensors of another shape than the model asks for, with both shapes.
    pub misshapen: Vec<String>,
    /// The likely reason why the tensors do not fit.
    pub cause: Option<String>,
}

impl Component {
    fn new(name: &str, source: &dyn TensorSource, fit: Fit) -> Self {
        let description = weights::describe(source);
        let misshapen = fit
            .misshapen
            .iter()
            .map(|m| format!("{} is {:?}, not {:?}", m.name, m.stored.dims(), m.asked.dims()))
            .collect();
        Self {
            name: name.to_owned(),
            family: description.family,
            precision: description.precisions.first().map_or("none", |&(precision, _)| precision).to_owned(),
            tensors: description.tensors,
            parameters: description.parameters,
            stored_bytes: description.stored_bytes,
            missing: fit.missing,
            unexpected: fit.unexpected,
            misshapen,
            cause: fit.cause,
        }
    }
}

impl Inspection {
    /// Looks at a diffusers folder, a single-file checkpoint, a text model, another network that `conjure train` exports, what
    /// changes a model (a LoRA, learned tokens), or the weights of one component.
    ///
    /// # Errors
    /// Nothing there, a damaged file, a folder that is no model.
    pub fn new(path: &Path) -> Result<Self> {
        let lora = path.join(LORA_FILE);
        let is_model = ["config.json", "model_index.json"].iter().any(|name| path.join(name).exists());
        if lora.is_file() && !is_model {
            return Self::new(&lora);
        }
        let opened = match Opened::new(path) {
            Ok(opened) => opened,
            // Not a whole model: the weights may still say what they are.
            Err(error) => match weights::open(path) {
                Ok(source) if source.gguf().is_some() => return Ok(Self::language_model(path, source.as_ref())),
                Ok(source) => {
                    let whole = Self::transformers_folder(path, &source)?;
                    return Ok(whole.unwrap_or_else(|| Self::part(path, source.as_ref(), &error)));
                }
                Err(_) => return Err(error),
            },
        };
        let Opened { config, sources } = &opened;
        let mut components = Vec::new();
        for (name, asked) in StableDiffusion::outline(config)? {
            if let Some(source) = sources.get(name) {
                components.push(Component::new(name, source.as_ref(), weights::check(&asked, source.as_ref())));
            }
        }
        let mut problems: Vec<String> = components.iter().filter_map(problem).collect();
        let mut recommended = None;
        if path.is_dir() {
            if has_image_encoder(path) {
                match judge(path) {
                    Ok(component) => {
                        problems.extend(problem(&component));
                        components.push(component);
                    }
                    Err(error) => problems.push(with_help(&error)),
                }
            }
            match Recommended::read(path) {
                Ok(read) => recommended = Some(read).filter(|read| *read != Recommended::default()),
                Err(error) => problems.push(with_help(&error)),
            }
            problems.extend(open_tokenizers(path, None, config).err().map(|error| with_help(&error)));
        }
        let text = |key: &str| config.scheduler.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            path: path.to_path_buf(),
            recommended,
            family: config.family().name().to_owned(),
            scheduler: text("_class_name"),
            prediction_type: Some(text("prediction_type").unwrap_or_else(|| "epsilon".to_owned())),
            inpainting: config.is_inpainting(),
            problems,
            ..Self::sum(components)
        })
    }

    /// A GGUF file: whole as it is, if its architecture is one that can be run.
    fn language_model(path: &Path, source: &dyn TensorSource) -> Self {
        let components = vec![Component::new("weights", source, Fit::default())];
        let family = components[0].family.clone().unwrap_or_default();
        let details = weights::describe(source).details.into_iter().collect();
        let problems = match DecoderConfig::from_gguf(source) {
            Ok(_) => Vec::new(),
            Err(error) => vec![with_help(&error)],
        };
        let sum = Self::sum(components);
        let memory_bytes = sum.stored_bytes;
        Self { path: path.to_path_buf(), family, details, problems, memory_bytes, ..sum }
    }

    /// A folder with a `config.json`, as transformers and we save what is no whole picture model; nothing if it says something
    /// else.
    fn transformers_folder(path: &Path, source: &Arc<dyn TensorSource>) -> Result<Option<Self>> {
        let Some(text) = model_folder::read_text(&path.join("config.json"))? else { return Ok(None) };
        let config = serde_json::from_str::<Value>(&text).unwrap_or_default();
        let Some(kind) = config["model_type"].as_str().or_else(|| config["_class_name"].as_str()) else {
            return Ok(None);
        };
        let fits = |asked: Vec<ParameterSpec>| weights::check(&asked, source.as_ref());
        let params = Params::outline();
        let (what, fit) = match kind {
            kind if ModelType::named(kind).is_some() => {
                let config = DecoderConfig::from_json(&text)?;
                let source = decoder::canonical(source.clone(), &config)?;
                ("language model", weights::check(&decoder::asked(&config)?, source.as_ref()))
            }
            "bert" | "roberta" | "xlm-roberta" => ("encoder of texts", Fit::default()),
            "marian" | "t5" | "mt5" => ("translator of texts", Fit::default()),
            "lstm_attention" => {
                SequenceModel::from_json(&params, &text)?;
                ("translator of texts", fits(params.asked()))
            }
            "super_resolution" => {
                SuperResolution::new(&params, &SuperResolutionConfig::from_json(&text)?)?;
                ("network that makes pictures bigger", fits(params.asked()))
            }
            "image_classifier" => {
                ImageClassifier::new(&params, &ImageClassifierConfig::from_json(&text)?)?;
                let mut fit = fits(params.asked());
                // A judge of candidates has them beside the classifier.
                fit.unexpected.retain(|name| name != NAMES);
                ("classifier of pictures", fit)
            }
            "clip" => ("judge of pictures and words", Fit::default()),
            "clip_text_model" | "AutoencoderKL" | "UNet2DConditionModel" => ("part of a picture model", Fit::default()),
            _ => return Ok(None),
        };
        let components = vec![Component::new("weights", source.as_ref(), fit)];
        let problems = components.iter().filter_map(problem).collect();
        Ok(Some(Self {
            path: path.to_path_buf(),
            family: format!("{what}, {kind}"),
            problems,
            ..Self::sum(components)
        }))
    }

    /// Weights that are no whole model. What is made to change one has nothing wrong with it.
    fn part(path: &Path, source: &dyn TensorSource, error: &Error) -> Self {
        let components = vec![Component::new("weights", source, Fit::default())];
        let family = components[0].family.clone();
        let (family, problems, used) = match family.as_deref() {
            Some("LoRA") => ("LoRA".to_owned(), Vec::new(), Some("with --lora, beside the model that it changes")),
            _ if is_learned(source) => (
                "learned tokens (textual inversion)".to_owned(),
                Vec::new(),
                Some("with --embedding, beside the model that it was learned for"),
            ),
            _ => (family.unwrap_or_else(|| "weights of an unknown model".to_owned()), vec![with_help(error)], None),
        };
        let details = used.map(|used| ("used", used.to_owned())).into_iter().collect();
        Self { path: path.to_path_buf(), family, problems, details, ..Self::sum(components) }
    }

    fn sum(components: Vec<Component>) -> Self {
        let total = |of: fn(&Component) -> usize| components.iter().map(of).sum();
        let parameters = total(|c| c.parameters);
        Self {
            path: PathBuf::new(),
            family: String::new(),
            scheduler: None,
            prediction_type: None,
            inpainting: false,
            recommended: None,
            details: BTreeMap::new(),
            parameters,
            stored_bytes: total(|c| c.stored_bytes),
            memory_bytes: parameters * size_of::<f32>(),
            components,
            problems: Vec::new(),
        }
    }
}

/// The judge of candidates that a picture model brings. What another `image_encoder/` holds is counted only.
fn judge(model: &Path) -> Result<Component> {
    let folder = model.join(IMAGE_ENCODER);
    let source = weights::open(&folder)?;
    let kind = model_folder::config(&folder, model_folder::as_json)?;
    if kind["model_type"].as_str().is_some_and(|kind| kind != "image_classifier") {
        return Ok(Component::new(IMAGE_ENCODER, source.as_ref(), Fit::default()));
    }
    let fit = weights::check(&fit::asked(model)?, source.as_ref());
    let family = Some("classifier of pictures, the judge of candidates".to_owned());
    Ok(Component { family, ..Component::new(IMAGE_ENCODER, source.as_ref(), fit) })
}

/// Whether a file holds vectors of tokens and nothing else, as [`LearnedToken`](crate::tokens::LearnedToken) reads them. A
/// name with a dot is a layer's.
fn is_learned(source: &dyn TensorSource) -> bool {
    const MOST: usize = 256;
    let infos = source.infos();
    (1..=MOST).contains(&infos.len())
        && infos
            .iter()
            .all(|(name, info)| !name.contains('.') && matches!(info.shape.rank(), 1 | 2) && info.dtype.is_float())
}

/// What is wrong, and what to do about it.
fn with_help(error: &Error) -> String {
    format!("{error}{}", error.help().map(|help| format!("; {help}")).unwrap_or_default())
}

fn problem(component: &Component) -> Option<String> {
    let (missing, misshapen) = (component.missing.len(), component.misshapen.len());
    if missing + misshapen == 0 {
        return None;
    }
    let cause = component.cause.as_deref().map(|cause| format!("; {cause}")).unwrap_or_default();
    Some(format!("{}: {missing} tensors missing, {misshapen} of another shape{cause}", component.name))
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let painting = if self.inpainting { ", for inpainting" } else { "" };
        writeln!(f, "{}: {}{painting}", self.path.display(), self.family)?;
        if let Some(scheduler) = &self.scheduler {
            writeln!(f, "  scheduler   {scheduler}")?;
        }
        if let Some(prediction) = &self.prediction_type {
            writeln!(f, "  prediction  {prediction}")?;
        }
        if let Some(recommended) = self.recommended.as_ref().and_then(|r| serde_json::to_value(r).ok()) {
            let entries: Vec<String> =
                recommended.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {value}")).collect();
            writeln!(f, "  recommended {}", entries.join(", "))?;
        }
        for (what, value) in &self.details {
            writeln!(f, "  {what:<11} {value}")?;
        }
        writeln!(f, "  size        {} stored, {} parameters", bytes(self.stored_bytes), self.parameters)?;
        let form = if self.memory_bytes == self.stored_bytes { "as they are stored" } else { "as f32" };
        writeln!(f, "  memory      {} for the weights {form}, and the work's own", bytes(self.memory_bytes))?;
        for c in &self.components {
            write!(
                f,
                "  {:<15} {:>12} parameters  {:<4} {:>9}",
                c.name,
                c.parameters,
                c.precision,
                bytes(c.stored_bytes)
            )?;
            match &c.family {
                Some(family) => writeln!(f, "  {family}")?,
                None => writeln!(f)?,
            }
            for (what, names) in
                [("missing", &c.missing), ("of another shape", &c.misshapen), ("not asked for, ignored", &c.unexpected)]
            {
                if !names.is_empty() {
                    writeln!(f, "    {} {what}:", names.len())?;
                    names.iter().take(SHOWN).try_for_each(|name| writeln!(f, "      {name}"))?;
                }
                if names.len() > SHOWN {
                    writeln!(f, "      ... and {} more", names.len() - SHOWN)?;
                }
            }
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "problem: {problem}"))
    }
}

fn bytes(n: usize) -> String {
    match n {
        0..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::{DType, Device};

    #[test]
    fn our_own_translator_is_known_and_compared_with_its_config() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = serde_json::json!({
            "model_type": "lstm_attention", "vocab_size": 20, "embedding_size": 8, "hidden_size": 8, "num_layers": 1,
            "decoder_start_token_id": 19, "pad_token_id": 19, "eos_token_id": 0,
        });
        let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
        SequenceModel::from_json(&params, &config.to_string()).unwrap();
        let tensors = model_folder::half(&params.variables()).unwrap();
        let mut inspect = || {
            model_folder::write(folder.path(), model_folder::TRANSFORMERS_FILE, &config, None, &tensors).unwrap();
            config["num_layers"] = 2.into();
            Inspection::new(folder.path()).unwrap()
        };
        let whole = inspect();
        let elements: usize = tensors.values().map(|tensor| tensor.elem_count()).sum();
        assert_eq!((whole.family.as_str(), whole.parameters), ("translator of texts, lstm_attention", elements));
        assert_eq!((whole.problems.len(), whole.components[0].unexpected.len()), (0, 0));
        let other = inspect();
        assert!(other.problems[0].starts_with("weights: ") && !other.components[0].missing.is_empty(), "{other}");
    }
}
