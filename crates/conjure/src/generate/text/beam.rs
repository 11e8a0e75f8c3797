//! Beam search: the likeliest whole text, as far as a search along several beginnings finds it.

use super::generation::{Event, Finish, Generated, Stats, TextStream, check_ids};
use super::next_token::{Cached, NextToken};
use super::request::{TextRequest, room};
use super::stop::StopStrings;
use conjure_core::sampling::text::{History, LogitFilter, log_softmax, top};
use conjure_core::{Error, Result};
use std::time::Instant;

/// A text that is followed, or finished.
#[derive(Clone)]
struct Beam {
    ids: Vec<u32>,
    /// Sum of the logarithms of its tokens' probabilities.
    sum: f64,
}

impl Beam {
    fn score(&self, length_penalty: f64) -> f64 {
        self.sum / (self.ids.len() as f64).powf(length_penalty)
    }
}

/// Follows the `width` likeliest beginnings at once and gives the finished text with the best `log p / length ^ penalty`, where the
/// length counts generated tokens, the end among them; as transformers does. Penalties of the request change the scores,
/// other filters do not matter. A model remembers one text: at each step it goes back to where two beginnings part, and
/// reads the rest of the other one.
///
/// A stop string ends the text that was found. `on_event` gets an [`Event::Prompt`] for each step, and ends the search by returning `false`:
/// then the best beginning is the text.
///
/// # Errors
/// Those of [`super::Generation`].
pub fn beam_search<M: NextToken>(
    model: &mut Cached<M>,
    prompt: &[u32],
    request: &TextRequest,
    ends: &[u32],
    mut stream: Box<dyn TextStream + '_>,
    on_event: &mut dyn FnMut(&Event) -> bool,
) -> Result<Generated> {
    request.validate()?;
    let Some(settings) = request.beams else {
        return Err(Error::request("beam search without a number of beams").with_help("set beams"));
    };
    check_ids(prompt, model.vocabulary())?;
    let max_tokens = room(prompt.len(), request.max_tokens, model.context())?;
    let penalties = super::request::Sampling { temperature: 0.0, ..request.sampling }.filters()?;
    let (width, penalty) = (settings.width, settings.length_penalty);
    let began = Instant::now();
    let reused_tokens = model.reuse(prompt)?;

    let mut beams = vec![Beam { ids: Vec::new(), sum: 0.0 }];
    let mut finished: Vec<Beam> = Vec::new();
    let mut prompt_seconds = 0.0;
    let mut cancelled = false;
    for step in 0..max_tokens {
        let mut candidates: Vec<Beam> = Vec::new();
        // In the order of the alphabet, so that beginnings that share most stand beside each other.
        beams.sort_by(|a, b| a.ids.cmp(&b.ids));
        for beam in &beams {
            let whole: Vec<u32> = prompt.iter().chain(&beam.ids).copied().collect();
            let kept = model.reuse(&whole)?;
            let mut logits = model.next(&whole[kept..])?;
            if logits.iter().any(|l| l.is_nan()) {
                return Err(Error::failure("the model's scores are no numbers").with_help("the weights are damaged"));
            }
            // transformers applies its processors to log-probabilities.
            logits = log_softmax(&logits);
            penalties.apply(&mut logits, History { prompt, answer: &beam.ids });
            for id in top(&logits, width + ends.len().max(width)) {
                if logits[id as usize] > f32::NEG_INFINITY {
                    let ids = beam.ids.iter().copied().chain([id]).collect();
                    candidates.push(Beam { ids, sum: beam.sum + f64::from(logits[id as usize]) });
                }
            }
        }
        if step == 0 {
            prompt_seconds = began.elapsed().as_secs_f64();
        }
        candidates.sort_by(|a, b| b.sum.total_cmp(&a.sum).then_with(|| a.ids.cmp(&b.ids)));
        beams.clear();
        for (place, candidate) in candidates.into_iter().enumerate() {
            if candidate.ids.last().is_some_and(|id| ends.contains(id)) {
                // An end counts only where it is among the best.
                if place < width {
                    finished.push(candidate);
                }
            } else if beams.len() < width {
                beams.push(candidate);
            }
        }
        finished.sort_by(|a, b| b.score(penalty).total_cmp(&a.score(penalty)));
        finished.truncate(width);
        let best_open = beams.iter().map(|beam| beam.score(penalty)).fold(f64::NEG_INFINITY, f64::max);
        let done = finished.len() == width && finished.iter().all(|beam| beam.score(penalty) >= best_open);
        cancelled = !on_event(&Event::Prompt { done: step + 1, of: max_tokens });
        if done || cancelled || beams.is_empty() {
            break;
        }
    }
    let ended = finished.len();
    finished.append(&mut beams);
    let best = (0..finished.len())
        .max_by(|&a, &b| finished[a].score(penalty).total_cmp(&finished[b].score(penalty)).then(b.cmp(&a)));
    let Some(best) = best else {
        return Err(Error::failure("beam search found no text"));
    };
    let finish = if cancelled {
        Finish::Cancelled
    } else if best < ended {
        Finish::End
    } else if request.max_tokens.is_some() {
        Finish::Length
    } else {
        Finish::Context
    };
    let ids = finished.swap_remove(best).ids;

    let mut stop = StopStrings::new(&request.stop);
    let mut text = String::new();
    for &id in ids.iter().filter(|id| !ends.contains(id)) {
        text.push_str(&stop.push(&stream.push(id)?));
    }
    text.push_str(&stop.push(&stream.finish()?));
    text.push_str(&stop.finish());
    let finish = stop.hit().map_or(finish, |hit| Finish::Stop(hit.to_owned()));
    let stats = Stats {
        prompt_tokens: prompt.len(),
        reused_tokens,
        prompt_seconds,
        tokens: ids.len(),
        seconds: began.elapsed().as_secs_f64() - prompt_seconds,
        context_used: model.len(),
        context: model.context(),
    };
    Ok(Generated { ids, text, tokens: Vec::new(), finish, stats })
}

