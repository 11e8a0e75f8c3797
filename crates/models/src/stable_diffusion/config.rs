//! The configs of a pipeline's components, and whether the components fit each other.

use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::clip_text::ClipTextConfig;
use crate::unet_2d_condition::UNet2DConditionConfig;
use conjure_core::{Error, Result};
use serde_json::Value;

/// Published lines of Stable Diffusion, told apart by their text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 1.x: CLIP ViT-L/14.
    StableDiffusion1,
    /// 2.x: OpenCLIP ViT-H/14.
    StableDiffusion2,
    /// XL: CLIP ViT-L/14 and OpenCLIP ViT-bigG/14.
    StableDiffusionXl,
    /// The same architecture at other sizes.
    Other,
}

impl Family {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion1 => "Stable Diffusion 1",
            Self::StableDiffusion2 => "Stable Diffusion 2",
            Self::StableDiffusionXl => "Stable Diffusion XL",
            Self::Other => "a Stable Diffusion of its own size",
        }
    }
}

/// The configs of all components.
#[derive(Clone, Debug, PartialEq)]
pub struct StableDiffusionConfig {
    /// Text encoder.
    pub text_encoder: ClipTextConfig,
    /// SDXL's second text encoder.
    pub text_encoder_2: Option<ClipTextConfig>,
    /// U-Net.
    pub unet: UNet2DConditionConfig,
    /// Autoencoder.
    pub vae: AutoencoderKlConfig,
    /// `scheduler_config.json`: noise schedule, prediction type, usual sampler. For [`conjure_core::sampling`].
    pub scheduler: Value,
    /// SDXL: whether an absent negative prompt is zeros and not the embedding of an empty text.
    pub force_zeros_for_empty_prompt: bool,
}

/// The error of a config, with the file that it stands in.
fn in_file(path: &str, error: &Error) -> Error {
    let located = Error::file(path, error.to_string());
    match error.help() {
        Some(help) => located.with_help(help),
        None => located,
    }
}

impl StableDiffusionConfig {
    /// Reads the configs of a diffusers folder. `read` gives the text of the file at a path relative to the folder, such
    /// as `unet/config.json`, or `None` where there is no such file.
    ///
    /// # Errors
    /// No `model_index.json`, another pipeline, a missing component, a config that cannot be built; components that do not
    /// fit each other.
    pub fn from_folder(read: &mut dyn FnMut(&str) -> Result<Option<String>>) -> Result<Self> {
        let index = read("model_index.json")?.ok_or_else(|| {
            Error::file("model_index.json", "not found")
                .with_help("name the folder of a whole pipeline as diffusers saves it, or a single checkpoint file")
        })?;
        let index: Value =
            serde_json::from_str(&index).map_err(|e| Error::file("model_index.json", format!("not JSON: {e}")))?;
        let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        if !class.starts_with("StableDiffusion") && !class.starts_with("LatentConsistencyModel") {
            return Err(Error::file("model_index.json", format!("_class_name is \"{class}\""))
                .with_help("Stable Diffusion 1, 2 and XL can be loaded"));
        }
        // `["library", "Class"]` names a component; `[null, null]` says that there is none.
        let declared = |component: &str| index.get(component).and_then(|v| v.get(1)).is_some_and(Value::is_string);
        let mut component = |path: &str| {
            read(path)?
                .ok_or_else(|| Error::file(path, "not found").with_help("the folder looks like an incomplete download"))
        };
        fn parse<T>(path: &str, text: &str, from_json: impl Fn(&str) -> Result<T>) -> Result<T> {
            from_json(text).map_err(|e| in_file(path, &e))
        }
        let text_path = "text_encoder/config.json";
        let text_encoder = parse(text_path, &component(text_path)?, ClipTextConfig::from_json)?;
        let text_encoder_2 = if declared("text_encoder_2") {
            let path = "text_encoder_2/config.json";
            Some(parse(path, &component(path)?, ClipTextConfig::from_json)?)
        } else {
            None
        };
        let unet = parse("unet/config.json", &component("unet/config.json")?, UNet2DConditionConfig::from_json)?;
        let vae = parse("vae/config.json", &component("vae/config.json")?, AutoencoderKlConfig::from_json)?;
        let path = "scheduler/scheduler_config.json";
        let scheduler =
            serde_json::from_str(&component(path)?).map_err(|e| Error::file(path, format!("not JSON: {e}")))?;
        let force_zeros_for_empty_prompt = match index.get("force_zeros_for_empty_prompt") {
            Some(value) => value.as_bool().unwrap_or(false),
            None => text_encoder_2.is_some(), // diffusers' default
        };
        let config = Self { text_encoder, text_encoder_2, unet, vae, scheduler, force_zeros_for_empty_prompt };
        config.check()?;
        Ok(config)
    }

