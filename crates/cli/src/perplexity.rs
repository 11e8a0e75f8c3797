//! `conjure evaluate perplexity`: how well a language model predicts texts.

use crate::args::PerplexityArgs;
use crate::lines::{stdin_once, text};
use crate::progress::Progress;
use crate::{interrupt, language, report};
use conjure::Result;
use conjure::evaluate::perplexity::{Perplexity, Windows, perplexity, tokenisation};
use conjure::generate::text::LanguageModel;
use serde_json::json;
use std::process::ExitCode;

/// Largest text in bytes: its tokens are held in memory.
const MAX_TEXT: u64 = 256 << 20;

pub fn run(args: &PerplexityArgs) -> Result<ExitCode> {
    // All is told at the end: there is nothing to keep before.
    interrupt::end_at_once();
    stdin_once(args.files.iter().map(AsRef::as_ref))?;
    if let Some(threads) = args.machine.threads {
        conjure::set_threads(threads)?;
    }
    let path = language::model(args.model.as_deref())?;
    // What cannot be read is told before the model is loaded.
    let texts = args.files.iter().map(|path| text(path, MAX_TEXT)).collect::<Result<Vec<_>>>()?;
    let model = LanguageModel::open_with(path, &args.loras)?;
    let windows = Windows::new(&model, args.context, args.stride)?;
    let tokenisation = tokenisation(&model)?;
    let mut progress = Progress::new();
    let mut all = Vec::new();
    for (path, text) in args.files.iter().zip(&texts) {
        let name = path.display().to_string();
        progress.step(0, 1);
        all.push(perplexity(&model, &name, text, windows, &mut |done, of| {
            progress.step(done, of);
            true
        })?);
    }
    progress.finish();
    let together = Perplexity::together(&all);
    if args.machine.json {
        let value = json!({
            "model": language::name(path),
            "tokenisation": tokenisation,
            "context": windows.context,
            "stride": windows.stride,
            "texts": all,
            "all": together,
        });
        report::result(&value.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines: Vec<String> = all.iter().map(line).collect();
    if all.len() > 1 {
        lines.push(line(&together));
    }
    report::result(&lines.join("\n"))?;
    report::note(&format!(
        "{}: windows of {} tokens, {} further each time; {tokenisation}; {:.0} tokens/s",
        language::name(path),
        windows.context,
        windows.stride,
        together.tokens_per_second
    ));
    Ok(ExitCode::SUCCESS)
}

fn line(measured: &Perplexity) -> String {
    report::printable(&format!(
        "perplexity {:.4}  bits/byte {:.4}  of {} tokens, {} bytes  {}",
        measured.perplexity, measured.bits_per_byte, measured.scored, measured.bytes, measured.name
    ))
}
