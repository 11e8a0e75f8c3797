//! Ctrl-C: the first asks the work to stop at its next step, the second ends the program at once, but not a
//! conversation.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static AT_ONCE: AtomicBool = AtomicBool::new(false);
static KEEP_RUNNING: AtomicBool = AtomicBool::new(false);

/// The exit code of a program that an interrupt ended: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Begins to listen.
pub fn listen() {
    // Where no handler can be installed Ctrl-C still ends the program; files are written whole or not at all either way.
    let _ = ctrlc::set_handler(|| {
        let again = REQUESTED.swap(true, Ordering::Relaxed);
        if AT_ONCE.load(Ordering::Relaxed) || (again && !is_kept_running()) {
            std::process::exit(INTERRUPTED);
        }
    });
}

/// From now on the first Ctrl-C ends the program: for work without steps, of which nothing is worth keeping.
pub fn end_at_once() {
    AT_ONCE.store(true, Ordering::Relaxed);
}

/// From now on the first Ctrl-C asks the work to stop at its next step: there is something worth keeping.
pub fn end_at_a_step() {
    AT_ONCE.store(false, Ordering::Relaxed);
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// From now on Ctrl-C never ends the program, only the work at hand, as in a conversation.
pub fn keep_running() {
    KEEP_RUNNING.store(true, Ordering::Relaxed);
}

/// Whether Ctrl-C is for the work at hand only.
pub fn is_kept_running() -> bool {
    KEEP_RUNNING.load(Ordering::Relaxed)
}

/// Begins new work: what was asked before does not count for it.
pub fn clear() {
    REQUESTED.store(false, Ordering::Relaxed);
}
