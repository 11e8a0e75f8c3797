//! Reading transformers' `config.json` of each family.

use super::config::{BlockKind, DecoderConfig, LayerConfig, ModelType, NormKind, Positions};
use super::entries::Entries;
use super::rope_entries::Rope;
use conjure_core::blocks::Activation;
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::{Error, Result};
use serde_json::json;

/// Entries that concern training, the tokenizer, generation or the file, whatever their value.
const HARMLESS: [&str; 57] = [
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "do_sample",
    "dtype",
    "embd_pdrop",
    "emb_pdrop",
    "eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "init_device",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_length",
    "n_ctx",
    "num_labels",
    "num_logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
];

impl DecoderConfig {
    /// Reads transformers' `config.json` of any of the families in [`ModelType`], in the words of its versions 4 and 5.
    ///
    /// # Errors
    /// Not JSON, another `model_type` or a model for another task, missing sizes, values of the wrong type or out of range,
    /// and every entry that is not known and not null or false.
    pub fn from_json(text: &str) -> Result<Self> {
        let mut entries = Entries::parse(text)?;
        let name = entries.text("model_type")?.ok_or_else(|| entries.lacks("model_type"))?;
        let Some(model_type) = ModelType::named(&name) else {
            let known: Vec<_> = ModelType::ALL.iter().map(|known| known.name()).collect();
            return Err(Error::request(format!("model_type \"{name}\" is no decoder that is known"))
                .with_help(format!("known are {}", known.join(", "))));
        };
        for class in entries.texts("architectures")?.unwrap_or_default() {
            if !["ForCausalLM", "LMHeadModel", "Model"].iter().any(|end| class.ends_with(end)) {
                return Err(Error::request(format!("architectures names \"{class}\", which is no language model"))
                    .with_help("known are classes that end with ForCausalLM, LMHeadModel or Model"));
            }
        }
        let (eos_token_ids, bos) = (entries.tokens("eos_token_id")?, entries.tokens("bos_token_id")?);
        let read = match model_type {
            ModelType::Gpt2 => gpt2(&mut entries)?,
            ModelType::GptNeox => gpt_neox(&mut entries)?,
            ModelType::Palm => palm(&mut entries)?,
            ModelType::Mpt => mpt(&mut entries)?,
            _ => llama_like(&mut entries, model_type)?,
        };
        entries.finish(&HARMLESS)?;
        let config = Self { model_type, eos_token_ids, bos_token_id: bos.first().copied(), ..read };
        config.check()?;
        Ok(config)
    }
}

/// The activation under `key`.
fn activation(entries: &mut Entries, key: &str, default: Activation) -> Result<Activation> {
    let Some(name) = entries.text(key)? else { return Ok(default) };
    Activation::from_name(&name).ok_or_else(|| {
        Error::request(format!("{key} is \"{name}\", which is not supported"))
            .with_help("supported: silu, gelu, gelu_new, gelu_pytorch_tanh")
    })
}

/// A number of layers that may be counted.
fn layer_count(entries: &mut Entries, key: &str) -> Result<usize> {
    let layers = entries.required(key)?;
    config::check_size(key, layers, MAX_LAYERS)?;
    Ok(layers)
}

/// `hidden / heads`, where that is whole.
fn divided(hidden: usize, heads: usize) -> Result<usize> {
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::request(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}")));
    }
    Ok(hidden / heads)
}

