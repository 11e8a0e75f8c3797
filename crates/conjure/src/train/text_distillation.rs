//! Teaching a picture model's text encoder more languages: what it makes of a caption in any language shall be what it made of
//! the English one, after "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", Reimers &
//! Gurevych 2020, <https://arxiv.org/abs/2004.09813>. The teacher is the encoder as it was; the student begins as its copy.
//!
//! A picture model attends to every position of the window, so all are compared (mean squared error of the hidden states): the
//! words of a text with those at the same share of the English one's length, what follows its end with what follows that one's.
//! An English caption is compared with itself, position by position.
//!
//! Captions are names and keywords; people ask for `the sun` and `ein Bild von einem Hund`. So a share of the captions can be
//! wishes in such words ([`crate::data::asking`]), which shall be read as the name that they mean.
//!
//! Contrastive training with few pictures leaves hidden states that differ in a handful of directions only, and what lies near
//! together is hard to tell apart for whoever attends to them. So the student can be asked for more than its teacher knows:
//! by what it says from a text's end on, concept and style shall be told from all others (cross-entropy over cosines to a
//! learned direction each: "NormFace", Wang et al. 2017, <https://arxiv.org/abs/1704.06369>). Cosines need room, which the student
//! finds where the teacher is silent.

use super::objective::{Batch, Losses, Network, Objective};
use super::pictures::Pictures;
use super::recipe::Recipe;
use crate::data::{Record, Split, asking::Asking, caption::Caption, spread};
use crate::digest::{combined, model_digest};
use crate::evaluate::clip::{cosines, unit};
use crate::evaluate::retrieval::recall;
use crate::model_folder::{self, TRANSFORMERS_FILE, half};
use crate::tokens::ClipTokenizer;
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::rng::{Generator as _, keyed};
use conjure_core::weights::{Init, Params};
use conjure_core::{Tensor, ops};
use conjure_models::clip_text::ClipText;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Texts that are encoded at once when nothing is trained.
const CHUNK: usize = 64;
/// Cosines are multiplied by this: large enough that many classes find room, small enough that they must take some.
const COSINES: f64 = 32.0;
/// Pictures by whose names a validation looks.
const VALIDATION: usize = 100;

/// The table `[text_distillation]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folder that holds the teacher's `text_encoder/` and `tokenizer/`.
    pub text: PathBuf,
    /// Folder that holds the `text_encoder/` with which the student begins, if not with the teacher's.
    pub start: Option<PathBuf>,
    /// Weight of the loss by which concepts and styles are told apart; 0 asks for the teacher's states alone.
    pub concepts: f64,
    /// Share of captions that are English, which the student must not forget.
    pub english: f64,
    /// Share of captions that are wishes in people's own words.
    pub asked: f64,
    /// The other languages that it learns; empty for all that the data have.
    pub languages: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { text: PathBuf::new(), start: None, concepts: 0.0, english: 0.2, asked: 0.0, languages: Vec::new() }
    }
}

/// Token ids of a text, and where it ends.
struct Window {
    ids: Vec<u32>,
    end: usize,
}

/// Directions that stand for classes.
struct Directions {
    /// `(classes, hidden_size)`.
    weight: Tensor,
    places: BTreeMap<String, u32>,
}

impl Directions {
    /// One for each name, at random: so they lie apart from the start, and as they are long they turn slowly.
    fn new(params: &Params, names: BTreeSet<String>, width: usize) -> Result<Self> {
        let weight = params.get("weight", (names.len(), width), Init::Normal { std: 1.0 })?;
        Ok(Self { weight, places: names.into_iter().zip(0..).collect() })
    }

    /// Mean cross-entropy of `states (batch, hidden_size)` and the classes of this name.
    fn loss(&self, states: &Tensor, names: &[&str]) -> Result<Tensor> {
        let place = |name: &&str| {
            self.places.get(*name).copied().ok_or_else(|| Error::failure(format!("no direction is named {name}")))
        };
        let targets = Tensor::new(names.iter().map(place).collect::<Result<Vec<u32>>>()?, states.device())?;
        let cosines = unit(states)?.matmul(&unit(&self.weight)?.t()?)?; // (batch, classes)
        ops::cross_entropy(&(cosines * COSINES)?, &targets, 0.0)
    }
}

/// What is asked beyond the teacher.
struct Classes {
    concepts: Directions,
    styles: Directions,
}

/// Teacher and student with their captions.
pub struct TextDistillation {
    settings: Settings,
    tokenizer: ClipTokenizer,
    teacher: ClipText,
    student: ClipText,
    params: Params,
    networks: Vec<Network>,
    classes: Option<Classes>,
    pictures: Pictures,
    asking: Option<Asking>,
    digest: String,
}

/// A caption for the student, and what it is compared with.
struct Said {
    text: String,
    /// The English text that says the same.
    english: String,
    /// The style that it says.
    style: Option<String>,
}

