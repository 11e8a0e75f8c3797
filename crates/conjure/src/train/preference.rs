//! Learning from preferences: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", Rafailov et al.
//! 2023, <https://arxiv.org/abs/2305.18290>.
//!
//! | in the paper | here |
//! |---|---|
//! | `x`, `y_w`, `y_l` | prompt, `chosen`, `rejected` |
//! | `pi_theta` | the model that is trained |
//! | `pi_ref` | the model that training began with: its weights are kept, or with adapters the model without them |
//! | `beta` | `beta` |
//!
//! `label_smoothing` is the share of pairs that are believed to be the wrong way round: conservative DPO (Mitchell 2023,
//! <https://ericmitchell.ai/cdpo.pdf>, equation 3).

use super::conversation::{Conversations, Learned, Pair};
use super::decoder_lora::LoraSettings;
use super::objective::{Batch, Losses, Network, Objective};
use super::recipe::Recipe;
use super::text_model::{Stored, TextModel, Tokens, check_held_out, check_paths, sha256};
use crate::data::spread;
use crate::data::texts::is_held_out;
use crate::digest::combined;
use crate::{Error, Result};
use conjure_core::{Tensor, ops};
use conjure_models::decoder::Decoder;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Held-out pairs that a validation looks at.
const VALIDATION: usize = 64;
/// Held-out pairs that are looked at at once.
const CHUNK: usize = 2;

/// The table `[preference]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Files of pairs: `{"messages": [...], "chosen": "...", "rejected": "..."}` on each line, or `"prompt": "..."`, a text
    /// that the answers go on, instead of `messages`.
    pub texts: Vec<PathBuf>,
    /// Tokens of the longest prompt with answer that is used; longer ones are left out.
    pub context: usize,
    /// Share of prompts whose pairs are held out.
    pub held_out: f64,
    /// How closely the model stays at what it was.
    pub beta: f64,
    /// Share of pairs that are believed to be the wrong way round.
    pub label_smoothing: f64,
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
            beta: 0.1,
            label_smoothing: 0.0,
            start: PathBuf::new(),
            lora: None,
            prompts: Vec::new(),
            stored: Stored::default(),
        }
    }
}

/// A language model with the pairs that it learns from.
pub struct Preference {
    settings: Settings,
    model: TextModel,
    reference: Decoder,
    train: Vec<Pair>,
    held_out: Vec<Pair>,
    warnings: Vec<String>,
    digest: String,
}

/// What some pairs gave.
struct Judged {
    loss: Tensor,
    /// Mean of `beta` times how much more the chosen answers gained than the rejected ones.
    margin: f64,
    /// Share of pairs whose chosen answer gained more.
    accuracy: f64,
}

impl Preference {
    /// What the recipe describes, with all pairs read and turned into tokens.
    ///
    /// # Errors
    /// Settings, a model or pairs that cannot be used.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        check_held_out(settings.held_out)?;
        check_paths(&settings.texts)?;
        if !(settings.beta.is_finite() && settings.beta > 0.0) {
            return Err(Error::request(format!("beta is {}, not over 0", settings.beta)).with_help("0.1 is usual"));
        }
        if !(0.0..0.5).contains(&settings.label_smoothing) {
            let message = format!("label_smoothing is {}, not 0 to below 0.5", settings.label_smoothing);
            return Err(Error::request(message));
        }
        let mut model = TextModel::open(recipe, &settings.start, settings.lora.as_ref(), true, settings.stored)?;
        model.check_context(settings.context)?;
        let reference =
            model.reference.take().ok_or_else(|| Error::failure("the model to compare with was not opened"))?;
        let end = model.words.end()?;
        let mut conversations = Conversations::new(&model.words.tokenizer, settings.context)?;
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        let mut digests = Vec::new();
        for path in &settings.texts {
            conversations.read_pairs(path, end, &mut |prompt, pair| {
                let bytes: Vec<u8> = [&pair.chosen.ids, &pair.rejected.ids]
                    .into_iter()
                    .flat_map(|ids| ids.iter().chain(&[u32::MAX]).flat_map(|id| id.to_le_bytes()))
                    .collect();
                digests.push(sha256(&bytes));
                if is_held_out(prompt, settings.held_out) { held_out.push(pair) } else { train.push(pair) }
            })?;
        }
        if train.is_empty() {
            return Err(Error::request("no pair is left to learn from")
                .with_help("give more pairs, or set a larger context or a smaller held_out"));
        }
        let mut warnings = conversations.warnings();
        if held_out.is_empty() && settings.held_out > 0.0 {
            warnings.push(format!("none of the {} pairs is held out: there will be no validation", train.len()));
        }
        digests.extend([model.words.digest(), model.digest.clone()]);
        let digest = combined(&digests.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(Self { settings, model, reference, train, held_out, warnings, digest })
    }

