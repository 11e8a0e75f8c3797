//! Decoders in GGUF files, against the same decoders under their own names: what llama.cpp's converter does to a model is done
//! here to a random one, by the converter's own tables.

use candle_core::{DType, Device, Tensor};
use conjure_core::Result;
use conjure_core::probe::NoProbe;
use conjure_core::weights::gguf::{Metadata, MetadataArray, MetadataValue};
use conjure_core::weights::{Init, MemorySource, Params, TensorInfo, TensorSource};
use conjure_models::decoder::{self, BlockKind, Decoder, DecoderConfig, NormKind};
use std::collections::BTreeMap;
use std::sync::Arc;

type Tensors = BTreeMap<String, Tensor>;

/// A GGUF file in memory.
struct File {
    tensors: MemorySource,
    metadata: Metadata,
}

impl File {
    fn source(tensors: Tensors, metadata: Metadata) -> Arc<dyn TensorSource> {
        Arc::new(Self { tensors: MemorySource::new(tensors), metadata })
    }
}

impl TensorSource for File {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        self.tensors.infos()
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.tensors.load(name, dtype, device)
    }

    fn gguf(&self) -> Option<&Metadata> {
        Some(&self.metadata)
    }
}

/// transformers' config of a small model: grouped heads of 4 features where the family has them.
fn json(model_type: &str, more: &str) -> String {
    let sizes = match model_type {
        "gpt2" => r#""n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16, "n_inner": 12, "#,
        "mpt" => r#""d_model": 8, "n_heads": 2, "n_layers": 2, "max_seq_len": 16, "expansion_ratio": 2, "#,
        _ => {
            r#""hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 4,
               "max_position_embeddings": 16, "#
        }
    };
    format!(r#"{{"model_type": "{model_type}", {sizes} "vocab_size": 11 {more}}}"#)
}

/// Random tensors for every parameter of the config.
fn random(config: &DecoderConfig) -> Tensors {
    let drawn = Params::seeded(7, DType::F32, &Device::Cpu);
    let asked = decoder::asked(config).unwrap();
    let tensor = |name: &str, shape: &[usize]| drawn.get(name, shape, Init::Normal { std: 0.4 }).unwrap();
    asked.into_iter().map(|spec| (spec.name.clone(), tensor(&spec.name, spec.shape.dims()))).collect()
}

/// The names of llama.cpp's `constants.py`.
const NAMES: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// `permute` of `LlamaModel` in llama.cpp's converter.
fn permute(rows: &Tensor, heads: usize) -> Tensor {
    let n = rows.dim(0).unwrap();
    let rest = rows.elem_count() / n;
    let split = rows.reshape((heads, 2, n / heads / 2, rest)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape(rows.shape()).unwrap()
}

/// What the converter makes of a model's tensors.
fn converted(config: &DecoderConfig, architecture: &str, tensors: &Tensors) -> Tensors {
    let is_gemma = architecture.starts_with("gemma");
    let mut out = Tensors::new();
    for (name, tensor) in tensors {
        let (module, kind) = name.rsplit_once('.').unwrap();
        let mut tensor = tensor.clone();
        if is_gemma && module.ends_with("norm") {
            tensor = (tensor + 1.0).unwrap();
        }
        let Some((n, module)) = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
            let module = match module {
                "model.embed_tokens" => "token_embd",
                "model.embed_positions" => "position_embd",
                "model.norm" => "output_norm",
                "lm_head" => "output",
                other => panic!("{other}"),
            };
            out.insert(format!("{module}.{kind}"), tensor);
            continue;
        };
        if ["llama", "smollm3"].contains(&architecture) {
            match module {
                "self_attn.q_proj" => tensor = permute(&tensor, config.num_attention_heads),
                "self_attn.k_proj" => tensor = permute(&tensor, config.num_key_value_heads),
                _ => {}
            }
        }
        let sandwich = config.block == BlockKind::Sandwich;
        let theirs = match module {
            "post_attention_layernorm" if sandwich => "post_attention_norm",
            "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
            "post_feedforward_layernorm" => "post_ffw_norm",
            "mlp.gate_proj" => "ffn_gate",
            _ => NAMES.iter().find(|(ours, _)| *ours == module).unwrap_or_else(|| panic!("{module}")).1,
        };
        out.insert(format!("blk.{n}.{theirs}.{kind}"), tensor);
    }
    let fuse = |out: &mut Tensors, parts: &[&str], whole: &str| {
        let first: Vec<String> = out.keys().filter(|name| name.contains(&format!(".{}.", parts[0]))).cloned().collect();
        for name in first {
            let with = |part: &str| name.replace(&format!(".{}.", parts[0]), &format!(".{part}."));
            let rows: Vec<Tensor> = parts.iter().map(|part| out.remove(&with(part)).unwrap()).collect();
            out.insert(with(whole), Tensor::cat(&rows, 0).unwrap());
        }
    };
    if ["phi3", "gpt2", "gptneox", "mpt"].contains(&architecture) {
        fuse(&mut out, &["attn_q", "attn_k", "attn_v"], "attn_qkv");
    }
    if architecture == "phi3" {
        fuse(&mut out, &["ffn_gate", "ffn_up"], "ffn_up");
    }
    out
}

/// The keys that every architecture has, and those given.
fn metadata(architecture: &str, config: &DecoderConfig, more: &[(&str, MetadataValue)]) -> Metadata {
    let mut metadata = Metadata::new("m.gguf");
    metadata.insert("general.architecture", architecture);
    let layer_norm = matches!(config.norm, NormKind::Layer | NormKind::LayerWithoutBias);
    let eps = if layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    for (key, value) in [
        ("context_length", MetadataValue::U32(16)),
        ("embedding_length", MetadataValue::U32(config.hidden_size as u32)),
        ("block_count", MetadataValue::U32(config.layers.len() as u32)),
        ("feed_forward_length", MetadataValue::U32(config.intermediate_size as u32)),
        ("attention.head_count", MetadataValue::U32(config.num_attention_heads as u32)),
        ("attention.head_count_kv", MetadataValue::U32(config.num_key_value_heads as u32)),
        (eps, MetadataValue::F32(config.norm_eps as f32)),
    ] {
        metadata.insert(format!("{architecture}.{key}"), value);
    }
    metadata.insert("tokenizer.ggml.bos_token_id", 1_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 2_u32);
    for (key, value) in more {
        metadata.insert(format!("{architecture}.{key}"), value.clone());
    }
    metadata
}

fn logits(source: Arc<dyn TensorSource>, config: &DecoderConfig) -> Vec<f32> {
    let model = Decoder::new(&Params::load(source, DType::F32, &Device::Cpu), config).unwrap();
    let ids = Tensor::new(&[[3_u32, 1, 4, 1, 5, 9, 2, 6], [10, 0, 7, 8, 1, 2, 3, 4]], &Device::Cpu).unwrap();
    model.forward(&ids, None, &mut NoProbe).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The model of `json` gives the same logits after it was converted.
fn same(architecture: &str, json: &str, more: &[(&str, MetadataValue)], extra: &[(&str, Vec<f32>)]) {
    let config = DecoderConfig::from_json(json).unwrap();
    let tensors = random(&config);
    let expected = logits(Arc::new(MemorySource::new(tensors.clone())), &config);
    let mut file = converted(&config, architecture, &tensors);
    for (name, values) in extra {
        file.insert((*name).to_owned(), Tensor::new(values.as_slice(), &Device::Cpu).unwrap());
    }
    let file = File::source(file, metadata(architecture, &config, more));
    let read = DecoderConfig::from_gguf(file.as_ref()).unwrap();
    assert_eq!((read.bos_token_id, read.eos_token_ids.as_slice()), (Some(1), &[2][..]));
    assert_eq!(
        read.model_type.name().replace("mistral", "llama"),
        config.model_type.name().replace("mistral", "llama")
    );
    let converted = logits(decoder::canonical(file, &read).unwrap(), &read);
    let scale = expected.iter().map(|v| v.abs()).fold(0.0, f32::max);
    for (converted, expected) in converted.iter().zip(&expected) {
        assert!((converted - expected).abs() <= 1e-5 * scale, "{architecture}: {converted} is not {expected}");
    }
}

fn u32(n: u32) -> MetadataValue {
    MetadataValue::U32(n)
}

#[test]
fn llama_and_its_relatives() {
    let grouped = r#", "num_key_value_heads": 2, "head_dim": 4, "rope_theta": 500.0"#;
    let theta = ("rope.freq_base", MetadataValue::F32(500.0));
    let length = [theta.clone(), ("attention.key_length", u32(4)), ("attention.value_length", u32(4))];
    let bias = r#", "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true"#;
    same("llama", &json("llama", grouped), &length, &[]);
    same("llama", &json("llama", &format!("{grouped}{bias}")), &length, &[]);
    let window = [&length[..], &[("attention.sliding_window", u32(3))]].concat();
    same("llama", &json("mistral", &format!(r#"{grouped}, "sliding_window": 3"#)), &window, &[]);
    same("qwen2", &json("qwen2", r#", "num_key_value_heads": 2"#), &[], &[]);
    same("qwen3", &json("qwen3", grouped), &length, &[]);
    same("smollm3", &json("smollm3", grouped), &length, &[]);

    // Stretched angles: divided by a factor, and Llama 3.1's as a table.
    let linear = format!(r#"{grouped}, "rope_scaling": {{"rope_type": "linear", "factor": 4.0}}"#);
    let keys = [("rope.scaling.type", MetadataValue::from("linear")), ("rope.scaling.factor", MetadataValue::F32(4.0))];
    same("llama", &json("llama", &linear), &[&length[..], &keys].concat(), &[]);
    let llama3 = r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 16}"#;
    // Turns over 16 positions: 2.55 of the first angle, which is on the ramp, and few of the second.
    let turns = 16.0 / std::f64::consts::TAU;
    let fast = (turns - 1.0) / 3.0;
    let divisors = vec![(1.0 / ((1.0 - fast) / 8.0 + fast)) as f32, 8.0];
    let llama3 = json("llama", &format!(r#"{grouped}, "rope_scaling": {llama3}"#));
    same("llama", &llama3, &length, &[("rope_freqs.weight", divisors)]);
}

#[test]
fn gemma() {
    let sizes = r#", "num_key_value_heads": 2, "head_dim": 4, "hidden_activation": "gelu_pytorch_tanh""#;
    let length = [("attention.key_length", u32(4)), ("attention.value_length", u32(4))];
    same("gemma", &json("gemma", sizes), &length, &[]);
    let soft = r#", "query_pre_attn_scalar": 4, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0"#;
    let keys = [
        ("attention.sliding_window", u32(3)),
        ("attn_logit_softcapping", MetadataValue::F32(0.5)),
        ("final_logit_softcapping", MetadataValue::F32(3.0)),
    ];
    let second = json("gemma2", &format!(r#"{sizes}{soft}, "sliding_window": 3"#));
    same("gemma2", &second, &[&length[..], &keys].concat(), &[]);
    let pattern = r#", "query_pre_attn_scalar": 4, "sliding_window": 3, "sliding_window_pattern": 2"#;
    let third = json("gemma3_text", &format!("{sizes}{pattern}"));
    let theta = ("rope.freq_base", MetadataValue::F32(1e6));
    let listed = MetadataValue::Array(MetadataArray::Bool(vec![true, false, true, false]));
    for pattern in [u32(2), listed] {
        let keys = [theta.clone(), ("attention.sliding_window", u32(3)), ("attention.sliding_window_pattern", pattern)];
        same("gemma3", &third, &[&length[..], &keys].concat(), &[]);
    }
}

#[test]
fn fused_projections() {
    let window = r#", "num_key_value_heads": 2, "sliding_window": 3"#;
    same("phi3", &json("phi3", window), &[("attention.sliding_window", u32(3))], &[]);
    // Eight positions are more than the four of the first training: the long divisors.
    let scaling = r#"{"type": "longrope", "short_factor": [1.5], "long_factor": [3.0]}"#;
    let long = format!(r#", "original_max_position_embeddings": 4, "rope_scaling": {scaling}"#);
    let factors = [("rope_factors_short.weight", vec![1.5]), ("rope_factors_long.weight", vec![3.0])];
    same("phi3", &json("phi3", &long), &[("rope.scaling.original_context_length", u32(4))], &factors);
    same("gpt2", &json("gpt2", ""), &[], &[]);
    same("mpt", &json("mpt", ""), &[("attention.max_alibi_bias", MetadataValue::F32(8.0))], &[]);
    for parallel in [true, false] {
        let neox = format!(r#", "rotary_pct": 1.0, "use_parallel_residual": {parallel}"#);
        let keys = [("use_parallel_residual", MetadataValue::Bool(parallel)), ("rope.dimension_count", u32(2))];
        same("gptneox", &json("gpt_neox", &neox), &keys, &[]);
    }
}

#[test]
fn what_is_not_read_is_refused_by_its_own_name() {
    let config = DecoderConfig::from_json(&json("llama", "")).unwrap();
    let tensors = || converted(&config, "llama", &random(&config));
    let refusal = |metadata: Metadata| {
        let error = DecoderConfig::from_gguf(File::source(tensors(), metadata).as_ref()).unwrap_err();
        assert!(error.help().is_some(), "{error}");
        error
    };
    let with = |more: &[(&str, MetadataValue)]| refusal(metadata("llama", &config, more)).to_string();
    let error = refusal(metadata("rwkv7", &config, &[]));
    assert_eq!(error.to_string(), "m.gguf: the architecture \"rwkv7\" is not read");
    assert!(error.help().unwrap().contains("llama, qwen2, qwen3, smollm3, gemma"), "{:?}", error.help());
    assert_eq!(
        refusal(Metadata::new("m.gguf")).to_string(),
        "m.gguf: the GGUF header lacks the key general.architecture"
    );
    let mut empty = Metadata::new("m.gguf");
    empty.insert("general.architecture", "llama");
    assert_eq!(refusal(empty).to_string(), "m.gguf: the GGUF header lacks the key llama.embedding_length");
    for (key, value, expected) in [
        ("expert_count", u32(8), "the model has a mixture of experts, which are not supported"),
        ("block_count", u32(u32::MAX), "llama.block_count is 4294967295; at most 128 is supported"),
        ("attention.head_count", u32(0), "8 features cannot be split into 0 heads"),
        ("attention.head_count", u32(3), "8 features cannot be split into 3 heads"),
        ("attention.value_length", u32(7), "values of another length than keys are not supported"),
        ("rope.scaling.type", MetadataValue::from("spiral"), "llama.rope.scaling.type is \"spiral\", which is not"),
        ("context_length", MetadataValue::from("long"), "llama.context_length is \"long\", expected a whole number"),
        (
            "feed_forward_length",
            MetadataValue::Array(MetadataArray::I32(vec![12, 13])),
            "llama.feed_forward_length differs from layer to layer, which is not supported",
        ),
    ] {
        let message = with(&[(key, value)]);
        assert!(message.contains(expected), "{message}");
    }
    let plain: Arc<dyn TensorSource> = Arc::new(MemorySource::new(tensors()));
    assert!(DecoderConfig::from_gguf(plain.as_ref()).unwrap_err().to_string().contains("are not from a GGUF file"));

    // A tensor that belongs to another variant of the architecture is not left out in silence.
    let mut more = tensors();
    more.insert("blk.0.attn_sinks.weight".to_owned(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap());
    let file = File::source(more, metadata("llama", &config, &[]));
    let read = DecoderConfig::from_gguf(file.as_ref()).unwrap();
    let error = decoder::canonical(file, &read).err().unwrap().to_string();
    assert_eq!(error, "m.gguf: tensor blk.0.attn_sinks.weight is no part of the architecture as it is read here");
}
