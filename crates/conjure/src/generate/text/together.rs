//! Several texts at once: for each new token of all of them, the weights are read once. A text that ends makes room for the
//! next that waits ("Orca: A Distributed Serving System for Transformer-Based Generative Models", Yu et al. 2022, section 3.1:
//! iteration-level scheduling).

use super::event::{Event, Generated, Text};
use super::generation::Generation;
use super::language_model::LanguageModel;
use super::next_token::NextToken;
use super::request::TextRequest;
use conjure_core::blocks::KvCache;
use conjure_core::{Error, Result};
use std::cell::RefCell;
use std::time::Instant;

/// Texts that are made at the same time at most: each keeps its keys and values in memory.
pub const MOST: usize = 64;

/// One text's memory, which its generation and the loop over all texts use in turn.
struct Row<'m> {
    model: &'m LanguageModel,
    cache: &'m RefCell<KvCache>,
}

impl NextToken for Row<'_> {
    fn next(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.model.read(ids, &mut self.cache.borrow_mut())
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        self.cache.borrow_mut().truncate(len)
    }

    fn len(&self) -> usize {
        self.cache.borrow().len()
    }

    fn context(&self) -> usize {
        self.model.context()
    }

    fn vocabulary(&self) -> usize {
        self.model.decoder().config().vocab_size
    }

    fn reads_whole(&self) -> bool {
        self.model.decoder().config().angles_follow_length()
    }
}

