//! `conjure explain attention`.

use super::check_format;
use crate::args::AttentionArgs;
use crate::output::check_writable;
use crate::{language, report, translate};
use conjure::explain::attention::{self, Kind, Request, Selection};
use conjure::generate::image;
use conjure::image_file::write_atomically;
use conjure::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub fn run(args: &AttentionArgs) -> Result<ExitCode> {
    if let Some(threads) = args.threads {
        conjure::set_threads(threads)?;
    }
    let files: Vec<(&Path, &str, &str)> = [
        (Some(&args.out), "--out", "HTML"),
        (args.csv.as_ref(), "--csv", "CSV"),
        (args.json.as_ref(), "--json", "JSON"),
        (args.svg.as_ref(), "--svg", "SVG"),
    ]
    .into_iter()
    .filter_map(|(path, flag, format)| Some((path?.as_path(), flag, format)))
    .collect();
    for (n, &(path, flag, format)) in files.iter().enumerate() {
        check_format(path, flag, format)?;
        if files[..n].iter().any(|(other, ..)| place(other) == place(path)) {
            return Err(Error::request(format!("two results would be written to {}", path.display()))
                .with_help("give each its own file"));
        }
        check_writable(path)?;
    }
    let selection = Selection { layer: args.layer, head: args.head };
    let request = Request {
        text: if args.text == "-" { language::stdin()?.trim_end().to_owned() } else { args.text.clone() },
        compare: args.compare.clone(),
        layer: args.layer,
        head: args.head.unwrap_or(0),
        word: args.word.clone(),
        mask: args.mask.clone(),
        ablate: args.ablate.clone(),
        budget: usize::from(args.budget) << 20,
        table: (args.csv.is_some() || args.json.is_some()).then_some(selection),
        drawing: args.svg.is_some(),
    };
    request.validate()?;
    let model = match &args.model {
        Some(model) => Some(model.clone()),
        None => image::find_with(image::DEFAULT_MODEL, &["text_encoder/config.json"])?,
    };
    let model = model.ok_or_else(|| {
        Error::request("no model is named, and the text encoder that comes with conjure is not there")
            .with_help("add --model PATH, or keep the folder models/ beside the program")
    })?;
    let subject = attention::open_for(&model, args.from.as_deref(), args.to.as_deref())?;
    translate::tell_unheard(subject.unheard());
    let explanation = attention::explain(subject.as_ref(), &language::name(&model), &request)?;
    let agreement = attention::agreement(&explanation);
    if !agreement.weights.is_finite() || !agreement.sums.is_finite() {
        return Err(Error::failure(format!("what {} computes are no numbers", model.display()))
            .with_help("its weights may be broken: download the model again, or choose another"));
    }
    // All that can be refused is, before the first is written: a refusal leaves nothing behind.
    let page = attention::html(&explanation)?;
    let table = request.table.map(|selection| attention::select(&explanation, selection)).transpose()?;
    let drawing = args.svg.as_ref().map(|_| attention::svg(&explanation, selection)).transpose()?;
    let write = |path: &Path, content: &dyn Fn(&mut dyn Write) -> std::io::Result<()>| {
        write_atomically(path, content)?;
        report::result(&path.display().to_string())
    };
    write(&args.out, &|file| file.write_all(page.as_bytes()))?;
    if let (Some(path), Some(table)) = (&args.csv, &table) {
        write(path, &|file| attention::csv(table, file))?;
    }
    if let (Some(path), Some(table)) = (&args.json, &table) {
        write(path, &|file| attention::json(table, file))?;
    }
    if let (Some(path), Some(drawing)) = (&args.svg, &drawing) {
        write(path, &|file| file.write_all(drawing.as_bytes()))?;
    }
    let from_left = explanation.runs.iter().flat_map(|run| &run.attentions).all(|a| a.kind == Kind::Causal);
    if args.compare.is_some() && from_left {
        report::note(
            "the model reads from left to right: words before the first difference look the same in both sentences; an \
             encoder such as all-MiniLM-L6-v2 reads in both directions",
        );
    }
    report::note(&format!(
        "weights computed again from q, k and v differ from the model's own by at most {:.1e}, weighted sums by {:.1e}",
        agreement.weights, agreement.sums
    ));
    Ok(ExitCode::SUCCESS)
}

/// Where a file that need not be there yet will lie, however it is spelt.
fn place(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}
