//! CLIP's picture encoder: "Learning Transferable Visual Models From Natural Language Supervision", Radford et al. 2021,
//! <https://arxiv.org/abs/2103.00020>, sections 2.3 to 2.5. It is the Vision Transformer of "An Image is Worth 16x16 Words",
//! Dosovitskiy et al. 2020, <https://arxiv.org/abs/2010.11929>, section 3.1.
//!
//! | in the paper | here |
//! |---|---|
//! | image encoder, figure 3 `I_f` (Radford) | [`ClipVision::forward`], `pooled_output` |
//! | `W_i`, projection to the joint space | `visual_projection`, its result before normalisation `image_embeds` |
//! | `E`, patch projection (Dosovitskiy, equation 1) | `patch_embedding` |
//! | `x_class`, `E_pos` | `class_embedding`, `position_embedding` |
//! | `z_l`, equations 2 and 3 | [`EncoderLayer`], `hidden_states` |
//! | `y`, equation 4 | `pooled_output` |
//!
//! What differs: Radford et al. norm the embeddings before the first layer (`pre_layrnorm`, spelt so in every checkpoint)
//! and project patches without bias. The text tower is in `clip_text`, and so is the loss; both towers below one `Params`
//! have the keys of transformers' `CLIPModel`, but for its scalar `logit_scale`.

use conjure_core::blocks::{Embedding, EncoderLayer, EncoderLayerConfig, HiddenAct, LayerNorm, Linear};
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::ops::{self, Conv2dSpec};
use conjure_core::probe::Probe;
use conjure_core::weights::{Init, Params};
use conjure_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The encoder's `config.json`, in transformers' words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// `CLIPVisionModel`, or `CLIPVisionModelWithProjection` for a model with `visual_projection`.
    pub architectures: Vec<String>,
    /// `clip_vision_model`.
    pub model_type: String,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features between the two layers of the MLP.
    pub intermediate_size: usize,
    /// Features of `image_embeds`.
    pub projection_dim: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Channels of a picture.
    pub num_channels: usize,
    /// Height and width of a picture, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels. What is left of a picture beyond whole patches is not seen.
    pub patch_size: usize,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Added to the variance in every norm.
    pub layer_norm_eps: f64,
    /// Entries without influence on the architecture, kept for writing the file back.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

const WITH_PROJECTION: &str = "CLIPVisionModelWithProjection";

/// Entries that concern training or the file, whatever their value.
const HARMLESS: [&str; 9] = [
    "transformers_version",
    "torch_dtype",
    "dtype",
    "attention_dropout",
    "dropout",
    "initializer_factor",
    "initializer_range",
    "output_hidden_states",
    "output_attentions",
];

impl Default for ClipVisionConfig {
    /// transformers' defaults.
    fn default() -> Self {
        Self {
            architectures: vec!["CLIPVisionModel".to_owned()],
            model_type: "clip_vision_model".to_owned(),
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            other: BTreeMap::new(),
        }
    }
}

impl ClipVisionConfig {
    /// OpenAI's ViT-B/32 with projection.
    pub fn vit_b_32() -> Self {
        Self { architectures: vec![WITH_PROJECTION.to_owned()], ..Self::default() }
    }

