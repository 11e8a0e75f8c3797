//! What the user types in a conversation: lines with editing and history, several lines at once.

use crate::{cache, report};
use conjure::{Error, Result};
use rustyline::error::ReadlineError;
use rustyline::{Behavior, Config, DefaultEditor};
use std::io::IsTerminal as _;
use std::path::PathBuf;

/// Lines that are remembered for the next time.
const HISTORY: usize = 1_000;
/// Opens and closes a text of several lines.
const QUOTES: &str = "\"\"\"";

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A text, of several lines perhaps.
    Text(String),
    /// The end, by Ctrl-D or that of the file.
    End,
}

/// Lines from a terminal or a file.
pub struct Input {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    interactive: bool,
}

impl Input {
    /// On stdin. In a terminal what was typed in earlier conversations can be called back; it lies in the cache folder.
    pub fn new() -> Result<Self> {
        let interactive = std::io::stdin().is_terminal();
        // Where the answers go into a file, the line is edited on the terminal all the same.
        let behavior = if std::io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let mut config = Config::builder().auto_add_history(false);
        if interactive {
            config = config.behavior(behavior);
        }
        let config = config.max_history_size(HISTORY).map_err(failure)?.build();
        let mut editor = DefaultEditor::with_config(config).map_err(failure)?;
        let history = if interactive { cache::folder().ok().map(|folder| folder.join("chat_history")) } else { None };
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history, interactive })
    }

    /// Whether somebody sits in front of it.
    pub fn interactive(&self) -> bool {
        self.interactive
    }

    /// The next text.
    ///
    /// # Errors
    /// The input cannot be read, or is no text.
    pub fn read(&mut self) -> Result<Line> {
        loop {
            let interactive = self.interactive;
            let editor = &mut self.editor;
            let mut interrupted = false;
            let text = collect(&mut |prompt| match editor.readline(if interactive { prompt } else { "" }) {
                Ok(line) => Ok(Some(line)),
                Err(ReadlineError::Eof) => Ok(None),
                Err(ReadlineError::Interrupted) => {
                    interrupted = true;
                    Ok(None)
                }
                Err(error) => Err(failure(error)),
            })?;
            if interrupted {
                report::note("Ctrl-D or /quit ends the conversation");
                continue;
            }
            let Some(text) = text else { return Ok(Line::End) };
            if self.interactive && !text.trim().is_empty() {
                let _ = self.editor.add_history_entry(text.as_str());
            }
            return Ok(Line::Text(text));
        }
    }

    /// Keeps what was typed for the next time.
    pub fn finish(mut self) {
        let Some(path) = &self.history else { return };
        // A history that cannot be written is no reason to fail.
        if path.parent().is_some_and(|folder| std::fs::create_dir_all(folder).is_ok()) {
            let _ = self.editor.save_history(path);
        }
    }
}

fn failure(error: ReadlineError) -> Error {
    match error {
        ReadlineError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Error::request("the input is not text in UTF-8").with_help("convert it, for example with iconv")
        }
        ReadlineError::Io(error) => Error::io("stdin", error),
        other => Error::failure(format!("the input cannot be read: {other}")),
    }
}

/// Puts lines together to a text: those that end with a backslash, and those between triple quotes. `None` if the lines are
/// over.
fn collect(line: &mut dyn FnMut(&str) -> Result<Option<String>>) -> Result<Option<String>> {
    let Some(first) = line("> ")? else { return Ok(None) };
    let mut text = match first.trim_start().strip_prefix(QUOTES) {
        Some(rest) => {
            let mut text = rest.to_owned();
            // Also on one line.
            while !text.trim_end().ends_with(QUOTES) {
                // The end of the input ends the text too.
                let Some(next) = line(". ")? else { return Ok(Some(text.trim_matches('\n').to_owned())) };
                text.push('\n');
                text.push_str(&next);
            }
            text.truncate(text.trim_end().len() - QUOTES.len());
            return Ok(Some(text.trim_matches('\n').to_owned()));
        }
        None => first,
    };
    while text.ends_with('\\') {
        text.pop();
        let Some(next) = line(". ")? else { break };
        text.push('\n');
        text.push_str(&next);
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[&str]) -> Vec<String> {
        let mut lines = lines.iter().map(|line| (*line).to_owned());
        let mut next = |_: &str| Ok(lines.next());
        std::iter::from_fn(|| collect(&mut next).unwrap()).collect()
    }

    #[test]
    fn several_lines_make_one_text() {
        assert_eq!(texts(&["one", "two \\", "three\\", "", "four"]), ["one", "two \nthree\n", "four"]);
        assert_eq!(texts(&["\"\"\"a", "", "  b\\", "c\"\"\"", "d"]), ["a\n\n  b\\\nc", "d"]);
        assert_eq!(texts(&["\"\"\"", "a", "\"\"\"", "\"\"\"all\"\"\""]), ["a", "all"]);
        assert_eq!(texts(&["\"\"\"never closed", "x"]), ["never closed\nx"]);
        assert_eq!(texts(&["last\\"]), ["last"]);
    }
}
