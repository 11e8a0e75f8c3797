//! What changes a model without being one: LoRAs and learned tokens.

use super::pipeline::Pipeline;
use crate::digest::model_digest;
use crate::image_file::Recipe;
use crate::image_file::recipe::{Input, WeightedInput};
use crate::tokens::LearnedToken;
use conjure_core::weights::Lora;
use conjure_core::{DType, Error, Result, Tensor};
use conjure_models::stable_diffusion::StableDiffusion;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// A LoRA file, or the folder that holds a language model's, and how strongly it works.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraFile {
    /// The file.
    pub path: PathBuf,
    /// 1 is as its author made it, 0 not at all; negative values undo what it learned.
    pub weight: f64,
}

impl FromStr for LoraFile {
    type Err = Error;

    /// `FILE` or `FILE:WEIGHT`. A colon before what is no number belongs to the name, if what stands before it is no file; and so
    /// does every colon in the name of a file or folder that is there.
    fn from_str(text: &str) -> Result<Self> {
        let whole = |weight| Self { path: PathBuf::from(text), weight };
        if Path::new(text).exists() {
            return Ok(whole(1.0));
        }
        let Some((path, number)) = text.rsplit_once(':') else { return Ok(whole(1.0)) };
        match number.trim().parse::<f64>() {
            Ok(_) if path.is_empty() => {
                Err(Error::request(format!("--lora {text}: the file's name is missing"))
                    .with_help("write --lora FILE:0.8"))
            }
            Ok(weight) if weight.is_finite() => Ok(Self { path: PathBuf::from(path), weight }),
            Ok(_) => Err(Error::request(format!("--lora {text}: the weight {number} is not finite"))
                .with_help("weights between 0 and 1 are usual")),
            Err(_) if !path.is_empty() && Path::new(path).exists() => {
                Err(Error::request(format!("--lora {text}: the weight {number:?} is no number"))
                    .with_help(format!("write --lora {path}:0.8")))
            }
            Err(_) => Ok(whole(1.0)),
        }
    }
}

/// Everything that is added to a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters {
    /// Low-rank changes of weights; any number work together.
    pub loras: Vec<LoraFile>,
    /// Files of learned tokens (textual inversion).
    pub embeddings: Vec<PathBuf>,
}

impl Adapters {
    /// Whether nothing is added.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty() && self.embeddings.is_empty()
    }

    /// Refuses files that cannot be there, before a model is opened.
    ///
    /// # Errors
    /// Names the file.
    pub fn validate(&self) -> Result<()> {
        let loras = self.loras.iter().map(|lora| (&lora.path, "pytorch_lora_weights.safetensors"));
        for (path, usual) in loras.chain(self.embeddings.iter().map(|path| (path, "learned_embeds.safetensors"))) {
            if path.is_dir() {
                return Err(Error::file(path, "is a folder, and a file is needed").with_help(in_place_of(path, usual)));
            }
            if !path.is_file() {
                return Err(Error::file(path, "there is no such file").with_help("check the name"));
            }
        }
        Ok(())
    }

    /// The adapters that made a picture, if they are still the same files.
    ///
    /// # Errors
    /// A file that is missing or has changed.
    pub fn from_recipe(recipe: &Recipe) -> Result<Self> {
        let unchanged = |path: &str, sha256: &str| {
            super::recipe::unchanged(Some(&Input { path: path.to_owned(), sha256: sha256.to_owned() }))
                .map(|path| path.unwrap_or_default())
        };
        Ok(Self {
            loras: recipe
                .loras
                .iter()
                .map(|lora| Ok(LoraFile { path: unchanged(&lora.path, &lora.sha256)?, weight: lora.weight }))
                .collect::<Result<_>>()?,
            embeddings: recipe
                .embeddings
                .iter()
                .map(|file| unchanged(&file.path, &file.sha256))
                .collect::<Result<_>>()?,
        })
    }
}