    /// The sums of `log p` over the learned tokens of each of `some`: `(some)`.
    fn log_probabilities(&self, model: &Decoder, some: &[&Learned]) -> Result<Tensor> {
        let sequences = some.iter().map(|learned| (learned.ids.clone(), learned.learned.clone())).collect();
        let tokens = Tokens::new(sequences)?;
        let log_p = ops::log_softmax(&self.model.logits(model, &tokens)?)?; // (tokens, vocab_size)
        let own = log_p.gather(&self.model.targets(&tokens)?.unsqueeze(1)?, 1)?; // (tokens, 1)
        let mut sums = vec![0f32; some.len() * tokens.owners.len()];
        for (token, owner) in tokens.owners.iter().enumerate() {
            sums[owner * tokens.owners.len() + token] = 1.0;
        }
        let sums = Tensor::from_vec(sums, (some.len(), tokens.owners.len()), own.device())?;
        Ok(sums.matmul(&own)?.squeeze(1)?) // (some)
    }

    fn judge(&self, pairs: &[&Pair]) -> Result<Judged> {
        let n = pairs.len();
        let chosen = pairs.iter().map(|pair| &pair.chosen);
        let all: Vec<&Learned> = chosen.chain(pairs.iter().map(|pair| &pair.rejected)).collect();
        let now = self.log_probabilities(&self.model.decoder, &all)?; // (2 pairs)
        let before = self.log_probabilities(&self.reference, &all)?.detach();
        let gained = (now - before)?; // log of pi_theta / pi_ref
        let margins = ((gained.narrow(0, 0, n)? - gained.narrow(0, n, n)?)? * self.settings.beta)?; // (pairs)
        let loss = dpo(&margins, self.settings.label_smoothing)?;
        let margins = margins.detach().to_vec1::<f32>()?;
        let better = margins.iter().filter(|margin| **margin > 0.0).count();
        Ok(Judged {
            loss,
            margin: margins.iter().map(|margin| f64::from(*margin)).sum::<f64>() / n as f64,
            accuracy: better as f64 / n as f64,
        })
    }
}

/// The mean of `-(1 - e) log sigma(m) - e log sigma(-m)` over the margins `m (pairs)`, with `e` for `label_smoothing`. For
/// `e = 0` it is Rafailov et al. 2023, equation 7.
///
/// # Errors
/// A tensor operation fails.
pub fn dpo(margins: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    // log sigma(m) and log sigma(-m) are the log-softmax of (m, 0): no overflow, and a gradient at 0, where training begins.
    let both = ops::log_softmax(&Tensor::stack(&[margins, &margins.zeros_like()?], 1)?)?; // (pairs, 2)
    let right = (both.narrow(1, 0, 1)?.mean_all()? * (label_smoothing - 1.0))?;
    Ok((right - (both.narrow(1, 1, 1)?.mean_all()? * label_smoothing)?)?)
}

