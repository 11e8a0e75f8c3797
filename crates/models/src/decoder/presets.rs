//! Published sizes.

use super::config::{BlockKind, DecoderConfig, LayerConfig, ModelType, NormKind, Positions};
use conjure_core::blocks::{Activation, RopeConfig, RopeScaling};

/// The six numbers that make a size.
#[derive(Clone, Copy)]
struct Size {
    vocab: usize,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
}

impl Size {
    /// A model of Llama's architecture.
    fn llama(self, model_type: ModelType, head_dim: usize, theta: f64, context: usize) -> DecoderConfig {
        DecoderConfig {
            model_type,
            vocab_size: self.vocab,
            hidden_size: self.hidden,
            intermediate_size: self.inner,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            head_dim,
            max_position_embeddings: context,
            layers: vec![LayerConfig { window: None, rope: Some(0) }; self.layers],
            ropes: vec![RopeConfig::new(head_dim, theta)],
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            ..DecoderConfig::default()
        }
    }

    /// A model of Gemma's architecture; every `full`th layer sees everything, all if `window` is `None`.
    fn gemma(self, model_type: ModelType, window: Option<(usize, usize)>, context: usize) -> DecoderConfig {
        let is_first = model_type == ModelType::Gemma;
        let mut config = DecoderConfig {
            norm: NormKind::RmsOffset,
            norm_eps: 1e-6,
            block: if is_first { BlockKind::Sequential } else { BlockKind::Sandwich },
            qk_norm: model_type == ModelType::Gemma3,
            hidden_act: Activation::GeluTanh,
            embedding_scale: (self.hidden as f64).sqrt(),
            tie_word_embeddings: true,
            eos_token_ids: vec![1],
            bos_token_id: Some(2),
            ..self.llama(model_type, 256, 10000.0, context)
        };
        if let Some((window, full)) = window {
            for (n, layer) in config.layers.iter_mut().enumerate() {
                if !(n + 1).is_multiple_of(full) {
                    *layer = LayerConfig { window: Some(window), rope: layer.rope };
                }
            }
        }
        if model_type == ModelType::Gemma3 {
            config.ropes = vec![RopeConfig::new(256, 1e6), RopeConfig::new(256, 1e4)];
            for layer in &mut config.layers {
                layer.rope = Some(usize::from(layer.window.is_some()));
            }
        }
        config
    }
}

impl DecoderConfig {
    /// GPT-2, 124M.
    pub fn gpt2() -> Self {
        let size = Size { vocab: 50257, hidden: 768, inner: 3072, layers: 12, heads: 12, kv_heads: 12 };
        Self {
            layers: vec![LayerConfig::default(); 12],
            ropes: Vec::new(),
            positions: Positions::Learned,
            norm: NormKind::Layer,
            attention_bias: true,
            attention_output_bias: true,
            gated_mlp: false,
            hidden_act: Activation::GeluTanh,
            mlp_bias: true,
            tie_word_embeddings: true,
            eos_token_ids: vec![50256],
            bos_token_id: Some(50256),
            ..size.llama(ModelType::Gpt2, 64, 10000.0, 1024)
        }
    }

    /// Pythia, 160M, of GPT-NeoX's architecture.
    pub fn pythia_160m() -> Self {
        let size = Size { vocab: 50304, hidden: 768, inner: 3072, layers: 12, heads: 12, kv_heads: 12 };
        Self {
            ropes: vec![RopeConfig::new(16, 10000.0)],
            norm: NormKind::Layer,
            block: BlockKind::Parallel,
            attention_bias: true,
            attention_output_bias: true,
            gated_mlp: false,
            hidden_act: Activation::Gelu,
            mlp_bias: true,
            eos_token_ids: vec![0],
            bos_token_id: Some(0),
            ..size.llama(ModelType::GptNeox, 64, 10000.0, 2048)
        }
    }

