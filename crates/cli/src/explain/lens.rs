//! `conjure explain lens`.

use super::spelt;
use crate::args::LensArgs;
use crate::{image, language, report};
use conjure::explain::check_text;
use conjure::explain::lens::{Lens, Position};
use conjure::{Error, Result};
use std::fmt::Write as _;
use std::process::ExitCode;

pub fn run(args: &LensArgs) -> Result<ExitCode> {
    let text = language::prompt(args.text.as_deref(), &args.tokens)?;
    check_text(&text)?;
    image::set_threads(&args.machine)?;
    let (model, _) = language::open(args.model.as_deref())?;
    let lens = Lens::new(&model, &model.encode(&text)?, args.top)?;
    if args.machine.json {
        report::result(&serde_json::to_string(&lens).map_err(|e| Error::failure(e.to_string()))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Of a whole text the last position tells most, and the others are in the JSON.
    if let Some(last) = lens.tokens.last() {
        report::result(table(last).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(position: &Position) -> String {
    let mut text = format!(
        "after {}\nlayer  probability and rank of the model's choice, and what the layer would say\n",
        report::printable(&spelt(position.id, &position.text))
    );
    for view in &position.layers {
        let says: Vec<String> = view
            .top
            .iter()
            .map(|other| format!("{} {:.1} %", spelt(other.id, &other.text), 100.0 * other.logprob.exp()))
            .collect();
        let says = report::printable(&says.join(", "));
        let _ = writeln!(text, "{:>5}  {:>9.3} % {:>7}  {says}", view.layer, 100.0 * view.logprob.exp(), view.rank);
    }
    text
}
