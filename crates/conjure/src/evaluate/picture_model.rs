//! How well a model of pictures with words does what it is told, and how much of it is copied.

use super::judge::{Judge, Opinion};
use super::{KernelDistance, kernel_distance, ssim};
use crate::data::{Split, caption::Caption, spread};
use crate::generate::image::{BestOf, Control, ImageRequest, Pipeline};
use crate::image_file::{Picture, grid};
use crate::train::pictures::Pictures;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Concepts among which the asked one must be for a picture to count as recognised.
const TOP: usize = 5;
/// Pictures on a sheet, and in one of its rows.
const SHEET: usize = 64;
const COLUMNS: usize = 8;
/// Fewer samples, or fewer held-out pictures, tell no distance between the two.
const FEWEST: usize = 20;
/// From this structural similarity to a training picture on, a picture counts as nearly a copy of it.
pub const COPY: f64 = 0.9;

/// What is measured, and how much.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Languages in which it is asked.
    pub languages: Vec<String>,
    /// Prompts in each language, and of held-out combinations.
    pub prompts: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: f64,
    /// Seed of the first picture; each further one has the next, or the one after the last candidate's.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            languages: ["en", "de", "es", "ja"].map(str::to_owned).to_vec(),
            prompts: 100,
            steps: 20,
            guidance: 4.0,
            seed: 1,
        }
    }
}

/// Shares of prompts, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Obedience {
    /// Prompts.
    pub prompts: usize,
    /// Pictures whose concept is among the judge's five likeliest.
    pub recognised: f64,
    /// Pictures whose concept is the judge's likeliest.
    pub recognised_first: f64,
    /// Pictures whose style is the judge's likeliest.
    pub style: f64,
}

/// What the judge saw in one picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What was asked for.
    pub prompt: String,
    /// The concept that it names, as its code points.
    pub concept: String,
    /// The concept's place among the judge's five likeliest, from 1; none if it is not among them.
    pub place: Option<usize>,
    /// The style that was asked for.
    pub style: String,
    /// The style that the judge sees.
    pub seen_style: String,
}

/// How near samples come to training pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memorisation {
    /// Mean structural similarity to the most similar training picture.
    pub similarity: f64,
    /// Share that is as similar as [`COPY`] or more.
    pub copies: f64,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Plain prompts of training concepts in a style in which they were trained on, by language.
    pub languages: BTreeMap<String, Obedience>,
    /// Prompts of known concepts in a style in which they were held out, in English.
    pub held_out_combinations: Option<Obedience>,
    /// The same judge on the real pictures of the English prompts: what no model can exceed.
    pub real: Obedience,
    /// On those pictures as they come out of the model's autoencoder: what no better U-Net can exceed.
    pub reconstructed: Obedience,
    /// Kernel inception distance of the English samples to held-out pictures, in the judge's features.
    pub kernel_distance: Option<KernelDistance>,
    /// The same of as many training pictures: what a perfect model would have.
    pub kernel_distance_floor: Option<KernelDistance>,
    /// The English samples beside their nearest training pictures.
    pub memorisation: Memorisation,
    /// Held-out pictures beside theirs: how alike pictures are that nobody copied.
    pub memorisation_floor: Memorisation,
    /// Median seconds for a picture.
    pub seconds: f64,
    /// What was seen in each picture, by language, and at last of the held-out combinations.
    pub verdicts: Vec<Verdict>,
}

/// A report, and what there is to look at.
pub struct Outcome {
    /// The figures.
    pub report: Report,
    /// Uncurated samples of the English prompts, in their order.
    pub sheet: Picture,
    /// Those prompts.
    pub prompts: Vec<String>,
    /// Samples, each above its nearest training picture.
    pub neighbours: Picture,
    /// What was not measured, and why, for the user.
    pub notes: Vec<String>,
}

/// One thing asked for.
struct Task {
    prompt: String,
    concept: String,
    style: String,
    /// The real picture.
    index: usize,
}

