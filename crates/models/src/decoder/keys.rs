//! The names that published checkpoints give to what this model calls by Llama's names.
//!
//! | family | how its files differ |
//! |---|---|
//! | GPT-2 | `transformer.h.N`; weights stored as matrices to multiply with from the right; one matrix for q, k and v |
//! | GPT-NeoX | `gpt_neox.layers.N`; q, k and v in one matrix, in turns for each head |
//! | MPT | `transformer.blocks.N`; one matrix for q, k and v |
//! | Phi-3 | one matrix for q, k and v, one for gate and up |
//!
//! The others have Llama's names.

use super::config::{DecoderConfig, ModelType};
use conjure_core::weights::{ParameterSpec, Renamed, TensorSource, Transform, View};
use conjure_core::{Result, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sees a checkpoint of the config's family through the names that [`super::Decoder`] asks for: `wanted` is what it asks
/// for, see [`super::asked`].
///
/// # Errors
/// A fused tensor does not have the shape that the config speaks of.
pub(super) fn renamed(
    source: Arc<dyn TensorSource>,
    config: &DecoderConfig,
    wanted: &[ParameterSpec],
) -> Result<Renamed> {
    // Files of the inner model alone lack the outer name.
    let prefix = prefixes(config.model_type)
        .iter()
        .find(|prefix| source.infos().contains_key(&format!("{prefix}{}", embedding(config.model_type))))
        .unwrap_or(&prefixes(config.model_type)[0]);
    let views: Vec<_> = wanted.iter().map(|spec| (spec.name.clone(), view(config, prefix, &spec.name))).collect();
    Renamed::new(source, views)
}

/// The way back: the tensors of [`super::Decoder`] under the names, and in the layout, of the config's family.
///
/// # Errors
/// A part of a fused tensor is missing, or parts do not fit each other.
pub(super) fn stored(tensors: &BTreeMap<String, Tensor>, config: &DecoderConfig) -> Result<BTreeMap<String, Tensor>> {
    let prefix = prefixes(config.model_type)[0];
    joined(tensors, |name| view(config, prefix, name))
}

/// Where the rows of the matrix `name (out, in)` lie in the stored layer's matrix, were it stored as `(out, in)` as well.
pub(super) fn rows(name: &str, config: &DecoderConfig) -> View {
    let View { source_name, transform } = view(config, prefixes(config.model_type)[0], name);
    let transform = match transform {
        Transform::ColumnsTransposed(range) => Transform::Rows(range),
        Transform::Transpose => Transform::AsIs,
        other => other,
    };
    View { source_name, transform }
}

/// Puts tensors together as `view` says where each of them lies.
///
/// # Errors
/// A part of a fused tensor is missing, or parts do not fit each other.
pub(super) fn joined(
    tensors: &BTreeMap<String, Tensor>,
    view: impl Fn(&str) -> View,
) -> Result<BTreeMap<String, Tensor>> {
    let mut parts: BTreeMap<String, Vec<(usize, Transform, &Tensor)>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let View { source_name, transform } = view(name);
        let place = match &transform {
            Transform::Rows(range) | Transform::ColumnsTransposed(range) => range.start,
            Transform::Interleaved { part, .. } => *part,
            _ => 0,
        };
        parts.entry(source_name).or_default().push((place, transform, tensor));
    }
    let join = |(name, mut parts): (String, Vec<(usize, Transform, &Tensor)>)| {
        parts.sort_by_key(|(place, _, _)| *place);
        let tensors: Vec<&Tensor> = parts.iter().map(|(_, _, tensor)| *tensor).collect();
        let joined = match &parts[0].1 {
            Transform::Rows(_) => Tensor::cat(&tensors, 0)?,
            Transform::ColumnsTransposed(_) => Tensor::cat(&tensors, 0)?.t()?.contiguous()?,
            Transform::Transpose => tensors[0].t()?.contiguous()?,
            Transform::Interleaved { rows, .. } => {
                let turns = |x: &&Tensor| -> Result<Tensor> {
                    let (n, rest) = (x.dim(0)?, x.elem_count() / x.dim(0)?.max(1));
                    Ok(x.reshape((n / rows, *rows, rest))?)
                };
                let all = tensors.iter().map(turns).collect::<Result<Vec<_>>>()?;
                let mut shape = tensors[0].dims().to_vec();
                shape[0] *= all.len();
                Tensor::cat(&all, 1)?.reshape(shape)?
            }
            Transform::AsIs | Transform::Squeeze => tensors[0].clone(),
        };
        Ok((name, joined))
    };
    parts.into_iter().map(join).collect()
}

/// What comes before the names of the inner model, the usual one first.
fn prefixes(model_type: ModelType) -> &'static [&'static str] {
    match model_type {
        ModelType::Gpt2 | ModelType::Mpt => &["transformer.", ""],
        ModelType::GptNeox => &["gpt_neox.", ""],
        ModelType::Gemma3 => &["model.", "", "language_model.model.", "model.language_model."],
        _ => &["model.", ""],
    }
}

fn embedding(model_type: ModelType) -> &'static str {
    match model_type {
        ModelType::Gpt2 | ModelType::Mpt => "wte.weight",
        ModelType::GptNeox => "embed_in.weight",
        _ => "embed_tokens.weight",
    }
}

