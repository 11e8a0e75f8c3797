//! `conjure translate`: a text in another language, line by line.

use crate::args::TranslateArgs;
use crate::lines::lines;
use crate::{image, interrupt, language, report};
use conjure::generate::text::{Finish, Prompt};
use conjure::generate::translate::{Event, TranslateRequest, Translation, Translator, default_model};
use conjure::{Error, Result};
use serde_json::json;
use std::process::ExitCode;

pub fn run(args: &TranslateArgs) -> Result<ExitCode> {
    let request = TranslateRequest {
        to: args.to.clone(),
        from: args.from.clone(),
        beams: args.beams,
        length_penalty: args.length_penalty,
        max_tokens: args.max_tokens,
    };
    request.validate()?;
    let lines = source(args)?;
    if lines.iter().all(|line| line.trim().is_empty()) {
        return Err(Error::request("there is no text to translate").with_help("give a text, or a file with lines"));
    }
    image::set_threads(&args.machine)?;
    let folder = match &args.model {
        Some(folder) => folder.clone(),
        None => default_model()?,
    };
    let translator = Translator::open(&folder)?;
    translator.notes().iter().for_each(|note| report::note(&format!("note: {note}")));
    tell_unheard(translator.languages().unheard(args.from.as_deref(), args.to.as_deref()));
    let mut page = Page::new(lines.len(), !args.machine.json);
    let made = translator.translate(&lines, &request, &mut |event| {
        page.take(event);
        page.is_read() && !interrupt::requested()
    })?;
    if !page.finish()? {
        // The reader has seen enough.
        return Ok(ExitCode::SUCCESS);
    }
    let cancelled = made.iter().any(|translation| translation.finish == Finish::Cancelled);
    if args.machine.json {
        let one = |(source, made): (&String, &Translation)| {
            json!({
                "source": source,
                "text": made.text,
                "source_tokens": made.source_ids,
                "tokens": made.ids,
                "score": made.score,
                "finish": made.finish.name(),
            })
        };
        let all: Vec<_> = lines.iter().zip(&made).map(one).collect();
        let model = language::name(&folder);
        report::result(&json!({ "model": model, "from": args.from, "to": args.to, "translations": all }).to_string())?;
    } else {
        tell(&made, translator.model().max_tokens());
    }
    Ok(if cancelled { ExitCode::from(Error::Cancelled.exit_code()) } else { ExitCode::SUCCESS })
}

/// Of a language that the model is neither told nor known to have.
pub fn tell_unheard(said: Option<&str>) {
    if let Some(said) = said {
        report::note(&format!("note: the model's folder does not say that it translates {said}"));
    }
}

/// Which lines did not come to their end; `most` tokens are all that the model can write.
fn tell(made: &[Translation], most: Option<usize>) {
    const SHOWN: usize = 5;
    let open = || made.iter().zip(1..).filter(|(made, _)| made.finish == Finish::Length);
    for (made, line) in open().take(SHOWN) {
        let which = if open().count() > 1 || line > 1 { format!("line {line} ") } else { String::new() };
        let tokens = report::counted(made.ids.len(), "token");
        let why = if most.is_some_and(|most| made.ids.len() >= most) {
            "the model writes no more"
        } else {
            "--max-tokens sets another number"
        };
        report::note(&format!("{which}ended after {tokens}; {why}"));
    }
    if open().count() > SHOWN {
        report::note(&format!("so did {} more lines", open().count() - SHOWN));
    }
}

/// The lines that are to be translated.
fn source(args: &TranslateArgs) -> Result<Vec<String>> {
    match &args.file {
        Some(path) => lines(path),
        None => match language::prompt(args.text.as_deref(), &[])? {
            Prompt::Text(text) => Ok(text.lines().map(str::to_owned).collect()),
            Prompt::Ids(_) => Ok(Vec::new()),
        },
    }
}

/// What is on stdout: lines in their order, each as soon as those before it are there; a single line as it is written.
struct Page {
    lines: Vec<Option<String>>,
    shown: usize,
    /// Of the line that comes next, what is out already.
    begun: usize,
    wanted: bool,
    heard: Result<bool>,
}

impl Page {
    fn new(lines: usize, wanted: bool) -> Self {
        Self { lines: vec![None; lines], shown: 0, begun: 0, wanted, heard: Ok(true) }
    }

    fn is_read(&self) -> bool {
        matches!(self.heard, Ok(true))
    }

    fn take(&mut self, event: &Event<'_>) {
        match event {
            Event::Piece { text, .. } if self.lines.len() == 1 => {
                self.say(text);
                self.begun += text.len();
            }
            Event::Piece { .. } | Event::Step { .. } => {}
            Event::Line { line, translation } => {
                self.lines[*line] = Some(translation.text.clone());
                while let Some(text) = self.lines.get_mut(self.shown).and_then(Option::take) {
                    // What was held back as it might have been half a character.
                    let rest = text.get(self.begun..).unwrap_or_default().to_owned();
                    self.say(&format!("{rest}\n"));
                    self.begun = 0;
                    self.shown += 1;
                }
            }
        }
    }

    fn say(&mut self, text: &str) {
        if self.wanted && self.is_read() {
            self.heard = report::piece(text);
        }
    }

    /// Whether the reader is still there.
    fn finish(mut self) -> Result<bool> {
        if self.begun > 0 {
            self.say("\n");
        }
        self.heard
    }
}