/// Asks the model for pictures, or for the best of several, and has the judge look at them. `on_progress` is told how many of
/// all pictures are made, and can stop.
///
/// # Errors
/// Data without training pictures that have names in a language, or without concepts; concepts that the judge does not know;
/// [`Error::Cancelled`]. All but the last are told before a picture is made.
pub fn picture_model(
    pipeline: &Pipeline,
    best_of: Option<&BestOf>,
    judge: &Judge,
    pictures: &Pictures,
    settings: &Settings,
    on_progress: &mut dyn FnMut(usize, usize) -> Control,
) -> Result<Outcome> {
    let train = pictures.split(Split::Train);
    if train.is_empty() || settings.prompts == 0 || settings.languages.is_empty() {
        return Err(Error::request("there is nothing to ask for: no training pictures, prompts or languages"));
    }
    let plain = plain_tasks(pictures, settings)?;
    let combinations = tasks(pictures, Split::HeldOutCombination, "en", settings.prompts);
    let all = plain.iter().map(|(_, tasks)| tasks.len()).sum::<usize>() + combinations.len();
    if let Some(unknown) = plain.iter().flat_map(|(_, tasks)| tasks).find(|task| !judge.knows(&task.concept)) {
        return Err(Error::request(format!("the judge does not know the concept {}", unknown.concept))
            .with_help("judge with a classifier that was trained on the same data"));
    }

    // Each picture has seeds of its own, and each of its candidates one of them.
    let stride = best_of.map_or(1, BestOf::count) as u64;
    let (mut done, mut seconds) = (0, Vec::new());
    let mut make = |tasks: &[Task]| -> Result<Vec<Picture>> {
        tasks
            .iter()
            .map(|task| {
                let began = std::time::Instant::now();
                let request = ImageRequest {
                    prompt: escaped(&task.prompt),
                    steps: settings.steps,
                    guidance: settings.guidance,
                    seed: Some(settings.seed.wrapping_add(done as u64 * stride)),
                    ..ImageRequest::default()
                };
                let mut go_on = |_| Control::Continue;
                let mut made = match best_of {
                    Some(best_of) => pipeline.generate_best(&request, best_of, &mut go_on)?.generation,
                    None => pipeline.generate(&request, &mut go_on)?,
                };
                seconds.push(began.elapsed().as_secs_f64());
                done += 1;
                if on_progress(done, all) == Control::Stop {
                    return Err(Error::Cancelled);
                }
                Ok(made.outputs.swap_remove(0).picture)
            })
            .collect()
    };

    let (mut languages, mut verdicts) = (BTreeMap::new(), Vec::new());
    let mut first: Option<(&[Task], Vec<Picture>, Vec<Opinion>)> = None;
    for (language, tasks) in &plain {
        let made = make(tasks)?;
        let opinions = judge.look(&made, TOP)?;
        let seen = verdicts_on(tasks, &opinions);
        languages.insert(language.clone(), obedience(&seen));
        verdicts.extend(seen);
        first.get_or_insert((tasks, made, opinions));
    }
    let held_out_combinations = if combinations.is_empty() {
        None
    } else {
        let seen = verdicts_on(&combinations, &judge.look(&make(&combinations)?, TOP)?);
        let obedience = obedience(&seen);
        verdicts.extend(seen);
        Some(obedience)
    };
    let (tasks, made, opinions) = first.ok_or_else(|| Error::failure("no language was asked in"))?;

    let real: Vec<usize> = tasks.iter().map(|task| task.index).collect();
    let look = |indices: &[usize]| -> Result<Vec<Opinion>> {
        let all = indices.iter().map(|&i| pictures.picture(i)).collect::<Result<Vec<_>>>()?;
        judge.look(&all, TOP)
    };
    let real_opinions = look(&real)?;
    let reconstructed: Vec<Picture> =
        real.iter().map(|&i| pipeline.reconstruct(&pictures.picture(i)?)).collect::<Result<_>>()?;
    let reconstructed = obedience(&verdicts_on(tasks, &judge.look(&reconstructed, TOP)?));
    let held_out = [pictures.split(Split::HeldOutConcept), pictures.split(Split::HeldOutCombination)].concat();
    let features = |opinions: &[Opinion]| opinions.iter().map(|o| o.features.clone()).collect::<Vec<_>>();
    let held_out_features = features(&look(&held_out)?);
    let subset = made.len().min(held_out.len()).min(100);
    let distance = |opinions: &[Opinion]| -> Result<Option<KernelDistance>> {
        (subset >= FEWEST).then(|| kernel_distance(&features(opinions), &held_out_features, subset, 0)).transpose()
    };

    let library = Library::new(pictures, train);
    let mine = library.nearest(&scaled(&made, pictures.size())?)?;
    let controls: Vec<Picture> = spread(&held_out, made.len()).map(|&i| pictures.picture(i)).collect::<Result<_>>()?;
    let theirs = library.nearest(&controls)?;

    let mut rows = Vec::new();
    for (samples, neighbours) in
        scaled(&made, pictures.size())?.chunks(COLUMNS).zip(mine.chunks(COLUMNS)).take(SHEET / COLUMNS)
    {
        rows.extend_from_slice(samples);
        // A short last row is filled up, so that each neighbour stays below its sample.
        rows.extend(std::iter::repeat_n(
            Picture::filled(pictures.size(), pictures.size(), [255; 3]),
            COLUMNS - samples.len(),
        ));
        rows.extend(neighbours.iter().map(|n| pictures.picture(n.index)).collect::<Result<Vec<_>>>()?);
        rows.extend(std::iter::repeat_n(
            Picture::filled(pictures.size(), pictures.size(), [255; 3]),
            COLUMNS - samples.len(),
        ));
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Outcome {
        report: Report {
            languages,
            held_out_combinations,
            real: obedience(&verdicts_on(tasks, &real_opinions)),
            reconstructed,
            kernel_distance: distance(&opinions)?,
            kernel_distance_floor: distance(&real_opinions)?,
            memorisation: memorisation(&mine),
            memorisation_floor: memorisation(&theirs),
            seconds: seconds[seconds.len() / 2],
            verdicts,
        },
        sheet: grid(&made[..made.len().min(SHEET)], COLUMNS, 4)?,
        prompts: tasks.iter().take(SHEET).map(|task| task.prompt.clone()).collect(),
        neighbours: grid(&rows, COLUMNS, 4)?,
        notes: without_distance(made.len(), held_out.len()).into_iter().collect(),
    })
}