/// Where the parameter `name` lies.
fn view(config: &DecoderConfig, prefix: &str, name: &str) -> View {
    let Some(inner) = name.strip_prefix("model.") else {
        // `lm_head.weight` is outside the inner model.
        let stored = if config.model_type == ModelType::GptNeox { "embed_out.weight" } else { name };
        return View::as_is(stored);
    };
    let (stored, transform) = match config.model_type {
        ModelType::Gpt2 => gpt2(config, inner),
        ModelType::GptNeox => gpt_neox(config, inner),
        ModelType::Mpt => mpt(config, inner),
        ModelType::Phi3 => phi3(config, inner),
        _ => (inner.to_owned(), Transform::AsIs),
    };
    View { source_name: format!("{prefix}{stored}"), transform }
}

/// `layers.N.rest` as `N` and `rest`.
fn layer(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("layers.")?.split_once('.')
}

/// The first of the rules `(ours, theirs)` that fits the whole name but for `.weight` or `.bias`.
fn rule(name: &str, rules: &[(&str, &str)]) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    rules.iter().find(|(ours, _)| *ours == module).map(|(_, theirs)| format!("{theirs}.{kind}"))
}

/// Which third of a fused q, k and v a name means, and `weight` or `bias`.
fn projection(name: &str) -> Option<(usize, &str)> {
    let (which, kind) = name.strip_prefix("self_attn.")?.split_once('.')?;
    let which = ["q_proj", "k_proj", "v_proj"].iter().position(|known| *known == which)?;
    Some((which, kind))
}

/// The rows of q, k or v where they lie one below the other.
fn third(config: &DecoderConfig, which: usize) -> std::ops::Range<usize> {
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    match which {
        0 => 0..q,
        1 => q..q + kv,
        _ => q + kv..q + 2 * kv,
    }
}

fn gpt2(config: &DecoderConfig, name: &str) -> (String, Transform) {
    const WHOLE: [(&str, &str); 3] = [("embed_tokens", "wte"), ("embed_positions", "wpe"), ("norm", "ln_f")];
    const NORMS: [(&str, &str); 2] = [("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2")];
    const PRODUCTS: [(&str, &str); 3] =
        [("self_attn.o_proj", "attn.c_proj"), ("mlp.up_proj", "mlp.c_fc"), ("mlp.down_proj", "mlp.c_proj")];
    let Some((n, rest)) = layer(name) else {
        return (rule(name, &WHOLE).unwrap_or_else(|| name.to_owned()), Transform::AsIs);
    };
    if let Some((which, kind)) = projection(rest) {
        let rows = third(config, which);
        let transform = if kind == "weight" { Transform::ColumnsTransposed(rows) } else { Transform::Rows(rows) };
        return (format!("h.{n}.attn.c_attn.{kind}"), transform);
    }
    if let Some(stored) = rule(rest, &PRODUCTS) {
        let transform = if stored.ends_with("weight") { Transform::Transpose } else { Transform::AsIs };
        return (format!("h.{n}.{stored}"), transform);
    }
    (format!("h.{n}.{}", rule(rest, &NORMS).unwrap_or_else(|| rest.to_owned())), Transform::AsIs)
}

fn gpt_neox(config: &DecoderConfig, name: &str) -> (String, Transform) {
    const WHOLE: [(&str, &str); 2] = [("embed_tokens", "embed_in"), ("norm", "final_layer_norm")];
    const LAYER: [(&str, &str); 3] = [
        ("self_attn.o_proj", "attention.dense"),
        ("mlp.up_proj", "mlp.dense_h_to_4h"),
        ("mlp.down_proj", "mlp.dense_4h_to_h"),
    ];
    let Some((n, rest)) = layer(name) else {
        return (rule(name, &WHOLE).unwrap_or_else(|| name.to_owned()), Transform::AsIs);
    };
    if let Some((which, kind)) = projection(rest) {
        let transform = Transform::Interleaved { part: which, parts: 3, rows: config.head_dim };
        return (format!("layers.{n}.attention.query_key_value.{kind}"), transform);
    }
    (format!("layers.{n}.{}", rule(rest, &LAYER).unwrap_or_else(|| rest.to_owned())), Transform::AsIs)
}

fn mpt(config: &DecoderConfig, name: &str) -> (String, Transform) {
    const WHOLE: [(&str, &str); 2] = [("embed_tokens", "wte"), ("norm", "norm_f")];
    const LAYER: [(&str, &str); 5] = [
        ("input_layernorm", "norm_1"),
        ("post_attention_layernorm", "norm_2"),
        ("self_attn.o_proj", "attn.out_proj"),
        ("mlp.up_proj", "ffn.up_proj"),
        ("mlp.down_proj", "ffn.down_proj"),
    ];
    let Some((n, rest)) = layer(name) else {
        return (rule(name, &WHOLE).unwrap_or_else(|| name.to_owned()), Transform::AsIs);
    };
    if let Some((which, kind)) = projection(rest) {
        return (format!("blocks.{n}.attn.Wqkv.{kind}"), Transform::Rows(third(config, which)));
    }
    (format!("blocks.{n}.{}", rule(rest, &LAYER).unwrap_or_else(|| rest.to_owned())), Transform::AsIs)
}

fn phi3(config: &DecoderConfig, name: &str) -> (String, Transform) {
    let Some((n, rest)) = layer(name) else { return (name.to_owned(), Transform::AsIs) };
    if let Some((which, kind)) = projection(rest) {
        return (format!("layers.{n}.self_attn.qkv_proj.{kind}"), Transform::Rows(third(config, which)));
    }
    let size = config.intermediate_size;
    let (stored, transform) = match rest {
        "mlp.gate_proj.weight" => ("mlp.gate_up_proj.weight", Transform::Rows(0..size)),
        "mlp.up_proj.weight" => ("mlp.gate_up_proj.weight", Transform::Rows(size..2 * size)),
        other => (other, Transform::AsIs),
    };
    (format!("layers.{n}.{stored}"), transform)
}
