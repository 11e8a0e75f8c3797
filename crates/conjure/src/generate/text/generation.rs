//! The loop that makes text, an iterator of small stages: read the prompt, choose a token, show what of it may be shown.

use super::event::{Event, Finish, Generated, Stats, Text, Token};
use super::grammar::Constraint;
use super::next_token::NextToken;
use super::request::{TextRequest, room};
use super::stop::StopStrings;
use conjure_core::rng::{self, Philox};
use conjure_core::sampling::text::{Chain, History, LogitFilter, argmax, draw, log_softmax, rank, top, uniform};
use conjure_core::{Error, Result};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Ids of the prompt that are read at once: between two such pieces a request to stop is honoured.
const PREFILL: usize = 512;

/// Turns ids into text, one after the other, and never shows half a character.
pub trait TextStream {
    /// The text that is complete with this id.
    ///
    /// # Errors
    /// The tokenizer fails.
    fn push(&mut self, id: u32) -> Result<String>;

    /// What is left at the end.
    ///
    /// # Errors
    /// The tokenizer fails.
    fn finish(&mut self) -> Result<String>;
}

/// Text being made. Each call of [`Iterator::next`] reads a piece of the prompt or makes one token.
pub struct Generation<'a> {
    model: &'a mut dyn NextToken,
    stream: Box<dyn TextStream + 'a>,
    constraint: Option<&'a mut Constraint>,
    prompt: Vec<u32>,
    reused: usize,
    answer: Vec<u32>,
    /// Scores of the token that comes next.
    logits: Vec<f32>,
    /// The last token, if the model has not read it yet. It is read only when another is wanted.
    unread: Option<u32>,
    filters: Chain,
    greedy: bool,
    generator: Philox,
    stop: StopStrings,
    ends: &'a [u32],
    max_tokens: usize,
    finish_at_limit: Finish,
    logprobs: Option<usize>,
    closing: VecDeque<u32>,
    closed: usize,
    finish: Option<Finish>,
    over: bool,
    prompt_time: Duration,
    token_time: Duration,
}

impl<'a> Generation<'a> {
    /// Begins. `model` has read nothing, or a beginning of `prompt` and not all of it ([`super::Cached::reuse`]); `ends` are
    /// the ids that end a text; `stream` turns ids into text.
    ///
    /// # Errors
    /// The request makes no sense or asks for beams, an id is beyond the vocabulary, or prompt and answer do not fit the
    /// model's context.
    pub fn new(
        model: &'a mut dyn NextToken,
        prompt: Vec<u32>,
        request: &TextRequest,
        ends: &'a [u32],
        stream: Box<dyn TextStream + 'a>,
        constraint: Option<&'a mut Constraint>,
    ) -> Result<Self> {
        request.validate()?;
        if request.beams.is_some() {
            return Err(Error::request("beam search is no generation token by token").with_help("call beam_search"));
        }
        check_ids(&prompt, model.vocabulary())?;
        let max_tokens = room(prompt.len(), request.max_tokens, model.context())?;
        Ok(Self {
            reused: model.len(),
            filters: request.sampling.filters()?,
            greedy: request.sampling.is_greedy(),
            generator: rng::keyed(request.seed, "text"),
            stop: StopStrings::new(&request.stop),
            finish_at_limit: if request.max_tokens.is_some() { Finish::Length } else { Finish::Context },
            logprobs: request.logprobs,
            model,
            stream,
            constraint,
            prompt,
            answer: Vec::new(),
            logits: Vec::new(),
            unread: None,
            ends,
            max_tokens,
            closing: VecDeque::new(),
            closed: 0,
            finish: None,
            over: false,
            prompt_time: Duration::ZERO,
            token_time: Duration::ZERO,
        })
    }

    /// Ends the text where it is: the next event is the end.
    pub fn cancel(&mut self) {
        self.finish = Some(Finish::Cancelled);
    }

    /// Runs to the end. `on_event` sees every event, and ends the text by returning `false`.
    ///
    /// # Errors
    /// The model or the tokenizer fails.
    pub fn run(mut self, on_event: &mut dyn FnMut(&Event) -> bool) -> Result<Generated> {
        let mut text = Text::default();
        while let Some(event) = self.next() {
            let event = event?;
            if !on_event(&event) {
                self.cancel();
            }
            if let Some(made) = text.add(event) {
                return Ok(made);
            }
        }
        Err(Error::failure("the text was over before it began"))
    }

