//! Beam search: the likeliest whole text, as far as a search along several beginnings finds it.

use super::event::{Event, Finish, Generated, Stats};
use super::generation::{TextStream, check_ids};
use super::next_token::{Cached, NextToken};
use super::request::{Sampling, TextRequest, room};
use super::search::{Beam, EarlyStopping, Rules, Search};
use super::stop::StopStrings;
use conjure_core::sampling::text::{History, LogitFilter};
use conjure_core::{Error, Result};
use std::time::Instant;

/// Follows the `width` likeliest beginnings at once and gives the finished text with the best
/// `log p / length ^ penalty`, where the length counts generated tokens, the end among them; as transformers does. Penalties
/// of the request change the scores, other filters do not matter. Each beginning has its own memory ([`NextToken::fork`]); a
/// model that has only one goes back to where two beginnings part, and reads the rest of the other one.
///
/// A stop string ends the text that was found. `on_event` gets an [`Event::Prompt`] for each step, and ends the search by
/// returning `false`: then the best beginning is the text.
///
/// # Errors
/// Those of [`super::Generation`].
pub fn beam_search<M: NextToken>(
    model: &mut Cached<M>,
    prompt: &[u32],
    request: &TextRequest,
    ends: &[u32],
    stream: Box<dyn TextStream + '_>,
    on_event: &mut dyn FnMut(&Event) -> bool,
) -> Result<Generated> {
    request.validate()?;
    let Some(settings) = request.beams else {
        return Err(Error::request("beam search without a number of beams").with_help("set beams"));
    };
    check_ids(prompt, model.vocabulary())?;
    let max_tokens = room(prompt.len(), request.max_tokens, model.context())?;
    // transformers applies its processors to log-probabilities; those that only exclude tokens do not matter here.
    let penalties = Sampling { temperature: 0.0, ..request.sampling }.filters()?;
    let began = Instant::now();
    let reused_tokens = model.reuse(prompt)?;
    let logits = model.next(&prompt[reused_tokens..])?;
    let prompt_seconds = began.elapsed().as_secs_f64();

    let (mut logits, mut memories) = (vec![logits], vec![model.fork()?]);
    let mut search = Search::new(Rules {
        width: settings.width,
        length_penalty: settings.length_penalty,
        ends,
        max_tokens,
        early_stopping: EarlyStopping::Heuristic,
    });
    let mut cancelled = false;
    while !search.is_over() && !cancelled {
        let parents = search.step(&logits, &mut |logprobs, answer| {
            penalties.apply(logprobs, History { prompt, answer });
            Ok(())
        })?;
        cancelled = !on_event(&Event::Prompt { done: search.steps(), of: max_tokens });
        if !search.is_over() && !cancelled {
            (logits, memories) = read(model, prompt, memories, &parents, search.open())?;
        }
    }
    let (Beam { ids, .. }, ended) = search.best()?;
    let finish = if cancelled {
        Finish::Cancelled
    } else if ended {
        Finish::End
    } else if request.max_tokens.is_some() {
        Finish::Length
    } else {
        Finish::Context
    };
    let stats = Stats {
        prompt_tokens: prompt.len(),
        reused_tokens,
        read_tokens: prompt.len() - reused_tokens,
        prompt_seconds,
        tokens: ids.len(),
        seconds: began.elapsed().as_secs_f64() - prompt_seconds,
        context_used: prompt.len() + ids.len() - 1,
        context: model.context(),
    };
    let (text, hit) = written(&ids, ends, &request.stop, stream)?;
    Ok(Generated { ids, text, tokens: Vec::new(), finish: hit.map_or(finish, Finish::Stop), stats })
}

/// What the model says after a text.
type Scores = Vec<f32>;
/// The model having read each text, if it can have several memories.
type Memories<M> = Vec<Option<Cached<M>>>;

/// Reads the last token of each open text, which continues the parent of that number: the scores after each, and the model
/// having read it, if it can have several memories.
fn read<M: NextToken>(
    shared: &mut Cached<M>,
    prompt: &[u32],
    mut memories: Memories<M>,
    parents: &[usize],
    open: &[Beam],
) -> Result<(Vec<Scores>, Memories<M>)> {
    let mut children = vec![0; memories.len()];
    parents.iter().for_each(|parent| children[*parent] += 1);
    let (mut scores, mut read) = (Vec::with_capacity(open.len()), Vec::with_capacity(open.len()));
    for (&parent, beam) in parents.iter().zip(open) {
        children[parent] -= 1;
        // The last child takes its parent's memory.
        let memory = &mut memories[parent];
        let mut model = match memory {
            Some(memory) if children[parent] > 0 => memory.fork()?,
            _ => memory.take(),
        };
        scores.push(match &mut model {
            Some(model) => model.next(&beam.ids[beam.ids.len() - 1..])?,
            None => {
                let whole = [prompt, &beam.ids].concat();
                let kept = shared.reuse(&whole)?;
                shared.next(&whole[kept..])?
            }
        });
        read.push(model);
    }
    Ok((scores, read))
}

/// The text of ids, and the stop string that ended it.
fn written(
    ids: &[u32],
    ends: &[u32],
    stops: &[String],
    mut stream: Box<dyn TextStream + '_>,
) -> Result<(String, Option<String>)> {
    let mut stop = StopStrings::new(stops);
    let mut text = String::new();
    for &id in ids.iter().filter(|id| !ends.contains(id)) {
        text.push_str(&stop.push(&stream.push(id)?));
    }
    text.push_str(&stop.push(&stream.finish()?));
    text.push_str(&stop.finish());
    Ok((text, stop.hit().map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::super::request::{Beams, Prompt};
    use super::super::toy::Toy;
    use super::*;

    const TEXT: &str = "abacabadab. acada. bad. bab. dacab.";

    /// A toy that has one memory only.
    struct Single(Toy);

    impl NextToken for Single {
        fn next(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
            self.0.next(ids)
        }
        fn rewind(&mut self, len: usize) -> Result<()> {
            self.0.rewind(len)
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn context(&self) -> usize {
            self.0.context()
        }
        fn vocabulary(&self) -> usize {
            self.0.vocabulary()
        }
    }

    fn search(width: usize, length_penalty: f64, max_tokens: usize, ends: &str) -> Generated {
        let mut request = TextRequest::new(Prompt::Ids(vec![0]));
        request.max_tokens = Some(max_tokens);
        request.beams = Some(Beams { width, length_penalty });
        let toy = Toy::new(TEXT, 40);
        let (prompt, ends, stream) = (toy.ids("ab"), toy.ids(ends), toy.stream());
        let again = toy.stream();
        let mut single = Cached::new(Single(toy.clone())).unwrap();
        let mut model = Cached::new(toy).unwrap();
        let made = beam_search(&mut model, &prompt, &request, &ends, stream, &mut |_| true).unwrap();
        let same = beam_search(&mut single, &prompt, &request, &ends, again, &mut |_| true).unwrap();
        assert_eq!((&made.ids, &made.finish), (&same.ids, &same.finish), "one memory or several");
        made
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
