//! The U-Net's `config.json`, in diffusers' words.

use conjure_core::blocks::TimeEmbeddingNorm;
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One value for every resolution, or one per resolution from the finest to the coarsest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerBlock<T> {
    /// The same everywhere.
    One(T),
    /// One per entry of `down_block_types`.
    Many(Vec<T>),
}

impl<T: Copy> PerBlock<T> {
    /// The value at the coarsest resolution, if there is any.
    pub fn coarsest(&self) -> Option<&T> {
        match self {
            Self::One(value) => Some(value),
            Self::Many(values) => values.last(),
        }
    }

    fn expand(&self, blocks: usize, name: &str) -> Result<Vec<T>> {
        match self {
            Self::One(value) => Ok(vec![*value; blocks]),
            Self::Many(values) if values.len() == blocks => Ok(values.clone()),
            Self::Many(values) => {
                Err(Error::request(format!("{name} has {} entries but down_block_types has {blocks}", values.len())))
            }
        }
    }
}

/// A U-Net's architecture. Fields that a `config.json` leaves out take diffusers' default.
///
/// `attention_head_dim` is the number of heads wherever `num_attention_heads` is absent. The name is wrong, and 40,000
/// published configs keep it: SD 1.x states 8 and has 8 heads of 40, 80 and 160 features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UNet2DConditionConfig {
    /// Height and width of the latents that the model was trained on.
    pub sample_size: Option<Value>,
    /// Channels of the input: 4, or 9 with mask and masked picture for inpainting.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether the input is mapped from `[0, 1]` to `[-1, 1]` first.
    pub center_input_sample: bool,
    /// Whether the cosines of the timestep embedding come first.
    pub flip_sin_to_cos: bool,
    /// Shift of the timestep embedding's frequencies.
    pub freq_shift: f64,
    /// `CrossAttnDownBlock2D` or `DownBlock2D`, finest first.
    pub down_block_types: Vec<String>,
    /// `UNetMidBlock2DCrossAttn`, or none.
    pub mid_block_type: Option<String>,
    /// `UpBlock2D` or `CrossAttnUpBlock2D`, coarsest first.
    pub up_block_types: Vec<String>,
    /// Whether the first attention of each transformer block attends to the prompt as well.
    pub only_cross_attention: PerBlock<bool>,
    /// Channels, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks on the way down; one more on the way up.
    pub layers_per_block: PerBlock<usize>,
    /// Padding of the downsampling convolution.
    pub downsample_padding: usize,
    /// Divides the output of the middle's residual blocks.
    pub mid_block_scale_factor: f64,
    /// Dropout in training; not used here.
    pub dropout: f64,
    /// Activation: `silu` or its other name `swish`.
    pub act_fn: String,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// Added to the variance in the residual blocks' norms.
    pub norm_eps: f64,
    /// Features of the prompt.
    pub cross_attention_dim: PerBlock<usize>,
    /// Transformer blocks per residual block.
    pub transformer_layers_per_block: PerBlock<usize>,
    /// Number of attention heads where `num_attention_heads` is absent; see above.
    pub attention_head_dim: PerBlock<usize>,
    /// Number of attention heads.
    pub num_attention_heads: Option<PerBlock<usize>>,
    /// Whether the projections around transformer blocks are stored as linear layers.
    pub use_linear_projection: bool,
    /// Whether attention scores are computed in f32 where the rest is half precision: without effect in f32, in which
    /// everything is computed here.
    pub upcast_attention: bool,
    /// `None`, `timestep`, `identity`, `projection` or `simple_projection`.
    pub class_embed_type: Option<String>,
    /// Rows of a table of classes.
    pub num_class_embeds: Option<usize>,
    /// Features of the class condition where it is projected, and of SDXL's pooled prompt and sizes together.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// `None` or `text_time` (SDXL).
    pub addition_embed_type: Option<String>,
    /// Features of each embedded size in SDXL.
    pub addition_time_embed_dim: Option<usize>,
    /// `default` or `scale_shift`.
    pub resnet_time_scale_shift: String,
    /// Features of the time embedding; four times the finest channels if absent.
    pub time_embedding_dim: Option<usize>,
    /// Features of an embedded guidance scale (Latent Consistency Models).
    pub time_cond_proj_dim: Option<usize>,
    /// Kernel of the first convolution.
    pub conv_in_kernel: usize,
    /// Kernel of the last convolution.
    pub conv_out_kernel: usize,
    /// What else the file says. Checked when it is read, kept when it is written.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Diffusers' defaults: the architecture of SD 1.x but for `cross_attention_dim`.
