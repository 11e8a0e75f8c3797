//! `conjure text`: a prompt goes on, token by token.

use crate::args::TextArgs;
use crate::lines::lines;
use crate::{image, interrupt, language, report};
use conjure::generate::image::random_seed;
use conjure::generate::text::request::room;
use conjure::generate::text::{Beams, Event, Finish, Generated, LanguageModel, Prompt, TextRequest, Token};
use conjure::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Tokens that are generated where no number is given: enough for a page, and an end for models that know none.
const MAX_TOKENS: usize = 256;
/// Texts that are made at the same time where no number is given.
const TOGETHER: usize = 8;
/// What a search's texts compete by where no penalty is given.
const LENGTH_PENALTY: f64 = 1.0;

pub fn run(args: &TextArgs) -> Result<ExitCode> {
    check_flags(args)?;
    // Until the first token there is nothing to keep.
    interrupt::end_at_once();
    if let Some(path) = &args.file {
        return run_together(args, path);
    }
    let prompt = language::prompt(args.prompt.as_deref(), &args.tokens)?;
    let seed = args.sampling.seed.unwrap_or_else(random_seed);
    let mut request = language::request(prompt, &args.sampling, &args.constraint, seed)?;
    let length_penalty = args.length_penalty.unwrap_or(LENGTH_PENALTY);
    request.beams = args.beams.map(|width| Beams { width, length_penalty });
    request.logprobs = args.logprobs;
    request.validate()?;
    image::set_threads(&args.machine)?;
    let (model, _) = language::open_with_cache(&args.sampling)?;

    let ids = model.encode(&request.prompt)?;
    request.max_tokens = most_tokens(&request, ids.len(), &model);
    let drawn = !request.sampling.is_greedy() && request.beams.is_none();
    let told = drawn && args.sampling.seed.is_none();
    // What a search finds is known at its end only.
    let stream = !args.machine.json && request.beams.is_none();
    let mut reader_left = Ok(false);
    let most = request.max_tokens.map(|tokens| ids.len().saturating_add(tokens));
    let made = model.go_on(&mut model.session(most)?, ids.clone(), &request, &mut |event| {
        let text = match event {
            Event::Token(token) => token.text.as_str(),
            Event::End { rest, .. } => rest.as_str(),
            Event::Prompt { .. } => {
                // By now nothing is left that could be refused.
                if told {
                    report::note(&format!("seed {seed}"));
                }
                ""
            }
        };
        if request.beams.is_some() || !matches!(event, Event::Prompt { .. }) {
            interrupt::end_at_a_step();
        }
        if stream && !text.is_empty() && matches!(reader_left, Ok(false)) {
            reader_left = report::piece(text).map(|heard| !heard);
        }
        matches!(reader_left, Ok(false)) && !interrupt::requested()
    })?;
    if reader_left? {
        // The reader has seen enough.
        return Ok(ExitCode::SUCCESS);
    }
    if args.machine.json {
        report::result(&describe(&model, &ids, &made, &request, drawn.then_some(seed)).to_string())?;
    } else {
        if !stream {
            report::piece(&made.text)?;
        }
        if !made.text.ends_with('\n') {
            report::piece("\n")?;
        }
        tell(&model, &made, &request);
    }
    Ok(exit_code([&made]))
}

/// A text for each line of a file. Results are written in the order of the lines: with `--json` an object on each line, else the
/// texts with an empty line between them.
fn run_together(args: &TextArgs, path: &Path) -> Result<ExitCode> {
    let lines = (1..).zip(lines(path)?).filter(|(_, line)| !line.trim().is_empty()).collect::<Vec<(usize, String)>>();
    if lines.is_empty() {
        return Err(Error::file(path, "has no prompt").with_help("write a prompt on each line"));
    }
    let seed = args.sampling.seed.unwrap_or_else(random_seed);
    let mut request = language::request(Prompt::Text(String::new()), &args.sampling, &args.constraint, seed)?;
    request.logprobs = args.logprobs;
    request.validate()?;
    image::set_threads(&args.machine)?;
    let (model, _) = language::open_with_cache(&args.sampling)?;
    model.tokenizer()?;
    let mut requests = Vec::with_capacity(lines.len());
    for ((number, line), n) in lines.into_iter().zip(0..) {
        let mut request = TextRequest { prompt: Prompt::Text(line), seed: seed.wrapping_add(n), ..request.clone() };
        let checked = request.validate().and_then(|()| model.encode(&request.prompt)).and_then(|ids| {
            request.max_tokens = most_tokens(&request, ids.len(), &model);
            room(ids.len(), request.max_tokens, model.context())
        });
        checked.map_err(|error| in_line(path, number, error))?;
        requests.push(request);
    }
    let drawn = !request.sampling.is_greedy();
    if drawn && args.sampling.seed.is_none() {
        report::note(&format!("seed {seed}"));
    }
    let began = Instant::now();
    let together = args.together.unwrap_or(TOGETHER);
    let made = model.generate_together(&requests, together, &mut |_, event| {
        if !matches!(event, Event::Prompt { .. }) {
            interrupt::end_at_a_step();
        }
        !interrupt::requested()
    })?;
    let seconds = began.elapsed().as_secs_f64();
    for (request, made) in requests.iter().zip(&made) {
        let written = if args.machine.json {
            let ids = model.encode(&request.prompt)?;
            report::result(&describe(&model, &ids, made, request, drawn.then_some(request.seed)).to_string())
        } else {
            report::result(&format!("{}\n", made.text.trim_end_matches('\n')))
        };
        written?;
    }
    let tokens: usize = made.iter().map(|made| made.stats.tokens).sum();
    report::note(&format!(
        "{}, {} in {seconds:.1} s, {:.1} tokens/s",
        report::counted(made.len(), "text"),
        report::counted(tokens, "token"),
        tokens as f64 / seconds
    ));
    Ok(exit_code(&made))
}

