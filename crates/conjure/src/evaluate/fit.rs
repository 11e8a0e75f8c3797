//! How well do a picture and words fit? CLIP answers with the cosine of its two vectors (Radford et al. 2021). A picture model
//! may bring a judge of its own, in `image_encoder/`: a classifier that was trained on the same pictures, beside what the
//! model's text encoder makes of each class's name.
//!
//! That judge answers with the probability that picture and words name the same class, `sum_c q(c | words) p(c | picture)`:
//! `p` is the classifier's, `q` the softmax over cosines between the words and the names, as CLIP classifies pictures by the
//! names of classes. So words that nobody trained the classifier on are read by their likeness to names (as in "Zero-Shot
//! Learning by Convex Combination of Semantic Embeddings", Norouzi et al. 2014, <https://arxiv.org/abs/1312.5650>).

use super::clip::{Clip, check_tokenizer, cosines, text_directions, unit};
use super::judge::{CONCEPT, STYLE};
use crate::digest::{combined, model_digest};
use crate::image_file::Picture;
use crate::model_folder;
use crate::tokens::ClipTokenizer;
use crate::train::pictures::to_tensor;
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::weights::{Init, ParameterSpec, Params};
use conjure_core::{D, DType, Device, Tensor, ops};
use conjure_models::clip_text::{ClipText, ClipTextConfig};
use conjure_models::image_classifier::{ImageClassifier, ImageClassifierConfig};
use std::path::Path;

/// Where a picture model keeps its judge.
pub const IMAGE_ENCODER: &str = "image_encoder";
/// The tensor in it with the names' vectors, `(concepts * styles, features)` of type u8: all styles of a concept beside each
/// other. Only directions matter, so each row fills the range around 128, which stands for 0.
pub const NAMES: &str = "names";
/// What stands for 0 in [`NAMES`].
const MIDDLE: f64 = 128.0;
/// Cosines between words and names are multiplied by this: the most that CLIP allows itself (Radford et al. 2021, section 2.5).
const SCALE: f64 = 100.0;

/// Whether a picture model brings a judge.
pub fn has_image_encoder(model: &Path) -> bool {
    model.join(IMAGE_ENCODER).is_dir()
}

/// Who says how well pictures and words fit.
pub enum Fit {
    /// CLIP, by cosines.
    Clip(Clip),
    /// A picture model's own judge, by probabilities.
    Own(NameJudge),
}

impl Fit {
    /// A folder of a `CLIPModel` with its processor, or of a picture model with an [`IMAGE_ENCODER`], for `device`; with a digest
    /// of all that the answers hang on.
    ///
    /// # Errors
    /// Files that are missing, damaged, or do not belong together.
    pub fn open(folder: &Path, device: &Device) -> Result<(Self, String)> {
        if !has_image_encoder(folder) {
            return Ok((Self::Clip(Clip::open(folder, device)?), model_digest(folder)?));
        }
        let judge = NameJudge::open(folder, device)?;
        let [a, b, c] = ["tokenizer", "text_encoder", IMAGE_ENCODER].map(|name| model_digest(&folder.join(name)));
        Ok((Self::Own(judge), combined(&[&a?, &b?, &c?])))
    }

    /// Reads words, once for any number of pictures.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn read(&self, words: &str) -> Result<Words> {
        Ok(Words(match self {
            Self::Clip(clip) => clip.text_directions(&[words])?.concat(),
            Self::Own(judge) => judge.meant(words)?,
        }))
    }

    /// How well each picture fits the words, which this judge has read; more is better.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn scores(&self, words: &Words, pictures: &[Picture]) -> Result<Vec<f32>> {
        let pictures = match self {
            Self::Clip(clip) => clip.picture_directions(pictures)?,
            Self::Own(judge) => judge.shown(pictures)?,
        };
        Ok(cosines(std::slice::from_ref(&words.0), &pictures).concat())
    }
}

/// What a judge has read: a direction, or the probability of each class.
pub struct Words(Vec<f32>);

/// A classifier whose classes have names that a text encoder reads.
pub struct NameJudge {
    tokenizer: ClipTokenizer,
    text: ClipText,
    classifier: ImageClassifier,
    /// `(features, concepts * styles)`.
    names: Tensor,
    device: Device,
}

impl NameJudge {
    /// The judge of the picture model in `model`, for `device`.
    ///
    /// # Errors
    /// Files that are missing, damaged, or do not belong together.
    pub fn open(model: &Path, device: &Device) -> Result<Self> {
        let (tokenizer, text) = open_text(model, device)?;
        let folder = model.join(IMAGE_ENCODER);
        let (config, params) = model_folder::open(&folder, ImageClassifierConfig::from_json, device)?;
        let (classifier, bytes) = build(&params, &config, text.config(), &folder)?;
        let names = unit(&(bytes - MIDDLE)?)?;
        Ok(Self { tokenizer, text, classifier, names: names.t()?.contiguous()?, device: device.clone() })
    }

