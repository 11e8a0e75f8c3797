//! CLIP's text encoder: "Learning Transferable Visual Models From Natural Language Supervision", Radford et al. 2021,
//! <https://arxiv.org/abs/2103.00020>, sections 2.3 to 2.5; as a condition for pictures, Rombach et al. 2022 and Podell et
//! al. 2023.
//!
//! | in the paper | here |
//! |---|---|
//! | text encoder, figure 3 `T_f` | [`ClipText::forward`], `pooled_output` |
//! | `W_t`, projection to the joint space | `text_projection`, its result before normalisation `text_embeds` |
//! | `I_e`, `T_e` | arguments of [`contrastive_loss`] and [`matched_contrastive_loss`] |
//! | `t`, learned temperature | `logit_scale`, of which the exponential is taken |
//!
//! What differs: the picture tower is in `clip_vision`; both below one `Params` have the keys of transformers' `CLIPModel`. OpenCLIP's text encoders (SD 2.x: ViT-H/14, SDXL: ViT-bigG/14) are this
//! model with exact GELU. Diffusers cuts the last of ViT-H's 24 layers off and so takes the penultimate one by config;
//! SDXL takes the penultimate one by [`ClipText::features`].

pub use conjure_core::blocks::HiddenAct;
use conjure_core::blocks::{Embedding, EncoderLayer, EncoderLayerConfig, LayerNorm, Linear};
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::probe::Probe;
use conjure_core::weights::Params;
use conjure_core::{D, Error, Result, Tensor, ops};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The encoder's `config.json`, in transformers' words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// `CLIPTextModel`, or `CLIPTextModelWithProjection` for a model with `text_projection`.
    pub architectures: Vec<String>,
    /// `clip_text_model`.
    pub model_type: String,
    /// Tokens.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features between the two layers of the MLP.
    pub intermediate_size: usize,
    /// Features of `text_embeds`.
    pub projection_dim: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Most tokens in a sequence.
    pub max_position_embeddings: usize,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Added to the variance in every norm.
    pub layer_norm_eps: f64,
    /// Token whose first position is pooled. 2 is what old configs say by mistake: the position of the highest id is
    /// pooled then, which is the end of the text in CLIP's own vocabulary.
    pub eos_token_id: u32,
    /// Entries without influence on the architecture, kept for writing the file back.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

const WITH_PROJECTION: &str = "CLIPTextModelWithProjection";

/// Entries that concern training, the tokenizer or the file, whatever their value.
const HARMLESS: [&str; 11] = [
    "transformers_version",
    "torch_dtype",
    "dtype",
    "attention_dropout",
    "dropout",
    "initializer_factor",
    "initializer_range",
    "bos_token_id",
    "pad_token_id",
    "output_hidden_states",
    "output_attentions",
];

impl Default for ClipTextConfig {
    /// transformers' defaults.
    fn default() -> Self {
        Self {
            architectures: vec!["CLIPTextModel".to_owned()],
            model_type: "clip_text_model".to_owned(),
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            other: BTreeMap::new(),
        }
    }
}

impl ClipTextConfig {
    /// OpenAI's ViT-L/14, the text encoder of SD 1.x and the first one of SDXL.
    pub fn vit_l_14() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 768,
            num_attention_heads: 12,
            ..Self::default()
        }
    }

    /// OpenCLIP's ViT-H/14 without its last layer, the text encoder of SD 2.x.
    pub fn open_clip_h_14() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            projection_dim: 1024,
            num_hidden_layers: 23,
            num_attention_heads: 16,
            hidden_act: HiddenAct::Gelu,
            ..Self::default()
        }
    }

    /// OpenCLIP's ViT-bigG/14 with projection, the second text encoder of SDXL.
    pub fn open_clip_big_g_14() -> Self {
        Self {
            architectures: vec![WITH_PROJECTION.to_owned()],
            hidden_size: 1280,
            intermediate_size: 5120,
            projection_dim: 1280,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: HiddenAct::Gelu,
            ..Self::default()
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a value of the wrong type, or an architecture that cannot be built: also every key that we do not know
    /// and that is not null or false.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not a CLIP text config: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a model can be built.
    ///
    /// # Errors
    /// Says which entries do not fit, or are not supported.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "clip_text_model" {
            return Err(Error::request(format!("model_type is \"{}\", not \"clip_text_model\"", self.model_type))
                .with_help("give the config of the text encoder alone"));
        }
        if let Some(class) = self.architectures.iter().find(|c| *c != "CLIPTextModel" && *c != WITH_PROJECTION) {
            return Err(Error::request(format!("architectures names \"{class}\", which is no CLIP text encoder"))
                .with_help("known are CLIPTextModel and CLIPTextModelWithProjection"));
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
        ] {
            config::check_size(name, value, MAX_FEATURES)?;
        }
        config::check_size("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        if self.has_projection() {
            config::check_size("projection_dim", self.projection_dim, MAX_FEATURES)?;
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::request(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        Ok(())
    }

    /// Whether the model has `text_projection`.
    pub fn has_projection(&self) -> bool {
        self.architectures.iter().any(|class| class == WITH_PROJECTION)
    }
}

/// The parameter whose rows are the vectors of the tokens.
pub const TOKEN_EMBEDDING: &str = "text_model.embeddings.token_embedding.weight";

/// The name by which the model asks for what a file calls `stored`; `None` for what the model does not need. Files of
/// transformers 5 without projection leave `text_model.` out; files of transformers before 4.31 carry the numbers of the
/// positions.
pub fn canonical_key(stored: &str) -> Option<String> {
    if stored.ends_with("embeddings.position_ids") {
        None
    } else if ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|start| stored.starts_with(start)) {
        Some(format!("text_model.{stored}"))
    } else {
        Some(stored.to_owned())
    }
}