    /// Whether each component can be built, and whether they fit each other.
    ///
    /// # Errors
    /// Names the two configs that contradict each other.
    pub fn check(&self) -> Result<()> {
        self.text_encoder.check().map_err(|e| in_file("text_encoder/config.json", &e))?;
        if let Some(text) = &self.text_encoder_2 {
            text.check().map_err(|e| in_file("text_encoder_2/config.json", &e))?;
        }
        self.unet.check().map_err(|e| in_file("unet/config.json", &e))?;
        self.vae.check().map_err(|e| in_file("vae/config.json", &e))?;

        let refuse = |message: String| {
            Err(Error::file("unet/config.json", message).with_help("the components come from different models"))
        };
        let context = self.unet.context_features().map_err(|e| in_file("unet/config.json", &e))?;
        let (encoders, hidden) = match &self.text_encoder_2 {
            None => ("text_encoder/config.json has hidden_size", self.text_encoder.hidden_size),
            Some(second) => (
                "text_encoder/config.json and text_encoder_2/config.json together have hidden_size",
                self.text_encoder.hidden_size + second.hidden_size,
            ),
        };
        if context != hidden {
            return refuse(format!("cross_attention_dim is {context} but {encoders} {hidden}"));
        }
        let latent = self.vae.latent_channels;
        if self.unet.in_channels != latent && self.unet.in_channels != 2 * latent + 1 {
            return refuse(format!(
                "in_channels is {} but vae/config.json has latent_channels {latent}: it must be {latent}, or {} for inpainting",
                self.unet.in_channels,
                2 * latent + 1
            ));
        }
        if self.unet.out_channels != latent {
            return refuse(format!(
                "out_channels is {} but vae/config.json has latent_channels {latent}",
                self.unet.out_channels
            ));
        }
        if self.unet.class_embed_type.is_some() || self.unet.num_class_embeds.is_some() {
            return Err(Error::file("unet/config.json", "the U-Net needs class labels, which a prompt does not give")
                .with_help("this is not a text-to-image model"));
        }
        match (&self.unet.addition_embed_type, &self.text_encoder_2) {
            (None, None) => {}
            (None, Some(_)) => {
                return refuse("addition_embed_type is null but there is a second text encoder".to_owned());
            }
            (Some(_), None) => {
                return refuse("addition_embed_type is \"text_time\" but there is no second text encoder".to_owned());
            }
            (Some(_), Some(second)) => {
                if !second.has_projection() {
                    return Err(Error::file(
                        "text_encoder_2/config.json",
                        "architectures does not name CLIPTextModelWithProjection, but the U-Net needs the projection",
                    ));
                }
                let sizes = 6 * self.unet.addition_time_embed_dim.unwrap_or(0);
                let input = self.unet.projection_class_embeddings_input_dim.unwrap_or(0);
                if input != sizes + second.projection_dim {
                    return refuse(format!(
                        "projection_class_embeddings_input_dim is {input}, but six sizes of {} features and \
                         text_encoder_2/config.json's projection_dim {} make {}",
                        sizes / 6,
                        second.projection_dim,
                        sizes + second.projection_dim
                    ));
                }
            }
        }
        Ok(())
    }

    /// Which line of models this is.
    pub fn family(&self) -> Family {
        match (self.text_encoder.hidden_size, self.text_encoder_2.as_ref().map(|text| text.hidden_size)) {
            (768, None) => Family::StableDiffusion1,
            (1024, None) => Family::StableDiffusion2,
            (768, Some(1280)) => Family::StableDiffusionXl,
            _ => Family::Other,
        }
    }

    /// Whether the U-Net takes a mask and a masked picture beside the latents.
    pub fn is_inpainting(&self) -> bool {
        self.unet.in_channels != self.vae.latent_channels
    }
}
