//! A classifier that says what pictures show, trained apart from the model whose pictures it judges.

use crate::image_file::Picture;
use crate::model_folder;
use crate::train::pictures::to_tensor;
use crate::{Error, Result};
use conjure_core::Device;
use conjure_core::probe::NoProbe;
use conjure_models::image_classifier::{ImageClassifier, ImageClassifierConfig};
use std::path::Path;

/// Pictures judged at once.
const CHUNK: usize = 64;
/// The classifier's heads.
pub const CONCEPT: &str = "concept";
/// See [`CONCEPT`].
pub const STYLE: &str = "style";

/// Opens a folder with `config.json` and weights, as the objective `image_classifier` exports it, for `device`.
///
/// # Errors
/// A folder that holds no classifier.
pub fn open_classifier(folder: &Path, device: &Device) -> Result<ImageClassifier> {
    let (config, params) = model_folder::open(folder, ImageClassifierConfig::from_json, device)?;
    ImageClassifier::new(&params, &config)
}

/// What the judge says of one picture.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// Its features, for distances between pictures.
    pub features: Vec<f32>,
    /// Concepts from the likeliest on, as many as were asked for.
    pub concepts: Vec<String>,
    /// The likeliest style.
    pub style: String,
}

/// The classifier with the names of its classes.
pub struct Judge {
    model: ImageClassifier,
    device: Device,
}

impl Judge {
    /// Opens a folder with `config.json` and weights, as the objective `image_classifier` exports it, for `device`.
    ///
    /// # Errors
    /// A folder that holds no classifier of concepts and styles.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let model = open_classifier(folder, device)?;
        for head in [CONCEPT, STYLE] {
            if !model.config().heads.contains_key(head) {
                return Err(Error::file(folder, format!("the classifier has no head {head}")));
            }
        }
        Ok(Self { model, device: device.clone() })
    }

    /// Side of the pictures that it was trained on, in pixels.
    pub fn size(&self) -> usize {
        self.model.config().image_size
    }

    /// Whether it knows a concept.
    pub fn knows(&self, concept: &str) -> bool {
        self.model.config().heads[CONCEPT].iter().any(|known| known == concept)
    }

    /// Its opinion of each picture, with the `top` likeliest concepts. Pictures of another size are scaled.
    ///
    /// # Errors
    /// A picture that cannot be scaled.
    pub fn look(&self, pictures: &[Picture], top: usize) -> Result<Vec<Opinion>> {
        let size = self.size();
        let mut opinions = Vec::with_capacity(pictures.len());
        for chunk in pictures.chunks(CHUNK) {
            let scaled = chunk.iter().map(|picture| picture.resized(size, size)).collect::<Result<Vec<_>>>()?;
            let rgb: Vec<&[u8]> = scaled.iter().map(|picture| picture.rgb.as_slice()).collect();
            let output = self.model.forward(&to_tensor(&rgb, size, &self.device)?, &mut NoProbe)?;
            let features = output.features.to_vec2::<f32>()?;
            let concepts = output.logits[CONCEPT].to_vec2::<f32>()?;
            let styles = output.logits[STYLE].to_vec2::<f32>()?;
            for ((features, concepts), styles) in features.into_iter().zip(concepts).zip(styles) {
                opinions.push(Opinion {
                    features,
                    concepts: self.best(CONCEPT, &concepts, top),
                    style: self.best(STYLE, &styles, 1).remove(0),
                });
            }
        }
        Ok(opinions)
    }

    fn best(&self, head: &str, logits: &[f32], top: usize) -> Vec<String> {
        let names = &self.model.config().heads[head];
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.into_iter().take(top.max(1)).map(|i| names[i].clone()).collect()
    }
}
