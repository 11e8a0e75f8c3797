//! Low-rank adapters on a language model (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>), written in PEFT's layout.

use crate::image_file::write_atomically;
use crate::{Error, Result};
use conjure_core::weights::{self, LowRankConfig, Params};
use conjure_core::{DType, Device, Var};
use conjure_models::decoder::{Decoder, DecoderConfig, Factors, LayerFactors, ModelType, to_adapter};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Linear layers in the blocks of a decoder.
const LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The table `lora` of a recipe for language models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank of the factors.
    pub rank: usize,
    /// The product is multiplied by `alpha / rank`; the rank if it is not given.
    pub alpha: Option<f64>,
    /// Layers that are adapted, by Llama's names whatever the family: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`,
    /// `up_proj`, `down_proj`. All that the model has if empty.
    pub targets: Vec<String>,
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self { rank: 8, alpha: None, targets: Vec::new() }
    }
}

/// The factors beside a model.
pub(super) struct DecoderLora {
    factors: Params,
    rank: usize,
    alpha: f64,
    base: PathBuf,
}

impl DecoderLora {
    /// A model with the weights of `frozen`, and factors beside the chosen layers.
    pub fn beside(
        frozen: Params,
        config: &DecoderConfig,
        settings: &LoraSettings,
        seed: u64,
        base: &Path,
        device: &Device,
    ) -> Result<(Decoder, Self)> {
        let rank = settings.rank;
        let alpha = settings.alpha.unwrap_or(rank as f64);
        let usable = (1..=4096).contains(&rank) && alpha.is_finite() && alpha > 0.0;
        if !usable {
            return Err(Error::request(format!("rank {rank} with alpha {alpha} makes no adapter"))
                .with_help("4 to 64 are usual ranks; alpha is over 0"));
        }
        if let Some(target) = settings.targets.iter().find(|target| !LAYERS.contains(&target.as_str())) {
            return Err(Error::request(format!("lora.targets: \"{target}\" is no layer that can be adapted"))
                .with_help(format!("known, whatever the family, are {}", LAYERS.join(", "))));
        }
        let all = settings.targets.is_empty();
        let chosen: Vec<String> = if all { LAYERS.map(str::to_owned).to_vec() } else { settings.targets.clone() };
        let factors = Params::seeded(seed, DType::F32, device).trainable();
        let wanted = chosen.clone();
        let params = frozen.with_low_rank(&factors, LowRankConfig { rank, alpha }, move |path| {
            path.rsplit_once('.').is_some_and(|(_, last)| wanted.iter().any(|target| target == last))
        });
        let decoder = Decoder::new(&params, config)?;
        let variables = factors.variables();
        let lacking = chosen.iter().find(|target| {
            let end = format!(".{target}.lora_A.weight");
            !all && !variables.keys().any(|name| name.ends_with(&end))
        });
        if let Some(target) = lacking {
            return Err(Error::request(format!("lora.targets: the model has no layer {target}"))
                .with_help("families without a gated MLP have no gate_proj"));
        }
        Ok((decoder, Self { factors, rank, alpha, base: base.to_owned() }))
    }

    /// The factors.
    pub fn params(&self) -> &Params {
        &self.factors
    }

    /// `adapter_model.safetensors` and `adapter_config.json`, as PEFT writes them.
    pub fn export(&self, folder: &Path, config: &DecoderConfig) -> Result<()> {
        let variables = self.factors.variables();
        let mut factors = BTreeMap::new();
        for (name, down) in &variables {
            let Some(layer) = name.strip_suffix(".lora_A.weight") else { continue };
            let Some(up) = variables.get(&format!("{layer}.lora_B.weight")) else { continue };
            let now = |variable: &Var| variable.as_detached_tensor();
            factors.insert(layer.to_owned(), Factors { down: now(down), up: now(up) });
        }
        let (mut tensors, mut targets) = (BTreeMap::new(), BTreeSet::new());
        let (mut ranks, mut alphas) = (Map::new(), Map::new());
        for LayerFactors { layer, factors, parts } in to_adapter(config, &factors)? {
            let name = inner_name(&layer);
            if parts > 1 {
                // Several adapters of ours in one of the family's: the scale stays what it was.
                ranks.insert(name.to_owned(), json!(self.rank * parts));
                alphas.insert(name.to_owned(), json!(self.alpha * parts as f64));
            }
            targets.insert(name.to_owned());
            tensors.insert(format!("base_model.model.{layer}.lora_A.weight"), factors.down.contiguous()?);
            tensors.insert(format!("base_model.model.{layer}.lora_B.weight"), factors.up.contiguous()?);
        }
        let settings = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": targets,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "bias": "none",
            "fan_in_fan_out": config.model_type == ModelType::Gpt2,
            "use_rslora": false,
            "use_dora": false,
            "modules_to_save": Value::Null,
            "inference_mode": true,
        });
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        write_atomically(&folder.join("adapter_config.json"), |file| writeln!(file, "{settings:#}"))?;
        let header = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        weights::save(folder.join("adapter_model.safetensors"), &tensors, &header)
    }
}

/// A layer's name within its block: `self_attn.q_proj` of `model.layers.0.self_attn.q_proj`. PEFT adapts every layer whose
/// name ends so.
fn inner_name(layer: &str) -> &str {
    let mut at = 0;
    for part in layer.split('.') {
        at += part.len() + 1;
        if part.parse::<usize>().is_ok() {
            return layer.get(at..).unwrap_or(layer);
        }
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_named_within_its_block() {
        assert_eq!(inner_name("model.layers.11.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(inner_name("transformer.h.0.attn.c_attn"), "attn.c_attn");
        assert_eq!(inner_name("lm_head"), "lm_head");
    }
}