impl TextDistillation {
    /// What the recipe describes.
    ///
    /// # Errors
    /// Settings, a model or data that cannot be used.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        for (name, share) in [("english", settings.english), ("asked", settings.asked)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::request(format!("{name} is {share}, not 0 to 1")));
            }
        }
        if !(0.0..=100.0).contains(&settings.concepts) {
            return Err(Error::request(format!("concepts is {}, not 0 to 100", settings.concepts)));
        }
        let folder = settings.text.join("text_encoder");
        let (config, params) = model_folder::open_clip_text(&folder, &recipe.device.open()?)?;
        let tokenizer = ClipTokenizer::load(&settings.text.join("tokenizer"))?;
        let teacher = ClipText::new(&params, &config)?;
        let mut parts = vec![model_digest(&folder)?, model_digest(&settings.text.join("tokenizer"))?];
        let params = match &settings.start {
            None => params.trainable(),
            Some(start) => {
                let start = start.join("text_encoder");
                let (other, params) = model_folder::open_clip_text(&start, &recipe.device.open()?)?;
                if other != config {
                    return Err(Error::file(&start, "its config differs from the teacher's")
                        .with_help("text_distillation.start is a text encoder that learned from the same teacher"));
                }
                parts.push(model_digest(&start)?);
                params.trainable()
            }
        };
        let student = ClipText::new(&params, &config)?;
        // The last layer's norm is part of the hidden states; a projection is not.
        let mut network = Network::new("text_encoder", &params)?.only(|name| !name.starts_with("text_projection"));
        let pictures = Pictures::open(&recipe.data, recipe.seed)?;
        let known = |language: &String| {
            pictures.split(Split::Train).iter().any(|&i| pictures.record(i).labels.contains_key(language))
        };
        if let Some(unknown) = settings.languages.iter().find(|language| !known(language)) {
            return Err(Error::request(format!(
                "text_distillation.languages names {unknown}, which the data do not have"
            ))
            .with_help("summary.json beside the data lists their languages"));
        }
        let classes = (settings.concepts > 0.0)
            .then(|| {
                let own = recipe.random_params(params.device()).trainable();
                let of = |name: fn(&Record) -> &String| {
                    pictures.split(Split::Train).iter().map(|&i| name(pictures.record(i)).clone()).collect()
                };
                let directions = |name, names| Directions::new(&own.sub(name), names, config.hidden_size);
                let concepts = directions("concepts", of(|record| &record.concept))?;
                let styles = directions("styles", of(|record| &record.style))?;
                network.variables.extend(own.variables());
                Ok::<_, Error>(Classes { concepts, styles })
            })
            .transpose()?;
        let mut digests = vec![pictures.digest()];
        digests.extend(parts.iter().map(String::as_str));
        let digest = combined(&digests);
        let networks = vec![network];
        let trained = || pictures.split(Split::Train).iter().map(|&i| pictures.record(i));
        let asking = (settings.asked > 0.0).then(|| Asking::new(trained()));
        Ok(Self { settings, tokenizer, teacher, student, params, networks, classes, pictures, asking, digest })
    }

    /// Whether a language is one of those that the student learns.
    fn learns(&self, language: &str) -> bool {
        let languages = &self.settings.languages;
        language != "en" && (languages.is_empty() || languages.iter().any(|wanted| wanted == language))
    }

    fn window(&self, text: &str) -> Result<Window> {
        let ids = self.tokenizer.encode_window(text)?;
        let end = ids.iter().position(|id| *id == self.tokenizer.end_id()).unwrap_or(ids.len() - 1);
        Ok(Window { ids, end })
    }

    /// The hidden states that a picture model attends to, `(windows, length, hidden_size)`: the first `length` positions.
    fn hidden(&self, model: &ClipText, windows: &[Window], length: usize) -> Result<Tensor> {
        let ids: Vec<u32> = windows.iter().flat_map(|window| window.ids[..length].iter().copied()).collect();
        let ids = Tensor::from_vec(ids, (windows.len(), length), self.params.device())?;
        let output = model.forward(&ids, &mut NoProbe)?;
        model.features(&output, 0, true)
    }

    /// A caption for the student, and the English one that says the same.
    fn said(&self, record: &Record, generator: &mut dyn conjure_core::rng::Generator) -> Said {
        let draws = generator.uniform(2);
        let others: Vec<&String> = record.labels.keys().filter(|language| self.learns(language)).collect();
        let place = ((f64::from(draws[1]) * others.len() as f64) as usize).min(others.len().saturating_sub(1));
        let language = match others.get(place) {
            Some(language) if f64::from(draws[0]) >= self.settings.english => *language,
            _ => "en",
        };
        let asking = self.asking.as_ref().filter(|_| f64::from(generator.uniform(1)[0]) < self.settings.asked);
        if let Some(wish) = asking.and_then(|asking| asking.draw(record, language, generator))
            && let Some(english) = wish.in_english(record)
        {
            return Said { style: wish.style().map(str::to_owned), text: wish.text, english };
        }
        let mut said = Caption::draw_in(record, language, generator);
        let english = if language == "en" { Some(said.text.clone()) } else { said.in_english(record) };
        let english = english.unwrap_or_else(|| {
            // Keywords without a name say less than the name does.
            match (Caption::plain(record, language), Caption::plain(record, "en")) {
                (Some(plain), Some(english)) => {
                    said = plain;
                    english.text
                }
                _ => said.text.clone(),
            }
        });
        Said { style: said.style().map(str::to_owned), text: said.text, english }
    }

    /// How well concepts and styles are told by `student (batch, length, hidden_size)` from where each text ends on.
    fn told_apart(
        &self,
        classes: &Classes,
        student: &Tensor,
        said: &[(&Record, Said)],
        ends: &[(usize, usize)],
    ) -> Result<Tensor> {
        let (batch, length, _) = student.dims3()?;
        let share = |end: usize| move |position: usize| if position < end { 0.0 } else { 1.0 / (length - end) as f32 };
        let shares: Vec<f32> = ends.iter().flat_map(|(end, _)| (0..length).map(share(*end))).collect();
        let shares = Tensor::from_vec(shares, (batch, 1, length), student.device())?;
        let states = shares.matmul(student)?.squeeze(1)?; // (batch, hidden_size)
        let concepts: Vec<&str> = said.iter().map(|(record, _)| record.concept.as_str()).collect();
        let loss = classes.concepts.loss(&states, &concepts)?;
        let (rows, styles): (Vec<u32>, Vec<&str>) =
            (0..).zip(said).filter_map(|(row, (_, said))| Some((row, said.style.as_deref()?))).unzip();
        if rows.is_empty() {
            return Ok(loss);
        }
        let styled = states.index_select(&Tensor::new(rows, student.device())?, 0)?;
        Ok((loss + classes.styles.loss(&styled, &styles)?)?)
    }

    /// Unit vectors of what the model makes of texts, at the window's last position.
    fn summaries(&self, model: &ClipText, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let length = self.tokenizer.context_length();
        let mut all = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(CHUNK) {
            let windows = chunk.iter().map(|text| self.window(text)).collect::<Result<Vec<_>>>()?;
            let hidden = self.hidden(model, &windows, length)?.detach();
            let last = hidden.narrow(1, length - 1, 1)?.squeeze(1)?; // (texts, hidden_size)
            all.extend(unit(&last)?.to_vec2::<f32>()?);
        }
        Ok(all)
    }
}

