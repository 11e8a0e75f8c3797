//! What a decoder looks like, in one set of words for all families.

use conjure_core::blocks::{Activation, MAX_POSITIONS, RopeConfig, RopeScaling};
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::{Error, Result};

/// The families, which differ in how checkpoints name tensors and configs name numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelType {
    /// "Language Models are Unsupervised Multitask Learners", Radford et al. 2019.
    Gpt2,
    /// "GPT-NeoX-20B", Black et al. 2022; "Pythia", Biderman et al. 2023.
    GptNeox,
    /// "PaLM: Scaling Language Modeling with Pathways", Chowdhery et al. 2022. No public checkpoint; our own keys.
    Palm,
    /// MPT of MosaicML 2023, with ALiBi: "Train Short, Test Long", Press et al. 2021.
    Mpt,
    /// "LLaMA", Touvron et al. 2023; Llama 2 and 3, SmolLM 2, TinyLlama and many more.
    Llama,
    /// "Mistral 7B", Jiang et al. 2023.
    Mistral,
    /// "Qwen2 Technical Report", Yang et al. 2024.
    Qwen2,
    /// "Qwen3 Technical Report", Yang et al. 2025.
    Qwen3,
    /// SmolLM 3 of Hugging Face 2025.
    SmolLm3,
    /// "Gemma: Open Models Based on Gemini Research and Technology", Gemma Team 2024.
    Gemma,
    /// "Gemma 2: Improving Open Language Models at a Practical Size", Gemma Team 2024.
    Gemma2,
    /// "Gemma 3 Technical Report", Gemma Team 2025, without pictures.
    Gemma3,
    /// "Phi-3 Technical Report", Abdin et al. 2024.
    Phi3,
}

impl ModelType {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Gpt2,
        Self::GptNeox,
        Self::Palm,
        Self::Mpt,
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::SmolLm3,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
    ];

    /// The family that `config.json` calls so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// `model_type` in a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::GptNeox => "gpt_neox",
            Self::Palm => "palm",
            Self::Mpt => "mpt",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
        }
    }
}

/// How hidden states are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// LayerNorm with weight and bias.
    Layer,
    /// LayerNorm with a weight alone.
    LayerWithoutBias,
    /// RMSNorm.
    Rms,
    /// RMSNorm with `1 + weight` for a weight: Gemma. (GGUF files store the sum: they want [`Self::Rms`].)
    RmsOffset,
}

/// How attention and MLP are put together with the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
    Sequential,
    /// As sequential, with a norm after each of the two as well: Gemma 2 and 3.
    Sandwich,
    /// `x + attention(norm(x)) + mlp(other norm(x))`: GPT-NeoX.
    Parallel,
    /// `x + attention(norm(x)) + mlp(norm(x))` with one norm: PaLM.
    ParallelOneNorm,
}

/// How the model knows where a token stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector per position, added to the embedding: GPT-2.
    Learned,
    /// By rotating queries and keys, as each layer's [`LayerConfig::rope`] says.
    Rotary,
    /// A penalty on the scores that grows with the distance (Press et al. 2021), the slopes a geometric series that ends at
    /// `2^-max_bias`.
    Alibi {
        /// 8 in the paper.
        max_bias: f64,
    },
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LayerConfig {
    /// How many positions a token sees, itself included; all earlier ones if `None`.
    pub window: Option<usize>,
    /// Which of [`DecoderConfig::ropes`] rotates queries and keys; none if `None`.
    pub rope: Option<usize>,
}

/// A decoder of any family.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The family: which keys a checkpoint of this config has.
    pub model_type: ModelType,
    /// Tokens.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features between the layers of the MLP.
    pub intermediate_size: usize,
    /// Heads of the queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides the former.
    pub num_key_value_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Positions that the config names; see [`Self::context`].
    pub max_position_embeddings: usize,
    /// One entry per layer.
    pub layers: Vec<LayerConfig>,
    /// The rotations that layers choose from.
    pub ropes: Vec<RopeConfig>,
    /// How the model knows where a token stands.
    pub positions: Positions,
    /// How hidden states are normalised.
    pub norm: NormKind,
    /// Added to the variance in every norm.
    pub norm_eps: f64,
    /// How attention and MLP are put together.
    pub block: BlockKind,
    /// Whether queries and keys are normalised per head: Qwen 3, Gemma 3.
    pub qk_norm: bool,
    /// Whether `q_proj`, `k_proj`, `v_proj` have a bias.
    pub attention_bias: bool,
    /// Whether `o_proj` has a bias.
    pub attention_output_bias: bool,
    /// Factor on the scores of attention, mostly `1 / sqrt(head_dim)`.
    pub attention_scale: f64,
    /// `c` in `c tanh(score / c)`: Gemma 2.
    pub attention_soft_cap: Option<f64>,
    /// Whether the MLP is `down(act(gate(x)) * up(x))`, else `down(act(up(x)))`.
    pub gated_mlp: bool,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Whether the MLP's layers have a bias.
    pub mlp_bias: bool,
    /// Factor on the embeddings: `sqrt(hidden_size)` in Gemma, else 1.
    pub embedding_scale: f64,
    /// Factor on the logits: `1 / sqrt(hidden_size)` in PaLM, else 1.
    pub logit_scale: f64,
    /// `c` in `c tanh(logit / c)`: Gemma 2.
    pub logit_soft_cap: Option<f64>,
    /// Whether the embedding's table makes the logits, too.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text, if the config names any.
    pub eos_token_ids: Vec<u32>,
    /// The token that begins a text, if the config names one.
    pub bos_token_id: Option<u32>,
}

