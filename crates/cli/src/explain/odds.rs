//! `conjure explain odds`.

use super::{check_format, spelt};
use crate::args::OddsArgs;
use crate::{image, language, output, report, translate};
use conjure::explain::odds::{self, Target, TokenOdds};
use conjure::generate::text::Prompt;
use conjure::image_file::write_atomically;
use conjure::{Error, Result};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// A token this surprising or more, in bits, has the full colour.
const FULL: f64 = 12.0;

pub fn run(args: &OddsArgs) -> Result<ExitCode> {
    if let Some(path) = &args.html {
        check_format(path, "--html", "HTML")?;
        output::check_writable(path)?;
    }
    let text = language::prompt(args.text.as_deref(), &args.tokens)?;
    let target = match (&args.target, &args.target_tokens[..]) {
        (Some(target), _) => Some(Prompt::Text(target.clone())),
        (None, []) => None,
        (None, ids) => Some(Prompt::Ids(ids.to_vec())),
    };
    image::set_threads(&args.machine)?;
    let path = language::model(args.model.as_deref())?;
    let target = Target { text: target.as_ref(), from: args.from.as_deref(), to: args.to.as_deref() };
    let odds = odds::of_model(path, &text, &target, args.top)?;
    translate::tell_unheard(odds.unheard.as_deref());
    if let [TokenOdds { logprob: None, .. }] = odds.tokens[..] {
        report::note("note: the text is one token, and nothing comes before it from which the model could expect it");
    }
    if let Some(html) = &args.html {
        let page = odds::html(&odds, &language::name(path))?;
        write_atomically(html, |file| file.write_all(page.as_bytes()))?;
        report::note(&format!("{}", html.display()));
    }
    if args.machine.json {
        report::result(&serde_json::to_string(&odds).map_err(|e| Error::failure(e.to_string()))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut text = String::new();
    if colours {
        odds.tokens.iter().for_each(|token| text.push_str(&coloured(token, &token.text)));
        text.push_str("\n\n");
    }
    text.push_str("probability    bits    rank  token, and what was likeliest\n");
    for token in &odds.tokens {
        text.push_str(&line(token, colours));
    }
    if let Some(mean) = odds.mean_bits() {
        let _ = writeln!(text, "{mean:.2} bits a token on average, perplexity {:.1}", mean.exp2());
    }
    report::result(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// A line of the table.
fn line(token: &TokenOdds, colours: bool) -> String {
    let mut own = report::printable(&spelt(token.id, &token.text));
    if colours {
        own = coloured(token, &own);
    }
    let (Some(logprob), Some(bits), Some(rank)) = (token.logprob, token.bits(), token.rank) else {
        return format!("          -       -       -  {own}\n");
    };
    let mut line = format!("{:>11} {bits:>7.2} {rank:>7}  {own}", percent(logprob));
    let others: Vec<String> =
        token.top.iter().map(|other| format!("{} {}", spelt(other.id, &other.text), percent(other.logprob))).collect();
    if !others.is_empty() {
        let _ = write!(line, "  of {}", report::printable(&others.join(", ")));
    }
    line.push('\n');
    line
}

fn percent(logprob: f32) -> String {
    let p = 100.0 * f64::from(logprob).exp();
    if p >= 0.01 { format!("{p:.2} %") } else { format!("{p:.0e} %") }
}

/// The text on a background from none to orange, by the token's surprise.
fn coloured(token: &TokenOdds, text: &str) -> String {
    let text = report::printable(text);
    let Some(bits) = token.bits() else { return text };
    let share = (bits / FULL).min(1.0);
    if share < 0.05 {
        return text;
    }
    // From dark grey to orange, which black and white text stand out from; the text's own colour says which it is.
    let mix = |from: f64, to: f64| (from + share * (to - from)).round();
    let (r, g, b) = (mix(40.0, 235.0), mix(40.0, 95.0), mix(40.0, 20.0));
    let mut out = String::new();
    // A background that reaches over a line's end would fill the line.
    for (i, part) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if !part.is_empty() {
            let _ = write!(out, "\x1b[48;2;{r};{g};{b}m\x1b[38;2;255;255;255m{part}\x1b[0m");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure::explain::odds::Alternative;

    #[test]
    fn a_line_tells_probability_surprise_rank_and_alternatives() {
        let top = vec![Alternative { id: 7, text: " a".into(), logprob: -0.5_f32.exp2().ln() }];
        let token =
            |text: &str, logprob| TokenOdds { id: 1, text: text.into(), logprob, rank: Some(3), top: top.clone() };
        let told = line(&token(" the\n", Some(-3.0 * std::f32::consts::LN_2)), false);
        assert!(told.starts_with("    12.50 %    3.00       3  \" the\\n\"  of \" a\" "), "{told}");
        assert_eq!(line(&token("x", None), false), "          -       -       -  \"x\"\n");
        assert!(line(&token("", Some(-1.0)), false).contains("  [1]  of "), "without a tokenizer, the id");
        assert_eq!(percent(-20.0), "2e-7 %");
        let shown = coloured(&token("a\nb\x1b[2J", Some(-9.0)), "a\nb\x1b[2J");
        assert_eq!(shown.matches("\x1b[0m").count(), 2);
        assert!(!shown.contains("\x1b[2J"), "a text cannot steer the terminal");
    }
}
