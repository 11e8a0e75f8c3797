//! From a path to a pipeline.

use super::adapters::Recorded;
use super::pipeline::Pipeline;
use super::shipped::{SHIPPED, find};
use super::tiny;
use super::words::Tokenizers;
use crate::digest::model_digest;
use crate::model_folder::{check_weights, read_text};
use crate::tokens::ClipTokenizer;
use conjure_core::sampling::SchedulerConfig;
use conjure_core::{DType, Device, Error, Result, weights};
use conjure_models::clip_text::ClipTextConfig;
use conjure_models::stable_diffusion::{Family, Sources, StableDiffusion, StableDiffusionConfig};
use std::path::Path;
use std::sync::OnceLock;

/// What a recipe calls the built-in model.
pub const BUILT_IN: &str = "built-in";

/// A model's configs and where its weights lie; no memory is taken for weights yet.
pub(crate) struct Opened {
    pub config: StableDiffusionConfig,
    pub sources: Sources,
}

impl Opened {
    /// The configs and sources of a diffusers folder or a single file.
    ///
    /// # Errors
    /// Nothing there; a component is missing or broken; not Stable Diffusion; components that do not fit each other.
    pub fn new(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let config = StableDiffusionConfig::from_folder(&mut |name| read_text(&path.join(name)))
                .map_err(|error| in_folder(path, error))?;
            let sources = Sources::folder(&config, &mut |component| weights::open(path.join(component)))?;
            return Ok(Self { config, sources });
        }
        if !path.exists() {
            return Err(Error::file(path, "not found")
                .with_help("--model takes a diffusers folder or a single .safetensors or .ckpt file"));
        }
        check_weights(path)?;
        let (config, sources) = Sources::single_file(&weights::open(path)?).map_err(|error| match error {
            Error::Request { message, help } => {
                let located = Error::file(path, message);
                match help {
                    Some(help) => located.with_help(help),
                    None => located,
                }
            }
            other => other,
        })?;
        Ok(Self { config, sources })
    }
}

impl Pipeline {
    /// Opens a diffusers folder or a single-file checkpoint. A single file carries no tokenizer: `tokenizer` names a
    /// folder with one; without it CLIP's own vocabulary is looked for.
    ///
    /// # Errors
    /// What [`Error::File`] and [`Error::Request`] say about a model that is missing, damaged, incomplete or inconsistent,
    /// before memory is taken for its weights.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        Self::open_on(path, tokenizer, &Device::Cpu)
    }

    /// As [`Pipeline::open`], to be computed on `device`. Random numbers are drawn on the CPU in any case: pictures differ
    /// between devices by roundings only.
    ///
    /// # Errors
    /// As for [`Pipeline::open`]; the device refuses memory.
    pub fn open_on(path: &Path, tokenizer: Option<&Path>, device: &Device) -> Result<Self> {
        let Opened { config, sources } = Opened::new(path)?;
        let tokenizers = open_tokenizers(path, tokenizer, &config)?;
        let scheduler =
            scheduler(&config).map_err(|error| in_folder(&path.join("scheduler/scheduler_config.json"), error))?;
        let model = StableDiffusion::load(&config, &sources, DType::F32, device)?;
        Ok(Self {
            tokenizers,
            model,
            sources,
            scheduler,
            path: path.display().to_string(),
            file: Some(path.to_path_buf()),
            tokenizer_path: tokenizer.map(Path::to_path_buf),
            digest: OnceLock::new(),
            adapters: Recorded::default(),
        })
    }

    /// Opens a model that came with Conjure. Pictures remember it by name, so that they can be made again elsewhere.
    ///
    /// # Errors
    /// There is no model of this name, or `CONJURE_MODELS` leads nowhere; those of [`Pipeline::open`].
    pub fn shipped(name: &str, device: &Device) -> Result<Self> {
        let folder = find(name)?.ok_or_else(|| {
            Error::request(format!("the model {name} that comes with conjure is not there"))
                .with_help("keep the folder models/ beside the program, or set CONJURE_MODELS to where it is")
        })?;
        Ok(Self { path: format!("{SHIPPED}{name}"), ..Self::open_on(&folder, None, device)? })
    }

    /// The built-in model: the real architecture at its smallest, with random weights. Its pictures are noise.
    ///
    /// # Errors
    /// None that a user can cause.
    pub fn tiny(seed: u64) -> Result<Self> {
        Self::tiny_on(seed, &Device::Cpu)
    }

    /// As [`Pipeline::tiny`], to be computed on `device`.
    ///
    /// # Errors
    /// The device refuses memory.
    pub fn tiny_on(seed: u64, device: &Device) -> Result<Self> {
        let config = tiny::config();
        let sources = tiny::sources(&config, seed)?;
        Ok(Self {
            tokenizers: Tokenizers { first: ClipTokenizer::tiny(), second: None },
            model: StableDiffusion::load(&config, &sources, DType::F32, device)?,
            scheduler: scheduler(&config)?,
            sources,
            path: BUILT_IN.to_owned(),
            file: None,
            tokenizer_path: None,
            digest: OnceLock::from(format!("built-in tiny {} seed {seed}", env!("CARGO_PKG_VERSION"))),
            adapters: Recorded::default(),
        })
    }

    /// What identifies the model's weights and configs; for files the SHA-256 of every byte, read on the first call.
    ///
    /// # Errors
    /// The files cannot be read any more.
    pub fn digest(&self) -> Result<&str> {
        if let (None, Some(path)) = (self.digest.get(), &self.file) {
            let _ = self.digest.set(model_digest(path)?);
        }
        Ok(self.digest.get().map_or("", String::as_str))
    }
}