/// Why there is no kernel distance, where there is none.
fn without_distance(samples: usize, held_out: usize) -> Option<String> {
    (samples.min(held_out) < FEWEST).then(|| {
        let remedy = if samples < FEWEST { "; --prompts asks for more samples" } else { "" };
        format!(
            "no kernel distance: it takes {FEWEST} samples and {FEWEST} held-out pictures, and there are {samples} and \
             {held_out}{remedy}"
        )
    })
}

/// What is asked for in each language.
///
/// # Errors
/// A language in which no picture has a name; pictures without concepts.
fn plain_tasks(pictures: &Pictures, settings: &Settings) -> Result<Vec<(String, Vec<Task>)>> {
    let mut plain = Vec::with_capacity(settings.languages.len());
    for language in &settings.languages {
        let tasks = tasks(pictures, Split::Train, language, settings.prompts);
        if tasks.is_empty() {
            let train = pictures.split(Split::Train);
            let known: BTreeSet<&str> =
                train.iter().flat_map(|&i| pictures.record(i).labels.keys().map(String::as_str)).collect();
            return Err(if known.contains(language.as_str()) {
                Error::request(format!("none of the pictures that are asked for has a name in {language}"))
                    .with_help(format!("ask for more than {} prompts, or in other languages", settings.prompts))
            } else {
                Error::request(format!("the data have no names in the language {language}"))
                    .with_help(format!("they have names in {}", known.into_iter().collect::<Vec<_>>().join(", ")))
            });
        }
        if let Some(nameless) = tasks.iter().find(|task| task.concept.is_empty()) {
            let message = format!(
                "the data do not say which concepts their pictures show: {}",
                pictures.describe(nameless.index)
            );
            return Err(Error::request(message)
                .with_help("name data with concepts and styles, as conjure data emoji writes them"));
        }
        plain.push((language.clone(), tasks));
    }
    Ok(plain)
}

/// At most `prompts` things to ask for, evenly spread over a part of the data.
fn tasks(pictures: &Pictures, split: Split, language: &str, prompts: usize) -> Vec<Task> {
    spread(pictures.split(split), prompts).filter_map(|&i| task(pictures, i, language)).collect()
}

fn task(pictures: &Pictures, index: usize, language: &str) -> Option<Task> {
    let record = pictures.record(index);
    let prompt = Caption::plain(record, language)?.text;
    Some(Task { prompt, concept: record.concept.clone(), style: record.style.clone(), index })
}

/// A prompt whose brackets are meant as such, not as weights.
fn escaped(prompt: &str) -> String {
    prompt
        .chars()
        .flat_map(|c| ['(', ')', '[', ']', '\\'].contains(&c).then_some('\\').into_iter().chain([c]))
        .collect()
}

fn verdicts_on(tasks: &[Task], opinions: &[Opinion]) -> Vec<Verdict> {
    let verdict = |(task, opinion): (&Task, &Opinion)| Verdict {
        prompt: task.prompt.clone(),
        concept: task.concept.clone(),
        place: opinion.concepts.iter().position(|concept| *concept == task.concept).map(|place| place + 1),
        style: task.style.clone(),
        seen_style: opinion.style.clone(),
    };
    tasks.iter().zip(opinions).map(verdict).collect()
}

fn obedience(verdicts: &[Verdict]) -> Obedience {
    let share = |holds: fn(&Verdict) -> bool| {
        verdicts.iter().filter(|verdict| holds(verdict)).count() as f64 / verdicts.len().max(1) as f64
    };
    Obedience {
        prompts: verdicts.len(),
        recognised: share(|verdict| verdict.place.is_some()),
        recognised_first: share(|verdict| verdict.place == Some(1)),
        style: share(|verdict| verdict.style == verdict.seen_style),
    }
}

