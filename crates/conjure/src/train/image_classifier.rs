//! Training of the classifier that judges pictures, and of the network of a perceptual loss: concepts and styles by
//! cross-entropy with smoothed labels. Beside the text encoder of a picture model it judges candidates ([`crate::evaluate::fit`]).

use super::objective::{Batch, Losses, Network, Objective};
use super::pictures::Pictures;
use super::recipe::Recipe;
use crate::data::caption::Caption;
use crate::data::{Record, Split, spread};
use crate::evaluate::clip::text_directions;
use crate::evaluate::fit::{IMAGE_ENCODER, NAMES, open_text, to_bytes};
use crate::evaluate::{CONCEPT, STYLE};
use crate::model_folder::{self, TRANSFORMERS_FILE, half};
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::rng::Generator;
use conjure_core::weights::Params;
use conjure_core::{Device, Tensor};
use conjure_models::image_classifier::{self as model, ImageClassifier, ImageClassifierConfig};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Pictures that are looked at at once when nothing is trained.
const CHUNK: usize = 64;
/// Held-out pictures that a validation looks at.
const VALIDATION: usize = 1024;
/// Concepts that count as recognised in `top5`.
const TOP: usize = 5;

/// The table `[image_classifier]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folder that holds `text_encoder/` and `tokenizer/` of a picture model whose candidates it shall judge: what the encoder
    /// makes of the classes' names is written beside the weights.
    pub text: Option<PathBuf>,
    /// The network that looks.
    pub model: Sizes,
    /// Share of each target that is spread over all classes.
    pub label_smoothing: f64,
    /// How pictures are changed before they are shown.
    pub augment: Augment,
}

impl Default for Settings {
    fn default() -> Self {
        Self { text: None, model: Sizes::default(), label_smoothing: 0.1, augment: Augment::default() }
    }
}

/// Sizes of the residual network, by the names of its `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sizes {
    /// Stride of the first convolution, 1 or 2.
    pub stem_stride: usize,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level.
    pub layers_per_block: usize,
    /// Groups of every norm.
    pub norm_num_groups: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        let small = ImageClassifierConfig::small_64(BTreeMap::new());
        Self {
            stem_stride: small.stem_stride,
            block_out_channels: small.block_out_channels,
            layers_per_block: small.layers_per_block,
            norm_num_groups: small.norm_num_groups,
        }
    }
}

impl Sizes {
    /// The config of a network for pictures of `image_size` pixels with these heads.
    pub fn config(&self, image_size: usize, heads: BTreeMap<String, Vec<String>>) -> ImageClassifierConfig {
        ImageClassifierConfig {
            image_size,
            stem_stride: self.stem_stride,
            block_out_channels: self.block_out_channels.clone(),
            layers_per_block: self.layers_per_block,
            norm_num_groups: self.norm_num_groups,
            ..ImageClassifierConfig::small_64(heads)
        }
    }
}

/// How far pictures are changed at random.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Most that a picture is moved each way, as a share of its side.
    pub shift: f64,
    /// Most that it grows or shrinks, as a share of its size; below 1.
    pub scale: f64,
    /// Whether half of the pictures are mirrored, but for those that would then show something else.
    pub mirror: bool,
    /// Most that contrast, brightness and each colour change, as a share of the range. Hues stay: a red heart is no blue
    /// heart.
    pub colour: f64,
}

impl Default for Augment {
    fn default() -> Self {
        Self { shift: 0.08, scale: 0.15, mirror: true, colour: 0.1 }
    }
}

impl Augment {
    /// Random numbers that a picture takes.
    const DRAWS: usize = 9;

