//! `conjure evaluate perplexity`: how well a language model predicts texts.

use crate::args::PerplexityArgs;
use crate::progress::Progress;
use crate::{interrupt, language, report};
use conjure::evaluate::perplexity::{Perplexity, Windows, perplexity, tokenisation};
use conjure::generate::text::LanguageModel;
use conjure::{Error, Result};
use serde_json::json;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

/// Largest text in bytes: its tokens are held in memory.
const MAX_TEXT: u64 = 256 << 20;

pub fn run(args: &PerplexityArgs) -> Result<ExitCode> {
    if let Some(threads) = args.machine.threads {
        conjure::set_threads(threads)?;
    }
    let path = language::model(args.model.as_deref())?;
    // What cannot be read is told before the model is loaded.
    let texts = args.files.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
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
            !interrupt::requested()
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

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(|e| Error::io("stdin", e))?;
    } else if !path.is_file() {
        return Err(Error::file(path, "not found").with_help("name text files, or - for stdin"));
    } else {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        file.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    }
    if bytes.len() as u64 > MAX_TEXT {
        return Err(Error::file(path, format!("larger than {} MiB", MAX_TEXT >> 20)).with_help("measure parts of it"));
    }
    String::from_utf8(bytes).map_err(|error| {
        Error::file(path, format!("byte {} is not UTF-8", error.utf8_error().valid_up_to()))
            .with_help("convert it, for example with iconv")
    })
}
