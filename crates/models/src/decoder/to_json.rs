//! Writing transformers' `config.json` of each family, so that transformers opens what Conjure trains.

use super::config::{BlockKind, DecoderConfig, ModelType, Positions};
use conjure_core::blocks::{RopeConfig, RopeScaling};
use conjure_core::{Error, Result};
use serde_json::{Map, Value, json};

impl DecoderConfig {
    /// The `config.json` in transformers' words, which its versions 4 and 5 read, and which [`Self::from_json`] reads back as
    /// the same config.
    ///
    /// # Errors
    /// A config that cannot be built, or that says something for which its family has no word.
    pub fn to_json(&self) -> Result<String> {
        self.check()?;
        let mut map = match self.model_type {
            ModelType::Gpt2 => self.gpt2_words(),
            ModelType::Mpt => self.mpt_words(),
            ModelType::GptNeox | ModelType::Palm => self.neox_words(),
            _ => self.llama_words(),
        };
        let class = match self.model_type {
            ModelType::Gpt2 => Some("GPT2LMHeadModel"),
            ModelType::GptNeox => Some("GPTNeoXForCausalLM"),
            ModelType::Palm => None,
            ModelType::Mpt => Some("MptForCausalLM"),
            ModelType::Llama => Some("LlamaForCausalLM"),
            ModelType::Mistral => Some("MistralForCausalLM"),
            ModelType::Qwen2 => Some("Qwen2ForCausalLM"),
            ModelType::Qwen3 => Some("Qwen3ForCausalLM"),
            ModelType::SmolLm3 => Some("SmolLM3ForCausalLM"),
            ModelType::Gemma => Some("GemmaForCausalLM"),
            ModelType::Gemma2 => Some("Gemma2ForCausalLM"),
            ModelType::Gemma3 => Some("Gemma3ForCausalLM"),
            ModelType::Phi3 => Some("Phi3ForCausalLM"),
        };
        if let Some(class) = class {
            map.insert("architectures".to_owned(), json!([class]));
        }
        map.insert("model_type".to_owned(), json!(self.model_type.name()));
        map.insert("vocab_size".to_owned(), json!(self.vocab_size));
        map.insert("tie_word_embeddings".to_owned(), json!(self.tie_word_embeddings));
        map.insert("bos_token_id".to_owned(), json!(self.bos_token_id));
        // transformers' defaults may be beyond the vocabulary.
        map.insert("pad_token_id".to_owned(), Value::Null);
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        map.insert("eos_token_id".to_owned(), eos);
        let text = format!("{:#}", Value::Object(map));
        if Self::from_json(&text)? != *self {
            return Err(Error::request(format!(
                "a config of model_type \"{}\" has no words for all of this model",
                self.model_type.name()
            ))
            .with_help("choose the family whose parts the model has"));
        }
        Ok(text)
    }

    fn gpt2_words(&self) -> Map<String, Value> {
        object(json!({
            "n_embd": self.hidden_size,
            "n_head": self.num_attention_heads,
            "n_layer": self.layers.len(),
            "n_inner": self.intermediate_size,
            "n_positions": self.max_position_embeddings,
            "activation_function": self.hidden_act.name(),
            "layer_norm_epsilon": self.norm_eps,
            "scale_attn_weights": self.attention_scale != 1.0,
        }))
    }

    fn mpt_words(&self) -> Map<String, Value> {
        let max_bias = if let Positions::Alibi { max_bias } = self.positions { max_bias } else { 0.0 };
        object(json!({
            "d_model": self.hidden_size,
            "n_heads": self.num_attention_heads,
            "n_layers": self.layers.len(),
            "expansion_ratio": self.intermediate_size / self.hidden_size,
            "max_seq_len": self.max_position_embeddings,
            "layer_norm_epsilon": self.norm_eps,
            "no_bias": true,
            "attn_config": {
                "attn_type": "multihead_attention",
                "alibi": true,
                // An integer in transformers.
                "alibi_bias_max": max_bias as u64,
            },
        }))
    }

    /// What GPT-NeoX, PaLM and Llama's relatives call the same.
    fn shared_words(&self) -> Map<String, Value> {
        let mut map = object(json!({
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers.len(),
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": self.hidden_act.name(),
        }));
        if let Some(scaling) = self.ropes.first().and_then(scaling) {
            map.insert("rope_scaling".to_owned(), scaling);
        }
        map
    }

