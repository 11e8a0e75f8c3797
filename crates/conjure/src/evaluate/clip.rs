//! CLIP with both towers, its tokenizer and its pixel scale: how well do a text and a picture fit?

use crate::image_file::Picture;
use crate::model_folder;
use crate::tokens::ClipTokenizer;
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::weights::{Init, Params};
use conjure_core::{D, Device, Tensor};
use conjure_models::clip_text::{ClipText, ClipTextConfig};
use conjure_models::clip_vision::{ClipVision, ClipVisionConfig};
use serde_json::{Value, json};
use std::path::Path;

/// Texts or pictures that are encoded at once.
const CHUNK: usize = 64;
/// The logarithm of the factor on cosines before training: Radford et al. 2021, section 2.5.
pub const INITIAL_LOGIT_SCALE: f64 = 2.6592;

/// Both towers' configs: `config.json` of transformers' `CLIPModel`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// The text tower's.
    pub text: ClipTextConfig,
    /// The picture tower's.
    pub vision: ClipVisionConfig,
}

impl ClipConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not the config of a `CLIPModel`, or a tower that cannot be built.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Value =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not a CLIP config: {e}")))?;
        if config["model_type"] != "clip" {
            return Err(Error::request(format!("model_type is {}, not \"clip\"", config["model_type"]))
                .with_help("give the folder of a CLIP model with both towers"));
        }
        let tower = |key: &str, class: &str, kind: &str| {
            let mut tower = config[key].clone();
            if !tower.is_object() {
                return Err(Error::request(format!("the config has no {key}")));
            }
            tower["architectures"] = json!([class]);
            tower["model_type"] = kind.into();
            tower["projection_dim"] = config["projection_dim"].clone();
            Ok(tower.to_string())
        };
        Ok(Self {
            text: ClipTextConfig::from_json(&tower("text_config", "CLIPTextModelWithProjection", "clip_text_model")?)?,
            vision: ClipVisionConfig::from_json(&tower(
                "vision_config",
                "CLIPVisionModelWithProjection",
                "clip_vision_model",
            )?)?,
        })
    }

    /// The `config.json`.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["CLIPModel"],
            "logit_scale_init_value": INITIAL_LOGIT_SCALE,
            "model_type": "clip",
            "projection_dim": self.text.projection_dim,
            "text_config": self.text,
            "vision_config": self.vision,
        })
    }
}

/// CLIP's two towers.
pub struct Clip {
    /// What words become.
    pub tokenizer: ClipTokenizer,
    /// The text tower.
    pub text: ClipText,
    /// The picture tower.
    pub vision: ClipVision,
    /// Logarithm of the factor on cosines, a scalar.
    pub logit_scale: Tensor,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Clip {
    /// The towers below `params`, with the keys of transformers' `CLIPModel`, for pixel values in -1 to 1.
    ///
    /// # Errors
    /// Configs that cannot be built or do not fit each other or the tokenizer, missing or misshapen parameters.
    pub fn new(params: &Params, config: &ClipConfig, tokenizer: ClipTokenizer) -> Result<Self> {
        let ClipConfig { text, vision } = config;
        if text.projection_dim != vision.projection_dim {
            return Err(Error::request(format!(
                "texts are projected to {} features, pictures to {}",
                text.projection_dim, vision.projection_dim
            )));
        }
        check_tokenizer(&tokenizer, text)?;
        Ok(Self {
            tokenizer,
            text: ClipText::new(params, text)?,
            vision: ClipVision::new(params, vision)?,
            logit_scale: params.get("logit_scale", (), Init::Constant(INITIAL_LOGIT_SCALE))?,
            mean: [0.5; 3],
            std: [0.5; 3],
        })
    }

    /// Opens a folder as transformers saves a `CLIPModel` with its processor, for `device`.
    ///
    /// # Errors
    /// Files that are missing, damaged, or do not belong together.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let (config, params) = model_folder::open(folder, ClipConfig::from_json, device)?;
        Self::new(&params, &config, ClipTokenizer::load(folder)?)?.with_scale_of(folder)
    }