fn scaled(made: &[Picture], size: usize) -> Result<Vec<Picture>> {
    made.iter().map(|picture| picture.resized(size, size)).collect()
}

/// A training picture that is like a sample.
struct Neighbour {
    index: usize,
    similarity: f64,
}

/// The training pictures, to find the nearest.
struct Library<'a> {
    pictures: &'a Pictures,
    indices: &'a [usize],
}

impl<'a> Library<'a> {
    fn new(pictures: &'a Pictures, indices: &'a [usize]) -> Self {
        Self { pictures, indices }
    }

    /// For each sample, of the ten training pictures nearest by squared error the one of the highest structural similarity.
    fn nearest(&self, samples: &[Picture]) -> Result<Vec<Neighbour>> {
        const CANDIDATES: usize = 10;
        samples
            .iter()
            .map(|sample| {
                let mut distances: Vec<(u64, usize)> = self
                    .indices
                    .iter()
                    .map(|&i| {
                        let squares = |(a, b): (&u8, &u8)| u64::from(a.abs_diff(*b)).pow(2);
                        (sample.rgb.iter().zip(self.pictures.rgb(i)).map(squares).sum(), i)
                    })
                    .collect();
                distances.sort_unstable();
                let mut best = Neighbour { index: distances[0].1, similarity: f64::NEG_INFINITY };
                for &(_, index) in distances.iter().take(CANDIDATES) {
                    let similarity = ssim(sample, &self.pictures.picture(index)?)?;
                    if similarity > best.similarity {
                        best = Neighbour { index, similarity };
                    }
                }
                Ok(best)
            })
            .collect()
    }
}

fn memorisation(neighbours: &[Neighbour]) -> Memorisation {
    let n = neighbours.len().max(1) as f64;
    Memorisation {
        similarity: neighbours.iter().map(|n| n.similarity).sum::<f64>() / n,
        copies: neighbours.iter().filter(|n| n.similarity >= COPY).count() as f64 / n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::recipe::Data;

    #[test]
    fn data_that_cannot_be_asked_about_are_refused_with_what_they_have() {
        let data = Data { shapes: Some(40), size: 16, ..Data::default() };
        let pictures = Pictures::open(&data, 1).unwrap();
        let refused = |languages: &[&str]| {
            let languages = languages.iter().map(|language| (*language).to_owned()).collect();
            let error = plain_tasks(&pictures, &Settings { languages, ..Settings::default() }).err().unwrap();
            (error.to_string(), error.help().unwrap().to_owned())
        };
        let (message, help) = refused(&["xx", "en"]);
        assert_eq!(
            (message.as_str(), help.as_str()),
            ("the data have no names in the language xx", "they have names in en")
        );
        // Scenes of shapes have captions, and no concepts that a judge could know.
        let (message, help) = refused(&["en"]);
        assert!(message.starts_with("the data do not say which concepts their pictures show: a "), "{message}");
        assert!(message.contains("(shapes, shapes/1/") && help.contains("conjure data emoji"), "{message}; {help}");
    }

    #[test]
    fn a_distance_that_is_not_measured_is_explained() {
        assert_eq!(without_distance(20, 20), None);
        let few = without_distance(5, 300).unwrap();
        assert!(few.contains("there are 5 and 300; --prompts asks for more"), "{few}");
        assert!(without_distance(100, 19).unwrap().ends_with("there are 100 and 19"));
    }

    #[test]
    fn a_verdict_names_the_place_and_shares_count_them() {
        let task = |concept: &str, style: &str| Task {
            prompt: format!("{concept}, {style}"),
            concept: concept.to_owned(),
            style: style.to_owned(),
            index: 0,
        };
        let seen = |concepts: [&str; 2], style: &str| Opinion {
            features: Vec::new(),
            concepts: concepts.map(str::to_owned).to_vec(),
            style: style.to_owned(),
        };
        let tasks = [task("heart", "flat"), task("dog", "flat"), task("cat", "noto"), task("sun", "noto")];
        let opinions = [
            seen(["heart", "rose"], "flat"),
            seen(["wolf", "dog"], "flat"),
            seen(["dog", "wolf"], "noto"),
            seen(["sun", "star"], "flat"),
        ];
        let verdicts = verdicts_on(&tasks, &opinions);
        let places: Vec<Option<usize>> = verdicts.iter().map(|verdict| verdict.place).collect();
        assert_eq!(places, [Some(1), Some(2), None, Some(1)]);
        assert_eq!(verdicts[3].prompt, "sun, noto");
        assert_eq!(verdicts[3].seen_style, "flat");
        let expected = Obedience { prompts: 4, recognised: 0.75, recognised_first: 0.5, style: 0.75 };
        assert_eq!(obedience(&verdicts), expected);
    }
}
