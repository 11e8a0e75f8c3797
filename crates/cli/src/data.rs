//! `conjure data ...`.

use crate::args::{DataCommand, EmojiArgs, FolderArgs, TranslationArgs};
use crate::progress::Progress;
use crate::{cache, interrupt, output, report};
use conjure::data::emoji::packages::Packages;
use conjure::data::{Dataset, Skipped, emoji, folder, translation};
use conjure::{Error, Result};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

pub fn run(command: DataCommand) -> Result<ExitCode> {
    match command {
        DataCommand::Emoji(args) => make_emoji(args),
        DataCommand::Translation(args) => make_translation(args),
        DataCommand::Folder(args) => check_folder(&args),
    }
}

fn make_emoji(args: EmojiArgs) -> Result<ExitCode> {
    if let Some(threads) = args.threads {
        conjure::set_threads(threads)?;
    }
    let all = emoji::Request::default();
    let or_all = |asked: Vec<String>, all: Vec<String>| if asked.is_empty() { all } else { asked };
    let request = emoji::Request {
        styles: or_all(args.styles, all.styles),
        exclude_groups: args.exclude_groups,
        languages: or_all(args.languages, all.languages),
        size: args.size,
    };
    output::check_folder(&args.out, &[emoji::FILE_NAME, "sheet.png", "summary.json"])?;
    let packages = packages(args.from)?;
    let mut progress = Progress::new();
    let made = emoji::make(&request, &packages, &mut |done, of| {
        progress.step(done, of);
        if interrupt::requested() { Err(Error::Cancelled) } else { Ok(()) }
    });
    progress.finish();
    let summary = made?.save(&args.out)?;
    for (source, reason) in &summary.failures {
        report::note(&format!("skipped: {source}: {reason}"));
    }
    let file = args.out.join(emoji::FILE_NAME);
    if args.report.json {
        report::result(&json!({ "file": file, "summary": summary }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    report::result(&format!("{}", file.display()))?;
    report::result(&format!(
        "{} pictures of {} concepts in {} styles, {} skipped, {:.1} MB",
        summary.pictures,
        summary.concepts,
        summary.styles.len(),
        summary.failures.len(),
        summary.bytes as f64 / 1e6
    ))?;
    for (split, count) in &summary.splits {
        report::result(&format!("{split:<22} {count:>6}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where packages are: in the user's folder, or fetched and kept.
fn packages(from: Option<PathBuf>) -> Result<Packages> {
    match from {
        Some(folder) => Ok(Packages::Folder(folder)),
        None => Ok(Packages::Cache(cache::folder()?.join("packages"))),
    }
}

fn make_translation(args: TranslationArgs) -> Result<ExitCode> {
    output::check_folder(&args.out, &[translation::make::FILE_NAME, "summary.json"])?;
    let made = translation::make::make(&args.languages, &packages(args.from)?)?;
    let mut progress = Progress::new();
    let summary = made.save(&args.out, &mut |done, of| {
        progress.step(done, of);
        if interrupt::requested() { Err(Error::Cancelled) } else { Ok(()) }
    });
    progress.finish();
    let summary = summary?;
    let file = args.out.join(translation::make::FILE_NAME);
    if args.report.json {
        report::result(&json!({ "file": file, "summary": summary }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    report::result(&format!("{}", file.display()))?;
    report::result(&format!(
        "{} entries in {} languages, {} held out; {} names, {} keywords, {} keyword pairs, {:.1} MB",
        summary.entries,
        summary.languages.len(),
        summary.held_out,
        summary.names,
        summary.keywords,
        summary.keyword_pairs,
        summary.bytes as f64 / 1e6
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn check_folder(args: &FolderArgs) -> Result<ExitCode> {
    let (set, skipped): (Dataset, Skipped) = match &args.out {
        Some(file) => {
            output::check_writable(file)?;
            folder::pack(&args.folder, args.strict, file)?
        }
        None => Dataset::folder(&args.folder, args.strict)?,
    };
    for (path, reason) in &skipped.files {
        report::note(&format!("skipped: {}: {reason}", path.display()));
    }
    if args.report.json {
        let files: Vec<_> =
            skipped.files.iter().map(|(path, reason)| json!({ "file": path, "reason": reason })).collect();
        let line = json!({ "pictures": set.len(), "digest": set.digest(), "file": args.out, "skipped": files });
        report::result(&line.to_string())?;
    } else {
        report::result(&format!("{} pictures with captions, {} skipped", set.len(), skipped.files.len()))?;
        if let Some(file) = &args.out {
            report::result(&file.display().to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