/// The position of an English text that ends at `english` which `position` of a text that ends at `said` is compared with.
fn counterpart(position: usize, said: usize, english: usize) -> usize {
    if position < said { (position * english + said / 2) / said } else { position.max(english) }
}

/// Mean squared difference of `student` and `teacher (batch, length, hidden_size)`, where text `i` ends at position `ends[i].0`
/// for the student and `ends[i].1` for the teacher.
fn distance(student: &Tensor, teacher: &Tensor, ends: &[(usize, usize)]) -> Result<Tensor> {
    let (batch, length, width) = student.dims3()?;
    let places = |(row, &(said, english)): (usize, &(usize, usize))| {
        (0..length).map(move |position| (row * length + counterpart(position, said, english)) as u32)
    };
    let places: Vec<u32> = ends.iter().enumerate().flat_map(places).collect();
    let places = Tensor::from_vec(places, batch * length, teacher.device())?;
    let teacher = teacher.reshape((batch * length, width))?.index_select(&places, 0)?;
    Ok((student.reshape((batch * length, width))? - teacher)?.sqr()?.mean_all()?)
}

impl Objective for TextDistillation {
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
        self.digest.clone()
    }

    fn describe(&self, index: usize) -> String {
        self.pictures.describe(self.pictures.split(Split::Train)[index])
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let train = self.pictures.split(Split::Train);
        let mut generator = batch.generator("captions");
        let texts: Vec<(&Record, Said)> = batch
            .indices
            .iter()
            .map(|&i| self.pictures.record(train[i]))
            .map(|record| (record, self.said(record, &mut generator)))
            .collect();
        let windows = |of: fn(&Said) -> &String| -> Result<Vec<Window>> {
            texts.iter().map(|(_, said)| self.window(of(said))).collect()
        };
        let (said, english) = (windows(|said| &said.text)?, windows(|said| &said.english)?);
        let ends: Vec<(usize, usize)> = said.iter().zip(&english).map(|(a, b)| (a.end, b.end)).collect();
        // Windows end anywhere from the longest text's end on: later positions are compared less often, at less work.
        let context = self.tokenizer.context_length();
        let longest = ends.iter().map(|(a, b)| a.max(b) + 1).max().unwrap_or(context);
        let further = f64::from(batch.generator("window").uniform(1)[0]) * (context + 1 - longest) as f64;
        let length = (longest + further as usize).min(context);
        let teacher = self.hidden(&self.teacher, &english, length)?.detach();
        let student = self.hidden(&self.student, &said, length)?;
        let distance = distance(&student, &teacher, &ends)?;
        let Some(classes) = &self.classes else { return Ok(Losses::one(distance)) };
        let told_apart = self.told_apart(classes, &student, &texts, &ends)?;
        let figure = |loss: &Tensor| Ok::<_, Error>(f64::from(loss.detach().to_scalar::<f32>()?));
        let figures = vec![("distance", figure(&distance)?), ("told_apart", figure(&told_apart)?)];
        Ok(Losses { terms: vec![(0, (distance + (told_apart * self.settings.concepts)?)?)], figures })
    }

    /// `en` and `others`: how often, among the English names of a hundred training pictures of different concepts, the one of
    /// the same picture is nearest to the student's reading of its name; in `others` the mean over all other languages. Where
    /// wishes are learned, also `asked`: how often it is nearest to a wish for it, over all languages.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        let mut concepts = BTreeSet::new();
        let train = self.pictures.split(Split::Train);
        let distinct: Vec<usize> =
            train.iter().copied().filter(|&i| concepts.insert(&self.pictures.record(i).concept)).collect();
        let records: Vec<&Record> = spread(&distinct, VALIDATION).map(|&i| self.pictures.record(i)).collect();
        let named = |language: &str| -> Vec<(usize, String)> {
            let caption = |(i, record): (usize, &&Record)| Some((i, Caption::plain(record, language)?.text));
            records.iter().enumerate().filter_map(caption).collect()
        };
        let (places, english): (Vec<usize>, Vec<String>) = named("en").into_iter().unzip();
        if english.is_empty() {
            return Ok(Vec::new());
        }
        let targets = self.summaries(&self.teacher, &english)?;
        let languages: BTreeSet<&String> = records.iter().flat_map(|record| record.labels.keys()).collect();
        let first = |texts: Vec<(usize, String)>| -> Result<f64> {
            let (meant, texts): (Vec<usize>, Vec<String>) = texts.into_iter().unzip();
            let scores = cosines(&self.summaries(&self.student, &texts)?, &targets);
            Ok(recall(&scores, |text, target| meant[text] == places[target], [1])[0])
        };
        let mut found: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for language in languages.into_iter().filter(|language| *language == "en" || self.learns(language)) {
            let name = if language == "en" { "en" } else { "others" };
            found.entry(name).or_default().push(first(named(language))?);
            if let Some(asking) = &self.asking {
                let wish = |(i, record): (usize, &&Record)| {
                    let mut generator = keyed(0, &format!("{language} {}", record.concept));
                    Some((i, asking.draw(record, language, &mut generator)?.text))
                };
                found.entry("asked").or_default().push(first(records.iter().enumerate().filter_map(wish).collect())?);
            }
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        Ok(found.iter().map(|(name, values)| ((*name).to_owned(), mean(values))).collect())
    }

    /// `text_encoder/` and `tokenizer/`, in place of the teacher's.
    fn export(&mut self, folder: &Path) -> Result<()> {
        let place = folder.join("text_encoder");
        model_folder::write(&place, TRANSFORMERS_FILE, self.student.config(), None, &half(&self.params.variables())?)?;
        self.tokenizer.save(&folder.join("tokenizer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::Device;

    #[test]
    fn words_are_compared_with_words_and_ends_with_ends() {
        let places = |said, english| (0..6).map(|position| counterpart(position, said, english)).collect::<Vec<_>>();
        assert_eq!(places(4, 4), [0, 1, 2, 3, 4, 5]);
        assert_eq!(places(2, 4), [0, 2, 4, 4, 4, 5]);
        assert_eq!(places(4, 2), [0, 1, 1, 2, 4, 5]);
    }

    #[test]
    fn the_distance_is_the_mean_square_to_the_counterparts() {
        let student = Tensor::new(&[[[1f32], [5.0], [7.0], [8.0]]], &Device::Cpu).unwrap();
        let teacher = Tensor::new(&[[[1f32], [2.0], [3.0], [9.0]]], &Device::Cpu).unwrap();
        let loss = |ends| distance(&student, &teacher, &[ends]).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(loss((3, 3)), (0.0 + 9.0 + 16.0 + 1.0) / 4.0);
        // The student's text is over at position 1, the teacher's at 2: 5 and 7 are compared with 3, 8 with 9.
        assert_eq!(loss((1, 2)), (0.0 + 4.0 + 16.0 + 1.0) / 4.0);
    }
}
