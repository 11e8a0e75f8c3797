//! Training of CLIP (Radford et al. 2021): texts and pictures of the same thing shall point in the same direction. Its text
//! tower conditions the picture model, its cosines judge candidates.
//!
//! A batch is pictures with a caption each ([`Caption::draw`]). Captions are often true of several pictures of the batch: one
//! without a style of the same thing in every style, keywords of whatever has them. So the loss takes all that fits for a
//! match ([`matched_contrastive_loss`]), and only what a caption is false of is pushed away.

use super::objective::{Batch, Losses, Network, Objective};
use super::pictures::{Pictures, to_tensor};
use super::recipe::Recipe;
use crate::data::caption::Caption;
use crate::data::{Record, Split, spread};
use crate::evaluate::clip::{Clip, ClipConfig, cosines};
use crate::evaluate::retrieval::{recall, transposed};
use crate::image_file::{Picture, grid, write_atomically};
use crate::model_folder::{self, TRANSFORMERS_FILE, half};
use crate::tokens::{ClipTokenizer, train_bpe};
use crate::{Error, Result};
use conjure_core::rng::{self, Generator};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Tensor};
use conjure_models::clip_text::{ClipTextConfig, matched_contrastive_loss};
use conjure_models::clip_vision::ClipVisionConfig;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Captions of each training picture from which the vocabulary is learned: some of each language.
const CAPTIONS_PER_PICTURE: usize = 50;
/// Held-out pictures of each kind that a validation looks at.
const VALIDATION: usize = 256;
/// Rows and columns of the sheet of samples.
const SHEET: usize = 8;
/// Cosines are never multiplied by more than this: Radford et al. 2021, section 2.5.
const LARGEST_SCALE: f64 = 100.0;

/// The table `[clip]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folder of a CLIP model, as [`Objective::export`] writes it, to begin with: its tokenizer, towers and weights are taken,
    /// and the settings below do not count.
    pub start: Option<PathBuf>,
    /// Most tokens of the vocabulary, which is learned from the captions.
    pub vocabulary_size: usize,
    /// Tokens of a text, start and end included.
    pub context_length: usize,
    /// Features of the joint space.
    pub projection_dim: usize,
    /// Height and width of a patch of a picture, in pixels.
    pub patch_size: usize,
    /// The text tower.
    pub text: Tower,
    /// The picture tower.
    pub vision: Tower,
    /// Languages of the captions; empty for all that a picture has, a third of them English.
    pub languages: Vec<String>,
    /// Shift pictures by up to 4 pixels and add noise to them.
    pub augment: bool,
}

/// Size of a transformer, in transformers' words.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tower {
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features between the two layers of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; divides `hidden_size`.
    pub num_attention_heads: usize,
}

impl Default for Tower {
    fn default() -> Self {
        Self { hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, num_attention_heads: 4 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start: None,
            vocabulary_size: 8192,
            context_length: 32,
            projection_dim: 256,
            patch_size: 16,
            text: Tower::default(),
            vision: Tower::default(),
            languages: Vec::new(),
            augment: true,
        }
    }
}

impl Settings {
    /// The text tower's config for a tokenizer.
    fn text_config(&self, tokenizer: &ClipTokenizer) -> ClipTextConfig {
        let ids = [("bos", tokenizer.start_id()), ("pad", tokenizer.padding_id())];
        ClipTextConfig {
            architectures: vec!["CLIPTextModelWithProjection".into()],
            vocab_size: tokenizer.vocabulary_size(),
            hidden_size: self.text.hidden_size,
            intermediate_size: self.text.intermediate_size,
            projection_dim: self.projection_dim,
            num_hidden_layers: self.text.num_hidden_layers,
            num_attention_heads: self.text.num_attention_heads,
            max_position_embeddings: tokenizer.context_length(),
            eos_token_id: tokenizer.end_id(),
            other: ids.into_iter().map(|(name, id)| (format!("{name}_token_id"), id.into())).collect(),
            ..ClipTextConfig::default()
        }
    }

    /// The picture tower's config for pictures of `size` pixels.
    fn vision_config(&self, size: usize) -> ClipVisionConfig {
        ClipVisionConfig {
            hidden_size: self.vision.hidden_size,
            intermediate_size: self.vision.intermediate_size,
            projection_dim: self.projection_dim,
            num_hidden_layers: self.vision.num_hidden_layers,
            num_attention_heads: self.vision.num_attention_heads,
            image_size: size,
            patch_size: self.patch_size,
            ..ClipVisionConfig::vit_b_32()
        }
    }
}

/// CLIP with its pictures.
pub struct ClipObjective {
    settings: Settings,
    config: ClipConfig,
    clip: Clip,
    networks: Vec<Network>,
    params: Params,
    pictures: Pictures,
}