    /// PaLM, 8B (table 1 of its paper; no checkpoint is public).
    pub fn palm_8b() -> Self {
        let size = Size { vocab: 256_000, hidden: 4096, inner: 16384, layers: 32, heads: 16, kv_heads: 1 };
        Self {
            norm: NormKind::LayerWithoutBias,
            block: BlockKind::ParallelOneNorm,
            logit_scale: 1.0 / 4096f64.sqrt(),
            tie_word_embeddings: true,
            ..size.llama(ModelType::Palm, 256, 10000.0, 2048)
        }
    }

    /// MPT, 7B.
    pub fn mpt_7b() -> Self {
        let size = Size { vocab: 50432, hidden: 4096, inner: 16384, layers: 32, heads: 32, kv_heads: 32 };
        Self {
            layers: vec![LayerConfig::default(); 32],
            ropes: Vec::new(),
            positions: Positions::Alibi { max_bias: 8.0 },
            norm: NormKind::LayerWithoutBias,
            gated_mlp: false,
            hidden_act: Activation::Gelu,
            tie_word_embeddings: true,
            eos_token_ids: vec![0],
            bos_token_id: Some(0),
            ..size.llama(ModelType::Mpt, 128, 10000.0, 2048)
        }
    }

    /// Llama 2, 7B.
    pub fn llama_2_7b() -> Self {
        Self::default()
    }

