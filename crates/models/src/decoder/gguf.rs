//! Decoders in GGUF files: the config from the header, and llama.cpp's tensors under the names that the model asks for.
//!
//! | what llama.cpp's converter changed | what is done about it |
//! |---|---|
//! | `llama`, `smollm3`: rows of q and k reordered, so that neighbours are rotated together | [`RopeLayout::Interleaved`]: no row moves, and quantised rows stay in the file |
//! | `gemma*`: 1 added to the norms' weights | [`NormKind::Rms`] |
//! | Llama 3.1's stretched angles as a table of divisors, `rope_freqs` | [`RopeScaling::Divisors`] |
//! | q, k and v in one matrix, each whole, also in `gptneox` | rows of it |
//! | tied heads: no `output` | `tie_word_embeddings` |
//!
//! Mistral, SmolLM 2 and many more call themselves `llama` in these files.

use super::config::{BlockKind, DecoderConfig, LayerConfig, ModelType, NormKind, Positions};
use conjure_core::blocks::{Activation, RopeConfig, RopeScaling};
use conjure_core::config::{self, MAX_LAYERS};
use conjure_core::ops::RopeLayout;
use conjure_core::weights::gguf::{Metadata, MetadataValue};
use conjure_core::weights::{ParameterSpec, Renamed, TensorSource, Transform, View};
use conjure_core::{DType, Device, Error, Result};
use std::path::Path;
use std::sync::Arc;

/// The architectures that are read, by the name that files give them.
const ARCHITECTURES: [(&str, ModelType); 11] = [
    ("llama", ModelType::Llama),
    ("qwen2", ModelType::Qwen2),
    ("qwen3", ModelType::Qwen3),
    ("smollm3", ModelType::SmolLm3),
    ("gemma", ModelType::Gemma),
    ("gemma2", ModelType::Gemma2),
    ("gemma3", ModelType::Gemma3),
    ("phi3", ModelType::Phi3),
    ("gpt2", ModelType::Gpt2),
    ("gptneox", ModelType::GptNeox),
    ("mpt", ModelType::Mpt),
];

impl DecoderConfig {
    /// The config of the model in a GGUF file, from its header and the names and shapes of its tensors. See
    /// [`super::canonical`] for the tensors.
    ///
    /// # Errors
    /// No GGUF file, an architecture or a variant of one that is not read, a key that is missing, of another type or out of
    /// range.
    pub fn from_gguf(source: &dyn TensorSource) -> Result<Self> {
        let metadata = source.gguf().ok_or_else(|| {
            Error::request("the weights are not from a GGUF file, which would describe its model")
                .with_help("read the config.json beside them")
        })?;
        let name = metadata.architecture()?;
        let Some(&(_, model_type)) = ARCHITECTURES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(known, _)| *known).collect();
            return Err(Error::file(metadata.path(), format!("the architecture \"{name}\" is not read")).with_help(
                format!("architectures that are read: {} (Mistral and SmolLM 2 are llama)", known.join(", ")),
            ));
        };
        let config = Header { source, metadata, name, model_type }.config()?;
        config.check()?;
        Ok(config)
    }
}

/// What a file says about a model of one architecture.
struct Header<'a> {
    source: &'a dyn TensorSource,
    metadata: &'a Metadata,
    /// The architecture, which keys begin with.
    name: &'a str,
    model_type: ModelType,
}