    /// OpenAI's ViT-L/14 with projection.
    pub fn vit_l_14() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            projection_dim: 768,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            patch_size: 14,
            ..Self::vit_b_32()
        }
    }

    /// For pictures of 64x64: 16 patches of 16x16, 256 features, 4 layers, with projection to 256 features.
    pub fn small_64() -> Self {
        Self {
            hidden_size: 256,
            intermediate_size: 1024,
            projection_dim: 256,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            image_size: 64,
            patch_size: 16,
            ..Self::vit_b_32()
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a value of the wrong type, or an architecture that cannot be built: also every key that we do not know
    /// and that is not null or false.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not a CLIP vision config: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit, or are not supported.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "clip_vision_model" {
            return Err(Error::request(format!("model_type is \"{}\", not \"clip_vision_model\"", self.model_type))
                .with_help("give the config of the picture encoder alone"));
        }
        if let Some(class) = self.architectures.iter().find(|c| *c != "CLIPVisionModel" && *c != WITH_PROJECTION) {
            return Err(Error::request(format!("architectures names \"{class}\", which is no CLIP picture encoder"))
                .with_help("known are CLIPVisionModel and CLIPVisionModelWithProjection"));
        }
        for (key, value) in &self.other {
            let harmless = key.starts_with('_') || HARMLESS.contains(&key.as_str());
            if !harmless && !value.is_null() && *value != Value::Bool(false) {
                return Err(config::unknown_entry(key, value));
            }
        }
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_channels", self.num_channels),
        ] {
            config::check_size(name, value, MAX_FEATURES)?;
        }
        // Squared, they count positions and weights.
        config::check_size("image_size", self.image_size, MAX_PIXELS)?;
        config::check_size("patch_size", self.patch_size, MAX_PIXELS)?;
        config::check_size("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        if self.has_projection() {
            config::check_size("projection_dim", self.projection_dim, MAX_FEATURES)?;
        }
        if self.patch_size > self.image_size {
            return Err(Error::request(format!(
                "patch_size {} is larger than image_size {}",
                self.patch_size, self.image_size
            )));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::request(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        Ok(())
    }

    /// Whether the model has `visual_projection`.
    pub fn has_projection(&self) -> bool {
        self.architectures.iter().any(|class| class == WITH_PROJECTION)
    }

    fn num_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// Pixels along one side of a picture.
const MAX_PIXELS: usize = 1 << 14;

/// The name by which the model asks for what a file calls `stored`; `None` for what the model does not need. Files of
/// transformers 5 without projection leave `vision_model.` out; files of transformers before 4.31 carry the numbers of the
/// positions.
pub fn canonical_key(stored: &str) -> Option<String> {
    if stored.ends_with("embeddings.position_ids") {
        None
    } else if ["embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm."].iter().any(|s| stored.starts_with(s)) {
        Some(format!("vision_model.{stored}"))
    } else {
        Some(stored.to_owned())
    }
}

#[derive(Clone, Debug)]
struct Embeddings {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Embedding,
    patch_size: usize,
}

impl Embeddings {
    fn new(params: &Params, config: &ClipVisionConfig) -> Result<Self> {
        let ClipVisionConfig { hidden_size, num_channels, patch_size, .. } = *config;
        let init = Init::Normal { std: 0.02 };
        Ok(Self {
            class_embedding: params.get("class_embedding", hidden_size, init)?,
            patch_embedding: params.sub("patch_embedding").get(
                "weight",
                (hidden_size, num_channels, patch_size, patch_size),
                init,
            )?,
            position_embedding: Embedding::new(
                &params.sub("position_embedding"),
                config.num_patches() + 1,
                hidden_size,
            )?,
            patch_size,
        })
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = ops::conv2d(pixels, &self.patch_embedding, None, Conv2dSpec::new(self.patch_size, 0))?; // (batch, hidden_size, rows, columns)
        let patches = patches.flatten_from(2)?.transpose(1, 2)?; // (batch, patches, hidden_size)
        let (batch, _, hidden_size) = patches.dims3()?;
        let class = self.class_embedding.broadcast_as((batch, 1, hidden_size))?;
        let x = Tensor::cat(&[class, patches], 1)?; // (batch, 1 + patches, hidden_size)
        Ok(x.broadcast_add(self.position_embedding.weight())?)
    }
}

/// What the encoder says of a batch of pictures.
#[derive(Clone, Debug)]
pub struct ClipVisionOutput {
    /// The normed embeddings, then the output of each layer: `num_hidden_layers + 1` tensors
    /// `(batch, 1 + patches, hidden_size)`, the class first, then the patches row by row.
    pub hidden_states: Vec<Tensor>,
    /// The class after the final norm, `(batch, hidden_size)`.
    pub pooled_output: Tensor,
    /// `pooled_output` in the space that text and pictures share, `(batch, projection_dim)`; only with projection.
    pub image_embeds: Option<Tensor>,
}

/// CLIP's picture encoder.
#[derive(Clone, Debug)]
pub struct ClipVision {
    embeddings: Embeddings,
    pre_layrnorm: LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
    visual_projection: Option<Linear>,
    config: ClipVisionConfig,
}

impl ClipVision {
    /// The encoder with the keys `vision_model.*` and `visual_projection.weight` below `params`.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &ClipVisionConfig) -> Result<Self> {
        config.check()?;
        let vision_model = params.sub("vision_model");
        let layers = vision_model.sub("encoder").sub("layers");
        let ClipVisionConfig { hidden_size, layer_norm_eps, .. } = *config;
        let visual_projection = if config.has_projection() {
            Some(Linear::new(&params.sub("visual_projection"), hidden_size, config.projection_dim, false)?)
        } else {
            None
        };
        let layer = EncoderLayerConfig {
            hidden_size,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            hidden_act: config.hidden_act,
            layer_norm_eps,
            causal: false,
        };
        Ok(Self {
            embeddings: Embeddings::new(&vision_model.sub("embeddings"), config)?,
            pre_layrnorm: LayerNorm::new(&vision_model.sub("pre_layrnorm"), hidden_size, layer_norm_eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|n| EncoderLayer::new(&layers.sub(n), layer))
                .collect::<Result<_>>()?,
            post_layernorm: LayerNorm::new(&vision_model.sub("post_layernorm"), hidden_size, layer_norm_eps)?,
            visual_projection,
            config: config.clone(),
        })
    }

    /// The config that the encoder was built from.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Encodes `pixels (batch, num_channels, image_size, image_size)`, scaled as the model was trained: OpenAI's models want
    /// zero mean and unit variance over their training pictures, see `preprocessor_config.json`. The probe sees each layer's
    /// attention at `vision_model.encoder.layers.N.self_attn` and its output at `vision_model.encoder.layers.N`.
    ///
    /// # Errors
    /// Pictures of another size.
    pub fn forward(&self, pixels: &Tensor, probe: &mut dyn Probe) -> Result<ClipVisionOutput> {
        let ClipVisionConfig { num_channels, image_size, .. } = self.config;
        let (_, channels, height, width) = pixels.dims4()?;
        if [channels, height, width] != [num_channels, image_size, image_size] {
            return Err(Error::request(format!(
                "the picture encoder got {channels} channels of {height}x{width}, not {num_channels} of \
                 {image_size}x{image_size}"
            ))
            .with_help(format!("resize pictures to {image_size}x{image_size} first")));
        }
        // 1. A vector for each patch, the class before them, and where each is.
        let x = self.embeddings.forward(pixels)?; // (batch, 1 + patches, hidden_size)
        let mut x = self.pre_layrnorm.forward(&x)?;
        // 2. The transformer; every position sees all.
        let mut hidden_states = vec![x.clone()];
        for layer in &self.layers {
            x = layer.forward(&x, probe)?;
            hidden_states.push(x.clone());
        }
        // 3. The class stands for the whole picture.
        let class = x.narrow(1, 0, 1)?.squeeze(1)?; // (batch, hidden_size)
        let pooled_output = self.post_layernorm.forward(&class)?;
        // 4. Into the joint space.
        let image_embeds = self.visual_projection.as_ref().map(|w| w.forward(&pooled_output)).transpose()?; // (batch, projection_dim)
        Ok(ClipVisionOutput { hidden_states, pooled_output, image_embeds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_configs_are_read() {
        // The vision_config of openai/clip-vit-base-patch32, as transformers writes it for the tower alone.
        let text = r#"{"architectures": ["CLIPVisionModelWithProjection"], "attention_dropout": 0.0, "dropout": 0.0,
            "hidden_act": "quick_gelu", "hidden_size": 768, "image_size": 224, "initializer_factor": 1.0,
            "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
            "model_type": "clip_vision_model", "num_attention_heads": 12, "num_channels": 3, "num_hidden_layers": 12,
            "patch_size": 32, "projection_dim": 512, "torch_dtype": "float32", "transformers_version": "4.27.1"}"#;
        let config = ClipVisionConfig::from_json(text).unwrap();
        assert_eq!(config, ClipVisionConfig { other: config.other.clone(), ..ClipVisionConfig::vit_b_32() });
        let again = ClipVisionConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        for (text, said) in [
            (r#"{"use_rope": true}"#, "unknown entry use_rope (true), which may change the model"),
            (r#"{"hidden_size": 10, "num_attention_heads": 3}"#, "hidden_size 10 is not a multiple"),
            (r#"{"model_type": "clip"}"#, "model_type is \"clip\""),
            (r#"{"architectures": ["CLIPModel"]}"#, "architectures names \"CLIPModel\""),
            (r#"{"hidden_act": "relu"}"#, "not a CLIP vision config: unknown variant `relu`"),
            (r#"{"image_size": [224, 224]}"#, "not a CLIP vision config: invalid type: sequence"),
            (r#"{"patch_size": 0}"#, "patch_size is 0"),
            (r#"{"image_size": 32, "patch_size": 64}"#, "patch_size 64 is larger than image_size 32"),
            (r#"{"image_size": 9223372036854775808}"#, "image_size is 9223372036854775808; at most 16384"),
        ] {
            let error = ClipVisionConfig::from_json(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn parameters_of_the_presets_are_counted() {
        for (config, parameters) in [
            (ClipVisionConfig::vit_b_32(), 87_849_216),
            (ClipVisionConfig::vit_l_14(), 303_966_208),
            (ClipVisionConfig::small_64(), 3_426_816),
        ] {
            let params = Params::outline();
            ClipVision::new(&params, &config).unwrap();
            let count: usize = params.asked().iter().map(|p| p.shape.elem_count()).sum();
            assert_eq!(count, parameters);
        }
    }
}