impl LanguageModel {
    /// Makes a text for each request, at most `width` at the same time. `on_event` sees every event with the number of its
    /// request, and ends that text by returning `false`. Each text is the one that [`LanguageModel::generate`] makes, but for
    /// roundings where weights are quantised.
    ///
    /// # Errors
    /// A `width` of 0 or over [`MOST`]; a request for beams; those of [`LanguageModel::generate`], before work, with the
    /// request's number.
    pub fn generate_together(
        &self,
        requests: &[TextRequest],
        width: usize,
        on_event: &mut dyn FnMut(usize, &Event) -> bool,
    ) -> Result<Vec<Generated>> {
        if !(1..=MOST).contains(&width) {
            return Err(Error::request(format!("{width} texts at the same time are not 1 to {MOST}"))
                .with_help("8 are usual; 1 makes one after the other"));
        }
        // 1. Everything is checked before the first text begins.
        let (mut prompts, mut constraints, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (n, request) in requests.iter().enumerate() {
            let checked = || {
                request.validate()?;
                if request.beams.is_some() {
                    return Err(Error::request("beam search makes one text at a time"));
                }
                let prompt = self.encode(&request.prompt)?;
                super::request::room(prompt.len(), request.max_tokens, self.context())?;
                let constraint = request.grammar.as_ref().map(|grammar| self.constraint(grammar)).transpose()?;
                Ok((prompt, constraint, self.ends_of(request)?))
            };
            let (prompt, constraint, end) = checked().map_err(|error| numbered(n, error))?;
            prompts.push(prompt);
            constraints.push(constraint);
            ends.push(end);
        }
        // 2. A memory for each, which takes room only while its text is made.
        let memory = |(request, prompt): (&TextRequest, &Vec<u32>)| {
            RefCell::new(self.cache(request.max_tokens.map(|tokens| prompt.len().saturating_add(tokens))))
        };
        let caches: Vec<RefCell<KvCache>> = requests.iter().zip(&prompts).map(memory).collect();
        let mut rows: Vec<Row<'_>> = caches.iter().map(|cache| Row { model: self, cache }).collect();
        let mut waiting =
            rows.iter_mut().zip(constraints.iter_mut()).zip(requests.iter().zip(prompts)).zip(&ends).enumerate();
        let mut made: Vec<Option<Generated>> = requests.iter().map(|_| None).collect();
        let mut active: Vec<(usize, Generation<'_>, Text)> = Vec::new();
        loop {
            // 3. Texts begin where there is room.
            while active.len() < width
                && let Some((n, (((row, constraint), (request, prompt)), ends))) = waiting.next()
            {
                let stream = self.stream(&prompt)?;
                let generation = Generation::new(row, prompt, request, ends, stream, constraint.as_mut())?;
                active.push((n, generation, Text::default()));
            }
            if active.is_empty() {
                break;
            }
            // 4. The model reads the last token of each.
            self.read_together(&mut active, &caches)?;
            // 5. Each goes on by one event.
            let mut still = Vec::with_capacity(active.len());
            for (n, mut generation, mut text) in active {
                let Some(event) = generation.next() else { continue };
                let event = event.map_err(|error| numbered(n, error))?;
                if !on_event(n, &event) {
                    generation.cancel();
                }
                match text.add(event) {
                    Some(generated) => {
                        made[n] = Some(generated);
                        drop(generation);
                        caches[n].replace(self.cache(None));
                    }
                    None => still.push((n, generation, text)),
                }
            }
            active = still;
        }
        made.into_iter().map(|made| made.ok_or_else(|| Error::failure("a text was over before it began"))).collect()
    }

    fn read_together(&self, active: &mut [(usize, Generation<'_>, Text)], caches: &[RefCell<KvCache>]) -> Result<()> {
        let wanted: Vec<(usize, u32)> =
            active.iter().enumerate().filter_map(|(at, (_, text, _))| Some((at, text.wants()?))).collect();
        let began = Instant::now();
        let mut borrowed: Vec<_> = wanted.iter().map(|(at, _)| caches[active[*at].0].borrow_mut()).collect();
        let mut together: Vec<&mut KvCache> = borrowed.iter_mut().map(|cache| &mut **cache).collect();
        let ids: Vec<u32> = wanted.iter().map(|(_, id)| *id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let rows = self.read_each(&ids, &mut together)?;
        drop(borrowed);
        let took = began.elapsed();
        for ((at, _), logits) in wanted.into_iter().zip(rows) {
            active[at].1.give(logits, took);
        }
        Ok(())
    }
}

/// The error with the number of the request that caused it, counted from 1.
fn numbered(n: usize, error: Error) -> Error {
    match error {
        Error::Request { message, help } => Error::Request { message: format!("text {}: {message}", n + 1), help },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Prompt, Sampling};
    use super::*;
    use conjure_core::weights::Params;
    use conjure_core::{DType, Device};
    use conjure_models::decoder::{Decoder, DecoderConfig};

    fn model() -> LanguageModel {
        let config = r#"{"model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false}"#;
        let config = DecoderConfig::from_json(config).unwrap();
        let params = Params::seeded(3, DType::F32, &Device::Cpu);
        LanguageModel::new(Decoder::new(&params, &config).unwrap(), None)
    }

    fn request(ids: &[u32], seed: u64, max_tokens: usize) -> TextRequest {
        TextRequest {
            seed,
            max_tokens: Some(max_tokens),
            sampling: Sampling { temperature: 2.0, top_k: None, top_p: 1.0, min_p: 0.0, ..Sampling::default() },
            ..TextRequest::new(Prompt::Ids(ids.to_vec()))
        }
    }

    #[test]
    fn texts_are_those_that_are_made_one_after_the_other() {
        let model = model();
        let requests = [
            request(&[1, 2, 3], 1, 9),
            request(&[4], 2, 3),
            request(&[5, 6, 7, 8, 9, 10, 11], 3, 20),
            TextRequest { sampling: Sampling { temperature: 0.0, ..Sampling::default() }, ..request(&[1, 2], 4, 12) },
            request(&[30, 2], 5, 1),
        ];
        let alone: Vec<Vec<u32>> =
            requests.iter().map(|request| model.generate(request, &mut |_| true).unwrap().ids).collect();
        assert_eq!(alone.iter().map(Vec::len).collect::<Vec<_>>(), [9, 3, 20, 12, 1]);
        for width in [1, 2, 3, MOST] {
            let (mut most, mut running) = (0, std::collections::BTreeSet::new());
            let together = model.generate_together(&requests, width, &mut |n, event| {
                if matches!(event, Event::End { .. }) {
                    running.remove(&n);
                } else {
                    running.insert(n);
                }
                most = most.max(running.len());
                true
            });
            let ids: Vec<Vec<u32>> = together.unwrap().into_iter().map(|made| made.ids).collect();
            assert_eq!(ids, alone, "{width} at a time");
            assert!(most <= width && (most > 1 || width == 1), "{most} of {width}");
        }
    }

    #[test]
    fn one_text_is_ended_and_the_others_go_on() {
        let model = model();
        let requests = [request(&[1], 1, 10), request(&[2], 2, 10)];
        let made =
            model.generate_together(&requests, 2, &mut |n, event| n != 0 || matches!(event, Event::Prompt { .. }));
        let made = made.unwrap();
        assert_eq!((made[0].ids.len(), made[0].finish.name()), (1, "cancelled"));
        assert_eq!((made[1].ids.len(), made[1].finish.name()), (10, "length"));
    }

    #[test]
    fn a_bad_request_is_named_before_work() {
        let model = model();
        let requests = [request(&[1], 1, 10), request(&[99], 2, 10)];
        let error = model.generate_together(&requests, 2, &mut |_, _| panic!("nothing begins")).unwrap_err();
        assert!(error.to_string().starts_with("text 2: "), "{error}");
        for width in [0, MOST + 1] {
            assert!(model.generate_together(&requests[..1], width, &mut |_, _| true).is_err());
        }
        let long = [request(&[1; 60], 1, 10)];
        assert!(model.generate_together(&long, 1, &mut |_, _| true).unwrap_err().to_string().starts_with("text 1: "));
        assert_eq!(model.generate_together(&[], 3, &mut |_, _| true).unwrap().len(), 0);
    }
}