    fn check(&self) -> Result<()> {
        for (name, value) in [("shift", self.shift), ("scale", self.scale), ("colour", self.colour)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::request(format!("augment.{name} is {value}, not 0 to below 1")));
            }
        }
        Ok(())
    }

    /// The picture `rgb (size, size, 3)` as planes `(3, size, size)` in -1 to 1, changed as `draws` (numbers in 0 to 1) say:
    /// moved, scaled and mirrored with bilinear sampling, what comes in from outside white; then its colours.
    fn apply(&self, rgb: &[u8], size: usize, mirror: bool, draws: &[f32], planes: &mut [f32]) {
        let around_zero = |draw: f32, most: f64| (2.0 * draw - 1.0) * most as f32;
        let zoom = 1.0 / (1.0 + around_zero(draws[0], self.scale));
        let shift = [1, 2].map(|n| around_zero(draws[n], self.shift) * size as f32);
        let mirrored = self.mirror && mirror && draws[3] < 0.5;
        let contrast = 1.0 + around_zero(draws[4], self.colour);
        let brightness = around_zero(draws[5], self.colour);
        let gains = [6, 7, 8].map(|n| contrast * (1.0 + 0.5 * around_zero(draws[n], self.colour)));
        let middle = (size as f32 - 1.0) / 2.0;
        let pixel = |x: isize, y: isize, channel: usize| -> f32 {
            let inside = |v: isize| usize::try_from(v).ok().filter(|v| *v < size);
            match (inside(x), inside(y)) {
                (Some(x), Some(y)) => f32::from(rgb[(y * size + x) * 3 + channel]) / 127.5 - 1.0,
                _ => 1.0,
            }
        };
        for y in 0..size {
            let from_y = (y as f32 - middle) * zoom + middle + shift[1];
            let (y0, part_y) = (from_y.floor(), from_y - from_y.floor());
            for x in 0..size {
                let at_x = if mirrored { size - 1 - x } else { x };
                let from_x = (at_x as f32 - middle) * zoom + middle + shift[0];
                let (x0, part_x) = (from_x.floor(), from_x - from_x.floor());
                for channel in 0..3 {
                    let at = |dx: isize, dy: isize| pixel(x0 as isize + dx, y0 as isize + dy, channel);
                    let above = at(0, 0) * (1.0 - part_x) + at(1, 0) * part_x;
                    let below = at(0, 1) * (1.0 - part_x) + at(1, 1) * part_x;
                    let value = above * (1.0 - part_y) + below * part_y;
                    planes[(channel * size + y) * size + x] = (value * gains[channel] + brightness).clamp(-1.0, 1.0);
                }
            }
        }
    }
}

/// Pictures `(indices, 3, size, size)` in -1 to 1, each changed at random.
fn augmented(
    augment: &Augment,
    pictures: &Pictures,
    indices: &[usize],
    batch: &Batch,
    device: &Device,
) -> Result<Tensor> {
    let size = pictures.size();
    let length = 3 * size * size;
    let draws = batch.generator("augmentation").uniform(indices.len() * Augment::DRAWS);
    let mut values = vec![0f32; indices.len() * length];
    for ((&i, draws), planes) in
        indices.iter().zip(draws.chunks_exact(Augment::DRAWS)).zip(values.chunks_exact_mut(length))
    {
        augment.apply(pictures.rgb(i), size, same_in_a_mirror(pictures.record(i)), draws, planes);
    }
    Ok(Tensor::from_vec(values, (indices.len(), 3, size, size), device)?)
}

/// Whether a picture still shows the same in a mirror: not so signs, flags and what is named by a side.
fn same_in_a_mirror(record: &Record) -> bool {
    let sided =
        record.concept.split('-').any(|word| ["left", "right", "clockwise", "counterclockwise"].contains(&word));
    !sided && record.group != "symbols" && record.group != "flags"
}

/// The classifier with its pictures.
pub struct Classifier {
    settings: Settings,
    model: ImageClassifier,
    networks: Vec<Network>,
    params: Params,
    pictures: Pictures,
    device: Device,
    /// For each head, the class of each name.
    classes: BTreeMap<String, BTreeMap<String, u32>>,
}

