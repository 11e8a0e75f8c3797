//! `conjure chat`: a conversation in the terminal.

use crate::args::ChatArgs;
use crate::chat_input::{Input, Line};
use crate::{interrupt, language, lines, output, report};
use conjure::generate::image::random_seed;
use conjure::generate::text::{Chat, Event, Finish, Prompt, TextRequest};
use conjure::image_file::write_atomically;
use conjure::tokens::Message;
use conjure::{Error, Result};
use std::path::Path;
use std::process::ExitCode;

/// Largest file of a saved conversation in bytes.
const MAX_FILE: u64 = 64 << 20;

const HELP: &str = "\
/help        these lines
/reset       forget the conversation, but not --system
/drop        forget the oldest question and its answer
/save FILE   write the conversation to a file; of existing ones only a saved conversation is replaced
/load FILE   go on with the conversation in a file
/quit        end, as Ctrl-D does
A line that ends with \\ goes on in the next; \"\"\" begins and ends a text of several lines; // begins a text with /.
Ctrl-C stops the answer.";

pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let seed = args.sampling.seed.unwrap_or_else(random_seed);
    // The prompt is asked for later; everything else is checked now.
    let mut request = language::request(Prompt::Text(String::new()), &args.sampling, &args.constraint, seed)?;
    if let Some(threads) = args.threads {
        conjure::set_threads(threads)?;
    }
    let (model, name) = language::open_with_cache(&args.sampling)?;
    let mut chat = Chat::new(&model, args.system.as_deref())?;
    if args.sampling.seed.is_none() && !request.sampling.is_greedy() {
        report::note(&format!("seed {seed}"));
    }
    let mut input = Input::new()?;
    if input.interactive() {
        report::note(&format!("{name}, {} tokens of context; /help tells more, Ctrl-D ends", model.context()));
        interrupt::keep_running();
    }
    let mut warned = false;
    loop {
        let outcome = match input.read()? {
            Line::End => break,
            Line::Text(text) => match text.strip_prefix('/') {
                Some(command) if !command.starts_with('/') => match command_line(command, &mut chat) {
                    Ok(true) => break,
                    other => other.map(|_| true),
                },
                _ => {
                    let question = if text.starts_with("//") { &text[1..] } else { text.as_str() };
                    if question.trim().is_empty() {
                        continue;
                    }
                    if !warned && !chat.is_heard(question) {
                        warned = true;
                        report::note(
                            "note: the prompt that the model's chat template makes does not have your message in it as you \
                             wrote it; the model may not have read it",
                        );
                    }
                    let told = ask(&mut chat, question, &request);
                    // The next answer is drawn anew, and still the same when all is asked again.
                    request.seed = request.seed.wrapping_add(1);
                    told
                }
            },
        };
        match outcome {
            Ok(true) => {}
            // The reader has seen enough.
            Ok(false) => break,
            Err(error) if input.interactive() => {
                report::failure(&error);
            }
            Err(error) => return Err(error),
        }
    }
    input.finish();
    Ok(ExitCode::SUCCESS)
}

/// Asks and prints the answer as it comes. Whether somebody still reads.
fn ask(chat: &mut Chat<'_>, question: &str, request: &TextRequest) -> Result<bool> {
    interrupt::clear();
    let mut heard = Ok(true);
    let made = chat.ask(question, request, &mut |event| {
        let text = match event {
            Event::Token(token) => token.text.as_str(),
            Event::End { rest, .. } => rest.as_str(),
            Event::Prompt { .. } => "",
        };
        if !text.is_empty() && matches!(heard, Ok(true)) {
            heard = report::piece(text);
        }
        matches!(heard, Ok(true)) && !interrupt::requested()
    });
    let stopped = interrupt::requested();
    let made = made?;
    if heard? && report::piece("\n")? {
        let end = match made.finish {
            Finish::Cancelled => "; stopped",
            Finish::Length => "; ended by --max-tokens",
            Finish::Open => "; there was no room to close what the grammar has open",
            Finish::Context => "; the context is full: /drop or /reset makes room",
            _ => "",
        };
        report::note(&format!("[{}{end}]", language::speed(&made.stats)));
        // Outside a terminal Ctrl-C is for the program.
        return if stopped && !interrupt::is_kept_running() { Err(Error::Cancelled) } else { Ok(true) };
    }
    Ok(false)
}

/// Does what a line with a slash says. Whether the conversation is over.
fn command_line(line: &str, chat: &mut Chat<'_>) -> Result<bool> {
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let file = || match rest.trim() {
        "" => Err(Error::request(format!("/{name} without a file")).with_help(format!("/{name} FILE"))),
        path => Ok(Path::new(path)),
    };
    match name {
        "help" => report::note(HELP),
        "reset" => {
            chat.reset();
            report::note("the conversation is forgotten");
        }
        "drop" => report::note(if chat.drop_oldest() {
            "the oldest question and its answer are forgotten"
        } else {
            "there is no question to forget"
        }),
        "save" => save(file()?, chat.messages())?,
        "load" => {
            let path = file()?;
            chat.set_messages(load(path)?)?;
            report::note(&format!("{} messages loaded", chat.messages().len()));
        }
        "quit" | "exit" | "bye" => return Ok(true),
        other => {
            return Err(Error::request(format!("/{other} is no command"))
                .with_help("/help lists them; // begins a text with /"));
        }
    }
    Ok(false)
}

/// Writes the conversation to a file. Of files that are there already only saved conversations are replaced: a name typed in
/// haste must not cost what is not one.
fn save(path: &Path, messages: &[Message]) -> Result<()> {
    output::check_writable(path)?;
    if messages.iter().all(|message| message.role == "system") {
        return Err(Error::request("there is nothing to save").with_help("ask something first"));
    }
    let replaces = path.is_file();
    if replaces && load(path).is_err() {
        return Err(Error::file(path, "is there already, and is no saved conversation").with_help("give another name"));
    }
    let text = serde_json::to_string_pretty(messages).map_err(|e| Error::failure(e.to_string()))?;
    write_atomically(path, |file| writeln!(file, "{text}"))?;
    let instead = if replaces { ", in place of the conversation there" } else { "" };
    report::note(&format!("{} messages saved to {}{instead}", messages.len(), path.display()));
    Ok(())
}

fn load(path: &Path) -> Result<Vec<Message>> {
    serde_json::from_str(&lines::file(path, MAX_FILE)?).map_err(|error| {
        Error::file(path, format!("is no saved conversation: {error}"))
            .with_help("/save writes them: a list of {\"role\": ..., \"content\": ...}")
    })
}