impl ClipObjective {
    /// What the recipe describes.
    ///
    /// # Errors
    /// Settings or data that cannot be used.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        let device = recipe.device.open()?;
        if recipe.batch < 2 {
            return Err(Error::request("CLIP is trained by comparing pictures, but batch is 1")
                .with_help("the larger the batch the better; 128 is a good beginning"));
        }
        let pictures = Pictures::open(&recipe.data, recipe.seed)?;
        let (config, params, tokenizer) = match &settings.start {
            Some(folder) => {
                let (config, params) = model_folder::open(folder, ClipConfig::from_json, &device)?;
                let size = config.vision.image_size;
                if size != pictures.size() {
                    return Err(Error::request(format!(
                        "data.size is {}, but the model in {} reads pictures of {size} pixels",
                        pictures.size(),
                        folder.display()
                    )));
                }
                (config, params.trainable(), ClipTokenizer::load(folder)?)
            }
            None => {
                let texts = captions(&pictures, recipe.seed);
                let tokenizer = train_bpe::train(texts, settings.vocabulary_size, settings.context_length)?;
                let config = ClipConfig {
                    text: settings.text_config(&tokenizer),
                    vision: settings.vision_config(pictures.size()),
                };
                (config, recipe.random_params(&device).trainable(), tokenizer)
            }
        };
        let clip = Clip::new(&params, &config, tokenizer)?;
        let networks = vec![Network::new("clip", &params)?];
        Ok(Self { settings, config, clip, networks, params, pictures })
    }

    fn training(&self, batch: &Batch) -> Vec<usize> {
        let train = self.pictures.split(Split::Train);
        batch.indices.iter().map(|&i| train[i]).collect()
    }

    fn pixels(&self, indices: &[usize], batch: &Batch) -> Result<Tensor> {
        let device = self.clip.logit_scale.device();
        if !self.settings.augment {
            return self.pictures.tensor(indices, device);
        }
        let size = self.pictures.size();
        let draws = batch.generator("shifts").uniform(indices.len() * 3);
        let shifted: Vec<Vec<u8>> = indices
            .iter()
            .zip(draws.chunks_exact(3))
            .map(|(&i, draws)| shifted(self.pictures.rgb(i), size, draws[0], draws[1]))
            .collect();
        let x = to_tensor(&shifted.iter().map(Vec::as_slice).collect::<Vec<_>>(), size, device)?;
        // Noise of a strength between none and a tenth of the range, so that nothing hangs on single pixels.
        let strength: Vec<f32> = draws.chunks_exact(3).map(|draws| 0.2 * draws[2]).collect();
        let strength = Tensor::from_vec(strength, (indices.len(), 1, 1, 1), device)?;
        let noise = rng::randn(&mut batch.generator("noise"), x.shape(), device)?;
        Ok((x + noise.broadcast_mul(&strength)?)?)
    }

    /// Held-out pictures of a kind, spread evenly over all there are.
    fn held_out(&self, split: Split, count: usize) -> Vec<usize> {
        spread(self.pictures.split(split), count).copied().collect()
    }

    fn directions(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        let pictures = indices.iter().map(|&i| self.pictures.picture(i)).collect::<Result<Vec<_>>>()?;
        self.clip.picture_directions(&pictures)
    }

    /// Recall at 1 and 5 of finding pictures by their captions, then of finding captions by their pictures, among `indices`
    /// in one language.
    fn retrieval(&self, indices: &[usize], pictures: &[Vec<f32>], language: &str) -> Result<Option<[f64; 4]>> {
        let named = |&(_, &i): &(usize, &usize)| Some((i, Caption::plain(self.pictures.record(i), language)?));
        let (places, found): (Vec<usize>, Vec<(usize, Caption)>) =
            indices.iter().enumerate().filter_map(|pair| Some((pair.0, named(&pair)?))).unzip();
        if found.is_empty() {
            return Ok(None);
        }
        let texts: Vec<&str> = found.iter().map(|(_, caption)| caption.text.as_str()).collect();
        let pictures: Vec<Vec<f32>> = places.iter().map(|&place| pictures[place].clone()).collect();
        let scores = cosines(&self.clip.text_directions(&texts)?, &pictures);
        let fits = |text: usize, picture: usize| found[text].1.is_true_of(self.pictures.record(found[picture].0));
        let [picture_1, picture_5] = recall(&scores, fits, [1, 5]);
        let [text_1, text_5] = recall(&transposed(&scores), |picture, text| fits(text, picture), [1, 5]);
        Ok(Some([picture_1, picture_5, text_1, text_5]))
    }
}

