//! How several translations are written at once: every beginning that is followed is a row of one batch.

use super::SequenceModel;
use crate::generate::text::Finish;
use crate::generate::text::search::{Beam, EarlyStopping, Rules, Search};
use conjure_core::sampling::text::{argmax, log_softmax};
use conjure_core::{Error, Result};

/// How translations are written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What every target begins with.
    pub start: u32,
    /// Ids that end a target.
    pub ends: Vec<u32>,
    /// Ids that are never written.
    pub suppressed: Vec<u32>,
    /// What the last possible token has to be.
    pub forced_end: Option<u32>,
    /// Most tokens of a target.
    pub max_tokens: usize,
    /// See [`Beam::score`].
    pub length_penalty: f64,
    /// Search; without it the likeliest token is taken each time.
    pub beams: Option<Beams>,
}

/// A search.
#[derive(Clone, Copy, Debug)]
pub struct Beams {
    /// Texts that are followed at once.
    pub width: usize,
    /// When it is over.
    pub early_stopping: EarlyStopping,
}

/// What came of one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Its tokens, the end among them.
    pub ids: Vec<u32>,
    /// `log p / length ^ penalty`.
    pub score: f64,
    /// Why it ended: an end that was forced on it at the last token is none of its own.
    pub finish: Finish,
}

/// One target being written.
#[derive(Clone, Debug)]
pub enum Way<'a> {
    /// By the likeliest token each time.
    Greedy(Greedy<'a>),
    /// By a search.
    Beams(Beaming<'a>),
}

/// The likeliest token each time.
#[derive(Clone, Debug)]
pub struct Greedy<'a> {
    plan: &'a Plan,
    beam: Beam,
    ended: bool,
    cut: Cut,
}

/// The likeliest beginnings, side by side.
#[derive(Clone, Debug)]
pub struct Beaming<'a> {
    plan: &'a Plan,
    search: Search<'a>,
    cut: Cut,
}

/// Beginnings that had to end although the model would have gone on with them.
type Cut = Vec<Vec<u32>>;

impl<'a> Way<'a> {
    fn new(plan: &'a Plan) -> Self {
        match plan.beams {
            None => Self::Greedy(Greedy { plan, beam: Beam::default(), ended: false, cut: Vec::new() }),
            Some(Beams { width, early_stopping }) => {
                let search = Search::new(Rules {
                    width,
                    length_penalty: plan.length_penalty,
                    ends: &plan.ends,
                    max_tokens: plan.max_tokens,
                    early_stopping,
                });
                Self::Beams(Beaming { plan, search, cut: Vec::new() })
            }
        }
    }

    /// The beginnings that are followed.
    fn open(&self) -> &[Beam] {
        match self {
            Self::Greedy(greedy) => std::slice::from_ref(&greedy.beam),
            Self::Beams(beams) => beams.search.open(),
        }
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Greedy(greedy) => greedy.ended || greedy.beam.ids.len() >= greedy.plan.max_tokens,
            Self::Beams(beams) => beams.search.is_over(),
        }
    }

    /// Tokens of the texts that are followed.
    pub fn tokens(&self) -> usize {
        self.open().first().map_or(0, |beam| beam.ids.len())
    }

    /// The last token, where there is one text.
    pub fn last(&self) -> Option<u32> {
        self.open().first().and_then(|beam| beam.ids.last().copied())
    }

    /// One token more, as [`Search::step`].
    fn step(&mut self, logits: &[Vec<f32>]) -> Result<Vec<usize>> {
        let greedy = match self {
            Self::Beams(Beaming { plan, search, cut }) => {
                return search.step(logits, &mut |logprobs, begun| plan.adjust(logprobs, begun, cut));
            }
            Self::Greedy(greedy) => greedy,
        };
        let logits = logits.first().map(Vec::as_slice).unwrap_or_default();
        let mut logprobs = log_softmax(logits);
        greedy.plan.adjust(&mut logprobs, &greedy.beam.ids, &mut greedy.cut)?;
        let id = argmax(&logprobs)
            .ok_or_else(|| Error::failure("the model's scores are no numbers").with_help("the weights are damaged"))?;
        greedy.beam.sum += f64::from(logprobs[id as usize]);
        greedy.beam.ids.push(id);
        greedy.ended = greedy.plan.ends.contains(&id);
        Ok(vec![0])
    }

    /// The text so far with the best score.
    ///
    /// # Errors
    /// There is none, as every token was excluded.
    pub fn best(&self) -> Result<Written> {
        let (beam, ended, plan, cut) = match self {
            Self::Greedy(greedy) => (greedy.beam.clone(), greedy.ended, greedy.plan, &greedy.cut),
            Self::Beams(beams) => {
                let (beam, ended) = beams.search.clone().best()?;
                (beam, ended, beams.plan, &beams.cut)
            }
        };
        let was_cut = beam.ids.split_last().is_some_and(|(_, begun)| cut.iter().any(|other| other == begun));
        let finish = match (ended && !was_cut, self.is_over()) {
            (true, _) => Finish::End,
            (false, true) => Finish::Length,
            (false, false) => Finish::Cancelled,
        };
        Ok(Written { score: beam.score(plan.length_penalty), ids: beam.ids, finish })
    }
}