    /// The probability that words mean a class, for each concept in each style.
    fn meant(&self, words: &str) -> Result<Vec<f32>> {
        let words = text_directions(&self.tokenizer, &self.text, &[words], &self.device)?; // (1, features)
        let cosines = words.matmul(&self.names)?; // (1, concepts * styles)
        Ok(ops::softmax(&(cosines * SCALE)?)?.squeeze(0)?.to_vec1()?)
    }

    /// The probability that each picture, of any size, shows a class: for each concept in each style.
    fn shown(&self, pictures: &[Picture]) -> Result<Vec<Vec<f32>>> {
        let size = self.classifier.config().image_size;
        let scaled = pictures.iter().map(|picture| picture.resized(size, size)).collect::<Result<Vec<_>>>()?;
        let rgb: Vec<&[u8]> = scaled.iter().map(|picture| picture.rgb.as_slice()).collect();
        let logits = self.classifier.forward(&to_tensor(&rgb, size, &self.device)?, &mut NoProbe)?.logits;
        let probabilities = |head: &str| ops::softmax(&logits[head].detach());
        let (concepts, styles) = (probabilities(CONCEPT)?, probabilities(STYLE)?);
        let both = concepts.unsqueeze(2)?.broadcast_mul(&styles.unsqueeze(1)?)?; // (pictures, concepts, styles)
        Ok(both.flatten_from(1)?.to_vec2()?)
    }
}

/// The classifier, and [`NAMES`] as they are stored.
fn build(
    params: &Params,
    config: &ImageClassifierConfig,
    text: &ClipTextConfig,
    folder: &Path,
) -> Result<(ImageClassifier, Tensor)> {
    let classes = |head: &str| {
        config.heads.get(head).map(Vec::len).ok_or_else(|| {
            Error::file(folder, format!("the classifier has no head {head}"))
                .with_help("train recipes/image_encoder.toml for a judge of candidates")
        })
    };
    let width = if text.has_projection() { text.projection_dim } else { text.hidden_size };
    let names = params.get(NAMES, (classes(CONCEPT)? * classes(STYLE)?, width), Init::Constant(0.0))?;
    Ok((ImageClassifier::new(params, config)?, names))
}

/// What the judge of the picture model in `model` asks its weights for; nothing of them is read.
///
/// # Errors
/// Configs that are missing, damaged, or do not belong together.
pub fn asked(model: &Path) -> Result<Vec<ParameterSpec>> {
    let folder = model.join(IMAGE_ENCODER);
    let config = model_folder::config(&folder, ImageClassifierConfig::from_json)?;
    let text = model_folder::config(&model.join("text_encoder"), ClipTextConfig::from_json)?;
    let params = Params::outline();
    build(&params, &config, &text, &folder)?;
    Ok(params.asked())
}

/// Directions `(n, features)` as [`NAMES`] keeps them: to a 254th of a row's largest entry.
///
/// # Errors
/// A tensor operation fails.
pub fn to_bytes(directions: &Tensor) -> Result<Tensor> {
    let largest = (directions.abs()?.max_keepdim(D::Minus1)? + 1e-12)?;
    Ok(((directions.broadcast_div(&largest)? * 127.0)?.round()? + MIDDLE)?.to_dtype(DType::U8)?)
}

/// Tokenizer and text encoder of a picture model.
///
/// # Errors
/// Files that are missing, damaged, or do not belong together.
pub fn open_text(model: &Path, device: &Device) -> Result<(ClipTokenizer, ClipText)> {
    let (config, params) = model_folder::open_clip_text(&model.join("text_encoder"), device)?;
    let tokenizer = ClipTokenizer::load(&model.join("tokenizer"))?;
    check_tokenizer(&tokenizer, &config)?;
    Ok((tokenizer, ClipText::new(&params, &config)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_survive_as_bytes() {
        let rows = Tensor::new(&[[0.3f32, -0.6, 0.0, 0.01], [1e-3, 0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let bytes = to_bytes(&rows).unwrap();
        assert_eq!(bytes.to_vec2::<u8>().unwrap(), [[192, 1, 128, 130], [255, 128, 128, 128]]);
        let back = unit(&(bytes.to_dtype(DType::F32).unwrap() - MIDDLE).unwrap()).unwrap();
        let cosines = (back * unit(&rows).unwrap()).unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(cosines.iter().all(|cosine| *cosine > 0.9999), "{cosines:?}");
    }
}