/// Refuses flags that would change nothing. What clap calls `requires` does not: it is content where what is required
/// conflicts with something that was given.
fn check_flags(args: &TextArgs) -> Result<()> {
    let lone = |flag: &str, other: &str| {
        Err(Error::request(format!("{flag} changes nothing without {other}"))
            .with_help(format!("leave it out, or add {other}")))
    };
    if args.together.is_some() && args.file.is_none() {
        return lone("--together", "--file");
    }
    if args.length_penalty.is_some() && args.beams.is_none() {
        return lone("--length-penalty", "--beams");
    }
    if args.logprobs.is_some() && args.file.is_some() && !args.machine.json {
        return lone("--logprobs beside --file", "--json");
    }
    Ok(())
}

/// The limit that was given; else [`MAX_TOKENS`], and where fewer fit the context's end is the limit.
fn most_tokens(request: &TextRequest, prompt: usize, model: &LanguageModel) -> Option<usize> {
    let fit = model.context().saturating_sub(prompt) > MAX_TOKENS;
    request.max_tokens.or(fit.then_some(MAX_TOKENS))
}

/// The error with the line of the file that caused it.
fn in_line(path: &Path, number: usize, error: Error) -> Error {
    match error {
        Error::Request { message, help } => {
            Error::File { path: path.to_owned(), message: format!("line {number}: {message}"), help }
        }
        other => other,
    }
}

/// That of the first text that did not end well; says what is wrong with those that do not match.
fn exit_code<'a>(made: impl IntoIterator<Item = &'a Generated>) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for made in made {
        match made.finish {
            Finish::Cancelled => return ExitCode::from(Error::Cancelled.exit_code()),
            Finish::Open => {
                code = report::failure(
                    &Error::failure("the text could not be brought to an end that matches")
                        .with_help("allow more tokens with --max-tokens"),
                );
            }
            _ => {}
        }
    }
    code
}

/// Tells people how it went, on stderr.
fn tell(model: &LanguageModel, made: &Generated, request: &TextRequest) {
    if request.logprobs.is_some() {
        for token in &made.tokens {
            let own = model.token_text(token.id);
            let Some((logprob, rank)) = token.logprob.zip(token.rank) else {
                report::note(&report::printable(&format!("       -        -  {own:?}")));
                continue;
            };
            let top = token.top.iter().map(|&(id, logprob)| format!("{:?} {logprob:.3}", model.token_text(id)));
            let top = top.collect::<Vec<_>>().join(", ");
            let of = if top.is_empty() { String::new() } else { format!("  of {top}") };
            report::note(&report::printable(&format!("{logprob:>8.3} {rank:>8}  {own:?}{of}")));
        }
    }
    report::note(&language::speed(&made.stats));
    match &made.finish {
        Finish::Length => {
            let tokens = report::counted(made.stats.tokens, "token");
            report::note(&format!("ended after {tokens}; --max-tokens sets another number"));
        }
        Finish::Context => report::note("ended as the model's context is full"),
        _ => {}
    }
    if let Some(closed) = closed(made) {
        report::note(&format!("{} more to close what was open", report::counted(closed, "token")));
    }
}

fn closed(made: &Generated) -> Option<usize> {
    Some(made.tokens.iter().filter(|token| token.closing).count()).filter(|&count| count > 0)
}

/// The result for machines.
fn describe(
    model: &LanguageModel,
    prompt: &[u32],
    made: &Generated,
    request: &TextRequest,
    seed: Option<u64>,
) -> Value {
    let token = |token: &Token| {
        let top = token
            .top
            .iter()
            .map(|&(id, logprob)| json!({ "id": id, "text": model.token_text(id), "logprob": logprob }));
        json!({
            "id": token.id,
            "text": model.token_text(token.id),
            "logprob": token.logprob,
            "rank": token.rank,
            "top": top.collect::<Vec<_>>(),
        })
    };
    let stats = made.stats;
    let stop = if let Finish::Stop(stop) = &made.finish { Some(stop) } else { None };
    let mut value = json!({
        "prompt_tokens": prompt,
        "tokens": made.ids,
        "text": made.text,
        "finish": made.finish.name(),
        "stop": stop,
        "closing_tokens": closed(made).unwrap_or(0),
        "seed": seed,
        "prompt_tokens_per_second": stats.prompt_tokens_per_second(),
        "tokens_per_second": stats.tokens_per_second(),
        "prompt_seconds": stats.prompt_seconds,
        "seconds": stats.seconds,
        "context_used": stats.context_used,
        "context": stats.context,
    });
    if let Prompt::Text(text) = &request.prompt {
        value["prompt"] = text.as_str().into();
    }
    if request.logprobs.is_some() {
        value["logprobs"] = made.tokens.iter().map(token).collect();
    }
    value
}