impl Header<'_> {
    fn refused(&self, message: String) -> Error {
        Error::file(self.metadata.path(), message).with_help("get a conversion of a plain model of this family")
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// A size, or one for each layer that is the same in all.
    fn size(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(MetadataValue::Array(_)) = self.metadata.get(&key) else { return self.metadata.usize(&key) };
        let sizes = self.metadata.usizes(&key)?.unwrap_or_default();
        if sizes.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(self.refused(format!("{key} differs from layer to layer, which is not supported")));
        }
        Ok(sizes.first().copied())
    }

    fn required(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            Some(size) => Ok(size),
            None => self.metadata.require(&self.key(key), Metadata::usize),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        Ok(self.metadata.f32(&self.key(key))?.map(f64::from))
    }

    /// A number that stands for nothing when it is 0.
    fn nonzero(&self, key: &str) -> Result<Option<f64>> {
        Ok(self.number(key)?.filter(|number| *number != 0.0))
    }

    fn has(&self, tensor: &str) -> bool {
        self.source.infos().contains_key(tensor)
    }

    /// The rows of a table `(rows, hidden_size)`.
    fn rows(&self, tensor: &str) -> Result<usize> {
        match self.source.infos().get(tensor).map(|info| info.shape.dims()) {
            Some(&[rows, _]) => Ok(rows),
            Some(shape) => Err(self.refused(format!("tensor {tensor} has the shape {shape:?}, expected a matrix"))),
            None => Err(self.refused(format!("the file lacks the tensor {tensor}"))),
        }
    }

    fn config(&self) -> Result<DecoderConfig> {
        use ModelType::{Gemma, Gemma2, Gemma3, Gpt2, GptNeox, Mpt, Qwen3};
        let model_type = self.model_type;
        let is_gemma = matches!(model_type, Gemma | Gemma2 | Gemma3);
        let is_old = matches!(model_type, Gpt2 | GptNeox | Mpt);
        for (key, what) in [("expert_count", "a mixture of experts"), ("attention.clamp_kqv", "clamped projections")] {
            if self.nonzero(key)?.is_some() {
                return Err(self.refused(format!("the model has {what}, which are not supported")));
            }
        }
        let (hidden_size, heads) = (self.required("embedding_length")?, self.required("attention.head_count")?);
        let layers = self.required("block_count")?;
        config::check_size(&self.key("block_count"), layers, MAX_LAYERS)?;
        let head_dim = match self.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return Err(self.refused(format!("{hidden_size} features cannot be split into {heads} heads"))),
        };
        if self.size("attention.value_length")?.is_some_and(|length| length != head_dim) {
            return Err(self.refused("values of another length than keys are not supported".to_owned()));
        }
        let positions = match model_type {
            Gpt2 => Positions::Learned,
            Mpt => Positions::Alibi { max_bias: self.number("attention.max_alibi_bias")?.unwrap_or(8.0) },
            _ => Positions::Rotary,
        };
        let layer_norm = matches!(model_type, Gpt2 | GptNeox | Mpt);
        let eps =
            self.key(if layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" });
        let parallel = self.metadata.bool(&self.key("use_parallel_residual"))?.unwrap_or(true);
        // Only the largest Gemma 2 and 3 scale by another size than the head's, and nothing but their depth tells.
        let odd = matches!((model_type, layers), (Gemma2, 46) | (Gemma3, 62));
        let scaled_by = if odd { hidden_size / heads.max(1) } else { head_dim };
        let (attention_cap, logit_cap) = if model_type == Gemma2 { (Some(50.0), Some(30.0)) } else { (None, None) };
        let token = |key: &str| self.metadata.u32(&format!("tokenizer.ggml.{key}_token_id"));
        let bias = self.has("blk.0.attn_q.bias") || self.has("blk.0.attn_qkv.bias");
        Ok(DecoderConfig {
            model_type,
            vocab_size: self.rows("token_embd.weight")?,
            hidden_size,
            intermediate_size: self.required("feed_forward_length")?,
            num_attention_heads: heads,
            num_key_value_heads: self.size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            max_position_embeddings: match positions {
                Positions::Learned => self.rows("position_embd.weight")?,
                _ => self.required("context_length")?,
            },
            layers: self.layers(layers, positions)?,
            ropes: if positions == Positions::Rotary { self.ropes(head_dim)? } else { Vec::new() },
            positions,
            norm: match model_type {
                Gpt2 | GptNeox => NormKind::Layer,
                Mpt => NormKind::LayerWithoutBias,
                _ => NormKind::Rms,
            },
            norm_eps: f64::from(self.metadata.require(&eps, Metadata::f32)?),
            block: match model_type {
                GptNeox if parallel => BlockKind::Parallel,
                Gemma2 | Gemma3 => BlockKind::Sandwich,
                _ => BlockKind::Sequential,
            },
            qk_norm: matches!(model_type, Qwen3 | Gemma3),
            attention_bias: bias,
            attention_output_bias: self.has("blk.0.attn_output.bias"),
            attention_scale: self.nonzero("attention.scale")?.unwrap_or(1.0 / (scaled_by.max(1) as f64).sqrt()),
            attention_soft_cap: self.nonzero("attn_logit_softcapping")?.or(attention_cap),
            gated_mlp: !is_old,
            hidden_act: match model_type {
                GptNeox | Mpt => Activation::Gelu,
                _ if is_gemma || model_type == Gpt2 => Activation::GeluTanh,
                _ => Activation::Silu,
            },
            mlp_bias: self.has("blk.0.ffn_down.bias"),
            embedding_scale: if is_gemma { (hidden_size as f64).sqrt() } else { 1.0 },
            logit_scale: 1.0,
            logit_soft_cap: self.nonzero("final_logit_softcapping")?.or(logit_cap),
            tie_word_embeddings: !self.has("output.weight"),
            eos_token_ids: [token("eos")?, token("eot")?].into_iter().flatten().collect(),
            bos_token_id: token("bos")?,
        })
    }

    /// Window and rotation of each layer.
    fn layers(&self, count: usize, positions: Positions) -> Result<Vec<LayerConfig>> {
        use ModelType::{Gemma2, Gemma3, Llama, Phi3, SmolLm3};
        let window = self.size("attention.sliding_window")?.filter(|window| *window > 0);
        let window = match self.model_type {
            Gemma2 => window.or(Some(4096)),
            Gemma3 | Llama | Phi3 => window,
            _ => None,
        };
        let pattern = self.key("attention.sliding_window_pattern");
        let listed = match self.metadata.get(&pattern) {
            Some(MetadataValue::Array(_)) => self.metadata.bools(&pattern)?,
            _ => None,
        };
        let every = match (self.model_type, &listed) {
            (Gemma2, _) => 2,
            (Gemma3, None) => self.size("attention.sliding_window_pattern")?.unwrap_or(6).max(1),
            _ => 0,
        };
        let slides = |n: usize| match (listed, every) {
            (Some(listed), _) => listed.get(n).copied().unwrap_or(false),
            (None, 0) => true,
            (None, every) => !(n + 1).is_multiple_of(every),
        };
        let layer = |n: usize| {
            let window = window.filter(|_| slides(n));
            // Every fourth layer of SmolLM 3 knows no positions.
            let rotates = positions == Positions::Rotary && !(self.model_type == SmolLm3 && (n + 1).is_multiple_of(4));
            let rope = usize::from(self.model_type == Gemma3 && window.is_some());
            LayerConfig { window, rope: rotates.then_some(rope) }
        };
        Ok((0..count).map(layer).collect())
    }

    /// The rotation, and in Gemma 3 that of the layers with a window as well.
    fn ropes(&self, head_dim: usize) -> Result<Vec<RopeConfig>> {
        use ModelType::{Gemma3, Llama, SmolLm3};
        let rope = RopeConfig {
            dim: self.size("rope.dimension_count")?.unwrap_or(head_dim),
            theta: self.number("rope.freq_base")?.unwrap_or(10000.0),
            layout: match self.model_type {
                Llama | SmolLm3 => RopeLayout::Interleaved,
                _ => RopeLayout::Halves,
            },
            scaling: self.scaling()?,
        };
        if self.model_type != Gemma3 {
            return Ok(vec![rope]);
        }
        let theta = self.number("rope.freq_base_swa")?.unwrap_or(10000.0);
        let local = RopeConfig { theta, scaling: RopeScaling::None, ..rope.clone() };
        Ok(vec![rope, local])
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let divisors = |tensor: &str| -> Result<Vec<f64>> {
            let divisors = self.source.load(tensor, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(divisors.into_iter().map(f64::from).collect())
        };
        if self.has("rope_freqs.weight") {
            return Ok(RopeScaling::Divisors(divisors("rope_freqs.weight")?));
        }
        let context = self.required("context_length")?;
        let original = self.size("rope.scaling.original_context_length")?.unwrap_or(context);
        let given = self.nonzero("rope.scaling.attn_factor")?;
        if self.has("rope_factors_short.weight") && self.has("rope_factors_long.weight") {
            // Ding et al. 2024, as in Phi-3's code.
            let stretch = context as f64 / original.max(1) as f64;
            let usual = if stretch > 1.0 { (1.0 + stretch.ln() / (original.max(2) as f64).ln()).sqrt() } else { 1.0 };
            return Ok(RopeScaling::LongRope {
                short_factor: divisors("rope_factors_short.weight")?,
                long_factor: divisors("rope_factors_long.weight")?,
                original,
                attention_factor: given.unwrap_or(usual),
            });
        }
        // Older files say `scale_linear`; a factor without a type is linear, too.
        let old = self.nonzero("rope.scale_linear")?;
        let factor = self.nonzero("rope.scaling.factor")?.or(old).unwrap_or(1.0);
        let key = self.key("rope.scaling.type");
        match self.metadata.string(&key)?.unwrap_or("linear") {
            "none" => Ok(RopeScaling::None),
            "linear" if factor == 1.0 => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor }),
            "yarn" => Ok(RopeScaling::Yarn {
                factor,
                original,
                beta_fast: self.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: given.unwrap_or(1.0) * if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 },
                truncate: true,
            }),
            other => Err(self.refused(format!("{key} is \"{other}\", which is not supported"))),
        }
    }
}