impl Classifier {
    /// What the recipe describes. The classes are the concepts and styles of the training pictures.
    ///
    /// # Errors
    /// Settings or data that cannot be used, data without concepts.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        let device = recipe.device.open()?;
        settings.augment.check()?;
        if !(0.0..1.0).contains(&settings.label_smoothing) {
            let smoothing = settings.label_smoothing;
            return Err(Error::request(format!("label_smoothing is {smoothing}, not 0 to below 1")));
        }
        let pictures = Pictures::open(&recipe.data, recipe.seed)?;
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for &i in pictures.split(Split::Train) {
            for (head, name) in labels(pictures.record(i)) {
                if head == CONCEPT && name.is_empty() {
                    return Err(Error::request(format!(
                        "{} has neither a concept nor a caption",
                        pictures.describe(i)
                    ))
                    .with_help("give every picture a caption"));
                }
                names.entry(head.to_owned()).or_default().insert(name.to_owned());
            }
        }
        let heads = names.iter().map(|(head, names)| (head.clone(), names.iter().cloned().collect())).collect();
        let classes = names.into_iter().map(|(head, names)| (head, names.into_iter().zip(0..).collect())).collect();
        let config = settings.model.config(pictures.size(), heads);
        let params = recipe.random_params(&device).trainable();
        let model = ImageClassifier::new(&params, &config)?;
        let networks = vec![Network::new("classifier", &params)?];
        let classifier = Self { settings, model, networks, params, pictures, device, classes };
        if let Some(text) = &classifier.settings.text {
            // Only the export needs these, but what cannot be read is told before the work.
            open_text(text, &classifier.device)?;
            classifier.names()?;
        }
        Ok(classifier)
    }

    /// How one would ask for each concept in each style: all styles of a concept beside each other, in the order of the heads.
    fn names(&self) -> Result<Vec<String>> {
        let heads = &self.model.config().heads;
        let mut shown: BTreeMap<&str, &Record> = BTreeMap::new();
        for &i in self.pictures.split(Split::Train) {
            let record = self.pictures.record(i);
            let [(_, concept), _] = labels(record);
            shown.entry(concept).or_insert(record);
        }
        let name = |concept: &String, style: &String| {
            let record = Record { style: style.clone(), ..(**shown.get(concept.as_str())?).clone() };
            let any = || record.labels.keys().find_map(|language| Caption::plain(&record, language));
            Caption::plain(&record, "en").or_else(any).map(|caption| caption.text)
        };
        let all = heads[CONCEPT].iter().flat_map(|concept| heads[STYLE].iter().map(move |style| (concept, style)));
        all.map(|(concept, style)| {
            name(concept, style).ok_or_else(|| {
                Error::request(format!("pictures of {concept} have no captions"))
                    .with_help("a judge of candidates needs a name for every concept")
            })
        })
        .collect()
    }

    fn class(&self, head: &str, name: &str) -> Option<u32> {
        self.classes.get(head)?.get(name).copied()
    }

    /// Classes by head for pictures of which all are known.
    fn targets(&self, indices: &[usize]) -> Result<BTreeMap<String, Tensor>> {
        let mut targets: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for &i in indices {
            for (head, name) in labels(self.pictures.record(i)) {
                let class =
                    self.class(head, name).ok_or_else(|| Error::failure(format!("no {head} is named {name}")))?;
                targets.entry(head.to_owned()).or_default().push(class);
            }
        }
        targets.into_iter().map(|(head, classes)| Ok((head, Tensor::new(classes, &self.device)?))).collect()
    }
}