    /// Takes over how pixels are scaled, as `preprocessor_config.json` in `folder` says.
    fn with_scale_of(mut self, folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let text = model_folder::read_text(&path)?.ok_or_else(|| Error::file(&path, "not found"))?;
        let preprocessor: Value =
            serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("not JSON: {e}")))?;
        for (key, values) in [("image_mean", &mut self.mean), ("image_std", &mut self.std)] {
            *values = serde_json::from_value(preprocessor[key].clone())
                .map_err(|e| Error::file(&path, format!("{key} is not three numbers: {e}")))?;
        }
        Ok(self)
    }

    /// `preprocessor_config.json` of transformers' `CLIPImageProcessor`.
    pub fn preprocessor(&self) -> Value {
        let size = self.vision.config().image_size;
        json!({
            "crop_size": { "height": size, "width": size },
            "do_center_crop": true,
            "do_convert_rgb": true,
            "do_normalize": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": self.mean,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": self.std,
            "resample": 3,
            "rescale_factor": 1.0 / 255.0,
            "size": { "shortest_edge": size },
        })
    }

    /// Texts in the joint space, `(texts, projection_dim)`, not normalised; as [`text_embeds`].
    ///
    /// # Errors
    /// No text.
    pub fn text_embeds<T: AsRef<str>>(&self, texts: &[T]) -> Result<Tensor> {
        text_embeds(&self.tokenizer, &self.text, texts, self.logit_scale.device())
    }

    /// Pictures `(pictures, 3, image_size, image_size)`, normalised as the model was trained, in the joint space:
    /// `(pictures, projection_dim)`, not normalised.
    ///
    /// # Errors
    /// Pictures of another size.
    pub fn image_embeds(&self, pixels: &Tensor) -> Result<Tensor> {
        let embeds = self.vision.forward(pixels, &mut NoProbe)?.image_embeds;
        embeds.ok_or_else(|| Error::request("the model has no visual_projection"))
    }

    /// Unit vectors of texts.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn text_directions<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>> {
        Ok(text_directions(&self.tokenizer, &self.text, texts, self.logit_scale.device())?.to_vec2()?)
    }

    /// Unit vectors of pictures of any size; each is resized to the tower's.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn picture_directions(&self, pictures: &[Picture]) -> Result<Vec<Vec<f32>>> {
        let chunk = |pictures| Ok(unit(&self.image_embeds(&self.pixels(pictures)?)?.detach())?.to_vec2()?);
        Ok(pictures.chunks(CHUNK).map(chunk).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Pictures as the tower reads them.
    fn pixels(&self, pictures: &[Picture]) -> Result<Tensor> {
        let size = self.vision.config().image_size;
        let mut values = Vec::with_capacity(pictures.len() * 3 * size * size);
        for picture in pictures {
            let picture = picture.resized(size, size)?;
            for (channel, (mean, std)) in self.mean.into_iter().zip(self.std).enumerate() {
                let plane = picture.rgb.iter().skip(channel).step_by(3);
                values.extend(plane.map(|&byte| (f32::from(byte) / 255.0 - mean) / std));
            }
        }
        Ok(Tensor::from_vec(values, (pictures.len(), 3, size, size), self.logit_scale.device())?)
    }
}

/// Refuses a tokenizer that is not the text tower's.
///
/// # Errors
/// More ids or longer windows than the tower has.
pub fn check_tokenizer(tokenizer: &ClipTokenizer, text: &ClipTextConfig) -> Result<()> {
    let (ids, tokens) = (tokenizer.vocabulary_size(), tokenizer.context_length());
    if ids > text.vocab_size || tokens > text.max_position_embeddings {
        return Err(Error::request(format!(
            "the tokenizer has {ids} ids and windows of {tokens} tokens, the text tower {} and {}",
            text.vocab_size, text.max_position_embeddings
        ))
        .with_help("tokenizer and towers come from different models"));
    }
    Ok(())
}

/// What a text tower makes of texts, `(texts, projection_dim)`, not normalised; its `pooled_output` where it has no projection.
/// Tokens beyond the window are cut off. Windows end where the longest text does: no position sees a later one, so the padding
/// changes nothing.
///
/// # Errors
/// No text.
pub fn text_embeds<T: AsRef<str>>(
    tokenizer: &ClipTokenizer,
    text: &ClipText,
    texts: &[T],
    device: &Device,
) -> Result<Tensor> {
    let windows = texts.iter().map(|text| tokenizer.encode_window(text.as_ref())).collect::<Result<Vec<_>>>()?;
    let length = |ids: &Vec<u32>| ids.iter().position(|id| *id == tokenizer.end_id()).map_or(ids.len(), |at| at + 1);
    let longest = windows.iter().map(length).max().unwrap_or(0);
    let ids: Vec<u32> = windows.iter().flat_map(|ids| ids[..longest].iter().copied()).collect();
    let output = text.forward(&Tensor::from_vec(ids, (texts.len(), longest), device)?, &mut NoProbe)?;
    Ok(output.text_embeds.unwrap_or(output.pooled_output))
}

