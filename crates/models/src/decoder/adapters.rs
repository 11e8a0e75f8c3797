//! Low-rank adapters of a decoder under the names that PEFT gives them (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).
//!
//! PEFT puts factors beside the layers of transformers' models, whose names are those of [`super::stored`]. Where a family
//! has one layer for what are several here (GPT-2's `c_attn` for q, k and v), several adapters of rank `r` become one:
//! their A one below the other, their B each in columns of its own. The other way round, each part takes its rows of B and
//! all of A. Neither way changes a number.

use super::{DecoderConfig, asked, keys};
use conjure_core::ops::RopeLayout;
use conjure_core::weights::{LoraTarget, MemorySource, Renamed, TensorSource as _};
use conjure_core::{Error, Result, Shape, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The part of a model that a decoder is, see [`LoraTarget::component`].
const COMPONENT: &str = "decoder";

/// The change `up down` of a layer's weight `(out, in)`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `(rank, in)`: the paper's A.
    pub down: Tensor,
    /// `(out, rank)`: the paper's B, not scaled.
    pub up: Tensor,
}

/// Factors of one layer of transformers' model.
#[derive(Clone, Debug)]
pub struct LayerFactors {
    /// Its name, such as `model.layers.0.self_attn.q_proj` or `transformer.h.0.attn.c_attn`.
    pub layer: String,
    /// Its adapters put together.
    pub factors: Factors,
    /// How many were put together: the rank is so many times that of one.
    pub parts: usize,
}

/// The weights of linear layers by the names that [`super::Decoder::new`] asks for, with their shapes.
fn linear(config: &DecoderConfig) -> Result<Vec<(String, Shape)>> {
    let all = asked(config)?.into_iter().map(|spec| (spec.name, spec.shape));
    Ok(all.filter(|(name, shape)| shape.rank() == 2 && !name.contains("embed_")).collect())
}

/// Whether the rows of this weight are in the order of a GGUF file, in which neighbours are rotated together. In
/// transformers' models the two halves of a head are.
fn rotates_neighbours(config: &DecoderConfig, name: &str) -> bool {
    let rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
    rotated && config.ropes.iter().any(|rope| rope.layout == RopeLayout::Interleaved && rope.dim == config.head_dim)
}

/// The rows of each head, a table of `from` by `to` of them, the other way round.
fn turned(up: &Tensor, to: usize, from: usize) -> Result<Tensor> {
    let (rows, rank) = up.dims2()?;
    let heads = up.reshape((rows / (from * to), from, to, rank))?;
    Ok(heads.transpose(1, 2)?.contiguous()?.reshape((rows, rank))?)
}

/// The layers of transformers' model of this config that a LoRA file can change.
///
/// # Errors
/// A config that cannot be built.
pub fn adapter_targets(config: &DecoderConfig) -> Result<Vec<LoraTarget>> {
    let mut sizes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (name, shape) in linear(config)? {
        let (rows, columns) = shape.dims2()?;
        let stored = sizes.entry(keys::rows(&name, config).source_name).or_default();
        *stored = (stored.0 + rows, columns);
    }
    let target = |(parameter, size): (String, (usize, usize))| {
        let layer = parameter.trim_end_matches(".weight");
        // PEFT's own name, and the one that is left when a program has taken its wrapper off.
        let spellings = vec![format!("base_model.model.{layer}"), layer.to_owned()];
        LoraTarget { component: COMPONENT, shape: size.into(), spellings, parameter: parameter.clone() }
    };
    Ok(sizes.into_iter().map(target).collect())
}

