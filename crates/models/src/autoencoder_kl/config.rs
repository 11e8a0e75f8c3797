//! The autoencoder's `config.json`, in diffusers' words.

use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Architecture of an autoencoder, and the scale of its latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of the picture that is encoded.
    pub in_channels: usize,
    /// Channels of the picture that is decoded.
    pub out_channels: usize,
    /// The encoder's blocks, from the finest resolution: `DownEncoderBlock2D`, one per entry of `block_out_channels`.
    pub down_block_types: Vec<String>,
    /// The decoder's blocks, from the coarsest resolution: `UpDecoderBlock2D`, as many.
    pub up_block_types: Vec<String>,
    /// Channels at each resolution, from the finest; each halves the one before.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// `silu`.
    pub act_fn: String,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Groups of every norm.
    pub norm_num_groups: usize,
    /// Side of the pictures in training, in pixels; the side of a tile.
    #[serde(deserialize_with = "one_side")]
    pub sample_size: usize,
    /// Factor on latents that gives them unit variance for the diffusion model (Rombach et al. 2022, appendix G).
    pub scaling_factor: f64,
    /// Subtracted from latents before they are scaled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_factor: Option<f64>,
    /// Mean of each latent channel, subtracted before scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviation of each latent channel, divided by while scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents_std: Option<Vec<f64>>,
    /// Whether the model overflows in half precision and must run in f32: without effect here, where everything is computed
    /// in f32.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks attend.
    pub mid_block_add_attention: bool,
    /// Entries without influence on the architecture, kept for writing the file back.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Old files give the height and the width.
fn one_side<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Sides {
        One(usize),
        Two([usize; 2]),
    }
    Ok(match Sides::deserialize(deserializer)? {
        Sides::One(side) => side,
        Sides::Two([height, width]) => height.min(width),
    })
}

const DOWN: &str = "DownEncoderBlock2D";
const UP: &str = "UpDecoderBlock2D";

impl Default for AutoencoderKlConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DOWN.to_owned()],
            up_block_types: vec![UP.to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            other: BTreeMap::new(),
        }
    }
}

impl AutoencoderKlConfig {
    /// The autoencoder of SD 1.x and 2.x: a picture of 512x512 becomes 4 channels of 64x64.
    pub fn stable_diffusion() -> Self {
        Self {
            down_block_types: vec![DOWN.to_owned(); 4],
            up_block_types: vec![UP.to_owned(); 4],
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            sample_size: 512,
            ..Self::default()
        }
    }

    /// The autoencoder of SDXL.
    pub fn stable_diffusion_xl() -> Self {
        Self { sample_size: 1024, scaling_factor: 0.13025, ..Self::stable_diffusion() }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a value of the wrong type, or an architecture that cannot be built: also every key that we do not know
    /// and that is not null or false.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not an autoencoder config: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit, or are not supported.
    pub fn check(&self) -> Result<()> {
        if let Some(class) = self.other.get("_class_name")
            && class != "AutoencoderKL"
        {
            return Err(Error::request(format!("_class_name is {class}, not \"AutoencoderKL\"")));
        }
        for (key, value) in &self.other {
            if !key.starts_with('_') && !value.is_null() && *value != Value::Bool(false) {
                return Err(config::unknown_entry(key, value));
            }
        }
        if !matches!(self.act_fn.as_str(), "silu" | "swish") {
            return Err(Error::request(format!("act_fn is \"{}\"; only \"silu\" is supported", self.act_fn)));
        }
        let levels = self.block_out_channels.len();
        if levels == 0 || levels > 16 {
            return Err(Error::request(format!("block_out_channels has {levels} entries; 1 to 16 are supported")));
        }
        for (name, types, known) in
            [("down_block_types", &self.down_block_types, DOWN), ("up_block_types", &self.up_block_types, UP)]
        {
            if types.len() != levels {
                return Err(Error::request(format!(
                    "block_out_channels has {levels} entries but {name} has {}",
                    types.len()
                )));
            }
            if let Some(other) = types.iter().find(|t| *t != known) {
                return Err(Error::request(format!("{name} names \"{other}\"; only \"{known}\" is supported")));
            }
        }
        for (name, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
            ("sample_size", self.sample_size),
        ] {
            config::check_size(name, value, MAX_FEATURES)?;
        }
        config::check_size("layers_per_block", self.layers_per_block, MAX_LAYERS)?;
        for &channels in &self.block_out_channels {
            config::check_size("an entry of block_out_channels", channels, MAX_FEATURES)?;
        }
        if let Some(channels) = self.block_out_channels.iter().find(|c| !c.is_multiple_of(self.norm_num_groups)) {
            return Err(Error::request(format!(
                "block_out_channels has {channels}, which norm_num_groups {} does not divide",
                self.norm_num_groups
            )));
        }
        let unusable = |x: f64| !x.is_finite() || x == 0.0;
        if unusable(self.scaling_factor) {
            return Err(Error::request(format!("scaling_factor is {}", self.scaling_factor)));
        }
        for (name, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let Some(values) = values else { continue };
            if values.len() != self.latent_channels {
                return Err(Error::request(format!(
                    "{name} has {} entries but latent_channels is {}",
                    values.len(),
                    self.latent_channels
                )));
            }
        }
        if let Some(std) = self.latents_std.iter().flatten().find(|std| unusable(**std)) {
            return Err(Error::request(format!("latents_std has {std}")));
        }
        Ok(())
    }

    /// Pixels per latent pixel, along each side.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_configs_are_read() {
        // As in SDXL base 1.0's vae/config.json.
        let text = r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0", "_name_or_path": "x",
            "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D",
            "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"], "force_upcast": true, "in_channels": 3,
            "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024,
            "scaling_factor": 0.13025, "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
            "UpDecoderBlock2D"]}"#;
        let config = AutoencoderKlConfig::from_json(text).unwrap();
        let preset = AutoencoderKlConfig { other: config.other.clone(), ..AutoencoderKlConfig::stable_diffusion_xl() };
        assert_eq!(config, preset);
        assert_eq!(config.downscale(), 8);
        let again = AutoencoderKlConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        for (text, said) in [
            (r#"{"use_rope": true}"#, "unknown entry use_rope (true), which may change the model"),
            (r#"{"block_out_channels": [32, 64]}"#, "block_out_channels has 2 entries but down_block_types has 1"),
            (r#"{"block_out_channels": [20]}"#, "block_out_channels has 20, which norm_num_groups 32 does not divide"),
            (
                r#"{"down_block_types": ["AttnDownEncoderBlock2D"]}"#,
                "down_block_types names \"AttnDownEncoderBlock2D\"",
            ),
            (r#"{"act_fn": "mish"}"#, "act_fn is \"mish\""),
            (r#"{"layers_per_block": 18446744073709551615}"#, "layers_per_block is 18446744073709551615; at most 128"),
            (r#"{"latent_channels": 9223372036854775808}"#, "latent_channels is 9223372036854775808; at most 1048576"),
            (r#"{"scaling_factor": 0}"#, "scaling_factor is 0"),
            (r#"{"latents_mean": [1.0]}"#, "latents_mean has 1 entries but latent_channels is 4"),
            (r#"{"_class_name": "VQModel"}"#, "_class_name is \"VQModel\""),
            (r#"{"sample_size": "big"}"#, "not an autoencoder config"),
        ] {
            let error = AutoencoderKlConfig::from_json(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn a_sample_size_may_have_two_sides() {
        assert_eq!(AutoencoderKlConfig::from_json(r#"{"sample_size": [64, 32]}"#).unwrap().sample_size, 32);
    }
}
