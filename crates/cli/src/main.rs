//! The command `conjure`: reads what is asked for, has the library do it, and reports.

mod args;
mod cache;
mod chat;
mod chat_input;
mod data;
mod embed;
mod evaluate;
mod evaluate_translation;
mod explain;
mod image;
mod interrupt;
mod language;
mod lines;
mod models;
mod output;
mod perplexity;
mod preview;
mod progress;
mod replay;
mod report;
mod text;
mod train;
mod translate;

use args::{Arguments, Command};
use clap::Parser as _;
use std::process::ExitCode;

// Every tensor operation allocates: a good allocator shows in the run time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tune_libraries();
    let arguments = Arguments::parse();
    interrupt::listen();
    let outcome = match arguments.command {
        Command::Image(args) => image::run(*args),
        Command::Text(args) => text::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Translate(args) => translate::run(&args),
        Command::Replay(args) => replay::run(args),
        Command::Embed(args) => embed::embed(&args),
        Command::Similar(args) => embed::similar(&args),
        Command::Models(command) => models::run(command),
        Command::Train(args) => train::run(&args),
        Command::Evaluate(command) => evaluate::run(command),
        Command::Explain(command) => explain::run(command),
        Command::Data(command) => data::run(command),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => report::failure(&error),
    }
}

/// Settings of libraries that can only be made before they are first used.
fn tune_libraries() {
    /// `mi_option_purge_delay` of mimalloc.h, which the bindings have no name for.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // Freed memory is kept for the next step. Given back to the system after 10 milliseconds, mimalloc's default, or after 2
    // seconds, a training step pays for many of its pages again: a quarter or a seventh of its time.
    // SAFETY: an option that may be set at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    // The tensor library's own threads wait in a loop for its next addition, on the cores that our kernels compute on.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: this process has no other thread yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}