/// llama.cpp's tensors under the names that [`super::Decoder`] asks for; `wanted` is what it asks for.
///
/// # Errors
/// A fused tensor of another shape than the config speaks of, or a tensor of the file that nothing asks for: it belongs to a
/// part of the model that would be left out.
pub(super) fn renamed(
    source: Arc<dyn TensorSource>,
    config: &DecoderConfig,
    wanted: &[ParameterSpec],
) -> Result<Renamed> {
    let views: Vec<_> =
        wanted.iter().map(|spec| (spec.name.clone(), view(source.as_ref(), config, &spec.name))).collect();
    let renamed = Renamed::new(source, views)?;
    // Angles are in the config already.
    let aside = |name: &str| name.starts_with("rope_f") || name.ends_with(".attn_rot_embd.weight");
    if let Some(stranger) = renamed.unused().into_iter().find(|name| !aside(name)) {
        let path = renamed.gguf().map(Metadata::path).unwrap_or(Path::new(""));
        return Err(Error::file(path, format!("tensor {stranger} is no part of the architecture as it is read here"))
            .with_help("the file holds a variant of its architecture that is not supported"));
    }
    Ok(renamed)
}

/// Where the parameter `name` lies.
fn view(source: &dyn TensorSource, config: &DecoderConfig, name: &str) -> View {
    let Some((module, kind)) = name.rsplit_once('.') else { return View::as_is(name) };
    let Some((n, module)) = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return View::as_is(match module {
            "model.embed_tokens" => format!("token_embd.{kind}"),
            "model.embed_positions" => format!("position_embd.{kind}"),
            "model.norm" => format!("output_norm.{kind}"),
            "lm_head" => format!("output.{kind}"),
            _ => name.to_owned(),
        });
    };
    let stored = |tensor: &str| format!("blk.{n}.{tensor}.{kind}");
    let has = |tensor: &str| source.infos().contains_key(&stored(tensor));
    let part = |whole: &str, first: usize, rows: usize| View {
        source_name: stored(whole),
        transform: Transform::Rows(first..first + rows),
    };
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let inner = config.intermediate_size;
    match module {
        "self_attn.q_proj" if has("attn_qkv") => return part("attn_qkv", 0, q),
        "self_attn.k_proj" if has("attn_qkv") => return part("attn_qkv", q, kv),
        "self_attn.v_proj" if has("attn_qkv") => return part("attn_qkv", q + kv, kv),
        "mlp.gate_proj" if !has("ffn_gate") => return part("ffn_up", 0, inner),
        "mlp.up_proj" if config.gated_mlp && !has("ffn_gate") => return part("ffn_up", inner, inner),
        _ => {}
    }
    View::as_is(stored(match (module, config.block) {
        ("input_layernorm", _) => "attn_norm",
        ("self_attn.q_proj", _) => "attn_q",
        ("self_attn.k_proj", _) => "attn_k",
        ("self_attn.v_proj", _) => "attn_v",
        ("self_attn.o_proj", _) => "attn_output",
        ("self_attn.q_norm", _) => "attn_q_norm",
        ("self_attn.k_norm", _) => "attn_k_norm",
        ("post_attention_layernorm", BlockKind::Sandwich) => "post_attention_norm",
        ("post_attention_layernorm" | "pre_feedforward_layernorm", _) => "ffn_norm",
        ("post_feedforward_layernorm", _) => "post_ffw_norm",
        ("mlp.gate_proj", _) => "ffn_gate",
        ("mlp.up_proj", _) => "ffn_up",
        ("mlp.down_proj", _) => "ffn_down",
        (other, _) => other,
    }))
}
