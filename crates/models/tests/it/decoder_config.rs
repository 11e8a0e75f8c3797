//! The configs of published language models, as their authors wrote them.

use conjure_models::decoder::DecoderConfig;

#[track_caller]
fn reads_as(text: &str, expected: DecoderConfig) {
    let config = DecoderConfig::from_json(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config, expected);
}

#[test]
fn published_configs_are_read() {
    reads_as(
        r#"{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257}"#,
        DecoderConfig::gpt2(),
    );
    reads_as(
        r#"{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12, "num_hidden_layers": 12,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304}"#,
        DecoderConfig::pythia_160m(),
    );
    reads_as(
        r#"{"architectures": ["MPTForCausalLM"], "attn_config": {"alibi": true, "alibi_bias_max": 8,
        "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention", "attn_uses_sequence_id": false,
        "clip_qkv": null, "prefix_lm": false, "qk_ln": false, "softmax_scale": null}, "bos_token_id": 0,
        "d_model": 4096, "emb_pdrop": 0, "embedding_fraction": 1.0, "eos_token_id": 0, "expansion_ratio": 4,
        "init_device": "cpu", "learned_pos_emb": true, "logit_scale": null, "max_seq_len": 2048, "model_type": "mpt",
        "n_heads": 32, "n_layers": 32, "no_bias": true, "norm_type": "low_precision_layernorm", "resid_pdrop": 0,
        "use_cache": false, "verbose": 0, "vocab_size": 50432}"#,
        DecoderConfig::mpt_7b(),
    );
    reads_as(
        r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
        "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256}"#,
        DecoderConfig::llama_3_2_1b(),
    );
    reads_as(
        r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
        "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype":
        {"q4f16": "float16", "fp16": "float16"}}, "transformers_version": "4.42.3", "use_cache": true,
        "vocab_size": 49152}"#,
        DecoderConfig::smollm2_135m(),
    );
    reads_as(
        r#"{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}"#,
        DecoderConfig::mistral_7b(),
    );
    reads_as(
        r#"{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936}"#,
        DecoderConfig::qwen2_5_0_5b(),
    );
    reads_as(
        r#"{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}"#,
        DecoderConfig::qwen3_0_6b(),
    );
    reads_as(
        r#"{"architectures": ["Gemma3ForCausalLM"], "_sliding_window_pattern": 6, "attention_bias": false,
        "attention_dropout": 0.0, "attn_logit_softcapping": null, "bos_token_id": 2, "eos_token_id": 1,
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640, "initializer_range": 0.02, "intermediate_size": 2048, "layer_types":
        ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
        "full_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
        "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "sliding_attention",
        "sliding_attention", "sliding_attention", "full_attention"], "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
        "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": 512, "torch_dtype": "bfloat16",
        "transformers_version": "4.55.0.dev0", "use_bidirectional_attention": false, "use_cache": true,
        "vocab_size": 262144}"#,
        DecoderConfig::gemma_3_270m(),
    );
    reads_as(
        r#"{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32",
        "transformers_version": "4.42.4", "use_cache": true, "vocab_size": 256000}"#,
        DecoderConfig::gemma_2_2b(),
    );
    reads_as(
        r#"{"architectures": ["GemmaForCausalLM"], "attention_bias": false, "bos_token_id": 2, "eos_token_id": 1,
        "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.38.0.dev0",
        "use_cache": true, "vocab_size": 256000}"#,
        DecoderConfig::gemma_2b(),
    );
    reads_as(
        r#"{"_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
        "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
        "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "use_cache": true, "attention_bias": false, "vocab_size": 32064}"#,
        DecoderConfig::phi_3_mini_4k(),
    );
}

/// A small Llama with this in front of its other entries.
fn llama_with(entry: &str) -> String {
    format!(
        r#"{{{entry}, "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}}"#
    )
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let refused = |text: &str| DecoderConfig::from_json(text).unwrap_err();
    let error = refused(r#"{"model_type": "mamba"}"#);
    assert_eq!(error.to_string(), "model_type \"mamba\" is no decoder that is known");
    assert!(error.help().unwrap().starts_with("known are gpt2, gpt_neox, palm"));
    assert_eq!(refused("{}").to_string(), "the config lacks model_type");
    assert!(refused("[").to_string().starts_with("not a model's config: "));
    let lacking = r#"{"model_type": "llama", "hidden_size": 8}"#;
    assert_eq!(refused(lacking).to_string(), "the config lacks num_attention_heads");
    for (entry, said) in [
        (r#""quantization_config": {"bits": 4}"#, "unknown entry quantization_config ({\"bits\":4}), which may change"),
        (r#""sliding_window": 4"#, "unknown entry sliding_window (4)"),
        (r#""hidden_act": "relu2""#, "hidden_act is \"relu2\", which is not supported"),
        (r#""num_key_value_heads": 3"#, "num_attention_heads 2 is not a multiple of num_key_value_heads 3"),
        (r#""num_key_value_heads": 0"#, "num_key_value_heads is 0"),
        (r#""rope_scaling": {"rope_type": "mrope"}"#, "rope_type is \"mrope\", which is not supported"),
        (r#""rope_scaling": {"type": "linear"}"#, "the config lacks rope_scaling.factor"),
        (r#""rope_scaling": {"type": "linear", "factor": 0}"#, "factor is 0; it must be more than 0"),
        (r#""rope_scaling": {"type": "linear", "factor": 2, "odd": 1}"#, "unknown entry rope_scaling.odd (1)"),
        (r#""rope_scaling": 3"#, "rope_scaling is 3, not an object"),
        (r#""rope_theta": "big""#, "rope_theta is \"big\", not a number"),
        (r#""head_dim": -1"#, "head_dim is -1, not a whole number"),
        (r#""head_dim": 3"#, "3 features of a head cannot be rotated in pairs"),
        (r#""head_dim": 1048576"#, "num_attention_heads * head_dim is 2097152; at most 1048576"),
        (r#""architectures": ["LlamaForSequenceClassification"]"#, "architectures names \"LlamaForSequenceCla"),
        (r#""eos_token_id": "</s>""#, "eos_token_id is \"</s>\", not a token's id or a list of them"),
    ] {
        let error = refused(&llama_with(entry)).to_string();
        assert!(error.starts_with(said), "{error}");
    }
    let many = llama_with(r#""x": null"#).replace(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 1000000000000"#);
    assert!(refused(&many).to_string().starts_with("num_hidden_layers is 1000000000000; at most 128"));
    let gemma = r#"{"model_type": "gemma2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16, "layer_types": ["odd", "odd"]}"#;
    assert_eq!(refused(gemma).to_string(), "layer_types names \"odd\", which is not supported");
    assert!(DecoderConfig::from_json(&llama_with(r#""x": false"#)).is_ok());
}