impl Default for UNet2DConditionConfig {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN]),
            mid_block_type: Some(CROSS_MID.to_owned()),
            up_block_types: names([UP, CROSS_UP, CROSS_UP, CROSS_UP]),
            only_cross_attention: PerBlock::One(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::One(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            dropout: 0.0,
            act_fn: "silu".to_owned(),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::One(1280),
            transformer_layers_per_block: PerBlock::One(1),
            attention_head_dim: PerBlock::One(8),
            num_attention_heads: None,
            use_linear_projection: false,
            upcast_attention: false,
            class_embed_type: None,
            num_class_embeds: None,
            projection_class_embeddings_input_dim: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            resnet_time_scale_shift: "default".to_owned(),
            time_embedding_dim: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            other: BTreeMap::new(),
        }
    }
}

/// Resolutions; a picture can be halved only so often.
const MAX_LEVELS: usize = 16;
/// Side of a convolution's kernel.
const MAX_KERNEL: usize = 31;
const CROSS_DOWN: &str = "CrossAttnDownBlock2D";
const DOWN: &str = "DownBlock2D";
const CROSS_MID: &str = "UNetMidBlock2DCrossAttn";
const UP: &str = "UpBlock2D";
const CROSS_UP: &str = "CrossAttnUpBlock2D";

/// Keys that change the architecture, with the one value (beside null) that we can build.
fn only_value(key: &str) -> Option<Value> {
    Some(match key {
        "dual_cross_attention" | "resnet_skip_time_act" | "class_embeddings_concat" => false.into(),
        "resnet_out_scale_factor" => 1.0.into(),
        "time_embedding_type" => "positional".into(),
        "attention_type" => "default".into(),
        "encoder_hid_dim"
        | "encoder_hid_dim_type"
        | "time_embedding_act_fn"
        | "timestep_post_act"
        | "cross_attention_norm"
        | "reverse_transformer_layers_per_block" => Value::Null,
        _ => return None,
    })
}

/// Keys without effect on the architectures that we build.
const HARMLESS: [&str; 2] = ["mid_block_only_cross_attention", "addition_embed_type_num_heads"];

/// What the blocks of one resolution have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub channels: usize,
    pub layers: usize,
    pub heads: usize,
    pub transformer_layers: usize,
    pub cross_attention_dim: usize,
    pub only_cross_attention: bool,
    pub attends_down: bool,
    pub attends_up: bool,
}

