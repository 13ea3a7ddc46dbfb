//! Ctrl-C and SIGTERM: the first asks the work to stop and save, the second ends the process.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::terminal;

static STOP: AtomicBool = AtomicBool::new(false);

/// Listens from now on; called by work that can save itself.
pub(crate) fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(install);
}

fn install() {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) {
            end_at_once();
        }
        terminal::say("stopping after this step; once more ends at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        terminal::warn(&format!("Ctrl-C will not save: {error}"));
    }
}

/// Whether somebody asked to stop.
pub(crate) fn stop_requested() -> bool {
    STOP.load(Ordering::SeqCst)
}

#[expect(clippy::exit, reason = "asked for twice: there is nothing left to save")]
fn end_at_once() {
    std::process::exit(130);
}