/// An error about a file inside a folder, told with the folder.
fn in_folder(folder: &Path, error: Error) -> Error {
    match error {
        Error::File { path, message, help } if path.is_relative() => {
            Error::File { path: folder.join(path), message, help }
        }
        Error::Request { message, help } => Error::File { path: folder.to_path_buf(), message, help },
        other => other,
    }
}

pub(crate) fn scheduler(config: &StableDiffusionConfig) -> Result<SchedulerConfig> {
    SchedulerConfig::from_json(&config.scheduler.to_string())
}

pub(crate) fn open_tokenizers(path: &Path, given: Option<&Path>, config: &StableDiffusionConfig) -> Result<Tokenizers> {
    let folder = |name: &str| given.map_or_else(|| path.join(name), Path::to_path_buf);
    let single = !path.is_dir();
    if given.is_none() && single {
        return Err(Error::request("a single-file checkpoint carries no tokenizer").with_help(
            "run conjure models tokenizer once, or add --tokenizer DIR with CLIP's vocab.json and merges.txt",
        ));
    }
    let first = load_tokenizer(&folder("tokenizer"), &config.text_encoder)?;
    let second = match &config.text_encoder_2 {
        Some(encoder) => Some(load_tokenizer(&folder("tokenizer_2"), encoder)?),
        None => None,
    };
    // OpenCLIP's encoders were trained with "!" after the text, where CLIP's repeats the end token. A folder's own
    // tokenizer says so itself; one that was named for a single file is CLIP's.
    let padded = |tokenizer: ClipTokenizer, open_clip: bool| {
        if single && open_clip { tokenizer.with_padding("!") } else { Ok(tokenizer) }
    };
    Ok(Tokenizers {
        first: padded(first, config.family() == Family::StableDiffusion2)?,
        second: second.map(|tokenizer| padded(tokenizer, true)).transpose()?,
    })
}

fn load_tokenizer(folder: &Path, encoder: &ClipTextConfig) -> Result<ClipTokenizer> {
    let tokenizer = ClipTokenizer::load(folder)?;
    let (ids, rows) = (tokenizer.vocabulary_size(), encoder.vocab_size);
    if ids > rows {
        return Err(Error::file(folder, format!("has {ids} token ids, the text encoder knows {rows}"))
            .with_help("tokenizer and text encoder come from different models"));
    }
    let (tokens, positions) = (tokenizer.context_length(), encoder.max_position_embeddings);
    if tokens > positions {
        return Err(Error::file(
            folder,
            format!("makes windows of {tokens} tokens, the text encoder reads {positions}"),
        )
        .with_help("tokenizer and text encoder come from different models"));
    }
    Ok(tokenizer)
}