/// What a picture is an example of, by head. Where nobody says which concept it shows, that is its caption; pictures without
/// styles are all of one.
fn labels(record: &Record) -> [(&'static str, &str); 2] {
    let caption = || record.labels.get("en").or_else(|| record.labels.values().next()).map_or("", String::as_str);
    let concept = if record.concept.is_empty() { caption() } else { &record.concept };
    [(CONCEPT, concept), (STYLE, &record.style)]
}

/// How many of the rows of `logits` have their target among the `top` largest.
fn recognised(logits: &Tensor, targets: &Tensor, top: usize) -> Result<usize> {
    let (rows, targets) = (logits.to_vec2::<f32>()?, targets.to_vec1::<u32>()?);
    let better = |row: &[f32], target: u32| row.iter().filter(|logit| **logit > row[target as usize]).count();
    Ok(rows.iter().zip(targets).filter(|(row, target)| better(row, *target) < top).count())
}

impl Objective for Classifier {
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
        let train = self.pictures.split(Split::Train);
        let indices: Vec<usize> = batch.indices.iter().map(|&i| train[i]).collect();
        let x = augmented(&self.settings.augment, &self.pictures, &indices, batch, &self.device)?; // (batch, 3, size, size)
        let targets = self.targets(&indices)?;
        let logits = self.model.forward(&x, &mut NoProbe)?.logits;
        let loss = model::loss(&logits, &targets, self.settings.label_smoothing)?;
        let share = |head: &str| -> Result<f64> {
            Ok(recognised(&logits[head].detach(), &targets[head], 1)? as f64 / indices.len() as f64)
        };
        Ok(Losses { terms: vec![(0, loss)], figures: vec![("top1", share(CONCEPT)?), ("style", share(STYLE)?)] })
    }

    /// Shares of the pictures, known concepts in styles that they were held out from, whose concept is the likeliest
    /// (`top1`) or among the five likeliest (`top5`), and whose style is (`style`).
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        let known = |i: &usize| labels(self.pictures.record(*i)).iter().all(|(h, name)| self.class(h, name).is_some());
        let all: Vec<usize> = self.pictures.split(Split::HeldOutCombination).iter().copied().filter(known).collect();
        let chosen: Vec<usize> = spread(&all, VALIDATION).copied().collect();
        let mut found = [0; 3];
        for chunk in chosen.chunks(CHUNK) {
            let targets = self.targets(chunk)?;
            let logits = self.model.forward(&self.pictures.tensor(chunk, &self.device)?, &mut NoProbe)?.logits;
            for (found, (head, top)) in found.iter_mut().zip([(CONCEPT, 1), (CONCEPT, TOP), (STYLE, 1)]) {
                *found += recognised(&logits[head].detach(), &targets[head], top)?;
            }
        }
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let share = |(name, found): (&str, usize)| (name.to_owned(), found as f64 / chosen.len() as f64);
        Ok(["top1", "top5", "style"].into_iter().zip(found).map(share).collect())
    }

    /// The classifier; a judge of candidates in `image_encoder/`, which belongs into the picture model's folder.
    fn export(&mut self, folder: &Path) -> Result<()> {
        let mut tensors = half(&self.params.variables())?;
        let Some(text) = &self.settings.text else {
            return model_folder::write(folder, TRANSFORMERS_FILE, self.model.config(), None, &tensors);
        };
        let (tokenizer, text) = open_text(text, &self.device)?;
        let names = text_directions(&tokenizer, &text, &self.names()?, &self.device)?;
        tensors.insert(NAMES.to_owned(), to_bytes(&names)?);
        model_folder::write(&folder.join(IMAGE_ENCODER), TRANSFORMERS_FILE, self.model.config(), None, &tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 16;

    fn with(augment: Augment, draws: [f32; 9], mirror: bool) -> Vec<f32> {
        // One dark pixel at (x 5, y 7) on white.
        let mut rgb = vec![255; SIZE * SIZE * 3];
        rgb[(7 * SIZE + 5) * 3..][..3].copy_from_slice(&[0, 0, 255]);
        let mut planes = vec![0.0; rgb.len()];
        augment.apply(&rgb, SIZE, mirror, &draws, &mut planes);
        planes
    }

    fn dark(planes: &[f32]) -> Vec<(usize, usize, usize)> {
        let at = |i: usize| (i / (SIZE * SIZE), i % SIZE, i / SIZE % SIZE);
        planes.iter().enumerate().filter(|(_, v)| **v < -0.99).map(|(i, _)| at(i)).collect()
    }

    #[test]
    fn nothing_drawn_changes_nothing() {
        let same = with(Augment::default(), [0.5; 9], true);
        assert_eq!(dark(&same), [(0, 5, 7), (1, 5, 7)]);
        assert_eq!(same.iter().filter(|v| **v == 1.0).count(), same.len() - 2);
    }

    #[test]
    fn pictures_are_moved_and_mirrored_and_recoloured() {
        let augment = Augment { shift: 0.25, scale: 0.0, mirror: true, colour: 0.5 };
        let mut draws = [0.5; 9];
        draws[1] = 1.0; // Four pixels further right is where the new pixel comes from.
        assert_eq!(dark(&with(augment, draws, true)), [(0, 1, 7), (1, 1, 7)]);
        draws[3] = 0.1;
        assert_eq!(dark(&with(augment, draws, true)), [(0, 14, 7), (1, 14, 7)]);
        assert_eq!(dark(&with(augment, draws, false)), [(0, 1, 7), (1, 1, 7)]);
        let mut draws = [0.5; 9];
        draws[4] = 0.0; // Half the contrast.
        let pale = with(augment, draws, true);
        assert!(pale.iter().all(|v| v.abs() == 0.5), "{pale:?}");
    }

    #[test]
    fn scaling_keeps_the_middle_and_brings_white_in() {
        let augment = Augment { shift: 0.0, scale: 0.5, mirror: false, colour: 0.0 };
        let rgb = vec![0; SIZE * SIZE * 3];
        let mut planes = vec![0.0; rgb.len()];
        let mut draws = [0.5; 9];
        draws[0] = 0.0; // Half as large.
        augment.apply(&rgb, SIZE, true, &draws, &mut planes);
        let row = &planes[8 * SIZE..9 * SIZE];
        assert!(row[..3].iter().chain(&row[13..]).all(|v| *v == 1.0), "{row:?}");
        assert!(row[5..11].iter().all(|v| *v == -1.0), "{row:?}");
    }

    #[test]
    fn what_a_mirror_would_change_is_not_mirrored() {
        let record = |concept: &str, group: &str| Record {
            concept: concept.to_owned(),
            group: group.to_owned(),
            ..Record::default()
        };
        assert!(same_in_a_mirror(&record("cat-face", "animals-nature")));
        assert!(!same_in_a_mirror(&record("backhand-index-pointing-left", "people-body")));
        assert!(!same_in_a_mirror(&record("up-arrow", "symbols")));
    }

    #[test]
    fn recognition_counts_the_best() {
        let logits = Tensor::new(&[[0.1f32, 3.0, 2.0], [5.0, 4.0, 4.5]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[2u32, 0], &Device::Cpu).unwrap();
        assert_eq!(recognised(&logits, &targets, 1).unwrap(), 1);
        assert_eq!(recognised(&logits, &targets, 2).unwrap(), 2);
    }
}
