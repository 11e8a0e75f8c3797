//! Several candidates, of which a judge keeps the best: CLIP says how well a picture and its prompt fit (Radford et al. 2021,
//! <https://arxiv.org/abs/2103.00020>; Ramesh et al. 2021, section 2.6, choose so among DALL-E's samples).
//!
//! Candidate `i` is the picture of the seed `seed + i`, so the best one is made again like any other picture.

use super::pipeline::{Control, Event, Generation, Pipeline, tell};
use super::random_seed;
use super::request::ImageRequest;
use crate::evaluate::fit::{Fit, has_image_encoder};
use crate::tokens::Prompt;
use crate::{Error, Result};
use conjure_core::Device;
use std::path::Path;

/// Most candidates.
pub const MAX_CANDIDATES: usize = 1024;

/// How the seed of a picture was chosen. It changes nothing about the picture of that seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Candidates that there were.
    pub of: usize,
    /// Which of them this is, from 0.
    pub candidate: usize,
    /// Digest of the judge.
    pub judge: String,
}

/// Who judges candidates, and how many there are.
pub struct BestOf {
    judge: Fit,
    digest: String,
    count: usize,
}

/// The best candidate.
pub struct Chosen {
    /// Its pictures.
    pub generation: Generation,
    /// Which candidate it is, from 0.
    pub candidate: usize,
    /// How well each candidate fits the prompt ([`Fit::scores`]).
    pub scores: Vec<f32>,
}

impl BestOf {
    /// The best of `count` candidates, as CLIP in `folder` judges: a `CLIPModel` with its processor as transformers saves it or
    /// the objective `clip` exports it, or a picture model with an `image_encoder/` ([`Fit::open`]).
    ///
    /// # Errors
    /// A count of 0 or over [`MAX_CANDIDATES`]; a folder that holds no CLIP with both towers.
    pub fn open(folder: &Path, count: usize, device: &Device) -> Result<Self> {
        if !(1..=MAX_CANDIDATES).contains(&count) {
            return Err(Error::request(format!("the best of {count} candidates is outside 1 to {MAX_CANDIDATES}"))
                .with_help("4 to 16 are usual"));
        }
        if !folder.is_dir() {
            return Err(Error::file(folder, "there is no such folder")
                .with_help("the judge is a folder of a CLIP model, as conjure train recipes/clip.toml exports it"));
        }
        let (judge, digest) = Fit::open(folder, device)?;
        Ok(Self { judge, digest, count })
    }

    /// The best of `asked` candidates as `judge` says, else the `model`'s own judge, if it brings one: an `image_encoder/`. Where
    /// nothing is asked for, of as many as the model recommends; nothing where that is one, which needs no judge.
    ///
    /// # Errors
    /// More than one candidate is asked for and nobody can judge; those of [`BestOf::open`].
    pub fn wanted(
        asked: Option<usize>,
        judge: Option<&Path>,
        model: Option<&Path>,
        recommended: Option<usize>,
        device: &Device,
    ) -> Result<Option<Self>> {
        let own = model.filter(|model| has_image_encoder(model));
        let (count, judge) = match (asked, judge.or(own)) {
            (Some(1), _) if judge.is_none() => return Ok(None),
            (Some(count), Some(judge)) => (count, judge),
            (Some(_), None) => {
                return Err(Error::request("the model brings no judge of candidates, an image_encoder/, with it")
                    .with_help(
                        "train one with recipes/image_encoder.toml, or leave out --best-of; conjure image also takes a CLIP \
                         model, with --judge DIR",
                    ));
            }
            (None, Some(judge)) if recommended.is_some_and(|count| count > 1) => (recommended.unwrap_or(1), judge),
            (None, _) => return Ok(None),
        };
        Self::open(judge, count, device).map(Some)
    }

    /// Candidates.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Digest of the judge.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Refuses a request of which there is no best candidate.
    ///
    /// # Errors
    /// More than one picture is asked for, or the prompt has no words.
    pub fn check(&self, request: &ImageRequest) -> Result<()> {
        if request.batch != 1 {
            let message = format!("the best of {} candidates is one picture, not {}", self.count, request.batch);
            return Err(Error::request(message).with_help("leave out --batch, or --best-of"));
        }
        if Prompt::parse(&request.prompt)?.words().is_empty() {
            return Err(Error::request("without words in the prompt no candidate is better than another")
                .with_help("say what the picture shows, or leave out --best-of"));
        }
        Ok(())
    }
}

impl Pipeline {
    /// Makes the candidates one after the other and keeps the one that fits the prompt best; of equals the first. Where the
    /// request asks for a larger picture or a strip, these are made for the best only.
    ///
    /// # Errors
    /// As for [`Pipeline::generate`] and [`BestOf::check`].
    pub fn generate_best(
        &self,
        request: &ImageRequest,
        best_of: &BestOf,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Chosen> {
        let BestOf { judge, digest, count } = best_of;
        best_of.check(request)?;
        let upscaler = self.upscaler(request)?;
        let words = judge.read(&Prompt::parse(&request.prompt)?.words())?;
        let first = request.seed.unwrap_or_else(random_seed);
        let candidate = |i: usize| ImageRequest {
            seed: Some(first.wrapping_add(i as u64)),
            chosen: Some(Choice { of: *count, candidate: i, judge: digest.clone() }),
            ..request.clone()
        };
        let (mut scores, mut best): (Vec<f32>, Option<(usize, Generation)>) = (Vec::new(), None);
        for i in 0..*count {
            tell(on_event, Event::Candidate { candidate: i, of: *count })?;
            let generation = self.draw(&ImageRequest { strip: None, ..candidate(i) }, upscaler.as_ref(), on_event)?;
            let pictures: Vec<_> = generation.outputs.iter().map(|output| output.picture.clone()).collect();
            let score = judge.scores(&words, &pictures)?[0];
            if !score.is_finite() {
                return Err(Error::failure(format!("the judge's score of candidate {} is {score}", i + 1))
                    .with_help("its weights may be broken"));
            }
            if best.as_ref().is_none_or(|(best, _)| score > scores[*best]) {
                best = Some((i, generation));
            }
            scores.push(score);
        }
        let (winner, mut generation) = best.ok_or_else(|| Error::failure("there was no candidate"))?;
        if request.strip.is_some() {
            // A strip is of the run itself.
            generation = self.draw(&candidate(winner), upscaler.as_ref(), on_event)?;
        }
        generation.enlarge(upscaler.as_ref(), request.upscale, on_event)?;
        Ok(Chosen { generation, candidate: winner, scores })
    }
}