#[derive(Clone, Debug)]
struct Embeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

impl Embeddings {
    fn new(params: &Params, config: &ClipTextConfig) -> Result<Self> {
        let ClipTextConfig { vocab_size, max_position_embeddings, hidden_size, .. } = *config;
        Ok(Self {
            token_embedding: Embedding::new(&params.sub("token_embedding"), vocab_size, hidden_size)?,
            position_embedding: Embedding::new(
                &params.sub("position_embedding"),
                max_position_embeddings,
                hidden_size,
            )?,
        })
    }

    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let time = ids.dim(1)?;
        let positions = self.position_embedding.weight().narrow(0, 0, time)?; // (time, hidden_size)
        Ok(self.token_embedding.forward(ids)?.broadcast_add(&positions)?) // (batch, time, hidden_size)
    }
}

/// What the encoder says of a batch of texts.
#[derive(Clone, Debug)]
pub struct ClipTextOutput {
    /// The embeddings, then the output of each layer, before the final norm: `num_hidden_layers + 1` tensors
    /// `(batch, time, hidden_size)`.
    pub hidden_states: Vec<Tensor>,
    /// The last layer's output after the final norm, `(batch, time, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// `last_hidden_state` where the text ends, `(batch, hidden_size)`.
    pub pooled_output: Tensor,
    /// `pooled_output` in the space that text and pictures share, `(batch, projection_dim)`; only with projection.
    pub text_embeds: Option<Tensor>,
}

/// CLIP's text encoder.
#[derive(Clone, Debug)]
pub struct ClipText {
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
}

