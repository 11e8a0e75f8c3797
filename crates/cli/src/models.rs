//! `conjure models ...`.

use crate::args::{ModelsCommand, TinyArgs};
use crate::report;
use conjure::Result;
use conjure::generate::image;
use serde_json::json;
use std::process::ExitCode;

pub fn run(command: ModelsCommand) -> Result<ExitCode> {
    match command {
        ModelsCommand::Tiny(args) => tiny(&args),
    }
}

fn tiny(args: &TinyArgs) -> Result<ExitCode> {
    image::save_tiny(&args.out, args.seed)?;
    let line =
        if args.report.json { json!({ "folder": args.out }).to_string() } else { args.out.display().to_string() };
    report::result(&line)?;
    Ok(ExitCode::SUCCESS)
}
