//! Ctrl-C and SIGTERM: the first asks the work to stop and save, the second ends the process.

use catelier_workflows::Cancel;

use crate::failure::INTERRUPTED;
use crate::terminal;

/// Listens from now on; called when work begins that can stop within a step.
pub(crate) fn listen(cancel: Cancel) {
    let handler = move || {
        if cancel.cancel() {
            end_at_once();
        }
        terminal::say("stopping after this step; once more ends at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        terminal::warn(&format!("Ctrl-C will not save: {error}"));
    }
}

#[expect(clippy::exit, reason = "asked for twice: there is nothing left to save")]
fn end_at_once() {
    std::process::exit(INTERRUPTED.into());
}