impl UNet2DConditionConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a value of the wrong type, or an architecture that cannot be built: also every key that we do not know
    /// and that is not null or false.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not a U-Net config: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit, or are not supported.
    pub fn check(&self) -> Result<()> {
        if let Some(class) = self.other.get("_class_name")
            && class != "UNet2DConditionModel"
        {
            return Err(Error::request(format!("_class_name is {class}, not \"UNet2DConditionModel\"")));
        }
        for (key, value) in &self.other {
            if key.starts_with('_') || value.is_null() || HARMLESS.contains(&key.as_str()) {
                continue;
            }
            match only_value(key) {
                // Numbers compare as f64, because JSON writers are free to say 1 for 1.0.
                Some(known)
                    if *value == known || (value.is_f64() || value.is_u64()) && value.as_f64() == known.as_f64() => {}
                Some(known) => {
                    return Err(Error::request(format!("{key} is {value}; only {known} is supported"))
                        .with_help("this is a U-Net beyond SD 1.x, SD 2.x and SDXL"));
                }
                None if *value == Value::Bool(false) => {}
                None => {
                    return Err(config::unknown_entry(key, value));
                }
            }
        }
        if !matches!(self.act_fn.as_str(), "silu" | "swish") {
            return Err(Error::request(format!("act_fn is \"{}\"; only \"silu\" is supported", self.act_fn)));
        }
        if let Some(mid) = &self.mid_block_type
            && mid != CROSS_MID
        {
            return Err(Error::request(format!("mid_block_type is \"{mid}\"; only \"{CROSS_MID}\" is supported")));
        }
        TimeEmbeddingNorm::from_name(&self.resnet_time_scale_shift)?;
        let class = self.class_embed_type.as_deref();
        if !matches!(class, None | Some("timestep" | "identity" | "projection" | "simple_projection")) {
            return Err(Error::request(format!("unknown class_embed_type \"{}\"", class.unwrap_or_default())));
        }
        let addition = self.addition_embed_type.as_deref();
        if !matches!(addition, None | Some("text_time")) {
            return Err(Error::request(format!(
                "addition_embed_type is \"{}\"; only \"text_time\" is supported",
                addition.unwrap_or_default()
            )));
        }
        if addition.is_some() && self.addition_time_embed_dim.is_none() {
            return Err(Error::request("addition_embed_type \"text_time\" needs addition_time_embed_dim"));
        }
        if (addition.is_some() || matches!(class, Some("projection" | "simple_projection")))
            && self.projection_class_embeddings_input_dim.is_none()
        {
            return Err(Error::request(
                "addition_embed_type and class_embed_type need projection_class_embeddings_input_dim",
            ));
        }
        if self.conv_in_kernel.is_multiple_of(2) || self.conv_out_kernel.is_multiple_of(2) {
            return Err(Error::request("conv_in_kernel and conv_out_kernel must be odd"));
        }
        for (name, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("norm_num_groups", self.norm_num_groups),
        ] {
            config::check_size(name, value, MAX_FEATURES)?;
        }
        for (name, value) in [
            ("time_embedding_dim", self.time_embedding_dim),
            ("time_cond_proj_dim", self.time_cond_proj_dim),
            ("num_class_embeds", self.num_class_embeds),
            ("addition_time_embed_dim", self.addition_time_embed_dim),
            ("projection_class_embeddings_input_dim", self.projection_class_embeddings_input_dim),
        ] {
            config::check_size(name, value.unwrap_or(1), MAX_FEATURES)?;
        }
        config::check_size("conv_in_kernel", self.conv_in_kernel, MAX_KERNEL)?;
        config::check_size("conv_out_kernel", self.conv_out_kernel, MAX_KERNEL)?;
        if self.downsample_padding > MAX_KERNEL {
            return Err(Error::request(format!("downsample_padding is {}", self.downsample_padding)));
        }
        self.levels().map(drop)
    }

    /// The resolutions, finest first.
    pub(super) fn levels(&self) -> Result<Vec<Level>> {
        let n = self.down_block_types.len();
        config::check_size("the number of down_block_types", n, MAX_LEVELS)?;
        for (name, entries) in
            [("up_block_types", self.up_block_types.len()), ("block_out_channels", self.block_out_channels.len())]
        {
            if entries != n {
                return Err(Error::request(format!("{name} has {entries} entries but down_block_types has {n}")));
            }
        }
        let attends = |name: &str, with: &str, without: &str| {
            if name == with || name == without {
                return Ok(name == with);
            }
            Err(Error::request(format!("unknown block type \"{name}\""))
                .with_help(format!("known here are \"{with}\" and \"{without}\"")))
        };
        let (heads_name, heads) = match &self.num_attention_heads {
            Some(heads) => ("num_attention_heads", heads),
            None => ("attention_head_dim", &self.attention_head_dim),
        };
        let layers = self.layers_per_block.expand(n, "layers_per_block")?;
        let heads = heads.expand(n, heads_name)?;
        let transformer_layers = self.transformer_layers_per_block.expand(n, "transformer_layers_per_block")?;
        let cross_attention_dim = self.cross_attention_dim.expand(n, "cross_attention_dim")?;
        let only_cross_attention = self.only_cross_attention.expand(n, "only_cross_attention")?;
        let mut levels = Vec::with_capacity(n);
        for i in 0..n {
            let channels = self.block_out_channels[i];
            config::check_size("an entry of block_out_channels", channels, MAX_FEATURES)?;
            config::check_size("cross_attention_dim", cross_attention_dim[i], MAX_FEATURES)?;
            // A resolution without transformers may state a depth of 0.
            config::check_size("transformer_layers_per_block", transformer_layers[i].max(1), MAX_LAYERS)?;
            config::check_size("layers_per_block", layers[i], MAX_LAYERS)?;
            if !channels.is_multiple_of(self.norm_num_groups) {
                return Err(Error::request(format!(
                    "block_out_channels[{i}] = {channels} does not divide into norm_num_groups = {}",
                    self.norm_num_groups
                )));
            }
            let level = Level {
                channels,
                layers: layers[i],
                heads: heads[i],
                transformer_layers: transformer_layers[i],
                cross_attention_dim: cross_attention_dim[i],
                only_cross_attention: only_cross_attention[i],
                attends_down: attends(&self.down_block_types[i], CROSS_DOWN, DOWN)?,
                attends_up: attends(&self.up_block_types[n - 1 - i], CROSS_UP, UP)?,
            };
            if level.heads == 0 || level.heads > channels {
                return Err(Error::request(format!("{heads_name} = {} does not fit {channels} channels", level.heads)));
            }
            levels.push(level);
        }
        Ok(levels)
    }

    /// Features of the time embedding.
    pub(super) fn time_features(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }

    /// Features that the prompt's embedding must have.
    ///
    /// # Errors
    /// The resolutions want different ones.
    pub fn context_features(&self) -> Result<usize> {
        match &self.cross_attention_dim {
            PerBlock::One(n) => Ok(*n),
            PerBlock::Many(many) => match many.first() {
                Some(first) if many.iter().all(|n| n == first) => Ok(*first),
                _ => Err(Error::request(format!("cross_attention_dim {many:?} differs between resolutions"))),
            },
        }
    }

    /// Stable Diffusion 1.1 to 1.5: 860 million parameters.
    pub fn sd15() -> Self {
        Self { sample_size: Some(64.into()), cross_attention_dim: PerBlock::One(768), ..Self::default() }
    }

    /// Stable Diffusion 2.0 and 2.1: 866 million parameters, heads of 64 features.
    pub fn sd21() -> Self {
        Self {
            sample_size: Some(96.into()),
            attention_head_dim: PerBlock::Many(vec![5, 10, 20, 20]),
            cross_attention_dim: PerBlock::One(1024),
            use_linear_projection: true,
            upcast_attention: true,
            ..Self::default()
        }
    }

    /// Stable Diffusion XL base 1.0: 2.6 billion parameters, three resolutions.
    pub fn sdxl_base() -> Self {
        Self {
            sample_size: Some(128.into()),
            down_block_types: [DOWN, CROSS_DOWN, CROSS_DOWN].map(str::to_owned).to_vec(),
            up_block_types: [CROSS_UP, CROSS_UP, UP].map(str::to_owned).to_vec(),
            block_out_channels: vec![320, 640, 1280],
            attention_head_dim: PerBlock::Many(vec![5, 10, 20]),
            transformer_layers_per_block: PerBlock::Many(vec![1, 2, 10]),
            cross_attention_dim: PerBlock::One(2048),
            use_linear_projection: true,
            addition_embed_type: Some("text_time".to_owned()),
            addition_time_embed_dim: Some(256),
            projection_class_embeddings_input_dim: Some(2816),
            ..Self::default()
        }
    }

    /// Small enough for tests: two resolutions, 32-feature prompts.
    pub fn tiny() -> Self {
        Self {
            sample_size: Some(8.into()),
            down_block_types: [CROSS_DOWN, DOWN].map(str::to_owned).to_vec(),
            up_block_types: [UP, CROSS_UP].map(str::to_owned).to_vec(),
            block_out_channels: vec![8, 16],
            norm_num_groups: 4,
            attention_head_dim: PerBlock::One(2),
            layers_per_block: PerBlock::One(1),
            cross_attention_dim: PerBlock::One(32),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        UNet2DConditionConfig::from_json(json).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_built_is_refused_by_name() {
        assert!(error("{").contains("not a U-Net config"));
        assert!(error(r#"{"_class_name": "AutoencoderKL"}"#).contains("AutoencoderKL"));
        assert_eq!(
            error(r#"{"block_out_channels": [32, 64, 64]}"#),
            "block_out_channels has 3 entries but down_block_types has 4"
        );
        assert!(error(r#"{"down_block_types": ["A", "A", "A", "A"]}"#).contains("unknown block type \"A\""));
        assert!(error(r#"{"encoder_hid_dim": 1024}"#).contains("encoder_hid_dim is 1024"));
        assert!(error(r#"{"dual_cross_attention": true}"#).contains("only false"));
        assert!(error(r#"{"novel_layers": 3}"#).contains("novel_layers"));
        assert!(error(r#"{"act_fn": "gelu"}"#).contains("act_fn"));
        assert!(error(r#"{"norm_num_groups": 33}"#).contains("norm_num_groups = 33"));
        assert!(error(r#"{"attention_head_dim": 0}"#).contains("attention_head_dim = 0"));
        assert!(error(r#"{"block_out_channels": [4611686018427387904, 32, 32, 32]}"#).contains("at most 1048576"));
        assert!(error(r#"{"transformer_layers_per_block": 1000000000000}"#).contains("at most 128"));
        assert!(error(r#"{"layers_per_block": 0}"#).contains("layers_per_block is 0"));
        assert!(error(r#"{"conv_in_kernel": 1048577}"#).contains("at most 31"));
        assert!(error(r#"{"down_block_types": []}"#).contains("down_block_types is 0"));
        assert!(error(r#"{"addition_embed_type": "text_time"}"#).contains("addition_time_embed_dim"));
        assert!(
            error(r#"{"in_channels": -1}"#).contains("in_channels") || error(r#"{"in_channels": -1}"#).contains("-1")
        );
    }

    #[test]
    fn what_is_harmless_is_tolerated() {
        let json = r#"{"_diffusers_version": "0.6.0", "_class_name": "UNet2DConditionModel", "encoder_hid_dim": null,
            "dual_cross_attention": false, "resnet_out_scale_factor": 1, "novel": null, "mid_block_only_cross_attention": false}"#;
        let config = UNet2DConditionConfig::from_json(json).unwrap();
        let again = UNet2DConditionConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn presets_can_be_built() {
        for config in [
            UNet2DConditionConfig::sd15(),
            UNet2DConditionConfig::sd21(),
            UNet2DConditionConfig::sdxl_base(),
            UNet2DConditionConfig::tiny(),
        ] {
            config.check().unwrap();
        }
    }
}
