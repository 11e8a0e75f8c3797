//! A new word for a picture model, from a handful of the user's pictures: Gal et al. 2022, "An Image is Worth One Word",
//! <https://arxiv.org/abs/2208.01618>. Only the rows of the new token in the table of embeddings are trained.

use super::fine_tuning::{Base, Draft, FineTuning};
use super::objective::{Batch, Losses, Network, Objective};
use super::recipe::Recipe;
use crate::image_file::Picture;
use crate::tokens::LearnedToken;
use crate::tokens::textual_inversion::MAX_VECTORS;
use crate::{Error, Result};
use conjure_core::rng::{self, Generator};
use conjure_core::weights::{MemorySource, Params};
use conjure_core::{DType, Device, Tensor};
use conjure_models::clip_text::TOKEN_EMBEDDING;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;

/// Where a template has the token.
const PLACE: &str = "{token}";

/// The table `[textual_inversion]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The new word, as prompts will spell it; a sign that no other word has keeps it apart, as in `<my-cat>`.
    pub token: String,
    /// How many vectors it stands for.
    pub vectors: usize,
    /// A known word to begin with, such as `cat`; without it the vectors begin as chance has them.
    pub initial: Option<String>,
    /// Sentences for pictures whose captions do not hold the token, with `{token}` in its place.
    pub templates: Vec<String>,
    /// The picture model.
    pub base: Base,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token: "<new>".to_owned(),
            vectors: 1,
            initial: None,
            templates: ["a photo of {token}", "a picture of {token}", "a close-up of {token}", "{token}"]
                .map(str::to_owned)
                .to_vec(),
            base: Base::default(),
        }
    }
}

/// The new word with what it is trained on.
pub struct TextualInversion {
    tuning: FineTuning,
    networks: Vec<Network>,
    token: String,
    templates: Vec<String>,
    warning: Option<String>,
}

impl TextualInversion {
    /// What the recipe describes.
    ///
    /// # Errors
    /// Settings, a model or data that cannot be used; a token that the model knows already; a model with two text encoders.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let Settings { token, vectors, initial, templates, base } = recipe.own()?;
        let device = recipe.device.open()?;
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(Error::request(format!("vectors is {vectors}, not 1 to {MAX_VECTORS}")));
        }
        if templates.is_empty() || templates.iter().any(|template| !template.contains(PLACE)) {
            return Err(Error::request(format!("templates {templates:?} do not all hold {PLACE}")));
        }
        let path = TOKEN_EMBEDDING.trim_end_matches(".weight");
        // Made when the model is drafted, used when it is built.
        let trained: RefCell<Option<(Params, usize)>> = RefCell::new(None);
        let known = Cell::new(false);
        let draft = |draft: Draft| -> Result<Draft> {
            let Draft { mut config, sources, mut tokenizers } = draft;
            if config.text_encoder_2.is_some() {
                return Err(Error::request("a new word for a model with two text encoders cannot be trained yet")
                    .with_help("train a LoRA instead"));
            }
            let first = config.text_encoder.vocab_size;
            // Beside the marks of start and end.
            let room = tokenizers.first.context_length().saturating_sub(2);
            if vectors > room {
                return Err(Error::request(format!(
                    "vectors is {vectors}, but the text encoder reads {room} tokens at once"
                ))
                .with_help("1 to 4 are usual"));
            }
            known.set(tokenizers.first.encode(&token)?.len() == 1);
            let source = sources.get("text_encoder").ok_or_else(|| Error::failure("the model has no text encoder"))?;
            let table = source.load(TOKEN_EMBEDDING, DType::F32, &Device::Cpu)?;
            let rows = match &initial {
                Some(word) => {
                    let ids = tokenizers.first.encode(word)?;
                    if ids.is_empty() {
                        return Err(Error::request(format!("initial {word:?} is no word")));
                    }
                    let ids: Vec<u32> = ids.into_iter().cycle().take(vectors).collect();
                    table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?
                }
                None => drawn(&table, vectors, recipe.seed)?,
            };
            tokenizers.first = tokenizers.first.with_learned(&token, first as u32, vectors)?;
            let sources = sources.with_token_rows("text_encoder", rows.clone())?;
            config.text_encoder.vocab_size += vectors;
            if config.text_encoder.eos_token_id == 2 {
                config.text_encoder.eos_token_id = tokenizers.first.end_id();
            }
            let source = MemorySource::new([(TOKEN_EMBEDDING.to_owned(), rows)]);
            let rows = Params::load(Arc::new(source), DType::F32, &device).trainable();
            trained.replace(Some((rows, first)));
            Ok(Draft { config, sources, tokenizers })
        };
        let tuning =
            FineTuning::new(recipe, &device, base, draft, &mut |component, params| match &*trained.borrow() {
                Some((rows, first)) if component == "text_encoder" => params.with_rows(rows, path, *first),
                _ => params,
            })?;
        let rows = trained.into_inner().map(|(rows, _)| rows).ok_or_else(|| Error::failure("no rows were made"))?;
        let networks = vec![Network::new("token", &rows)?];
        let warning = known.get().then(|| {
            format!(
                "the model knows the word {token}, and with what is trained here it will no longer mean what it did; a sign \
                 that no word has keeps it apart: token = \"<{token}>\""
            )
        });
        Ok(Self { tuning, networks, token, templates, warning })
    }

    /// A picture's caption, or the template number `choice` where its caption does not hold the token.
    fn words(&self, index: usize, choice: usize) -> String {
        let caption = self.tuning.caption(index);
        if caption.to_lowercase().contains(&self.token.to_lowercase()) {
            return caption;
        }
        self.templates[choice % self.templates.len()].replace(PLACE, &self.token)
    }
}