impl ClipText {
    /// The encoder with the keys `text_model.*` and `text_projection.weight` below `params`.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &ClipTextConfig) -> Result<Self> {
        config.check()?;
        let text_model = params.sub("text_model");
        let layers = text_model.sub("encoder").sub("layers");
        let text_projection = if config.has_projection() {
            Some(Linear::new(&params.sub("text_projection"), config.hidden_size, config.projection_dim, false)?)
        } else {
            None
        };
        let layer = EncoderLayerConfig {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            hidden_act: config.hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            causal: true,
        };
        Ok(Self {
            embeddings: Embeddings::new(&text_model.sub("embeddings"), config)?,
            layers: (0..config.num_hidden_layers)
                .map(|n| EncoderLayer::new(&layers.sub(n), layer))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::new(
                &text_model.sub("final_layer_norm"),
                config.hidden_size,
                config.layer_norm_eps,
            )?,
            text_projection,
            config: config.clone(),
        })
    }

    /// The config that the encoder was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Encodes `ids (batch, time)` of type u32. The probe sees each layer's attention at
    /// `text_model.encoder.layers.N.self_attn` and its output at `text_model.encoder.layers.N`.
    ///
    /// # Errors
    /// No token, more than `max_position_embeddings` tokens, an id beyond the vocabulary.
    pub fn forward(&self, ids: &Tensor, probe: &mut dyn Probe) -> Result<ClipTextOutput> {
        let rows = ids.to_vec2::<u32>()?; // (batch, time)
        self.check_ids(&rows, ids.dim(1)?)?;
        // 1. Token and position embeddings.
        let mut x = self.embeddings.forward(ids)?; // (batch, time, hidden_size)
        // 2. The transformer; each position sees itself and the earlier ones.
        let mut hidden_states = vec![x.clone()];
        for layer in &self.layers {
            x = layer.forward(&x, probe)?;
            hidden_states.push(x.clone());
        }
        // 3. The final norm.
        let last_hidden_state = self.final_layer_norm.forward(&x)?; // (batch, time, hidden_size)
        // 4. The position where the text ends stands for the whole of it.
        let (batch, time, hidden_size) = last_hidden_state.dims3()?;
        let ends: Vec<u32> =
            rows.iter().enumerate().map(|(b, row)| (b * time + self.end_of_text(row)) as u32).collect();
        let flat = last_hidden_state.reshape((batch * time, hidden_size))?;
        let pooled_output = flat.index_select(&Tensor::new(ends, flat.device())?, 0)?; // (batch, hidden_size)
        // 5. Into the joint space.
        let text_embeds = self.text_projection.as_ref().map(|w| w.forward(&pooled_output)).transpose()?; // (batch, projection_dim)
        Ok(ClipTextOutput { hidden_states, last_hidden_state, pooled_output, text_embeds })
    }

    /// What a U-Net attends to: the output of the layer `skip` before the last, `(batch, time, hidden_size)`, through the
    /// final norm if `normed`. Stable Diffusion with diffusers' `clip_skip` is `(clip_skip, true)`, SDXL is
    /// `(clip_skip + 1, false)`, where no `clip_skip` means 0.
    ///
    /// # Errors
    /// `skip` is more than the number of layers.
    pub fn features(&self, output: &ClipTextOutput, skip: usize, normed: bool) -> Result<Tensor> {
        if normed && skip == 0 {
            return Ok(output.last_hidden_state.clone());
        }
        let layers = self.layers.len();
        let state = layers.checked_sub(skip).and_then(|n| output.hidden_states.get(n)).ok_or_else(|| {
            Error::request(format!("cannot skip {skip} layers of a text encoder with {layers}"))
                .with_help(format!("skip at most {layers}"))
        })?;
        if normed { self.final_layer_norm.forward(state) } else { Ok(state.clone()) }
    }

    fn check_ids(&self, rows: &[Vec<u32>], time: usize) -> Result<()> {
        let ClipTextConfig { vocab_size, max_position_embeddings, .. } = self.config;
        if rows.is_empty() || time == 0 {
            return Err(Error::request("the text encoder got no token"));
        }
        if time > max_position_embeddings {
            return Err(Error::request(format!(
                "{time} tokens are more than the {max_position_embeddings} positions of the text encoder"
            ))
            .with_help(format!("encode a longer text in pieces of {max_position_embeddings} tokens")));
        }
        if let Some(id) = rows.iter().flatten().find(|id| **id as usize >= vocab_size) {
            return Err(Error::request(format!(
                "token {id} is beyond the {vocab_size} tokens that the text encoder knows"
            ))
            .with_help("the tokenizer does not belong to this text encoder"));
        }
        Ok(())
    }

    /// Where the text ends; 0 where no end is marked, as transformers has it.
    fn end_of_text(&self, row: &[u32]) -> usize {
        let marker = match self.config.eos_token_id {
            2 => row.iter().max().copied(),
            id => Some(id),
        };
        row.iter().position(|id| Some(*id) == marker).unwrap_or(0)
    }
}

/// The contrastive loss of figure 3 of the paper: cross-entropy, in both directions, of finding each text's picture and
/// each picture's text in the batch. `text_embeds` and `image_embeds (batch, projection_dim)` need not be normalised;
/// `logit_scale` is the logarithm of the factor on the cosines, a scalar. Returns a scalar.
pub fn contrastive_loss(text_embeds: &Tensor, image_embeds: &Tensor, logit_scale: &Tensor) -> Result<Tensor> {
    let own = Tensor::eye(text_embeds.dim(0)?, text_embeds.dtype(), text_embeds.device())?;
    matched_contrastive_loss(text_embeds, image_embeds, logit_scale, &own)
}

/// The contrastive loss where several pictures may fit a text: "Unified Contrastive Learning in Image-Text-Label Space", Yang
/// et al. 2022, <https://arxiv.org/abs/2204.03610>, equations 2 to 4, their mean. `matches (texts, pictures)` is 1 where the
/// text fits the picture, else 0, at least one in every row and column; each text shall find its pictures with equal
/// probabilities, each picture its texts. The rest as in [`contrastive_loss`], which is the case of one match each.
pub fn matched_contrastive_loss(
    text_embeds: &Tensor,
    image_embeds: &Tensor,
    logit_scale: &Tensor,
    matches: &Tensor,
) -> Result<Tensor> {
    let normalise = |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?) };
    let text = normalise(text_embeds)?;
    let image = normalise(image_embeds)?;
    let cosines = ops::matmul(&text, &image.t()?)?; // (texts, pictures)
    let logits = cosines.broadcast_mul(&logit_scale.exp()?)?;
    // Mean over rows of: log sum exp of the row, less the mean of its matches.
    let one_way = |logits: &Tensor, matches: &Tensor| -> Result<Tensor> {
        let target = matches.broadcast_div(&matches.sum_keepdim(D::Minus1)?)?;
        Ok(((log_sum_exp(logits)?.sum_all()? - (logits * target)?.sum_all()?)? / logits.dim(0)? as f64)?)
    };
    let find_pictures = one_way(&logits, matches)?;
    let find_texts = one_way(&logits.t()?.contiguous()?, &matches.t()?.contiguous()?)?;
    Ok(((find_pictures + find_texts)? * 0.5)?)
}

