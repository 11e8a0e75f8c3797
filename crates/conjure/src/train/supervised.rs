//! Supervised fine-tuning: a language model learns to answer, from conversations ("Training language models to follow
//! instructions with human feedback", Ouyang et al. 2022, <https://arxiv.org/abs/2203.02155>, section 3.5).
//!
//! A conversation is written as the model's own chat template writes it. Only what the assistant says is learned, up to the
//! mark that ends its answer. Conversations are not packed: a window holds one, padded to the longest of the micro-batch.

use super::conversation::{Conversations, Learned};
use super::decoder_lora::LoraSettings;
use super::objective::{Batch, Losses, Network, Objective};
use super::recipe::Recipe;
use super::text_model::{Stored, TextModel, Tokens, check_held_out, check_paths};
use crate::data::spread;
use crate::data::texts::is_held_out;
use crate::digest::combined;
use crate::{Error, Result};
use conjure_core::ops;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Held-out conversations that a validation looks at.
const VALIDATION: usize = 128;
/// Held-out conversations that are looked at at once.
const CHUNK: usize = 4;

/// The table `[supervised]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Files of conversations: `{"messages": [{"role": "user", "content": "..."}, ...]}` on each line.
    pub texts: Vec<PathBuf>,
    /// Tokens of the longest conversation that is used; longer ones are left out.
    pub context: usize,
    /// Share of conversations that are held out.
    pub held_out: f64,
    /// Folder of the model to begin with.
    pub start: PathBuf,
    /// Train low-rank adapters beside the model instead of its weights.
    pub lora: Option<LoraSettings>,
    /// What people say, to which answers are written to look at.
    pub prompts: Vec<String>,
    /// Type of the numbers that are written.
    pub stored: Stored,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            texts: Vec::new(),
            context: 1024,
            held_out: 0.05,
            start: PathBuf::new(),
            lora: None,
            prompts: Vec::new(),
            stored: Stored::default(),
        }
    }
}

/// A language model with the conversations that it learns from.
pub struct Supervised {
    model: TextModel,
    prompts: Vec<String>,
    train: Vec<Learned>,
    held_out: Vec<Learned>,
    warnings: Vec<String>,
    digest: String,
}

impl Supervised {
    /// What the recipe describes, with all conversations read and turned into tokens.
    ///
    /// # Errors
    /// Settings, a model or conversations that cannot be used; a template that writes a conversation's beginning in another
    /// way than the whole.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        check_held_out(settings.held_out)?;
        check_paths(&settings.texts)?;
        let model = TextModel::open(recipe, &settings.start, settings.lora.as_ref(), false, settings.stored)?;
        model.check_context(settings.context)?;
        let mut conversations = Conversations::new(&model.words.tokenizer, settings.context)?;
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        let mut digests = Vec::new();
        for path in &settings.texts {
            conversations.read_chats(path, &mut |identity, learned| {
                digests.push(super::text_model::sha256(identity.as_bytes()));
                if is_held_out(identity, settings.held_out) { held_out.push(learned) } else { train.push(learned) }
            })?;
        }
        if train.is_empty() {
            return Err(Error::request("no conversation is left to learn from")
                .with_help("give more conversations, or set a larger context or a smaller held_out"));
        }
        let mut warnings = conversations.warnings();
        if held_out.is_empty() && settings.held_out > 0.0 {
            warnings
                .push(format!("none of the {} conversations is held out: there will be no validation", train.len()));
        }
        digests.extend([model.words.digest(), model.digest.clone()]);
        let digest = combined(&digests.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(Self { model, prompts: settings.prompts, train, held_out, warnings, digest })
    }

    /// How many conversations are trained on and held out.
    pub fn conversations(&self) -> (usize, usize) {
        (self.train.len(), self.held_out.len())
    }

    /// The mean of `-log p` over the learned tokens of these conversations, and how many there are.
    fn loss(&self, some: &[&Learned]) -> Result<(conjure_core::Tensor, usize)> {
        let sequences = some.iter().map(|learned| (learned.ids.clone(), learned.learned.clone())).collect();
        let tokens = Tokens::new(sequences)?;
        let logits = self.model.logits(&self.model.decoder, &tokens)?; // (tokens, vocab_size)
        Ok((ops::cross_entropy(&logits, &self.model.targets(&tokens)?, 0.0)?, tokens.targets.len()))
    }
}

impl Objective for Supervised {
    fn networks(&self) -> &[Network] {
        &self.model.networks
    }

    fn examples(&self) -> usize {
        self.train.len()
    }

    fn data_digest(&self) -> String {
        self.digest.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn describe(&self, index: usize) -> String {
        self.train[index].place.clone()
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let some: Vec<&Learned> = batch.indices.iter().map(|&i| &self.train[i]).collect();
        Ok(Losses::one(self.loss(&some)?.0))
    }

    /// `loss`: the mean over the tokens of held-out answers, in nats; `perplexity`.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let some: Vec<&Learned> = spread(&self.held_out, VALIDATION).collect();
        let (mut sum, mut scored) = (0.0, 0);
        for chunk in some.chunks(CHUNK) {
            let (loss, tokens) = self.loss(chunk)?;
            sum += f64::from(loss.detach().to_scalar::<f32>()?) * tokens as f64;
            scored += tokens;
        }
        let loss = sum / scored as f64;
        Ok(vec![("loss".to_owned(), loss), ("perplexity".to_owned(), loss.exp())])
    }

    fn sample_texts(&mut self) -> Result<Option<String>> {
        self.model.written(&self.prompts, true)
    }

    /// A folder that transformers and `conjure chat` open; or an adapter that PEFT and `conjure chat --lora` open.
    fn export(&mut self, folder: &Path) -> Result<()> {
        self.model.export(folder)
    }
}