/// What the vocabulary is learned from: captions of the training pictures.
fn captions(pictures: &Pictures, seed: u64) -> impl Iterator<Item = String> {
    pictures.split(Split::Train).iter().flat_map(move |&i| {
        let mut generator = rng::keyed(seed, &format!("vocabulary {i}"));
        (0..CAPTIONS_PER_PICTURE).map(move |_| Caption::draw(pictures.record(i), &mut generator).text)
    })
}

/// `(captions, pictures)`: 1 where a caption is true of a picture. Each is true of its own.
fn matches(captions: &[Caption], records: &[&Record], device: &Device) -> Result<Tensor> {
    let fits = |caption: &Caption| records.iter().map(|record| f32::from(caption.is_true_of(record))).collect();
    let rows: Vec<Vec<f32>> = captions.iter().map(fits).collect();
    Ok(Tensor::from_vec(rows.concat(), (captions.len(), records.len()), device)?)
}

/// A picture shifted by up to 4 pixels each way, as two numbers in 0 to 1 say. What is shifted in is white.
fn shifted(rgb: &[u8], size: usize, across: f32, down: f32) -> Vec<u8> {
    const SHIFT: f32 = 4.0;
    let shift = |draw: f32| (draw * (2.0 * SHIFT + 1.0)).floor().min(2.0 * SHIFT) as isize - SHIFT as isize;
    let (dx, dy) = (shift(across), shift(down));
    let mut out = vec![255; rgb.len()];
    let (left, width) = (dx.max(0) as usize, size.saturating_sub(dx.unsigned_abs()));
    for y in 0..size {
        let Some(from) = y.checked_add_signed(-dy).filter(|from| *from < size) else { continue };
        let (to, from) = ((y * size + left) * 3, (from * size + (-dx).max(0) as usize) * 3);
        out[to..to + width * 3].copy_from_slice(&rgb[from..from + width * 3]);
    }
    out
}

impl Objective for ClipObjective {
    fn networks(&self) -> &[Network] {
        &self.networks
    }

    fn examples(&self) -> usize {
        self.pictures.split(Split::Train).len()
    }

    fn warnings(&self) -> Vec<String> {
        self.pictures.warnings()
    }

    fn data_digest(&self) -> String {
        self.pictures.digest().to_owned()
    }

    fn describe(&self, index: usize) -> String {
        self.pictures.describe(self.pictures.split(Split::Train)[index])
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let indices = self.training(batch);
        let records: Vec<&Record> = indices.iter().map(|&i| self.pictures.record(i)).collect();
        let mut generator = batch.generator("captions");
        let languages = &self.settings.languages;
        let captions: Vec<Caption> =
            records.iter().map(|record| Caption::draw_among(record, languages, &mut generator)).collect();
        let texts: Vec<&str> = captions.iter().map(|caption| caption.text.as_str()).collect();
        let text_embeds = self.clip.text_embeds(&texts)?; // (batch, projection_dim)
        let image_embeds = self.clip.image_embeds(&self.pixels(&indices, batch)?)?; // (batch, projection_dim)
        let logit_scale = self.clip.logit_scale.minimum(LARGEST_SCALE.ln())?;
        let matches = matches(&captions, &records, image_embeds.device())?; // (batch, batch)
        let loss = matched_contrastive_loss(&text_embeds, &image_embeds, &logit_scale, &matches)?;
        let scale = f64::from(logit_scale.to_dtype(DType::F32)?.to_scalar::<f32>()?).exp();
        Ok(Losses { terms: vec![(0, loss)], figures: vec![("scale", scale)] })
    }