/// Logarithm of the sum of exponentials over the last dimension, which is kept.
fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = x.max_keepdim(D::Minus1)?.detach();
    Ok((x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pictures of one thing and one of another; the first text fits both of the first. Computed by hand in f64.
    #[test]
    fn a_text_finds_all_its_pictures() {
        let device = &conjure_core::Device::Cpu;
        let text = Tensor::new(&[[1f32, 0.0], [0.6, 0.8], [0.0, 2.0]], device).unwrap();
        let image = Tensor::new(&[[3f32, 0.0], [0.8, 0.6], [0.0, 1.0]], device).unwrap();
        let matches = Tensor::new(&[[1f32, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], device).unwrap();
        let scale = Tensor::new(2f32.ln(), device).unwrap();
        let logits = [[2.0, 1.6, 0.0], [1.2, 1.92, 1.6], [0.0, 1.2, 2.0f64]];
        let target = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let (mut rows, mut columns) = (0.0, 0.0);
        for i in 0..3 {
            let row = logits[i];
            let column = [0, 1, 2].map(|j: usize| logits[j][i]);
            let matched = [0, 1, 2].map(|j: usize| if target[j][i] > 0.0 { 1.0 } else { 0.0 });
            let share = 1.0 / matched.iter().sum::<f64>();
            rows += row.map(f64::exp).iter().sum::<f64>().ln() - (0..3).map(|j| row[j] * target[i][j]).sum::<f64>();
            columns += column.map(f64::exp).iter().sum::<f64>().ln()
                - (0..3).map(|j| column[j] * matched[j] * share).sum::<f64>();
        }
        let expected = (rows + columns) / 6.0;
        let loss = matched_contrastive_loss(&text, &image, &scale, &matches).unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(loss) - expected).abs() < 1e-6, "{loss} {expected}");
        let own = contrastive_loss(&text, &image, &scale).unwrap().to_scalar::<f32>().unwrap();
        assert!((own - loss).abs() > 1e-2);
    }

    #[test]
    fn published_configs_are_read() {
        // As in Stable Diffusion 1.5's text_encoder/config.json.
        let text = r#"{"_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu",
            "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
            "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
            "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408}"#;
        let config = ClipTextConfig::from_json(text).unwrap();
        let preset = ClipTextConfig { eos_token_id: 2, other: config.other.clone(), ..ClipTextConfig::vit_l_14() };
        assert_eq!(config, preset);
        let again = ClipTextConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_changes_the_architecture_is_refused() {
        for (text, said) in [
            (r#"{"use_rope": true}"#, "unknown entry use_rope (true), which may change the model"),
            (r#"{"hidden_size": 10, "num_attention_heads": 3}"#, "hidden_size 10 is not a multiple"),
            (r#"{"model_type": "t5"}"#, "model_type is \"t5\""),
            (r#"{"architectures": ["CLIPModel"]}"#, "architectures names \"CLIPModel\""),
            (r#"{"hidden_act": "relu"}"#, "not a CLIP text config: unknown variant `relu`"),
            (r#"{"num_hidden_layers": 0}"#, "num_hidden_layers is 0"),
            (r#"{"num_hidden_layers": 1000000000000}"#, "num_hidden_layers is 1000000000000; at most 128"),
            (r#"{"hidden_size": 9223372036854775808}"#, "hidden_size is 9223372036854775808; at most 1048576"),
        ] {
            let error = ClipTextConfig::from_json(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn parameters_of_the_public_models_are_counted() {
        for (config, millions) in [
            (ClipTextConfig::vit_l_14(), 123.060),
            (ClipTextConfig::open_clip_h_14(), 340.388),
            (ClipTextConfig::open_clip_big_g_14(), 694.660),
        ] {
            let params = Params::outline();
            ClipText::new(&params, &config).unwrap();
            let count: usize = params.asked().iter().map(|p| p.shape.elem_count()).sum();
            assert!((count as f64 / 1e6 - millions).abs() < 0.001, "{count}");
        }
    }
}