    fn neox_words(&self) -> Map<String, Value> {
        let mut map = self.shared_words();
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        let rope = self.ropes.first();
        put("layer_norm_eps", json!(self.norm_eps));
        if self.model_type == ModelType::GptNeox {
            put("use_parallel_residual", json!(self.block == BlockKind::Parallel));
            put("attention_bias", json!(self.attention_bias));
            put("rotary_pct", json!(rope.map(|rope| rope.dim as f64 / self.head_dim as f64)));
            put("rotary_emb_base", json!(rope.map(|rope| number(rope.theta))));
        } else {
            put("head_dim", json!(self.head_dim));
            put("num_key_value_heads", json!(self.num_key_value_heads));
            put("rope_theta", json!(rope.map(|rope| number(rope.theta))));
        }
        map
    }

    fn llama_words(&self) -> Map<String, Value> {
        use ModelType::{Gemma, Gemma2, Gemma3, Llama, Phi3, Qwen2, Qwen3, SmolLm3};
        let mut map = self.shared_words();
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("rms_norm_eps", json!(self.norm_eps));
        put("head_dim", json!(self.head_dim));
        put("num_key_value_heads", json!(self.num_key_value_heads));
        put("rope_theta", json!(self.ropes.first().map(|rope| number(rope.theta))));
        if matches!(self.model_type, Llama | Qwen3 | SmolLm3 | Gemma | Gemma2 | Gemma3) {
            put("attention_bias", json!(self.attention_bias));
        }
        if matches!(self.model_type, Llama | SmolLm3) {
            put("mlp_bias", json!(self.mlp_bias));
        }
        if matches!(self.model_type, Gemma | Gemma2 | Gemma3) {
            put("hidden_activation", json!(self.hidden_act.name()));
        }
        let window = self.layers.iter().find_map(|layer| layer.window);
        if !matches!(self.model_type, Llama | Gemma) {
            put("sliding_window", json!(window));
        }
        if matches!(self.model_type, Qwen2 | Qwen3 | SmolLm3) {
            put("use_sliding_window", json!(window.is_some()));
        }
        if matches!(self.model_type, Qwen2 | Qwen3 | SmolLm3 | Gemma2 | Gemma3) {
            let kind = |window: Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
            put("layer_types", self.layers.iter().map(|layer| kind(layer.window)).collect());
        }
        if self.model_type == SmolLm3 {
            // 1 where a layer does rotate.
            put("no_rope_layers", self.layers.iter().map(|layer| u8::from(layer.rope.is_some())).collect());
        }
        if matches!(self.model_type, Gemma2 | Gemma3) {
            put("query_pre_attn_scalar", number(1.0 / (self.attention_scale * self.attention_scale)));
            put("attn_logit_softcapping", json!(self.attention_soft_cap));
            put("final_logit_softcapping", json!(self.logit_soft_cap));
        }
        if self.model_type == Gemma3 {
            put("rope_local_base_freq", json!(self.ropes.get(1).map(|rope| number(rope.theta))));
        }
        if self.model_type == Phi3 {
            let rope = self.ropes.first();
            put("partial_rotary_factor", json!(rope.map(|rope| rope.dim as f64 / self.head_dim as f64)));
            if let Some(RopeScaling::LongRope { original, .. }) = rope.map(|rope| &rope.scaling) {
                put("original_max_position_embeddings", json!(original));
            }
        }
        map
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The number, written as an integer where it is one but for rounding: transformers wants some so.
fn number(x: f64) -> Value {
    let whole = x.round();
    if (x - whole).abs() < 1e-9 * whole.abs() && whole.abs() < 1e15 { json!(whole as i64) } else { json!(x) }
}

/// `rope_scaling`, where there is one that has words.
fn scaling(rope: &RopeConfig) -> Option<Value> {
    Some(match &rope.scaling {
        RopeScaling::None | RopeScaling::Divisors(_) => return None,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Dynamic { factor, .. } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original,
        }),
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
            "truncate": truncate,
        }),
        RopeScaling::LongRope { short_factor, long_factor, original, attention_factor } => json!({
            "rope_type": "longrope",
            "short_factor": short_factor,
            "long_factor": long_factor,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original,
        }),
    })
}
