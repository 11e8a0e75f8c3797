//! The config of BERT and its relatives.

use conjure_core::blocks::Activation;
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The encoder's `config.json`, in transformers' words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncoderConfig {
    /// Such as `BertModel`; a name that ends in `ForMaskedLM` is of a model without pooler.
    pub architectures: Vec<String>,
    /// `bert`, `roberta` or `xlm-roberta`.
    pub model_type: String,
    /// Tokens.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Features between the two layers of the MLP.
    pub intermediate_size: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Rows of the table of positions.
    pub max_position_embeddings: usize,
    /// Segments.
    pub type_vocab_size: usize,
    /// Added to the variance in every norm.
    pub layer_norm_eps: f64,
    /// Token that fills a text up. RoBERTa's positions begin after its number.
    pub pad_token_id: Option<u32>,
    /// `absolute`; nothing else is built.
    pub position_embedding_type: String,
    /// Entries without influence on the architecture, kept for writing the file back.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Entries that concern training, the tokenizer, a task's head or the file, whatever their value.
const HARMLESS: [&str; 27] = [
    "transformers_version",
    "torch_dtype",
    "dtype",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "initializer_range",
    "use_cache",
    "gradient_checkpointing",
    "bos_token_id",
    "eos_token_id",
    "cls_token_id",
    "sep_token_id",
    "mask_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "num_labels",
    "finetuning_task",
    "output_past",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "tie_word_embeddings",
];

const ROBERTA: [&str; 2] = ["roberta", "xlm-roberta"];

impl Default for EncoderConfig {
    /// transformers' defaults, which are BERT base's.
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            model_type: "bert".to_owned(),
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: None,
            position_embedding_type: "absolute".to_owned(),
            other: BTreeMap::new(),
        }
    }
}

impl EncoderConfig {
    /// BERT base, uncased.
    pub fn bert_base_uncased() -> Self {
        Self::default()
    }

    /// BERT large, uncased.
    pub fn bert_large_uncased() -> Self {
        Self {
            hidden_size: 1024,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            intermediate_size: 4096,
            ..Self::default()
        }
    }

    /// MiniLM with six layers, the encoder of all-MiniLM-L6-v2.
    pub fn mini_lm_l6() -> Self {
        Self { hidden_size: 384, num_hidden_layers: 6, intermediate_size: 1536, ..Self::default() }
    }

    /// RoBERTa base.
    pub fn roberta_base() -> Self {
        Self {
            model_type: "roberta".to_owned(),
            vocab_size: 50265,
            max_position_embeddings: 514,
            type_vocab_size: 1,
            layer_norm_eps: 1e-5,
            pad_token_id: Some(1),
            ..Self::default()
        }
    }

