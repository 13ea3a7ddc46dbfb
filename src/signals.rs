//! Ctrl-C, SIGTERM and SIGHUP: the first asks the work to stop and save, a second Ctrl-C or SIGTERM ends the process at once.

use std::sync::atomic::{AtomicU8, Ordering};

use catelier_workflows::Cancel;

use crate::terminal;

/// What shells add to the number of a signal for the exit code of a process that it stopped.
const STOPPED_BY: u8 = 128;
/// The exit code of Ctrl-C.
pub(crate) const INTERRUPTED: u8 = STOPPED_BY + 2;

/// The exit code that belongs to the first signal; 0 before there was one. Signals come to the process, so it is one for all.
static STOPPED: AtomicU8 = AtomicU8::new(0);

/// The exit code that belongs to the signal by which the process was asked to stop; `None` where nobody asked.
pub(crate) fn exit_code() -> Option<u8> {
    match STOPPED.load(Ordering::SeqCst) {
        0 => None,
        code => Some(code),
    }
}

/// Listens from now on; called when work begins that can stop within a step.
pub(crate) fn listen(cancel: Cancel) {
    on_signal(move || {
        cancel.cancel();
        terminal::say("stopping after this step; once more ends at once");
    });
}

/// From now on, a signal ends the process at once, and `last_words` are said: for work that leaves everything in order
/// at any moment.
pub(crate) fn end_at_once(last_words: String) {
    on_signal(move || {
        terminal::say(&last_words);
        end(exit_code().unwrap_or(INTERRUPTED));
    });
}

#[expect(clippy::exit, reason = "there is nothing to save")]
fn end(code: u8) {
    std::process::exit(code.into());
}

#[cfg(unix)]
fn on_signal(first: impl FnOnce() + Send + 'static) {
    if let Err(error) = unix::on_signal(first) {
        terminal::warn(&format!("Ctrl-C will not save: {error}"));
    }
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::signal::{SigHandler, Signal, signal};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag;
    use signal_hook::iterator::Signals;

    use super::{STOPPED, STOPPED_BY};

    pub(super) fn on_signal(first: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut listened = vec![SIGINT, SIGTERM];
        if !hangup_is_ignored()? {
            listened.push(SIGHUP);
        }
        let mut signals = Signals::new(&listened)?;
        let was_asked = Arc::new(AtomicBool::new(false));
        for number in &listened {
            // In this order: the first signal finds the flag unset, and sets it. The second ends the process within its
            // handler, so that nothing that blocks, not even a terminal, can hold it up. Several SIGHUPs are one request:
            // a terminal that goes away sends them by its shell and by the system.
            if *number != SIGHUP {
                flag::register_conditional_shutdown(*number, i32::from(STOPPED_BY) + number, was_asked.clone())?;
            }
            flag::register(*number, was_asked.clone())?;
        }
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Some(number) = signals.forever().next() {
                STOPPED.store(STOPPED_BY + number as u8, Ordering::SeqCst);
                first();
            }
        })?;
        Ok(())
    }

    /// Whether the process was started to outlive its terminal, as `nohup` starts it.
    #[expect(unsafe_code, reason = "the system tells how a signal is handled only to those who change it")]
    fn hangup_is_ignored() -> io::Result<bool> {
        // SAFETY: no handler is installed, so none can be unsound; the old one is the default or none.
        let before = unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
        let is_ignored = matches!(before, SigHandler::SigIgn);
        if !is_ignored {
            // SAFETY: as above.
            unsafe { signal(Signal::SIGHUP, before) }?;
        }
        Ok(is_ignored)
    }
}

#[cfg(not(unix))]
fn on_signal(first: impl FnOnce() + Send + 'static) {
    let mut first = Some(first);
    let handler = move || {
        STOPPED.store(INTERRUPTED, Ordering::SeqCst);
        match first.take() {
            Some(first) => first(),
            None => end(INTERRUPTED),
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        terminal::warn(&format!("Ctrl-C will not save: {error}"));
    }
}