    /// Recall on held-out pictures: `combination` are known things in a style that is new for them, `concept` unknown things;
    /// `picture@1` is the share of captions that find their picture, `text@1` the share of pictures that find their caption;
    /// `others` is the mean over all languages but English.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        let mut figures = Vec::new();
        for (kind, split) in [("combination", Split::HeldOutCombination), ("concept", Split::HeldOutConcept)] {
            let indices = self.held_out(split, VALIDATION);
            let pictures = self.directions(&indices)?;
            let languages: BTreeSet<&String> =
                indices.iter().flat_map(|&i| self.pictures.record(i).labels.keys()).collect();
            let (mut english, mut others) = (Vec::new(), Vec::new());
            for language in languages {
                let group = if language == "en" { &mut english } else { &mut others };
                group.extend(self.retrieval(&indices, &pictures, language)?);
            }
            for (group, found) in [("en", english), ("others", others)] {
                for (n, figure) in ["picture@1", "picture@5", "text@1", "text@5"].into_iter().enumerate() {
                    if !found.is_empty() {
                        let mean = found.iter().map(|recalls| recalls[n]).sum::<f64>() / found.len() as f64;
                        figures.push((format!("{kind} {group} {figure}"), mean));
                    }
                }
            }
        }
        Ok(figures)
    }

    /// A row for each of some held-out pictures: the picture, then those that its caption, each in another language, finds
    /// among all held-out ones.
    fn samples(&mut self) -> Result<Option<Picture>> {
        let kinds = [Split::HeldOutCombination, Split::HeldOutConcept];
        let indices: Vec<usize> = kinds.iter().flat_map(|&split| self.held_out(split, VALIDATION)).collect();
        let asked: Vec<usize> = kinds.iter().flat_map(|&split| self.held_out(split, SHEET / 2)).collect();
        if asked.is_empty() {
            return Ok(None);
        }
        let pictures = self.directions(&indices)?;
        let mut sheet = Vec::new();
        for (row, &i) in asked.iter().enumerate() {
            let record = self.pictures.record(i);
            // The first in English, the others in languages from all over the list.
            let languages: Vec<&String> = record.labels.keys().collect();
            let english = languages.iter().position(|language| *language == "en").unwrap_or(0);
            let Some(language) = languages.get((english + row * 3) % languages.len().max(1)) else { continue };
            let Some(caption) = Caption::plain(record, language) else { continue };
            let scores = &cosines(&self.clip.text_directions(&[caption.text])?, &pictures)[0];
            let mut ranked: Vec<usize> = (0..indices.len()).collect();
            ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            sheet.push(self.pictures.picture(i)?);
            for place in 0..SHEET - 1 {
                let found = ranked.get(place).map(|&place| self.pictures.picture(indices[place])).transpose()?;
                let size = self.pictures.size();
                sheet.push(found.unwrap_or_else(|| Picture::filled(size, size, [255; 3])));
            }
        }
        if sheet.is_empty() { Ok(None) } else { grid(&sheet, SHEET, 2).map(Some) }
    }

    /// A folder of transformers' `CLIPModel` with its processor; in it `text_encoder/` and `tokenizer/` as a diffusers pipeline
    /// has them.
    fn export(&mut self, folder: &Path) -> Result<()> {
        let variables = self.params.variables();
        model_folder::write(folder, TRANSFORMERS_FILE, &self.config.to_json(), None, &half(&variables)?)?;
        write_atomically(&folder.join("preprocessor_config.json"), |file| {
            writeln!(file, "{:#}", self.clip.preprocessor())
        })?;
        self.clip.tokenizer.save(folder)?;
        self.clip.tokenizer.save(&folder.join("tokenizer"))?;
        let mut config = json!(self.config.text);
        config["architectures"] = json!(["CLIPTextModel"]);
        let text = variables.into_iter().filter(|(name, _)| name.starts_with("text_model.")).collect();
        model_folder::write(&folder.join("text_encoder"), TRANSFORMERS_FILE, &config, None, &half(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::rng::keyed;

    fn record(concept: &str, style: &str) -> Record {
        let labels = [("en".to_owned(), concept.to_owned())].into();
        Record {
            concept: concept.into(),
            style: style.into(),
            labels: std::sync::Arc::new(labels),
            ..Record::default()
        }
    }

    #[test]
    fn captions_match_all_that_they_are_true_of() {
        let records = [record("heart", "noto"), record("heart", "fluent-emoji"), record("cat", "noto")];
        let records: Vec<&Record> = records.iter().collect();
        let mut generator = keyed(1, "captions");
        // Draws until the first caption says no style and the second does.
        let (plain, styled) = loop {
            let [a, b] = [0, 1].map(|i| Caption::draw(records[i], &mut generator));
            if !a.text.contains("noto") && b.text.contains("fluent") {
                break (a, b);
            }
        };
        let third = Caption::plain(records[2], "en").unwrap();
        let matches = matches(&[plain, styled, third], &records, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(matches, [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
    }

    #[test]
    fn pictures_are_shifted_onto_white() {
        let size = 16;
        let mut rgb = vec![255; size * size * 3];
        let at = |x: usize, y: usize| (y * size + x) * 3;
        rgb[at(7, 9)..][..3].copy_from_slice(&[1, 2, 3]);
        assert_eq!(shifted(&rgb, size, 0.5, 0.5), rgb);
        for (across, down, x, y) in [(0.0, 0.999, 3, 13), (0.999, 0.0, 11, 5)] {
            let moved = shifted(&rgb, size, across, down);
            assert_eq!(moved[at(x, y)..][..3], [1, 2, 3]);
            assert_eq!(moved.iter().filter(|byte| **byte != 255).count(), 3);
        }
    }
}