    /// The token that the model must read before the next event, if there is one: for a caller that has the model read for
    /// several texts at once, and hands the scores to [`Self::give`].
    pub(super) fn wants(&self) -> Option<u32> {
        let idle =
            self.over || self.finish.is_some() || !self.closing.is_empty() || self.answer.len() >= self.max_tokens;
        self.unread.filter(|_| !idle)
    }

    /// The model has read what was wanted, in this time, and says this of the next token.
    pub(super) fn give(&mut self, logits: Vec<f32>, took: Duration) {
        self.unread = None;
        self.logits = logits;
        self.token_time += took;
    }

    fn advance(&mut self) -> Result<Event> {
        if let Some(finish) = self.finish.take() {
            return self.end(finish);
        }
        if self.model.len() < self.prompt.len() && self.unread.is_none() {
            return self.read_prompt();
        }
        let began = Instant::now();
        let event = self.token();
        self.token_time += began.elapsed();
        event
    }

    fn read_prompt(&mut self) -> Result<Event> {
        let began = Instant::now();
        let from = self.model.len();
        let piece = if self.model.reads_whole() { usize::MAX } else { PREFILL };
        let to = self.prompt.len().min(from.saturating_add(piece));
        self.logits = self.model.next(&self.prompt[from..to])?;
        self.prompt_time += began.elapsed();
        Ok(Event::Prompt { done: to, of: self.prompt.len() })
    }

    /// Makes one token, or the end.
    fn token(&mut self) -> Result<Event> {
        if let Some(id) = self.closing.pop_front() {
            self.closed += 1;
            if self.closing.is_empty() {
                self.finish = Some(self.finish_at_limit.clone());
            }
            return self.say(Token {
                id,
                text: String::new(),
                logprob: None,
                rank: None,
                top: Vec::new(),
                closing: true,
            });
        }
        if self.answer.len() >= self.max_tokens {
            return self.limit();
        }
        if let Some(id) = self.unread.take() {
            self.logits = self.model.next(&[id])?;
        }
        let token = self.choose()?;
        let ends = self.ends.contains(&token.id);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token.id)?;
            if constraint.is_complete() {
                self.finish = Some(Finish::Grammar);
            }
        }
        if ends {
            self.finish = Some(Finish::End);
            self.answer.push(token.id);
            return Ok(Event::Token(token));
        }
        self.unread = Some(token.id);
        self.say(token)
    }

    /// Chooses the next token by the scores.
    fn choose(&mut self) -> Result<Token> {
        let mut token =
            Token { id: 0, text: String::new(), logprob: None, rank: None, top: Vec::new(), closing: false };
        let known = self.logprobs.map(|count| (self.logits.clone(), count));
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(&mut self.logits)?;
        }
        self.filters.apply(&mut self.logits, History { prompt: &self.prompt, answer: &self.answer });
        let chosen = if self.greedy { argmax(&self.logits) } else { draw(&self.logits, uniform(&mut self.generator)) };
        token.id = chosen.ok_or_else(|| {
            Error::failure(format!("the model's scores are no numbers after {} tokens", self.model.len()))
                .with_help("the weights are damaged, or of a kind that the model was not made for")
        })?;
        if let Some((logits, count)) = known {
            let logprobs = log_softmax(&logits);
            token.logprob = logprobs.get(token.id as usize).copied();
            token.rank = Some(rank(&logits, token.id));
            token.top = top(&logprobs, count).into_iter().map(|id| (id, logprobs[id as usize])).collect();
        }
        Ok(token)
    }

    /// Adds a token to the answer, and shows of its text what may be shown.
    fn say(&mut self, mut token: Token) -> Result<Event> {
        self.answer.push(token.id);
        token.text = self.stop.push(&self.stream.push(token.id)?);
        if let Some(stop) = self.stop.hit() {
            self.finish = Some(Finish::Stop(stop.to_owned()));
        }
        Ok(Event::Token(token))
    }

    /// There is no room for another token that is chosen: ends, and before that closes what a grammar has open.
    fn limit(&mut self) -> Result<Event> {
        if let Some(constraint) = &mut self.constraint {
            // A text that does not match is worth more than none.
            let Ok(closing) = constraint.close() else { return self.end(Finish::Open) };
            self.closing = closing.into();
            if !self.closing.is_empty() {
                return self.token();
            }
        }
        self.end(self.finish_at_limit.clone())
    }

    fn end(&mut self, finish: Finish) -> Result<Event> {
        self.over = true;
        let last = self.stream.finish()?;
        let mut rest = self.stop.push(&last);
        rest.push_str(&self.stop.finish());
        let finish = self.stop.hit().map_or(finish, |stop| Finish::Stop(stop.to_owned()));
        let stats = Stats {
            prompt_tokens: self.prompt.len(),
            reused_tokens: self.reused,
            read_tokens: self.model.len().min(self.prompt.len()).saturating_sub(self.reused),
            prompt_seconds: self.prompt_time.as_secs_f64(),
            tokens: self.answer.len() - self.closed,
            seconds: self.token_time.as_secs_f64(),
            context_used: self.model.len(),
            context: self.model.context(),
        };
        Ok(Event::End { rest, finish, stats })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let event = self.advance();
        self.over |= event.is_err();
        Some(event)
    }
}