#[cfg(test)]
mod tests {
    use super::super::request::{Beams, Prompt, Sampling};
    use super::super::toy::Toy;
    use super::*;

    const TEXT: &str = "abacabadab. acada. bad. bab. dacab.";

    fn search(width: usize, length_penalty: f64, max_tokens: usize, ends: &str) -> Generated {
        let mut request = TextRequest::new(Prompt::Ids(vec![0]));
        request.max_tokens = Some(max_tokens);
        request.beams = Some(Beams { width, length_penalty });
        let toy = Toy::new(TEXT, 40);
        let (prompt, ends, stream) = (toy.ids("ab"), toy.ids(ends), toy.stream());
        let mut model = Cached::new(toy).unwrap();
        beam_search(&mut model, &prompt, &request, &ends, stream, &mut |_| true).unwrap()
    }

    /// Log-probability of an answer.
    fn log_p(toy: &Toy, answer: &[u32]) -> f64 {
        let mut read = toy.ids("ab");
        answer
            .iter()
            .map(|&id| {
                let p = f64::from(toy.odds(&read)[id as usize]);
                read.push(id);
                p.ln()
            })
            .sum()
    }

    /// Every answer of up to `left` tokens that ends with `end` or has that many.
    fn all(toy: &Toy, begun: &[u32], left: usize, end: Option<u32>) -> Vec<Vec<u32>> {
        if left == 0 || (end.is_some() && begun.last().copied() == end) {
            return vec![begun.to_vec()];
        }
        let ids = 0..toy.alphabet.len() as u32;
        ids.flat_map(|id| all(toy, &[begun, &[id]].concat(), left - 1, end)).collect()
    }

    #[test]
    fn one_beam_takes_the_likeliest_token_each_time() {
        let toy = Toy::new(TEXT, 40);
        let mut read = toy.ids("ab");
        let mut greedy = Vec::new();
        for _ in 0..6 {
            let odds = toy.odds(&read);
            let id = conjure_core::sampling::text::argmax(&odds).unwrap();
            read.push(id);
            greedy.push(id);
        }
        assert_eq!(search(1, 1.0, 6, "").ids, greedy);
        assert_eq!(Sampling::default().temperature, 0.8, "the default does not matter to beams");
    }

    #[test]
    fn enough_beams_find_the_likeliest_text_of_all() {
        let toy = Toy::new(TEXT, 40);
        let best = all(&toy, &[], 4, None)
            .into_iter()
            .max_by(|a, b| log_p(&toy, a).total_cmp(&log_p(&toy, b)).then_with(|| b.cmp(a)))
            .unwrap();
        let made = search(64, 1.0, 4, "");
        assert_eq!((made.ids, made.finish), (best, Finish::Length));
    }

    #[test]
    fn the_length_penalty_decides_between_short_and_long() {
        let toy = Toy::new(TEXT, 40);
        let end = toy.ids(".")[0];
        for penalty in [0.0, 1.0, 2.0] {
            let score = |ids: &Vec<u32>| log_p(&toy, ids) / (ids.len() as f64).powf(penalty);
            let best = all(&toy, &[], 4, Some(end)).into_iter().map(|ids| score(&ids)).fold(f64::MIN, f64::max);
            let made = search(64, penalty, 4, ".");
            assert!((score(&made.ids) - best).abs() < 1e-5, "{penalty}: {:?}", made.ids);
        }
        let length = |penalty| search(64, penalty, 8, ".").ids.len();
        assert!(length(0.0) < length(3.0), "{} {}", length(0.0), length(3.0));
        assert_eq!(search(64, 0.0, 8, ".").finish, Finish::End);
        assert!(!search(64, 0.0, 8, ".").text.contains('.'));
    }
}