/// Unit vectors of [`text_embeds`], `(texts, projection_dim)`, for any number of texts.
///
/// # Errors
/// No text.
pub fn text_directions<T: AsRef<str>>(
    tokenizer: &ClipTokenizer,
    text: &ClipText,
    texts: &[T],
    device: &Device,
) -> Result<Tensor> {
    let chunk = |texts| unit(&text_embeds(tokenizer, text, texts, device)?.detach());
    let chunks = texts.chunks(CHUNK).map(chunk).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&chunks, 0)?)
}

/// Cosines of every pair: a row for each of `queries`, both unit vectors.
pub fn cosines(queries: &[Vec<f32>], candidates: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    queries.iter().map(|query| candidates.iter().map(|candidate| dot(query, candidate)).collect()).collect()
}

/// Rows of `x (rows, features)`, of length 1.
///
/// # Errors
/// A tensor operation fails.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    // Under the root, so that a row of zeros has a gradient.
    Ok(x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::DType;

    fn tiny_config() -> ClipConfig {
        let text = ClipTextConfig {
            architectures: vec!["CLIPTextModelWithProjection".into()],
            vocab_size: 514,
            hidden_size: 16,
            intermediate_size: 32,
            projection_dim: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            eos_token_id: 513,
            ..ClipTextConfig::default()
        };
        let vision = ClipVisionConfig {
            hidden_size: 16,
            intermediate_size: 32,
            projection_dim: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 16,
            patch_size: 8,
            ..ClipVisionConfig::vit_b_32()
        };
        ClipConfig { text, vision }
    }

    fn of(config: &ClipConfig) -> Result<Clip> {
        Clip::new(&Params::seeded(5, DType::F32, &Device::Cpu), config, ClipTokenizer::tiny())
    }

    fn tiny() -> Clip {
        of(&tiny_config()).unwrap()
    }

    #[test]
    fn configs_are_written_and_read_and_must_fit() {
        let config = tiny_config();
        assert_eq!(ClipConfig::from_json(&config.to_json().to_string()).unwrap(), config);
        let message = |text: &str| ClipConfig::from_json(text).unwrap_err().to_string();
        assert!(message("{}").contains("model_type is null"));
        assert!(message(r#"{"model_type": "clip"}"#).contains("no text_config"));
        let mut wider = config.clone();
        wider.vision.projection_dim = 9;
        let refused = |config| of(config).err().unwrap().to_string();
        assert!(refused(&wider).contains("projected to 8 features, pictures to 9"));
        let mut smaller = config;
        smaller.text.vocab_size = 500;
        assert!(refused(&smaller).contains("514 ids"));
    }

    /// Texts encoded together and alone give the same, though the windows then end elsewhere.
    #[test]
    fn the_length_of_the_window_changes_nothing() {
        let clip = tiny();
        let texts = ["a", "a much longer text than the others", ""];
        let together = clip.text_directions(&texts).unwrap();
        for (text, expected) in texts.iter().zip(&together) {
            let alone = &clip.text_directions(&[text]).unwrap()[0];
            assert!(alone.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
        }
        assert!((cosines(&together, &together)[1][1] - 1.0).abs() < 1e-5);
        assert!(cosines(&together, &together)[0][1] < 0.9999);
    }

    #[test]
    fn pictures_of_any_size_are_read_in_the_range_of_training() {
        let clip = tiny();
        let picture = Picture::filled(40, 40, [255, 0, 51]);
        let pixels = clip.pixels(&[picture]).unwrap();
        assert_eq!(pixels.dims(), [1, 3, 16, 16]);
        let means: Vec<f32> = pixels.mean((2, 3)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (mean, expected) in means.iter().zip([1.0, -1.0, -0.6]) {
            assert!((mean - expected).abs() < 1e-5);
        }
    }
}