/// Which file in a folder was meant: the one that is usually called so, or the first that may be it.
fn in_place_of(folder: &Path, usual: &str) -> String {
    if folder.join("adapter_config.json").is_file() {
        return "the folder holds a LoRA of a language model, which conjure text and conjure chat take".to_owned();
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.retain(|file| file.is_file() && file.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")));
    files.sort();
    match files.iter().find(|file| file.ends_with(usual)).or(files.first()) {
        Some(file) => format!("name the file in it: {}", file.display()),
        None => format!("the folder holds no .safetensors file; expected one such as {usual}"),
    }
}

/// What a recipe says of the adapters.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub loras: Vec<WeightedInput>,
    pub embeddings: Vec<Input>,
}

impl Pipeline {
    /// The same model with LoRAs merged in and learned tokens added. Its weights are read once more, so do this before the
    /// first picture. Adapters add to those that the pipeline has already.
    ///
    /// # Errors
    /// A file that is no adapter of a kind that is read, or was made for another model: named with what it seems to be for.
    pub fn with_adapters(self, adapters: &Adapters) -> Result<Self> {
        if adapters.is_empty() {
            return Ok(self);
        }
        let Self {
            model,
            mut sources,
            mut tokenizers,
            adapters: mut recorded,
            scheduler,
            path,
            tokenizer_path,
            file,
            digest,
        } = self;
        let mut config = model.config().clone();
        let device = model.device().clone();
        // The memory of the weights is given back before they are read again.
        drop(model);

        let targets = StableDiffusion::lora_targets(&config)?;
        let mut loras = Vec::with_capacity(adapters.loras.len());
        for LoraFile { path, weight } in &adapters.loras {
            loras.push((Arc::new(Lora::open(path, &targets)?), *weight));
            let (path, sha256) = (path.display().to_string(), model_digest(path)?);
            recorded.loras.push(WeightedInput { path, sha256, weight: *weight });
        }
        if !loras.is_empty() {
            sources = sources.with_loras(&loras);
        }

        let widths = [Some(&config.text_encoder), config.text_encoder_2.as_ref()].into_iter().flatten();
        let widths: Vec<usize> = widths.map(|encoder| encoder.hidden_size).collect();
        let mut rows: [Vec<Tensor>; 2] = Default::default();
        for file in &adapters.embeddings {
            let located = |error: Error| match error {
                Error::Request { message, help } => Error::File { path: file.clone(), message, help },
                other => other,
            };
            for learned in LearnedToken::read(file, &widths)? {
                let encoders = [
                    Some((&mut tokenizers.first, &mut config.text_encoder)),
                    tokenizers.second.as_mut().zip(config.text_encoder_2.as_mut()),
                ];
                for (i, (tokenizer, encoder)) in encoders.into_iter().flatten().enumerate() {
                    *tokenizer = tokenizer
                        .with_learned(&learned.token, encoder.vocab_size as u32, learned.len())
                        .map_err(located)?;
                    encoder.vocab_size += learned.len();
                    // Older configs mean "the largest id" by 2, which a learned token's id would now be.
                    if encoder.eos_token_id == 2 {
                        encoder.eos_token_id = tokenizer.end_id();
                    }
                    rows[i].push(learned.vectors[i].clone());
                }
            }
            recorded.embeddings.push(Input { path: file.display().to_string(), sha256: model_digest(file)? });
        }
        for (component, rows) in ["text_encoder", "text_encoder_2"].into_iter().zip(rows) {
            if !rows.is_empty() {
                sources = sources.with_token_rows(component, Tensor::cat(&rows, 0)?)?;
            }
        }
        let model = StableDiffusion::load(&config, &sources, DType::F32, &device)?;
        Ok(Self { model, sources, tokenizers, adapters: recorded, scheduler, path, tokenizer_path, file, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_follows_the_last_colon() {
        let parsed = |text: &str| text.parse::<LoraFile>().map(|lora| (lora.path.display().to_string(), lora.weight));
        for (text, path, weight) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.8", "a.safetensors", 0.8),
            ("a.safetensors:-1", "a.safetensors", -1.0),
            (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
            (r"C:\loras\a.safetensors:.5", r"C:\loras\a.safetensors", 0.5),
            ("a:b", "a:b", 1.0),
        ] {
            assert_eq!(parsed(text).unwrap(), (path.to_owned(), weight), "{text}");
        }
        assert!(parsed(":0.8").unwrap_err().to_string().contains("name is missing"));
        assert!(parsed("a:inf").unwrap_err().to_string().contains("not finite"));
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a:0.5");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(parsed(odd.to_str().unwrap()).unwrap(), (odd.display().to_string(), 1.0));
        let error = parsed(&format!("{}:abc", odd.display())).unwrap_err();
        assert!(error.to_string().ends_with("a:0.5:abc: the weight \"abc\" is no number"), "{error}");
        assert!(error.help().unwrap().ends_with("a:0.5:0.8"), "{error:?}");
    }

    #[test]
    fn a_folder_is_refused_with_the_file_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let lora = Adapters { loras: vec![LoraFile { path: path.clone(), weight: 1.0 }], embeddings: Vec::new() };
        let learned = Adapters { loras: Vec::new(), embeddings: vec![path.clone()] };
        let refused = |adapters: &Adapters| {
            let error = adapters.validate().unwrap_err();
            assert!(error.to_string().ends_with("is a folder, and a file is needed"), "{error}");
            error.help().unwrap().to_owned()
        };
        assert!(refused(&lora).ends_with("expected one such as pytorch_lora_weights.safetensors"));
        for name in ["a.safetensors", "pytorch_lora_weights.safetensors", "z.safetensors"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        let named = |name: &str| format!("name the file in it: {}", path.join(name).display());
        assert_eq!(refused(&lora), named("pytorch_lora_weights.safetensors"));
        assert_eq!(refused(&learned), named("a.safetensors"));
        std::fs::write(path.join("adapter_config.json"), "{}").unwrap();
        assert!(refused(&lora).contains("conjure text"));
        let gone = Adapters { embeddings: vec![path.join("none")], ..Adapters::default() };
        assert!(gone.validate().unwrap_err().to_string().ends_with("there is no such file"));
    }
}