impl Default for DecoderConfig {
    /// Llama 2, 7B.
    fn default() -> Self {
        Self {
            model_type: ModelType::Llama,
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            max_position_embeddings: 4096,
            layers: vec![LayerConfig { window: None, rope: Some(0) }; 32],
            ropes: vec![RopeConfig::new(128, 10000.0)],
            positions: Positions::Rotary,
            norm: NormKind::Rms,
            norm_eps: 1e-5,
            block: BlockKind::Sequential,
            qk_norm: false,
            attention_bias: false,
            attention_output_bias: false,
            attention_scale: 1.0 / 128f64.sqrt(),
            attention_soft_cap: None,
            gated_mlp: true,
            hidden_act: Activation::Silu,
            mlp_bias: false,
            embedding_scale: 1.0,
            logit_scale: 1.0,
            logit_soft_cap: None,
            tie_word_embeddings: false,
            eos_token_ids: vec![2],
            bos_token_id: Some(1),
        }
    }
}

impl DecoderConfig {
    /// Layers.
    pub fn num_hidden_layers(&self) -> usize {
        self.layers.len()
    }

    /// The most tokens of a text that the model is made for. Angles that are stretched as the text grows make room for more;
    /// of those that are stretched always, most files count the room already, and a text that is refused does less harm than
    /// one that is misread.
    pub fn context(&self) -> usize {
        let stretch = self.ropes.first().map_or(1.0, |rope| match &rope.scaling {
            RopeScaling::Dynamic { factor, .. } => factor.max(1.0),
            _ => 1.0,
        });
        (self.max_position_embeddings as f64 * stretch) as usize
    }

    /// Whether the angles of all tokens depend on how long the text is ([`RopeScaling::Dynamic`]): a text that is longer than
    /// the original context is read otherwise in pieces than at once.
    pub fn angles_follow_length(&self) -> bool {
        self.ropes.iter().any(|rope| matches!(rope.scaling, RopeScaling::Dynamic { .. }))
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit each other, or are out of range.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ] {
            config::check_size(name, value, MAX_FEATURES)?;
        }
        config::check_size("num_hidden_layers", self.layers.len(), MAX_LAYERS)?;
        config::check_size("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS)?;
        config::check_size("num_attention_heads * head_dim", self.num_attention_heads * self.head_dim, MAX_FEATURES)?;
        if self.positions == Positions::Learned {
            config::check_size("max_position_embeddings", self.max_position_embeddings, MAX_FEATURES)?;
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::request(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        for rope in &self.ropes {
            rope.check()?;
            if rope.dim > self.head_dim {
                let (dim, head_dim) = (rope.dim, self.head_dim);
                return Err(Error::request(format!("{dim} of a head's {head_dim} features cannot be rotated")));
            }
        }
        for (n, layer) in self.layers.iter().enumerate() {
            if layer.rope.is_some_and(|rope| rope >= self.ropes.len()) {
                return Err(Error::request(format!("layer {n} has no rotation to rotate by")));
            }
            if let Some(window) = layer.window {
                config::check_size("sliding_window", window, MAX_POSITIONS)?;
            }
        }
        let mut positive = vec![
            ("the scale of attention", self.attention_scale),
            ("the scale of the embeddings", self.embedding_scale),
            ("the scale of the logits", self.logit_scale),
        ];
        positive.extend(self.attention_soft_cap.map(|cap| ("attn_logit_softcapping", cap)));
        positive.extend(self.logit_soft_cap.map(|cap| ("final_logit_softcapping", cap)));
        if let Positions::Alibi { max_bias } = self.positions {
            positive.push(("alibi_bias_max", max_bias));
        }
        for (name, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::request(format!("{name} is {value}; it must be more than 0")));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(Error::request(format!("the norms' epsilon is {}; it must be at least 0", self.norm_eps)));
        }
        Ok(())
    }
}