    /// Llama 3.2, 1B.
    pub fn llama_3_2_1b() -> Self {
        let size = Size { vocab: 128_256, hidden: 2048, inner: 8192, layers: 16, heads: 32, kv_heads: 8 };
        let mut config = size.llama(ModelType::Llama, 64, 500_000.0, 131_072);
        config.ropes[0].scaling =
            RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192 };
        Self {
            tie_word_embeddings: true,
            eos_token_ids: vec![128_001, 128_008, 128_009],
            bos_token_id: Some(128_000),
            ..config
        }
    }

    /// SmolLM 2, 135M.
    pub fn smollm2_135m() -> Self {
        let size = Size { vocab: 49152, hidden: 576, inner: 1536, layers: 30, heads: 9, kv_heads: 3 };
        Self { tie_word_embeddings: true, ..size.llama(ModelType::Llama, 64, 100_000.0, 8192) }
    }

    /// SmolLM 3, 3B.
    pub fn smollm3_3b() -> Self {
        let size = Size { vocab: 128_256, hidden: 2048, inner: 11008, layers: 36, heads: 16, kv_heads: 4 };
        let mut config = size.llama(ModelType::SmolLm3, 128, 5e6, 65536);
        config.layers.iter_mut().skip(3).step_by(4).for_each(|layer| layer.rope = None);
        Self {
            norm_eps: 1e-6,
            tie_word_embeddings: true,
            eos_token_ids: vec![128_012],
            bos_token_id: Some(128_000),
            ..config
        }
    }

    /// Mistral, 7B, version 0.1, with its sliding window.
    pub fn mistral_7b() -> Self {
        let size = Size { vocab: 32000, hidden: 4096, inner: 14336, layers: 32, heads: 32, kv_heads: 8 };
        let config = size.llama(ModelType::Mistral, 128, 10000.0, 32768);
        Self { layers: vec![LayerConfig { window: Some(4096), rope: Some(0) }; 32], ..config }
    }

    /// Qwen 2.5, 0.5B.
    pub fn qwen2_5_0_5b() -> Self {
        let size = Size { vocab: 151_936, hidden: 896, inner: 4864, layers: 24, heads: 14, kv_heads: 2 };
        Self {
            norm_eps: 1e-6,
            attention_bias: true,
            tie_word_embeddings: true,
            eos_token_ids: vec![151_643],
            bos_token_id: Some(151_643),
            ..size.llama(ModelType::Qwen2, 64, 1e6, 32768)
        }
    }

    /// Qwen 3, 0.6B.
    pub fn qwen3_0_6b() -> Self {
        let size = Size { vocab: 151_936, hidden: 1024, inner: 3072, layers: 28, heads: 16, kv_heads: 8 };
        Self {
            norm_eps: 1e-6,
            qk_norm: true,
            tie_word_embeddings: true,
            eos_token_ids: vec![151_645],
            bos_token_id: Some(151_643),
            ..size.llama(ModelType::Qwen3, 128, 1e6, 40960)
        }
    }

    /// Gemma, 2B.
    pub fn gemma_2b() -> Self {
        let size = Size { vocab: 256_000, hidden: 2048, inner: 16384, layers: 18, heads: 8, kv_heads: 1 };
        size.gemma(ModelType::Gemma, None, 8192)
    }

    /// Gemma 2, 2B.
    pub fn gemma_2_2b() -> Self {
        let size = Size { vocab: 256_000, hidden: 2304, inner: 9216, layers: 26, heads: 8, kv_heads: 4 };
        Self {
            attention_soft_cap: Some(50.0),
            logit_soft_cap: Some(30.0),
            ..size.gemma(ModelType::Gemma2, Some((4096, 2)), 8192)
        }
    }

    /// Gemma 3, 270M.
    pub fn gemma_3_270m() -> Self {
        let size = Size { vocab: 262_144, hidden: 640, inner: 2048, layers: 18, heads: 4, kv_heads: 1 };
        size.gemma(ModelType::Gemma3, Some((512, 6)), 32768)
    }

    /// Gemma 3, 1B.
    pub fn gemma_3_1b() -> Self {
        let size = Size { vocab: 262_144, hidden: 1152, inner: 6912, layers: 26, heads: 4, kv_heads: 1 };
        size.gemma(ModelType::Gemma3, Some((512, 6)), 32768)
    }

    /// Phi-3 mini, 3.8B, for 4096 tokens.
    pub fn phi_3_mini_4k() -> Self {
        let size = Size { vocab: 32064, hidden: 3072, inner: 8192, layers: 32, heads: 32, kv_heads: 32 };
        let config = size.llama(ModelType::Phi3, 96, 10000.0, 4096);
        Self {
            layers: vec![LayerConfig { window: Some(2047), rope: Some(0) }; 32],
            eos_token_ids: vec![32000],
            ..config
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::asked;
    use super::*;

    #[test]
    fn parameters_of_the_published_models_are_counted() {
        for (config, count) in [
            (DecoderConfig::gpt2(), 124_439_808),
            (DecoderConfig::pythia_160m(), 162_322_944),
            (DecoderConfig::mpt_7b(), 6_649_286_656),
            (DecoderConfig::llama_2_7b(), 6_738_415_616),
            (DecoderConfig::llama_3_2_1b(), 1_235_814_400),
            (DecoderConfig::smollm2_135m(), 134_515_008),
            (DecoderConfig::smollm3_3b(), 3_075_098_624),
            (DecoderConfig::mistral_7b(), 7_241_732_096),
            (DecoderConfig::qwen2_5_0_5b(), 494_032_768),
            (DecoderConfig::qwen3_0_6b(), 596_049_920),
            (DecoderConfig::gemma_2b(), 2_506_172_416),
            (DecoderConfig::gemma_2_2b(), 2_614_341_888),
            (DecoderConfig::gemma_3_270m(), 268_098_176),
            (DecoderConfig::gemma_3_1b(), 999_885_952),
            (DecoderConfig::phi_3_mini_4k(), 3_821_079_552_usize),
        ] {
            let found: usize = asked(&config).unwrap().iter().map(|spec| spec.shape.elem_count()).sum();
            assert_eq!(found, count, "{:?}", config.model_type);
        }
        // "8.63 billion" in table 1 of the paper.
        let palm: usize = asked(&DecoderConfig::palm_8b()).unwrap().iter().map(|spec| spec.shape.elem_count()).sum();
        assert_eq!(palm / 10_000_000, 863);
    }
}
