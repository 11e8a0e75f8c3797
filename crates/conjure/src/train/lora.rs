//! Low-rank adapters on a picture model, from a handful of the user's pictures (Hu et al. 2021,
//! <https://arxiv.org/abs/2106.09685>).

use super::fine_tuning::{Base, FineTuning};
use super::objective::{Batch, Losses, Network, Objective};
use super::recipe::Recipe;
use crate::image_file::Picture;
use crate::{Error, Result};
use conjure_core::weights::{Lora as LoraFile, LoraLayout, LowRankConfig, MemorySource, Params};
use conjure_core::{DType, Tensor};
use conjure_models::stable_diffusion::StableDiffusion;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The table `[lora]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Rank of the factors.
    pub rank: usize,
    /// The product is multiplied by `alpha / rank`; the rank if it is not given.
    pub alpha: Option<f64>,
    /// Linear layers of the U-Net that are adapted, by the ends of their names.
    pub layers: Vec<String>,
    /// Linear layers of the text encoders, likewise; none if empty.
    pub text_layers: Vec<String>,
    /// The picture model.
    pub base: Base,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: None,
            layers: ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned).to_vec(),
            text_layers: Vec::new(),
            base: Base::default(),
        }
    }
}

/// The adapters with what they are trained on.
pub struct Lora {
    tuning: FineTuning,
    networks: Vec<Network>,
    alpha: f64,
}

impl Lora {
    /// What the recipe describes.
    ///
    /// # Errors
    /// Settings, a model or data that cannot be used; layers that the model does not have.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let Settings { rank, alpha, layers, text_layers, base } = recipe.own()?;
        let device = recipe.device.open()?;
        let alpha = alpha.unwrap_or(rank as f64);
        let usable = (1..=4096).contains(&rank) && alpha.is_finite() && alpha > 0.0;
        if !usable {
            return Err(Error::request(format!("rank {rank} with alpha {alpha} makes no adapter"))
                .with_help("4 to 32 are usual ranks; alpha is over 0"));
        }
        let mut factors: BTreeMap<&'static str, Params> = BTreeMap::new();
        let tuning = FineTuning::new(recipe, &device, base, Ok, &mut |component, params| {
            let layers = match component {
                "unet" => layers.clone(),
                "text_encoder" | "text_encoder_2" => text_layers.clone(),
                _ => return params,
            };
            // The component's name keeps equal names of the two text encoders apart.
            let own = recipe.random_params(&device).trainable().sub(component);
            factors.insert(component, own.clone());
            params.with_low_rank(&own, LowRankConfig { rank, alpha }, move |path| {
                layers.iter().any(|layer| {
                    path.strip_suffix(layer.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                })
            })
        })?;
        let variables: BTreeMap<_, _> = factors.values().flat_map(Params::variables).collect();
        let network = Network { name: "lora", variables, averaged: true, rate: 1.0 };
        for (component, wanted, key) in [("unet", &layers, "layers"), ("text_encoder", &text_layers, "text_layers")] {
            let has = |layer: &String| {
                let end = format!(".{layer}.lora_A.weight");
                network.variables.keys().any(|name| name.starts_with(component) && name.ends_with(&end))
            };
            if let Some(layer) = wanted.iter().find(|layer| !has(layer)) {
                return Err(Error::request(format!("{key}: the {component} has no linear layer {layer}")).with_help(
                    "to_q, to_k, to_v and to_out.0 in the U-Net; q_proj, k_proj, v_proj and out_proj in text encoders",
                ));
            }
        }
        if network.variables.is_empty() {
            return Err(Error::request("layers and text_layers are empty: there is nothing to train"));
        }
        Ok(Self { tuning, networks: vec![network], alpha })
    }

    /// The adapters as they are now.
    fn file(&self) -> Result<LoraFile> {
        let tensors: Vec<(String, Tensor)> = self.networks[0]
            .variables
            .iter()
            .map(|(name, variable)| (name.clone(), variable.as_detached_tensor()))
            .collect();
        let alphas: Map<String, Value> = ["unet", "text_encoder", "text_encoder_2"]
            .into_iter()
            .map(|component| (format!("{component}.lora_alpha"), json!(self.alpha)))
            .collect();
        let metadata = BTreeMap::from([("lora_adapter_metadata".to_owned(), Value::Object(alphas).to_string())]);
        let targets = StableDiffusion::lora_targets(self.tuning.model().config())?;
        LoraFile::new(Arc::new(MemorySource::new(tensors)), &metadata, "lora", &targets)
    }
}

impl Objective for Lora {
    fn networks(&self) -> &[Network] {
        &self.networks
    }

    fn examples(&self) -> usize {
        self.tuning.examples()
    }

    fn warnings(&self) -> Vec<String> {
        self.tuning.warnings()
    }

    fn data_digest(&self) -> String {
        self.tuning.data_digest()
    }

    fn describe(&self, index: usize) -> String {
        self.tuning.describe(index)
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        self.tuning.losses(batch, batch.indices.iter().map(|&i| self.tuning.caption(i)).collect())
    }

    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        Ok(vec![("train".to_owned(), self.tuning.fixed_error(|i| self.tuning.caption(i))?)])
    }

    fn samples(&mut self) -> Result<Option<Picture>> {
        self.tuning.samples(|i| self.tuning.caption(i))
    }

    /// The adapters in both layouts: `pytorch_lora_weights.safetensors`, the name under which diffusers looks for them, and
    /// `lora.safetensors` as web interfaces read them.
    fn export(&mut self, folder: &Path) -> Result<()> {
        let file = self.file()?;
        for (name, layout) in
            [("pytorch_lora_weights.safetensors", LoraLayout::Diffusers), ("lora.safetensors", LoraLayout::Kohya)]
        {
            file.save(folder.join(name), layout, DType::F32, &BTreeMap::new())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fine_tuning::Draft;
    use super::super::fine_tuning::tests::{check_gradients, recipe, shake};
    use super::*;
    use conjure_core::Device;
    use conjure_core::weights::LoraTarget;

    const BOTH: &str = "rank = 3\nalpha = 6.0\ntext_layers = [\"q_proj\", \"v_proj\", \"fc1\"]";

    #[test]
    fn factors_beside_the_chosen_layers_get_gradients() {
        let folder = tempfile::tempdir().unwrap();
        let mut objective = Lora::new(&recipe("lora", folder.path(), BOTH)).unwrap();
        let names: Vec<&str> = objective.networks[0].variables.keys().map(String::as_str).collect();
        // Two encoder layers with three projections, and five transformer blocks with two attentions of four: two factors each.
        assert_eq!(names.iter().filter(|name| name.starts_with("text_encoder.")).count(), 2 * 3 * 2);
        assert!(names.iter().any(|name| name.ends_with("attn2.to_out.0.lora_B.weight")), "{names:?}");
        assert!(names.iter().all(|name| name.contains(".lora_") && !name.contains(".ff.")), "{names:?}");
        check_gradients(&mut objective);
    }

    /// What is trained is what a picture is made with: the written file, merged, has the same error.
    #[test]
    fn the_written_file_computes_what_was_trained() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe("lora", folder.path(), BOTH);
        let mut objective = Lora::new(&recipe).unwrap();
        let untrained = objective.validate().unwrap()[0].1;
        shake(&objective.networks[0].variables);
        let trained = objective.validate().unwrap()[0].1;
        assert!((trained - untrained).abs() > 1e-3 * untrained, "{trained} {untrained}");
        let out = tempfile::tempdir().unwrap();
        objective.export(out.path()).unwrap();
        let own: Settings = recipe.own().unwrap();
        let targets: Vec<LoraTarget> = StableDiffusion::lora_targets(objective.tuning.model().config()).unwrap();
        for name in ["pytorch_lora_weights.safetensors", "lora.safetensors"] {
            let file = Arc::new(LoraFile::open(out.path().join(name), &targets).unwrap());
            let merge = |draft: Draft| Ok(Draft { sources: draft.sources.with_loras(&[(file, 1.0)]), ..draft });
            let merged =
                FineTuning::new(&recipe, &Device::Cpu, own.base.clone(), merge, &mut |_, params| params).unwrap();
            let error = merged.fixed_error(|i| merged.caption(i)).unwrap();
            assert!((error - trained).abs() < 1e-5 * trained, "{name}: {error} {trained}");
        }
    }

    #[test]
    fn bad_settings_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |settings: &str| {
            let error = Lora::new(&recipe("lora", folder.path(), settings)).err().unwrap();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(refused("rank = 0").contains("rank 0"));
        assert!(refused("alpha = -1.0").contains("alpha -1"));
        assert!(refused("layers = [\"to_x\"]").contains("the unet has no linear layer to_x"));
        assert!(refused("text_layers = [\"to_q\"]").contains("the text_encoder has no linear layer to_q"));
        assert!(refused("layers = []").contains("nothing to train"));
        assert!(refused("rang = 4").contains("rang"));
    }
}