/// Refuses ids that the model does not know.
///
/// # Errors
/// Names the id and how many there are.
pub fn check_ids(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(Error::request(format!("token id {id} is not one of the model's {vocabulary}"))
            .with_help(format!("ids go from 0 to {}", vocabulary.saturating_sub(1)))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::grammar::{Grammar, TokenBytes};
    use super::super::next_token::Cached;
    use super::super::request::{Prompt, Sampling};
    use super::super::toy::Toy;
    use super::*;

    const TEXT: &str = "the cat saw the dog. the cat bit the dog. the end.";

    fn request(change: impl FnOnce(&mut TextRequest)) -> TextRequest {
        let mut request = TextRequest::new(Prompt::Text("the ".into()));
        request.sampling = Sampling::greedy();
        request.max_tokens = Some(12);
        change(&mut request);
        request
    }

    fn run(request: &TextRequest, ends: &str) -> Generated {
        let mut toy = Toy::new(TEXT, 40);
        let (prompt, ends, stream) = (toy.ids("the "), toy.ids(ends), toy.stream());
        let generation = Generation::new(&mut toy, prompt, request, &ends, stream, None).unwrap();
        generation.run(&mut |_| true).unwrap()
    }

    #[test]
    fn the_likeliest_tokens_follow_until_the_limit() {
        let made = run(&request(|_| ()), "");
        assert_eq!(made.text, "dog. the dog");
        assert_eq!(made.finish, Finish::Length);
        assert_eq!((made.stats.prompt_tokens, made.stats.tokens), (4, 12));
        // The last token need not be read.
        assert_eq!((made.stats.context_used, made.stats.context), (15, 40));
        assert_eq!(made, Generated { stats: made.stats, ..run(&request(|r| r.seed = 9), "") }, "no seed matters");
    }

    #[test]
    fn an_end_token_ends_the_text_and_is_not_shown() {
        let made = run(&request(|_| ()), "h");
        assert_eq!((made.text.as_str(), made.ids.len(), made.finish), ("dog. t", 7, Finish::End));
    }

    #[test]
    fn stop_strings_end_it_across_tokens() {
        let made = run(&request(|r| r.stop = vec!["e d".into(), "cat".into()]), "");
        assert_eq!((made.text.as_str(), made.finish.clone()), ("dog. th", Finish::Stop("e d".into())));
        assert_eq!(made.ids.len(), 10, "ids of the stop string are told");
        let shown: Vec<_> = made.tokens.iter().map(|t| t.text.as_str()).collect();
        assert_eq!(shown, ["d", "o", "g", ".", " ", "t", "h", "", "", ""]);
        // Held back to the end, then shown.
        let made = run(&request(|r| (r.stop, r.max_tokens) = (vec!["e d".into()], Some(9))), "");
        assert_eq!((made.text.as_str(), made.finish), ("dog. the ", Finish::Length));
    }

    #[test]
    fn the_context_ends_it_where_no_number_was_asked_for() {
        let made = run(&request(|r| r.max_tokens = None), "");
        assert_eq!((made.finish, made.ids.len(), made.stats.context_used), (Finish::Context, 37, 40));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused_before_work() {
        let mut toy = Toy::new(TEXT, 10);
        let (prompt, stream) = (toy.ids("the cat"), toy.stream());
        let refused = |r: &TextRequest, toy: &mut Toy, prompt: &[u32], stream| {
            Generation::new(toy, prompt.to_vec(), r, &[], stream, None).err().unwrap().to_string()
        };
        let error = refused(&request(|_| ()), &mut toy, &prompt, stream);
        assert_eq!(error, "the prompt has 7 tokens and 12 more are asked for, the model reads 10 at once");
        let stream = toy.stream();
        assert_eq!(refused(&request(|_| ()), &mut toy, &[99], stream), "token id 99 is not one of the model's 15");
        assert_eq!(toy.work, 0);
    }

    #[test]
    fn a_seed_makes_a_text_again_and_another_seed_another() {
        let drawn = |seed| run(&request(|r| (r.sampling, r.seed) = (Sampling::default(), seed)), "").text;
        assert_eq!(drawn(1), drawn(1));
        assert!((2..12).any(|seed| drawn(seed) != drawn(1)));
    }

    #[test]
    fn probabilities_are_the_models_own() {
        let made = run(&request(|r| (r.logprobs, r.sampling.repetition) = (Some(2), 1.2)), "");
        let toy = Toy::new(TEXT, 40);
        let mut read = toy.ids("the ");
        for token in &made.tokens {
            let odds = toy.odds(&read);
            assert!((token.logprob.unwrap() - odds[token.id as usize].ln()).abs() < 1e-5);
            assert_eq!(token.top.len(), 2);
            assert!(token.top[0].1 >= token.top[1].1);
            read.push(token.id);
        }
        assert_eq!(made.tokens[0].rank, Some(1));
    }

    #[test]
    fn it_can_be_stopped_between_events_and_goes_on_from_what_was_read() {
        let mut model = Cached::new(Toy::new(TEXT, 40)).unwrap();
        let toy = Toy::new(TEXT, 40);
        let mut run = |prompt: &str, stop_after: usize| {
            let prompt = toy.ids(prompt);
            model.reuse(&prompt).unwrap();
            let mut seen = 0;
            Generation::new(&mut model, prompt, &request(|_| ()), &[], toy.stream(), None)
                .unwrap()
                .run(&mut |event| {
                    seen += usize::from(matches!(event, Event::Token(_)));
                    seen < stop_after
                })
                .unwrap()
        };
        let made = run("the ", 3);
        assert_eq!((made.text.as_str(), made.finish, made.ids.len()), ("dog", Finish::Cancelled, 3));
        let made = run("the dog", 99);
        assert_eq!((made.stats.prompt_tokens, made.stats.reused_tokens), (7, 6));
        assert_eq!(made.text, ". the dog. t");
    }

    #[test]
    fn a_text_whose_grammar_cannot_be_closed_is_kept() {
        let mut toy = Toy::new(TEXT, 40);
        let letters: Vec<Vec<u8>> = toy.alphabet.iter().map(|letter| letter.to_string().into_bytes()).collect();
        // After the d too much is wanted.
        let grammar = Grammar::Lark("start: \"the\" | /d[a-z. ]{4000}/".into());
        let mut constraint = Constraint::new(&grammar, &TokenBytes::new(&letters, &[])).unwrap();
        let (prompt, stream) = (toy.ids("the "), toy.stream());
        let request = request(|_| ());
        let generation = Generation::new(&mut toy, prompt, &request, &[], stream, Some(&mut constraint)).unwrap();
        let made = generation.run(&mut |_| true).unwrap();
        assert_eq!((made.text.as_str(), made.finish, made.stats.tokens), ("dog. the dog", Finish::Open, 12));
    }

    #[test]
    fn scores_that_are_no_numbers_are_a_failure() {
        struct Broken;
        impl NextToken for Broken {
            fn next(&mut self, _: &[u32]) -> Result<Vec<f32>> {
                Ok(vec![f32::NAN; 3])
            }
            fn rewind(&mut self, _: usize) -> Result<()> {
                Ok(())
            }
            fn len(&self) -> usize {
                1
            }
            fn context(&self) -> usize {
                100
            }
            fn vocabulary(&self) -> usize {
                3
            }
        }
        let toy = Toy::new("abc", 9);
        for sampling in [Sampling::greedy(), Sampling::default()] {
            let request = request(|r| r.sampling = sampling);
            let mut broken = Broken;
            let mut generation = Generation::new(&mut broken, vec![0, 1], &request, &[], toy.stream(), None).unwrap();
            generation.next().unwrap().unwrap();
            generation.unread = Some(0);
            let error = generation.next().unwrap().unwrap_err();
            assert_eq!((error.exit_code(), generation.next().is_none()), (1, true));
            assert!(error.to_string().contains("no numbers"), "{error}");
        }
    }
}