/// What an adapter has for each layer by our names (`model.layers.0.self_attn.q_proj`). `read` gives the factors of a target
/// of [`adapter_targets`], by the target's component and parameter.
///
/// # Errors
/// Those of `read`; factors that do not fit the config.
pub fn from_adapter(
    config: &DecoderConfig,
    read: &dyn Fn(&'static str, &str) -> Result<Option<Factors>>,
) -> Result<BTreeMap<String, Factors>> {
    let mut found = BTreeMap::new();
    for (name, _) in linear(config)? {
        let view = keys::rows(&name, config);
        let Some(Factors { down, up }) = read(COMPONENT, &view.source_name)? else { continue };
        let whole = Arc::new(MemorySource::new([(view.source_name.clone(), up)]));
        let part = Renamed::new(whole, [(name.clone(), view)])?;
        let mut up = part.load(&name, down.dtype(), down.device())?; // (out, rank)
        if rotates_neighbours(config, &name) {
            up = turned(&up, config.head_dim / 2, 2)?;
        }
        found.insert(name.trim_end_matches(".weight").to_owned(), Factors { down, up });
    }
    Ok(found)
}

/// The way back: the factors by our names as those of the layers of transformers' model.
///
/// # Errors
/// A layer that the config does not have, factors that do not fit it or have several ranks.
pub fn to_adapter(config: &DecoderConfig, factors: &BTreeMap<String, Factors>) -> Result<Vec<LayerFactors>> {
    let mut stored: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
    let mut known = 0;
    for (name, shape) in linear(config)? {
        known += usize::from(factors.contains_key(name.trim_end_matches(".weight")));
        stored.entry(keys::rows(&name, config).source_name).or_default().push((name, shape.dims()[0]));
    }
    if known != factors.len() {
        return Err(Error::request("an adapter changes a layer that the model does not have"));
    }
    let mut layers = Vec::new();
    for (parameter, parts) in stored {
        let own: Vec<Option<&Factors>> =
            parts.iter().map(|(name, _)| factors.get(name.trim_end_matches(".weight"))).collect();
        let downs: Vec<&Tensor> = own.iter().flatten().map(|factors| &factors.down).collect();
        let Some(first) = downs.first() else { continue };
        let (rank, count) = (first.dim(0)?, downs.len());
        let mut before = 0;
        let mut ups = BTreeMap::new();
        for ((name, rows), own) in parts.iter().zip(&own) {
            let up = match own {
                None => Tensor::zeros((*rows, rank * count), first.dtype(), first.device())?,
                Some(factors) => {
                    let mut up = factors.up.clone();
                    if rotates_neighbours(config, name) {
                        up = turned(&up, 2, config.head_dim / 2)?;
                    }
                    // In columns of its own; zeros beside.
                    let padded = up.pad_with_zeros(1, before, rank * count - before - rank)?;
                    before += rank;
                    padded
                }
            };
            ups.insert(name.clone(), up); // (rows, rank * count)
        }
        let mut joined = keys::joined(&ups, |name| keys::rows(name, config))?;
        let up =
            joined.remove(&parameter).ok_or_else(|| Error::failure(format!("{parameter} was not put together")))?;
        let factors = Factors { down: Tensor::cat(&downs, 0)?, up };
        layers.push(LayerFactors { layer: parameter.trim_end_matches(".weight").to_owned(), factors, parts: count });
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::super::ModelType;
    use super::*;
    use conjure_core::Device;
    use conjure_core::rng::{self, Generator as _};

    fn drawn(name: &str, rows: usize, columns: usize) -> Tensor {
        let values = rng::keyed(3, name).normal(rows * columns);
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// There and back, for families that store layers apart, below each other and in turns. One of three fused layers has no
    /// adapter.
    #[test]
    fn factors_survive_the_way_into_fused_layers_and_back() {
        for text in [
            r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 9, "vocab_size": 5, "tie_word_embeddings": true}"#,
            r#"{"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 9, "vocab_size": 5}"#,
            r#"{"model_type": "gpt_neox", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 9, "vocab_size": 5, "rotary_pct": 0.5}"#,
            r#"{"model_type": "phi3", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 9, "vocab_size": 5, "pad_token_id": 0}"#,
        ] {
            let mut config = DecoderConfig::from_json(text).unwrap();
            if config.model_type == ModelType::Llama {
                // As in a GGUF file.
                config.ropes[0].layout = RopeLayout::Interleaved;
            }
            let factors: BTreeMap<String, Factors> = linear(&config)
                .unwrap()
                .into_iter()
                .filter(|(name, _)| !name.contains("k_proj") && !name.contains("lm_head"))
                .map(|(name, shape)| {
                    let (rows, columns) = shape.dims2().unwrap();
                    let factors = Factors { down: drawn(&name, 2, columns), up: drawn(&format!("{name} up"), rows, 2) };
                    (name.trim_end_matches(".weight").to_owned(), factors)
                })
                .collect();
            let layers = to_adapter(&config, &factors).unwrap();
            let targets = adapter_targets(&config).unwrap();
            for LayerFactors { layer, factors, parts } in &layers {
                let target = targets.iter().find(|target| target.parameter == format!("{layer}.weight")).unwrap();
                let (out, inner) = target.shape.dims2().unwrap();
                assert_eq!(factors.down.dims(), [2 * parts, inner], "{layer}");
                assert_eq!(factors.up.dims(), [out, 2 * parts], "{layer}");
            }
            let read = |_: &'static str, parameter: &str| {
                let layer = layers.iter().find(|layer| format!("{}.weight", layer.layer) == parameter);
                Ok(layer.map(|layer| layer.factors.clone()))
            };
            let back = from_adapter(&config, &read).unwrap();
            let product = |factors: &Factors| values(&factors.up.matmul(&factors.down).unwrap());
            for (name, factors) in &factors {
                let (want, got) = (product(factors), product(&back[name]));
                assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
            }
            for (name, factors) in back.iter().filter(|(name, _)| name.contains("k_proj")) {
                assert!(product(factors).iter().all(|x| *x == 0.0), "{name}");
            }
        }
    }
}
