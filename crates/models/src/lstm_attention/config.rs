//! The config of the recurrent translator. There is none in the ecosystem; the words are transformers'.

use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Sizes of the model. Unknown keys are an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LstmAttentionConfig {
    /// `LstmAttention`.
    pub architectures: Vec<String>,
    /// `lstm_attention`.
    pub model_type: String,
    /// Tokens of source and target.
    pub vocab_size: usize,
    /// Features of an embedding.
    pub embedding_size: usize,
    /// Features of the decoder's state; even, as each direction of the encoder has half of it.
    pub hidden_size: usize,
    /// Layers of encoder and decoder.
    pub num_layers: usize,
    /// Most tokens of a source or a target.
    pub max_position_embeddings: usize,
    /// Whether the table of embeddings is multiplied by the square root of `embedding_size`, also where it makes the logits.
    pub scale_embedding: bool,
    /// Whether the table of embeddings also makes the logits; `embedding_size` is then `hidden_size`.
    pub tie_word_embeddings: bool,
    /// Token with which every target begins.
    pub decoder_start_token_id: u32,
    /// Token that fills texts up.
    pub pad_token_id: u32,
    /// Token with which every text ends.
    pub eos_token_id: u32,
}

impl Default for LstmAttentionConfig {
    fn default() -> Self {
        Self {
            architectures: vec!["LstmAttention".to_owned()],
            model_type: "lstm_attention".to_owned(),
            vocab_size: 12000,
            embedding_size: 384,
            hidden_size: 384,
            num_layers: 2,
            max_position_embeddings: 512,
            scale_embedding: true,
            tie_word_embeddings: true,
            decoder_start_token_id: 11999,
            pad_token_id: 11999,
            eos_token_id: 0,
        }
    }
}

impl LstmAttentionConfig {
    /// The net of section 4.1: four layers of 1000 cells, embeddings of 1000 features, 50,000 words.
    pub fn luong_2015() -> Self {
        Self {
            vocab_size: 50_000,
            embedding_size: 1000,
            hidden_size: 1000,
            num_layers: 4,
            scale_embedding: false,
            tie_word_embeddings: false,
            decoder_start_token_id: 49_999,
            pad_token_id: 49_999,
            ..Self::default()
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, an unknown key, a value of the wrong type, another family, or sizes that cannot be built.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |e: serde_json::Error| Error::request(format!("not a config of an LSTM with attention: {e}"));
        let value: Value = serde_json::from_str(text).map_err(wrong)?;
        let config: Self = serde_json::from_value(value).map_err(wrong)?;
        config.check()?;
        Ok(config)
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "lstm_attention" {
            return Err(Error::request(format!("model_type is \"{}\", not lstm_attention", self.model_type)));
        }
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("embedding_size", self.embedding_size),
            ("hidden_size", self.hidden_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            config::check_size(name, value, MAX_FEATURES)?;
        }
        config::check_size("num_layers", self.num_layers, MAX_LAYERS)?;
        if !self.hidden_size.is_multiple_of(2) {
            return Err(Error::request(format!(
                "hidden_size is {}, which two directions cannot share",
                self.hidden_size
            ))
            .with_help("choose an even one"));
        }
        if self.tie_word_embeddings && self.embedding_size != self.hidden_size {
            return Err(Error::request(format!(
                "the table of embeddings makes the logits, but embedding_size is {} and hidden_size {}",
                self.embedding_size, self.hidden_size
            ))
            .with_help("make them equal, or set tie_word_embeddings to false"));
        }
        for (name, token) in [
            ("decoder_start_token_id", self.decoder_start_token_id),
            ("pad_token_id", self.pad_token_id),
            ("eos_token_id", self.eos_token_id),
        ] {
            if token as usize >= self.vocab_size {
                return Err(Error::request(format!(
                    "{name} is {token}, beyond the {} tokens of the vocabulary",
                    self.vocab_size
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_are_read_back_and_bad_ones_refused_by_name() {
        for config in [LstmAttentionConfig::default(), LstmAttentionConfig::luong_2015()] {
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(LstmAttentionConfig::from_json(&text).unwrap(), config);
        }
        let refusal = |text: &str| LstmAttentionConfig::from_json(text).unwrap_err().to_string();
        assert!(refusal(r#"{"hiden_size": 3}"#).contains("hiden_size"));
        assert!(refusal(r#"{"model_type": "marian"}"#).contains("\"marian\", not lstm_attention"));
        assert!(refusal(r#"{"hidden_size": 5, "embedding_size": 5}"#).contains("hidden_size is 5"));
        assert!(refusal(r#"{"hidden_size": 256}"#).contains("embedding_size is 384 and hidden_size 256"));
        assert!(refusal(r#"{"vocab_size": 100}"#).contains("decoder_start_token_id is 11999"));
        assert!(refusal(r#"{"num_layers": 0}"#).contains("num_layers"));
    }
}