/// Vectors as long as those of the table, in directions that chance has.
fn drawn(table: &Tensor, vectors: usize, seed: u64) -> Result<Tensor> {
    let features = table.dim(1)?;
    let square = f64::from(table.sqr()?.mean_all()?.to_scalar::<f32>()?);
    let noise = rng::randn(&mut rng::keyed(seed, "new token"), (vectors, features), &Device::Cpu)?;
    Ok((noise * square.sqrt())?)
}

impl Objective for TextualInversion {
    fn networks(&self) -> &[Network] {
        &self.networks
    }

    fn examples(&self) -> usize {
        self.tuning.examples()
    }

    fn warnings(&self) -> Vec<String> {
        self.warning.iter().cloned().chain(self.tuning.warnings()).collect()
    }

    fn data_digest(&self) -> String {
        self.tuning.data_digest()
    }

    fn describe(&self, index: usize) -> String {
        self.tuning.describe(index)
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let draws = batch.generator("templates").uniform(batch.indices.len());
        let choose = |draw: f32| (f64::from(draw) * self.templates.len() as f64) as usize;
        let captions = batch.indices.iter().zip(draws).map(|(&i, draw)| self.words(i, choose(draw))).collect();
        self.tuning.losses(batch, captions)
    }

    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        Ok(vec![("train".to_owned(), self.tuning.fixed_error(|i| self.words(i, 0))?)])
    }

    fn samples(&mut self) -> Result<Option<Picture>> {
        self.tuning.samples(|i| self.words(i, 0))
    }

    /// `learned_embeds.safetensors`, as diffusers names and lays it out.
    fn export(&mut self, folder: &Path) -> Result<()> {
        let rows = self.networks[0].variables.values().map(|variable| variable.as_detached_tensor()).collect();
        let learned = LearnedToken { token: self.token.clone(), vectors: rows };
        LearnedToken::save(&folder.join("learned_embeds.safetensors"), &[learned])
    }
}

#[cfg(test)]
mod tests {
    use super::super::fine_tuning::tests::{check_gradients, recipe, shake};
    use super::*;

    #[test]
    fn only_the_new_rows_are_trained_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let recipe =
            recipe("textual_inversion", folder.path(), "token = \"<x>\"\nvectors = 3\ninitial = \"red heart\"");
        let mut objective = TextualInversion::new(&recipe).unwrap();
        let variables = objective.networks[0].variables.clone();
        assert_eq!(variables.keys().collect::<Vec<_>>(), [TOKEN_EMBEDDING]);
        assert_eq!(variables[TOKEN_EMBEDDING].dims(), [3, 16]);
        // The rows begin as those of the initial words, over and over.
        let rows = |variable: &conjure_core::Var| variable.to_vec2::<f32>().unwrap();
        let begun = rows(&variables[TOKEN_EMBEDDING]);
        assert!(begun[0] == begun[2] && begun[0] != begun[1]);
        let before = objective.validate().unwrap()[0].1;
        shake(&variables);
        assert!((objective.validate().unwrap()[0].1 - before).abs() > 1e-3 * before);
        check_gradients(&mut objective);
        let out = tempfile::tempdir().unwrap();
        objective.export(out.path()).unwrap();
        let learned = LearnedToken::read(&out.path().join("learned_embeds.safetensors"), &[16]).unwrap();
        assert_eq!((learned.len(), learned[0].token.as_str()), (1, "<x>"));
        assert_eq!(learned[0].vectors[0].to_vec2::<f32>().unwrap(), rows(&variables[TOKEN_EMBEDDING]));
    }

    #[test]
    fn captions_that_hold_the_token_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe(
            "textual_inversion",
            folder.path(),
            "token = \"<x>\"\ntemplates = [\"one {token}\", \"two {token}\"]",
        );
        std::fs::write(folder.path().join("red.txt"), "my <X> in red").unwrap();
        let objective = TextualInversion::new(&recipe).unwrap();
        let words: Vec<String> = (0..4).map(|i| objective.words(i, i)).collect();
        // In the order of the files: blue, green, grey, red.
        assert_eq!(words, ["one <x>", "two <x>", "one <x>", "my <X> in red"]);
    }

    #[test]
    fn bad_settings_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |settings: &str| {
            let error = TextualInversion::new(&recipe("textual_inversion", folder.path(), settings)).err().unwrap();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(refused("vectors = 0").contains("vectors is 0"));
        assert_eq!(refused("vectors = 76"), "vectors is 76, not 1 to 75");
        assert!(refused("templates = [\"a cat\"]").contains("do not all hold {token}"));
        assert!(refused("token = \"red</w>\"").contains("already has a token"));
        assert!(refused("initial = \" \"").contains("is no word"));
    }
}