fn gpt2(entries: &mut Entries) -> Result<DecoderConfig> {
    let (hidden_size, heads) = (entries.required("n_embd")?, entries.required("n_head")?);
    let (layers, head_dim) = (layer_count(entries, "n_layer")?, divided(hidden_size, heads)?);
    entries.only("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    entries.only("add_cross_attention", &[json!(false)])?;
    let scaled = entries.flag("scale_attn_weights")?.unwrap_or(true);
    Ok(DecoderConfig {
        vocab_size: entries.required("vocab_size")?,
        hidden_size,
        intermediate_size: entries.size("n_inner")?.unwrap_or(hidden_size.saturating_mul(4)),
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: entries.required("n_positions")?,
        layers: vec![LayerConfig::default(); layers],
        ropes: Vec::new(),
        positions: Positions::Learned,
        norm: NormKind::Layer,
        norm_eps: entries.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        attention_bias: true,
        attention_output_bias: true,
        attention_scale: if scaled { 1.0 / (head_dim as f64).sqrt() } else { 1.0 },
        gated_mlp: false,
        hidden_act: activation(entries, "activation_function", Activation::GeluTanh)?,
        mlp_bias: true,
        tie_word_embeddings: entries.flag("tie_word_embeddings")?.unwrap_or(true),
        ..DecoderConfig::default()
    })
}

fn gpt_neox(entries: &mut Entries) -> Result<DecoderConfig> {
    let (hidden_size, heads) = (entries.required("hidden_size")?, entries.required("num_attention_heads")?);
    let (layers, head_dim) = (layer_count(entries, "num_hidden_layers")?, divided(hidden_size, heads)?);
    let max_position_embeddings = entries.required("max_position_embeddings")?;
    let parallel = entries.flag("use_parallel_residual")?.unwrap_or(true);
    let bias = entries.flag("attention_bias")?.unwrap_or(true);
    let rope = Rope { head_dim, theta: 10000.0, share: 0.25, max_position_embeddings, original: None }.read(entries)?;
    Ok(DecoderConfig {
        vocab_size: entries.required("vocab_size")?,
        hidden_size,
        intermediate_size: entries.required("intermediate_size")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings,
        layers: vec![LayerConfig { window: None, rope: Some(0) }; layers],
        ropes: vec![rope],
        norm: NormKind::Layer,
        norm_eps: entries.number("layer_norm_eps")?.unwrap_or(1e-5),
        block: if parallel { BlockKind::Parallel } else { BlockKind::Sequential },
        attention_bias: bias,
        attention_output_bias: bias,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        gated_mlp: false,
        hidden_act: activation(entries, "hidden_act", Activation::Gelu)?,
        mlp_bias: true,
        tie_word_embeddings: entries.flag("tie_word_embeddings")?.unwrap_or(false),
        ..DecoderConfig::default()
    })
}

/// There is no config of PaLM in transformers: the words are llama's, but for `layer_norm_eps`.
fn palm(entries: &mut Entries) -> Result<DecoderConfig> {
    let hidden_size = entries.required("hidden_size")?;
    let (layers, head_dim) = (layer_count(entries, "num_hidden_layers")?, entries.required("head_dim")?);
    let max_position_embeddings = entries.required("max_position_embeddings")?;
    let rope = Rope { head_dim, theta: 10000.0, share: 1.0, max_position_embeddings, original: None }.read(entries)?;
    Ok(DecoderConfig {
        vocab_size: entries.required("vocab_size")?,
        hidden_size,
        intermediate_size: entries.required("intermediate_size")?,
        num_attention_heads: entries.required("num_attention_heads")?,
        num_key_value_heads: entries.size("num_key_value_heads")?.unwrap_or(1),
        head_dim,
        max_position_embeddings,
        layers: vec![LayerConfig { window: None, rope: Some(0) }; layers],
        ropes: vec![rope],
        norm: NormKind::LayerWithoutBias,
        norm_eps: entries.number("layer_norm_eps")?.unwrap_or(1e-5),
        block: BlockKind::ParallelOneNorm,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        hidden_act: activation(entries, "hidden_act", Activation::Silu)?,
        logit_scale: 1.0 / (hidden_size.max(1) as f64).sqrt(),
        tie_word_embeddings: entries.flag("tie_word_embeddings")?.unwrap_or(true),
        ..DecoderConfig::default()
    })
}

fn mpt(entries: &mut Entries) -> Result<DecoderConfig> {
    let (hidden_size, heads) = (entries.required("d_model")?, entries.required("n_heads")?);
    let (layers, head_dim) = (layer_count(entries, "n_layers")?, divided(hidden_size, heads)?);
    let mut max_bias = 8.0;
    let mut attention_scale = 1.0 / (head_dim as f64).sqrt();
    if let Some(mut attention) = entries.below("attn_config")? {
        attention.only("attn_type", &[json!("multihead_attention")])?;
        attention.only("alibi", &[json!(true)])?;
        max_bias = attention.number("alibi_bias_max")?.unwrap_or(8.0);
        attention_scale = attention.number("softmax_scale")?.unwrap_or(attention_scale);
        attention.finish(&[&HARMLESS[..], &["attn_impl", "model_type"]].concat())?;
    }
    entries.only("no_bias", &[json!(true)])?;
    // transformers reads none of these: its model has neither learned positions nor another norm.
    for key in ["learned_pos_emb", "embedding_fraction", "norm_type", "verbose"] {
        entries.value(key);
    }
    let ratio = entries.size("expansion_ratio")?.unwrap_or(4);
    Ok(DecoderConfig {
        vocab_size: entries.required("vocab_size")?,
        hidden_size,
        intermediate_size: hidden_size.saturating_mul(ratio),
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: entries.required("max_seq_len")?,
        layers: vec![LayerConfig::default(); layers],
        ropes: Vec::new(),
        positions: Positions::Alibi { max_bias },
        norm: NormKind::LayerWithoutBias,
        norm_eps: entries.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        attention_scale,
        gated_mlp: false,
        hidden_act: Activation::Gelu,
        tie_word_embeddings: entries.flag("tie_word_embeddings")?.unwrap_or(true),
        ..DecoderConfig::default()
    })
}

/// Llama and those who took its words: RMSNorm, a gated MLP, rotations.
fn llama_like(entries: &mut Entries, model_type: ModelType) -> Result<DecoderConfig> {
    use ModelType::{Gemma, Gemma2, Gemma3, Llama, Phi3, Qwen2, Qwen3, SmolLm3};
    let is_gemma = matches!(model_type, Gemma | Gemma2 | Gemma3);
    let hidden_size = entries.required("hidden_size")?;
    config::check_size("hidden_size", hidden_size, MAX_FEATURES)?;
    let heads = entries.required("num_attention_heads")?;
    let layers = layer_count(entries, "num_hidden_layers")?;
    let max_position_embeddings = entries.required("max_position_embeddings")?;
    let head_dim = match (entries.size("head_dim")?, model_type) {
        (Some(head_dim), _) => head_dim,
        (None, Gemma | Gemma2 | Gemma3) => 256,
        (None, Qwen3) => 128,
        (None, _) => divided(hidden_size, heads)?,
    };
    let theta = match model_type {
        SmolLm3 => 2e6,
        Gemma3 => 1e6,
        _ => 10000.0,
    };
    let original = if model_type == Phi3 { Some(4096) } else { None };
    let rope = Rope { head_dim, theta, share: 1.0, max_position_embeddings, original };
    let ropes = if model_type == Gemma3 { rope.read_two(entries)? } else { vec![rope.read(entries)?] };
    let rotated = rotated(entries, model_type, layers)?;
    let windows = windows(entries, model_type, &rotated)?;
    let layers = windows.into_iter().zip(rotated).map(|(window, rotated)| LayerConfig {
        window,
        rope: rotated.then_some(if model_type == Gemma3 && window.is_some() { 1 } else { 0 }),
    });
    let bias = match model_type {
        Llama | Qwen3 | SmolLm3 | Gemma | Gemma2 | Gemma3 => entries.flag("attention_bias")?.unwrap_or(false),
        Qwen2 => true,
        _ => false,
    };
    let mlp_bias = match model_type {
        Llama | SmolLm3 => entries.flag("mlp_bias")?.unwrap_or(false),
        _ => false,
    };
    let hidden_act = if is_gemma {
        // `hidden_act` of old Gemma configs says "gelu" by mistake; transformers takes the approximation all the same.
        entries.value("hidden_act");
        activation(entries, "hidden_activation", Activation::GeluTanh)?
    } else {
        activation(entries, "hidden_act", Activation::Silu)?
    };
    let (mut attention_scale, mut attention_soft_cap, mut logit_soft_cap) =
        (1.0 / (head_dim.max(1) as f64).sqrt(), None, None);
    if matches!(model_type, Gemma2 | Gemma3) {
        attention_scale = 1.0 / entries.number("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
        // Null says none; without an entry, Gemma 2 has both.
        let default =
            |entries: &Entries, key: &str, cap: f64| (model_type == Gemma2 && !entries.contains(key)).then_some(cap);
        let caps = [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)];
        let [attention, logit] = caps.map(|(key, cap)| default(entries, key, cap));
        attention_soft_cap = entries.number("attn_logit_softcapping")?.or(attention);
        logit_soft_cap = entries.number("final_logit_softcapping")?.or(logit);
    }
    Ok(DecoderConfig {
        model_type,
        vocab_size: entries.required("vocab_size")?,
        hidden_size,
        intermediate_size: entries.required("intermediate_size")?,
        num_attention_heads: heads,
        num_key_value_heads: entries.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings,
        layers: layers.collect(),
        ropes,
        positions: Positions::Rotary,
        norm: if is_gemma { NormKind::RmsOffset } else { NormKind::Rms },
        norm_eps: entries.number("rms_norm_eps")?.unwrap_or(if model_type == Phi3 { 1e-5 } else { 1e-6 }),
        block: if matches!(model_type, Gemma2 | Gemma3) { BlockKind::Sandwich } else { BlockKind::Sequential },
        qk_norm: matches!(model_type, Qwen3 | Gemma3),
        attention_bias: bias,
        attention_output_bias: bias && model_type != Qwen2,
        attention_scale,
        attention_soft_cap,
        gated_mlp: true,
        hidden_act,
        mlp_bias,
        embedding_scale: if is_gemma { (hidden_size as f64).sqrt() } else { 1.0 },
        logit_scale: 1.0,
        logit_soft_cap,
        tie_word_embeddings: entries.flag("tie_word_embeddings")?.unwrap_or(is_gemma || model_type == SmolLm3),
        eos_token_ids: Vec::new(),
        bos_token_id: None,
    })
}

/// Each layer's sliding window.
fn windows(entries: &mut Entries, model_type: ModelType, rotated: &[bool]) -> Result<Vec<Option<usize>>> {
    use ModelType::{Gemma, Gemma2, Gemma3, Llama, Phi3, Qwen2, Qwen3, SmolLm3};
    let layers = rotated.len();
    if matches!(model_type, Llama | Gemma) {
        return Ok(vec![None; layers]);
    }
    // Null says none; without an entry, most mean 4096.
    let none = entries.contains("sliding_window") || matches!(model_type, Phi3 | SmolLm3);
    let default = if none { None } else { Some(4096) };
    let mut window = entries.size("sliding_window")?.or(default);
    let optional = matches!(model_type, Qwen2 | Qwen3 | SmolLm3);
    if optional && !entries.flag("use_sliding_window")?.unwrap_or(false) {
        window = None;
    }
    let first_sliding =
        if matches!(model_type, Qwen2 | Qwen3) { entries.size("max_window_layers")?.unwrap_or(28) } else { 0 };
    let pattern = if model_type == Gemma3 {
        // Version 5 of transformers writes the name with an underscore.
        let old = entries.size("sliding_window_pattern")?;
        entries.size("_sliding_window_pattern")?.or(old).unwrap_or(6).max(1)
    } else {
        2
    };
    if let Some(types) = entries.texts("layer_types")? {
        if types.len() != layers {
            return Err(Error::request(format!(
                "layer_types has {} entries but num_hidden_layers is {layers}",
                types.len()
            )));
        }
        return types
            .iter()
            .map(|kind| match (kind.as_str(), window) {
                ("full_attention", _) => Ok(None),
                ("sliding_attention", Some(window)) => Ok(Some(window)),
                ("sliding_attention", None) => {
                    Err(Error::request("layer_types names sliding_attention but there is no sliding_window"))
                }
                (other, _) => Err(Error::request(format!("layer_types names \"{other}\", which is not supported"))
                    .with_help("supported: full_attention, sliding_attention")),
            })
            .collect();
    }
    let slides = |n: usize| match model_type {
        Gemma2 | Gemma3 => !(n + 1).is_multiple_of(pattern),
        Qwen2 | Qwen3 => n >= first_sliding,
        SmolLm3 => !rotated[n],
        _ => true,
    };
    Ok((0..layers).map(|n| window.filter(|_| slides(n))).collect())
}

/// Whether each layer rotates queries and keys.
fn rotated(entries: &mut Entries, model_type: ModelType, layers: usize) -> Result<Vec<bool>> {
    if model_type != ModelType::SmolLm3 {
        return Ok(vec![true; layers]);
    }
    let interval = entries.size("no_rope_layer_interval")?.unwrap_or(4).max(1);
    // The name says the opposite of what it means: 1 where a layer does rotate.
    let Some(listed) = entries.numbers("no_rope_layers")? else {
        return Ok((0..layers).map(|n| !(n + 1).is_multiple_of(interval)).collect());
    };
    if listed.len() != layers {
        return Err(Error::request(format!(
            "no_rope_layers has {} entries but num_hidden_layers is {layers}",
            listed.len()
        )));
    }
    Ok(listed.into_iter().map(|rotates| rotates != 0.0).collect())
}