    /// XLM-R base.
    pub fn xlm_roberta_base() -> Self {
        Self { model_type: "xlm-roberta".to_owned(), vocab_size: 250002, ..Self::roberta_base() }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a value of the wrong type, or an architecture that cannot be built: also every key that we do not know
    /// and that is not null or false.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not a config of an encoder: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit, or are not supported.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "bert" && !self.is_roberta() {
            return Err(Error::request(format!(
                "model_type is \"{}\", which is no encoder that is known",
                self.model_type
            ))
            .with_help("known are bert, roberta and xlm-roberta"));
        }
        if self.position_embedding_type != "absolute" {
            return Err(Error::request(format!(
                "position_embedding_type is \"{}\", only \"absolute\" is supported",
                self.position_embedding_type
            )));
        }
        for (key, value) in &self.other {
            let harmless = key.starts_with('_') || HARMLESS.contains(&key.as_str());
            if !harmless && !value.is_null() && *value != Value::Bool(false) {
                return Err(config::unknown_entry(key, value));
            }
        }
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            config::check_size(name, value, MAX_FEATURES)?;
        }
        config::check_size("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::request(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        if self.max_tokens() == 0 {
            return Err(Error::request(format!(
                "max_position_embeddings {} leaves no position after pad_token_id {}",
                self.max_position_embeddings,
                self.padding()
            )));
        }
        Ok(())
    }

    /// Whether positions are numbered as RoBERTa does it.
    pub fn is_roberta(&self) -> bool {
        ROBERTA.contains(&self.model_type.as_str())
    }

    /// The token that fills a text up.
    pub fn padding(&self) -> u32 {
        self.pad_token_id.unwrap_or(if self.is_roberta() { 1 } else { 0 })
    }

    /// Most tokens in a text.
    pub fn max_tokens(&self) -> usize {
        let unused = if self.is_roberta() { self.padding() as usize + 1 } else { 0 };
        self.max_position_embeddings.saturating_sub(unused)
    }

    /// Whether the model has a pooler.
    pub fn has_pooler(&self) -> bool {
        !self.architectures.iter().any(|class| class.ends_with("ForMaskedLM"))
    }

    /// The number of each token's position. RoBERTa counts the tokens that are not padding, from the one after padding's
    /// number, which is that of padding's own position.
    pub(super) fn positions(&self, row: &[u32]) -> Vec<u32> {
        if !self.is_roberta() {
            return (0..row.len() as u32).collect();
        }
        let padding = self.padding();
        let mut last = padding;
        let number = |id: &u32| {
            last += u32::from(*id != padding);
            if *id == padding { padding } else { last }
        };
        row.iter().map(number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoder;
    use super::*;
    use conjure_core::weights::Params;

    #[test]
    fn parameters_of_the_public_models_are_counted() {
        for (config, parameters) in [
            (EncoderConfig::bert_base_uncased(), 109_482_240),
            (EncoderConfig::bert_large_uncased(), 335_141_888),
            (EncoderConfig::mini_lm_l6(), 22_713_216),
            (EncoderConfig::roberta_base(), 124_645_632),
            (EncoderConfig::xlm_roberta_base(), 278_043_648),
        ] {
            let params = Params::outline();
            Encoder::new(&params, &config).unwrap();
            let count: usize = params.asked().iter().map(|p| p.shape.elem_count()).sum();
            assert_eq!(count, parameters, "{}", config.model_type);
        }
    }

    #[test]
    fn a_published_config_is_read_and_written_back() {
        // As in all-MiniLM-L6-v2's config.json.
        let text = r#"{"_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"],
            "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": false, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
            "num_hidden_layers": 6, "pad_token_id": 0, "position_embedding_type": "absolute",
            "transformers_version": "4.8.2", "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522}"#;
        let config = EncoderConfig::from_json(text).unwrap();
        let expected = EncoderConfig {
            architectures: vec!["BertModel".to_owned()],
            pad_token_id: Some(0),
            other: config.other.clone(),
            ..EncoderConfig::mini_lm_l6()
        };
        assert_eq!(config, expected);
        let again = EncoderConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_changes_the_architecture_is_refused() {
        for (text, said) in [
            (r#"{"rope_theta": 10000}"#, "unknown entry rope_theta (10000), which may change the model"),
            (r#"{"is_decoder": true}"#, "unknown entry is_decoder (true), which may change the model"),
            (r#"{"position_embedding_type": "relative_key"}"#, "position_embedding_type is \"relative_key\""),
            (r#"{"hidden_size": 10, "num_attention_heads": 3}"#, "hidden_size 10 is not a multiple"),
            (r#"{"model_type": "deberta"}"#, "model_type is \"deberta\", which is no encoder that is known"),
            (r#"{"hidden_act": "maxout"}"#, "not a config of an encoder: unknown variant `maxout`"),
            (r#"{"num_hidden_layers": 0}"#, "num_hidden_layers is 0"),
            (r#"{"num_hidden_layers": 1000000000000}"#, "num_hidden_layers is 1000000000000; at most 128"),
            (
                r#"{"model_type": "roberta", "pad_token_id": 4294967295}"#,
                "max_position_embeddings 512 leaves no position after pad_token_id 4294967295",
            ),
        ] {
            let error = EncoderConfig::from_json(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn robertas_positions_skip_padding() {
        let config = EncoderConfig::roberta_base();
        assert_eq!(config.positions(&[0, 1, 7, 8, 1, 1]), [2, 1, 3, 4, 1, 1]);
        assert_eq!(config.max_tokens(), 512);
        assert_eq!(EncoderConfig::default().positions(&[5, 0, 0]), [0, 1, 2]);
    }
}
