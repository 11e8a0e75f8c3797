//! The scale of a LoRA whose file carries its settings as text: diffusers' `lora_adapter_metadata`.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Where diffusers keeps PEFT's settings, as JSON with keys such as `unet.lora_alpha`.
pub(super) const METADATA_KEY: &str = "lora_adapter_metadata";

/// Alphas of a file; without any, alpha is the rank.
pub(super) struct Scales {
    settings: Map<String, Value>,
}

impl Scales {
    /// # Errors
    /// Settings that are no JSON object.
    pub fn new(metadata: &BTreeMap<String, String>, path: &Path) -> Result<Self> {
        let Some(text) = metadata.get(METADATA_KEY) else { return Ok(Self { settings: Map::new() }) };
        match serde_json::from_str(text) {
            Ok(Value::Object(settings)) => Ok(Self { settings }),
            _ => Err(Error::file(path, format!("the header's {METADATA_KEY} is no JSON object"))
                .with_help("the file is damaged; download it again")),
        }
    }

    /// What a layer's product is multiplied by.
    pub fn of(&self, component: &str, layer: &str, rank: usize) -> f64 {
        // `save_lora_adapter` writes one part's settings without its name.
        let setting =
            |name: &str| self.settings.get(&format!("{component}.{name}")).or_else(|| self.settings.get(name));
        let pattern = setting("alpha_pattern").and_then(Value::as_object);
        let own = pattern.and_then(|pattern| {
            let names = |key: &str| layer.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            pattern.iter().find(|(key, _)| names(key)).and_then(|(_, value)| value.as_f64())
        });
        let alpha = own.or_else(|| setting("lora_alpha").and_then(Value::as_f64)).unwrap_or(rank as f64);
        // Kalajdzievski 2023, https://arxiv.org/abs/2312.03732.
        let stabilised = setting("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        let divisor = if stabilised { (rank as f64).sqrt() } else { rank as f64 };
        alpha / divisor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_comes_from_the_settings_and_else_is_the_rank() {
        let scales = |text: &str| {
            Scales::new(&BTreeMap::from([(METADATA_KEY.to_owned(), text.to_owned())]), Path::new("x")).unwrap()
        };
        let given = scales(r#"{"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}, "text_encoder.r": 4}"#);
        assert_eq!(given.of("unet", "mid.attn2.to_q", 4), 2.0);
        assert_eq!(given.of("unet", "mid.attn1.to_q", 4), 0.5);
        assert_eq!(given.of("text_encoder", "a", 4), 1.0);
        assert_eq!(scales(r#"{"lora_alpha": 6, "use_rslora": true}"#).of("unet", "a", 9), 2.0);
        let broken = BTreeMap::from([(METADATA_KEY.to_owned(), "[1".to_owned())]);
        assert!(Scales::new(&broken, Path::new("x")).is_err());
    }
}
