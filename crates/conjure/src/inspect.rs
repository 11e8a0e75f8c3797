//! What a model is, what it needs, and what is wrong with it; no memory is taken for its weights.

use crate::generate::image::open::Opened;
use crate::model_folder;
use conjure_core::weights::{self, Fit, TensorSource};
use conjure_core::{Error, Result};
use conjure_models::decoder::{self, DecoderConfig, ModelType};
use conjure_models::stable_diffusion::StableDiffusion;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names shown of a longer list.
const SHOWN: usize = 8;

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
    /// What else the file says about its model: name, architecture, context, tokenizer, tensors by format. Empty but for
    /// GGUF.
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
    /// Looks at a diffusers folder, a single-file checkpoint, a text model, or the weights of one component.
    ///
    /// # Errors
    /// Nothing there, a damaged file, a folder that is no model.
    pub fn new(path: &Path) -> Result<Self> {
        let opened = match Opened::new(path) {
            Ok(opened) => opened,
            // Not a whole model: the weights may still say what they are.
            Err(error) => match weights::open(path) {
                Ok(source) if source.gguf().is_some() => return Ok(Self::language_model(path, source.as_ref())),
                Ok(source) => {
                    let whole = Self::text_model(path, &source)?;
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
        let text = |key: &str| config.scheduler.get(key).and_then(Value::as_str).map(str::to_owned);
        let problems = components.iter().filter_map(problem).collect();
        Ok(Self {
            path: path.to_path_buf(),
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

    /// A folder of transformers for text; nothing if its config says something else.
    fn text_model(path: &Path, source: &Arc<dyn TensorSource>) -> Result<Option<Self>> {
        let Some(text) = model_folder::read_text(&path.join("config.json"))? else { return Ok(None) };
        let kind = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|config| Some(config["model_type"].as_str()?.to_owned()));
        let (what, fit) = match kind.as_deref() {
            Some(kind) if ModelType::named(kind).is_some() => {
                let config = DecoderConfig::from_json(&text)?;
                let source = decoder::canonical(source.clone(), &config)?;
                ("language model", weights::check(&decoder::asked(&config)?, source.as_ref()))
            }
            Some("bert" | "roberta" | "xlm-roberta") => ("encoder of texts", Fit::default()),
            Some("marian" | "t5" | "mt5") => ("translator of texts", Fit::default()),
            _ => return Ok(None),
        };
        let components = vec![Component::new("weights", source.as_ref(), fit)];
        let problems = components.iter().filter_map(problem).collect();
        let family = format!("{what}, {}", kind.unwrap_or_default());
        Ok(Some(Self { path: path.to_path_buf(), family, problems, ..Self::sum(components) }))
    }

    fn part(path: &Path, source: &dyn TensorSource, error: &Error) -> Self {
        let components = vec![Component::new("weights", source, Fit::default())];
        let family = components[0].family.clone().unwrap_or_else(|| "weights of an unknown model".to_owned());
        Self { path: path.to_path_buf(), family, problems: vec![with_help(error)], ..Self::sum(components) }
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
            details: BTreeMap::new(),
            parameters,
            stored_bytes: total(|c| c.stored_bytes),
            memory_bytes: parameters * size_of::<f32>(),
            components,
            problems: Vec::new(),
        }
    }
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
