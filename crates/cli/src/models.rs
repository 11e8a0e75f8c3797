//! `conjure models ...`.

use crate::args::{InspectArgs, ModelsCommand, ReportArgs, TinyArgs, TinyKind};
use crate::{cache, report};
use conjure::generate::image;
use conjure::generate::text;
use conjure::inspect::Inspection;
use conjure::registry::{FAMILIES, Family};
use conjure::tokens::clip_vocabulary;
use conjure::{Error, Result};
use serde_json::json;
use std::process::ExitCode;

pub fn run(command: ModelsCommand) -> Result<ExitCode> {
    match command {
        ModelsCommand::List(args) => list(&args),
        ModelsCommand::Inspect(args) => inspect(&args),
        ModelsCommand::Tokenizer(args) => tokenizer(&args),
        ModelsCommand::Tiny(args) => tiny(&args),
    }
}

fn tiny(args: &TinyArgs) -> Result<ExitCode> {
    std::fs::create_dir_all(&args.out).map_err(|e| {
        Error::file(&args.out, format!("cannot be made: {e}")).with_help("choose a place that you may write to")
    })?;
    match args.kind {
        TinyKind::Image => image::save_tiny(&args.out, args.seed)?,
        TinyKind::Text => text::save_tiny(&args.out, args.seed)?,
    }
    let line =
        if args.report.json { json!({ "folder": args.out }).to_string() } else { args.out.display().to_string() };
    report::result(&line)?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &InspectArgs) -> Result<ExitCode> {
    let inspection = Inspection::new(&args.path)?;
    let text = if args.report.json { json!(inspection).to_string() } else { inspection.to_string() };
    report::result(text.trim_end())?;
    Ok(if inspection.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list(args: &ReportArgs) -> Result<ExitCode> {
    if args.json {
        let family = |f: &Family| {
            let paper = json!({
                "authors": f.paper.authors, "title": f.paper.title, "year": f.paper.year, "link": f.paper.link,
            });
            json!({ "name": f.name, "makes": f.makes, "paper": paper, "presets": f.presets })
        };
        report::result(&json!(FAMILIES.iter().map(family).collect::<Vec<_>>()).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    for family in FAMILIES {
        report::result(&format!("{:<19} makes {}", family.name, family.makes))?;
        report::result(&format!("{:<19} {}", "", family.paper))?;
        if !family.presets.is_empty() {
            report::result(&format!("{:<19} {}", "", family.presets.join(", ")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tokenizer(args: &ReportArgs) -> Result<ExitCode> {
    let cache = cache::folder()?;
    clip_vocabulary::prepare(&cache)?;
    let folder = clip_vocabulary::folder(&cache);
    let line = if args.json { json!({ "folder": folder }).to_string() } else { folder.display().to_string() };
    report::result(&line)?;
    Ok(ExitCode::SUCCESS)
}