/// Writes a target for each source. `on_step` sees a target, by its number, after each of its tokens and ends the work by
/// returning `false`. All targets as they are then.
///
/// # Errors
/// The model fails; those of `on_step`.
pub fn write<'a>(
    model: &SequenceModel,
    sources: &[&[u32]],
    plan: &'a Plan,
    on_step: &mut dyn FnMut(usize, &Way<'_>) -> Result<bool>,
) -> Result<Vec<Way<'a>>> {
    let mut writing = model.write(sources)?;
    let mut ways: Vec<Way<'a>> = sources.iter().map(|_| Way::new(plan)).collect();
    let mut logits = writing.next_rows(&vec![plan.start; sources.len()])?; // a row for each open beginning of each way
    loop {
        let (mut rows, mut ids, mut at) = (Vec::new(), Vec::new(), 0);
        let mut going = true;
        for (n, way) in ways.iter_mut().enumerate().filter(|(_, way)| !way.is_over()) {
            let width = way.open().len();
            let parents = way.step(&logits[at..at + width])?;
            if !way.is_over() {
                rows.extend(parents.iter().map(|parent| (at + parent) as u32));
                ids.extend(way.open().iter().filter_map(|beam| beam.ids.last().copied()));
            }
            at += width;
            going &= on_step(n, way)?;
        }
        if rows.is_empty() || !going {
            return Ok(ways);
        }
        // Most steps of a greedy batch go on with all rows as they are.
        if rows.len() != at || rows.iter().zip(0..).any(|(row, place)| *row != place) {
            writing.select(&rows)?;
        }
        logits = writing.next_rows(&ids)?;
    }
}

impl Plan {
    /// Excludes tokens by what the folder says, as transformers does on log-probabilities. Where the end is forced on a
    /// beginning that the model would go on with, it is added to `cut`.
    fn adjust(&self, logprobs: &mut [f32], begun: &[u32], cut: &mut Cut) -> Result<()> {
        for &id in &self.suppressed {
            if let Some(logprob) = logprobs.get_mut(id as usize) {
                *logprob = f32::NEG_INFINITY;
            }
        }
        if let Some(end) = self.forced_end
            && begun.len() + 1 == self.max_tokens
        {
            if end as usize >= logprobs.len() {
                return Err(Error::request(format!(
                    "forced_eos_token_id is {end}, beyond the {} tokens",
                    logprobs.len()
                )));
            }
            if argmax(logprobs).is_none_or(|own| !self.ends.contains(&own)) {
                cut.push(begun.to_vec());
            }
            logprobs.fill(f32::NEG_INFINITY);
            logprobs[end as usize] = 0.0;
        }
        Ok(())
    }
}
