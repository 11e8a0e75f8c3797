//! Ctrl-C: the first asks the work to stop at its next step, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The exit code of a program that an interrupt ended: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Begins to listen.
pub fn listen() {
    // Where no handler can be installed Ctrl-C still ends the program; files are written whole or not at all either way.
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    });
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
