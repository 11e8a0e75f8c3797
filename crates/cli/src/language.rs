//! What the commands with language models share: the model, the prompt, the settings.

use crate::args::{ConstraintArgs, SamplingArgs};
use crate::lines::without_mark;
use conjure::generate::text::language_model::HELP;
use conjure::generate::text::request::MAX_PROMPT;
use conjure::generate::text::{Grammar, KeptAs, LanguageModel, Prompt, Sampling, Stats, TextRequest};
use conjure::{Error, Result};
use std::io::Read as _;
use std::path::Path;

/// The model that is named.
pub fn model(path: Option<&Path>) -> Result<&Path> {
    path.ok_or_else(|| Error::request("no model is named").with_help(format!("name one with --model; {HELP}")))
}

/// What the model at this path is called.
pub fn name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Opens the model that is named; also what it is called.
pub fn open(path: Option<&Path>) -> Result<(LanguageModel, String)> {
    let path = model(path)?;
    Ok((LanguageModel::open(path)?, name(path)))
}

/// Opens the model that is named, with the cache that is asked for; also what it is called.
pub fn open_with_cache(sampling: &SamplingArgs) -> Result<(LanguageModel, String)> {
    let path = model(sampling.model.as_deref())?;
    let (model, name) = (LanguageModel::open_with(path, &sampling.loras)?, name(path));
    let model = match sampling.cache.as_deref() {
        None => model,
        Some("q8") => model.with_cache(KeptAs::EightBits),
        Some("f16") => model.with_cache(KeptAs::Half),
        Some(_) => model.with_cache(KeptAs::Given),
    };
    Ok((model, name))
}

/// The words or ids that were given; `-` is what stdin holds.
pub fn prompt(text: Option<&str>, ids: &[u32]) -> Result<Prompt> {
    match text {
        None => Ok(Prompt::Ids(ids.to_vec())),
        Some("-") => stdin().map(Prompt::Text),
        Some(text) => Ok(Prompt::Text(text.to_owned())),
    }
}

/// What stdin holds, which must be text.
pub fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    let limit = MAX_PROMPT as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|e| Error::io("stdin", e))?;
    String::from_utf8(bytes).map(without_mark).map_err(|error| {
        Error::request(format!("stdin is not text in UTF-8 at byte {}", error.utf8_error().valid_up_to()))
            .with_help("convert it, for example with iconv")
    })
}

/// The request that these arguments describe, with this prompt.
pub fn request(prompt: Prompt, args: &SamplingArgs, form: &ConstraintArgs, seed: u64) -> Result<TextRequest> {
    let usual = Sampling::default();
    let grammar = match (&form.json_schema, &form.grammar) {
        (Some(path), _) => Some(Grammar::open_json_schema(path)?),
        (None, Some(path)) => Some(Grammar::open(path)?),
        (None, None) => None,
    };
    let request = TextRequest {
        max_tokens: args.max_tokens,
        sampling: Sampling {
            temperature: args.temperature.unwrap_or(usual.temperature),
            top_k: args.top_k.map_or(usual.top_k, |k| (k > 0).then_some(k)),
            top_p: args.top_p.unwrap_or(usual.top_p),
            min_p: args.min_p.unwrap_or(usual.min_p),
            typical: args.typical.unwrap_or(usual.typical),
            repetition: args.repeat_penalty.unwrap_or(usual.repetition),
            presence: args.presence.unwrap_or(usual.presence),
            frequency: args.frequency.unwrap_or(usual.frequency),
        },
        seed,
        stop: args.stop.clone(),
        grammar,
        ..TextRequest::new(prompt)
    };
    request.validate()?;
    Ok(request)
}

/// Speed and context in one line.
pub fn speed(stats: &Stats) -> String {
    let read = crate::report::counted(stats.read_tokens, "token");
    let again = if stats.reused_tokens > 0 { format!(" ({} known)", stats.reused_tokens) } else { String::new() };
    format!(
        "prompt {read}{again}, {:.1} tokens/s; {} generated, {:.1} tokens/s; context {} of {}",
        stats.prompt_tokens_per_second(),
        stats.tokens,
        stats.tokens_per_second(),
        stats.context_used,
        stats.context
    )
}