impl Objective for Preference {
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
        self.train[index].chosen.place.clone()
    }

    /// Also `margin` and `accuracy`, as in [`Self::validate`], of the micro-batch.
    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let pairs: Vec<&Pair> = batch.indices.iter().map(|&i| &self.train[i]).collect();
        let Judged { loss, margin, accuracy } = self.judge(&pairs)?;
        Ok(Losses { terms: vec![(0, loss)], figures: vec![("margin", margin), ("accuracy", accuracy)] })
    }

    /// Of held-out pairs: `loss`; `margin`, the mean of `beta` times how much more likely, compared with the model that
    /// training began with, the chosen answer became than the rejected one; `accuracy`, how often that is more than 0.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let some: Vec<&Pair> = spread(&self.held_out, VALIDATION).collect();
        let mut sums = [0.0; 3];
        for chunk in some.chunks(CHUNK) {
            let Judged { loss, margin, accuracy } = self.judge(chunk)?;
            let loss = f64::from(loss.detach().to_scalar::<f32>()?);
            for (sum, value) in sums.iter_mut().zip([loss, margin, accuracy]) {
                *sum += value * chunk.len() as f64 / some.len() as f64;
            }
        }
        Ok(["loss", "margin", "accuracy"].into_iter().zip(sums).map(|(name, sum)| (name.to_owned(), sum)).collect())
    }

    fn sample_texts(&mut self) -> Result<Option<String>> {
        let chat = self.model.words.tokenizer.chat_template().is_some();
        self.model.written(&self.settings.prompts, chat)
    }

    /// A folder that transformers and `conjure chat` open; or an adapter that PEFT and `conjure chat --lora` open.
    fn export(&mut self, folder: &Path) -> Result<()> {
        self.model.export(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::weights::{Safetensors, TensorSource as _};
    use conjure_core::{DType, Device, Var};

    fn loss(margins: &[f32], smoothing: f64) -> f64 {
        let margins = Tensor::new(margins, &Device::Cpu).unwrap();
        f64::from(dpo(&margins, smoothing).unwrap().to_scalar::<f32>().unwrap())
    }

    #[test]
    fn the_loss_is_that_of_the_papers() {
        let by_hand = |m: f64, e: f64| (1.0 - e) * (-m).exp().ln_1p() + e * m.exp().ln_1p();
        for smoothing in [0.0, 0.1] {
            for margin in [-3.0, -0.2, 0.0, 0.5, 4.0] {
                let (got, want) = (loss(&[margin], smoothing), by_hand(f64::from(margin), smoothing));
                assert!((got - want).abs() < 1e-6 * (1.0 + want), "{margin} {smoothing}: {got} {want}");
            }
            let want = (by_hand(1.0, smoothing) + by_hand(-2.0, smoothing)) / 2.0;
            assert!((loss(&[1.0, -2.0], smoothing) - want).abs() < 1e-6);
        }
        assert!((loss(&[-500.0], 0.0) - 500.0).abs() < 1e-3, "no overflow");
    }

    /// Where training begins every margin is 0, and the gradient is minus one half.
    #[test]
    fn the_gradient_is_right_at_zero() {
        let margins = Var::from_tensor(&Tensor::new(&[0f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        for (smoothing, at_zero) in [(0.0, -0.25), (0.2, -0.15)] {
            let gradients = dpo(margins.as_tensor(), smoothing).unwrap().backward().unwrap();
            let got = gradients.get(margins.as_tensor()).unwrap().to_vec1::<f32>().unwrap();
            let sigma = 1.0 / (1.0 + (-2f64).exp());
            let at_two = (smoothing * sigma - (1.0 - smoothing) * (1.0 - sigma)) / 2.0;
            assert!((f64::from(got[0]) - at_zero).abs() < 1e-6, "{got:?}");
            assert!((f64::from(got[1]) - at_two).abs() < 1e-6, "{got:?} {at_two}");
        }
    }

    /// `tools/reference/language_models.py`: an adapter of PEFT on a tiny model, compared with the model without it, by
    /// transformers in f64.
    #[test]
    fn losses_equal_an_independent_computation() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language_model");
        let expected: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
        for case in expected["dpo"].as_array().unwrap() {
            let recipe = format!(
                "objective = \"preference\"\nsteps = 1\nbatch = 1\n[preference]\ntexts = [{:?}]\ncontext = 128\nstart = {:?}\n\
                 held_out = 0.0\nbeta = {}\nlabel_smoothing = {}\n\
                 lora = {{ rank = 4, alpha = 6.0, targets = [\"q_proj\", \"v_proj\", \"down_proj\"] }}\n",
                folder.join("pairs.jsonl"),
                folder.join("llama"),
                case["beta"],
                case["label_smoothing"]
            );
            let objective = Preference::new(&Recipe::parse(&recipe, &[]).unwrap()).unwrap();
            let pairs: Vec<&Pair> = objective.train.iter().collect();
            assert_eq!(pairs.len(), 3);
            let untrained = objective.judge(&pairs).unwrap();
            assert_eq!((untrained.margin, untrained.accuracy), (0.0, 0.0));
            let file = Safetensors::open(folder.join("llama_adapter/adapter_model.safetensors")).unwrap();
            for (name, variable) in &objective.model.networks[0].variables {
                let mut tensor = file.load(&format!("base_model.model.{name}"), DType::F32, &Device::Cpu).unwrap();
                // PEFT's has rank 3 and alpha 5 there.
                if name.contains("down_proj") {
                    let (dim, factor) = if name.contains("lora_A") { (0, 1.0) } else { (1, 5.0 / 3.0 / 1.5) };
                    tensor = (tensor.pad_with_zeros(dim, 0, 1).unwrap() * factor).unwrap();
                }
                variable.set(&tensor.contiguous().unwrap()).unwrap();
            }
            let judged = objective.judge(&pairs).unwrap();
            let loss = f64::from(judged.loss.to_scalar::<f32>().unwrap());
            let want = |key: &str| case[key].as_f64().unwrap();
            assert!((loss - want("loss")).abs() < 1e-5 * want("loss"), "{loss} {}", want("loss"));
            assert!((judged.margin - want("margin")).abs() < 1e-5 * (1.0 + want("margin").abs()), "{}", judged.margin);
            assert!((judged.accuracy - want("accuracy")).abs() < 1e-9);
        }
    }
}
