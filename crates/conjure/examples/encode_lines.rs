//! The ids of every line of a file, for comparing tokenizers: `tools/reference/text_tokenizers_parity.py` reads what this prints.
//!
//!     cargo run --release -p conjure --example encode_lines -- TOKENIZER LINES [--special]
//!
//! TOKENIZER is a transformers folder, a GGUF file or a SentencePiece model; LINES holds a JSON string on every line. For each
//! of them a line `{"ids":[...],"text":"...","streamed":"..."}` is printed: the ids, with `--special` including those around a
//! text; the text that they are decoded to at once, and one after the other.

#![allow(clippy::print_stderr, reason = "an example reports to its user")]

use conjure::tokens::{SentencePiece, Tokenizer};
use conjure_core::weights::gguf::Gguf;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, lines, rest @ ..] = arguments.as_slice() else {
        return Err("usage: encode_lines TOKENIZER LINES [--special]".into());
    };
    let special = rest.iter().any(|flag| flag == "--special");
    let path = Path::new(tokenizer);
    let start = Instant::now();
    let tokenizer = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gguf") => Tokenizer::from_gguf(Gguf::open(path)?.metadata())?,
        Some("model" | "spm") => Tokenizer::from_sentencepiece(SentencePiece::open(path)?),
        _ => Tokenizer::from_folder(path)?,
    };
    let opened = start.elapsed();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let (mut count, mut encoding) = (0, std::time::Duration::ZERO);
    for line in std::fs::read_to_string(lines)?.lines() {
        let line: String = serde_json::from_str(line)?;
        let start = Instant::now();
        let ids = tokenizer.encode(&line, special)?;
        encoding += start.elapsed();
        count += ids.len();
        let mut stream = tokenizer.stream(true);
        let steps = ids.iter().map(|id| stream.push(*id)).collect::<conjure::Result<String>>()?;
        let streamed = steps + &stream.finish()?;
        let text = tokenizer.decode(&ids, true)?;
        writeln!(out, "{}", serde_json::json!({ "ids": ids, "text": text, "streamed": streamed }))?;
    }
    out.flush()?;
    eprintln!(
        "{} tokens known, opened in {opened:?}; {count} ids in {encoding:?}",
        tokenizer.vocabulary_size()
    );
    Ok(())
}
