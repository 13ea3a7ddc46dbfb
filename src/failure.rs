//! How a command ends when it does not succeed: which exit code, and what a person reads.

use std::process::ExitCode;

use catelier_workflows::Error;

use crate::{signals, terminal};

/// The work failed, or a required score was not reached.
const FAILED: u8 = 1;
/// The user must change the request.
const USER_ERROR: u8 = 2;
/// A fault in this program.
pub(crate) const BUG: u8 = 70;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request is wrong, the work failed or was cancelled.
    Work(Error),
    /// Everything worked, and the answer is no. The result is already printed.
    NotReached(String),
    /// The work was stopped before its end, and how to go on is told already.
    Stopped,
}

/// The outcome of a command.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Work(error)
    }
}

/// Says what a person needs to know about the end of a command, and gives the exit code.
pub(crate) fn report(outcome: &Outcome<()>) -> ExitCode {
    match (outcome, signals::exit_code()) {
        (Ok(()), None) => ExitCode::SUCCESS,
        (Ok(()), Some(code)) => {
            terminal::say("the work was done before it could stop");
            ExitCode::from(code)
        }
        (Err(failure), _) => ExitCode::from(failure.report()),
    }
}

/// Prints clap's answer to a command line that starts no command: help or the version, which were asked for, or what is
/// wrong with the line.
pub(crate) fn report_usage(answer: &clap::Error) -> ExitCode {
    match terminal::usage(answer) {
        Err(failure) => ExitCode::from(failure.report()),
        Ok(()) if answer.use_stderr() => ExitCode::from(USER_ERROR),
        Ok(()) => ExitCode::SUCCESS,
    }
}

impl Failure {
    fn report(&self) -> u8 {
        let stopped = signals::exit_code().unwrap_or(signals::INTERRUPTED);
        match self {
            Self::Work(Error::Cancelled) => {
                terminal::say("stopped");
                stopped
            }
            Self::Stopped => stopped,
            Self::Work(error) => {
                terminal::error(error);
                if error.is_user_error() { USER_ERROR } else { FAILED }
            }
            Self::NotReached(what) => {
                terminal::say(&format!("not reached: {what}"));
                FAILED
            }
        }
    }
}
